"""The minimal GRU and LSTM (Feng et al. 2024): gates and candidate depend on x_t alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Cell


@dataclass(frozen=True)
class Minimal(Cell):
    """A cell without W_hh, so that its states are a linear scan, h_t = a_t h_{t-1} + b_t."""

    elementwise: ClassVar[bool] = True

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        rows = f"{self.gates}*hidden_size"
        return {"weight_ih": (rows, "input_size"), "bias_ih": (rows,)}


@dataclass(frozen=True)
class MinGRU(Minimal):
    """z = sigma(...), n = g(...), h_t = (1 - z) h_{t-1} + z n. Gate order: z n."""

    name: ClassVar[str] = "mingru"
    gate_functions: ClassVar[dict[str, str]] = dict.fromkeys("zn", "")


@dataclass(frozen=True)
class MinLSTM(Minimal):
    """i, f = sigma(...), n = g(...), h_t = (f h_{t-1} + i n) / (f + i). Gate order: i f n."""

    name: ClassVar[str] = "minlstm"
    gate_functions: ClassVar[dict[str, str]] = dict.fromkeys("ifn", "")
    biases_of_one: ClassVar[tuple[str, ...]] = ("f",)
