"""Recurrent layers as ONNX: by the operators RNN, LSTM and GRU, or as loops if these lack the cell or an option."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cells import Activation, activations
from ..layers.recurrent import Stacked
from . import onnx_cells
from .onnx import FUNCTIONS, GATES
from .onnx_graph import Graph, Value, xp
from .weights import reordered

_OPERATORS = {"rnn": "rnn", "lstm": "lstm", "gru": "gru", "indrnn": "rnn"}
"""For each cell, the cell name of its ONNX operator; a cell whose units read only their own states is an RNN too."""

_OF_OPERATORS = (
    "step_masks", "activation", "gate_activation", "output_activation", "clip", "coupled", "peephole", "reset_after",
    "update", "candidate_dropout",
)  # fmt: skip
"""The options of cells that the operators have, or that have no effect at inference."""

_MERGES = {"sum": "ReduceSum", "average": "ReduceMean", "mul": "ReduceProd"}


class Lengths:
    """The lengths of the sequences of a batch, and which steps they have."""

    def __init__(self, lengths: Value, x: Value, axis: int = 0) -> None:
        """Take the lengths (B,) int32, and the sequences, whose steps lie along an axis."""
        self.graph, self.value, self._x, self._axis = lengths.graph, lengths, x, axis

    @cached_property
    def long(self) -> Value:
        """(B,) int64."""
        return self.value.cast(np.int64)

    @cached_property
    def exists(self) -> Value:
        """(T, B) bools: True at the steps that sequences have."""
        return self.graph.node("Less", self.graph.counted(self._x.size(self._axis)).unsqueezed(1), self.long)

    @cached_property
    def exists_by_feature(self) -> Value:
        """`exists` with a last axis, (T, B, 1)."""
        return self.exists.unsqueezed(2)

    @cached_property
    def stepped(self) -> Value:
        """(B, 1): True for sequences that have steps."""
        return (self.long > self.graph.whole(0)).unsqueezed(1)

    def zero_past(self, x: Value, *, tokens: bool = False, batch_first: bool = False) -> Value:
        """Set x (T, B, ...) to zero past the lengths, where it may hold anything."""
        exists = self.exists if tokens else self.exists_by_feature
        if batch_first:
            exists = exists.transposed(*([1, 0] if tokens else [1, 0, 2]))
        return xp.where(exists, x, self.graph.whole(0) if tokens else 0.0)

    def scan(
        self,
        step: Callable[[list[Value], list[Value]], tuple[Sequence[Value], Value]],
        states: Sequence[Value],
        rows: Sequence[Value],
        *,
        backwards: bool = False,
    ) -> tuple[list[Value], Value]:
        """Run ``step(states, rows) -> states, output`` at the steps that sequences have; elsewhere the states stay.

        Return the final states and the outputs (T, B, ...), zero where there is no step.
        """

        def masked(states: list[Value], rows: list[Value]) -> tuple[list[Value], list[Value]]:
            exists, *own = rows
            new, output = step(states, own)
            kept = [xp.where(exists, after, before) for after, before in zip(new, states, strict=True)]
            return kept, [xp.where(exists, output, 0.0)]

        rows = [self.exists_by_feature, *rows]
        # Not by the attribute for directions, which ONNX's reference evaluator lacks.
        finals, (outputs,) = self.graph.scan(masked, states, [row.flipped() for row in rows] if backwards else rows)
        return finals, outputs.flipped() if backwards else outputs


def recurrent(
    graph: Graph, layer: Stacked, x: Value, lengths: Lengths, prefix: str, initial: Sequence[Value] | None = None
) -> tuple[Value, list[list[Value]]]:
    """Return y, and for each array of the state its final values (D, B, ...), layer by layer.

    Parameters
    ----------
    graph : Graph
    layer : Stacked
        Of a cell that `is_known`.
    x : Value
    lengths : Lengths
    prefix : str
        The names of constants begin with it.
    initial : sequence of Value, optional
        The initial state, (num_layers*D, B, ...); zero by default.
    """
    L, D = layer.num_layers, layer.num_directions
    starts: list[list[Value | None]] = [[None] * layer.cell.states] * L
    if initial is not None:
        parts = [graph.nodes_of("Split", [s, graph.whole(*[D] * L)], L, axis=0) if L > 1 else [s] for s in initial]
        starts = [list(of_layer) for of_layer in zip(*parts, strict=True)]
    run = _by_operator if lacking(layer) is None else _by_loop
    if layer.batch_first:
        x = x.transposed(1, 0, 2)
    finals = []
    for number, start in enumerate(starts):
        outputs, final = run(graph, layer, number, x, lengths, start, prefix)
        finals.append(final)
        y = _merged(graph, layer, outputs)
        if layer.residual and (layer.input_size if number == 0 else layer.output_size) == layer.output_size:
            y = y + (lengths.zero_past(x) if number == 0 else x)
        x = y
    return x.transposed(1, 0, 2) if layer.batch_first else x, [list(of_state) for of_state in zip(*finals, strict=True)]


def merged_state(graph: Graph, layer: Stacked, final: Value) -> Value:
    """Merge the final h (D, B, H) of both directions like outputs."""
    return _merged(graph, layer, final.unsqueezed(0)).squeezed(0)


def _merged(graph: Graph, layer: Stacked, y: Value) -> Value:
    """Merge outputs (T, D, B, H) to (T, B, output_size)."""
    if not layer.bidirectional:
        return y.squeezed(1)
    if layer.merge == "concat":
        return graph.node("Reshape", y.transposed(0, 2, 1, 3), graph.whole(0, 0, layer.output_size))
    if layer.merge == "sum":
        return y.summed(1)
    return graph.node(_MERGES[layer.merge], y, axes=[1], keepdims=0)


# ---- As a loop -------------------------------------------------------------------------------------------------------


def _by_loop(
    graph: Graph, layer: Stacked, number: int, x: Value, lengths: Lengths, start: list[Value | None], prefix: str
) -> tuple[Value, list[Value]]:
    """Outputs (T, D, B, ...) and final states (D, B, ...) of one layer."""
    batch, widths = lengths.value.size(0), layer.cell.state_sizes(layer.hidden_size)
    outputs, finals = [], []
    for d, suffix in enumerate(layer._suffixes(number)):
        states = [
            graph.zeros(batch, width) if s is None else graph.node("Gather", s, graph.scalar(d))
            for s, width in zip(start, widths, strict=True)
        ]
        weights = onnx_cells.weights_of(graph, layer, suffix, prefix)

        def step(states: list[Value], rows: list[Value], w: onnx_cells.Weights = weights) -> tuple[list[Value], Value]:
            new = onnx_cells.step(layer, rows, states, w)
            return new, new[0]

        rows = onnx_cells.arguments(layer, x, weights)
        final, y = lengths.scan(step, states, rows, backwards=layer.reverse or d == 1)
        outputs.append(y.unsqueezed(1))
        finals.append([s.unsqueezed(0) for s in final])
    return graph.concat(outputs, 1), [graph.concat(of_state, 0) for of_state in zip(*finals, strict=True)]


# ---- By an operator --------------------------------------------------------------------------------------------------


def lacking(layer: Stacked) -> str | None:
    """What ONNX's operators lack of a layer: the cell, or an option with its value; None if there is an operator."""
    cell: Any = layer.cell
    if cell.name not in _OPERATORS:
        return f"the cell {cell.name!r}"
    for option in fields(cell):
        value = getattr(cell, option.name)
        if option.name not in _OF_OPERATORS and value != option.default:
            return f"{option.name}={value!r}"
    if getattr(cell, "update", "state") == "candidate" and not _is_odd(cell.gate_activation):
        return f"update='candidate' with gate_activation={cell.gate_activation!r}"
    return None


