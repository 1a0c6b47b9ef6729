"""The products of a dense layer, forward and backward."""

from __future__ import annotations

import numpy as np

from gpurnn._contract import Array


def dense_forward(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b.

    Parameters
    ----------
    x : (N, I) array
    weight : (O, I) array
    bias : (O,) array, optional

    Returns
    -------
    y : (N, O) array
    """
    y: Array = np.matmul(x, weight.T)
    if bias is not None:
        y += bias
    return y


def dense_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    """The gradients of x, W and b.

    Parameters
    ----------
    x, weight : arrays
        The arguments of `dense_forward`.
    dy : (N, O) array

    Returns
    -------
    dx : (N, I) array
    dweight : (O, I) array
    dbias : (O,) array
    """
    return np.matmul(dy, weight), np.matmul(dy.T, x), np.sum(dy, axis=0)
