"""Dropout masks from a counter-based generator, so that any element can be computed on its own.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11: Philox4x32-10.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpurnn._contract import Array

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

_BLOCK = 1 << 13
"""Counters at a time: the six arrays of a round then stay in a core's cache."""

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


def dropout_mask(like: Array, shape: tuple[int, ...], rate: float, seed: int, offset: int) -> Array:
    """A mask of inverted dropout: each entry is 0 with probability ``rate``, else 1 / (1 - rate).

    Element i, counted in C order, is kept if word i mod 4 of Philox4x32-10 is at least rate 2^32. The key is ``seed``
    and the counter offset + i div 4, each with its low 32 bits first; the counter's upper two words are 0.
    The next mask of the same seed starts at offset + ceil(size / 4).

    Parameters
    ----------
    like : float32 or float64 array
        Gives the dtype.
    shape : tuple of ints
    rate : float
        In [0, 1).
    seed : int
        64 bits.
    offset : int
        64 bits; counters wrap modulo 2^64.

    Returns
    -------
    mask : array of ``shape``
    """
    size = math.prod(shape)
    threshold = math.ceil(rate * 2**32)
    counters = -(-size // 4)
    mask: Array = np.empty((counters, 4), like.dtype)
    key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for start in range(0, counters, _BLOCK):
        stop = min(start + _BLOCK, counters)
        count = np.arange(stop - start, dtype=np.uint64)
        count += (offset + start) & 0xFFFFFFFFFFFFFFFF
        zero = np.zeros_like(count)
        for column, words in enumerate(philox4x32((count & _LOW, count >> _HALF, zero, zero), key)):
            np.greater_equal(words, threshold, out=mask[start:stop, column], casting="unsafe")
    mask *= 1 / (1 - rate)
    return mask.reshape(-1)[:size].reshape(shape)
