"""The products of a dense layer, on this wing's own threads: those of a BLAS spin for a while after a call."""

from __future__ import annotations

import ctypes

import numpy as np
from gpurnn.reference import dense as reference
from gpurnn.reference.buffers import empty

from gpurnn._contract import Array

from . import build, threads

LIBRARY = build.Library("dense", lambda: '#include "native/dense.cpp"\n')

_FEW = 1 << 14
"""The multiplications below which a BLAS on one thread takes less time than a call of the library."""

_LARGE = 2048
"""Wider weights go to the BLAS, which blocks them for the caches. At that width, its spinning costs little."""


def _is_for_blas(rows: int, weight: Array) -> bool:
    return rows * weight.size < _FEW or max(weight.shape) > _LARGE


def dense_forward(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x W^T + b, as ``gpurnn.reference`` gives it."""
    (N, I), O = x.shape, weight.shape[0]
    if _is_for_blas(N, weight):
        of_reference: Array = reference.dense_forward(x, weight, bias)
        return of_reference
    y = np.empty((N, O), x.dtype)
    _call("dense", I, N, weight, x, weight, bias, y)
    return y


def dense_backward(x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
    """The gradients of x, W and b, as ``gpurnn.reference`` gives them."""
    (N, I), O = x.shape, weight.shape[0]
    if _is_for_blas(N, weight):
        of_reference: tuple[Array, Array, Array] = reference.dense_backward(x, weight, dy)
        return of_reference
    dx, dweight, dbias = np.empty((N, I), x.dtype), np.empty((O, I), x.dtype), np.empty(O, x.dtype)
    _call("dense_backward", O, N, weight, x, weight, dy, dx, dweight, dbias)
    return dx, dweight, dbias


def _call(name: str, width: int, rows: int, weight: Array, *arrays: Array | None) -> None:
    """Call a function of the library, with room for panels of ``width`` rows."""
    library, team, dtype = build.load(LIBRARY), threads.team(), weight.dtype
    room = getattr(library, f"gpurnn_{name}_room_{dtype.name}")
    room.restype = ctypes.c_int64
    workspace = empty((room(ctypes.byref(team), ctypes.c_int64(width)),), dtype)
    O, I = weight.shape
    contiguous = (None if a is None else np.ascontiguousarray(a) for a in arrays)
    build.call(getattr(library, f"gpurnn_{name}_{dtype.name}"), team, rows, I, O, *contiguous, workspace)
