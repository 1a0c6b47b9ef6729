"""The recurrence of units that do not read each other's states: h_t = f(a_t + u h_{t-1}) + leak h_{t-1}."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpurnn._contract import Array
from gpurnn.cells import IndRNN

from .cells.activations import activate


@dataclass(frozen=True)
class _Saved:
    """The values that `independent_backward` needs."""

    cell: IndRNN
    u: Array
    states: Array
    """(T + 1, B, H): h0, then h_t of each step."""
    slopes: Array
    """f' of each step."""
    resets: Array | None
    exists: Array | None


def independent_forward(
    cell: IndRNN,
    a: Array,
    u: Array,
    h0: Array,
    *,
    resets: Array | None = None,
    exists: Array | None = None,
    training: bool = False,
) -> tuple[Array, _Saved | None]:
    """h_t = f(a_t + u h_{t-1}) + leak h_{t-1}, elementwise.

    Parameters
    ----------
    a : (T, B, H) array
    u, h0 : (B, H) arrays
    resets : (T, B) bool array, optional
        True where the state before a step is zero.
    exists : (T, B) bool array, optional
        False at the steps that a row does not have; there its state stays, unless a reset zeroes it.
    training : bool
        Whether to keep the values that `independent_backward` needs.

    Returns
    -------
    h : (T, B, H) array
    saved
        The values for `independent_backward`; None unless ``training``.
    """
    states, leak = np.empty((len(a) + 1, *h0.shape), a.dtype), a.dtype.type(cell.leak)
    slopes = np.empty_like(a) if training else None
    states[0] = h0
    for t in range(len(a)):
        before, h = _entering(states[t], resets, t), states[t + 1]
        np.multiply(u, before, out=h)
        np.add(h, a[t], out=h)
        activate(cell.activation, h, None if slopes is None else slopes[t], cell.clip)
        if cell.leak:
            h += leak * before
        if exists is not None:
            np.copyto(h, before, where=~exists[t][:, None])
    if slopes is None:
        return states[1:], None
    # Copies, so that a caller's changes to these arrays cannot affect the gradients.
    resets, exists = (None if marks is None else marks.copy() for marks in (resets, exists))
    return states[1:].copy(), _Saved(cell, u.copy(), states, slopes, resets, exists)


def independent_backward(saved: _Saved, dh: Array) -> tuple[Array, Array, Array]:
    """The gradients of a, u and h0.

    Parameters
    ----------
    saved
        The values from `independent_forward`; they are not changed.
    dh : (T, B, H) array

    Returns
    -------
    da : (T, B, H) array
    du : (B, H) array
    dh0 : (B, H) array
    """
    cell, u, exists = saved.cell, saved.u, saved.exists
    da, du, carried = np.empty_like(dh), np.zeros_like(u), np.zeros_like(u)
    leak = u.dtype.type(cell.leak)
    for t in reversed(range(len(dh))):
        d = dh[t] + carried
        np.multiply(d, saved.slopes[t], out=da[t])
        carried = u * da[t] + leak * d if cell.leak else u * da[t]
        of_u = _entering(saved.states[t], saved.resets, t)
        if exists is not None:
            absent = ~exists[t][:, None]
            np.copyto(da[t], 0, where=absent)
            np.copyto(carried, d, where=absent)
            of_u = np.where(absent, u.dtype.type(0), of_u)
        du += da[t] * of_u
        carried = _entering(carried, saved.resets, t)
    return da, du, carried


def _entering(h: Array, resets: Array | None, t: int) -> Array:
    """Return ``h`` with zeros in rows with a reset at step t."""
    return h if resets is None else np.where(resets[t][:, None], h.dtype.type(0), h)
