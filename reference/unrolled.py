"""A layer's recurrence by the cells' definition of a step, one direction of it.

It runs the cells with options for which there are no `cells.steps.Steps`, in a few more calls for each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpurnn._contract import Array
from gpurnn.cells import Cell

from . import cells
from .buffers import product

if TYPE_CHECKING:
    from .recurrence import Clock


@dataclass(frozen=True)
class _Step:
    """The values of a step that its backward pass needs, of the rows that exist."""

    rows: NDArray[np.bool_] | slice
    cut: NDArray[np.bool_] | None
    saved: Any


@dataclass(frozen=True)
class Unrolled:
    """The values that the backward pass of one direction needs."""

    cell: Cell
    clock: Clock
    x1: Array
    """x with a column of ones, (T, B, I + 1)."""
    w_ih: Array
    steps: dict[int, _Step]

    def backward(
        self, dy: Array | None, carried: tuple[Array, ...], dx: Array, later: Mapping[str, Array] | None
    ) -> dict[str, Array]:
        """The gradients of the weights; writes dx, and ``carried`` becomes the initial state's gradient."""
        cell, clock, w_ih = self.cell, self.clock, self.w_ih
        (_, B, columns), (rows, I), dtype = self.x1.shape, w_ih.shape, w_ih.dtype
        shapes = cell.shapes(input_size=I, hidden_size=rows // cell.gates)
        totals = {n: np.zeros(s, dtype) if later is None else np.array(later[n]) for n, s in shapes.items()}
        for chunk, order in clock.chunks(back=True):
            da = np.zeros((len(order), B, rows), dtype)
            for t in order:
                step = self.steps.get(t)
                if step is None:
                    continue
                dstate = [s[step.rows] for s in carried]
                if dy is not None:
                    dstate[0] = dstate[0] + dy[t][step.rows]
                da_t, dprevious, dweights = cells.backward(cell, step.saved, tuple(dstate))
                da[t - chunk.start][step.rows] = da_t
                for name, gradient in dweights.items():
                    totals[name] += gradient
                for s, d in zip(carried, dprevious, strict=True):
                    s[step.rows] = d
                    if step.cut is not None:
                        np.copyto(s, 0, where=step.cut)
            flat = da.reshape(-1, rows)
            np.matmul(flat, w_ih, out=dx[chunk].reshape(len(flat), I))
            dw1 = product(flat.T, self.x1[chunk].reshape(len(flat), columns))
            totals["weight_ih"] += dw1[:, :I]
            totals["bias_ih"] += dw1[:, I]
        return totals


def forward(
    cell: Cell,
    x1: Array,
    weights: dict[str, Array],
    state: tuple[Array, ...],
    clock: Clock,
    mask: Array | None,
    step_masks: Array | None,
    y: Array,
    final: tuple[Array, ...],
    training: bool,
) -> Unrolled | None:
    """All steps of a direction, from the arguments of `recurrence._forward` and ``step_masks`` (M, T, B, H)."""
    if training:  # what a caller does to his arrays cannot reach the gradients
        weights = {name: w.copy() for name, w in weights.items()}
        step_masks = None if step_masks is None else step_masks.copy()
        mask = None if mask is None else mask.copy()
    w1 = np.concatenate([weights["weight_ih"], weights["bias_ih"][:, None]], axis=1)
    own = {name: w for name, w in weights.items() if not name.endswith("_ih")}
    steps: dict[int, _Step] = {}
    carried = [s.copy() for s in state]
    for chunk, order in clock.chunks():
        xw = x1[chunk] @ w1.T
        for t in order:
            cut, past = clock.at(clock.cut, t), clock.at(clock.past, t)
            rows = slice(None) if past is None else ~past[:, 0]
            if past is not None and past.all():
                y[t] = 0
                continue
            if cut is not None:
                for s in carried:
                    np.copyto(s, 0, where=cut)
            of_step = own if mask is None else {**own, "mask": mask[rows]}
            if step_masks is not None:
                of_step = {**of_step, **dict(zip(cell.step_masks, step_masks[:, t, rows], strict=True))}
            new, saved = cells.forward(cell, xw[t - chunk.start][rows], tuple(s[rows].copy() for s in carried), of_step)
            for s, value in zip(carried, new, strict=True):
                s[rows] = value
            y[t] = carried[0] if past is None else np.where(past, y.dtype.type(0), carried[0])
            if training:
                steps[t] = _Step(rows, cut, saved)
    for into, s in zip(final, carried, strict=True):
        into[...] = s
    return Unrolled(cell, clock, x1, weights["weight_ih"], steps) if training else None
