"""Randomness is an argument: an int seed or a `numpy.random.Generator`, never global state."""

from __future__ import annotations

import numpy as np

from . import _checks


def generator(where: str, rng: int | np.random.Generator) -> np.random.Generator:
    """A generator from what a caller may pass as ``rng``: itself, or one seeded with an int.

    Raises
    ------
    TypeError
        ``rng`` is neither.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        return np.random.default_rng(_checks.integer_at_least(where, "rng", rng, 0))
    raise TypeError(f"{where}: rng is {rng!r}, expected an int seed or a numpy.random.Generator")


def philox_seed(rng: np.random.Generator) -> int:
    """A fresh 64-bit key for a mask of `dropout_mask`."""
    return int(rng.integers(0, 2**64, dtype=np.uint64))
