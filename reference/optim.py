"""Optimizer updates over whole lists of arrays, in place.

Each update first forms g = gradient + weight_decay p, then replaces p by shrink p - step, where the step is the
method's and ``shrink`` holds one factor an array: decay that is decoupled from the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from gpurnn._contract import Array

_BLOCK = 1 << 16
"""Elements at a time: an update passes many times over what then stays in a core's cache."""


_SAFE = (2.0**-900, 2.0**1000)
"""Of a sum of squares that lost nothing to overflow or underflow."""


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
        total = _sum_of_squares(arrays, 1.0)
    # Of float64, squares may overflow or underflow.
    if not _SAFE[0] < total < _SAFE[1]:
        largest = max((float(np.abs(a).max()) for a in arrays if a.size), default=0.0)
        if 0 < largest < math.inf:
            # A power of two, so that nothing is rounded.
            scale = math.ldexp(1.0, min(-math.frexp(largest)[1], 1000))
            return np.array(math.sqrt(_sum_of_squares(arrays, scale)) / scale)
    return np.array(math.sqrt(total))


def _sum_of_squares(arrays: Sequence[Array], scale: float) -> float:
    """Of all elements times ``scale``, in float64."""
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
        # In float64, as float32 may not hold the factor.
        return [np.multiply(a, factor).astype(a.dtype, copy=False) for a in arrays]
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


def adagrad_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    sums: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    eps: float,
) -> None:
    """Adagrad: v = v + g^2, p = shrink p - lr g / (sqrt(v) + eps).

    Parameters
    ----------
    params, sums : lists of arrays
        Changed in place.
    grads : list of arrays
    shrink : list of floats
    """
    for factor, (p, g, v), scratch in _blocks([params, grads, sums], shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        t = np.multiply(g, g, out=scratch[1])
        v += t
        np.sqrt(v, out=t)
        t += eps
        np.divide(g, t, out=t)
        t *= lr
        _descend(p, factor, t)


def adadelta_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    squares: Sequence[Array],
    updates: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    rho: float,
    eps: float,
) -> None:
    """Adadelta: v = rho v + (1 - rho) g^2, d = sqrt(u + eps) / sqrt(v + eps) g, p = shrink p - lr d.

    Then u = rho u + (1 - rho) d^2.

    Parameters
    ----------
    params, squares, updates : lists of arrays
        Changed in place. ``updates`` holds u.
    grads : list of arrays
    shrink : list of floats
    """
    for factor, (p, g, v, u), scratch in _blocks([params, grads, squares, updates], shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        d = np.multiply(g, g, out=scratch[1])
        d *= 1 - rho
        v *= rho
        v += d
        np.add(v, eps, out=d)
        np.sqrt(d, out=d)
        np.divide(g, d, out=d)
        # g, which may lie there, is not needed any more.
        t = np.add(u, eps, out=scratch[0])
        np.sqrt(t, out=t)
        d *= t
        np.multiply(d, d, out=t)
        t *= 1 - rho
        u *= rho
        u += t
        d *= lr
        _descend(p, factor, d)


def nadam_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    momentum: float,
    next_momentum: float,
    momentum_product: float,
    step: int,
) -> None:
    """NAdam: m and v as Adam has them, p = shrink p - lr m' / (sqrt(v') + eps) with Nesterov's momentum in m'.

    m' = mu_next m / (1 - mu_next Pi) + (1 - mu) g / (1 - Pi), v' = v / (1 - beta2^step).

    Parameters
    ----------
    params, means, squares : lists of arrays
        Changed in place.
    grads : list of arrays
    shrink : list of floats
    momentum, next_momentum, momentum_product : float
        mu of this step, mu of the next one, and Pi, the product of mu over the steps up to this one.
    step : int
        Counts from 1.
    """
    # lr m' / (sqrt(v') + eps) with the bias corrections taken out of the arrays.
    root = math.sqrt(1 - beta2**step)
    of_mean = lr * root * next_momentum / (1 - next_momentum * momentum_product)
    of_gradient = lr * root * (1 - momentum) / (1 - momentum_product)
    floor = eps * root
    for factor, (p, g, m, v), scratch in _blocks([params, grads, means, squares], shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        t = np.multiply(g, 1 - beta1, out=scratch[1])
        m *= beta1
        m += t
        np.multiply(g, g, out=t)
        t *= 1 - beta2
        v *= beta2
        v += t
        d = np.multiply(g, of_gradient, out=scratch[0])
        np.multiply(m, of_mean, out=t)
        d += t
        np.sqrt(v, out=t)
        t += floor
        d /= t
        _descend(p, factor, d)


def adamax_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    norms: Sequence[Array],
    shrink: Sequence[float],
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
) -> None:
    """Adamax: m = beta1 m + (1 - beta1) g, u = max(beta2 u, |g| + eps), p = shrink p - lr / (1 - beta1^step) m / u.

    Parameters
    ----------
    params, means, norms : lists of arrays
        Changed in place. ``norms`` holds u.
    grads : list of arrays
    shrink : list of floats
    step : int
        Counts from 1.
    """
    rate = lr / (1 - beta1**step)
    for factor, (p, g, m, u), scratch in _blocks([params, grads, means, norms], shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        t = np.multiply(g, 1 - beta1, out=scratch[1])
        m *= beta1
        m += t
        np.abs(g, out=t)
        t += eps
        u *= beta2
        np.maximum(u, t, out=u)
        np.divide(m, u, out=t)
        t *= rate
        _descend(p, factor, t)


def rprop_update(
    params: Sequence[Array],
    grads: Sequence[Array],
    previous: Sequence[Array],
    sizes: Sequence[Array],
    shrink: Sequence[float],
    *,
    weight_decay: float,
    eta_minus: float,
    eta_plus: float,
    smallest: float,
    largest: float,
) -> None:
    """Rprop: each element steps by its own size against the sign of g, p = shrink p - size sign(g).

    The size is first multiplied by ``eta_plus`` where g has the sign that it had in the step before and by
    ``eta_minus`` where it has the other, within ``smallest`` and ``largest``. Where it has the other, g is then 0.

    Parameters
    ----------
    params, previous, sizes : lists of arrays
        Changed in place. ``previous`` holds the g of the step before.
    grads : list of arrays
    shrink : list of floats
    """
    for factor, (p, g, before, size), scratch in _blocks([params, grads, previous, sizes], shrink):
        g = _decayed(g, p, weight_decay, scratch[0])
        # The product of the signs, since that of the gradients may underflow.
        t = np.sign(g, out=scratch[1])
        t *= np.sign(before)
        turned = t < 0
        np.multiply(size, eta_plus, out=size, where=t > 0)
        np.multiply(size, eta_minus, out=size, where=turned)
        np.clip(size, smallest, largest, out=size)
        before[...] = g
        np.copyto(before, 0, where=turned)
        np.sign(before, out=t)
        t *= size
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
