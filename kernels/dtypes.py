"""The dtypes of arrays that kernels compute with. This table is the only place that lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Dtype:
    """A dtype of real numbers: how arrays store them, and the type that kernels compute in.

    A kernel template takes both C types, ``Storage`` and ``Real``. It converts numbers to Real when it loads them,
    computes all sums and functions in Real, and rounds results when it stores them.
    """

    name: str
    """The name in NumPy."""
    storage: str
    """The C type of the numbers in an array."""
    accumulator: str
    """The dtype of sums, of scalar arguments and of arrays that only kernels read."""
    itemsize: int
    """Bytes of a stored number."""

    @property
    def types(self) -> str:
        """The template arguments ``Storage, Real``."""
        return f"{self.storage}, {self.real}"

    @property
    def real(self) -> str:
        """The C type of the accumulator."""
        return TABLE[self.accumulator].storage

    def scalar(self, value: float) -> np.generic:
        """``value`` as a kernel's argument of type Real."""
        number: np.generic = np.dtype(self.accumulator).type(value)
        return number


TABLE = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", storage="float", accumulator="float32", itemsize=4),
        Dtype("float64", storage="double", accumulator="float64", itemsize=8),
    )
}
"""All dtypes, by name."""


def of(array: Any) -> Dtype:
    """The row of the table for an array's numbers. A complex array counts as its real and imaginary parts."""
    return TABLE[array.real.dtype.name]
