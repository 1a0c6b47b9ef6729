"""Softmax cross-entropy of rows, forward and backward."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpurnn.reference.buffers import empty
from gpurnn.reference.losses import check_labels

from gpurnn._contract import Array

from . import build, threads


class Rows(ctypes.Structure):
    """``Rows`` of ``losses.cpp``."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("logits", "labels", "weights", "class_weights")),
        ("smoothing", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("losses", "exps", "sums", "others", "targets")),
    )


def unit() -> str:
    """The C++ source of the library."""
    return '#include "native/losses.cpp"\n' + build.size_proof("Rows<float>", Rows)


LIBRARY = build.Library("losses", unit)


@dataclass(frozen=True)
class _CrossEntropy:
    """The values that `cross_entropy_backward` needs."""

    rows: Rows
    arrays: tuple[Array | None, ...]
    """The arrays to which the addresses in ``rows`` point."""
    shape: tuple[int, int]


def cross_entropy_forward(
    logits: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
    training: bool = False,
) -> tuple[Array, Any]:
    """Cross-entropy of each row between its softmax and its label, as ``gpurnn.reference`` gives it."""
    N, V = logits.shape
    dtype = logits.dtype
    # A copy, so that no other thread can change it between the check and its use.
    labels = np.array(labels if weights is None else np.where(weights == 0, 0, labels), np.int64)
    check_labels(labels, V)
    team = threads.team()
    losses = np.empty(N, dtype)
    exps = empty((N if training else team.most, V), dtype)
    arrays = {
        "logits": np.ascontiguousarray(logits), "labels": labels,
        "weights": _own(weights, training), "class_weights": _own(class_weights, training),
        "losses": losses, "exps": exps,
    }  # fmt: skip
    if training:
        arrays["sums"], arrays["others"], arrays["targets"] = np.empty((3, N), dtype)
    rows = Rows(count=N, classes=V, smoothing=label_smoothing)
    for name, array in arrays.items():
        setattr(rows, name, None if array is None else build.address(array))
    if N:
        build.call(getattr(build.load(LIBRARY), f"gpurnn_cross_entropy_{dtype.name}"), team, rows)
    return losses, _CrossEntropy(rows, tuple(arrays.values()), (N, V)) if training else None


def _own(array: Array | None, training: bool) -> Array | None:
    """``array`` in C order; in training a copy, so that later changes of the caller's array do not reach backward."""
    return None if array is None else np.array(array, order="C") if training else np.ascontiguousarray(array)


def cross_entropy_backward(saved: Any, dlosses: Array) -> Array:
    """The gradient of the logits, as ``gpurnn.reference`` gives it."""
    dlogits = np.empty(saved.shape, dlosses.dtype)
    if dlogits.size:
        function = getattr(build.load(LIBRARY), f"gpurnn_cross_entropy_backward_{dlosses.dtype.name}")
        build.call(function, threads.team(), saved.rows, np.ascontiguousarray(dlosses), dlogits)
    return dlogits
