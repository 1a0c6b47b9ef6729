"""Dropout masks from a counter-based generator, with the same bits as in ``gpurnn.reference``."""

from __future__ import annotations

import functools
import math

import numpy as np

from gpurnn._contract import Array
from gpurnn._random import pieces

from . import dtypes
from .arrays import empty
from .dtypes import Dtype
from .launch import Module

_THREADS = 256


@functools.cache
def _module(dtype: Dtype) -> Module:
    return Module("dropout.cu", [f"dropout_mask<{dtype.types}>"])


def modules() -> list[Module]:
    """All translation units that this file can compile."""
    return [_module(dtype) for dtype in dtypes.TABLE.values()]


def dropout_mask(
    like: Array, shape: tuple[int, ...], rate: float, seed: int, first: int = 0, stride: int | None = None
) -> Array:
    """A mask of inverted dropout; arguments and result are as in ``gpurnn.reference``."""
    mask = empty(like, shape, like.dtype)
    if math.prod(shape):
        dtype = dtypes.of(like)
        count, size, stride = pieces(shape, stride)
        counters = -(-(size + (3 if count > 1 else first % 4)) // 4)
        words = [np.uint64(n) for n in (math.ceil(rate * 2**32), seed, first)]
        sizes = np.int64(count), np.int64(size), np.uint64(stride), np.int64(counters)
        args = mask, *sizes, *words, dtype.scalar(1 / (1 - rate))
        _module(dtype)[f"dropout_mask<{dtype.types}>"]((-(-count * counters // _THREADS),), (_THREADS,), args)
    return mask
