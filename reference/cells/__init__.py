"""The cells: one step of each, forward and backward, and the steps of a loop.

The module of a cell has the definition, ``forward(cell, xw, state, weights) -> state, saved`` and ``backward(cell,
saved, dstate) -> dxw, dstate_prev, dweights``, and the class ``Steps``, which `steps.Steps` describes.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from .activations import Activated, Gate, Tanh


@functools.cache
def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def module_of(cell: Cell) -> ModuleType:
    """The module of this package with the equations of a cell."""
    return _module(cell.file())


def with_zeros(cell: Cell, weights: Weights) -> dict[str, Array]:
    """The weights of one direction, with zeros for missing biases."""
    w_hh = weights["weight_hh"]
    absent = [name for name in cell.parameters if name not in cell.needed and weights.get(name) is None]
    shapes = cell.shapes(input_size=0, hidden_size=w_hh.shape[0] // cell.gates) if absent else {}
    return {**weights, **{name: np.zeros_like(w_hh, shape=shapes[name]) for name in absent}}


class _Kept(NamedTuple):
    """The values that the backward pass of a step with zoneout needs."""

    step: Any
    keeps: list[Any]
    """The share that each state keeps: a mask, a rate, or None."""


def forward(
    cell: Cell, xw: Array, state: tuple[Array, ...], weights: dict[str, Array]
) -> tuple[tuple[Array, ...], Any]:
    """Run one step of a cell with all of its options; return the new state, and the values that `backward` needs.

    Besides the cell's parameters, ``weights`` has ``mask`` (B, H) if there is one, and the cell's ``step_masks``.
    """
    new, saved = module_of(cell).forward(cell, xw, state, weights)
    keeps = _keeps(cell, weights)
    if all(keep is None for keep in keeps):
        return new, saved
    new = tuple(
        s if keep is None else keep * before + (1 - keep) * s for s, before, keep in zip(new, state, keeps, strict=True)
    )
    return new, _Kept(saved, keeps)


def backward(cell: Cell, saved: Any, dstate: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of `forward`: the gradients of xw, of the previous state, and of the weights by name."""
    if not isinstance(saved, _Kept):
        result: tuple[Array, tuple[Array, ...], dict[str, Array]] = module_of(cell).backward(cell, saved, dstate)
        return result
    inner = tuple(d if k is None else (1 - k) * d for d, k in zip(dstate, saved.keeps, strict=True))
    dxw, dprevious, dweights = module_of(cell).backward(cell, saved.step, inner)
    dprevious = tuple(dp if k is None else dp + k * d for dp, d, k in zip(dprevious, dstate, saved.keeps, strict=True))
    return dxw, dprevious, dweights


def _keeps(cell: Cell, weights: dict[str, Array]) -> list[Any]:
    rates = getattr(cell, "zoneout", 0.0)
    rates = rates if isinstance(rates, tuple) else (rates,)
    return [weights.get(f"zoneout_{s}", rate or None) for s, rate in zip(cell.state_names, rates, strict=True)]


def cell_forward(
    cell: Cell, xw: Array, state: tuple[Array, ...], weights: Weights
) -> tuple[tuple[Array, ...], tuple[object, ...]]:
    """Run one step of a cell on its projected input.

    Parameters
    ----------
    cell : Vanilla, LSTM or GRU
    xw : (B, G*H) array
        W_ih x_t + b_ih, gates in PyTorch's order.
    state : tuple of (B, H) arrays
        ``(h,)``, for the LSTM ``(h, c)``.
    weights : dict of arrays
        The cell's parameters by name, except those of the input: ``weight_hh`` (G*H, H) and, unless it is zero,
        ``bias_hh`` (G*H,); also the arrays (B, H) that ``cell.step_masks`` names.

    Returns
    -------
    state : tuple of (B, H) arrays
    saved
        The values for `cell_backward`.
    """
    state, saved = forward(cell, xw, state, with_zeros(cell, weights))
    return state, (cell, saved)


def cell_backward(
    saved: tuple[Cell, tuple[Array, ...]], dstate: tuple[Array, ...]
) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
    """The transpose of `cell_forward`: the gradients of xw, of the previous state, and of the weights by name."""
    cell, arrays = saved
    return backward(cell, arrays, dstate)


def cell_gates(saved: tuple[Cell, Any]) -> dict[str, Array]:
    """The values (B, H) of the gates of a step by name, from the values that `cell_forward` saved."""
    cell, of_step = saved
    of_step = of_step.step if isinstance(of_step, _Kept) else of_step
    values = {name: getattr(of_step, name) for name in cell.gate_functions}
    return {name: v.value if isinstance(v, (Activated, Gate, Tanh)) else v for name, v in values.items()}
