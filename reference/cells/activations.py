"""The logistic function, and the vanilla cell's activations with their derivatives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpurnn._contract import Array

SATURATION = {"over": "ignore", "invalid": "ignore"}
"""For `np.errstate`: the exceptions of 1 / (1 + exp(-a)) and of its complement where exp(-a) is infinite."""


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), to a few roundings however small it is. Its complement 1 - sigmoid(x) is sigmoid(-x)."""
    e, one = np.exp(-np.abs(x)), x.dtype.type(1)
    value: Array = np.where(x < 0, e, one) / (one + e)
    return value


class Gate(NamedTuple):
    """sigma(a), and its complement 1 - sigma(a) with all of its digits."""

    value: Array
    complement: Array

    @classmethod
    def of(cls, a: Array) -> Gate:
        return cls(sigmoid(a), sigmoid(-a))


def activate(name: str, a: Array, slope: Array | None = None) -> Array:
    """f(a), written over ``a``; f'(a) is written to ``slope`` if given. relu'(0) = 0."""
    if name == "tanh":
        np.tanh(a, out=a)
        if slope is not None:
            np.multiply(a, a, out=slope)
            np.subtract(1, slope, out=slope)
    elif name == "relu":
        np.maximum(a, 0, out=a)
        if slope is not None:
            np.greater(a, 0, out=slope, casting="unsafe")
    elif name == "sigmoid":
        with np.errstate(**SATURATION):  # type: ignore[arg-type]
            e = a if slope is None else slope
            np.negative(a, out=e)
            np.exp(e, out=e)
            np.add(e, 1, out=a)
            np.divide(1, a, out=a)
            if slope is not None:
                complement(e, a, 1, out=slope)
                np.multiply(slope, a, out=slope)
    elif slope is not None:
        slope.fill(1)
    return a


def complement(e: Array, value: Array, one: Array | int, out: Array) -> Array:
    """1 - sigma(a) as e sigma(a), with the digits that the difference loses, from e = exp(-a) and ``value`` = sigma(a).

    Where e is infinite, the product is NaN, and ``one`` takes its place.
    """
    np.multiply(e, value, out=out)
    return np.fmin(out, one, out=out)
