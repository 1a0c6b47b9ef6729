"""A layer's whole recurrence, each direction in one call of its library, forward and backward."""

from __future__ import annotations

import ctypes
import functools
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gpurnn.reference import recurrence as reference
from gpurnn.reference.buffers import empty
from gpurnn.reference.clock import recurrence_chunk

from gpurnn import _checks
from gpurnn._contract import Array, Weights
from gpurnn.cells import Activation, Cell
from gpurnn.cells.activations import NAMES, NUMBERS, AnyActivation

from ..compiler import CompilerError, digest_of
from ..recurrence.layer import marks_of
from ..recurrence.struct import proofs_of
from . import build, processor, threads

C_NAMES = {"float32": "float", "float64": "double"}

_DTYPES = {"f": "float32", "d": "float64"}
"""The names of dtypes by NumPy's character, which is faster to read."""

_NUMBERS = 13
"""The most options of a cell that are numbers."""

_CACHE_LINE = 64  # bytes


class Layer(ctypes.Structure):
    """``Layer`` of ``interface.h``."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("steps", "batch", "inputs", "hidden", "row", "backwards", "slots", "chunk")
        ),
        ("team", threads.Team),
        ("numbers", ctypes.c_double * _NUMBERS),
        *((name, ctypes.c_void_p) for name in ("lengths", "marks", "mask", "x", "w_ih", "w_hh", "b_ih", "b_hh")),
        *((name, ctypes.c_void_p) for name in ("weights", "masks")),
        *((name, ctypes.c_void_p) for name in ("h", "c", "y", "operands", "saved", "back", "dy", "dh", "dc", "dx")),
        ("adds", ctypes.c_int64),
        ("continues", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("dw_ih", "dw_hh", "db_ih", "db_hh", "dweights", "workspace")),
    )


_LAYER = struct.Struct(f"8qPqd{_NUMBERS}d20P2q6P")
"""The format of a `Layer` as bytes: packing them takes a fifth of the time."""

assert _LAYER.size == ctypes.sizeof(Layer)


class Sizes(ctypes.Structure):
    """``Sizes`` of ``interface.h``."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("inference", "workspace", "workspace_backward", "back"))


def served(cell: Cell) -> Cell:
    """The cell that a library computes: with a clip, or activations other than the usual, it chooses them at run time.

    So one library serves all combinations of activations. It gives the same bits, in about the same time, as one
    library for each.
    """
    options = [option for option, kind in cell.options().items() if kind == Activation]
    usual = type(cell)().values(options)
    if cell.is_brought or (cell.values(options) == usual and getattr(cell, "clip", None) is None):
        return cell
    values: dict[str, Any] = {option: AnyActivation.of(value) for option, value in cell.values(options).items()}
    clip = getattr(cell, "clip", None)
    values["clip"] = math.inf if clip is None else clip
    return replace(cell, **values)


def _any_activation() -> list[str]:
    """The lines of C++ that define `Any` of a cell's ``kernel_type``: all activations, in the order of `NAMES`."""
    names = (
        "".join(word.capitalize() for word in name.split("_")) + ("<0>" if name in NUMBERS else "") for name in NAMES
    )
    return ['#include "native/chosen.h"', f"template <int at> using Any = OneOf<at, {', '.join(names)}>;"]


def unit(cell: Cell, dtype: str, header: str = "native/entry.h", proof: str = "") -> str:
    """The C++ source of the library of a `served` cell for a dtype. It serves all values of the cell's numbers.

    ``header`` has its functions, and ``proof`` checks that their arguments are laid out as Python's structures.
    """
    of_cell = cell.kernel_type(f"Vector<{C_NAMES[dtype]}>")
    return "\n".join(
        [
            '#include "native/elementary.h"',
            f'#include "cells/{cell.file()}.cuh"',
            *(_any_activation() if "Any<" in of_cell else []),
            f"using Chosen = {of_cell};",
            *proofs_of(cell, "Chosen"),
            f'#include "{header}"',
            proof or build.size_proof("ChosenLayer", Layer),
        ]
    )


@functools.cache
def library(cell: Cell, dtype: str) -> build.Library:
    """The library of a cell for a dtype."""
    cell = served(cell)
    return build.Library(library_name(cell, dtype), lambda: unit(cell, dtype))


def library_name(cell: Cell, dtype: str) -> str:
    """The name of a library's file: a digest replaces many options."""
    name = re.sub(r"\W+", "_", f"{cell.kernel_type('')} {dtype}").lower()
    return name if len(name) < 60 else f"{name[:40]}_{digest_of(name)[:8]}_{dtype}"


@functools.cache
def can_compute(cell: Cell, dtype: str, library: Callable[[Any, str], build.Library] = library) -> bool:
    """Whether the library of a cell that no installation brings is there or can be made; warn if not."""
    try:
        build.load(library(cell, dtype))
    except CompilerError as error:
        _checks.warn(cell.name, f"the NumPy wing computes {cell!r}, which cannot be compiled here: {error}")
        return False
    return True


