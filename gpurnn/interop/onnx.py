"""Weights of ONNX."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _files
from ..layers.base import Layer
from ..layers.recurrent import Recurrent
from .weights import installed, is_default, made, reordered

GATES = {"rnn": ("h", "h"), "lstm": ("iofg", "ifgo"), "gru": ("zrn", "rzn")}
"""By cell, the order of the gates in ONNX and here."""

_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}
_KNOWN = (
    "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "dtype", "dropout",
    "variational_dropout", "recurrent_dropout", "candidate_dropout", "clip", "coupled", "update", "peephole",
)  # fmt: skip
"""The options that an operator has, or that have no effect in it."""


def from_onnx(source: Any, name: str | None = None) -> Any:
    """The layer of an RNN, LSTM or GRU operator in an ONNX model.

    Parameters
    ----------
    source : onnx.ModelProto, bytes or path
        The weights of the operator are initializers or constants of the model.
    name : str, optional
        The name of the operator, or of its first weight or output; it may be left out where there is one such operator.

    Returns
    -------
    layer : RNN, LSTM or GRU
        Of one layer, in one direction or both. A GRU has ``update="state"``, and ``reset_after`` is ONNX's
        ``linear_before_reset``. ``layout=1`` is ``batch_first=True``.

    Raises
    ------
    ValueError, KeyError
        There is no such operator, or its weights do not fit each other or are not in the model.
    NotImplementedError
        gpurnn has no layer with an attribute of the operator.
    FileFormatError, OSError
        The file is no ONNX model, or cannot be read.
    ImportError
        onnx is not installed.
    """
    where = "from_onnx"
    onnx = installed(where, "onnx", "onnx")
    model = _model(where, onnx, source)
    nodes = [node for node in model.graph.node if node.op_type in _DEFAULTS and node.domain in ("", "ai.onnx")]
    chosen = [n for n in nodes if name is None or name in (n.name, *n.output, *n.input)]
    if len(chosen) != 1:
        named = sorted(n.name or n.output[0] or n.input[1] for n in nodes)
        if name is not None and not chosen:
            raise KeyError(f"{where}: source has no recurrent operator {name!r}, expected one of {named}")
        raise ValueError(f"{where}: source has the recurrent operators {named}, expected one, or its name")
    node = chosen[0]
    weights = _constants(onnx, model)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    kind = node.op_type.lower()
    inputs = dict(zip(("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"), node.input, strict=False))
    arrays = {}
    for symbol in ("W", "R", "B", "P"):
        if inputs.get(symbol):
            if inputs[symbol] not in weights:
                raise ValueError(f"{where}: {inputs[symbol]} is computed by the model, expected a constant")
            arrays[symbol] = np.array(weights[inputs[symbol]])
    return _made(where, kind, attributes, arrays)


def _model(where: str, onnx: Any, source: Any) -> Any:
    if hasattr(source, "graph"):
        return source
    if isinstance(source, bytes):
        content, path = source, "source"
    else:
        _checks.path(where, "source", source)
        path = os.fspath(source)
        with open(source, "rb") as file:
            content = file.read()
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf has errors of its own
        raise _files.FileFormatError(f"{path}: no ONNX model: {_files.reason(error)}") from error


def _constants(onnx: Any, model: Any) -> dict[str, NDArray[Any]]:
    found = {}
    for tensor in model.graph.initializer:
        found[tensor.name] = tensor
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
    return _Lazily(onnx, found)


class _Lazily(dict):  # type: ignore[type-arg]
    """Tensors of a model, made arrays of when they are asked for. Data outside of the model is rejected."""

    def __init__(self, onnx: Any, tensors: dict[str, Any]) -> None:
        super().__init__(tensors)
        self._onnx = onnx

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = super().__getitem__(name)
        if tensor.data_location == self._onnx.TensorProto.EXTERNAL:
            raise ValueError(f"from_onnx: {name} is in a file of its own, expected weights in the model")
        try:
            array: NDArray[Any] = self._onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise ValueError(f"from_onnx: {name} is damaged: {_files.reason(error)}") from error
        return array


def _made(where: str, kind: str, attributes: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Recurrent:
    for symbol in ("W", "R"):
        if symbol not in arrays:
            raise ValueError(f"{where}: {symbol} is missing, expected the weights of the operator")
        _checks.ndim(where, symbol, arrays[symbol], 3, "(directions, gates*hidden_size, ...)")
    W, R, B, P = arrays["W"], arrays["R"], arrays.get("B"), arrays.get("P")
    D, hidden = W.shape[0], R.shape[2]
    direction = _text(attributes.get("direction", "forward"))
    if direction == "reverse":
        raise NotImplementedError(
            f"{where}: direction is 'reverse', expected 'forward' or 'bidirectional'; reverse the input"
        )
    if 1 + (direction == "bidirectional") != D:
        raise ValueError(f"{where}: W has shape {W.shape}, expected {1 + (direction == 'bidirectional')} directions")
    theirs, ours = GATES[kind]
    rows = len(theirs) * hidden
    _checks.shape(where, "W", W, (D, rows, W.shape[2]), "(directions, gates*hidden_size, input_size)")
    _checks.shape(where, "R", R, (D, rows, hidden), "(directions, gates*hidden_size, hidden_size)")
    if B is not None:
        _checks.shape(where, "B", B, (D, 2 * rows), "(directions, 2*gates*hidden_size)")
    arguments: dict[str, Any] = {
        "input_size": W.shape[2], "hidden_size": hidden, "bias": B is not None, "bidirectional": D == 2,
        "batch_first": bool(attributes.get("layout", 0)), **_options(where, kind, attributes, D),
    }  # fmt: skip
    if P is not None:
        arguments["peephole"] = True
    coupled = bool(arguments.get("coupled"))
    params = {}

    def ordered(array: NDArray[Any]) -> NDArray[Any]:
        rows = reordered(array, theirs, ours)
        return np.delete(rows, np.s_[hidden : 2 * hidden], axis=0) if coupled else rows  # f is one minus i

    for d, suffix in zip(range(D), ("_l0", "_l0_reverse"), strict=False):
        params["weight_ih" + suffix] = ordered(W[d])
        params["weight_hh" + suffix] = ordered(R[d])
        if B is not None:
            for name, bias in zip(("bias_ih", "bias_hh"), np.split(B[d], 2), strict=True):
                params[name + suffix] = ordered(bias)
        if P is not None:
            _checks.shape(where, "P", P, (D, 3 * hidden), "(directions, 3*hidden_size)")
            for gate, peephole in zip("iof", np.split(P[d], 3), strict=True):
                if not (coupled and gate == "f"):
                    params[f"peephole_{gate}{suffix}"] = peephole
    layer: Recurrent = made(where, kind, arguments, params)
    return layer


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _options(where: str, kind: str, attributes: dict[str, Any], directions: int) -> dict[str, Any]:
    """The options of a layer from the attributes of an operator."""
    options: dict[str, Any] = {}
    usual = _DEFAULTS[kind.upper()] * directions
    activations = [_text(a) for a in attributes.get("activations", [])] or usual
    each = len(activations) // directions
    if activations[:each] != activations[each:] and directions == 2:
        raise NotImplementedError(f"{where}: activations is {activations}, expected those of one direction twice")
    if activations != usual or "activation_alpha" in attributes or "activation_beta" in attributes:
        named = _activations(where, activations[:each], attributes)
        names = {"rnn": ("activation",), "gru": ("gate_activation", "activation"),
                 "lstm": ("gate_activation", "activation", "output_activation")}[kind]  # fmt: skip
        default = {"gate_activation": "sigmoid", "activation": "tanh", "output_activation": "tanh"}
        options |= {n: a for n, a in zip(names, named, strict=True) if a != default[n]}
    if "clip" in attributes:
        options["clip"] = float(attributes["clip"])
    if attributes.get("input_forget"):
        options["coupled"] = True
    if kind == "gru":
        options |= {"reset_after": bool(attributes.get("linear_before_reset", 0)), "update": "state"}
    return options


def _activations(where: str, names: list[str], attributes: dict[str, Any]) -> list[Any]:
    """Activations as gpurnn names them. Each takes its alpha and beta from the lists in turn, where it has them."""
    takes = {"affine": 2, "leakyrelu": 1, "thresholdedrelu": 1, "scaledtanh": 2, "hardsigmoid": 2, "elu": 1}
    ours = {"leakyrelu": "leaky_relu", "thresholdedrelu": "thresholded_relu", "scaledtanh": "scaled_tanh",
            "hardsigmoid": "hard_sigmoid"}  # fmt: skip
    defaults = {"affine": (1.0, 0.0), "leakyrelu": (0.01,), "thresholdedrelu": (1.0,), "scaledtanh": (1.0, 1.0),
                "hardsigmoid": (0.2, 0.5), "elu": (1.0,)}  # fmt: skip
    alphas, betas = (list(attributes.get(f"activation_{n}", [])) for n in ("alpha", "beta"))
    found: list[Any] = []
    for name in names:
        key = name.lower()
        if key in takes:
            numbers = [alphas.pop(0) if alphas else defaults[key][0]]
            if takes[key] == 2:
                numbers.append(betas.pop(0) if betas else defaults[key][1])
            found.append((ours.get(key, key), *map(float, numbers)))
        elif key in ("tanh", "relu", "sigmoid", "softsign", "softplus"):
            found.append(key)
        else:
            raise ValueError(f"{where}: activations has {name!r}, expected one of ONNX's")
    return found


def to_onnx(layer: Layer, path: str | os.PathLike[str] | None = None) -> Any:
    """A recurrent layer as an ONNX model, one operator for each layer of the stack.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
    path : path, optional
        Where the model is also written.

    Returns
    -------
    model : onnx.ModelProto
        Inputs ``x``, shaped as the layer takes it, ``lengths`` (B,) int32 and the initial state ``h``, with an LSTM
        ``c``, (num_layers*D, B, hidden_size). Outputs ``y`` and the final state, ``h_n`` and ``c_n``. Opset 17.

    Raises
    ------
    ValueError
        ONNX has no such operator: the message names the option.
    ImportError
        onnx is not installed.
    """
    where = "to_onnx"
    onnx = installed(where, "onnx", "onnx")
    if not isinstance(layer, Recurrent):
        raise ValueError(f"{where}: layer is {_checks.described(layer)}, expected an RNN, an LSTM or a GRU")
    model = _Graph(where, onnx, layer).model()
    if path is not None:
        _checks.path(where, "path", path)
        _files.write_atomically(path, model.SerializeToString())
    return model


class _Graph:
    """The graph of a recurrent layer."""

    def __init__(self, where: str, onnx: Any, layer: Recurrent) -> None:
        self.where, self.onnx, self.layer = where, onnx, layer
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, list(outputs), **attributes))
        return outputs[0]

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.initializers.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def attributes(self) -> dict[str, Any]:
        layer, D = self.layer, self.layer.num_directions
        attributes: dict[str, Any] = {
            "hidden_size": layer.hidden_size,
            "direction": ("forward", "bidirectional")[D - 1],
        }
        known = _checks.signature(type(layer)).parameters
        activations = list(_DEFAULTS[layer.cell.name.upper()])
        places = {"rnn": ("activation",), "gru": ("gate_activation", "activation"),
                  "lstm": ("gate_activation", "activation", "output_activation")}[layer.cell.name]  # fmt: skip
        alphas: list[float] = []
        betas: list[float] = []
        for place, option in enumerate(places):
            if option in known:
                activations[place] = self.activation(option, layer._argument(option), alphas, betas)
        if activations != _DEFAULTS[layer.cell.name.upper()] or alphas:
            attributes["activations"] = activations * D
            if alphas:
                attributes["activation_alpha"] = alphas * D
            if betas:
                attributes["activation_beta"] = betas * D
        for option, value in layer.config().items():
            if option == "reset_after":
                attributes["linear_before_reset"] = int(value)
            elif option == "clip" and value is not None:
                attributes["clip"] = float(value)
            elif option == "coupled" and value:
                attributes["input_forget"] = 1
            elif option not in (*_KNOWN, *places) and not is_default(known[option], value):
                raise ValueError(
                    f"{self.where}: {option} is {value!r}, expected {known[option].default!r}: ONNX has no such "
                    "attribute"
                )
        return attributes

    def activation(self, option: str, value: Any, alphas: list[float], betas: list[float]) -> str:
        name, *numbers = value if isinstance(value, tuple) else (value,)
        if name == "identity":
            name, numbers = "affine", [1.0, 0.0]
        alphas += numbers[:1]
        betas += numbers[1:]
        return "".join(part.capitalize() for part in str(name).split("_"))

    def model(self) -> Any:
        onnx, layer = self.onnx, self.layer
        kind, D, L, H = type(layer).__name__, layer.num_directions, layer.num_layers, layer.hidden_size
        attributes = self.attributes()
        params = self.layer.state_dict()
        float_type = getattr(onnx.TensorProto, {"float32": "FLOAT", "float64": "DOUBLE"}[layer._dtypes()[0]])
        x = "x"
        if layer.batch_first:
            x = self.node("Transpose", ["x"], "x_by_time", perm=[1, 0, 2])
        states = ["h", "c"][: layer.cell.states]
        parts = {}
        for state in states:
            parts[state] = [f"{state}_{number}" for number in range(L)]
            self.node("Split", [state, self.constant(f"{state}_sizes", np.full(L, D))], *parts[state], axis=0)
        for number in range(L):
            W, R, B, P = self.weights(number, params)
            outputs = [f"y_{number}", *(f"{state}_n_{number}" for state in states)]
            inputs = [x, W, R, B, "lengths", *(parts[state][number] for state in states), P]
            while not inputs[-1]:
                inputs.pop()
            self.nodes.append(onnx.helper.make_node(kind, inputs, outputs, name=f"layer_{number}", **attributes))
            # From (T, D, B, H) to (T, B, D*H).
            turned = self.node("Transpose", [outputs[0]], f"y_{number}_by_row", perm=[0, 2, 1, 3])
            if f"shape_{D}" not in [i.name for i in self.initializers]:
                self.constant(f"shape_{D}", np.array([0, 0, D * H]))
            x = self.node("Reshape", [turned, f"shape_{D}"], f"x_{number + 1}")
        if layer.batch_first:
            self.node("Transpose", [x], "y", perm=[1, 0, 2])
        else:
            self.node("Identity", [x], "y")
        for state in states:
            self.node("Concat", [f"{state}_n_{number}" for number in range(L)], f"{state}_n", axis=0)
        info, time = onnx.helper.make_tensor_value_info, ["B", "T"] if layer.batch_first else ["T", "B"]
        of_state = [L * D, "B", H]
        graph = onnx.helper.make_graph(
            self.nodes, "gpurnn",
            [info("x", float_type, [*time, layer.input_size]), info("lengths", onnx.TensorProto.INT32, ["B"]),
             *(info(state, float_type, of_state) for state in states)],
            [info("y", float_type, [*time, D * H]), *(info(f"{state}_n", float_type, of_state) for state in states)],
            self.initializers,
        )  # fmt: skip
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model

    def weights(self, number: int, params: dict[str, NDArray[Any]]) -> tuple[str, str, str, str]:
        """The names of W, R, B and P of a layer; B and P are empty where there are none."""
        layer, (theirs, ours) = self.layer, GATES[self.layer.cell.name]
        if getattr(layer.cell, "update", "state") == "candidate":  # its z is one minus ONNX's
            params = {name: self.negated(array) for name, array in params.items()}

        coupled, hidden = getattr(layer.cell, "coupled", False), layer.hidden_size

        def ordered(array: NDArray[Any]) -> NDArray[Any]:
            if coupled:  # ONNX has rows of f, and does not read them
                array = np.concatenate([array[:hidden], np.zeros_like(array[:hidden]), array[hidden:]])
            return reordered(array, ours, theirs)

        def stacked(symbol: str, *names: str) -> str:
            directions = [
                np.concatenate([ordered(params[name + suffix]) for name in names]) for suffix in layer._suffixes(number)
            ]
            return self.constant(f"{symbol}_{number}", np.stack(directions))

        B = stacked("B", "bias_ih", "bias_hh") if layer.bias else ""
        P = ""
        if getattr(layer.cell, "peephole", False):
            none = np.zeros(hidden, params[f"weight_hh_l{number}"].dtype)
            rows = [
                np.concatenate([params.get(f"peephole_{gate}{suffix}", none) for gate in "iof"])
                for suffix in layer._suffixes(number)
            ]
            P = self.constant(f"P_{number}", np.stack(rows))
        return stacked("W", "weight_ih"), stacked("R", "weight_hh"), B, P

    def negated(self, array: NDArray[Any]) -> NDArray[Any]:
        hidden = self.layer.hidden_size
        made = array.copy()
        made[hidden : 2 * hidden] *= -1
        return made
