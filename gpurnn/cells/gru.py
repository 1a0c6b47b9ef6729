"""The GRU cell (Cho et al. 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .activations import Activation
from .base import NORM_TEXTS, NORMS, ZONEOUT_H, Cell

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
        The one that z weighs: the candidate, h_t = (1 - z) h_{t-1} + z n, or, as in PyTorch and cuDNN, the state,
        h_t = (1 - z) n + z h_{t-1}.
    activation : str or tuple of a str and numbers
        The activation of the candidate n, by its name: see `gpurnn.LSTM`.
    gate_activation : str or tuple of a str and numbers
        The activation of the gates r and z.
    clip : float, optional
        The bound of the activations' arguments, which are clipped to [-clip, clip].
    zoneout : float
        The probability that a unit of h keeps its value of the previous step (Krueger et al. 2016). Without masks, as
        in evaluation, h_t becomes its expectation: zoneout h_{t-1} + (1 - zoneout) h_t.
    layer_norm : bool
        Whether the products with W_ih and W_hh are each normalised, over r and z together and over n separately, then
        multiplied by ``norm_ih`` and ``norm_hh``, before the biases are added (Ba, Kiros & Hinton 2016).
    """

    reset_after: bool = False
    update: Update = "candidate"
    activation: Activation = "tanh"
    gate_activation: Activation = "sigmoid"
    clip: float | None = None
    zoneout: float = 0.0
    layer_norm: bool = False

    name: ClassVar[str] = "gru"
    gate_functions: ClassVar[dict[str, str]] = {"r": "gate_activation", "z": "gate_activation", "n": "activation"}
    form: ClassVar[tuple[str, ...]] = ("reset_after", "update")
    rates: ClassVar[tuple[str, ...]] = ("zoneout",)
    plain: ClassVar[tuple[str, ...]] = ("reset_after", "update")
    masks: ClassVar[tuple[str, ...]] = ("zoneout_h",)
    implied: ClassVar[dict[str, str]] = NORMS
    texts: ClassVar[dict[str, str]] = {"zoneout_h": ZONEOUT_H, **NORM_TEXTS}

    @property
    def phases(self) -> tuple[int, ...]:
        return (3,) if self.reset_after else (2, 1)

    @property
    def norm_groups(self) -> tuple[int, ...]:
        return (2, 1)

    @property
    def hidden_apart(self) -> bool:
        return self.reset_after

    @property
    def operations(self) -> tuple[int, int]:
        return (37, 16)

    @property
    def saved(self) -> tuple[str, ...]:
        return ("r", "z", "n", "h_prev", *(["u"] if self.reset_after else []), *self.step_masks)

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        arguments = [str(self.reset_after).lower(), str(self.update == "candidate").lower()]
        for name, option, default in (
            ("Gates", "gate_activation", "Sigmoid"), ("Candidate", "activation", "Tanh"),
        ):  # fmt: skip
            function = self._activation_type(option)
            arguments += [f"{name}<{function}>"] if function != default else []
        return ("Gru", *arguments, *self._members())
