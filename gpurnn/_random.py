"""Randomness is an argument: an int seed or a `numpy.random.Generator`, never global state."""

from __future__ import annotations

import numpy as np

from . import _checks


def generator(where: str, rng: int | np.random.Generator, name: str = "rng") -> np.random.Generator:
    """A generator from what a caller may pass as ``rng``, or by another ``name``: itself, or one seeded with an int.

    Raises
    ------
    TypeError
        ``rng`` is neither.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        return np.random.default_rng(_checks.integer_at_least(where, name, rng, 0))
    raise TypeError(f"{where}: {name} is {rng!r}, expected an int seed or a numpy.random.Generator")


def philox_seed(rng: np.random.Generator) -> int:
    """A fresh 64-bit key for a mask of `dropout_mask`."""
    return int(rng.integers(0, 2**64, dtype=np.uint64))
