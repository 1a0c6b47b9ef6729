"""The recurrent operators of ONNX: convert them to gpurnn's layers, and run them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _files, functional
from .weights import installed, made, reordered

GATES = {"rnn": ("h", "h"), "lstm": ("iofg", "ifgo"), "gru": ("zrn", "rzn")}
"""For each cell, the order of the gates in ONNX and in gpurnn."""

FUNCTIONS = {
    "rnn": {"activation": "Tanh"},
    "lstm": {"gate_activation": "Sigmoid", "activation": "Tanh", "output_activation": "Tanh"},
    "gru": {"gate_activation": "Sigmoid", "activation": "Tanh"},
}
"""For each cell, the options that are activations, in the operator's order, with the operator's defaults."""

OPERATORS = tuple(cell.upper() for cell in GATES)

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
"""The inputs of an operator, in order; RNN and GRU have only the first six."""

WEIGHTS = ("W", "R", "B", "P")

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""For each value of the attribute ``direction``, whether each direction runs backward in time."""

_NUMBERS: dict[str, tuple[float, ...]] = {
    "affine": (1.0, 0.0), "leaky_relu": (0.01,), "thresholded_relu": (1.0,), "scaled_tanh": (1.0, 1.0),
    "hard_sigmoid": (0.2, 0.5), "elu": (1.0,),
}  # fmt: skip
"""The defaults of alpha and beta for ONNX's activations."""

_ACTIVATIONS = {name.replace("_", ""): name for name in (*_NUMBERS, "tanh", "relu", "sigmoid", "softsign", "softplus")}
"""Activations by ONNX's names in lower case: ONNX ignores case."""

_KINDS: dict[str, tuple[Any, str]] = {
    "direction": (str, "a string"), "activations": (list, "a list of strings"),
    "activation_alpha": (list, "a list of numbers"), "activation_beta": (list, "a list of numbers"),
    "clip": (Real, "a number"), "hidden_size": (Integral, "a whole number"),
    "input_forget": (Integral, "a whole number"), "linear_before_reset": (Integral, "a whole number"),
    "layout": (Integral, "a whole number"),
}  # fmt: skip
"""The attributes of an operator, with their types."""


class Direction(NamedTuple):
    """One direction of an operator, in the form of gpurnn's functions."""

    params: dict[str, NDArray[Any]]
    """The weights, by the names of the cell's parameters."""
    options: dict[str, Any]
    reverse: bool


class Operator(NamedTuple):
    """An RNN, LSTM or GRU operator of ONNX with its weights, in gpurnn's terms."""

    cell: str
    directions: tuple[Direction, ...]
    batch_first: bool


def from_onnx(source: Any, name: str | None = None) -> Any:
    """Make the layer of an RNN, LSTM or GRU operator in an ONNX model.

    Parameters
    ----------
    source : onnx.ModelProto, bytes or path
        The model. The weights of the operator must be initializers or constants of it.
    name : str, optional
        The name of the operator, or of one of its inputs or outputs. It may be left out if there is one such operator.

    Returns
    -------
    layer : RNN, LSTM or GRU
        It has one layer, in the operator's direction. A GRU has ``update="state"``, and ``reset_after`` is ONNX's
        ``linear_before_reset``. ``layout=1`` is ``batch_first=True``. Weights of 16 bits become 32 bits.

    Raises
    ------
    ValueError, TypeError, KeyError
        There is no such operator, or its weights or attributes do not fit each other or are not in the model.
    NotImplementedError
        gpurnn has no layer with an attribute of the operator.
    FileFormatError, OSError
        The file is not an ONNX model, or cannot be read.
    ImportError
        onnx is not installed.
    """
    where = "from_onnx"
    onnx = installed(where, "onnx", "onnx")
    model = _model(where, onnx, source)
    nodes = [node for node in model.graph.node if node.op_type in OPERATORS and node.domain in ("", "ai.onnx")]
    chosen = [n for n in nodes if name is None or name in (n.name, *n.output, *n.input)]
    if len(chosen) != 1:
        named = sorted(next(filter(None, (n.name, *n.output, *n.input)), "") for n in nodes)[:20]
        if name is not None and not chosen:
            raise KeyError(f"{where}: source has no recurrent operator {name!r}, expected one of {named}")
        raise ValueError(f"{where}: source has the recurrent operators {named}, expected one, or its name")
    node = chosen[0]
    tensors = _tensors(model)
    arrays = {}
    for symbol, given in zip(INPUTS, node.input, strict=False):
        if symbol in WEIGHTS and given:
            if given not in tensors:
                raise ValueError(f"{where}: {given} is computed by the model, expected a constant")
            arrays[symbol] = _array(where, onnx, given, tensors[given])
    operator = read_operator(where, node.op_type, _attributes(where, onnx, node), arrays)
    first, *others = operator.directions
    if any(other.options != first.options for other in others):
        raise NotImplementedError(f"{where}: the directions have different activations, expected the same ones in both")
    w_ih, w_hh = first.params["weight_ih"], first.params["weight_hh"]
    arguments = {
        "input_size": w_ih.shape[1], "hidden_size": w_hh.shape[1], "bias": "bias_ih" in first.params,
        "bidirectional": bool(others), "batch_first": operator.batch_first, "reverse": first.reverse, **first.options,
        **({"peephole": True} if "P" in arrays else {}),
    }  # fmt: skip
    params = {
        name + suffix: array
        for direction, suffix in zip(operator.directions, ("_l0", "_l0_reverse"), strict=False)
        for name, array in direction.params.items()
    }
    return made(where, operator.cell, arguments, params)


