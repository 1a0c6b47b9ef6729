"""A layer's whole recurrence of a cell with sums over hidden units: layer norm, and a projection of the output."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gpurnn.reference import recurrence as reference
from gpurnn.reference.clock import recurrence_chunk

from gpurnn._contract import Array, Weights
from gpurnn.cells import Cell

from ..recurrence.layer import marks_of
from . import build, threads
from .recurrence import Layer, address, begin_gradients, can_compute, library_name, room, served, unit, workspace


class SumsLayer(ctypes.Structure):
    """``SumsLayer`` of ``sums_layer.h``."""

    _fields_ = (
        ("layer", Layer),
        ("width", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("norm_ih", "norm_hh", "norm_c", "bias_c", "weight_hr")),
        *((name, ctypes.c_double) for name in ("rate_h", "rate_c")),
        *((name, ctypes.c_void_p) for name in ("zoneout_h", "zoneout_c", "kept")),
        *((name, ctypes.c_void_p) for name in ("dnorm_ih", "dnorm_hh", "dnorm_c", "dbias_c", "dweight_hr")),
    )


class SumsSizes(ctypes.Structure):
    """``SumsSizes`` of ``sums_layer.h``."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("workspace", "workspace_backward", "back", "kept"))


OF_SUMS = ("norm_ih", "norm_hh", "norm_c", "bias_c", "weight_hr")
"""The parameters that only cells with such sums have."""


@functools.lru_cache(256)  # for layers that are called for each step
def of_step(cell: Cell) -> Cell:
    """The cell that the struct computes: without the options that this file adds."""
    added: dict[str, Any] = {"layer_norm": False, "proj_size": 0, "zoneout": (0.0, 0.0) if cell.states > 1 else 0.0}
    masks = tuple(name for name in cell.step_masks if not name.startswith("zoneout"))
    return served(replace(cell, **{n: v for n, v in added.items() if n in cell.options()}, step_masks=masks))


@functools.cache
def library(cell: Cell, dtype: str) -> build.Library:
    """The library of a cell `of_step`, for numbers of a dtype: with layer norm, with a projection and with both."""
    proof = build.size_proof("ChosenSums", SumsLayer)
    return build.Library(
        f"sums_{library_name(cell, dtype)}", lambda: unit(cell, dtype, header="native/sums.h", proof=proof)
    )


@functools.lru_cache(256)  # for layers that are called for each step
def sizes_of(functions: ctypes.CDLL, cell: Cell, T: int, B: int, I: int, H: int, slots: int, most: int) -> SumsSizes:
    """How many numbers the workspaces of a layer's calls hold, with at most so many threads."""
    layer = Layer(steps=T, batch=B, inputs=I, hidden=H, slots=slots, chunk=min(recurrence_chunk(B), T))
    layer.team.most = most
    sums, sizes = SumsLayer(layer=layer, width=cell.state_sizes(H)[0]), SumsSizes()
    for name in OF_SUMS:  # only whether they are there matters
        setattr(sums, name, int(name in cell.parameters))
    functions.gpurnn_sums_sizes(ctypes.byref(sums), ctypes.byref(sizes))
    return sizes


@dataclass(frozen=True)
class Saved:
    """The values that the backward pass of one direction needs."""

    cell: Cell
    functions: ctypes.CDLL
    sums: SumsLayer
    arrays: dict[str, Array | None]
    """The arrays to which the addresses in ``sums`` point."""


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
    """Run one layer over a whole sequence; arguments and results are as in ``gpurnn.reference``."""
    step, (T, B, I), dtype = of_step(cell), x.shape, x.dtype
    plain, name = step.without_numbers, dtype.name
    if not can_compute(plain, name, library):
        of_reference: tuple[Array, tuple[Array, ...], Any] = reference.recurrence_forward(
            cell, x, weights, state, lengths=lengths, resets=resets, exists=exists, repeats=repeats, mask=mask,
            step_masks=step_masks, training=training,
        )  # fmt: skip
        return of_reference
    reference.check_lengths(cell.name, lengths, T)
    functions = build.load(library(plain, name))
    D, P, H = len(weights), state[0].shape[2], weights[0]["weight_ih"].shape[0] // cell.gates
    y, final = np.empty((T, B, D * P), dtype), tuple([s.copy() for s in state])
    lengths = None if lengths is None else lengths.astype(np.int32)
    marks, slots = marks_of(resets, exists, repeats), T if training else 2
    if training:  # so that later changes of the caller's arrays do not reach the gradients
        x = x.copy()
        mask, marks = (None if a is None else a.copy() for a in (mask, marks))
    team = threads.team(T * B * cell.gates * H * (I + P))
    sizes = sizes_of(functions, cell, T, B, I, H, slots, team.most)
    directions = []
    for d, own in enumerate(weights):
        layer = Layer(
            steps=T, batch=B, inputs=I, hidden=H, row=D * P, backwards=d, slots=slots,
            chunk=min(recurrence_chunk(B), T), team=team,
        )  # fmt: skip
        layer.numbers[: len(step.numbers)] = step.numbers
        sums = SumsLayer(layer=layer, width=P)
        masks = _masks_of(cell, step_masks, d)
        arrays: dict[str, Array | None] = {
            "lengths": lengths, "marks": marks, "mask": None if mask is None else mask[d], "x": x,
            "w_ih": own["weight_ih"], "w_hh": own["weight_hh"], "b_ih": own.get("bias_ih"), "b_hh": own.get("bias_hh"),
            "weights": np.stack([own[name] for name in cell.diagonal]) if cell.diagonal else None,
            "masks": np.stack([masks[n] for n in step.step_masks]) if step.step_masks else None,
            "h": final[0][d], "c": final[1][d] if len(final) > 1 else None,
        }  # fmt: skip
        sums.layer.y = address(y, d * P)
        added: dict[str, Array | None] = {name: own[name] for name in OF_SUMS if name in own}
        if "norm_c" in added and added.get("bias_c") is None:
            added["bias_c"] = np.zeros(H, dtype)
        added |= {name: masks[name] for name in masks if name not in step.step_masks}
        if training:
            added = {name: np.array(a) for name, a in added.items()}
        sums.rate_h, sums.rate_c = _rates(cell)
        arrays["operands"] = room((len(cell.phases), slots, B, P), dtype)
        arrays["saved"] = room((slots, B, len(step.saved), H), dtype)
        if training:
            arrays["back"], added["kept"] = room((sizes.back,), dtype), room((slots, B, sizes.kept), dtype)
        _point(sums.layer, arrays)
        _point(sums, added)
        _memory, sums.layer.workspace = workspace(sizes.workspace, dtype)
        functions.gpurnn_sums_forward(ctypes.byref(sums))
        if training:
            directions.append(Saved(cell, functions, sums, {**arrays, **added}))
    return y, final, tuple(directions) if training else None


