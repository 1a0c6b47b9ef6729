"""The cells: one step of each, forward and backward, and the same as steps of a loop."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import numpy as np

from gpurnn._contract import Array
from gpurnn.cells import Cell


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def module_of(cell: Cell) -> ModuleType:
    """The module of this package with the equations of a cell."""
    return _module(cell.file())


def cell_forward(
    cell: Cell, xw: Array, state: tuple[Array, ...], w_hh: Array, b_hh: Array | None = None
) -> tuple[tuple[Array, ...], tuple[object, ...]]:
    """One step of a cell from its projected input.

    Parameters
    ----------
    cell : Vanilla, LSTM or GRU
    xw : (B, G*H) array
        W_ih x_t + b_ih, gates in PyTorch's order.
    state : tuple of (B, H) arrays
        ``(h,)``, for the LSTM ``(h, c)``.
    w_hh, b_hh : (G*H, H) and (G*H,) arrays
        The recurrent weights and their bias, None for zero.

    Returns
    -------
    state : tuple of (B, H) arrays
    saved
        What `cell_backward` takes.
    """
    bias = np.zeros(w_hh.shape[0], w_hh.dtype) if b_hh is None else b_hh
    state, saved = module_of(cell).forward(cell, xw, state, w_hh, bias)
    return state, (cell, saved)


def cell_backward(
    saved: tuple[Cell, tuple[Array, ...]], dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], Array, Array]:
    """The transpose of `cell_forward`: the gradients of xw, of the state before the step, of w_hh and of b_hh."""
    cell, arrays = saved
    dxw, dstate_prev, dw_hh, db_hh = module_of(cell).backward(cell, arrays, dstate)
    return dxw, dstate_prev, dw_hh, db_hh
