"""Norms of whole lists of arrays, and optimizer updates in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gpurnn._contract import Array

_BLOCK = 1 << 16
"""The elements to process at a time: an update reads them many times, and they stay in a core's cache."""

_SAFE = (2.0**-900, 2.0**1000)
"""A sum of squares between these bounds has lost nothing to overflow or underflow."""


def global_norm(arrays: Sequence[Array]) -> Array:
    """The 2-norm of all elements of all ``arrays``, accumulated in float64, as a float64 array of shape ().

    Parameters
    ----------
    arrays : arrays of any shapes

    Returns
    -------
    norm : () float64 array
    """
    with np.errstate(over="ignore"):
        return np.array(root_of_squares(lambda scale: _sum_of_squares(arrays, scale), arrays))


def root_of_squares(sum_of_squares: Callable[[float], float], arrays: Sequence[Array]) -> float:
    """The root of the sum of the squares of all elements; ``sum_of_squares`` takes a factor of the elements."""
    total = sum_of_squares(1.0)
    # The squares of float64 may overflow or underflow.
    if not _SAFE[0] < total < _SAFE[1]:
        largest = max((float(np.abs(a).max()) for a in arrays if a.size), default=0.0)
        if 0 < largest < math.inf:
            # A power of two, so that nothing is rounded.
            scale = math.ldexp(1.0, min(-math.frexp(largest)[1], 1000))
            return math.sqrt(sum_of_squares(scale)) / scale
    return math.sqrt(total)


def _sum_of_squares(arrays: Sequence[Array], scale: float) -> float:
    """The sum of the squares of all elements times ``scale``, in float64."""
    total = 0.0
    wide = np.empty(_BLOCK, np.float64)
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            w = wide[: block.size]
            np.multiply(block, scale, out=w) if scale != 1 else np.copyto(w, block)
            total += float(np.dot(w, w))
    return total


def scaled(arrays: Sequence[Array], factor: Array) -> list[Array]:
    """``factor`` times each array, in its dtype.

    Parameters
    ----------
    arrays : arrays of any shapes
    factor : () float64 array

    Returns
    -------
    products : list of new arrays
    """
    if factor < 2.0**-100:
        # In float64, because float32 may not represent the factor.
        return [np.multiply(a, factor).astype(a.dtype, copy=False) for a in arrays]
    return [np.multiply(a, factor.astype(a.dtype)) for a in arrays]


def optimizer_update(
    kind: str,
    params: Sequence[Array],
    grads: Sequence[Array],
    slots: Mapping[str, Sequence[Array] | None],
    shrink: Sequence[float],
    weight_decay: float,
    scalars: Mapping[str, float | bool],
) -> None:
    """Take a step of an optimizer: g = gradient + weight_decay p, then p = shrink p - step(g, slots).

    Parameters
    ----------
    kind : str
        The optimizer's ``kind``, in `gpurnn.optimizers`.
    params : list of arrays
        Updated in place.
    grads : list of arrays
        The gradients of the parameters.
    slots : dict of lists of arrays, or of None
        The arrays that the optimizer keeps for the parameters, in the order of its ``slots``, updated in place; None
        for a slot that its options do not need.
    shrink : list of floats
        A factor for each parameter.
    weight_decay : float
    scalars : dict of floats and bools
        The optimizer's ``scalars`` for this step.
    """
    step_of = _STEPS[kind]
    lists = [params, grads, *([None] * len(params) if arrays is None else arrays for arrays in slots.values())]
    for factor, (p, g, *state), scratch in _blocks(lists, shrink):
        if weight_decay:
            np.multiply(p, weight_decay, out=scratch[0])
            g = np.add(scratch[0], g, out=scratch[0])
        step = step_of(scratch, g, *state, **scalars)
        if factor != 1:
            p *= factor
        p -= step


def _blocks(lists: Sequence[Sequence[Any]], shrink: Sequence[float]) -> Iterator[tuple[float, list[Any], Array]]:
    """Matching flat blocks of matching arrays (None stays None), with their factor and two scratch arrays."""
    scratch = np.empty((2, 0))
    for factor, *arrays in zip(shrink, *lists, strict=True):
        flat: list[Any] = [None if a is None else a.reshape(-1) for a in arrays]
        for start in range(0, flat[0].size, _BLOCK):
            block: list[Any] = [None if a is None else a[start : start + _BLOCK] for a in flat]
            size, dtype = block[0].size, block[0].dtype
            if scratch.shape[1] < size or scratch.dtype != dtype:
                scratch = np.empty((2, max(size, _BLOCK)), dtype)
            yield factor, block, scratch[:, :size]


# ---- The step of each kind -------------------------------------------------------------------------------------------
#
# `definitions.py` has each step in its textbook form. Here it is computed in place, from g, the slots and the scalars
# of the optimizer's class. The first of the two scratch arrays may hold g.


