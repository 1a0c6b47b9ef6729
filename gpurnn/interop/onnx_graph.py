"""Convert layers and sequence models to ONNX models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _dispatch, _files, layers
from ..cells import Activation, activations
from ..layers.base import Layer
from ..layers.recurrent import Stacked
from .onnx import FUNCTIONS, GATES
from .weights import installed, is_default, reordered

_States = list[tuple[str, str, list[Any]]]
"""The final states of a graph: their values, output names and shapes."""

_ALIKE = (
    "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "reverse", "merge", "residual",
    "dtype", "dropout", "variational_dropout", "recurrent_dropout", "candidate_dropout", "zero_masked_output", "update",
    "peephole",
)  # fmt: skip
"""The layers' options that a graph expresses without an attribute of the operator, or that have no effect in it."""

_MERGES = {"sum": "ReduceSum", "average": "ReduceMean", "mul": "ReduceProd"}

_OPERATORS = {"rnn": "rnn", "lstm": "lstm", "gru": "gru", "indrnn": "rnn"}
"""For each cell, the cell name of its ONNX operator; a cell whose units read only their own states is an RNN too."""

_DENSE = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid", "softmax": "Softmax"}


def to_onnx(layer: Layer, path: str | os.PathLike[str] | None = None) -> Any:
    """Convert a layer or a sequence model to an ONNX model, with one operator for each recurrent layer of a stack.

    Parameters
    ----------
    layer : Layer
        RNN, LSTM, GRU, IndRNN (as an RNN whose recurrent weights are diagonal), Dense, Embedding, LayerNorm, Dropout,
        or a Sequential of them; or a SequenceClassifier, SequenceTagger, SequenceRegressor or LanguageModel of these
        cells.
    path : path, optional
        Where to write the model too.

    Returns
    -------
    model : onnx.ModelProto
        A model of opset 17, for batches of any size and any number of steps. Its inputs are ``x``, shaped as in a call,
        int64 for tokens; with a recurrent layer ``lengths`` (B,) int32; and for a layer or a language model the initial
        state ``h``, with an LSTM also ``c``, (num_layers*D, B, hidden_size). Its outputs are ``y`` and the final state,
        ``h_n`` and ``c_n``. In a `Sequential` the names of states begin with the layer's number: ``1.h``.

        A sequence model starts from a zero state, and computes what `predict` does: from features in the units of the
        examples, in the time-major order of a call, and for a regressor to values in the units of the targets. For a
        classifier or tagger ``y`` are the logits, followed by ``probabilities``; the model's metadata have its
        ``classes`` as JSON, if `fit` has seen labels. Those of a language model have the ``symbols`` of its vocabulary.

    Raises
    ------
    ValueError
        ONNX has no such layer or option: the message names it. Or a model has no parameters because it was not fitted.
    TypeError
        ``layer`` is not a layer.
    ImportError
        onnx is not installed.

    Examples
    --------
    >>> import gpurnn
    >>> from gpurnn import interop
    >>> interop.to_onnx(gpurnn.LSTM(3, 4, num_layers=2), "lstm.onnx")  # doctest: +SKIP
    """
    where = "to_onnx"
    if not isinstance(layer, Layer):
        raise TypeError(f"{where}: layer is {_checks.described(layer)}, expected a Layer")
    onnx = installed(where, "onnx", "onnx")
    model = _Graph(where, onnx, layer).model()
    if path is not None:
        _checks.path(where, "path", path)
        _files.write_atomically(path, model.SerializeToString())
    return model


