"""Dropout masks from a counter-based generator: the same bits as ``gpurnn.reference``'s."""

from __future__ import annotations

import functools
import math

import numpy as np

from gpurnn._contract import Array

from .launch import C_NAMES, Module, empty

_THREADS = 256


@functools.cache
def _module(dtype: str) -> Module:
    return Module("dropout.cu", [f"dropout_mask<{C_NAMES[dtype]}>"])


def modules() -> list[Module]:
    """Every translation unit that this file can ask for."""
    return [_module("float32"), _module("float64")]


def dropout_mask(like: Array, shape: tuple[int, ...], rate: float, seed: int, offset: int) -> Array:
    """A mask of inverted dropout; arguments and result are those of ``gpurnn.reference``'s."""
    mask = empty(like, shape, like.dtype)
    size = math.prod(shape)
    if size:
        word = (1 << 64) - 1
        dtype = str(like.dtype)
        blocks = -(-size // (4 * _THREADS))
        _module(dtype)[f"dropout_mask<{C_NAMES[dtype]}>"](
            (blocks,), (_THREADS,),
            (mask, np.int64(size), np.uint64(math.ceil(rate * 2**32)), np.uint64(seed & word),
             np.uint64(offset & word), like.dtype.type(1 / (1 - rate))),
        )  # fmt: skip
    return mask
