"""The cases that are measured: cells, sizes and the arrays of each case, which are the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""The cells, and the number of row blocks in their weights."""

MODES = ("training", "inference")
"""Training is the forward pass and the gradients of sum(y * dy) with respect to x and to all parameters."""


class Size(NamedTuple):
    """Steps, sequences side by side, width of the input, width of the hidden state."""

    T: int
    B: int
    I: int
    H: int


SIZES = (
    Size(50, 1, 64, 64),
    Size(100, 1, 256, 256),
    Size(200, 8, 32, 64),
    Size(784, 32, 1, 128),
    Size(28, 128, 28, 128),
    Size(64, 64, 128, 128),
    Size(20, 256, 40, 80),
    Size(35, 20, 200, 200),
    Size(100, 32, 64, 256),
    Size(1000, 16, 256, 256),
    Size(30, 64, 512, 512),
    Size(50, 128, 1024, 1024),
)
"""From one short sequence, as in a dialogue, over rows of images and language models to large layers."""

QUICK_SIZES = (Size(50, 1, 64, 64), Size(28, 128, 28, 128), Size(35, 20, 200, 200), Size(100, 32, 64, 256))


@dataclass(frozen=True)
class Case:
    """One cell at one size, in one mode: one layer, one direction, float32."""

    cell: str
    size: Size
    mode: str

    def arrays(self) -> tuple[Array, Array, dict[str, Array]]:
        """x (T, B, I), dy (T, B, H) and the parameters under PyTorch's names, in PyTorch's gate order."""
        T, B, I, H = self.size
        rows = GATES[self.cell] * H
        rng = np.random.default_rng(0)
        bound = H**-0.5

        def weights(*shape: int) -> Array:
            uniform: Array = 2 * bound * rng.random(shape, np.float32) - bound
            return uniform.astype(np.float32)

        x = rng.standard_normal((T, B, I), np.float32)
        dy = rng.standard_normal((T, B, H), np.float32)
        parameters = {
            "weight_ih_l0": weights(rows, I),
            "weight_hh_l0": weights(rows, H),
            "bias_ih_l0": weights(rows),
            "bias_hh_l0": weights(rows),
        }
        return x, dy, parameters

    def tolerance(self) -> float:
        """How far apart two correct float32 results may lie, relative to the norm of one of them.

        The error of a sum of n terms is within n epsilon, and the error of a step is handed on to the steps after it.
        """
        return float(np.finfo(np.float32).eps) * (self.size.T + self.size.I + self.size.H)