def recurrence_backward(
    saved: tuple[Saved, ...],
    dy: Array | None,
    dstate: tuple[Array | None, ...],
    dweights: tuple[Mapping[str, Array], ...] | None = None,
) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
    """Backpropagate through a layer's whole recurrence; arguments and results are as in ``gpurnn.reference``."""
    x = saved[0].arrays["x"]
    assert x is not None
    (T, B, I), P, H = x.shape, saved[0].sums.width, saved[0].sums.layer.hidden
    dx, cell = np.zeros_like(x), saved[0].cell
    widths = cell.state_sizes(H)
    dstate0 = tuple(
        np.zeros((len(saved), B, width), x.dtype) if s is None else s.copy()
        for s, width in zip(dstate, widths, strict=True)
    )
    made = []
    for d, kept in enumerate(saved):
        sums = SumsLayer.from_buffer_copy(kept.sums)
        shapes = cell.shapes(input_size=I, hidden_size=H)
        gradients = begin_gradients(sums.layer, shapes, x.dtype, None if dweights is None else dweights[d])
        of_units = np.stack([gradients[name] for name in cell.diagonal]) if cell.diagonal else None
        sums.layer.team = threads.team(2 * T * B * cell.gates * H * (I + P))
        sums.layer.adds = d > 0
        sums.layer.dy = address(dy, d * P)
        arrays = {
            "dh": dstate0[0][d], "dc": dstate0[1][d] if len(dstate0) > 1 else None, "dx": dx,
            "dw_ih": gradients["weight_ih"], "dw_hh": gradients["weight_hh"], "db_ih": gradients["bias_ih"],
            "db_hh": gradients["bias_hh"], "dweights": of_units,
        }  # fmt: skip
        _point(sums.layer, arrays)
        _point(sums, {f"d{name}": gradients[name] for name in OF_SUMS if name in gradients})
        sizes = sizes_of(kept.functions, cell, T, B, I, H, T, sums.layer.team.most)
        _memory, sums.layer.workspace = workspace(sizes.workspace_backward, x.dtype)
        kept.functions.gpurnn_sums_backward(ctypes.byref(sums))
        if of_units is not None:
            gradients |= zip(cell.diagonal, of_units, strict=True)
        if not cell.hidden_apart:
            gradients["bias_hh"] = gradients["bias_ih"].copy()
        made.append(gradients)
    return dx, tuple(made), dstate0


def _masks_of(cell: Cell, step_masks: Array | None, d: int) -> dict[str, Array]:
    """The masks (T, B, H) of one direction's steps, by name."""
    if step_masks is None:
        return {}
    return {name: np.ascontiguousarray(step_masks[k, d]) for k, name in enumerate(cell.step_masks)}


def _rates(cell: Cell) -> tuple[float, float]:
    """The zoneout rates of h and of c."""
    rates: Any = getattr(cell, "zoneout", 0.0)
    return rates if isinstance(rates, tuple) else (rates, 0.0)


def _point(structure: ctypes.Structure, arrays: Mapping[str, Array | None]) -> None:
    """Set fields of a structure to the addresses of arrays."""
    for name, array in arrays.items():
        setattr(structure, name, address(array))
