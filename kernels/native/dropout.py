"""Masks of inverted dropout."""

from __future__ import annotations

import ctypes
import math

import numpy as np

from gpurnn._contract import Array

from . import build, threads


def library() -> ctypes.CDLL:
    """The library of ``dropout.cpp``, whose inner loops the compiler is to vectorize."""
    return build.loaded("dropout", lambda: '#include "native/dropout.cpp"\n', ("-ftree-vectorize",))


def dropout_mask(like: Array, shape: tuple[int, ...], rate: float, seed: int, offset: int) -> Array:
    """A mask of inverted dropout, of the bits that ``gpurnn.reference`` gives it."""
    mask = np.empty(shape, like.dtype)
    if mask.size:
        build.call(
            getattr(library(), f"gpurnn_dropout_{mask.dtype.name}"), threads.team(), mask.size,
            math.ceil(rate * 2**32), seed, offset, 1 / (1 - rate), mask,
        )  # fmt: skip
    return mask
