"""A fully connected layer."""

from __future__ import annotations

import math
from typing import Any

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable
from ._activations import DENSE_ACTIVATIONS, activate, activate_pullback


def _dense(
    x: Array, weight: Array, bias: Array | None, activation: str
) -> tuple[Any, Array, Array, Array | None, Array, Array]:
    """Check the arguments of `dense` and compute; return the namespace, the arguments as read, W x + b and y."""
    where = "dense"
    # The weights come first because they belong to a layer: an error then advises to cast x.
    xp, weight, bias, x = _arrays.take(where, {"weight": weight, "bias": bias, "x": x}, needed=("x", "weight"))
    _checks.choice(where, "activation", activation, DENSE_ACTIVATIONS)
    _checks.ndim(where, "weight", weight, 2, "(out_features, in_features)")
    outputs, inputs = weight.shape
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected (..., in_features) = (..., {inputs})")
    if activation == "softmax" and outputs == 0:
        raise ValueError(f"{where}: weight has shape {tuple(weight.shape)}, expected out_features > 0 for the softmax")
    if bias is not None:
        _checks.shape(where, "bias", bias, (outputs,), "(out_features,)")
    rows = xp.reshape(x, (math.prod(x.shape[:-1]), inputs))
    a = xp.reshape(_dispatch.wing(where, x=x).dense_forward(rows, weight, bias), (*x.shape[:-1], outputs))
    return xp, x, weight, bias, a, activate(xp, activation, a)


def _dense_vjp(
    x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity"
) -> tuple[Array, Pullback]:
    xp, x, weight, bias, a, y = _dense(x, weight, bias, activation)
    if activation != "sigmoid":  # only the sigmoid reads a
        a = y
    rows, wing = math.prod(x.shape[:-1]), _dispatch.wing("dense", x=x)

    def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
        dy = _arrays.cotangent("dense", "y", dy, y)
        if dy is None:
            dy = xp.zeros_like(y)
        da = xp.reshape(activate_pullback(xp, activation, a, y, dy), (rows, weight.shape[0]))
        dx, dweight, dbias = wing.dense_backward(xp.reshape(x, (rows, weight.shape[1])), weight, da)
        return xp.reshape(dx, x.shape), {"weight": dweight} | ({} if bias is None else {"bias": dbias})

    return y, pullback


@differentiable(_dense_vjp)
def dense(x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity") -> Array:
    """Dense layer, used as the output head of a recurrent network: y = g(W x + b).

    Parameters
    ----------
    x : (..., I) array
    weight : (O, I) array
    bias : (O,) array, optional
    activation : {"identity", "tanh", "relu", "sigmoid", "softmax"}
        g; the softmax is over the last axis.

    Returns
    -------
    y : (..., O) array

    Raises
    ------
    TypeError, ValueError
        Arrays or dtypes are unsupported or mixed, shapes do not fit, or the activation is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.dense(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    return _dense(x, weight, bias, activation)[-1]
