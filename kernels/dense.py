"""The products of a dense layer, computed by the array library."""

from __future__ import annotations

from typing import Any

from gpurnn._contract import Array

from .arrays import namespace


def dense_forward(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b, as ``gpurnn.reference`` gives it."""
    y: Any = namespace(x).matmul(x, weight.T)
    if bias is not None:
        y += bias
    return y


def dense_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    """The gradients of x, W and b, as ``gpurnn.reference`` gives them."""
    xp = namespace(x)
    return xp.matmul(dy, weight), xp.matmul(dy.T, x), xp.sum(dy, axis=0)
