"""Masks of inverted dropout."""

from __future__ import annotations

import math

import numpy as np

from gpurnn._contract import Array
from gpurnn._random import pieces

from . import build, threads

LIBRARY = build.Library("dropout", lambda: '#include "native/dropout.cpp"\n', ("-ftree-vectorize",))
"""The compiler vectorizes its inner loops."""


def dropout_mask(
    like: Array, shape: tuple[int, ...], rate: float, seed: int, first: int = 0, stride: int | None = None
) -> Array:
    """A mask of inverted dropout, with the same bits as in ``gpurnn.reference``."""
    mask = np.empty(shape, like.dtype)
    if mask.size:
        build.call(
            getattr(build.load(LIBRARY), f"gpurnn_dropout_{mask.dtype.name}"), threads.team(), *pieces(shape, stride),
            math.ceil(rate * 2**32), seed, first, 1 / (1 - rate), mask,
        )  # fmt: skip
    return mask
