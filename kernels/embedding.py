"""The rows of a table at given indices, and their gradient: a sum in a fixed order, without atomics."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpurnn._contract import Array

from . import dtypes
from .arrays import contiguous, empty, namespace
from .dtypes import Dtype
from .launch import Module

_THREADS = 128
_GATHERED = 4
"""Rows that a thread copies; see ``embedding.cu``."""
_RUN = 64
"""Rows of a run, over which one thread sums its columns."""


def _gather(dtype: Dtype) -> str:
    return f"gather<{dtype.storage}>"


def _sum_runs(dtype: Dtype, row: str) -> str:
    """The kernel for rows of the C type ``row``."""
    return f"sum_runs<{row}, {dtype.types}>"


@functools.cache
def _module(dtype: Dtype) -> Module:
    # A set: the first level's rows may be of the same type as the others'.
    sums = {_sum_runs(dtype, row) for row in (dtype.storage, dtype.real)}
    return Module("embedding.cu", [_gather(dtype), *sorted(sums)])


def modules() -> list[Module]:
    """All translation units that this file can compile."""
    return [_module(dtype) for dtype in dtypes.TABLE.values()]


def _launch(dtype: Dtype, name: str, items: int, packet: int, *args: Any) -> None:
    """Launch a kernel over ``items`` groups or runs of rows, of ``args[-1]`` columns in packets of ``packet``."""
    E = int(args[-1])
    across = min(_THREADS, E if E % packet else E // packet)
    down = min(_THREADS // across, items)
    _module(dtype)[name]((-(-items // down),), (across, down), args)


def embedding_gather(weight: Array, indices: Array) -> Array:
    """The rows ``weight[indices]``, as ``gpurnn.reference`` gives them.

    An index outside 0..V-1 gives a row of NaN: checking it would need a copy from the device.
    """
    V, E = weight.shape
    y = empty(weight, (*indices.shape, E), weight.dtype)
    if y.size:
        flat = contiguous(indices.reshape(-1).astype(np.int64, copy=False))
        sizes = np.int64(flat.size), np.int32(V), np.int32(E)
        dtype = dtypes.of(weight)
        items, packet = -(-flat.size // _GATHERED), 16 // dtype.itemsize
        _launch(dtype, _gather(dtype), items, packet, contiguous(weight), flat, y, *sizes)
    return y


def embedding_scatter(indices: Array, dy: Array, num_embeddings: int) -> Array:
    """The sum of the rows of ``dy`` for each index, as ``gpurnn.reference`` gives it.

    Indices outside 0..V-1 are ignored. A stable sort brings the rows of an index together. They are summed in runs of
    64 rows, in parallel. The sums of the indices that cross a border of a run are the rows of the next level, which is
    summed in the same way. So no thread adds more than 64 numbers, however often an index occurs. The order of the
    additions depends on the indices alone.
    """
    xp, dtype = namespace(dy), dtypes.of(dy)
    E = dy.shape[-1]
    sums = xp.zeros((num_embeddings, E), dy.dtype)
    flat = indices.reshape(-1).astype(np.int64, copy=False)
    count = flat.size
    if not count * E * num_embeddings:
        return sums
    order = xp.argsort(flat, kind="stable").astype(np.int64)
    keys, rows, row = contiguous(flat[order]), contiguous(dy), dtype.storage
    while True:
        runs = -(-count // _RUN)
        last = runs == 1
        next_rows = None if last else empty(dy, (2 * runs, E), dtype.accumulator)
        next_keys = None if last else empty(dy, 2 * runs, np.int64)
        arrays = rows, order, keys, sums, next_rows, next_keys
        sizes = np.int64(count), np.int32(_RUN), np.int32(num_embeddings), np.int32(E)
        packet = 16 // np.dtype(dtype.accumulator).itemsize
        _launch(dtype, _sum_runs(dtype, row), runs, packet, *arrays, *sizes)
        if last:
            return sums
        rows, row, keys, order, count = next_rows, dtype.real, next_keys, None, 2 * runs
