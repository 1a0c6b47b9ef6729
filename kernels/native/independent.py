"""The recurrence of units that do not read each other's states: h_t = f(a_t + u h_{t-1}) + leak h_{t-1}."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpurnn.reference import independent as reference
from gpurnn.reference.buffers import empty

from gpurnn._contract import Array
from gpurnn.cells import IndRNN

from ..recurrence.layer import marks_of
from ..recurrence.struct import proofs_of
from . import build, threads
from .recurrence import C_NAMES, can_compute, library_name


def unit(cell: IndRNN, dtype: str) -> str:
    """The C++ source of the library of a cell for a dtype. It serves all values of the cell's numeric options."""
    return "\n".join(
        [
            '#include "native/elementary.h"',
            f'#include "cells/{cell.file()}.cuh"',
            f"using Chosen = {cell.kernel_type(f'Vector<{C_NAMES[dtype]}>')};",
            *proofs_of(cell, "Chosen"),
            '#include "native/independent.h"',
        ]
    )


@functools.cache
def library(cell: IndRNN, dtype: str) -> build.Library:
    """The library of a cell for a dtype."""
    return build.Library(f"independent_{library_name(cell, dtype)}", lambda: unit(cell, dtype))


@dataclass(frozen=True)
class _Saved:
    """The values that `independent_backward` needs."""

    cell: IndRNN
    u: Array
    h0: Array
    h: Array
    kept: Array
    marks: Array | None


def independent_forward(
    cell: IndRNN,
    a: Array,
    u: Array,
    h0: Array,
    *,
    resets: Array | None = None,
    exists: Array | None = None,
    training: bool = False,
) -> tuple[Array, Any]:
    """h_t = f(a_t + u h_{t-1}) + leak h_{t-1}, as ``gpurnn.reference`` gives it."""
    if not a.size or not (cell.is_brought or can_compute(cell.without_numbers, a.dtype.name, library)):
        of_reference: tuple[Array, Any]
        of_reference = reference.independent_forward(
            cell, a, u, h0, resets=resets, exists=exists, training=training
        )  # fmt: skip
        return of_reference
    h, marks = np.empty(a.shape, a.dtype), marks_of(resets, exists, repeats=False)
    copy, kept = (empty(a.shape, a.dtype), empty(a.shape, a.dtype)) if training else (None, None)
    _call(cell, "forward", a, u, h0, marks, h, copy, kept)
    if copy is None or kept is None:
        return h, None
    return h, _Saved(cell, u.copy(), h0.copy(), copy, kept, None if marks is None else marks.copy())


def independent_backward(saved: Any, dh: Array) -> tuple[Array, Array, Array]:
    """Gradients of a, u and h0, as ``gpurnn.reference`` gives them."""
    if not isinstance(saved, _Saved):
        of_reference: tuple[Array, Array, Array] = reference.independent_backward(saved, dh)
        return of_reference
    da, du, dh0 = np.empty_like(dh), np.empty_like(saved.u), np.empty_like(saved.h0)
    arrays = saved.h, saved.h0, saved.u, saved.kept, saved.marks, da, du, dh0
    _call(saved.cell, "backward", np.ascontiguousarray(dh), *arrays)
    return da, du, dh0


def _call(cell: IndRNN, name: str, first: Array, *arrays: Array | None) -> None:
    functions = build.load(library(cell, first.dtype.name))
    numbers, team = np.array(cell.numbers, np.float64), threads.team(4 * first.size)
    build.call(getattr(functions, f"gpurnn_independent_{name}"), team, *first.shape, numbers, first, *arrays)
