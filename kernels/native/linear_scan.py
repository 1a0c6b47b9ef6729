"""The linear recurrence h_t = a_t h_{t-1} + b_t, elementwise, real or complex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gpurnn.reference.buffers import empty

from gpurnn._contract import Array

from . import build, threads

LIBRARY = build.Library("linear_scan", lambda: '#include "native/linear_scan.cpp"\n')


@dataclass(frozen=True)
class _Scan:
    """The values that `linear_scan_backward` needs."""

    a: Array
    h: Array
    h0: Array


def linear_scan_forward(a: Array, b: Array, h0: Array, *, training: bool = False) -> tuple[Array, Any]:
    """h_t = a_t h_{t-1} + b_t, as ``gpurnn.reference`` gives it."""
    h = np.empty(b.shape, b.dtype)
    kept = empty(b.shape, b.dtype) if training else None  # later changes of h by the caller do not reach it
    if b.size:
        _call("scan", a, h0, b, np.ascontiguousarray(h0), h, kept)
    return h, None if kept is None else _Scan(_copy(a), kept, h0.copy())


def _copy(a: Array) -> Array:
    """A copy in memory of the pool, where it costs no page faults."""
    copy: Array = empty(a.shape, a.dtype)
    np.copyto(copy, a)
    return copy


def linear_scan_backward(saved: Any, dh: Array) -> tuple[Array, Array, Array]:
    """Gradients of a, b and h0, as ``gpurnn.reference`` gives them."""
    a, h0 = saved.a, saved.h0
    db, dh0 = np.empty(dh.shape, dh.dtype), np.zeros(h0.shape, dh.dtype)
    # Untouched memory of np.zeros comes in small pages, with one fault each.
    da = np.empty(dh.shape, dh.dtype) if a.ndim == 3 else np.zeros(h0.shape, dh.dtype)
    if dh.size:
        _call("scan_backward", a, h0, dh, saved.h, h0, da, db, dh0)
    return da if a.ndim == 3 else da.sum(axis=0), db, dh0


def _call(name: str, a: Array, h0: Array, values: Array, *arrays: Array | None) -> None:
    """Call a function of the library, over steps of columns. The two parts of a complex number are two columns."""
    columns = h0.size * (2 if h0.dtype.kind == "c" else 1)
    factors = np.ascontiguousarray(a if a.ndim == 3 else np.broadcast_to(a, h0.shape))
    function = getattr(build.load(LIBRARY), f"gpurnn_{name}_{values.dtype.name}")
    sizes = len(values), columns, a.ndim == 1
    build.call(function, threads.team(), *sizes, factors, np.ascontiguousarray(values), *arrays)
