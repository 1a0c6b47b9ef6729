"""Randomness is an argument: an int seed or a `numpy.random.Generator`, never global state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from . import _checks


def generator(where: str, rng: int | np.random.Generator, name: str = "rng") -> np.random.Generator:
    """Return ``rng`` if it is a generator, or a generator seeded with ``rng`` if that is an int.

    ``name`` is the caller's name for the argument.

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


class OfRows(np.random.Generator):
    """A generator for some rows of a batch: gpurnn's masks are these rows of the masks that ``whole`` gives the batch.

    All other draws are specific to these rows.
    """

    def __init__(self, seed: int, first: int, end: int, rows: int) -> None:
        super().__init__(np.random.PCG64([seed, first]))
        self.whole = np.random.default_rng(seed)
        self.first, self.end, self.rows = first, end, rows

    def __reduce__(self) -> Any:
        return _of_rows, (self.first, self.end, self.rows, self.whole.bit_generator, self.bit_generator)


def _of_rows(first: int, end: int, rows: int, whole: Any, own: Any) -> OfRows:
    made = OfRows(0, first, end, rows)
    made.whole, made.bit_generator.state = np.random.Generator(whole), own.state
    return made


class Key(NamedTuple):
    """The key that determines a dropout mask."""

    seed: int
    """The seed of Philox, 64 bits."""
    first: int = 0
    end: int | None = None
    rows: int | None = None
    """The rows of the whole batch. The mask is for its rows ``first`` to ``end``; None means for all rows."""


def mask_key(rng: np.random.Generator) -> Key:
    """A new key for a mask of the generator's rows, or of the whole batch."""
    if isinstance(rng, OfRows):
        return Key(philox_seed(rng), rng.first, rng.end, rng.rows)
    return Key(philox_seed(rng))


def philox_seed(rng: np.random.Generator) -> int:
    """A new seed of 64 bits, the same for all parts of a batch."""
    whole = rng.whole if isinstance(rng, OfRows) else rng
    return int(whole.integers(0, 2**64, dtype=np.uint64))


def pieces(shape: tuple[int, ...], stride: int | None) -> tuple[int, int, int]:
    """The pieces of a seed's entries that form a mask: their number, size, and the distance between their starts."""
    size = math.prod(shape[1:])
    if stride is None or stride == size:
        return 1, math.prod(shape), 0
    return shape[0], size, stride
