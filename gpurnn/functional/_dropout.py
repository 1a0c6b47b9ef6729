"""Dropout and its mask."""

from __future__ import annotations

import numpy as np

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable
from .._random import generator, philox_seed


def dropout_mask(like: Array, shape: tuple[int, ...], rate: float, rng: np.random.Generator) -> Array:
    """A mask of ``shape`` with entries 0 and 1/(1 - rate), of the library, device and dtype of ``like``."""
    return _dispatch.wing("dropout", x=like).dropout_mask(like, shape, rate, philox_seed(rng), 0)


def _dropout_vjp(x: Array, rate: float, rng: int | np.random.Generator) -> tuple[Array, Pullback]:
    where = "dropout"
    _, x = _arrays.take(where, {"x": x}, needed=("x",))
    mask = dropout_mask(x, tuple(x.shape), _checks.fraction(where, "rate", rate), generator(where, rng))
    y = x * mask

    def pullback(dy: Array | None) -> tuple[Array, dict[str, Array]]:
        dy = _arrays.cotangent(where, "y", dy, y)
        return mask * (0 if dy is None else dy), {}

    return y, pullback


@differentiable(_dropout_vjp)
def dropout(x: Array, rate: float, rng: int | np.random.Generator) -> Array:
    """Inverted dropout: y = x m / (1 - rate), with m zero with probability ``rate`` and one otherwise.

    The mask comes from Philox4x32-10 and is the same, bit for bit, for the same seed in every array library.

    Parameters
    ----------
    x : array, float32 or float64
    rate : float
        In [0, 1).
    rng : int or numpy.random.Generator
        The seed; a generator is advanced.

    Returns
    -------
    y : array like x

    Raises
    ------
    TypeError, ValueError
        An unsupported array or dtype; a rate outside [0, 1); an rng that is none.

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014).

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> sorted(set(gpurnn.dropout(np.ones(100), 0.5, rng=0).tolist()))
    [0.0, 2.0]
    """
    return _dropout_vjp(x, rate, rng)[0]
