"""The steps that the rows of a batch have: sequences backwards in time, and outputs at steps that a mask leaves out."""

from __future__ import annotations

from typing import Any

from .. import _arrays, _dispatch
from .._contract import Array


def exist(xp: Any, x: Array, lengths: Array | None, mask: Array | None) -> Array | None:
    """(T, B) bools, True at the steps of x (T, B, ...) that exist by lengths (B,) and mask (T, B); None if all do."""
    if lengths is None:
        return mask
    steps = xp.arange(x.shape[0], dtype=xp.int64, device=_dispatch.device(x))
    within = steps[:, None] < lengths[None, :]
    return within if mask is None else xp.logical_and(within, mask)


def backwards(
    xp: Any, x: Array, lengths: Array | None, resets: Array | None, mask: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """Reverse x, resets and the mask of a sequence in time. Steps past a length come first, and the mask excludes them.

    A reset at t separates t - 1 from t; counted from the end, it separates T - t - 1 from T - t.
    """
    if resets is not None:
        if lengths is not None:
            within = exist(xp, x, lengths, None)
            resets = xp.logical_and(resets, within)
        none = xp.zeros_like(resets[:1, :])
        resets = xp.concat([none, xp.flip(resets[1:, :], axis=0)], axis=0)[: x.shape[0], :]
    mask = exist(xp, x, lengths, mask)
    return from_the_end(xp, x), resets, from_the_end(xp, mask)


def from_the_end(xp: Any, array: Any) -> Any:
    """Reverse an array of steps in time; None stays None."""
    return None if array is None else _arrays.contiguous(xp.flip(array, axis=0))


def before_the_first(xp: Any, mask: Array, direction: int = 0) -> Array:
    """(T, B) bools, True where no step of a row has existed yet, so that there is no output to repeat."""
    existing = xp.astype(mask, xp.int64)
    if direction:
        existing = xp.flip(existing, axis=0)
    none = xp.cumulative_sum(existing, axis=0) == 0
    return xp.flip(none, axis=0) if direction else none


def zero_where(xp: Any, condition: Array | None, values: Array) -> Array:
    """Return ``values`` with zeros where the condition holds; a product with zero would keep NaN."""
    return values if condition is None else xp.where(condition, xp.zeros_like(values), values)
