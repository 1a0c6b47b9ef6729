"""The vanilla cell (Elman 1990), and its form with units that do not read each other (Li et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .activations import Activation
from .base import NORM_TEXTS, NORMS, ZONEOUT_H, Cell


@dataclass(frozen=True)
class _Elman(Cell):
    """h_t = f(a_t) + leak h_{t-1}, however a_t depends on h_{t-1}."""

    activation: Activation = "tanh"
    leak: float = 0.0
    clip: float | None = None

    gate_functions: ClassVar[dict[str, str]] = {"h": "activation"}

    @classmethod
    def variants(cls) -> Iterator[Cell]:
        return (cls(name) for name in ("tanh", "relu", "sigmoid", "identity"))

    @property
    def operations(self) -> tuple[int, int]:
        return (7, 4) if self.leak else (5, 2)

    @property
    def saved(self) -> tuple[str, ...]:
        return ("f", *self.step_masks)

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        members = [] if self._members() == ["Numbers<1>"] else [str(self.number("leak")), *self._members()]
        return ("Vanilla", self._activation_type("activation"), *members)


@dataclass(frozen=True)
class Vanilla(_Elman):
    """h_t = f(W_ih x_t + W_hh h_{t-1} + b) + leak h_{t-1}.

    Parameters
    ----------
    activation : str or tuple of a str and numbers
        f, by its name: see `gpurnn.LSTM`. The derivative of relu at 0 is 0.
    leak : float
        Weight of the skip connection from h_{t-1}, added after the activation.
    clip : float, optional
        The bound of f's argument, which is clipped to [-clip, clip].
    zoneout : float
        The probability that a unit of h keeps its value of the previous step (Krueger et al. 2016). Without masks, as
        in evaluation, h_t becomes its expectation: zoneout h_{t-1} + (1 - zoneout) h_t.
    layer_norm : bool
        Whether W_ih x and W_hh h are each normalised over the units, then multiplied by ``norm_ih`` and ``norm_hh``,
        before the biases are added (Ba, Kiros & Hinton 2016).
    """

    zoneout: float = 0.0
    layer_norm: bool = False

    name: ClassVar[str] = "rnn"
    rates: ClassVar[tuple[str, ...]] = ("zoneout",)
    plain: ClassVar[tuple[str, ...]] = ("activation", "leak", "clip")
    masks: ClassVar[tuple[str, ...]] = ("zoneout_h",)
    implied: ClassVar[dict[str, str]] = NORMS
    texts: ClassVar[dict[str, str]] = {"zoneout_h": ZONEOUT_H, **NORM_TEXTS}


@dataclass(frozen=True)
class IndRNN(_Elman):
    """h_t = f(W_ih x_t + u h_{t-1} + b_ih) + leak h_{t-1}, elementwise, with u = ``weight_hh``.

    Parameters
    ----------
    activation : str or tuple of a str and numbers
        f, by its name: see `gpurnn.LSTM`. The derivative of relu at 0 is 0.
    leak : float
        Weight of the skip connection from h_{t-1}, added after the activation.
    clip : float, optional
        The bound of f's argument, which is clipped to [-clip, clip].
    """

    activation: Activation = "relu"

    name: ClassVar[str] = "indrnn"
    elementwise: ClassVar[bool] = True

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        return {
            "weight_ih": ("hidden_size", "input_size"),
            "weight_hh": ("hidden_size",),
            "bias_ih": ("hidden_size",),
        }