def _by_operator(
    graph: Graph, layer: Stacked, number: int, x: Value, lengths: Lengths, start: list[Value | None], prefix: str
) -> tuple[Value, list[Value]]:
    """Outputs (T, D, B, H) and final states (D, B, H) of one layer."""
    W, R, B, P = _weights(graph, layer, number, prefix)
    name = f"{prefix}layer_{number}"
    names = [f"{name}.Y", *(f"{name}.{state}_n" for state in layer.cell.state_names)]
    y, *finals = graph.nodes_of(
        _OPERATORS[layer.cell.name].upper(), [x, W, R, B, lengths.value, *start, P], names, name=name,
        **_attributes(layer),
    )  # fmt: skip
    # For a sequence without steps, ONNX Runtime returns zeros.
    return y, [f if s is None else xp.where(lengths.stepped, f, s) for f, s in zip(finals, start, strict=True)]


def _attributes(layer: Stacked) -> dict[str, Any]:
    """The attributes of the operator."""
    cell: Any = layer.cell
    D, usual = layer.num_directions, FUNCTIONS[_OPERATORS[cell.name]]
    direction = "bidirectional" if layer.bidirectional else "reverse" if layer.reverse else "forward"
    attributes: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": direction}
    functions = [_function(getattr(cell, option)) for option in usual]
    names = [name for name, _ in functions]
    if names != [*usual.values()]:
        attributes["activations"] = names * D
        for place, which in enumerate(("alpha", "beta")):
            numbers = [own[place] for _, own in functions if len(own) > place]
            if numbers:
                attributes[f"activation_{which}"] = numbers * D
    if cell.clip is not None:
        attributes["clip"] = cell.clip
    for option, attribute in (("reset_after", "linear_before_reset"), ("coupled", "input_forget")):
        if hasattr(cell, option):
            attributes[attribute] = int(getattr(cell, option))
    return attributes


