"""The order and scale in which a cell's steps keep the rows of its gates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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

    def factors(self, w: Array) -> Array:
        """From weights (G*H, n) to right-hand factors (slots, n, H), so that ``x @ factors`` is (slots, B, H)."""
        gates, scale = self._gates(w)[list(self.order)], np.asarray(self.scale, w.dtype)
        # In C order, because BLAS multiplies by transposed factors more slowly.
        return np.ascontiguousarray((gates * scale[:, None, None]).transpose(0, 2, 1))

    def signed(self, w: Array) -> Array:
        """The weights' rows in order and with their sign, (slots*H, n): the factor of the backward product."""
        return (self._gates(w)[list(self.order)] * self._signs(w)[:, None, None]).reshape(
            len(self.order) * self.hidden, w.shape[1]
        )

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

    def _signs(self, like: Array) -> Array:
        return np.sign(np.asarray(self.scale, like.dtype))

    def _gates(self, w: Array) -> Array:
        return w.reshape(w.shape[0] // self.hidden, self.hidden, *w.shape[1:])
