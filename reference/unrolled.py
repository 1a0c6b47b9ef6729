"""A layer's recurrence with the cells' definition of a step.

It runs cells with options that no `cells.steps.Steps` supports, with a few more calls per step. Only the loop over the
steps is specific to NumPy: NumPy's functions pass CuPy arrays on to CuPy. So the kernels' wing uses it for cells that
no kernel computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from . import cells
from .cells.normalisation import Normalised
from .clock import Clock


@dataclass(frozen=True)
class _Step:
    """The values of a step that its backward pass needs."""

    past: Any
    """(B, 1): True for rows that lack the step."""
    zero: Any
    """(B, 1): True for rows whose output is zero, whatever h is."""
    cut: Any
    """(B, 1): True for rows that no state enters."""
    saved: Any


@dataclass(frozen=True)
class Unrolled:
    """The values that the backward pass of one direction needs."""

    cell: Cell
    clock: Clock
    x: Array
    """(T, B, I), zero where there is no step."""
    w_ih: Array
    norm: Array | None
    """The weights of the normalised input product, with layer norm."""
    products: dict[int, Normalised]
    """The normalised input products, by the first step of their chunk."""
    state_shapes: tuple[tuple[int, ...], ...]
    steps: dict[int, _Step]

    def backward(
        self, dy: Array | None, carried: list[Array], later: Mapping[str, Array] | None
    ) -> tuple[Array, dict[str, Array], list[Array]]:
        """The gradients of x, the weights and the initial state, from the gradients of y and the final state."""
        cell, clock, w_ih, xp = self.cell, self.clock, self.w_ih, array_namespace(self.x)
        (T, B, I), rows = self.x.shape, self.w_ih.shape[0]
        dx = xp.zeros((T, B, I), dtype=self.x.dtype)
        shapes = cell.shapes(input_size=I, hidden_size=rows // cell.gates)
        totals = {n: xp.zeros(s, dtype=self.x.dtype) if later is None else later[n] for n, s in shapes.items()}

        def add(name: str, gradient: Array) -> None:
            totals[name] = totals[name] + gradient

        for chunk, order in clock.chunks(back=True):
            da = xp.zeros((len(order), B, rows), dtype=self.x.dtype)
            for t in order:
                step = self.steps[t]
                if dy is not None:
                    dy_t = dy[t] if step.zero is None else np.where(step.zero, dy.dtype.type(0), dy[t])
                    carried = [carried[0] + dy_t, *carried[1:]]
                dstate = carried
                if step.past is not None:  # missing steps pass the state's gradient on
                    dstate = [np.where(step.past, d.dtype.type(0), d) for d in dstate]
                da_t, dprevious, dweights = cells.backward(cell, step.saved, tuple(dstate))
                da[t - chunk.start] = da_t
                for name, gradient in dweights.items():
                    add(name, gradient)
                if step.past is not None:
                    dprevious = tuple(np.where(step.past, s, d) for s, d in zip(carried, dprevious, strict=True))
                if step.cut is not None:
                    dprevious = tuple(np.where(step.cut, d.dtype.type(0), d) for d in dprevious)
                carried = list(dprevious)
            flat = da.reshape(len(order) * B, rows)
            add("bias_ih", flat.sum(axis=0))
            if self.norm is not None:  # the bias is added after the norm, the weights multiply before it
                normal = self.products[chunk.start]
                add("norm_ih", (flat * normal.value).sum(axis=0))
                flat = normal.back(flat * self.norm)
            dx[chunk] = (flat @ w_ih).reshape(dx[chunk].shape)
            add("weight_ih", flat.T @ self.x[chunk].reshape(len(order) * B, I))
        return dx, totals, carried


def recurrence_forward(
    cell: Cell,
    x: Array,
    weights: tuple[Weights, ...],
    state: tuple[Array, ...],
    *,
    lengths: Array | None = None,
    resets: Array | None = None,
    exists: Array | None = None,
    repeats: bool = False,
    mask: Array | None = None,
    step_masks: Array | None = None,
    training: bool = False,
) -> tuple[Array, tuple[Array, ...], Any]:
    """Run a layer; arguments and results are those of `recurrence.recurrence_forward`."""
    xp, (T, B, _) = array_namespace(x), x.shape
    lengths, resets, exists = (
        a if a is None or isinstance(a, np.ndarray) else a.get() for a in (lengths, resets, exists)
    )
    outputs: list[Array] = []
    finals: list[list[Array]] = []
    saved = []
    for d, direction in enumerate(weights):
        clock = Clock.of(T, B, d == 1, lengths, resets, exists, repeats)
        if clock.past is not None:
            x = np.where(xp.asarray(clock.past), x.dtype.type(0), x)
        of_direction = _forward(
            cell, x, cells.with_zeros(cell, direction), [s[d] for s in state], clock, None if mask is None else mask[d],
            None if step_masks is None else step_masks[:, d], training,
        )  # fmt: skip
        outputs.append(of_direction[0])
        finals.append(of_direction[1])
        saved.append(of_direction[2])
    final = tuple(xp.stack(of_state) for of_state in zip(*finals, strict=True))
    return xp.concat(outputs, axis=2), final, tuple(saved) if training else None


def recurrence_backward(
    saved: tuple[Unrolled, ...],
    dy: Array | None,
    dstate: tuple[Array | None, ...],
    dweights: tuple[Mapping[str, Array], ...] | None = None,
) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
    """Backpropagate; arguments and results are those of `recurrence.recurrence_backward`."""
    xp, D = array_namespace(saved[0].x), len(saved)
    dx: Any = None
    gradients, initial = [], []
    for d, kept in enumerate(saved):
        sizes = kept.state_shapes
        carried = [xp.zeros(n, dtype=kept.x.dtype) if s is None else s[d] for n, s in zip(sizes, dstate, strict=True)]
        width = sizes[0][1]
        of_direction = None if dy is None else dy[:, :, d * width : (d + 1) * width]
        dx_d, of_weights, dstate0 = kept.backward(of_direction, carried, None if dweights is None else dweights[d])
        dx = dx_d if d == 0 else dx + dx_d
        gradients.append(of_weights)
        initial.append(dstate0)
    return dx, tuple(gradients), tuple(xp.stack([initial[d][k] for d in range(D)]) for k in range(len(dstate)))


def _forward(
    cell: Cell,
    x: Array,
    weights: dict[str, Array],
    carried: list[Array],
    clock: Clock,
    mask: Array | None,
    step_masks: Array | None,
    training: bool,
) -> tuple[Array, list[Array], Unrolled]:
    """Run all steps of a direction; return y, the final state, and the values for the backward pass."""
    xp = array_namespace(x)
    if training:  # a caller's changes to the arrays must not affect the gradients
        x, weights = x.copy(), {name: w.copy() for name, w in weights.items()}
        step_masks = None if step_masks is None else step_masks.copy()
        mask = None if mask is None else mask.copy()
    carried, shapes = [s.copy() for s in carried], tuple(s.shape for s in carried)
    norm, products, steps = weights.get("norm_ih"), dict[int, Normalised](), dict[int, _Step]()
    groups = tuple(gates * weights["weight_ih"].shape[0] // cell.gates for gates in cell.norm_groups)
    own = {name: w for name, w in weights.items() if not name.endswith("_ih")}
    own |= {} if mask is None else {"mask": mask}
    y = xp.zeros((*x.shape[:2], carried[0].shape[1]), dtype=x.dtype)
    for chunk, order in clock.chunks():
        xw = x[chunk] @ weights["weight_ih"].T
        if norm is not None:
            products[chunk.start] = Normalised.of(xw.reshape(-1, xw.shape[2]), groups)
            xw = (products[chunk.start].value * norm).reshape(xw.shape)
        xw = xw + weights["bias_ih"]
        for t in order:
            of_clock = (clock.at(rows, t) for rows in (clock.cut, clock.past, clock.zero))
            cut, past, zero = (None if rows is None else xp.asarray(rows) for rows in of_clock)
            entering = carried if cut is None else [np.where(cut, s.dtype.type(0), s) for s in carried]
            of_step = own
            if step_masks is not None:
                of_step = {**own, **dict(zip(cell.step_masks, step_masks[:, t], strict=True))}
                if "zoneout_h" in of_step:  # has the width of h, which may be a projection
                    of_step["zoneout_h"] = of_step["zoneout_h"][:, : y.shape[2]]
            # Rows that lack the step compute one from zero, so that no NaN of theirs reaches the weights' gradients.
            read = entering if past is None else [np.where(past, s.dtype.type(0), s) for s in entering]
            new, saved = cells.forward(cell, xw[t - chunk.start], tuple(read), of_step)
            carried = list(new)
            if past is not None:
                carried = [np.where(past, before, s) for before, s in zip(entering, new, strict=True)]
            y[t] = carried[0] if zero is None else np.where(zero, x.dtype.type(0), carried[0])
            if training:
                steps[t] = _Step(past, zero, cut, saved)
    return y, carried, Unrolled(cell, clock, x, weights["weight_ih"], norm, products, shapes, steps)
