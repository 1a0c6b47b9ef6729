"""The cells: one step of each, forward and backward, and the same as steps of a loop.

The module of a cell has ``forward(cell, xw, state, weights) -> state, saved`` and ``backward(cell, saved, dstate) ->
dxw, dstate_prev, dweights``, the definition, and the class ``Steps``, which `steps.Steps` describes.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from .activations import Gate


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def module_of(cell: Cell) -> ModuleType:
    """The module of this package with the equations of a cell."""
    return _module(cell.file())


def with_zeros(cell: Cell, weights: Weights) -> dict[str, Array]:
    """The weights of one direction, with zeros for the biases that are not there."""
    w_hh = weights["weight_hh"]
    absent = [name for name in cell.parameters if name not in cell.needed and name not in weights]
    shapes = cell.shapes(input_size=0, hidden_size=w_hh.shape[1]) if absent else {}
    return {**weights, **{name: np.zeros(shapes[name], w_hh.dtype) for name in absent}}


def cell_forward(
    cell: Cell, xw: Array, state: tuple[Array, ...], weights: Weights
) -> tuple[tuple[Array, ...], tuple[object, ...]]:
    """One step of a cell from its projected input.

    Parameters
    ----------
    cell : Vanilla, LSTM or GRU
    xw : (B, G*H) array
        W_ih x_t + b_ih, gates in PyTorch's order.
    state : tuple of (B, H) arrays
        ``(h,)``, for the LSTM ``(h, c)``.
    weights : dict of arrays
        The cell's parameters by name, except those of the input: ``weight_hh`` (G*H, H) and, unless it is zero,
        ``bias_hh`` (G*H,).

    Returns
    -------
    state : tuple of (B, H) arrays
    saved
        What `cell_backward` takes.
    """
    state, saved = module_of(cell).forward(cell, xw, state, with_zeros(cell, weights))
    return state, (cell, saved)


def cell_backward(
    saved: tuple[Cell, tuple[Array, ...]], dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of `cell_forward`: the gradients of xw, of the state before it, and of the weights by name."""
    cell, arrays = saved
    dxw, dstate_prev, dweights = module_of(cell).backward(cell, arrays, dstate)
    return dxw, dstate_prev, dweights


def cell_gates(saved: tuple[Cell, Any]) -> dict[str, Array]:
    """The values (B, H) of the gates of a step by name, from what `cell_forward` saved."""
    cell, of_step = saved
    values = {name: getattr(of_step, name) for name in cell.gate_functions}
    return {name: value.value if isinstance(value, Gate) else value for name, value in values.items()}
