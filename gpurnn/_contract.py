"""The types that shared code and the wings have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import cupy

    Array: TypeAlias = np.ndarray[Any, Any] | cupy.ndarray
else:
    Array = object
"""An array of any supported library.

CuPy has no type information, so to a type checker and an editor this is "a NumPy array, or something unknown". An
attribute that NumPy's arrays lack is an error, and what the functions of an array namespace return, which is unknown
too, passes without a cast. That the outputs of a function are of the library of its inputs no annotation says: a type
variable would be lost in `f.vjp`. NumPy-only code says ``NDArray``. CuPy may not be imported at run time, hence
``object`` there.
"""

State: TypeAlias = Any
"""The state of a layer: h, ``(h, c)`` of an LSTM, a tuple of those of its layers of a `Sequential`, None for zero."""

Weights: TypeAlias = Mapping[str, Array]
"""Of one direction of a recurrent layer, by the names of the cell's parameters. A bias may be None or missing: zero."""


class Memory:
    """Counts the bytes that a stack of recurrent layers holds. A wing's `recurrence_memory` knows its own allocations.

    Attributes
    ----------
    itemsize : int
        Bytes of a number of the arrays.
    peak : int
        The most bytes held so far.
    """

    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize
        self.peak = self._held = 0

    def take(self, entries: int) -> int:
        """Allocate numbers; returns how many."""
        self._held += entries * self.itemsize
        self.peak = max(self.peak, self._held)
        return entries

    def free(self, entries: int) -> None:
        self._held -= entries * self.itemsize

    def forward(self, I: int, *, training: bool) -> None:
        """A layer of I inputs: its output stays, and in training what is saved."""
        raise NotImplementedError

    def backward(self, I: int) -> None:
        """Back through a layer: the gradients of its input and of its weights stay."""
        raise NotImplementedError