def _weights(graph: Graph, layer: Stacked, number: int, prefix: str) -> tuple[Value, Value, Value | None, Value | None]:
    """A layer's W, R, B and P; None for B and P if the layer has none."""
    cell, hidden, (theirs, ours) = layer.cell, layer.hidden_size, GATES[_OPERATORS[layer.cell.name]]
    coupled, candidate = getattr(cell, "coupled", False), getattr(cell, "update", "state") == "candidate"
    params: Mapping[str, NDArray[Any]] = layer.state_dict()

    def ordered(name: str, suffix: str) -> NDArray[Any]:
        array = params.get(name + suffix, np.zeros(hidden, graph.dtype))  # an IndRNN has one bias
        if name == "weight_hh" and array.ndim == 1:
            array = np.diag(array)
        if coupled:  # ONNX has rows for f, but does not read them
            array = np.concatenate([array[:hidden], np.zeros_like(array[:hidden]), array[hidden:]])
        blocks = reordered(array, ours, theirs)
        if candidate:  # gpurnn's z is one minus ONNX's
            blocks[:hidden] *= -1
        return blocks

    def stacked(symbol: str, *names: str) -> Value:
        directions = [np.concatenate([ordered(name, suffix) for name in names]) for suffix in layer._suffixes(number)]
        return graph.constant(f"{prefix}{symbol}_{number}", np.stack(directions))

    B = stacked("B", "bias_ih", "bias_hh") if layer.bias else None
    P = None
    if getattr(cell, "peephole", False):
        none = np.zeros(hidden, graph.dtype)
        rows = [
            np.concatenate([params.get(f"peephole_{gate}{suffix}", none) for gate in "iof"])
            for suffix in layer._suffixes(number)
        ]
        P = graph.constant(f"{prefix}P_{number}", np.stack(rows))
    return stacked("W", "weight_ih"), stacked("R", "weight_hh"), B, P


def _function(activation: Activation) -> tuple[str, tuple[float, ...]]:
    """ONNX's name for an activation, and its alpha and beta."""
    name, numbers = activations.name_of(activation), activations.numbers_of(activation)
    if name == "identity":
        name, numbers = "affine", (1.0, 0.0)
    return "".join(part.capitalize() for part in name.split("_")), numbers


def _is_odd(activation: Activation) -> bool:
    """Whether 1 - f(a) equals f(-a)."""
    name, numbers = activations.name_of(activation), activations.numbers_of(activation)
    return name == "sigmoid" or (name in ("hard_sigmoid", "affine") and numbers[1] == 0.5)
