"""Layer norm of the products of a step (Ba, Kiros & Hinton 2016), in the definitions of the cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpurnn._contract import Array

EPSILON = 1e-5
"""The number that is added to the variance."""


class Normalised(NamedTuple):
    """(x - mean) / sqrt(variance + epsilon) over each group of columns, and the values that its gradient needs."""

    value: Array
    inverse: Array
    """1 / sqrt(variance + epsilon) of each column's group."""
    groups: tuple[int, ...]
    """The number of columns of each group."""

    @classmethod
    def of(cls, x: Array, groups: tuple[int, ...]) -> Normalised:
        centred = x - _means(x, groups)
        inverse = 1 / np.sqrt(_means(centred * centred, groups) + x.dtype.type(EPSILON))
        return cls(centred * inverse, inverse, groups)

    def back(self, d: Array) -> Array:
        """The gradient of x, from that of the value."""
        along = _means(d * self.value, self.groups)
        result: Array = self.inverse * (d - _means(d, self.groups) - self.value * along)
        return result


def _means(x: Array, groups: tuple[int, ...]) -> Array:
    """The mean of each group of columns, repeated in all of its columns."""
    parts = np.split(x, np.cumsum(groups)[:-1], axis=-1)
    return np.concatenate([np.broadcast_to(p.mean(axis=-1, keepdims=True), p.shape) for p in parts], axis=-1)
