"""Values of a JSON file that others may have written, of the type they have to be."""

import math
from collections.abc import Mapping
from typing import Any

from gatito.errors import UserError

KINDS: Mapping[str, tuple[type, ...]] = {
    "a text": (str,),
    "a whole number": (int,),
    "a finite number": (int, float),
    "true or false": (bool,),
    "an object": (dict,),
    "a list": (list,),
}
"""What a value has to be, in words."""


def checked(values: Any, key: str, kind: str, *, optional: bool = False) -> Any:
    """The value of a key, of a kind of `KINDS`, or None where it is `optional` and null or absent.

    Raises `UserError` that names the key.
    """
    if not isinstance(values, dict):
        raise UserError(f"is {shown(values)}, expected an object")
    value = values.get(key)
    if value is None and optional:
        return None
    if key not in values:
        raise UserError(f"{key} is missing, expected {kind}")
    right = isinstance(value, KINDS[kind]) and (kind == "true or false" or not isinstance(value, bool))
    if not right or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{key} is {shown(value)}, expected {kind}{' or null' if optional else ''}")
    return value


def shown(value: Any) -> str:
    """A value, shortened."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def finite(x: float | None) -> float | None:
    """The number, or None where it is none: JSON has no NaN."""
    return float(x) if x is not None and math.isfinite(x) else None
