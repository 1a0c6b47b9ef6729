"""Elementwise activations and softmax, with their pullbacks."""

from __future__ import annotations

from typing import Any

from .._contract import Array


def sigmoid(xp: Any, a: Array) -> Array:
    """1 / (1 + exp(-a)), exact to a few roundings however small it is."""
    e = xp.exp(-xp.abs(a))
    return xp.where(a < 0, e, xp.ones_like(e)) / (1 + e)


def sigmoid_slope(xp: Any, a: Array) -> Array:
    """The derivative of `sigmoid`, sigma(a) sigma(-a), exact to a few roundings however small it is."""
    e = xp.exp(-xp.abs(a))
    return e / (1 + e) / (1 + e)


def activate(xp: Any, name: str, a: Array) -> Array:
    """An activation of `DENSE_ACTIVATIONS`, elementwise or over the last axis."""
    if name == "tanh":
        return xp.tanh(a)
    if name == "relu":
        # NaN is not below 0, so it stays.
        return xp.where(a < 0, xp.zeros_like(a), a)
    if name == "sigmoid":
        return sigmoid(xp, a)
    if name == "softmax":
        e = xp.exp(a - xp.max(a, axis=-1, keepdims=True))
        return e / xp.sum(e, axis=-1, keepdims=True)
    return a


def activate_pullback(xp: Any, name: str, a: Array, y: Array, dy: Array) -> Array:
    """The gradient of a, where y is its activation; only the sigmoid reads a."""
    if name == "tanh":
        return dy * (1 - y * y)
    if name == "relu":
        return xp.where(y > 0, dy, xp.zeros_like(dy))
    if name == "sigmoid":
        return dy * sigmoid_slope(xp, a)
    if name == "softmax":
        return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))
    return dy


DENSE_ACTIVATIONS = ("identity", "tanh", "relu", "sigmoid", "softmax")
