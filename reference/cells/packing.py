"""The order and scale in which a cell's steps keep the rows of its gates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..buffers import empty
from .activations import Array


@dataclass(frozen=True)
class Rows:
    """Slot k holds the ``hidden`` rows of gate ``order[k]`` (PyTorch's order) times ``scale[k]``.

    A sigma gate has its rows halved, since sigma(a) = (1 + tanh(a/2)) / 2; a negative scale makes a gate its
    complement, since 1 - sigma(a) = sigma(-a). Gradients are those of the rows with their sign but not halved.
    """

    hidden: int
    order: tuple[int, ...]
    scale: tuple[float, ...]

    def factors(self, w: Array, bias: Array | None = None) -> Array:
        """From weights (G*H, n) to right-hand factors (slots, n, H), so that ``x @ factors`` is (slots, B, H).

        With ``bias`` (G*H,) they are (slots, n + 1, H), for an x whose last column is 1.
        """
        gates, n = self._gates(w), w.shape[1]
        # In C order, because BLAS multiplies by transposed factors more slowly.
        out = empty((len(self.order), n if bias is None else n + 1, self.hidden), w.dtype)
        for slot, gate, scale in zip(out, self.order, self._scale(w), strict=True):
            np.multiply(gates[gate].T, scale, out=slot[:n])
            if bias is not None:
                np.multiply(self._gates(bias)[gate], scale, out=slot[n])
        return out

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
