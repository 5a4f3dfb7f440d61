"""temporary."""
from dataclasses import dataclass
from gatito.eval import TEMPERATURE
@dataclass(frozen=True, kw_only=True)
class Decoding:
    temperature: float = TEMPERATURE
    top_p: float = 1.0