def _model(where: str, onnx: Any, source: Any) -> Any:
    if hasattr(source, "graph"):
        return source
    if isinstance(source, bytes):
        content, path = source, "source"
    else:
        _checks.path(where, "source", source)
        path = os.fspath(source)
        with _files.open_regular(source) as file:
            content = file.read()
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf raises its own errors
        raise _files.FileFormatError(f"{path}: no ONNX model: {_files.reason(error)}") from error


def _tensors(model: Any) -> dict[str, Any]:
    """The constants of a model by name, as tensors that are not converted to arrays yet."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            found |= dict(zip(node.output, values, strict=False))
    return found


def _array(where: str, onnx: Any, name: str, tensor: Any) -> NDArray[Any]:
    """Convert a tensor to an array; reject data outside of the model."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(f"{where}: {name} is in a file of its own, expected weights in the model")
    try:
        array: NDArray[Any] = np.array(onnx.numpy_helper.to_array(tensor))
    except Exception as error:  # a damaged tensor can make NumPy raise any error
        raise ValueError(f"{where}: {name} is damaged: {_files.reason(error)}") from error
    return array


def _attributes(where: str, onnx: Any, node: Any) -> dict[str, Any]:
    found = {}
    for attribute in node.attribute:
        if attribute.name in _KINDS:
            try:
                found[attribute.name] = onnx.helper.get_attribute_value(attribute)
            except ValueError as error:
                raise ValueError(f"{where}: {attribute.name} has no value: {_files.reason(error)}") from error
    return found


# ---- The operator ----------------------------------------------------------------------------------------------------


def read_operator(
    where: str, op_type: str, attributes: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> Operator:
    """Make an operator from its attributes and weights.

    Parameters
    ----------
    where : str
        The caller's public name, for messages.
    op_type : {"RNN", "LSTM", "GRU"}
    attributes : dict
        The values by name, None for a missing one. Names that the operators do not have are ignored.
    arrays : dict of str to array
        W and R, and B and P if they are given.

    Raises
    ------
    ValueError, TypeError
        Attributes and weights do not fit each other.
    """
    cell = op_type.lower()
    given = {n: _attribute(where, n, v) for n, v in attributes.items() if n in _KINDS and v is not None}
    for symbol in ("W", "R"):
        if symbol not in arrays:
            raise ValueError(f"{where}: {symbol} is missing, expected the weights of the operator")
        _checks.ndim(where, symbol, arrays[symbol], 3, "(directions, gates*hidden_size, ...)")
    arrays = {symbol: wide(array) for symbol, array in arrays.items()}
    W, R, B, P = arrays["W"], arrays["R"], arrays.get("B"), arrays.get("P")
    backwards = _DIRECTIONS[_checks.choice(where, "direction", given.get("direction", "forward"), tuple(_DIRECTIONS))]
    D, hidden = len(backwards), R.shape[2]
    theirs, ours = GATES[cell]
    rows = len(theirs) * hidden
    _checks.shape(where, "W", W, (D, rows, W.shape[2]), "(directions, gates*hidden_size, input_size)")
    _checks.shape(where, "R", R, (D, rows, hidden), "(directions, gates*hidden_size, hidden_size)")
    if B is not None:
        _checks.shape(where, "B", B, (D, 2 * rows), "(directions, 2*gates*hidden_size)")
    if P is not None:
        if cell != "lstm":
            raise ValueError(f"{where}: P is given, expected the peepholes of an LSTM alone")
        _checks.shape(where, "P", P, (D, 3 * hidden), "(directions, 3*hidden_size)")
    if given.get("hidden_size", hidden) != hidden:
        raise ValueError(f"{where}: hidden_size is {given['hidden_size']}, expected {hidden}, as R has")
    if given.get("layout", 0) not in (0, 1):
        raise ValueError(f"{where}: layout is {given['layout']}, expected 0 or 1")
    shared: dict[str, Any] = {"clip": float(given["clip"]) if "clip" in given else None}
    if cell == "lstm":
        shared["coupled"] = bool(given.get("input_forget", 0))
    elif cell == "gru":
        shared |= {"reset_after": bool(given.get("linear_before_reset", 0)), "update": "state"}
    kept = [gate for gate in ours if not (shared.get("coupled") and gate == "f")]  # a coupled f is one minus i
    directions = []
    for d, activations in enumerate(_activations(where, cell, D, given)):
        params = {"weight_ih": reordered(W[d], theirs, kept), "weight_hh": reordered(R[d], theirs, kept)}
        if B is not None:
            params |= {
                name: reordered(bias, theirs, kept)
                for name, bias in zip(("bias_ih", "bias_hh"), np.split(B[d], 2), strict=True)
            }
        if P is not None:
            peepholes = zip("iof", np.split(P[d], 3), strict=True)
            params |= {f"peephole_{gate}": weights for gate, weights in peepholes if gate in kept}
        directions.append(Direction(params, {**activations, **shared}, backwards[d]))
    return Operator(cell, tuple(directions), bool(given.get("layout", 0)))


def wide(array: NDArray[Any]) -> NDArray[Any]:
    """Convert floats of 16 bits to 32 bits, which represent them exactly; return other arrays as they are."""
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _attribute(where: str, name: str, value: Any) -> Any:
    kind, expected = _KINDS[name]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    fits = isinstance(value, kind)
    if kind is list and isinstance(value, (list, tuple)):
        value = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in value]
        fits = all(isinstance(v, str if name == "activations" else Real) for v in value)
    if not fits:
        raise TypeError(f"{where}: {name} is {_checks.described(value)}, expected {expected}")
    return value


