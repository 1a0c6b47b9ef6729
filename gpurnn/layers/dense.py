"""The dense layer, used as a recurrent network's output head."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _checks, functional, initializers
from .._contract import Array
from .._op import Pullback
from .._random import generator
from ..functional._activations import DENSE_ACTIVATIONS
from .base import Layer, Parameters, parameter, parameter_dtype


class Dense(Layer):
    """Dense layer: y = g(W x + b), in a recurrent network y_t = g(W_hy h_t + b_y).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    activation : {"identity", "tanh", "relu", "sigmoid", "softmax"}
        g; the softmax is over the last axis.
    init : str or initializer
        How the weight starts: a name or a function of `gpurnn.initializers`. The bias starts at zero.
    dtype : "float32" or "float64"
    rng : int or numpy.random.Generator
        Where the initial weight comes from.

    Attributes
    ----------
    params : dict of str to array
        ``weight`` (out_features, in_features) and ``bias`` (out_features,).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> head = gpurnn.Dense(4, 2, activation="softmax")
    >>> head
    Dense(4, 2, activation='softmax')  # 10 parameters
    >>> head(np.zeros((5, 3, 4), np.float32))[0, 0]
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "identity",
        init: str | initializers.Initializer = "xavier",
        dtype: Any = "float32",
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "Dense"
        self.in_features = _checks.size(where, "in_features", in_features)
        self.out_features = _checks.size(where, "out_features", out_features)
        self.activation = _checks.choice(where, "activation", activation, DENSE_ACTIVATIONS)
        kind = parameter_dtype(where, dtype)
        initialise, random, shape = initializers.get(init), generator(where, rng), (self.out_features, self.in_features)
        params = {"weight": parameter(shape, kind, lambda: initialise(random, shape, kind))}
        self.bias = _checks.flag(where, "bias", bias)
        if self.bias:
            params["bias"] = parameter(shape[:1], kind, lambda: np.zeros(shape[0], kind))
        self.params = Parameters(params)

    def __call__(self, x: Array) -> Array:
        """Return y (..., out_features) for x (..., in_features); raises as `gpurnn.dense` does."""
        return functional.dense(x, self.params["weight"], self.params.get("bias"), activation=self.activation)

    def vjp(self, x: Array, rng: int | np.random.Generator | None = None) -> tuple[Array, Pullback]:
        """Return ``(y, pullback)``; ``pullback(dy)`` returns ``(dx, grads)``, and ``rng`` is not used."""
        return functional.dense.vjp(x, self.params["weight"], self.params.get("bias"), activation=self.activation)

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return self.in_features, self.out_features
