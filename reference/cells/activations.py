"""The activations of the cells, with their derivatives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpurnn._contract import Array
from gpurnn.cells import Activation
from gpurnn.cells.activations import name_of, numbers_of

SATURATION = {"over": "ignore", "invalid": "ignore"}
"""For `np.errstate`: the exceptions of 1 / (1 + exp(-a)) and its complement if exp(-a) is infinite."""


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), exact to a few roundings however small it is. The complement 1 - sigmoid(x) is sigmoid(-x)."""
    e, one = np.exp(-np.abs(x)), x.dtype.type(1)
    value: Array = np.where(x < 0, e, one) / (one + e)
    return value


class Gate(NamedTuple):
    """sigma(a), and its complement 1 - sigma(a) to full precision."""

    value: Array
    complement: Array

    @classmethod
    def of(cls, a: Array) -> Gate:
        return cls(sigmoid(a), sigmoid(-a))

    def back(self, d: Array) -> Array:
        """The gradient of a, from that of the value."""
        return d * self.value * self.complement


class Tanh(NamedTuple):
    """tanh(a)."""

    value: Array

    @property
    def complement(self) -> Array:
        return 1 - self.value

    def back(self, d: Array) -> Array:
        """The gradient of a, from that of the value."""
        return d * (1 - self.value**2)


class Activated(NamedTuple):
    """f(a) and f'(a) of any activation."""

    value: Array
    slope: Array

    @property
    def complement(self) -> Array:
        return 1 - self.value

    def back(self, d: Array) -> Array:
        """The gradient of a, from that of the value."""
        return d * self.slope


Response = Gate | Tanh | Activated
"""The value of an activation, and the values that its gradient needs."""


def activated(activation: Activation, a: Array, clip: float | None = None) -> Response:
    """f(a) and the values that its gradient needs; ``clip`` bounds a."""
    if clip is None and activation == "sigmoid":
        return Gate.of(a)
    if clip is None and activation == "tanh":
        return Tanh(np.tanh(a))
    value, slope = a.copy(), np.empty_like(a)
    activate(activation, value, slope, clip)
    return Activated(value, slope)


def activate(activation: Activation, a: Array, slope: Array | None = None, clip: float | None = None) -> Array:
    """f(a), written over ``a``; f'(a) is written to ``slope`` if given. Derivatives at kinks are 0, or from below.

    With ``clip``, a is clipped to [-clip, clip], and the derivative beyond is 0.
    """
    name = name_of(activation)
    beyond = None
    if clip is not None:
        beyond = None if slope is None else np.abs(a) > clip
        np.clip(a, -clip, clip, out=a)
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
    elif name == "identity":
        if slope is not None:
            slope.fill(1)
    else:
        value, derivative = _general(name, a, *(a.dtype.type(number) for number in numbers_of(activation)))
        a[...] = value
        if slope is not None:
            slope[...] = derivative
    if beyond is not None and slope is not None:
        np.copyto(slope, 0, where=beyond)
    return a


def _general(name: str, a: Array, *numbers: Array) -> tuple[Array, Array]:
    """f(a) and f'(a) of the rarer activations, as ONNX defines them."""
    if name == "affine":
        alpha, beta = numbers
        return alpha * a + beta, alpha
    if name == "leaky_relu":
        (alpha,) = numbers
        return np.where(a < 0, alpha * a, a), np.where(a < 0, alpha, 1)
    if name == "thresholded_relu":
        (alpha,) = numbers
        return np.where(a > alpha, a, 0 * a), a > alpha
    if name == "scaled_tanh":
        alpha, beta = numbers
        t = np.tanh(beta * a)
        return alpha * t, alpha * beta * (1 - t * t)
    if name == "hard_sigmoid":
        alpha, beta = numbers
        value = alpha * a + beta
        return np.clip(value, 0, 1), np.where((value > 0) & (value < 1), alpha, 0)
    if name == "elu":
        (alpha,) = numbers
        below = np.minimum(a, 0)
        return np.where(a < 0, alpha * np.expm1(below), a), np.where(a < 0, alpha * np.exp(below), 1)
    if name == "softsign":
        divisor = 1 + np.abs(a)
        return a / divisor, 1 / (divisor * divisor)
    assert name == "softplus"
    return np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a))), sigmoid(a)


def complement(e: Array, value: Array, one: Array | int, out: Array) -> Array:
    """1 - sigma(a) as e sigma(a), with the digits that the difference loses, from e = exp(-a) and ``value`` = sigma(a).

    Where e is infinite, the product is NaN, and is replaced by ``one``.
    """
    np.multiply(e, value, out=out)
    return np.fmin(out, one, out=out)
