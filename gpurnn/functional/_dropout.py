"""Dropout and its mask."""

from __future__ import annotations

import math

import numpy as np

from .. import _arrays, _checks, _dispatch
from .._contract import Array
from .._op import Pullback, differentiable
from .._random import Key, generator, mask_key


def dropout_mask(like: Array, shape: tuple[int, ...], rate: float, key: Key, start: int = 0) -> Array:
    """A mask with entries 0 and 1/(1 - rate), of the library, device and dtype of ``like``.

    Its rows are the second of three or more axes, else the first axis. They are the key's rows of the batch: the mask
    is a part of the mask for the whole batch, which any other process or shard would draw. If the axis has another
    length, the mask is specific to these rows. ``start`` is the step of the sequence at which the first axis begins.
    """
    wing = _dispatch.wing("dropout", x=like)
    axis = 1 if len(shape) > 2 else 0
    if key.end is not None and (not shape or shape[axis] != key.end - key.first):
        seed = int(np.random.SeedSequence([key.seed, key.first]).generate_state(1, np.uint64)[0])
        key = Key(seed)
    size = math.prod(shape[axis + 1 :])
    if not axis:
        return wing.dropout_mask(like, shape, rate, key.seed, key.first * size)
    stride = size * (shape[1] if key.rows is None else key.rows)
    return wing.dropout_mask(like, shape, rate, key.seed, start * stride + key.first * size, stride)


def _dropout_vjp(x: Array, rate: float, rng: int | np.random.Generator) -> tuple[Array, Pullback]:
    where = "dropout"
    _, x = _arrays.take(where, {"x": x}, needed=("x",))
    mask = dropout_mask(x, tuple(x.shape), _checks.fraction(where, "rate", rate), mask_key(generator(where, rng)))
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
        The array or dtype is unsupported, the rate is outside [0, 1), or ``rng`` is neither an int nor a generator.

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
