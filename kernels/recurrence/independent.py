"""The recurrence of units that do not read each other's states: h_t = f(a_t + u h_{t-1}) + leak h_{t-1}."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array
from gpurnn.cells import IndRNN

from .. import dtypes
from ..arrays import contiguous, empty, namespace
from ..streams import of_stream, remembers_stream
from .layer import marks_of
from .struct import Struct

BLOCK = 128


@dataclass(frozen=True)
class _Saved:
    """The values that `independent_backward` needs."""

    cell: IndRNN
    u: Array
    h0: Array
    h: Array
    kept: Array
    marks: Array | None


@remembers_stream
def independent_forward(
    cell: IndRNN,
    a: Array,
    u: Array,
    h0: Array,
    *,
    resets: Array | None = None,
    exists: Array | None = None,
    training: bool = False,
) -> tuple[Array, _Saved | None]:
    """h_t = f(a_t + u h_{t-1}) + leak h_{t-1}, as ``gpurnn.reference`` gives it."""
    a, u, h0, marks = contiguous(a), contiguous(u), contiguous(h0), marks_of(resets, exists, repeats=False)
    h = empty(a, a.shape, a.dtype)
    kept = empty(a, a.shape, dtypes.of(a).accumulator) if training else None
    if a.size:
        _launch(cell, "independent_forward", a, u, h0, marks, h, kept)
    if kept is None:
        return h, None
    # Copies, so that the caller may change its arrays before it asks for the gradients.
    marks = marks if marks is None or exists is not None else marks.copy()
    return h, _Saved(cell, u.copy(), h0.copy(), h.copy(), kept, marks)


@of_stream
def independent_backward(saved: Any, dh: Array) -> tuple[Array, Array, Array]:
    """Gradients of a, u and h0, as ``gpurnn.reference`` gives them."""
    dh = contiguous(dh)
    if not dh.size:
        xp = namespace(dh)
        return xp.zeros_like(dh), xp.zeros_like(saved.u), xp.zeros_like(saved.h0)
    da, du, dh0 = (empty(dh, array.shape, dh.dtype) for array in (dh, saved.u, saved.h0))
    arrays = dh, saved.h, saved.h0, saved.u, saved.kept, saved.marks, da, du, dh0
    _launch(saved.cell, "independent_backward", *arrays)
    return da, du, dh0


def _launch(cell: IndRNN, name: str, *arrays: Array | None) -> None:
    first = arrays[0]
    assert first is not None
    (T, B, H), struct = first.shape, Struct.of(cell, dtypes.of(first))
    sizes = (np.int64(n) for n in (T, B, H))
    struct.independent(name)((-(-B * H // BLOCK),), (BLOCK,), (*arrays, *sizes, struct.value(cell)))
