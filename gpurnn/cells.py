"""What a recurrent cell is: its kind and its switches. Both wings read these, and hold the equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from . import _checks

Activation = Literal["tanh", "relu", "sigmoid", "identity"]
Update = Literal["candidate", "state"]


@dataclass(frozen=True)
class Vanilla:
    """h_t = f(W_ih x_t + W_hh h_{t-1} + b) + leak h_{t-1}, with f tanh, relu, sigmoid or identity."""

    activation: Activation = "tanh"
    leak: float = 0.0

    name: ClassVar[str] = "rnn"
    gates: ClassVar[int] = 1
    states: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _checks.choice(self.name, "activation", self.activation, get_args(Activation))
        _checks.finite(self.name, "leak", self.leak)


@dataclass(frozen=True)
class LSTM:
    """f, i, o = sigma(...), g = tanh(...), c_t = f c_{t-1} + i g, h_t = o tanh(c_t). Gate order: i f g o."""

    name: ClassVar[str] = "lstm"
    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2


@dataclass(frozen=True)
class GRU:
    """r, z = sigma(...), n = tanh(...). Gate order: r z n.

    ``reset_after=False``: n = tanh(W_in x + b_in + W_hn (r h_{t-1}) + b_hn), the textbook's.
    ``reset_after=True``: n = tanh(W_in x + b_in + r (W_hn h_{t-1} + b_hn)), PyTorch's and cuDNN's.
    ``update="candidate"``: z weighs the candidate, h_t = (1 - z) h_{t-1} + z n, the textbook's.
    ``update="state"``: z weighs the state, h_t = (1 - z) n + z h_{t-1}, PyTorch's and cuDNN's.
    """

    reset_after: bool = False
    update: Update = "candidate"

    name: ClassVar[str] = "gru"
    gates: ClassVar[int] = 3
    states: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _checks.choice(self.name, "reset_after", self.reset_after, (False, True))
        _checks.choice(self.name, "update", self.update, get_args(Update))


Cell = Vanilla | LSTM | GRU
