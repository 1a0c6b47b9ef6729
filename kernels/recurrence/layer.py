"""A layer's whole recurrence over time, in one direction or two, forward and backward.

Products over all steps at once, W_ih x and the gradients of the weights, are plain matrix products. The steps between
them (`run.py`) are run by the kernels of a schedule (`plan.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gpurnn.reference import unrolled

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from .. import dtypes
from ..launch import (
    afterwards,
    contiguous,
    empty,
    in_the_same_memory,
    is_beside,
    namespace,
    of_stream,
    remembers_stream,
)
from . import plan
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
    """The ``Marks`` of ``clock.cuh`` of each step of each row, (T, B), None if there are none."""
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

    run: Run
    x: Array
    w_ih: tuple[Array, ...]


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
    """Run one layer over a whole sequence; arguments and results are those of ``gpurnn.reference``'s.

    A length beyond T counts as T, one below zero as zero: a check would need a copy from the device.
    """
    if cell.sums_over_units:
        of_definition: tuple[Array, tuple[Array, ...], Any] = unrolled.recurrence_forward(
            cell, x, weights, state, lengths=lengths, resets=resets, exists=exists, repeats=repeats, mask=mask,
            step_masks=step_masks, training=training,
        )  # fmt: skip
        return of_definition
    (T, B, _), H = x.shape, weights[0]["weight_hh"].shape[1]
    problem = plan.Problem(cell, T, B, H, len(weights), dtypes.of(x))
    passes = [problem, replace(problem, backward=True)] if training else [problem]
    plans = [plan.choose(of_pass, plan.device_of(x)) for of_pass in passes]
    with _memory_of(plans, x, (problem, training)) as is_lent:
        y, final, saved = _forward(
            cell, x, weights, state, lengths, resets, exists, mask, step_masks, repeats=repeats, training=training
        )
    if is_lent:
        y, final = y.copy(), tuple(s.copy() for s in final)
    return y, final, saved


def _memory_of(plans: Sequence[plan.Plan | None], like: Array, key: Any) -> AbstractContextManager[bool]:
    """Where the launches of a sequence can be a CUDA graph, the memory in which they come again.

    The passes with these plans have arrays there. What runs beside other layers has another plan.
    """
    if is_beside() or not any(of_pass and of_pass.schedule == "step-fused" for of_pass in plans):
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
    D, H, G = len(weights), weights[0]["weight_hh"].shape[1], cell.gates
    there = exists
    if lengths is not None:
        lengths = xp.clip(lengths, 0, T).astype(xp.int32)
        within = xp.arange(T, dtype=xp.int32)[:, None] < lengths
        there = within if exists is None else within & exists
    if there is not None:
        x = xp.where(there[:, :, None], x, x.dtype.type(0))
    elif training:
        x = xp.array(x, order="C")
    # In training weights are copied, so that the caller may change its arrays before it asks for the gradients.
    w = contiguous(weights[0]["weight_hh"])[None]
    w_ih: tuple[Array, ...] = ()
    if training or D > 1:
        w, w_ih = once(id(weights), lambda: _copies(xp, weights, training=training))
    diagonal = [[direction[name] for name in cell.diagonal] for direction in weights]
    marks = marks_of(resets, exists, repeats)
    run = Run.begin(cell, T, B, H, w, lengths, marks, mask, diagonal=diagonal, step_masks=step_masks, training=training)
    xw = empty(x, (D, T * B, G * H), x.dtype)
    for d, direction in enumerate(weights):
        for rows in chunks_of(T, B):
            xp.matmul(x.reshape(T * B, I)[rows], direction["weight_ih"].T, out=xw[d, rows])
    biases = (
        _stacked(xp, [direction.get("bias_ih") for direction in weights]),
        _stacked(xp, [direction.get("bias_hh") for direction in weights]),
    )
    final = tuple(xp.array(s, run.struct.dtype.accumulator, order="C") for s in state)
    y = run_forward(run, xw, biases, final)
    final = tuple(s.astype(x.dtype, copy=False) for s in final)
    if not training:
        return y, final, None
    return y, final, _Saved(run, x, w_ih)


def _copies(xp: Any, weights: tuple[Weights, ...], *, training: bool) -> tuple[Array, tuple[Array, ...]]:
    """The recurrent weights of all directions, and in training those of the input."""
    w = xp.stack([direction["weight_hh"] for direction in weights])
    return w, tuple(xp.array(direction["weight_ih"], order="C") for direction in weights) if training else ()


def _stacked(xp: Any, biases: list[Array | None]) -> Array | None:
    """(D, G*H), zeros where a direction has none, None if none has."""
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
    """Backpropagate through a layer's whole recurrence; arguments and results are those of ``gpurnn.reference``'s."""
    if isinstance(saved, tuple):
        of_definition: tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]
        of_definition = unrolled.recurrence_backward(saved, dy, dstate, dweights)
        return of_definition
    run, x = saved.run, saved.x
    xp = namespace(x)
    state_shape = (run.D, run.B, run.H)
    real = run.struct.dtype.accumulator
    with _memory_of([run.backward_plan], x, (run.cell, x.shape, run.H, run.D, dtypes.of(x))) as is_lent:
        dstate0 = tuple(xp.zeros(state_shape, real) if s is None else xp.array(s, real, order="C") for s in dstate)
        if is_lent and dy is not None:
            dy = xp.array(dy, order="C")
        da, da_hidden = run_backward(run, dy, dstate0)
    if is_lent:
        dstate0 = tuple(s.copy() for s in dstate0)
    x_rows = x.reshape(run.T * run.B, x.shape[2])
    dx = empty(x, x_rows.shape, x.dtype)
    totals: tuple[dict[str, Array], ...] = tuple({} for _ in saved.w_ih)

    def products() -> None:
        for d, w_ih in enumerate(saved.w_ih):
            total: dict[str, Array] = {} if dweights is None else dict(dweights[d])
            chunks = chunks_of(run.T, run.B)
            for rows in chunks if d == 1 else chunks[::-1]:
                part = da[d, rows]
                if d == 0:
                    xp.matmul(part, w_ih, out=dx[rows])
                else:
                    dx[rows] += xp.matmul(part, w_ih)
                made = {"weight_ih": xp.matmul(part.T, x_rows[rows]), **run.hidden_gradients(d, da_hidden, rows)}
                # One sum is the gradient of both biases where both enter the gates alike.
                bias = xp.matmul(xp.ones(len(part), x.dtype), part) if run.cell.hidden_apart else made["bias_hh"].copy()
                made["bias_ih"] = bias
                total = {name: total[name] + gradient for name, gradient in made.items()} if total else made
            totals[d].update((name, total[name]) for name in run.cell.parameters)

    afterwards(products)
    return dx.reshape(x.shape), totals, tuple(s.astype(x.dtype, copy=False) for s in dstate0)
