"""The dropout layer."""

from __future__ import annotations

import numpy as np

from .. import _arrays, _checks, _dispatch, functional
from .._contract import Array
from .._op import Pullback
from .base import Layer, Parameters


class Dropout(Layer):
    """Inverted dropout: each number is zeroed with probability ``rate`` and scaled by 1/(1 - rate) otherwise.

    It acts only in ``vjp(x, rng=...)``; a call returns its input.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> dropout = gpurnn.Dropout(0.5)
    >>> dropout
    Dropout(0.5)  # 0 parameters
    >>> y, pullback = dropout.vjp(np.ones(100), rng=0)
    >>> sorted(set(y.tolist())), dropout(np.ones(3))
    ([0.0, 2.0], array([1., 1., 1.]))
    """

    def __init__(self, rate: float) -> None:
        self.rate = _checks.fraction("Dropout", "rate", rate)
        self.params = Parameters({})

    def __call__(self, x: Array) -> Array:
        """Return x itself."""
        _, x = _arrays.take("Dropout", {"x": x}, needed=("x",))
        return x

    def vjp(self, x: Array, rng: int | np.random.Generator | None = None) -> tuple[Array, Pullback]:
        """Return ``(y, pullback)``; ``pullback(dy)`` returns ``(dx, {})``. Without ``rng``, y is x."""
        if rng is not None and self.rate > 0:
            return functional.dropout.vjp(x, self.rate, rng)
        y = self(x)
        xp = _dispatch.namespace("Dropout", y=y)

        def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
            dy = _arrays.cotangent("Dropout", "y", dy, y)
            return xp.zeros_like(y) if dy is None else dy, {}

        return y, pullback

    def _widths(self, given: int | None) -> tuple[int | None, int | None]:
        return None, given
