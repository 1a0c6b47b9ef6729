"""A graph of ONNX while it is built: its values, operators, inputs and outputs, and its loops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OPSET = 17
"""The first opset with LayerNormalization."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value of a graph, with the arithmetic of arrays; a number gets the dtype of the graph's parameters."""

    graph: Graph
    name: str

    def __add__(self, other: Value | float) -> Value:
        return self.graph.node("Add", self, self.graph.value(other))

    def __radd__(self, other: float) -> Value:
        return self.graph.value(other) + self

    def __sub__(self, other: Value | float) -> Value:
        return self.graph.node("Sub", self, self.graph.value(other))

    def __rsub__(self, other: float) -> Value:
        return self.graph.value(other) - self

    def __mul__(self, other: Value | float) -> Value:
        return self.graph.node("Mul", self, self.graph.value(other))

    def __rmul__(self, other: float) -> Value:
        return self.graph.value(other) * self

    def __truediv__(self, other: Value | float) -> Value:
        return self.graph.node("Div", self, self.graph.value(other))

    def __rtruediv__(self, other: float) -> Value:
        return self.graph.value(other) / self

    def __matmul__(self, other: Value) -> Value:
        return self.graph.node("MatMul", self, other)

    def __neg__(self) -> Value:
        return self.graph.node("Neg", self)

    def __lt__(self, other: Value | float) -> Value:
        return self.graph.node("Less", self, self.graph.value(other))

    def __gt__(self, other: Value | float) -> Value:
        return self.graph.node("Greater", self, self.graph.value(other))

    def transposed(self, *axes: int) -> Value:
        return self.graph.node("Transpose", self, perm=axes)

    def unsqueezed(self, axis: int) -> Value:
        return self.graph.node("Unsqueeze", self, self.graph.whole(axis))

    def squeezed(self, axis: int) -> Value:
        return self.graph.node("Squeeze", self, self.graph.whole(axis))

    def summed(self, axis: int) -> Value:
        return self.graph.node("ReduceSum", self, self.graph.whole(axis), keepdims=0)

    def normalised(self, epsilon: float, gain: Value, bias: Value | None = None) -> Value:
        """Layer norm over the last axis."""
        graph = self.graph
        if graph.dtype == np.float32:
            return graph.node("LayerNormalization", self, gain, bias, axis=-1, epsilon=epsilon)
        # The operator's epsilon is of float32.
        centred = self - graph.node("ReduceMean", self, axes=[-1])
        y = centred / graph.node("Sqrt", graph.node("ReduceMean", centred * centred, axes=[-1]) + epsilon) * gain
        return y if bias is None else y + bias

    def size(self, axis: int) -> Value:
        """The length of an axis, a number of int64."""
        return self.graph.node("Gather", self.graph.node("Shape", self), self.graph.scalar(axis))

    def part(self, start: int | Value, stop: int | Value, axis: int, step: int = 1) -> Value:
        """A slice; values among the bounds are (1,) int64."""
        bounds = (bound if isinstance(bound, Value) else self.graph.whole(bound) for bound in (start, stop))
        return self.graph.node("Slice", self, *bounds, self.graph.whole(axis), self.graph.whole(step))

    def flipped(self) -> Value:
        """The same in reverse order along the first axis."""
        return self.part(-1, np.iinfo(np.int64).min, 0, -1)

    def blocks(self, count: int) -> list[Value]:
        """Equal blocks of the last axis."""
        return self.graph.nodes_of("Split", [self], count, axis=-1) if count > 1 else [self]

    def cast(self, dtype: Any) -> Value:
        return self.graph.node("Cast", self, to=self.graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class Functions:
    """The functions of an array library, as operators, for code that all libraries share."""

    def __getattr__(self, name: str) -> Callable[..., Value]:
        kind = {"maximum": "Max", "minimum": "Min"}.get(name, name.capitalize())
        return lambda first, *others: first.graph.node(kind, first, *map(first.graph.value, others))

    @staticmethod
    def where(condition: Value, one: Value | float, other: Value | float) -> Value:
        graph = condition.graph
        return graph.node("Where", condition, graph.value(one), graph.value(other))

    @staticmethod
    def zeros_like(a: Value) -> Value:
        return a.graph.value(0.0)

    @staticmethod
    def asarray(a: Value, *, copy: bool) -> Value:
        return a

    @staticmethod
    def expm1(a: Value) -> Value:
        return a.graph.node("Exp", a) - 1.0

    @staticmethod
    def log1p(a: Value) -> Value:
        return a.graph.node("Log", 1.0 + a)


xp = Functions()


class Graph:
    """A graph while it is built. Every method that adds operators returns their results."""

    def __init__(self, where: str, onnx: Any, dtype: Any) -> None:
        self.where, self.onnx, self.dtype = where, onnx, np.dtype(dtype)
        self.nodes: list[Any] = []
        """The operators of the graph, or of the body of the loop that is being built."""
        self.initializers: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        self.outputs: list[Any] = []
        self.metadata: dict[str, str] = {}
        self._read: set[str] = set()
        self._numbers = itertools.count()

    # ---- Values ----

    def nodes_of(
        self, kind: str, inputs: Sequence[Value | None], outputs: int | Sequence[str], **attributes: Any
    ) -> list[Value]:
        """Add an operator with several outputs, their number or their names; None is an input that is left out."""
        names = [self._new() for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        given = ["" if value is None else value.name for value in inputs]
        while given and not given[-1]:
            given.pop()
        self._read.update(given)
        self.nodes.append(self.onnx.helper.make_node(kind, given, names, **attributes))
        return [Value(self, name) for name in names]

    def node(self, kind: str, *inputs: Value | None, **attributes: Any) -> Value:
        """Add an operator with one output."""
        return self.nodes_of(kind, inputs, 1, **attributes)[0]

    def _new(self) -> str:
        return f"value_{next(self._numbers)}"

    def constant(self, name: str, array: Any) -> Value:
        if name not in self.initializers:
            self.initializers[name] = self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        return Value(self, name)

    def value(self, number: Value | float) -> Value:
        """A constant with the dtype of the parameters, unless it is a value already."""
        if isinstance(number, Value):
            return number
        return self.constant(f"number_{float(number)!r}", np.array(number, self.dtype))

    def whole(self, *values: int) -> Value:
        """A constant of int64 with one axis."""
        return self.constant(f"whole_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def scalar(self, value: int) -> Value:
        """A constant of int64 without axes."""
        return self.constant(f"scalar_{value}", np.array(value, np.int64))

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        return self.node("Concat", *values, axis=axis) if len(values) > 1 else values[0]

    def shape(self, *sizes: int | Value) -> Value:
        """A shape of known sizes, and of numbers of int64."""
        parts = [s.unsqueezed(0) if isinstance(s, Value) else self.whole(s) for s in sizes]
        return self.concat(parts, 0)

    def zeros(self, *sizes: int | Value) -> Value:
        return self.node("Expand", self.value(0.0), self.shape(*sizes))

    def counted(self, count: Value) -> Value:
        """0, 1, ... count - 1."""
        return self.node("Range", self.scalar(0), count, self.scalar(1))

    # ---- The interface ----

    def input(self, name: str, dtype: Any, shape: Any) -> Value:
        if name not in self.inputs:
            self.inputs[name] = self._info(name, dtype, shape)
        return Value(self, name)

    def output(self, value: Value, name: str, shape: Any, dtype: Any = None) -> None:
        self.nodes_of("Identity", [value], [name])
        self.outputs.append(self._info(name, self.dtype if dtype is None else dtype, shape))

    def _info(self, name: str, dtype: Any, shape: Any) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def model(self) -> Any:
        """The finished model, checked."""
        helper = self.onnx.helper
        constants = [tensor for name, tensor in self.initializers.items() if name in self._read]
        graph = helper.make_graph(self.nodes, "gpurnn", list(self.inputs.values()), self.outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        helper.set_model_props(model, self.metadata)
        self.onnx.checker.check_model(model, full_check=True)
        return model

    # ---- Loops ----

    def scan(
        self,
        step: Callable[[list[Value], list[Value]], tuple[Sequence[Value], Sequence[Value]]],
        states: Sequence[Value],
        rows: Sequence[Value],
    ) -> tuple[list[Value], list[Value]]:
        """Run ``step(states, rows) -> states, outputs`` for each row of the first axis of ``rows``.

        Returns
        -------
        states, outputs
            The final states, and each output at all steps, along a first axis.
        """
        inputs = [Value(self, self._new()) for _ in (*states, *rows)]
        body, ends = self._body(
            list(map(self._untyped, inputs)), lambda: step(inputs[: len(states)], inputs[len(states) :])
        )
        found = self.nodes_of("Scan", [*states, *rows], len(ends), body=body, num_scan_inputs=len(rows))
        return found[: len(states)], found[len(states) :]

    def loop(
        self,
        count: Value,
        states: Sequence[Value],
        step: Callable[[Value, list[Value]], tuple[Value | None, Sequence[Value]]],
    ) -> list[Value]:
        """Run ``step(number, states) -> condition, states`` at most ``count`` times; return the final states.

        It ends before the next step once the condition is false; None is a condition that never is. The states may
        change their shapes.
        """
        number, condition, *inputs = (Value(self, self._new()) for _ in range(2 + len(states)))
        infos = [self._info(number.name, np.int64, []), self._info(condition.name, np.bool_, [])]

        def results() -> tuple[list[Value], Sequence[Value]]:
            further, new = step(number, inputs)
            return [condition if further is None else further], new

        body, _ = self._body([*infos, *map(self._untyped, inputs)], results)
        true = self.constant("true", np.array(True))
        return self.nodes_of("Loop", [count, true, *states], len(states), body=body)

    def _body(
        self, inputs: Sequence[Any], results: Callable[[], tuple[Sequence[Value], Sequence[Value]]]
    ) -> tuple[Any, list[Value]]:
        """The graph of a loop's body, which may read the values of the graph around it; and its outputs."""
        around = self.nodes
        self.nodes = []
        first, second = results()
        # A body may not return an input, or a value twice.
        ends = [self.node("Identity", value) for value in (*first, *second)]
        body = self.onnx.helper.make_graph(self.nodes, "step", inputs, list(map(self._untyped, ends)))
        self.nodes = around
        return body, ends

    def _untyped(self, value: Value) -> Any:
        """The description of a value whose dtype and shape follow from the graph around a body."""
        return self.onnx.helper.make_empty_tensor_value_info(value.name)