class _Graph:
    """The graph of a layer, while it is built."""

    def __init__(self, where: str, onnx: Any, layer: Layer) -> None:
        self.where, self.onnx, self.layer = where, onnx, layer
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.metadata: dict[str, str] = {}
        self.time: tuple[str, int] | None = None
        """A value, and the number of its time axis."""
        dtypes = layer._dtypes()
        self.dtype = np.dtype(dtypes[0] if dtypes else "float32")

    # ---- Values ----

    def node(self, kind: str, inputs: list[str], output: str = "", *more: str, **attributes: Any) -> str:
        """Add a node; return the name of its first output."""
        output = output or f"value_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output, *more], **attributes))
        return output

    def constant(self, name: str, array: Any) -> str:
        if name not in self.initializers:
            self.initializers[name] = self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def number(self, value: float) -> str:
        """A constant with the dtype of the parameters."""
        return self.constant(f"number_{value!r}", np.array(value, self.dtype))

    def whole(self, *values: int) -> str:
        return self.constant(f"whole_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def input(self, name: str, dtype: Any, shape: Any) -> str:
        if name not in [i.name for i in self.inputs]:
            self.inputs.append(self.info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, shape: Any) -> None:
        self.node("Identity", [value], name)
        self.outputs.append(self.info(name, self.dtype, shape))

    def info(self, name: str, dtype: Any, shape: Any) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def lengths(self) -> str:
        return self.input("lengths", np.int32, ["B"])

    def exists(self) -> str:
        """(T, B) bools: True at the steps that sequences have."""
        if "exists" not in [name for node in self.nodes for name in node.output]:
            value, axis = self.time or ("x", 0)
            zero, one, at = (self.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, 1, axis))
            count = self.node("Gather", [self.node("Shape", [value]), at])
            steps = self.node("Unsqueeze", [self.node("Range", [zero, count, one]), self.whole(1)])
            self.node("Less", [steps, self.long_lengths()], "exists")
        return "exists"

    def exists_by_feature(self) -> str:
        """`exists` with a last axis, (T, B, 1)."""
        return self.node("Unsqueeze", [self.exists(), self.whole(2)])

    def long_lengths(self) -> str:
        return self.node("Cast", [self.lengths()], to=self.onnx.TensorProto.INT64)

    def zero_past_the_end(self, x: str, *, tokens: bool, batch_first: bool = False) -> str:
        """Set x (T, B, ...) to zero past the lengths, where it may hold anything."""
        exists = self.exists() if tokens else self.exists_by_feature()
        if batch_first:
            exists = self.node("Transpose", [exists], perm=[1, 0] if tokens else [1, 0, 2])
        return self.node("Where", [exists, x, self.whole(0) if tokens else self.number(0.0)])

    # ---- Models ----

    def model(self) -> Any:
        from ..models import Forecaster, LanguageModel
        from ..models.sequence import SequenceModel

        layer = self.layer
        if isinstance(layer, SequenceModel) and not isinstance(layer, Forecaster):
            self.sequence_model(layer)
        elif isinstance(layer, LanguageModel):
            self.language_model(layer)
        else:
            self.alone(layer)
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "gpurnn", self.inputs, self.outputs, list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        helper.set_model_props(model, self.metadata)
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def alone(self, layer: Layer) -> None:
        """Convert a layer, or layers one after another."""
        parts = list(_parts(layer))
        recurrent = [part for part in parts if isinstance(part, Stacked)]
        first = parts[0] if parts else None
        tokens = isinstance(first, layers.Embedding)
        width, out = layer._widths(None)
        batch_first = bool(recurrent and recurrent[0].batch_first)
        steps: list[Any] = ["B", "T"] if batch_first else ["T", "B"]
        shape, of_outputs = steps if tokens else [*steps, width], [*steps, out]
        x = self.input("x", np.int64 if tokens else self.dtype, shape)
        self.time = x, int(batch_first)
        if recurrent and not isinstance(first, Stacked):
            x = self.zero_past_the_end(x, tokens=tokens, batch_first=batch_first)
        states: _States = []
        y = self.applied(layer, x, "", states)
        self.output(y, "y", of_outputs)
        for value, name, of_state in states:
            self.output(value, name, of_state)

    def sequence_model(self, model: Any) -> None:
        recurrent, learnt = model.recurrent, getattr(model, "_learnt", {})
        tokens, outputs = model.embedding is not None, model.output.out_features
        shape: list[Any] = ["T", "B"] if tokens else ["T", "B", recurrent.input_size]
        x = self.input("x", np.int64 if tokens else self.dtype, shape)
        self.time = x, 0
        if tokens:
            x = self.embedding(model.embedding, self.zero_past_the_end(x, tokens=True), "embedding.")
        elif "input_mean" in learnt:
            x = self.scaled(x, learnt)
        y = self.recurrent(recurrent, x, "recurrent.", None)
        shape = ["T", "B", outputs] if model.pooling is None else ["B", outputs]
        if model.pooling is not None:
            y = self.pooled(model.pooling, y)
        y = self.dense(model.output, y, "output.")
        if "mean" in learnt:
            std, mean = (self.constant(f"target_{n}", np.asarray(learnt[n], self.dtype)) for n in ("std", "mean"))
            y = self.node("Add", [self.node("Mul", [y, std]), mean])
        self.output(y, "y", shape)
        if model._loss == "cross_entropy":
            self.output(self.node("Softmax", [y], axis=-1), "probabilities", shape)
            if "labels" in learnt:
                self.metadata["classes"] = json.dumps(learnt["labels"].saved(self.where))

    def scaled(self, x: str, learnt: Mapping[str, Any]) -> str:
        """Scale features from the units of the examples, in float64, so that large values keep their digits."""
        proto = self.onnx.TensorProto
        mean, std = (self.constant(name, np.asarray(learnt[name], np.float64)) for name in ("input_mean", "input_std"))
        exact = self.node("Sub", [self.node("Cast", [x], to=proto.DOUBLE), mean])
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        return self.node("Cast", [self.node("Div", [exact, std])], to=kind)

    def language_model(self, model: Any) -> None:
        x = self.input("x", np.int64, ["T", "B"])
        self.time = x, 0
        x = self.embedding(model.embedding, self.zero_past_the_end(x, tokens=True), "embedding.")
        states: _States = []
        y = self.recurrent(model.recurrent, x, "recurrent.", states)
        weight = ("embedding.", model.embedding) if model.tied else ("output.", model.output)
        y = self.product(y, self.param(*weight, "weight"), self.param("output.", model.output, "bias"))
        self.output(y, "y", ["T", "B", model.output.out_features])
        for value, name, of_state in states:
            self.output(value, name, of_state)
        self.metadata["symbols"] = json.dumps(list(model.vocabulary.symbols))

    # ---- Layers ----

    def applied(self, layer: Layer, x: str, prefix: str, states: _States) -> str:
        """Return the output of a layer; add its final states' values, names and shapes to ``states``."""
        if isinstance(layer, layers.Sequential):
            for index, part in enumerate(layer.layers):
                x = self.applied(part, x, f"{prefix}{index}.", states)
            return x
        if isinstance(layer, Stacked) and layer.cell.name in _OPERATORS:
            return self.recurrent(layer, x, prefix, states, prefix)
        if isinstance(layer, layers.Dense):
            return self.dense(layer, x, prefix)
        if isinstance(layer, layers.Embedding):
            return self.embedding(layer, x, prefix)
        if isinstance(layer, layers.LayerNorm):
            names = [self.param(prefix, layer, name) for name in ("weight", "bias")[: 1 + layer.bias]]
            return self.node("LayerNormalization", [x, *names], axis=-1, epsilon=layer.eps)
        if isinstance(layer, layers.Dropout):
            return x
        raise self.unknown(layer, prefix)

    def unknown(self, layer: Any, prefix: str) -> ValueError:
        named = f"layer {prefix.removesuffix('.')}" if prefix else "layer"
        return ValueError(
            f"{self.where}: {named} is {_checks.described(layer)}, which cannot be written as ONNX, expected RNN, "
            "LSTM, GRU, IndRNN, Dense, Embedding, LayerNorm, Dropout, Sequential, SequenceClassifier, SequenceTagger, "
            "SequenceRegressor or LanguageModel"
        )

    def param(self, prefix: str, layer: Layer, name: str) -> str:
        return self.constant(prefix + name, _dispatch.to_numpy(layer.params[name]))

    def embedding(self, layer: layers.Embedding, tokens: str, prefix: str) -> str:
        return self.node("Gather", [self.param(prefix, layer, "weight"), tokens])

    def dense(self, layer: layers.Dense, x: str, prefix: str) -> str:
        bias = self.param(prefix, layer, "bias") if layer.bias else ""
        y = self.product(x, self.param(prefix, layer, "weight"), bias)
        attributes: dict[str, Any] = {"axis": -1} if layer.activation == "softmax" else {}
        return y if layer.activation == "identity" else self.node(_DENSE[layer.activation], [y], **attributes)

    def product(self, x: str, weight: str, bias: str = "") -> str:
        """W x + b, given the names of W and b."""
        y = self.node("MatMul", [x, self.node("Transpose", [weight], perm=[1, 0])])
        return self.node("Add", [y, bias]) if bias else y

    def pooled(self, pooling: Any, y: str) -> str:
        if pooling.name == "last":
            return self.last(pooling, y)
        if pooling.name == "mean":
            count = self.node("Max", [self.long_lengths(), self.whole(1)])
            kind = self.onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
            count = self.node("Unsqueeze", [self.node("Cast", [count], to=kind), self.whole(1)])
            return self.node("Div", [self.sum_over_time(y), count])
        keys = self.product(y, *(self.param("pooling.", pooling, name) for name in ("weight", "bias")))
        query = self.node("Unsqueeze", [self.param("pooling.", pooling, "query"), self.whole(1)])
        scores = self.node("MatMul", [self.node("Tanh", [keys]), query])
        exists = self.exists_by_feature()
        scores = self.node("Where", [exists, scores, self.number(float(np.finfo(self.dtype).min))])
        weights = self.node("Where", [exists, self.node("Softmax", [scores], axis=0), self.number(0.0)])
        return self.sum_over_time(self.node("Mul", [weights, y]))

    def sum_over_time(self, values: str) -> str:
        return self.node("ReduceSum", [values, self.whole(0)], keepdims=0)

    def last(self, pooling: Any, y: str) -> str:
        """The forward direction at the last step, and the backward direction at the first; y is zero past a length."""
        backward = ""
        if pooling.bidirectional:
            forward, backward = (f"{way}_outputs" for way in ("forward", "backward"))
            y = self.node("Split", [y], forward, backward, axis=2)
        step = self.node("Max", [self.node("Sub", [self.long_lengths(), self.whole(1)]), self.whole(0)])
        step = self.node("Unsqueeze", [step, self.whole(1)])
        y = self.node("GatherND", [self.node("Transpose", [y], perm=[1, 0, 2]), step], batch_dims=1)
        if not backward:
            return y
        first = self.node("Gather", [backward, self.constant("scalar_0", np.array(0, np.int64))])
        return self.node("Concat", [y, first], axis=1)

    def recurrent(self, layer: Stacked, x: str, prefix: str, states: _States | None, of_states: str = "") -> str:
        """Return y. Without ``states`` the initial state is zero; otherwise the final states are added to them.

        The names of states begin with ``of_states``.
        """
        if layer.cell.name not in _OPERATORS:
            raise self.unknown(layer, prefix)
        D, L, H = layer.num_directions, layer.num_layers, layer.hidden_size
        attributes, lengths, params = self.attributes(layer), self.lengths(), layer.state_dict()
        names = ["h", "c"][: layer.cell.states] if states is not None else []
        of_state = [L * D, "B", H]
        initial = [self.split(self.input(of_states + name, self.dtype, of_state), L, D) for name in names]
        if layer.batch_first:
            x = self.node("Transpose", [x], perm=[1, 0, 2])
        finals: list[list[str]] = [[] for _ in names]
        for number in range(L):
            W, R, B, P = self.weights(layer, number, params, prefix)
            of_layer = [parts[number] for parts in initial] or [""] * layer.cell.states
            inputs = [x, W, R, B, lengths, *of_layer, P]
            while not inputs[-1]:
                inputs.pop()
            name = f"{prefix}layer_{number}"
            last = [f"{name}.{state}_n" for state in names]
            outputs = self.node(
                _OPERATORS[layer.cell.name].upper(), inputs, f"{name}.Y", *last, name=name, **attributes
            )
            for found, value in zip(finals, last, strict=True):
                found.append(value)
            y = self.merged(layer, outputs)
            if layer.residual and (layer.input_size if number == 0 else layer.output_size) == layer.output_size:
                y = self.node("Add", [y, self.zero_past_the_end(x, tokens=False) if number == 0 else x])
            x = y
        if states is not None:
            for name, values in zip(names, finals, strict=True):
                value = self.node("Concat", values, axis=0) if L > 1 else values[0]
                # For a sequence without steps, ONNX Runtime returns zeros.
                some = self.node("Greater", [lengths, self.constant("no_steps", np.array(0, np.int32))])
                stepped = self.node("Unsqueeze", [some, self.whole(1)])
                value = self.node("Where", [stepped, value, of_states + name])
                states.append((value, f"{of_states}{name}_n", of_state))
        return self.node("Transpose", [x], perm=[1, 0, 2]) if layer.batch_first else x

    def split(self, state: str, num_layers: int, directions: int) -> list[str]:
        """Split a state (num_layers*D, B, H) into the states of the layers."""
        if num_layers == 1:
            return [state]
        parts = [f"{state}_{number}" for number in range(num_layers)]
        self.node("Split", [state, self.whole(*[directions] * num_layers)], *parts, axis=0)
        return parts

    def merged(self, layer: Stacked, y: str) -> str:
        """Merge outputs (T, D, B, H) to (T, B, output_size)."""
        if not layer.bidirectional:
            return self.node("Squeeze", [y, self.whole(1)])
        if layer.merge == "concat":
            y = self.node("Transpose", [y], perm=[0, 2, 1, 3])
            return self.node("Reshape", [y, self.whole(0, 0, layer.output_size)])
        if layer.merge == "sum":
            return self.node("ReduceSum", [y, self.whole(1)], keepdims=0)
        return self.node(_MERGES[layer.merge], [y], axes=[1], keepdims=0)

    def attributes(self, layer: Stacked) -> dict[str, Any]:
        """The attributes of the operator; reject options that it lacks."""
        cell: Any = layer.cell
        D, usual = layer.num_directions, FUNCTIONS[_OPERATORS[layer.cell.name]]
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
        known = _checks.signature(type(layer)).parameters
        for option, value in layer.config().items():
            if option == "reset_after":
                attributes["linear_before_reset"] = int(value)
            elif option == "clip":
                attributes |= {} if value is None else {"clip": value}
            elif option == "coupled":
                attributes["input_forget"] = int(value)
            elif option not in (*_ALIKE, *usual) and not is_default(known[option], value):
                raise ValueError(
                    f"{self.where}: {option} is {value!r}, expected {known[option].default!r}: ONNX has no such "
                    "attribute"
                )
        if getattr(cell, "update", "state") == "candidate" and not _is_odd(cell.gate_activation):
            raise ValueError(
                f"{self.where}: update is 'candidate' and gate_activation {cell.gate_activation!r}, expected "
                "update='state' with that: ONNX has no such attribute"
            )
        return attributes

    def weights(
        self, layer: Stacked, number: int, params: Mapping[str, NDArray[Any]], prefix: str
    ) -> tuple[str, str, str, str]:
        """The names of a layer's W, R, B and P; B and P are empty if the layer has none."""
        cell, hidden, (theirs, ours) = layer.cell, layer.hidden_size, GATES[_OPERATORS[layer.cell.name]]
        coupled, candidate = getattr(cell, "coupled", False), getattr(cell, "update", "state") == "candidate"

        def ordered(name: str, suffix: str) -> NDArray[Any]:
            array = params.get(name + suffix, np.zeros(hidden, self.dtype))  # an IndRNN has one bias
            if name == "weight_hh" and array.ndim == 1:
                array = np.diag(array)
            if coupled:  # ONNX has rows for f, but does not read them
                array = np.concatenate([array[:hidden], np.zeros_like(array[:hidden]), array[hidden:]])
            blocks = reordered(array, ours, theirs)
            if candidate:  # gpurnn's z is one minus ONNX's
                blocks[:hidden] *= -1
            return blocks

        def stacked(symbol: str, *names: str) -> str:
            directions = [
                np.concatenate([ordered(name, suffix) for name in names]) for suffix in layer._suffixes(number)
            ]
            return self.constant(f"{prefix}{symbol}_{number}", np.stack(directions))

        B = stacked("B", "bias_ih", "bias_hh") if layer.bias else ""
        P = ""
        if getattr(cell, "peephole", False):
            none = np.zeros(hidden, self.dtype)
            rows = [
                np.concatenate([params.get(f"peephole_{gate}{suffix}", none) for gate in "iof"])
                for suffix in layer._suffixes(number)
            ]
            P = self.constant(f"{prefix}P_{number}", np.stack(rows))
        return stacked("W", "weight_ih"), stacked("R", "weight_hh"), B, P


def _parts(layer: Layer) -> Iterator[Layer]:
    """The layers that a `Sequential` runs, including nested ones; any other layer is its own part."""
    for part in layer.layers if isinstance(layer, layers.Sequential) else ():
        yield from _parts(part)
    if not isinstance(layer, layers.Sequential):
        yield layer


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
