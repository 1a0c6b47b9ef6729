"""The LSTM cell (Hochreiter & Schmidhuber 1997; the forget gate is Gers, Schmidhuber & Cummins 2000)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .activations import Activation
from .base import NORM_TEXTS, NORMS, ZONEOUT_H, Cell


@dataclass(frozen=True)
class LSTM(Cell):
    """f, i, o = sigma(...), g = tanh(...), c_t = f c_{t-1} + i g, h_t = o tanh(c_t). Gate order: i f g o.

    Parameters
    ----------
    activation : str or tuple of a str and numbers
        The activation of the candidate g: "tanh", "relu", "sigmoid", "identity", "softsign", "softplus". The following
        have parameters. Give them after the name, as ``("elu", 0.5)``, or the name alone for the values in brackets.
        "affine": alpha a + beta (1, 0). "leaky_relu": a, or alpha a where a < 0 (0.01). "thresholded_relu": a where
        a > alpha, else 0 (1). "scaled_tanh": alpha tanh(beta a) (1.7159, 2/3). "hard_sigmoid": alpha a + beta within
        [0, 1] (0.2, 0.5). "elu": a, or alpha (exp(a) - 1) where a < 0 (1).
    gate_activation : str or tuple of a str and numbers
        The activation of the gates i, f and o.
    output_activation : str or tuple of a str and numbers
        The activation f of c_t: h_t = o f(c_t).
    clip : float, optional
        The bound of the arguments of the gates' and the candidate's activations, which are clipped to [-clip, clip].
    cell_clip : float, optional
        The bound of c_t, which is clipped to [-cell_clip, cell_clip].
    peephole : bool
        Whether the gates read the cell state: i and f read c_{t-1} and o reads c_t, with weights ``peephole_i``,
        ``peephole_f`` and ``peephole_o`` of one number per unit (Gers & Schmidhuber 2000).
    coupled : bool
        Whether f = 1 - i. Then neither the weights nor the biases have a gate f.
    zoneout : pair of float
        The probabilities that a unit of h, and a unit of c, keeps its value of the previous step (Krueger et al. 2016).
        Without masks, as in evaluation, h_t becomes its expectation, zoneout h_{t-1} + (1 - zoneout) h_t, and so does
        c_t.
    candidate_dropout : float
        The rate of a dropout on g, with a mask for each step (Semeniuta, Severyn & Barth 2016).
    layer_norm : bool
        Whether W_ih x and W_hh h are each normalised over the units of all gates, then multiplied by ``norm_ih`` and
        ``norm_hh``, before the biases are added, and c_t for the output, h_t = o tanh(norm_c LN(c_t) + bias_c)
        (Ba, Kiros & Hinton 2016).
    proj_size : int
        If not 0, the width of h and y: h_t = W_hr (o tanh(c_t)), with ``weight_hr`` (proj_size, H), as in PyTorch
        (Sak, Senior & Beaufays 2014). It is less than hidden_size, the width of c.
    """

    activation: Activation = "tanh"
    gate_activation: Activation = "sigmoid"
    output_activation: Activation = "tanh"
    clip: float | None = None
    cell_clip: float | None = None
    peephole: bool = False
    coupled: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    candidate_dropout: float = 0.0
    layer_norm: bool = False
    proj_size: int = 0

    name: ClassVar[str] = "lstm"
    state_names: ClassVar[tuple[str, ...]] = ("h", "c")
    rates: ClassVar[tuple[str, ...]] = ("zoneout", "candidate_dropout")
    drawn: ClassVar[tuple[str, ...]] = ("candidate_dropout",)
    implied: ClassVar[dict[str, str]] = {
        "peephole_i": "peephole", "peephole_f": "peephole", "peephole_o": "peephole", **NORMS, "norm_c": "layer_norm",
        "bias_c": "layer_norm", "weight_hr": "proj_size",
    }  # fmt: skip
    plain: ClassVar[tuple[str, ...]] = ("candidate_dropout",)
    masks: ClassVar[tuple[str, ...]] = ("dropout_g", "zoneout_h", "zoneout_c")
    texts: ClassVar[dict[str, str]] = {
        "peephole_i": "Weights of c_{t-1} in the argument of i: see `gpurnn.LSTM`, ``peephole``.",
        "peephole_f": "Weights of c_{t-1} in the argument of f. There is none with ``coupled``.",
        "peephole_o": "Weights of c_t in the argument of o.",
        **NORM_TEXTS,
        "norm_c": "Weights of the normalised c_t.",
        "bias_c": "Bias of the normalised c_t.",
        "weight_hr": "W_hr: h_t = W_hr (o tanh(c_t)). Then W_hh, h, y and ``dropout_h`` have the width proj_size.",
        "dropout_g": "Multiplies the candidate g of each step.",
        "zoneout_h": ZONEOUT_H,
        "zoneout_c": "The same as ``zoneout_h``, for c.",
    }

    @property
    def gate_functions(self) -> dict[str, str]:  # type: ignore[override]
        gates = {"i": "gate_activation", "f": "gate_activation", "g": "activation", "o": "gate_activation"}
        return {gate: option for gate, option in gates.items() if gate != "f" or not self.coupled}

    @property
    def biases_of_one(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.coupled else ("f",)

    @property
    def diagonal(self) -> dict[str, tuple[str, str]]:
        if not self.peephole:
            return {}
        reads = {"i": "c_prev", "f": "c_prev", "o": "c"}
        return {f"peephole_{gate}": (gate, reads[gate]) for gate in reads if gate in self.gate_functions}

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        parameters, of_state = super().parameters, ("hidden_size",)
        if self.layer_norm:
            parameters |= {"norm_c": of_state, "bias_c": of_state}
        if self.proj_size:
            size = str(self.proj_size)
            parameters |= {"weight_hh": (parameters["weight_hh"][0], size), "weight_hr": (size, "hidden_size")}
        return parameters

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        return self.proj_size or hidden_size, hidden_size

    @property
    def operations(self) -> tuple[int, int]:
        return (53, 19)

    @property
    def saved(self) -> tuple[str, ...]:
        return (*self.gate_functions, "c_prev", *(["c"] if self.peephole else []), *self.step_masks)

    @property
    def kernel_struct(self) -> tuple[str, ...]:
        arguments = []
        for name, option, default in (
            ("Gates", "gate_activation", "Sigmoid"), ("Candidate", "activation", "Tanh"),
        ):  # fmt: skip
            function = self._activation_type(option)
            arguments += [f"{name}<{function}>"] if function != default else []
        output = self._activation_type("output_activation", clipped=False)
        arguments += [f"Output<{output}>"] if output != "Tanh" else []
        arguments += [f"CellClip<{self.number('cell_clip')}>"] if self.cell_clip is not None else []
        arguments += ["Peephole"] if self.peephole else []
        arguments += ["Coupled"] if self.coupled else []
        arguments += ["DroppedCandidate"] if "dropout_g" in self.step_masks else []
        return ("Lstm", *arguments, *self._members())
