"""The order and scale in which a cell's steps keep the rows of its gates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activations import Array


@dataclass(frozen=True)
class Rows:
    """Slot k of the packed rows holds the ``hidden`` rows of gate ``order[k]`` (PyTorch's order) times ``scale[k]``.

    A sigma gate has its rows halved, since sigma(a) = (1 + tanh(a/2)) / 2; a negative scale makes a gate its
    complement, since 1 - sigma(a) = sigma(-a). Gradients are those of the rows with their sign but not halved.
    """

    hidden: int
    order: tuple[int, ...]
    scale: tuple[float, ...]

    @property
    def _signs(self) -> tuple[float, ...]:
        return tuple(-1.0 if factor < 0 else 1.0 for factor in self.scale)

    def packed(self, w: Array) -> Array:
        """Rows for the forward product, in order and scale."""
        return self._select(w, self.scale)

    def signed(self, w: Array) -> Array:
        """Rows for the backward product, in order and sign."""
        return self._select(w, self._signs)

    def unpack(self, dw: Array, out: Array) -> None:
        """Write the gradient ``dw`` of the packed rows to those gates of ``out`` that they hold."""
        for slot, gate, sign in zip(self._blocks(dw), self.order, self._signs, strict=True):
            np.multiply(slot, sign, out=self._blocks(out)[gate])

    def _select(self, w: Array, scale: tuple[float, ...]) -> Array:
        packed = np.empty((len(self.order) * self.hidden, *w.shape[1:]), w.dtype)
        for slot, gate, factor in zip(self._blocks(packed), self.order, scale, strict=True):
            np.multiply(self._blocks(w)[gate], factor, out=slot)
        return packed

    def _blocks(self, w: Array) -> Array:
        return w.reshape(-1, self.hidden, *w.shape[1:])
