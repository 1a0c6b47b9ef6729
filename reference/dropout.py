"""Dropout masks from a counter-based generator, so that each element can be computed independently.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11: Philox4x32-10.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from numpy.typing import NDArray

from gpurnn._contract import Array
from gpurnn._random import pieces

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

_BLOCK = 1 << 13
"""The counters to process at a time, so that the six arrays of a round stay in a core's cache."""

Words = NDArray[np.uint64]


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: four random 32-bit words from each counter.

    Parameters
    ----------
    counter : four uint64 arrays of one shape
        Each holds a 32-bit word; they are not changed.
    key : two 32-bit ints

    Returns
    -------
    words : four uint64 arrays
        Each holds a 32-bit word.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(_ROUNDS):
        # A uint64 product holds both halves of the 32 x 32 bit multiplication.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = p1 >> _HALF
        c0 ^= c1
        c0 ^= k0
        c2 = p0 >> _HALF
        c2 ^= c3
        c2 ^= k1
        c1, c3 = np.bitwise_and(p1, _LOW, out=p1), np.bitwise_and(p0, _LOW, out=p0)
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def dropout_mask(
    like: Array, shape: tuple[int, ...], rate: float, seed: int, first: int = 0, stride: int | None = None
) -> Array:
    """A mask of inverted dropout: each entry is 0 with probability ``rate``, else 1 / (1 - rate).

    A seed defines an endless sequence of entries. Entry n is kept if word n mod 4 of Philox4x32-10 is at least
    rate 2^32. The key is ``seed`` and the counter n div 4, each with its low 32 bits first; the counter's upper two
    words are 0. The entries of ``mask[k]``, in C order, begin at entry ``first + k stride`` of the sequence.

    Parameters
    ----------
    like : float32 or float64 array
        An array with the mask's dtype.
    shape : tuple of ints
    rate : float
        In [0, 1).
    seed : int
        64 bits.
    first : int
        64 bits.
    stride : int, optional
        By default the size of ``mask[k]``, so that the whole mask is one piece of the sequence.

    Returns
    -------
    mask : array of ``shape``
    """
    count, size, stride = pieces(shape, stride)
    if not count * size:
        return cast(Array, np.empty(shape, like.dtype))
    begins = [first + k * stride for k in range(count)]
    counters = -(-(size + (3 if count > 1 else first % 4)) // 4)  # the counters that cover a piece
    of_pieces = np.array([begin // 4 for begin in begins], np.uint64)
    threshold, key = math.ceil(rate * 2**32), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    kept = np.empty((count * counters, 4), like.dtype)
    for start in range(0, len(kept), _BLOCK):
        piece, number = np.divmod(np.arange(start, min(start + _BLOCK, len(kept))), counters)
        counter = of_pieces[piece] + number.astype(np.uint64)
        zero = np.zeros_like(counter)
        for column, words in enumerate(philox4x32((counter & _LOW, counter >> _HALF, zero, zero), key)):
            np.greater_equal(words, threshold, out=kept[start : start + len(words), column], casting="unsafe")
    kept *= 1 / (1 - rate)
    parts = [e[begin % 4 :][:size] for e, begin in zip(kept.reshape(count, -1), begins, strict=True)]
    return cast(Array, (parts[0] if count == 1 else np.stack(parts)).reshape(shape))
