"""The linear recurrence h_t = a_t h_{t-1} + b_t as a scan over chunks of time."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .launch import C_NAMES, Module, contiguous, empty, namespace

Array = Any

_THREADS = 128
_LEAST_LENGTH = 32
"""Steps of a chunk, at the least: fewer would cost more in what enters the chunks than they gain."""

_PARTS = {"complex64": np.float32, "complex128": np.float64}


@functools.cache
def _module(dtype: str) -> Module:
    real = C_NAMES[dtype]
    value = f"Complex<{real}>" if dtype.startswith("complex") else real
    return Module(
        "linear_scan.cu", [f"{name}<{value}, {real}>" for name in ("run_chunks", "enter_chunks", "fill_chunks")]
    )


def modules() -> list[Module]:
    """Every translation unit that this file can ask for."""
    return [_module(dtype) for dtype in ("float32", "float64", "complex64", "complex128")]


@dataclass(frozen=True)
class _Scan:
    """What `linear_scan_backward` needs."""

    a: Array
    h: Array
    h0: Array


def linear_scan_forward(a: Array, b: Array, h0: Array, *, training: bool = False) -> tuple[Array, _Scan | None]:
    """h_t = a_t h_{t-1} + b_t, as ``gpurnn.reference`` gives it.

    What enters a chunk of steps has passed through products of a. They may underflow, as they do step by step. Where
    they overflow although the states do not, which takes |a| > 1 and terms that cancel, the result is not finite.
    """
    a, h0 = (namespace(b).array(x, order="C") for x in (a, h0))
    h = empty(b, b.shape, b.dtype)
    _scan(a, contiguous(b), h0, h)
    return (h, None) if not training else (h, _Scan(a, h.copy(), h0))


def linear_scan_backward(saved: _Scan, dh: Array) -> tuple[Array, Array, Array]:
    """Gradients of a, b and h0, as ``gpurnn.reference`` gives them."""
    db, dh0 = empty(dh, dh.shape, dh.dtype), empty(dh, saved.h0.shape, dh.dtype)
    da = _scan(saved.a, contiguous(dh), None, db, saved, dh0)
    if not dh.size:
        dh0[...] = 0
    return da, db, dh0


def _scan(
    a: Array, v: Array, initial: Array | None, states: Array, saved: _Scan | None = None, dh0: Array | None = None
) -> Array:
    """Fills ``states``; with ``saved`` backwards, and returns da."""
    xp, (T, B, N), constant = namespace(v), v.shape, a.ndim == 1
    if not v.size:
        return xp.zeros_like(a)
    columns = B * N
    # About as many chunks as steps of one: the shortest way through both. A grid is at most 65,535 high.
    length = max(_LEAST_LENGTH, math.isqrt(T), -(-T // 65535))
    chunks = -(-T // length)
    ends, products = empty(v, (chunks, columns), v.dtype), empty(v, (chunks, columns), v.dtype)
    backward = saved is not None
    da = empty(v, (chunks, B, N) if constant else v.shape, v.dtype) if backward else None
    sizes = np.int32(T), np.int32(N), np.int64(columns), np.int32(length), np.bool_(constant), np.bool_(backward)
    kernels = dict(zip(("run", "enter", "fill"), _module(str(v.dtype)).names, strict=True))

    def launch(name: str, rows: int, *args: Any) -> None:
        arrays = [_real(x) if hasattr(x, "shape") and not isinstance(x, np.generic) else x for x in args]
        _module(str(v.dtype))[kernels[name]]((-(-columns // _THREADS), rows), (_THREADS,), arrays)

    launch("run", chunks, a, v, ends, products, *sizes)
    launch("enter", 1, initial, ends, products, np.int32(chunks), np.int64(columns))
    h, h0 = (saved.h, saved.h0) if saved is not None else (None, None)
    launch("fill", chunks, a, v, ends, states, h, h0, da, dh0, *sizes)
    return da.sum(axis=(0, 1)) if da is not None and constant else da


def _real(array: Array) -> Array:
    """A complex array as its real and imaginary parts, side by side; a real one itself."""
    return array.view(_PARTS[str(array.dtype)]) if str(array.dtype) in _PARTS else array
