"""The LSTM cell (Hochreiter & Schmidhuber 1997; the forget gate is Gers, Schmidhuber & Cummins 2000)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Cell


@dataclass(frozen=True)
class LSTM(Cell):
    """f, i, o = sigma(...), g = tanh(...), c_t = f c_{t-1} + i g, h_t = o tanh(c_t). Gate order: i f g o."""

    name: ClassVar[str] = "lstm"
    gate_functions: ClassVar[dict[str, str]] = {"i": "sigmoid", "f": "sigmoid", "g": "tanh", "o": "sigmoid"}
    state_names: ClassVar[tuple[str, ...]] = ("h", "c")
    biases_of_one: ClassVar[tuple[str, ...]] = ("f",)

    @property
    def operations(self) -> tuple[int, int]:
        return (53, 19)

    @property
    def saved(self) -> tuple[str, ...]:
        return ("i", "f", "g", "o", "c_prev")

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        return ("Lstm",)