def _activations(where: str, cell: str, directions: int, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The activations of each direction by option; those with alpha and beta take them in turn from the lists."""
    options = FUNCTIONS[cell]
    named = given.get("activations") or [*options.values()] * directions
    if cell == "rnn" and len(named) == 2:  # the operator's default, even for one direction
        named = named[:directions]
    if len(named) != len(options) * directions:
        raise ValueError(f"{where}: activations has {len(named)} names, expected {len(options) * directions}")
    numbers = [iter(given.get(f"activation_{which}", ())) for which in ("alpha", "beta")]
    functions: list[Any] = []
    for name in named:
        ours = _ACTIVATIONS.get(name.lower())
        if ours is None:
            raise ValueError(f"{where}: activations has {name!r}, expected one of ONNX's")
        own = [float(next(of, usual)) for of, usual in zip(numbers, _NUMBERS.get(ours, ()), strict=False)]
        functions.append((ours, *own) if own else ours)
    each = len(options)
    return [dict(zip(options, functions[d * each : (d + 1) * each], strict=True)) for d in range(directions)]


def run_operator(
    where: str, operator: Operator, x: NDArray[Any], lengths: Any = None, *states: NDArray[Any] | None
) -> tuple[NDArray[Any], ...]:
    """Run an operator; return Y, Y_h and, for an LSTM, Y_c, with the dtype of x.

    Parameters
    ----------
    operator : Operator
    x : (T, B, input_size) array
        (B, T, input_size) with ``layout=1``.
    lengths : (B,) integer array, optional
        ``sequence_lens``.
    *states : array, optional
        ``initial_h`` and ``initial_c``, (directions, B, hidden_size), with ``layout=1`` (B, directions, hidden_size).
    """
    _checks.ndim(
        where,
        "X",
        x,
        3,
        "(batch_size, seq_length, input_size)" if operator.batch_first else "(seq_length, batch_size, input_size)",
    )
    by_time, axes = wide(x), (1, 0, 2)
    if operator.batch_first:
        by_time = by_time.transpose(axes)
    D, count = len(operator.directions), 1 + (operator.cell == "lstm")
    hidden = operator.directions[0].params["weight_hh"].shape[1]
    initial = []
    for name, state in zip(("initial_h", "initial_c")[:count], (*states, None, None), strict=False):
        if state is None:
            state = np.zeros((D, by_time.shape[1], hidden), by_time.dtype)
        elif operator.batch_first:
            _checks.shape(where, name, state, (x.shape[0], D, hidden), "(batch_size, num_directions, hidden_size)")
            state = state.transpose(axes)
        else:
            _checks.shape(where, name, state, (D, x.shape[1], hidden), "(num_directions, batch_size, hidden_size)")
        initial.append(wide(state))
    function: Any = getattr(functional, operator.cell)
    ys, finals = [], []
    for d, direction in enumerate(operator.directions):
        of_direction = tuple(state[d] for state in initial)
        y, final = function(
            by_time, **direction.params, state=of_direction if count == 2 else of_direction[0], lengths=lengths,
            reverse=direction.reverse, **direction.options,
        )  # fmt: skip
        ys.append(y)
        finals.append(final if count == 2 else (final,))
    outputs = [np.stack(ys, axis=1), *(np.stack(of_directions) for of_directions in zip(*finals, strict=True))]
    if operator.batch_first:
        outputs = [outputs[0].transpose(2, 0, 1, 3), *(state.transpose(axes) for state in outputs[1:])]
    return tuple(np.ascontiguousarray(output, x.dtype) for output in outputs)
