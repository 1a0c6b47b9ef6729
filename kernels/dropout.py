"""Dropout masks from a counter-based generator: the same bits as ``gpurnn.reference``'s."""

from __future__ import annotations

import functools
import math

import numpy as np

from gpurnn._contract import Array

from . import dtypes
from .dtypes import Dtype
from .launch import Module, empty

_THREADS = 256


@functools.cache
def _module(dtype: Dtype) -> Module:
    return Module("dropout.cu", [f"dropout_mask<{dtype.types}>"])


def modules() -> list[Module]:
    """Every translation unit that this file can ask for."""
    return [_module(dtype) for dtype in dtypes.TABLE.values()]


def dropout_mask(like: Array, shape: tuple[int, ...], rate: float, seed: int, offset: int) -> Array:
    """A mask of inverted dropout; arguments and result are those of ``gpurnn.reference``'s."""
    mask = empty(like, shape, like.dtype)
    size = math.prod(shape)
    if size:
        dtype, word = dtypes.of(like), (1 << 64) - 1
        words = [np.uint64(n) for n in (math.ceil(rate * 2**32), seed & word, offset & word)]
        args = mask, np.int64(size), *words, dtype.scalar(1 / (1 - rate))
        _module(dtype)[f"dropout_mask<{dtype.types}>"]((-(-size // (4 * _THREADS)),), (_THREADS,), args)
    return mask
