"""Layer normalisation."""

from __future__ import annotations

import math
from typing import Any

from .. import _arrays, _checks
from .._contract import Array
from .._op import Pullback, differentiable


def _layer_norm(
    x: Array, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Any, Array, Array | None, Array, Array]:
    """Check the arguments of `layer_norm` and compute; return the namespace, y, the weight, and two saved arrays."""
    where = "layer_norm"
    # The weights come first because they belong to a layer: an error then advises to cast x.
    xp, weight, bias, x = _arrays.take(where, {"weight": weight, "bias": bias, "x": x}, needed=("x",))
    eps = _checks.non_negative(where, "eps", eps)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"{where}: x has shape {tuple(x.shape)}, expected (..., features)")
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None:
            _checks.shape(where, name, array, (x.shape[-1],), "(features,)")
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    # Squares of numbers relative to their size neither overflow nor underflow to zero.
    size = xp.clip(xp.max(xp.abs(centred), axis=-1, keepdims=True), math.sqrt(eps), None)
    size = xp.where(size > 0, size, xp.ones_like(size))
    relative = centred / size
    root = xp.sqrt(xp.mean(relative * relative, axis=-1, keepdims=True) + (math.sqrt(eps) / size) ** 2)
    normalised, inverse = relative / root, 1 / root / size
    y = normalised if weight is None else normalised * weight
    return xp, (y if bias is None else y + bias), weight, normalised, inverse


def _layer_norm_vjp(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5
) -> tuple[Array, Pullback]:
    xp, y, weight, normalised, inverse = _layer_norm(x, weight, bias, eps)

    def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
        dy = _arrays.cotangent("layer_norm", "y", dy, y)
        if dy is None:
            dy = xp.zeros_like(y)
        gradients = {}
        if weight is not None:
            gradients["weight"] = xp.sum(xp.reshape(dy * normalised, (-1, y.shape[-1])), axis=0)
        if bias is not None:
            gradients["bias"] = xp.sum(xp.reshape(dy, (-1, y.shape[-1])), axis=0)
        d = dy if weight is None else dy * weight
        along = xp.mean(d * normalised, axis=-1, keepdims=True)
        return inverse * (d - xp.mean(d, axis=-1, keepdims=True) - normalised * along), gradients

    return y, pullback


@differentiable(_layer_norm_vjp)
def layer_norm(x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Layer normalisation over the last axis: y = gamma (x - mu) / sqrt(sigma^2 + eps) + beta.

    mu and sigma^2 are the mean and the variance of the F features of one position.

    Parameters
    ----------
    x : (..., F) array, float32 or float64
        Entries up to 1 / (2 F) of the largest number of the dtype: a position whose sums overflow becomes NaN.
    weight, bias : (F,) arrays, optional
        gamma and beta; one and zero by default.
    eps : float
        At least 0.

    Returns
    -------
    y : (..., F) array

    Raises
    ------
    TypeError, ValueError
        Arrays or dtypes are unsupported or mixed, shapes do not fit, or eps is negative.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization" (2016), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gpurnn.layer_norm(np.array([[1.0, 3.0], [-5.0, 5.0]]), np.array([1.0, 2.0])).round(3)
    array([[-1.,  2.],
           [-1.,  2.]])
    """
    return _layer_norm(x, weight, bias, eps)[1]
