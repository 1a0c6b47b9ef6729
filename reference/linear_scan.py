"""The linear recurrence h_t = a_t h_{t-1} + b_t, elementwise, real or complex.

The cost of a step with few columns is that of NumPy's calls. So with few columns, the chunks of a long sequence run
side by side, from the states that enter them, which are computed first: a chunk is a map, state -> product state +
offset. ``kernels/linear_scan.py``, which cuts time in the same way, explains the effects of rounding, overflow and
underflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpurnn._contract import Array

_MOST_COLUMNS = 128
"""With more, the arithmetic of the maps costs more than the calls that chunks save."""

_LEAST_STEPS = 256


@dataclass(frozen=True)
class _Scan:
    """The values that `linear_scan_backward` needs."""

    a: Array
    states: Array
    """(T + 1, B, N): h_{-1} = h0, h_0, ..., h_{T-1}."""


def linear_scan_forward(a: Array, b: Array, h0: Array, *, training: bool = False) -> tuple[Array, _Scan | None]:
    """h_t = a_t h_{t-1} + b_t.

    Parameters
    ----------
    a : (T, B, N) or (N,) array
        Shape (N,) means the same at every step and in every row.
    b : (T, B, N) array
    h0 : (B, N) array
    training : bool
        Whether to keep the values that `linear_scan_backward` needs.

    Returns
    -------
    h : (T, B, N) array
    saved
        The values for `linear_scan_backward`; None unless ``training``.
    """
    states = np.empty((len(b) + 1, *h0.shape), b.dtype)
    states[0] = h0
    _scan(a, b, h0, states[1:])
    # In training a copy, so that a caller's changes to h cannot affect the gradients.
    return (states[1:].copy(), _Scan(a.copy(), states)) if training else (states[1:], None)


def linear_scan_backward(saved: _Scan, dh: Array) -> tuple[Array, Array, Array]:
    """The gradients of a, b and h0; db_t = dh_t + conj(a_{t+1}) db_{t+1} and da_t = db_t conj(h_{t-1}).

    The gradient of a complex number z = x + iy is dL/dx + i dL/dy.

    Parameters
    ----------
    saved
        The values from `linear_scan_forward`; they are not changed.
    dh : (T, B, N) array

    Returns
    -------
    da : array of a's shape
    db : (T, B, N) array
    dh0 : (B, N) array
    """
    a, states = np.conj(saved.a), saved.states
    db, dh0 = np.empty_like(dh), np.zeros_like(states[0])
    if len(dh):
        db[-1] = dh[-1]
        _scan(a if a.ndim == 1 else a[:0:-1], dh[-2::-1], dh[-1], db[-2::-1])
        np.multiply(a if a.ndim == 1 else a[0], db[0], out=dh0)
    if a.ndim == 3:
        return db * np.conj(states[:-1]), db, dh0
    return np.einsum("tbn,tbn->n", db, np.conj(states[:-1])), db, dh0


def _length(T: int, columns: int) -> int:
    """The steps of a chunk."""
    return math.isqrt(T) if T >= _LEAST_STEPS and columns <= _MOST_COLUMNS else T


def _scan(a: Array, b: Array, h0: Array, h: Array) -> None:
    """Write the states that follow h0 to ``h``."""
    T = len(b)
    length = _length(T, h0.size)
    chunks = T // max(length, 1)
    cut = chunks * length if chunks > 1 else 0

    def of_chunks(x: Array) -> Array:
        """Reshape x to the steps of all chunks, (length, chunks, B, N); an a of shape (N,) is returned as it is."""
        return x if x.ndim == 1 else x[:cut].reshape(chunks, length, *x.shape[1:]).swapaxes(0, 1)

    if cut:
        steps = of_chunks(a), of_chunks(b)
        entering = np.empty((chunks, *h0.shape), h0.dtype)
        entering[0] = h0
        with np.errstate(all="ignore"):  # these numbers are not the states
            factors = np.broadcast_to(a, (length, *a.shape)) if a.ndim == 1 else steps[0]
            products = np.broadcast_to(factors.prod(axis=0), entering.shape)
            bounds = _bounds(factors, products)
            offsets = np.zeros_like(entering)
            for i in range(length):
                np.multiply(a if a.ndim == 1 else steps[0][i], offsets, out=offsets)
                np.add(offsets, steps[1][i], out=offsets)
            for k in range(chunks - 1):
                chunk = slice(k * length, (k + 1) * length)
                np.add(products[k] * entering[k], offsets[k], out=entering[k + 1])
                holds = np.isfinite(entering[k + 1])
                if bounds is not None:
                    holds &= _is_exact(entering[k], entering[k + 1], *(bound[k] for bound in bounds))
                fails = np.logical_not(holds | np.isnan(entering[k]))
                if fails.any():
                    # A product may overflow or underflow although the states do not, and vice versa.
                    _loop(a if a.ndim == 1 else a[chunk], b[chunk], entering[k], h[chunk])
                    np.copyto(entering[k + 1], h[chunk][-1], where=fails)
        _loop(*steps, entering, of_chunks(h))
        h0 = h[cut - 1]
    _loop(a if a.ndim == 1 else a[cut:], b[cut:], h0, h[cut:])


def _bounds(factors: Array, products: Array) -> tuple[Array, Array] | None:
    """Bounds for a chunk's products from its first step to each step: of the largest, and of the last one's loss.

    The second is 0 unless a product fell so low that it may have lost digits to underflow. None if neither matters: no
    product grew, and none fell so low.
    """
    sizes: NDArray[np.floating[Any]] = np.abs(factors)
    numbers = np.finfo(sizes.dtype)
    floor = sizes.dtype.type(numbers.tiny / numbers.eps)
    if sizes.max(initial=0) <= 1 + 8 * numbers.eps:  # the rounding of a complex number of modulus 1
        low = np.logical_not(np.abs(products) > floor)
        return (np.ones_like(low, sizes.dtype), np.where(low, 2 * floor, 0)) if low.any() else None
    bound, peak = np.ones((2, *sizes.shape[1:]), sizes.dtype)
    fell = np.zeros(bound.shape, bool)
    for size in sizes:
        bound *= size
        low = np.logical_not(bound > floor)
        fell |= low
        np.copyto(bound, floor, where=low)
        np.maximum(peak, bound, out=peak)
    shape = products.shape
    return np.broadcast_to(peak, shape), np.broadcast_to(np.where(fell, bound, 0), shape)


def _is_exact(state: Array, following: Array, peak: Array, loss: Array) -> NDArray[np.bool_]:
    """Whether the map from ``state`` to ``following`` loses no more than a rounding, and no state between overflows."""
    size: NDArray[np.floating[Any]] = np.abs(state)
    numbers = np.finfo(size.dtype)
    lost: Array = loss * size
    allowed = np.maximum(numbers.tiny, numbers.eps * np.abs(following))
    exact: NDArray[np.bool_] = (size * peak <= numbers.max) & (lost <= allowed)
    return exact


def _loop(a: Array, b: Array, h0: Array, h: Array) -> None:
    """`_scan`, a step at a time."""
    for t in range(len(b)):
        h0 = np.multiply(a if a.ndim == 1 else a[t], h0, out=h[t])
        np.add(h0, b[t], out=h0)
