"""Acting and scoring: environment -> observation -> tokens -> model (cached) -> action tokens -> action."""

TEMPERATURE = 1.0
"""Actions are sampled from what was learned (Reed et al. 2022, section 2.4). Measured against the likeliest bin of
1024, which ruins continuous control: docs/decisions.md."""
