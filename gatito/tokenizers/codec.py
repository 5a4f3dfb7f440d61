"""Values of one field to token ids and back. `encode` and `decode` undo each other to half a bin."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gatito.errors import UserError
from gatito.tokenizers.fields import Field
from gatito.tokenizers.scalars import M, from_bins, mu_law, mu_law_inverse, to_bins
from gatito.tokenizers.vocabulary import Vocabulary

CLIP_TOLERANCE = 1e-3
"""How far an action may lie outside its declared bounds: simulators and float files overshoot."""


def as_array(field: Field, values: ArrayLike, where: str) -> NDArray[np.generic]:
    """Return values (T, *shape), or raise `UserError` naming what is wrong: dtype, shape, NaN or Inf."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(f"{where}: its timesteps differ in shape; expected {field.shape}") from None
    if array.dtype.kind not in "iufb":
        raise UserError(f"{where}: dtype {array.dtype}, expected {field.dtype}; convert it to numbers")
    if array.ndim == 0:
        raise UserError(f"{where}: no time axis; expected {('timesteps', *field.shape)}".replace("'", ""))
    if array.shape[1:] != field.shape:
        raise UserError(f"{where}: shape {array.shape[1:]}, expected {field.shape}")
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            t = int(np.argwhere(~finite)[0, 0])
            at = f"{where}, timestep {t}" if len(array) > 1 else where  # of one observation `where` has said it
            raise UserError(f"{at}: NaN or Inf in {array[t].ravel()[:8]}; repair or drop it")
        if field.kind != "continuous" and (array != np.floor(array)).any():
            raise UserError(f"{where}: fractions where the space is {field.kind}; expected {field.dtype}")
    if field.kind == "image" and array.dtype != np.uint8:
        raise UserError(f"{where}: dtype {array.dtype}, expected uint8 pixels")
    return array


def encode(field: Field, values: ArrayLike, vocabulary: Vocabulary, where: str) -> NDArray[np.int64]:
    """Return ids (T, size) of continuous or discrete values (T, *shape), row-major.

    Continuous values outside their bounds are clipped by the bins; discrete ones outside raise `UserError`.
    """
    array = as_array(field, values, where)
    flat = array.reshape(len(array), field.size)
    if field.kind == "discrete":
        shifted = flat.astype(np.int64) - np.array(field.start)
        bad = (shifted < 0) | (shifted >= np.array(field.num_values))
        if bad.any():
            t, i = (int(k[0]) for k in np.nonzero(bad))
            allowed = f"[{field.start[i]}, {field.start[i] + field.num_values[i] - 1}]"
            raise UserError(f"{where}, timestep {t}, element {i}: value {flat[t, i]}, allowed {allowed}")
        return shifted + vocabulary.discrete_start
    x = flat.astype(np.float64)
    if field.scaled:
        x = np.clip(x, *field.bounds)
    return to_bins(_compand(field, x, vocabulary.num_bins), vocabulary.num_bins) + vocabulary.continuous_start


def decode(field: Field, ids: NDArray[np.integer], vocabulary: Vocabulary) -> NDArray[np.generic]:
    """Return values (T, *shape) of ids (T, size): bin centres, in the field's dtype and within its bounds."""
    shape = (len(ids), *field.shape)
    if field.kind == "discrete":
        values = np.asarray(ids, np.int64) - vocabulary.discrete_start + np.array(field.start)
        return values.astype(field.dtype).reshape(shape)
    centres = from_bins(np.asarray(ids) - vocabulary.continuous_start, vocabulary.num_bins)
    x = np.where(field.companded, mu_law_inverse(centres), centres)
    if field.scaled:
        x = np.where(field.companded, x, _from_unit(field, centres, vocabulary.num_bins))
    if np.dtype(field.dtype).kind in "iu":
        x = _nearest_integer(field, x, ids, vocabulary)
    return np.clip(x, *field.bounds).astype(field.dtype).reshape(shape)


