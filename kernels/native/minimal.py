"""The states of the minimal GRU and LSTM: h_t = kept h_{t-1} + z n_t."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gpurnn.reference.buffers import empty

from gpurnn._contract import Array
from gpurnn.cells import Cell

from ..recurrence.layer import marks_of
from . import build, threads

LIBRARY = build.Library("minimal", lambda: '#include "native/minimal.cpp"\n')


@dataclass(frozen=True)
class _Saved:
    """The values that `minimal_backward` needs."""

    cell: Cell
    a: Array
    h0: Array
    h: Array
    marks: Array | None


def minimal_forward(
    cell: Cell,
    a: Array,
    h0: Array,
    *,
    resets: Array | None = None,
    exists: Array | None = None,
    training: bool = False,
) -> tuple[Array, Any]:
    """h_t = kept h_{t-1} + z n_t, as ``gpurnn.reference`` gives it."""
    h, marks = np.empty((len(a), *h0.shape), a.dtype), marks_of(resets, exists, repeats=False)
    copy = empty(h.shape, a.dtype) if training else None  # later changes of h by the caller do not reach it
    if h.size:
        _call(cell.name, a, h0, marks, h, copy)
    if copy is None:
        return h, None
    return h, _Saved(cell, a.copy(), h0.copy(), copy, None if marks is None else marks.copy())


def minimal_backward(saved: Any, dh: Array) -> tuple[Array, Array]:
    """Gradients of a and h0, as ``gpurnn.reference`` gives them."""
    da, dh0 = np.zeros_like(saved.a), np.zeros_like(saved.h0)
    if dh.size:
        _call(f"{saved.cell.name}_backward", saved.a, saved.h0, saved.marks, saved.h, np.ascontiguousarray(dh), da, dh0)
    return da, dh0


def _call(name: str, a: Array, h0: Array, *arrays: Array | None) -> None:
    function = getattr(build.load(LIBRARY), f"gpurnn_{name}_{a.dtype.name}")
    sizes = len(a), *h0.shape
    build.call(function, threads.team(), *sizes, np.ascontiguousarray(a), np.ascontiguousarray(h0), *arrays)
