"""The linear recurrence h_t = a_t h_{t-1} + b_t, parallel over time by chunks of steps.

Within a chunk the steps run in a loop. The state that enters a chunk has passed through products of a, one for each
chunk before it. Its error is no larger than that of one loop over all steps: a few roundings of every term
a_t ... a_{k+1} b_k at every step. So the two differ visibly only where large terms cancel, which needs |a| > 1.

If a product overflows and the states do not, or the states overflow and no product does, the chunk's steps are taken
one by one, so that infinities and NaN arise only where the loop gives them. The same is done if a product underflows,
unless that costs the state less than a rounding.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array

from . import dtypes
from .arrays import contiguous, empty, namespace
from .dtypes import Dtype
from .launch import Module
from .streams import of_stream, remembers_stream

_BLOCK = 128

_THREADS = 1 << 16
"""Threads that keep the memory of a large GPU busy: with four pairs of float32 loads each, 2 MB in flight."""

_LEAST_LENGTH = 32
"""The fewest steps of a chunk: with fewer, the states that enter the chunks cost more than they gain."""


@functools.cache
def _module(dtype: Dtype, is_complex: bool, width: int) -> Module:
    """The kernels whose threads take ``width`` columns each."""
    types, ways = _types(dtype, is_complex), ("false", "true")
    names = [f"chunk_states<{types}, {way}>" for way in ways] + [f"chunk_maps<{types}, {way}, {width}>" for way in ways]
    return Module("linear_scan.cu", [*names, *(f"scan_{way}<{types}, {width}>" for way in ("forward", "backward"))])


def _widest(dtype: Dtype, is_complex: bool) -> int:
    """The number of columns whose values fill 128 bits in the dtype of the computation."""
    return 16 // (np.dtype(dtype.accumulator).itemsize * (2 if is_complex else 1))


def _types(dtype: Dtype, is_complex: bool) -> str:
    """The template arguments ``Number, Storage, Real``."""
    return f"{'Complex' if is_complex else 'Single'}, {dtype.types}"


def modules() -> list[Module]:
    """All translation units that this file can compile."""
    return [
        _module(dtype, is_complex, width)
        for dtype in dtypes.TABLE.values()
        for is_complex in (False, True)
        for width in sorted({1, _widest(dtype, is_complex)})
    ]


def _length(T: int, columns: int) -> int:
    """Steps of a chunk: as many as still keep the GPU busy. Several chunks read a and b twice, a single one only once.

    With few columns one thread's steps in a row decide the time: twice through a chunk, once over all chunks.
    """
    length = max(_LEAST_LENGTH, math.isqrt(T), -(-T * columns // _THREADS))
    return length if 2 * length <= T else T


def launches(T: int, columns: int, dtype: Dtype) -> tuple[tuple[int], tuple[int], int]:
    """The grid and the block of the last kernel of a scan of real numbers, and the number of kernels launched."""
    chunks, widest = -(-T // _length(T, columns)), _widest(dtype, is_complex=False)
    width = 1 if columns % widest else widest
    return (-(-chunks * columns // (width * _BLOCK)),), (_BLOCK,), 1 if chunks == 1 else 3


@dataclass(frozen=True)
class _Scan:
    """The values that `linear_scan_backward` needs."""

    a: Array
    h: Array
    h0: Array


@remembers_stream
def linear_scan_forward(a: Array, b: Array, h0: Array, *, training: bool = False) -> tuple[Array, _Scan | None]:
    """h_t = a_t h_{t-1} + b_t, as ``gpurnn.reference`` gives it."""
    a, b, h0 = _readable(a), _readable(b), _readable(h0)
    h = empty(b, b.shape, b.dtype)
    if h.size:
        scan = _Chunks(a, b, h0)
        states = scan.entering(h0, backward=False)
        scan.launch("scan_forward", scan.chunks, a, b, h0, states, h, *scan.sizes)
    # Copies, so that the caller may change its arrays before it asks for the gradients.
    return h, _Scan(a.copy(), h.copy(), h0.copy()) if training else None


@of_stream
def linear_scan_backward(saved: _Scan, dh: Array) -> tuple[Array, Array, Array]:
    """Gradients of a, b and h0, as ``gpurnn.reference`` gives them."""
    a, dh = saved.a, _readable(dh)
    if not dh.size:
        xp = namespace(dh)
        return xp.zeros_like(a), xp.zeros_like(dh), xp.zeros_like(saved.h0)
    scan = _Chunks(a, dh, saved.h, saved.h0)
    da = empty(dh, dh.shape if a.ndim == 3 else (scan.chunks, *dh.shape[1:]), scan.accumulator)
    db, dh0 = empty(dh, dh.shape, dh.dtype), empty(dh, saved.h0.shape, dh.dtype)
    states = scan.entering(None, backward=True)
    scan.launch("scan_backward", scan.chunks, a, dh, saved.h, saved.h0, states, da, db, dh0, *scan.sizes)
    da = da if a.ndim == 3 else da.sum(axis=(0, 1))
    return da.astype(a.dtype, copy=False), db, dh0


class _Chunks:
    """The chunks of one scan with factors ``a`` and ``values`` b or dh. ``others`` are its other inputs."""

    def __init__(self, a: Array, values: Array, *others: Array) -> None:
        T, B, N = values.shape
        self.a, self.values, self.columns = a, values, B * N
        self.dtype, self.is_complex = dtypes.of(values), values.dtype.kind == "c"
        self.accumulator = np.result_type(self.dtype.accumulator, np.complex64 if self.is_complex else np.float32)
        length = _length(T, self.columns)
        self.chunks = -(-T // length)
        a_columns, a_stride = (N, 0) if a.ndim == 1 else (self.columns, self.columns)
        self.sizes = tuple(np.int64(n) for n in (T, self.columns, a_columns, a_stride, length))
        widest = _widest(self.dtype, self.is_complex)
        packed = a_columns % widest == 0 and all(_address(x) % 16 == 0 for x in (a, values, *others))
        self.width = widest if packed else 1

    def launch(self, name: str, rows: int, *args: Any, way: str = "") -> None:
        """Launch a kernel over ``rows`` rows; a thread takes ``self.width`` columns of one of them."""
        reals = [x.view(x.real.dtype) if hasattr(x, "ndim") and x.ndim else x for x in args]
        width = 1 if name == "chunk_states" else self.width
        arguments = f"{_types(self.dtype, self.is_complex)}{way}" + ("" if name == "chunk_states" else f", {width}")
        kernel = _module(self.dtype, self.is_complex, self.width)[f"{name}<{arguments}>"]
        kernel((-(-rows * self.columns // (width * _BLOCK)),), (_BLOCK,), reals)

    def entering(self, initial: Array | None, *, backward: bool) -> Array | None:
        """The states that enter the chunks after the first one. ``initial`` is the first one's; None means zero."""
        maps, way = self.chunks - 1, ", true" if backward else ", false"
        if not maps:
            return None
        shape = maps, self.columns
        products, offsets, states = (empty(self.values, shape, self.accumulator) for _ in range(3))
        peaks, losses = (empty(self.values, shape, self.dtype.accumulator) for _ in range(2))
        of_chunks = products, offsets, peaks, losses
        sizes = *self.sizes, np.int64(maps)
        self.launch("chunk_maps", maps, self.a, self.values, *of_chunks, *sizes, way=way)
        self.launch("chunk_states", 1, self.a, self.values, initial, *of_chunks, states, *sizes, way=way)
        return states


def _readable(array: Array) -> Array:
    """``array`` in C order, aligned to the size of its numbers: each is read in one access, complex ones too."""
    array = contiguous(array)
    return array if _address(array) % array.dtype.itemsize == 0 else array.copy()


def _address(array: Array) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
