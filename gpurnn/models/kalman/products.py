"""Products of many small matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._contract import Array

SMALL = 3
"""The largest number of columns for which many matrices are multiplied faster column by column."""


def transpose(xp: Any, array: Array) -> Array:
    # NumPy's own transpose is quicker than the array standard's, which matters for matrices as small as these.
    return array.mT if isinstance(array, np.ndarray) else xp.matrix_transpose(array)


def symmetric(xp: Any, array: Array) -> Array:
    return (array + transpose(xp, array)) / 2


def times(xp: Any, matrices: Array, vectors: Array) -> Array:
    """Many matrices (..., m, k) times many vectors (..., k, c)."""
    if not 0 < matrices.shape[-1] <= SMALL:
        return matrices @ vectors
    total = matrices[..., :, :1] * vectors[..., :1, :]
    for j in range(1, matrices.shape[-1]):
        total = total + matrices[..., :, j : j + 1] * vectors[..., j : j + 1, :]
    return total


def summed(xp: Any, one: Array, other: Array) -> Array:
    """(B, c, e): the sum over steps of one^T other, for (T, B, p, c) and (T, B, p, e) arrays."""
    T, B, p, _ = one.shape
    flat, against = (xp.reshape(xp.permute_dims(a, (1, 0, 2, 3)), (B, T * p, a.shape[3])) for a in (one, other))
    return transpose(xp, flat) @ against
