"""The vanilla cell's activations, and their derivatives in terms of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), written as (1 + tanh(x/2)) / 2, which overflows nowhere."""
    half = x.dtype.type(0.5)
    value: Array = half + half * np.tanh(half * x)
    return value


def apply(name: str, x: Array, out: Array) -> Array:
    """f(x), written to ``out``, which may be ``x``."""
    if name == "tanh":
        return np.tanh(x, out=out)
    if name == "relu":
        return np.maximum(x, 0, out=out)
    if name == "sigmoid":
        np.multiply(x, 0.5, out=out)
        np.tanh(out, out=out)
        np.multiply(out, 0.5, out=out)
        return np.add(out, 0.5, out=out)
    np.copyto(out, x)
    return out


def derivative(name: str, value: Array, out: Array) -> Array:
    """f'(x) from ``value`` = f(x), written to ``out``, which must be another array. relu'(0) = 0."""
    if name == "tanh":
        np.multiply(value, value, out=out)
        return np.subtract(1, out, out=out)
    if name == "relu":
        np.greater(value, 0, out=out, casting="unsafe")
        return out
    if name == "sigmoid":
        np.subtract(1, value, out=out)
        return np.multiply(out, value, out=out)
    out.fill(1)
    return out
