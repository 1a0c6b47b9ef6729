"""The order and scale in which a cell's steps keep the rows of its gates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..buffers import empty
from .activations import Array

SPREAD = 16
"""By how many numbers rows that collide are made longer."""


def collides(n: int, itemsize: int) -> bool:
    """Whether rows of n numbers lie so far apart that the columns fall into few sets of the cache."""
    return n * itemsize % 512 == 0


@dataclass(frozen=True)
class Rows:
    """Slot k holds the ``hidden`` rows of gate ``order[k]`` (PyTorch's order) times ``scale[k]``.

    A sigma gate has its rows halved, since sigma(a) = (1 + tanh(a/2)) / 2; a negative scale makes a gate its
    complement, since 1 - sigma(a) = sigma(-a). Gradients are those of the rows with their sign but not halved.
    """

    hidden: int
    order: tuple[int, ...]
    scale: tuple[float, ...]

    def factors(self, w: Array, bias: Array | None = None, *, few: bool = False) -> Array:
        """From weights (G*H, n) to right-hand factors (slots, n, H), so that ``x @ factors`` is (slots, B, H).

        With ``bias`` (G*H,) they are (slots, n + 1, H), for an x whose last column is 1. For ``few`` rows of x they are
        a transposed view, which is made in less time and multiplied in more.
        """
        gates, (_, n) = self._gates(w), w.shape
        columns = n if bias is None else n + 1
        shape = (self.hidden, columns) if few else (columns, self.hidden)
        out: Array = empty((len(self.order), *shape), w.dtype)
        out = out.transpose(0, 2, 1) if few else out
        spread = None
        if not few and collides(n, w.itemsize):
            spread = empty((self.hidden, n + SPREAD), w.dtype)[:, :n]
        for slot, gate, scale in zip(out, self.order, self._scale(w), strict=True):
            if spread is None:
                np.multiply(gates[gate].T, scale, out=slot[:n])
            else:
                np.multiply(gates[gate], scale, out=spread)
                np.copyto(slot[:n], spread.T)
            if bias is not None:
                np.multiply(self._gates(bias)[gate], scale, out=slot[n])
        return out

    def multiplier(self, w: Array, out: Array) -> Callable[[Array], object]:
        """The function of h (B, H) that writes its products with the weights' rows to ``out`` (slots, B, H)."""
        if out.shape[1] != 1:
            factors = self.factors(w)
            return lambda h: np.matmul(h, factors, out=out)
        # One row is multiplied by all slots in one call.
        rows, row = self.factors(w, few=True).transpose(0, 2, 1).reshape(-1, w.shape[1]), out.reshape(-1)
        return lambda h: np.dot(rows, h[0], out=row)

    def signed(self, w: Array) -> Array:
        """The weights' rows in order and with their sign, (slots*H, n): the factor of the backward product."""
        out = empty((len(self.order), self.hidden, w.shape[1]), w.dtype)
        for slot, gate, sign in zip(out, self.order, np.sign(self._scale(w)), strict=True):
            np.multiply(self._gates(w)[gate], sign, out=slot)
        return out.reshape(len(self.order) * self.hidden, w.shape[1])

    def accumulate(self, dw: Array, out: Array, first: bool) -> None:
        """Add the gradient ``dw`` (slots*H, ...) to the gates of ``out`` (G*H, ...) that the slots hold.

        The ``first`` is written there, whatever ``out`` holds.
        """
        gates, slots = self._gates(out), dw.reshape(len(self.order), self.hidden, *dw.shape[1:])
        for gate, scale, slot in zip(self.order, self.scale, slots, strict=True):
            into = gates[gate]
            if first:
                np.copyto(into, slot if scale > 0 else -slot)
            elif scale > 0:
                np.add(into, slot, out=into)
            else:
                np.subtract(into, slot, out=into)

    def _scale(self, like: Array) -> Array:
        return np.asarray(self.scale, like.dtype)

    def _gates(self, w: Array) -> Array:
        return w.reshape(w.shape[0] // self.hidden, self.hidden, *w.shape[1:])
