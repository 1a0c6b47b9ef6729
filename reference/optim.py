"""Optimizer updates over whole lists of arrays, in place.

Each update first forms g = gradient + weight_decay p, then replaces p by shrink p - step, where the step is the
method's and ``shrink`` holds one factor an array: decay that is decoupled from the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .cells.activations import Array

_BLOCK = 1 << 16
"""Elements at a time: an update passes many times over what then stays in a core's cache."""


def global_norm(arrays: Sequence[Array]) -> Array:
    """The 2-norm of all elements of all ``arrays``, accumulated in float64, as a float64 array of shape ().

    Parameters
    ----------
    arrays : arrays of any shapes

    Returns
    -------
    norm : () float64 array
    """
    total = 0.0
    wide = np.empty(_BLOCK, np.float64)
    for array in arrays:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            w = wide[: block.size]
            w[...] = block
            total += float(np.dot(w, w))
    return np.array(math.sqrt(total))


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
    return [np.multiply(a, factor.astype(a.dtype)) for a in arrays]


def sgd_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    momenta: Sequence[Array] | None,
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    step: int,
) -> None:
    """Gradient descent with momentum: b = momentum b + (1 - dampening) g, p = shrink p - lr b.

    Nesterov's form descends along g + momentum b instead. At the first step b = g, undamped.

    Parameters
    ----------
    params, momenta : lists of arrays
        Changed in place. Without momenta b is g.
    grads : list of arrays
    shrink : list of floats
    step : int
        Counts from 1.
    """
    lists = [params, grads] if momenta is None else [params, grads, momenta]
    for factor, (p, g, *rest), scratch in _blocks(lists, shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        if rest:
            b = rest[0]
            if step == 1:
                b[...] = g
            else:
                b *= momentum
                b += np.multiply(g, 1 - dampening, out=scratch[1])
            if nesterov:
                np.multiply(b, momentum, out=scratch[1])
                g = np.add(g, scratch[1], out=scratch[1])
            else:
                g = b
        _descend(p, factor, np.multiply(g, lr, out=scratch[1]))


def rmsprop_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    squares: Sequence[Array],
    means: Sequence[Array] | None,
    momenta: Sequence[Array] | None,
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    alpha: float,
    eps: float,
    momentum: float,
) -> None:
    """RMSprop: v = alpha v + (1 - alpha) g^2, b = momentum b + g / (sqrt(v) + eps), p = shrink p - lr b.

    With ``means``, m = alpha m + (1 - alpha) g and v - m^2, the variance, stands for v under the root.

    Parameters
    ----------
    params, squares, means, momenta : lists of arrays
        Changed in place. ``means`` and ``momenta`` may be None.
    grads : list of arrays
    shrink : list of floats
    """
    lists = [params, grads, squares, *(given for given in (means, momenta) if given is not None)]
    for factor, (p, g, v, *rest), scratch in _blocks(lists, shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        t = np.multiply(g, 1 - alpha, out=scratch[1])
        if means is not None:
            m = rest[0]
            m *= alpha
            m += t
        t *= g
        v *= alpha
        v += t
        if means is not None:
            np.multiply(m, m, out=t)
            np.subtract(v, t, out=t)
            # Rounding may leave the variance of an even gradient just below zero.
            np.maximum(t, 0, out=t)
            np.sqrt(t, out=t)
        else:
            np.sqrt(v, out=t)
        t += eps
        np.divide(g, t, out=t)
        if momenta is not None:
            b = rest[-1]
            b *= momentum
            b += t
            np.multiply(b, lr, out=t)
        else:
            t *= lr
        _descend(p, factor, t)


def adam_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    largest: Sequence[Array] | None,
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
) -> None:
    """Adam: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p = shrink p - lr m' / (sqrt(v') + eps).

    m' = m / (1 - beta1^step), v' = v / (1 - beta2^step). With ``largest`` (AMSGrad) the largest v so far stands for v.

    Parameters
    ----------
    params, means, squares, largest : lists of arrays
        Changed in place. ``largest`` may be None.
    grads : list of arrays
    shrink : list of floats
    step : int
        Counts from 1.
    """
    # lr m' / (sqrt(v') + eps) with the bias corrections taken out of the arrays.
    root = math.sqrt(1 - beta2**step)
    rate, floor = lr * root / (1 - beta1**step), eps * root
    lists = [params, grads, means, squares] if largest is None else [params, grads, means, squares, largest]
    for factor, (p, g, m, v, *rest), scratch in _blocks(lists, shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        t = np.multiply(g, 1 - beta1, out=scratch[1])
        m *= beta1
        m += t
        np.multiply(g, g, out=t)
        t *= 1 - beta2
        v *= beta2
        v += t
        if rest:
            v = np.maximum(rest[0], v, out=rest[0])
        np.sqrt(v, out=t)
        t += floor
        np.divide(m, t, out=t)
        t *= rate
        _descend(p, factor, t)


def _cut(arrays: Sequence[Array]) -> Iterator[Sequence[Array]]:
    """Matching blocks of arrays of one shape: flat pieces where their memory can be cut so, else the whole."""
    if not all(a.flags.c_contiguous for a in arrays):
        yield arrays
        return
    flat = [a.reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, _BLOCK):
        yield [a[start : start + _BLOCK] for a in flat]


def _blocks(
    lists: Sequence[Sequence[Array]], shrink: Sequence[float]
) -> Iterator[tuple[float, Sequence[Array], Array]]:
    """Matching blocks of matching arrays, each with its array's factor and two scratch arrays of its shape."""
    scratch = np.empty((2, 0))
    for factor, *arrays in zip(shrink, *lists, strict=True):
        for block in _cut(arrays):
            shape, size, dtype = block[0].shape, block[0].size, block[0].dtype
            if scratch.shape[1] < size or scratch.dtype != dtype:
                scratch = np.empty((2, max(size, _BLOCK)), dtype)
            yield factor, block, scratch[:, :size].reshape(2, *shape)


def _decayed(g: Array, p: Array, weight_decay: float, scratch: Array) -> Array:
    """g + weight_decay p, in ``scratch`` if there is anything to add."""
    if not weight_decay:
        return g
    np.multiply(p, weight_decay, out=scratch)
    return np.add(scratch, g, out=scratch)


def _descend(p: Array, factor: float, step: Array) -> None:
    if factor != 1:
        p *= factor
    p -= step