def _sums() -> Any:
    """The module for cells with sums over hidden units, which imports this one."""
    from . import sums

    return sums


def room(shape: tuple[int, ...], dtype: Any) -> Array:
    """Uninitialised memory that begins at a cache line."""
    size, itemsize = math.prod(shape), np.dtype(dtype).itemsize
    memory: Array = empty((size + _CACHE_LINE // itemsize,), dtype)
    start = -build.address(memory) % _CACHE_LINE // itemsize
    return memory[start : start + size].reshape(shape)


def workspace(size: int, dtype: np.dtype[Any]) -> tuple[Any, int]:
    """Uninitialised memory for so many numbers: its owner, and its address, at a cache line; None and 0 for none."""
    if not size:
        return None, 0
    memory = empty((size + _CACHE_LINE // dtype.itemsize,), dtype)
    start = build.address(memory)
    return memory, start + -start % _CACHE_LINE


def address(array: Array | None, offset: int = 0) -> int | None:
    """The address of an array's number ``offset``; None for None."""
    if array is None:
        return None
    return build.address(array) + offset * array.itemsize if offset else build.address(array)


@dataclass(frozen=True)
class _Saved:
    """The values that the backward pass of one direction needs."""

    cell: Cell
    functions: ctypes.CDLL
    layer: Layer
    arrays: tuple[Array | None, ...]
    """The arrays to which the addresses in ``layer`` point."""


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
    T, B, I = x.shape
    D, H, states = len(weights), state[0].shape[2], len(state)
    plan = _plan(cell, x.dtype.char, T, B, I, H, training)
    if plan is None:
        of_sums = cell.sums_over_units and x.size
        other: tuple[Array, tuple[Array, ...], Any]
        other = (_sums() if of_sums else reference).recurrence_forward(
            cell, x, weights, state, lengths=lengths, resets=resets, exists=exists, repeats=repeats, mask=mask,
            step_masks=step_masks,
            training=training,
        )  # fmt: skip
        return other
    if lengths is not None:
        reference.check_lengths(cell.name, lengths, T)
        lengths = lengths.astype(np.int32)
    functions, dtype = plan.functions, x.dtype
    y = np.empty((T, B, D * H), dtype)
    final = tuple([s.copy() for s in state])
    if training:
        # So that later changes of the caller's arrays do not reach the gradients.
        kept = room(x.shape, dtype)
        np.copyto(kept, x)
        x, resets, mask = kept, None if resets is None else resets.copy(), None if mask is None else mask.copy()
    marks = marks_of(resets, exists, repeats)
    team = threads.fields(plan.products)
    sizes = plan.sizes(team[1])
    of_objects = D == 1 and not training and build.HEAD > 0
    of = build.objects if of_objects else build.addresses
    at_lengths, at_marks, at_mask, at_x, at_y, at_h, *at_c = of((lengths, marks, mask, x, y, *final))
    row_of_d, of_d = H * dtype.itemsize, B * H * dtype.itemsize
    directions = []
    for d, direction in enumerate(weights):
        operands = saved = back = None
        if training:
            operands, saved = (room((of_step, plan.slots, B, H), dtype) for of_step in (plan.phases, plan.saved))
            back = room((sizes.back,), dtype)
        _memory, at_workspace = workspace(sizes.workspace if training else sizes.inference, dtype)
        of_units = np.stack([direction[name] for name in cell.diagonal]) if plan.has_diagonal else None
        masks = None if step_masks is None else np.ascontiguousarray(step_masks[:, d])
        get = direction.get
        arrays = get("weight_ih"), get("weight_hh"), get("bias_ih"), get("bias_hh"), of_units, masks
        packed = _LAYER.pack(
            T, B, I, H, D * H, d, plan.slots, plan.chunk, *team, *plan.numbers,
            at_lengths, at_marks, at_mask and at_mask + d * of_d, at_x, *of(arrays),
            at_h + d * of_d, at_c[0] + d * of_d if states > 1 else 0, at_y + d * row_of_d,
            *of((operands, saved, back)), *[0] * 11, at_workspace,
        )  # fmt: skip
        if of_objects:
            functions.gpurnn_forward_of_objects(packed, build.HEAD)
        else:
            functions.gpurnn_forward(packed)
        if training:
            held = x, lengths, marks, mask, operands, saved, back, of_units
            directions.append(_Saved(cell, functions, Layer.from_buffer_copy(packed), held))
    return y, final, tuple(directions) if training else None


class _Plan:
    """The values that all calls of a cell with arrays of these sizes share."""

    def __init__(self, cell: Cell, functions: ctypes.CDLL, T: int, B: int, I: int, H: int, training: bool) -> None:
        self.cell, self.functions = cell, functions
        own = served(cell).numbers
        self.numbers = (*own, *[0.0] * (_NUMBERS - len(own)))
        self.phases, self.saved, self.has_diagonal = len(cell.phases), len(cell.saved), bool(cell.diagonal)
        self.chunk, self.slots = min(recurrence_chunk(B), T), T if training else 2
        self.products = T * B * cell.gates * H * (I + H)
        self.sizes = functools.cache(functools.partial(sizes_of, functions, T, B, I, H, self.slots, self.chunk))
        """How many numbers a call's workspaces hold, by the most threads that it may have."""


_plans: dict[tuple[Any, ...], _Plan] = {}
"""Plans for layers that are called for each step. A cell's id is a key: it stays unique while the plan has the cell."""


def _plan(cell: Cell, dtype: str, T: int, B: int, I: int, H: int, training: bool) -> _Plan | None:
    """The plan of a call for a dtype, given by its character; None if this module does not compute it."""
    key = id(cell), dtype, processor.chosen(), T, B, I, H, training
    found = _plans.get(key)
    if found is None:
        if cell.sums_over_units or not T * B * I:
            return None
        if not (cell.is_brought or can_compute(cell.without_numbers, _DTYPES[dtype])):
            return None
        found = _Plan(cell, build.load(library(cell, _DTYPES[dtype])), T, B, I, H, training)
        if len(_plans) >= 256:
            _plans.clear()
        _plans[key] = found
    return found


@functools.lru_cache(256)
def sizes_of(functions: ctypes.CDLL, T: int, B: int, I: int, H: int, slots: int, chunk: int, most: int) -> Sizes:
    """How many numbers the workspaces of a layer's calls hold, with at most so many threads."""
    layer = Layer(steps=T, batch=B, inputs=I, hidden=H, slots=slots, chunk=chunk, team=threads.Team(most=most))
    sizes = Sizes()
    functions.gpurnn_sizes(ctypes.byref(layer), ctypes.byref(sizes))
    return sizes


def begin_gradients(
    layer: Layer, shapes: Mapping[str, tuple[int, ...]], dtype: Any, earlier: Mapping[str, Array] | None
) -> dict[str, Array]:
    """Arrays for the gradients of the weights; ``layer`` learns whether to add to what they hold."""
    layer.continues = earlier is not None or layer.steps == 0
    if earlier is not None:
        return {name: earlier[name].copy() for name in shapes}
    return {name: (np.empty if layer.steps else np.zeros)(shape, dtype) for name, shape in shapes.items()}


def recurrence_backward(
    saved: Any,
    dy: Array | None,
    dstate: tuple[Array | None, ...],
    dweights: tuple[Mapping[str, Array], ...] | None = None,
) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
    """Backpropagate through a layer's whole recurrence; arguments and results are as in ``gpurnn.reference``."""
    first = saved[0]
    if not isinstance(first, _Saved):
        other: tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]
        other = (_sums() if isinstance(first, _sums().Saved) else reference).recurrence_backward(
            saved, dy, dstate, dweights
        )
        return other
    x, lengths, marks, *_ = first.arrays
    assert x is not None
    B, H, dtype = x.shape[1], first.layer.hidden, x.dtype
    dx = np.empty_like(x) if lengths is None and marks is None else np.zeros_like(x)
    dstate0 = tuple(np.zeros((len(saved), B, H), dtype) if s is None else s.copy() for s in dstate)
    shapes, made = first.cell.shapes(input_size=x.shape[2], hidden_size=H), []
    for d, kept in enumerate(saved):
        layer = Layer.from_buffer_copy(kept.layer)
        gradients = begin_gradients(layer, shapes, dtype, None if dweights is None else dweights[d])
        layer.team = threads.team(2 * layer.steps * B * first.cell.gates * H * (x.shape[2] + H))
        layer.dy = None if dy is None else address(dy, d * H)
        layer.dh = address(dstate0[0], d * B * H)
        layer.dc = address(dstate0[1], d * B * H) if len(dstate0) > 1 else None
        layer.dx, layer.adds = address(dx), d > 0
        layer.dw_ih, layer.dw_hh = address(gradients["weight_ih"]), address(gradients["weight_hh"])
        layer.db_ih, layer.db_hh = address(gradients["bias_ih"]), address(gradients["bias_hh"])
        dweights_of_units = np.zeros((len(kept.cell.diagonal), H), dtype)
        for row, name in zip(dweights_of_units, kept.cell.diagonal, strict=True):
            row[...] = gradients[name]
        layer.dweights = address(dweights_of_units) if dweights_of_units.size else None
        sizes = sizes_of(
            kept.functions, layer.steps, B, layer.inputs, H, layer.slots, layer.chunk, layer.team.most
        )  # fmt: skip
        _memory, layer.workspace = workspace(sizes.workspace_backward, dtype)
        kept.functions.gpurnn_backward(ctypes.byref(layer))
        gradients |= zip(kept.cell.diagonal, dweights_of_units, strict=True)
        if not kept.cell.hidden_apart:
            gradients["bias_hh"] = gradients["bias_ih"].copy()
        made.append(gradients)
    return dx, tuple(made), dstate0
