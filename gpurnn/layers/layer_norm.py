"""Layer normalisation as a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks, functional
from .._contract import Array
from .._op import Pullback
from .base import Layer, Parameters, parameter, parameter_dtype


class LayerNorm(Layer):
    """Layer normalisation over the last axis: y = gamma (x - mu) / sqrt(sigma^2 + eps) + beta; see `gpurnn.layer_norm`.

    Parameters
    ----------
    features : int
        F, the size of the last axis.
    eps : float
    bias : bool
        Whether there is a beta.
    dtype : "float32" or "float64"

    Attributes
    ----------
    params : dict of str to array
        ``weight`` (F,), gamma, ones at first, and ``bias`` (F,), beta, zeros at first.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> norm = gpurnn.LayerNorm(2, dtype="float64")
    >>> norm
    LayerNorm(2, dtype='float64')  # 4 parameters
    >>> norm(np.array([[10.0, 30.0]])).round(3)
    array([[-1.,  1.]])
    """

    def __init__(self, features: int, *, eps: float = 1e-5, bias: bool = True, dtype: Any = "float32") -> None:
        where = "LayerNorm"
        self.features = _checks.size(where, "features", features)
        self.eps = _checks.non_negative(where, "eps", eps)
        kind = parameter_dtype(where, dtype)
        params = {"weight": parameter((self.features,), kind, lambda: np.ones(self.features, kind))}
        self.bias = _checks.flag(where, "bias", bias)
        if self.bias:
            params["bias"] = parameter((self.features,), kind, lambda: np.zeros(self.features, kind))
        self.params = Parameters(params)

    def __call__(self, x: Array) -> Array:
        """Return y (..., F) for x (..., F); raises as `gpurnn.layer_norm` does."""
        return functional.layer_norm(x, self.params["weight"], self.params.get("bias"), eps=self.eps)

    def vjp(self, x: Array, rng: int | np.random.Generator | None = None) -> tuple[Array, Pullback]:
        """Return ``(y, pullback)``; ``pullback(dy)`` returns ``(dx, grads)``, and ``rng`` is not used."""
        return functional.layer_norm.vjp(x, self.params["weight"], self.params.get("bias"), eps=self.eps)

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return self.features, self.features
