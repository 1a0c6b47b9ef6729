"""Losses over rows: softmax cross-entropy and squared error, forward and backward."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpurnn._contract import Array

from . import dtypes
from .arrays import contiguous, empty, namespace
from .dtypes import Dtype
from .launch import Module
from .streams import of_stream, remembers_stream

_THREADS = 256
_WARP_A_ROW = 1024
"""The most classes of a row that one warp computes; a longer row takes a block."""

_KERNELS = ("cross_entropy_forward", "cross_entropy_backward", "mse_forward", "mse_backward")


@functools.cache
def _module(dtype: Dtype) -> Module:
    return Module("losses.cu", [f"{name}<{dtype.types}>" for name in _KERNELS])


def modules() -> list[Module]:
    """All translation units that this file can compile."""
    return [_module(dtype) for dtype in dtypes.TABLE.values()]


def _threads_a_row(V: int) -> int:
    return 32 if V <= _WARP_A_ROW else _THREADS


def _launch(name: str, threads: int, like: Array, *args: Any) -> None:
    dtype = dtypes.of(like)
    _module(dtype)[f"{name}<{dtype.types}>"]((-(-threads // _THREADS),), (_THREADS,), args)


@dataclass(frozen=True)
class _CrossEntropy:
    """The values that `cross_entropy_backward` needs."""

    logits: Array
    """(N, V), the caller's own array if it is contiguous: the softmax is not stored but computed again."""
    statistics: Array
    """(3, N), see ``losses.cu``."""
    labels: Array
    weights: Array | None
    class_weights: Array | None
    label_smoothing: float


@remembers_stream
def cross_entropy_forward(
    logits: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    training: bool = False,
) -> tuple[Array, _CrossEntropy | None]:
    """Cross-entropy of each row between its softmax and its label, as ``gpurnn.reference`` gives it.

    A label outside 0..V-1 gives NaN: checking it would need a copy from the device.
    """
    N, V = logits.shape
    losses = empty(logits, N, logits.dtype)
    dtype = dtypes.of(logits)
    statistics: Any = empty(logits, (3, N), dtype.accumulator) if training else None
    logits, labels = contiguous(logits), contiguous(labels.astype(np.int64, copy=False))
    weights, class_weights = contiguous(weights), contiguous(class_weights)
    if N:
        threads = _threads_a_row(V)
        arrays = logits, labels, weights, class_weights, losses, statistics
        scalars = np.int32(N), np.int32(V), dtype.scalar(label_smoothing), np.int32(threads)
        _launch("cross_entropy_forward", N * threads, logits, *arrays, *scalars)
    if not training:
        return losses, None
    return losses, _CrossEntropy(logits, statistics, labels, weights, class_weights, label_smoothing)


@of_stream
def cross_entropy_backward(saved: _CrossEntropy, dlosses: Array) -> Array:
    """Gradient of the logits, as ``gpurnn.reference`` gives it; NaN for a label outside 0..V-1."""
    logits = saved.logits
    N, V = logits.shape
    dlogits = empty(logits, (N, V), logits.dtype)
    if N:
        threads = _threads_a_row(V)
        inputs = logits, saved.labels, saved.weights, saved.class_weights, saved.statistics, contiguous(dlosses)
        scalars = np.int32(N), np.int32(V), dtypes.of(logits).scalar(saved.label_smoothing), np.int32(threads)
        _launch("cross_entropy_backward", N * threads, logits, *inputs, dlogits, *scalars)
    return dlogits


@remembers_stream
def mse_forward(y: Array, target: Array, *, training: bool = False) -> tuple[Array, Array | None]:
    """Squared error (y - target)^2 of each element, as ``gpurnn.reference`` gives it."""
    errors = empty(y, y.shape, y.dtype)
    differences = empty(y, y.shape, y.dtype) if training else None
    if errors.size:
        arrays = contiguous(y), contiguous(target), errors, differences
        _launch("mse_forward", errors.size, y, *arrays, np.int64(errors.size))
    return errors, differences


@of_stream
def mse_backward(saved: Array, d: Array) -> Array:
    """Gradient of y, 2 d (y - target), as ``gpurnn.reference`` gives it."""
    dy = empty(saved, saved.shape, saved.dtype)
    if dy.size:
        d = contiguous(namespace(saved).broadcast_to(d, saved.shape))
        _launch("mse_backward", dy.size, saved, saved, d, dy, np.int64(dy.size))
    return dy
