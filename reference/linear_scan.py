"""The linear recurrence h_t = a_t h_{t-1} + b_t, elementwise, real or complex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.inexact[Any]]


@dataclass(frozen=True)
class _Scan:
    """What `linear_scan_backward` needs."""

    a: Array
    states: Array
    """(T + 1, B, N): h_{-1} = h0, h_0, ..., h_{T-1}."""


def linear_scan_forward(a: Array, b: Array, h0: Array, *, training: bool = False) -> tuple[Array, _Scan | None]:
    """h_t = a_t h_{t-1} + b_t.

    Parameters
    ----------
    a : (T, B, N) or (N,) array
        Of shape (N,) the same at every step and in every row.
    b : (T, B, N) array
    h0 : (B, N) array
    training : bool
        Keep what `linear_scan_backward` needs.

    Returns
    -------
    h : (T, B, N) array
    saved
        For `linear_scan_backward`; None unless ``training``.
    """
    states = np.empty((len(b) + 1, *h0.shape), b.dtype)
    states[0] = h0
    for t in range(len(b)):
        h = np.multiply(a if a.ndim == 1 else a[t], states[t], out=states[t + 1])
        h += b[t]
    # A copy where a gradient is wanted, so that what a caller does to h cannot reach it.
    return (states[1:].copy(), _Scan(a.copy(), states)) if training else (states[1:], None)


def linear_scan_backward(saved: _Scan, dh: Array) -> tuple[Array, Array, Array]:
    """Gradients of a, b and h0; db_t = dh_t + conj(a_{t+1}) db_{t+1} and da_t = db_t conj(h_{t-1}).

    The gradient of a complex number z = x + iy is dL/dx + i dL/dy.

    Parameters
    ----------
    saved
        From `linear_scan_forward`; it is not changed.
    dh : (T, B, N) array

    Returns
    -------
    da : array of a's shape
    db : (T, B, N) array
    dh0 : (B, N) array
    """
    a, states = np.conj(saved.a), saved.states
    db = np.empty_like(dh)
    carried = np.zeros_like(states[0])
    for t in range(len(dh) - 1, -1, -1):
        np.add(dh[t], carried, out=db[t])
        np.multiply(db[t], a if a.ndim == 1 else a[t], out=carried)
    if a.ndim == 3:
        return db * np.conj(states[:-1]), db, carried
    return np.einsum("tbn,tbn->n", db, np.conj(states[:-1])), db, carried
