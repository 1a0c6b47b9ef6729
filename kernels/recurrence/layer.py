"""A layer's whole recurrence over time, in one direction or two, forward and backward.

Products over all steps at once, W_ih x and the gradients of the weights, are plain matrix products. The steps between
them (`run.py`) are run by the kernels of a schedule (`plan.py`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from .. import dtypes
from ..arrays import contiguous, empty, namespace
from ..lease import in_the_same_memory
from ..streams import afterwards, is_beside, of_stream, remembers_stream
from . import plan
from .rows import RowRun, backward_rows, forward_rows
from .run import Run, run_backward, run_forward
from .stack import once

CHUNK_ROWS = 8192
"""The fewest rows of a product over many steps, if there are so many."""


def recurrence_chunk(batch: int) -> int:
    """Steps of a chunk: products over many steps are computed for a chunk at a time, as in ``gpurnn.reference``."""
    return -(-CHUNK_ROWS // max(batch, 1))


def check_lengths(where: str, lengths: Array | None, T: int) -> None:
    """Do nothing: a check would need a copy from the device. See `recurrence_forward`."""


def marks_of(resets: Array | None, exists: Array | None, repeats: bool) -> Array | None:
    """The ``Marks`` of ``clock.cuh`` for each step of each row, (T, B); None if there are none."""
    starts = None if resets is None else resets.view("u1")
    if exists is None:
        return starts
    holes = (~exists).view("u1") * np.uint8(6 if repeats else 2)
    return holes if starts is None else holes | starts


def chunks_of(T: int, B: int) -> list[slice]:
    """The rows (T*B) of each chunk; there is at least one."""
    n = recurrence_chunk(B)
    return [slice(start * B, min(start + n, T) * B) for start in range(0, max(T, 1), n)]


@dataclass(frozen=True)
class _Saved:
    """The values that `recurrence_backward` needs."""

    run: Run | RowRun
    x: Array
    w_ih: tuple[Array, ...]
    norm: tuple[Array, tuple[Array, Array]] | None = None
    """The weights (D, G*H) of the norm of W_ih x, and the values that `RowRun.normalise` returns."""


@remembers_stream
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
) -> tuple[Array, tuple[Array, ...], _Saved | None]:
    """Run one layer over a whole sequence; arguments and results are as in ``gpurnn.reference``.

    A length beyond T counts as T, one below zero as zero: a check would need a copy from the device.
    """
    (T, B, _), H = x.shape, weights[0]["weight_ih"].shape[0] // cell.gates
    problem = plan.Problem(cell, T, B, H, len(weights), dtypes.of(x))
    passes = [problem, replace(problem, backward=True)] if training else [problem]
    plans = [plan.choose(of_pass, plan.device_of(x)) for of_pass in passes]
    with _memory_of(cell, plans, x, (problem, training)) as is_lent:
        y, final, saved = _forward(
            cell, x, weights, state, lengths, resets, exists, mask, step_masks, repeats=repeats, training=training
        )
    if is_lent:
        y, final = y.copy(), tuple(s.copy() for s in final)
    return y, final, saved


def _memory_of(cell: Cell, plans: Sequence[plan.Plan | None], like: Array, key: Any) -> AbstractContextManager[bool]:
    """The memory in which the launches of a sequence repeat exactly, if they can be a CUDA graph.

    The arrays of the passes with these plans are stored there. Passes that run beside other layers have other plans.
    """
    nobody = cell.sums_over_units or is_beside()
    if nobody or not any(of_pass and of_pass.schedule == "step-fused" for of_pass in plans):
        return contextlib.nullcontext(False)
    return in_the_same_memory(like, key)


def _forward(
    cell: Cell,
    x: Array,
    weights: tuple[Weights, ...],
    state: tuple[Array, ...],
    lengths: Array | None,
    resets: Array | None,
    exists: Array | None,
    mask: Array | None,
    step_masks: Array | None,
    *,
    repeats: bool,
    training: bool,
) -> tuple[Array, tuple[Array, ...], _Saved | None]:
    xp = namespace(x)
    T, B, I = x.shape
    D, G = len(weights), cell.gates
    H = weights[0]["weight_ih"].shape[0] // G
    there = exists
    if lengths is not None:
        lengths = xp.clip(lengths, 0, T).astype(xp.int32)
        within = xp.arange(T, dtype=xp.int32)[:, None] < lengths
        there = within if exists is None else within & exists
    if there is not None:
        x = xp.where(there[:, :, None], x, x.dtype.type(0))
    elif training:
        x = xp.array(x, order="C")
    run: Run | RowRun
    w_ih: tuple[Array, ...] = ()
    marks = marks_of(resets, exists, repeats)
    if cell.sums_over_units:
        run = RowRun.begin(cell, T, B, H, weights, lengths, marks, mask, step_masks, training=training)
        w_ih = once(id(weights), lambda: _inputs(xp, weights)) if training else ()
    else:
        # In training weights are copied, so that the caller may change its arrays before it asks for the gradients.
        w = contiguous(weights[0]["weight_hh"])[None]
        if training or D > 1:
            w, w_ih = once(id(weights), lambda: _copies(xp, weights, training=training))
        diagonal = [[direction[name] for name in cell.diagonal] for direction in weights]
        run = Run.begin(
            cell, T, B, H, w, lengths, marks, mask, diagonal=diagonal, step_masks=step_masks, training=training
        )
    xw = empty(x, (D, T * B, G * H), x.dtype)
    for d, direction in enumerate(weights):
        for rows in chunks_of(T, B):
            xp.matmul(x.reshape(T * B, I)[rows], direction["weight_ih"].T, out=xw[d, rows])
    biases = (
        _stacked(xp, [direction.get("bias_ih") for direction in weights]),
        _stacked(xp, [direction.get("bias_hh") for direction in weights]),
    )
    final = tuple(xp.array(s, run.struct.dtype.accumulator, order="C") for s in state)
    norm = None
    if isinstance(run, RowRun):
        if run.norm is not None:
            of_norm = xp.stack([direction["norm_ih"] for direction in weights])
            kept = run.normalise(xw, of_norm, training=training)
            norm = None if kept is None else (of_norm, kept)
        y = forward_rows(run, xw, biases, final)
    else:
        y = run_forward(run, xw, biases, final)
    final = tuple(s.astype(x.dtype, copy=False) for s in final)
    if not training:
        return y, final, None
    return y, final, _Saved(run, x, w_ih, norm)


def _copies(xp: Any, weights: tuple[Weights, ...], *, training: bool) -> tuple[Array, tuple[Array, ...]]:
    """The recurrent weights of all directions, and in training those of the input."""
    w = xp.stack([direction["weight_hh"] for direction in weights])
    return w, _inputs(xp, weights) if training else ()


def _inputs(xp: Any, weights: tuple[Weights, ...]) -> tuple[Array, ...]:
    """The weights of the input of each direction."""
    return tuple(xp.array(direction["weight_ih"], order="C") for direction in weights)


def _stacked(xp: Any, biases: list[Array | None]) -> Array | None:
    """The biases (D, G*H): zeros for a direction without one, None if no direction has one."""
    given = next((b for b in biases if b is not None), None)
    if given is None or len(biases) == 1:
        return None if given is None else contiguous(given)[None]
    return xp.stack([xp.zeros_like(given) if b is None else b for b in biases])


@of_stream
def recurrence_backward(
    saved: _Saved,
    dy: Array | None,
    dstate: tuple[Array | None, ...],
    dweights: tuple[Mapping[str, Array], ...] | None = None,
) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
    """Backpropagate through a layer's whole recurrence; arguments and results are as in ``gpurnn.reference``."""
    run, x = saved.run, saved.x
    xp = namespace(x)
    sizes = run.cell.state_sizes(run.H)
    real = run.struct.dtype.accumulator
    with _memory_of(run.cell, [run.backward_plan], x, (run.cell, x.shape, run.H, run.D, dtypes.of(x))) as is_lent:
        dstate0 = tuple(
            xp.zeros((run.D, run.B, size), real) if s is None else xp.array(s, real, order="C")
            for s, size in zip(dstate, sizes, strict=True)
        )
        if is_lent and dy is not None:
            dy = xp.array(dy, order="C")
        da, of_hidden = _backward(run, dy, dstate0)
    if is_lent:
        dstate0 = tuple(s.copy() for s in dstate0)
    x_rows = x.reshape(run.T * run.B, x.shape[2])
    dx = empty(x, x_rows.shape, x.dtype)
    totals: tuple[dict[str, Array], ...] = tuple({} for _ in saved.w_ih)

    def over_rows(values: Array) -> Array:
        total: Array = xp.matmul(xp.ones(len(values), x.dtype), values)
        return total

    def products() -> None:
        dxw = da
        if saved.norm is not None and isinstance(run, RowRun):
            dxw = run.normalise_backward(da, *saved.norm)
        for d, w_ih in enumerate(saved.w_ih):
            total: dict[str, Array] = {} if dweights is None else dict(dweights[d])
            chunks = chunks_of(run.T, run.B)
            for rows in chunks if d == 1 else chunks[::-1]:
                part, before_norm = da[d, rows], dxw[d, rows]
                if d == 0:
                    xp.matmul(before_norm, w_ih, out=dx[rows])
                else:
                    dx[rows] += xp.matmul(before_norm, w_ih)
                made = {"weight_ih": xp.matmul(before_norm.T, x_rows[rows]), **of_hidden(d, rows)}
                if saved.norm is not None:
                    made["norm_ih"] = over_rows(part * saved.norm[1][0][d, rows])
                # One sum is the gradient of both biases where both enter the gates alike.
                made["bias_ih"] = over_rows(part) if run.cell.hidden_apart else made["bias_hh"].copy()
                total = {name: total[name] + gradient for name, gradient in made.items()} if total else made
            totals[d].update((name, total[name]) for name in run.cell.parameters)

    afterwards(products)
    return dx.reshape(x.shape), totals, tuple(s.astype(x.dtype, copy=False) for s in dstate0)


def _backward(
    run: Run | RowRun, dy: Array | None, dstate: tuple[Array, ...]
) -> tuple[Array, Callable[[int, slice], dict[str, Array]]]:
    """The gradients (D, T*B, G*H) of the terms of x in the gates, and a function for those of the other weights."""
    if isinstance(run, RowRun):
        gradients = backward_rows(run, dy, dstate)
        return gradients.dx, functools.partial(gradients.of_weights, run)
    da, da_hidden = run_backward(run, dy, dstate)
    return da, lambda d, rows: run.hidden_gradients(d, da_hidden, rows)
