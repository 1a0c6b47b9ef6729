"""The order and sign in which a cell's steps store the rows of its gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gpurnn._contract import Array

from ..buffers import empty

SPREAD = 16
"""The numbers by which colliding rows are padded."""


def collides(n: int, itemsize: int) -> bool:
    """Whether the distance of rows of n numbers puts their columns into few sets of the cache."""
    return n * itemsize % 512 == 0


Function = Literal["tanh", "sigma", "1 - sigma"]


@dataclass(frozen=True)
class Rows:
    """Slot k holds the ``hidden`` rows of the gate ``gates[k][0]`` (PyTorch's order), with the sign of its function.

    sigma(a) = 1 / (1 + exp(-a)) needs its argument negated, 1 - sigma(a) = sigma(-a) does not. Gradients are with
    respect to the argument of tanh or sigma: to -a for a gate that is stored as its complement.
    """

    hidden: int
    gates: tuple[tuple[int, Function], ...]

    def factors(self, w: Array, bias: Array | None = None, *, few: bool = False) -> Array:
        """Convert weights (G*H, n) to right-hand factors (slots, n, H), so that ``x @ factors`` is (slots, B, H).

        With ``bias`` (G*H,) they are (slots, n + 1, H), for an x whose last column is 1. For ``few`` rows of x they are
        a transposed view, which takes less time to make and more time to multiply.
        """
        rows, (_, n) = self._rows(w), w.shape
        columns = n if bias is None else n + 1
        shape = (self.hidden, columns) if few else (columns, self.hidden)
        out: Array = empty((len(self.gates), *shape), w.dtype)
        out = out.transpose(0, 2, 1) if few else out
        spread = None
        if not few and collides(n, w.itemsize):
            spread = empty((self.hidden, n + SPREAD), w.dtype)[:, :n]
        for slot, (gate, function) in zip(out, self.gates, strict=True):
            sign = w.dtype.type(-1 if function == "sigma" else 1)
            if spread is None:
                np.multiply(rows[gate].T, sign, out=slot[:n])
            else:
                np.multiply(rows[gate], sign, out=spread)
                np.copyto(slot[:n], spread.T)
            if bias is not None:
                np.multiply(self._rows(bias)[gate], sign, out=slot[n])
        return out

    def multiplier(self, w: Array, out: Array) -> Callable[[Array], object]:
        """The function of h (B, H) that writes its products with the weights' rows to ``out`` (slots, B, H)."""
        if out.shape[1] != 1:
            factors = self.factors(w)
            return lambda h: np.matmul(h, factors, out=out)
        # A single row is multiplied by all slots in one call.
        rows, row = self.factors(w, few=True).transpose(0, 2, 1).reshape(-1, w.shape[1]), out.reshape(-1)
        return lambda h: np.dot(rows, h[0], out=row)

    def signed(self, w: Array) -> Array:
        """The factor of the backward product, (slots*H, n): the rows with the sign of their gradients."""
        out = empty((len(self.gates), self.hidden, w.shape[1]), w.dtype)
        for slot, (gate, function) in zip(out, self.gates, strict=True):
            np.multiply(self._rows(w)[gate], w.dtype.type(-1 if function == "1 - sigma" else 1), out=slot)
        return out.reshape(len(self.gates) * self.hidden, w.shape[1])

    def accumulate(self, dw: Array, out: Array, first: bool) -> None:
        """Add the gradient ``dw`` (slots*H, ...) to the gates of ``out`` (G*H, ...) that the slots hold.

        The ``first`` gradient overwrites them instead.
        """
        rows, slots = self._rows(out), dw.reshape(len(self.gates), self.hidden, *dw.shape[1:])
        for (gate, function), slot in zip(self.gates, slots, strict=True):
            into, negative = rows[gate], function == "1 - sigma"
            if first:
                np.copyto(into, -slot if negative else slot)
            elif negative:
                np.subtract(into, slot, out=into)
            else:
                np.add(into, slot, out=into)

    def _rows(self, w: Array) -> Array:
        return w.reshape(w.shape[0] // self.hidden, self.hidden, *w.shape[1:])
