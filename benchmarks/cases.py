"""The cases that are measured: cells, sizes and the arrays of each case, which are the same in every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""The cells, and the number of row blocks in their weights."""

CELLS = {**GATES, "gru-before": 3}
"""The cells that are compared on a CPU. "gru" is PyTorch's, which resets after the product; the other resets before."""

MODES = ("training", "inference")
"""Training is the forward pass and the gradients of sum(y * dy) with respect to x and to all parameters."""

STEP = "step"
"""A further mode: inference of one step from a state, as in a program that feeds the output back."""


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
"""Sizes from one short sequence, as in a dialogue, through rows of images and language models, to large layers."""

FLASHRNN_SIZES = (Size(1024, 2, 768, 768), Size(1024, 16, 768, 768), Size(1024, 64, 768, 768))
"""The sizes in the figures of FlashRNN (Pöppel, Beck, Hochreiter, 2024): T = 1024 and one head of 768 units."""

HASTE_SIZES = (Size(50, 16, 256, 512), Size(50, 64, 256, 1024), Size(50, 128, 256, 2048))
"""Some sizes of haste's own benchmark: T = 50, batches of 1 to 128, 128 to 4096 units."""

QUICK_SIZES = (Size(50, 1, 64, 64), Size(28, 128, 28, 128), Size(35, 20, 200, 200), Size(100, 32, 64, 256))


STEP_SIZES = (Size(1, 1, 64, 64), Size(1, 1, 128, 128), Size(1, 1, 256, 256), Size(1, 1, 512, 512))

LONG_SIZES = (Size(100_000, 1, 16, 64), Size(100_000, 4, 16, 128))


@dataclass(frozen=True)
class Case:
    """One cell at one size, in one mode: one layer, one direction, float32."""

    cell: str
    size: Size
    mode: str

    def arrays(self) -> tuple[Array, Array, dict[str, Array]]:
        """x (T, B, I), dy (T, B, H) and the parameters under PyTorch's names, in PyTorch's gate order."""
        T, B, I, H = self.size
        rows = CELLS[self.cell] * H
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

    def multiply_adds(self) -> int:
        """Those of the products: W_ih x and W_hh h of all steps, and in training as many for both gradients."""
        T, B, I, H = self.size
        return T * B * CELLS[self.cell] * H * (I + H) * (3 if self.mode == "training" else 1)

    def state(self) -> tuple[Array, Array]:
        """h and c (1, B, H) before a step."""
        rng = np.random.default_rng(1)
        h, c = rng.uniform(-0.5, 0.5, (2, 1, self.size.B, self.size.H)).astype(np.float32)
        return h, c

    def tolerance(self) -> float:
        """The largest difference between two correct float32 results, relative to the norm of one of them.

        The error of a sum of n terms is within n epsilon, and the error of a step passes to the steps after it.
        """
        return float(np.finfo(np.float32).eps) * (self.size.T + self.size.I + self.size.H)


@dataclass(frozen=True)
class Update:
    """Adam's update of the parameters of a language model, float32."""

    parameters: int = 13_000_000

    def arrays(self) -> tuple[Array, Array]:
        """The parameters and their gradients, flat."""
        rng = np.random.default_rng(0)
        return rng.standard_normal(self.parameters, np.float32), rng.standard_normal(self.parameters, np.float32)

    def tolerance(self) -> float:
        """See `Case.tolerance`: an update has few roundings."""
        return 16 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Smoothing:
    """The Kalman filter and smoother of a local level with a season, float64."""

    steps: int = 10_000
    season: int = 4

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """The observations y (T, 1), and the arguments of `gpurnn.LinearGaussian`."""
        n = self.season
        transition = np.zeros((n, n))
        transition[0, 0] = 1
        transition[1, 1:] = -1
        transition[range(2, n), range(1, n - 1)] = 1
        design = np.zeros((1, n))
        design[0, :2] = 1
        noise = np.zeros((n, n))
        noise[0, 0], noise[1, 1] = 0.3, 0.1
        rng = np.random.default_rng(0)
        level = np.cumsum(rng.standard_normal(self.steps) * noise[0, 0] ** 0.5)
        y = level + 2 * np.sin(2 * np.pi * np.arange(self.steps) / n) + rng.standard_normal(self.steps)
        return {
            "y": y[:, None], "F": transition, "H": design, "Q": noise, "R": np.eye(1),
            "m0": np.zeros(n), "P0": 10 * np.eye(n),
        }  # fmt: skip

    def tolerance(self) -> float:
        """See `Case.tolerance`: statsmodels stops updating covariances once their relative change is below 1e-9."""
        return 2e-9


AnyCase: TypeAlias = Case | Update | Smoothing
