"""The GRU cell (Cho et al. 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Cell

Update = Literal["candidate", "state"]


@dataclass(frozen=True)
class GRU(Cell):
    """r, z = sigma(...), n = tanh(...). Gate order: r z n.

    Parameters
    ----------
    reset_after : bool
        Whether the reset gate applies after the recurrent product, n = tanh(W_in x + b_in + r (W_hn h_{t-1} + b_hn)) as
        in PyTorch and cuDNN, instead of before it, n = tanh(W_in x + b_in + W_hn (r h_{t-1}) + b_hn).
    update : {"candidate", "state"}
        What z weighs: the candidate, h_t = (1 - z) h_{t-1} + z n, or as in PyTorch and cuDNN the state,
        h_t = (1 - z) n + z h_{t-1}.
    """

    reset_after: bool = False
    update: Update = "candidate"

    name: ClassVar[str] = "gru"
    gate_functions: ClassVar[dict[str, str]] = {"r": "sigmoid", "z": "sigmoid", "n": "tanh"}
    form: ClassVar[tuple[str, ...]] = ("reset_after", "update")

    @property
    def phases(self) -> tuple[int, ...]:
        return (3,) if self.reset_after else (2, 1)

    @property
    def hidden_apart(self) -> bool:
        return self.reset_after

    @property
    def operations(self) -> tuple[int, int]:
        return (37, 16)

    @property
    def saved(self) -> tuple[str, ...]:
        return ("r", "z", "n", "h_prev", "u") if self.reset_after else ("r", "z", "n", "h_prev")

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        return ("Gru", str(self.reset_after).lower(), str(self.update == "candidate").lower())