def _sgd(
    scratch: Array, g: Array, b: Array | None,
    *, lr: float, mu: float, undamped: float, nesterov: bool, first: bool,
) -> Array:  # fmt: skip
    t = scratch[1]
    if b is not None:
        if first:
            b[...] = g
        else:
            b *= mu
            b += np.multiply(g, undamped, out=t)
        g = np.add(g, np.multiply(b, mu, out=t), out=t) if nesterov else b
    return np.multiply(g, lr, out=t)


def _rmsprop(
    scratch: Array, g: Array, v: Array, m: Array | None, b: Array | None,
    *, lr: float, alpha: float, one_minus_alpha: float, eps: float, mu: float,
) -> Array:  # fmt: skip
    t = np.multiply(g, one_minus_alpha, out=scratch[1])
    if m is not None:
        m *= alpha
        m += t
    t *= g
    v *= alpha
    v += t
    if m is not None:
        np.multiply(m, m, out=t)
        np.subtract(v, t, out=t)
        # Rounding may leave the variance of a constant gradient just below zero.
        np.maximum(t, 0, out=t)
        np.sqrt(t, out=t)
    else:
        np.sqrt(v, out=t)
    t += eps
    np.divide(g, t, out=t)
    if b is not None:
        b *= mu
        b += t
        return np.multiply(b, lr, out=t)
    t *= lr
    return t


def _average_moments(
    scratch: Array, g: Array, m: Array, v: Array,
    beta1: float, one_minus_beta1: float, beta2: float, one_minus_beta2: float,
) -> None:  # fmt: skip
    t = np.multiply(g, one_minus_beta1, out=scratch[1])
    m *= beta1
    m += t
    np.multiply(g, g, out=t)
    t *= one_minus_beta2
    v *= beta2
    v += t


def _adam(
    scratch: Array, g: Array, m: Array, v: Array, largest: Array | None,
    *, rate: float, floor: float, **betas: float,
) -> Array:  # fmt: skip
    _average_moments(scratch, g, m, v, **betas)
    if largest is not None:
        v = np.maximum(largest, v, out=largest)
    t = np.sqrt(v, out=scratch[1])
    t += floor
    np.divide(m, t, out=t)
    t *= rate
    return t


def _adagrad(scratch: Array, g: Array, v: Array, *, lr: float, eps: float) -> Array:
    t = np.multiply(g, g, out=scratch[1])
    v += t
    np.sqrt(v, out=t)
    t += eps
    np.divide(g, t, out=t)
    t *= lr
    return t


def _adadelta(
    scratch: Array, g: Array, v: Array, u: Array,
    *, lr: float, rho: float, one_minus_rho: float, eps: float,
) -> Array:  # fmt: skip
    d = np.multiply(g, g, out=scratch[1])
    d *= one_minus_rho
    v *= rho
    v += d
    np.add(v, eps, out=d)
    np.sqrt(d, out=d)
    np.divide(g, d, out=d)
    t = np.add(u, eps, out=scratch[0])
    np.sqrt(t, out=t)
    d *= t
    np.multiply(d, d, out=t)
    t *= one_minus_rho
    u *= rho
    u += t
    d *= lr
    return d


def _nadam(
    scratch: Array, g: Array, m: Array, v: Array,
    *, of_mean: float, of_gradient: float, floor: float, **betas: float,
) -> Array:  # fmt: skip
    _average_moments(scratch, g, m, v, **betas)
    d = np.multiply(g, of_gradient, out=scratch[0])
    t = np.multiply(m, of_mean, out=scratch[1])
    d += t
    np.sqrt(v, out=t)
    t += floor
    d /= t
    return d


def _adamax(
    scratch: Array, g: Array, m: Array, u: Array,
    *, rate: float, beta1: float, one_minus_beta1: float, beta2: float, eps: float,
) -> Array:  # fmt: skip
    t = np.multiply(g, one_minus_beta1, out=scratch[1])
    m *= beta1
    m += t
    np.abs(g, out=t)
    t += eps
    u *= beta2
    np.maximum(u, t, out=u)
    np.divide(m, u, out=t)
    t *= rate
    return t


def _rprop(
    scratch: Array, g: Array, previous: Array, size: Array,
    *, eta_minus: float, eta_plus: float, smallest: float, largest: float,
) -> Array:  # fmt: skip
    # The product of the signs, because the product of the gradients may underflow.
    t = np.sign(g, out=scratch[1])
    t *= np.sign(previous)
    turned = t < 0
    np.multiply(size, eta_plus, out=size, where=t > 0)
    np.multiply(size, eta_minus, out=size, where=turned)
    np.clip(size, smallest, largest, out=size)
    previous[...] = g
    np.copyto(previous, 0, where=turned)
    np.sign(previous, out=t)
    t *= size
    return t


_STEPS: dict[str, Callable[..., Array]] = {
    "adadelta": _adadelta,
    "adagrad": _adagrad,
    "adam": _adam,
    "adamax": _adamax,
    "nadam": _nadam,
    "rmsprop": _rmsprop,
    "rprop": _rprop,
    "sgd": _sgd,
}
