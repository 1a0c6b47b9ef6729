"""The vanilla cell (Elman 1990)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .base import Cell

Activation = Literal["tanh", "relu", "sigmoid", "identity"]


@dataclass(frozen=True)
class Vanilla(Cell):
    """h_t = f(W_ih x_t + W_hh h_{t-1} + b) + leak h_{t-1}, with f tanh, relu, sigmoid or identity.

    Parameters
    ----------
    activation : {"tanh", "relu", "sigmoid", "identity"}
        f. The derivative of relu at 0 is 0.
    leak : float
        Weight of the skip connection from h_{t-1}, added after the activation.
    """

    activation: Activation = "tanh"
    leak: float = 0.0

    name: ClassVar[str] = "rnn"
    gate_functions: ClassVar[dict[str, str]] = {"h": "activation"}
    scalars: ClassVar[tuple[str, ...]] = ("leak",)

    @property
    def operations(self) -> tuple[int, int]:
        return (7, 4) if self.leak else (5, 2)

    @property
    def saved(self) -> tuple[str, ...]:
        return ("f",)

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        return ("Vanilla", self.activation.capitalize())
