"""Randomness is an argument: an int seed or a `numpy.random.Generator`, never global state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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


class OfRows(np.random.Generator):
    """Draws for some rows of a batch: the masks of gpurnn are those that ``whole`` gives these rows of the whole batch.

    What else is drawn from it are numbers of these rows' own.
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
    """What a mask of dropout follows from."""

    seed: int
    """Of Philox, 64 bits."""
    first: int = 0
    end: int | None = None
    rows: int | None = None
    """Of the whole batch, of whose rows the mask is for those from ``first`` to ``end``. None: it is for all."""


def mask_key(rng: np.random.Generator) -> Key:
    """A fresh key for a mask of rows of the batch, or of all of them."""
    if isinstance(rng, OfRows):
        return Key(philox_seed(rng), rng.first, rng.end, rng.rows)
    return Key(philox_seed(rng))


def philox_seed(rng: np.random.Generator) -> int:
    """A fresh seed, 64 bits, the same for all parts of a batch."""
    whole = rng.whole if isinstance(rng, OfRows) else rng
    return int(whole.integers(0, 2**64, dtype=np.uint64))


def pieces(shape: tuple[int, ...], stride: int | None) -> tuple[int, int, int]:
    """The pieces of a seed's entries that a mask consists of: how many, the size of one, and from one to the next."""
    size = math.prod(shape[1:])
    if stride is None or stride == size:
        return 1, math.prod(shape), 0
    return shape[0], size, stride
