"""Rows of a table out, and a sum of rows in, in a fixed order and without atomics."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gpurnn._contract import Array

from .launch import C_NAMES, Module, contiguous, empty, namespace

_THREADS = 256
_RUN = 64
"""Rows that one thread sums up, a column of them."""


@functools.cache
def _module(dtype: str) -> Module:
    return Module("embedding.cu", [f"{name}<{C_NAMES[dtype]}>" for name in ("gather", "sum_runs")])


def modules() -> list[Module]:
    """Every translation unit that this file can ask for."""
    return [_module("float32"), _module("float64")]


def _launch(name: str, threads: int, like: Array, *args: Any) -> None:
    dtype = str(like.dtype)
    _module(dtype)[f"{name}<{C_NAMES[dtype]}>"]((-(-threads // _THREADS),), (_THREADS,), args)


def embedding_gather(weight: Array, indices: Array) -> Array:
    """The rows ``weight[indices]``, as ``gpurnn.reference`` gives them.

    An index that is not in 0..V-1 gives a row of NaN: what is on the device is not read back to be checked.
    """
    V, E = weight.shape
    y = empty(weight, (*indices.shape, E), weight.dtype)
    if y.size:
        flat = contiguous(indices.reshape(-1).astype(np.int64, copy=False))
        _launch("gather", y.size, weight, contiguous(weight), flat, y, np.int64(flat.size), np.int32(V), np.int32(E))
    return y


def embedding_scatter(indices: Array, dy: Array, num_embeddings: int) -> Array:
    """The sum of the rows of ``dy`` of each index, as ``gpurnn.reference`` gives it; others than 0..V-1 are left out.

    A stable sort brings the rows of an index together. Runs of 64 of them are summed up side by side, then what each
    run has of an index that crosses its borders, and so on, so that no thread adds more than 64 numbers however often
    an index occurs. The order of the additions depends on the indices alone.
    """
    xp = namespace(dy)
    E = dy.shape[-1]
    sums = xp.zeros((num_embeddings, E), dy.dtype)
    flat = indices.reshape(-1).astype(np.int64, copy=False)
    count = flat.size
    if not count * E * num_embeddings:
        return sums
    order = xp.argsort(flat, kind="stable").astype(np.int64)
    keys, rows = contiguous(flat[order]), contiguous(dy)
    while True:
        runs = -(-count // _RUN)
        last = runs == 1
        next_rows = None if last else empty(dy, (2 * runs, E), dy.dtype)
        next_keys = None if last else empty(dy, 2 * runs, np.int64)
        _launch(
            "sum_runs", runs * E, dy, rows, order, keys, sums, next_rows, next_keys,
            np.int64(count), np.int32(_RUN), np.int32(num_embeddings), np.int32(E),
        )  # fmt: skip
        if last:
            return sums
        rows, keys, order, count = next_rows, next_keys, None, 2 * runs