def legal_ids(field: Field, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """Return the [start, stop) ids of each element of an action: exactly those that `encode` can give."""
    if field.kind == "discrete":
        return [(vocabulary.discrete_start, vocabulary.discrete_start + n) for n in field.num_values]
    ends = [np.where(np.isfinite(b), b, np.copysign(M, b)).reshape(1, *field.shape) for b in field.bounds]
    first, last = (encode(field, end, vocabulary, field.name)[0].tolist() for end in ends)
    return [(a, b + 1) for a, b in zip(first, last, strict=True)]


def out_of_bounds(field: Field, values: ArrayLike) -> NDArray[np.float64]:
    """Return (T, size): how far continuous values lie outside their declared bounds, 0 inside."""
    x = np.asarray(values, np.float64).reshape(len(np.asarray(values)), -1)
    low, high = field.bounds
    return np.maximum(np.maximum(low - x, x - high), 0.0)


def check_bounds(field: Field, values: ArrayLike, where: str, advice: str) -> None:
    """Raise `UserError` for action values (T, *shape) further than `CLIP_TOLERANCE` outside their bounds."""
    if field.kind != "continuous":
        return
    outside = out_of_bounds(field, values)
    if outside.max(initial=0.0) > CLIP_TOLERANCE:
        t, i = (int(k[0]) for k in np.nonzero(outside > CLIP_TOLERANCE))
        name, value = f"action {field.name}".rstrip(), np.asarray(values).reshape(len(outside), -1)[t, i]
        allowed = f"[{field.low[i]}, {field.high[i]}]"
        raise UserError(f"{where}, timestep {t}: {name}[{i}] is {value:.6g}, allowed {allowed}; {advice}")


def is_clipped(field: Field, values: ArrayLike) -> NDArray[np.bool_]:
    """Return (T, size): continuous values outside their declared bounds, or beyond the last bin (companded: M)."""
    x = np.asarray(values, np.float64).reshape(len(np.asarray(values)), -1)
    low, high = field.bounds
    low = np.where(field.companded, np.maximum(low, -M), low)
    high = np.where(field.companded, np.minimum(high, M), high)
    return (x < low) | (x > high)


def _compand(field: Field, x: NDArray[np.float64], num_bins: int) -> NDArray[np.float64]:
    """Map values (T, size) that are within their bounds to [-1, 1]: companded, scaled, or as they are."""
    rest = _to_unit(field, x, num_bins) if field.scaled and not field.companded.all() else x
    return np.where(field.companded, mu_law(x), rest) if field.companded.any() else rest


def _span(field: Field, num_bins: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges that are mapped to -1 and 1; those of an integer value v are v - 1/2 and v + 1/2, and
    fewer integers than bins have a bin each, the rest of the bins unused."""
    integers = np.dtype(field.dtype).kind in "iu"
    half = 0.5 if integers else 0.0
    low = np.array([-1.0 if v is None else v - half for v in field.low])
    high = np.array([1.0 if v is None else v + half for v in field.high])
    if integers:
        return low, np.maximum(high, low + num_bins)
    return low, np.where(high > low, high, low + 1.0)


def _to_unit(field: Field, x: NDArray[np.float64], num_bins: int) -> NDArray[np.float64]:
    low, high = _span(field, num_bins)
    return (x - low) / (high - low) * 2.0 - 1.0


def _from_unit(field: Field, unit: NDArray[np.float64], num_bins: int) -> NDArray[np.float64]:
    low, high = _span(field, num_bins)
    return low + (unit + 1.0) / 2.0 * (high - low)


def _nearest_integer(
    field: Field, x: NDArray[np.float64], ids: NDArray[np.integer], vocabulary: Vocabulary
) -> NDArray[np.float64]:
    """Round to the integer that falls in the same bin, where rounding to the nearest would leave it."""
    best = np.rint(x)
    for other in (np.floor(x), np.ceil(x)):
        stays = encode(field, best.reshape(-1, *field.shape), vocabulary, field.name) == ids
        best = np.where(stays, best, other)
    return best
