"""The recursion of means over time, which the filter runs forwards and the smoother backwards.

Step by step in Python it would take longer than the rest of the filter. It is a system of equations with a banded, unit
lower triangular matrix, whose unknowns are m_t and v_t in turn. A BLAS solves it in the order of the steps: with the
same operations, in compiled code. Solving a stretch of time gives the same bits as solving the whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import _checks
from ..._contract import Array

HostArray = np.ndarray[Any, Any]

WIDEST, MOST_COLUMNS, CHUNK = 24, 64, 512
"""The largest n + p and number of columns for which a banded matrix is faster, and the number of steps it covers."""


def run(
    xp: Any,
    transition: Array,
    readout: Array,
    gain: Array,
    number: HostArray,
    start: Array,
    y: Array,
    added: Array | None,
) -> tuple[Array, Array, Array]:
    """m_t and v_t = y_t - readout m_t at all steps, and m past the last step, with m_{t+1} = transition m_t + gain v_t.

    Parameters
    ----------
    xp : namespace
    transition : (S or 1, b, n, n) array
    readout : (S, b, p, n) array
    gain : (S, b, n, p) array
    number : (T,) array of int
        The number of each step's matrices among the S ones. b is 1 or B.
    start : (B, n, c) array
        m_0, with c columns.
    y : (T, B, p, c) array
    added : (T, B or 1, n, c) array or None
        Added to m_{t+1}.

    Returns
    -------
    m : (T, B, n, c) array
    v : (T, B, p, c) array
    after : (B, n, c) array
        m_T.
    """
    B, n, c = start.shape
    if isinstance(y, np.ndarray) and n + y.shape[2] <= WIDEST and B * c <= MOST_COLUMNS:
        return _banded(transition, readout, gain, number, start, y, added)
    m, ms, vs = start, [], []
    for t, s in enumerate(number.tolist()):
        v = y[t, ...] - readout[s, ...] @ m
        ms.append(m)
        vs.append(v)
        m = transition[s if transition.shape[0] > 1 else 0, ...] @ m + gain[s, ...] @ v
        if added is not None:
            m = m + added[t, ...]
    return xp.stack(ms), xp.stack(vs), m


def _banded(
    transition: HostArray, readout: HostArray, gain: HostArray, number: HostArray, start: HostArray, y: HostArray,
    added: HostArray | None,
) -> tuple[HostArray, HostArray, HostArray]:  # fmt: skip
    from scipy.linalg import blas

    solve = blas.dtbsv if _checks.dtype_name(y) == "float64" else blas.stbsv
    (T, B, p, c), n = y.shape, start.shape[1]
    width, below = n + p, 2 * n + p - 1
    # Two more steps than there are: m past the last one, and room for the entries of a column below the diagonal.
    x = np.zeros((B, c, T + 2, width), y.dtype)
    x[:, :, 0, :n] = np.moveaxis(start, 2, 1)
    x[:, :, :T, n:] = y.transpose(1, 3, 0, 2)
    if added is not None:
        x[:, :, 1 : T + 1, :n] = added.transpose(1, 3, 0, 2)
    b = readout.shape[1]
    for row in range(b):
        columns = x[row : row + 1] if b > 1 else x
        table = _table(transition[:, min(row, transition.shape[1] - 1)], readout[:, row], gain[:, row])
        steady: tuple[int, HostArray] | None = None
        for first in range(0, T, CHUNK):
            own = number[first : first + CHUNK]
            if own[0] == own[-1] and len(own) == CHUNK and (own == own[0]).all():
                if steady is None or steady[0] != own[0]:
                    steady = own[0], _band(table, own, below)
                band = steady[1]
            else:
                band = _band(table, own, below)
            for column in columns.reshape(-1, (T + 2) * width):
                piece = column[first * width : (first + len(own) + 2) * width]
                piece[:] = solve(below, band, piece, lower=1, diag=1, overwrite_x=1)
    x = np.moveaxis(x, (2, 0, 3, 1), (0, 1, 2, 3))
    m, v = np.ascontiguousarray(x[:T, :, :n]), np.ascontiguousarray(x[:T, :, n:])
    return m, v, np.ascontiguousarray(x[T, :, :n])


def _table(transition: HostArray, readout: HostArray, gain: HostArray) -> HostArray:
    """(S, n + p, 2 n + p): the columns of the banded matrix for a step, from the diagonal down."""
    S, p, n = readout.shape
    table = np.zeros((S, n + p, 2 * n + p), readout.dtype)
    state, seen = np.arange(n), np.arange(p)
    table[:, :, 0] = 1
    table[:, state[None, :], n + seen[:, None] - state[None, :]] = readout
    table[:, state[None, :], n + p + state[:, None] - state[None, :]] = -transition
    table[:, n + seen[None, :], p + state[:, None] - seen[None, :]] = -gain
    return table


def _band(table: HostArray, number: HostArray, below: int) -> HostArray:
    """The banded matrix of some steps, and of two more that do nothing, in BLAS storage."""
    width = table.shape[1]
    band = np.zeros((len(number) + 2, width, below + 1), table.dtype)
    np.take(table, number, axis=0, out=band[:-2])
    return band.reshape(-1, below + 1).T
