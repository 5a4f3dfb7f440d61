"""Acting and scoring: environment -> observation -> tokens -> model (cached) -> action tokens -> action."""
