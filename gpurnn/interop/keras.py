"""Weights of Keras."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _files, layers
from ..cells import Activation
from ..layers.base import Layer
from ..layers.recurrent import Recurrent
from .weights import FromKerasOptions, installed, is_default, made, reordered

if TYPE_CHECKING:
    from typing_extensions import Unpack

GATES = {"rnn": ("h", "h"), "lstm": ("ifgo", "ifgo"), "gru": ("zrn", "rzn")}
"""For each cell, the order of the gates in Keras and in gpurnn."""

ACTIVATIONS: dict[Any, Activation] = {
    "tanh": "tanh", "relu": "relu", "sigmoid": "sigmoid", "elu": "elu", "softsign": "softsign", "softplus": "softplus",
    "linear": "identity", "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5), "leaky_relu": ("leaky_relu", 0.2),
}  # fmt: skip
"""gpurnn's activations by Keras's names."""

_MERGES = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "average"}
"""gpurnn's names for Keras's ways of merging the outputs of two directions."""

_KINDS = {"SimpleRNN": "rnn", "LSTM": "lstm", "GRU": "gru"}
_BY_GATES = {1: "rnn", 3: "gru", 4: "lstm"}


class _Found(NamedTuple):
    """A recurrent layer of Keras."""

    kind: str | None
    """The cell; None if a file does not name it."""
    weights: list[list[NDArray[Any]]]
    """The kernel, recurrent kernel and bias of each direction."""
    options: dict[str, Any]


def from_keras(source: Any, name: str | None = None, **options: Unpack[FromKerasOptions]) -> Any:
    """Make the layer of a Keras layer or model, or of a file of weights.

    Parameters
    ----------
    source : keras.Layer, keras.Model or path
        `SimpleRNN`, `LSTM`, `GRU`, or one of them in `Bidirectional` with merged outputs; a model that contains such
        layers; or a ``.weights.h5`` file, which is read with h5py: nothing in it is run, and Keras is not needed.
    name : str, optional
        The layer's name in a model or a file. It may be left out if there is only one.
    **options
        Arguments of the constructor. A file does not contain the activations: by default tanh, and sigmoid for gates.

    Returns
    -------
    layer : RNN, LSTM or GRU
        It has ``batch_first=True``, as in Keras. A GRU has ``update="state"``, and the Keras layer's reset: in a file,
        a bias of two rows means ``reset_after=True``, Keras's default. Keras's ``recurrent_dropout`` is
        ``variational_dropout``; its ``dropout`` on the input is a separate layer in gpurnn.

    Raises
    ------
    ValueError, TypeError, KeyError
        There is no such layer, or its weights do not fit each other.
    NotImplementedError
        gpurnn has no layer with one of the weights' options.
    FileFormatError, OSError
        The file is not a file of weights, or cannot be read.
    """
    where = "from_keras"
    _checks.options(where, options, FromKerasOptions.__annotations__)
    if isinstance(source, (str, os.PathLike)):
        found = _of_file(where, source)
    else:
        found = {layer.name: _of_layer(where, layer) for layer in _recurrent_layers(source)}
    if not found:
        raise ValueError(f"{where}: source holds no recurrent layer, expected a SimpleRNN, LSTM, GRU or Bidirectional")
    if name is None and len(found) > 1:
        raise ValueError(f"{where}: source has the recurrent layers {sorted(found)}, expected the name of one of them")
    if name is not None and name not in found:
        raise KeyError(f"{where}: source has no recurrent layer {name!r}, expected one of {sorted(found)}")
    return _made(where, found[name or next(iter(found))], {**options})


def _made(where: str, found: _Found, options: dict[str, Any]) -> Recurrent:
    kernel, recurrent = found.weights[0][:2]
    for name, array in (("the kernel", kernel), ("the recurrent kernel", recurrent)):
        _checks.ndim(where, name, array, 2, "(inputs, gates*units)")
    hidden = recurrent.shape[0]
    gates, rest = divmod(recurrent.shape[1], hidden) if hidden else (0, 0)
    if rest or gates not in _BY_GATES:
        raise ValueError(
            f"{where}: the recurrent kernel has shape {recurrent.shape}, expected 1, 3 or 4 times as many columns as "
            "rows"
        )
    kind = found.kind or _BY_GATES[gates]
    has_bias = len(found.weights[0]) > 2
    form: dict[str, Any] = {}
    if kind == "gru":
        form = {"reset_after": has_bias and found.weights[0][2].ndim == 2, "update": "state"}
        if not has_bias and found.kind is None and "reset_after" not in options:
            _checks.warn(
                where,
                "these are the weights of a GRU without bias, which do not say its form: with reset_after=True, "
                "Keras's "
                "default, which is taken, or reset_after=False. Pass reset_after to say it",
            )
            form["reset_after"] = True
    arguments = {
        "input_size": kernel.shape[0], "hidden_size": hidden, "bias": has_bias, "batch_first": True,
        "bidirectional": len(found.weights) == 2, "zero_masked_output": found.kind is None and len(found.weights) == 2,
        **form, **found.options, **options,
    }  # fmt: skip
    params = {}
    for suffix, weights in zip(("_l0", "_l0_reverse"), found.weights, strict=False):
        for name, array in _ours(where, kind, weights, bool(arguments.get("reset_after"))).items():
            params[name + suffix] = array
    layer: Recurrent = made(where, kind, arguments, params)
    return layer


def _ours(where: str, kind: str, weights: list[NDArray[Any]], reset_after: bool) -> dict[str, NDArray[Any]]:
    theirs, ours = GATES[kind]
    rows = weights[1].shape[1]
    params = {}
    for name, array in zip(("weight_ih", "weight_hh"), weights, strict=False):
        if array.ndim != 2 or array.shape[1] != rows:
            raise ValueError(f"{where}: {name} comes from an array of shape {array.shape}, expected {rows} columns")
        params[name] = reordered(array.T, theirs, ours)
    if len(weights) > 2:
        bias = weights[2]
        shape = (2, rows) if kind == "gru" and reset_after else (rows,)
        _checks.shape(where, "the bias", bias, shape, "that of this layer")
        pair = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        params |= {n: reordered(b, theirs, ours) for n, b in zip(("bias_ih", "bias_hh"), pair, strict=True)}
    return params


def _recurrent_layers(source: Any) -> list[Any]:
    """The recurrent layers of a Keras layer or model; a Bidirectional counts once."""
    kind = type(source).__name__
    if kind in _KINDS or kind == "Bidirectional":
        return [source]
    inner = getattr(source, "layers", None)
    if inner is None:
        return []
    return [found for layer in inner for found in _recurrent_layers(layer)]


def _of_layer(where: str, layer: Any) -> _Found:
    if type(layer).__name__ == "Bidirectional":
        if layer.merge_mode not in _MERGES:
            raise NotImplementedError(f"{where}: merge_mode is {layer.merge_mode!r}, expected one of {sorted(_MERGES)}")
        forward = _of_layer(where, layer.forward_layer)
        of_both = [*forward.weights, _weights_of(layer.backward_layer)]
        return forward._replace(weights=of_both, options={**forward.options, "merge": _MERGES[layer.merge_mode]})
    kind = _KINDS[type(layer).__name__]
    options: dict[str, Any] = {}
    config = layer.get_config()
    if config.get("go_backwards"):
        raise NotImplementedError(f"{where}: go_backwards is True, expected False; reverse the input")
    activation, gate_activation = _activation(config["activation"]), _activation(config.get("recurrent_activation"))
    if activation != "tanh":
        options["activation"] = activation
        if kind == "lstm":
            options["output_activation"] = activation
    if gate_activation not in (None, "sigmoid"):
        options["gate_activation"] = gate_activation
    if config["recurrent_dropout"]:
        options["variational_dropout"] = config["recurrent_dropout"]
    if kind == "gru":
        options["reset_after"] = config["reset_after"]
    if layer.zero_output_for_mask:  # a Bidirectional sets this in its layers
        options["zero_masked_output"] = True
    weights = _weights_of(layer)
    if not weights:
        raise ValueError(f"{where}: {layer.name} has no weights yet, expected a layer that is built")
    return _Found(kind, [weights], options)


def _weights_of(layer: Any) -> list[NDArray[Any]]:
    keras = sys.modules["keras"]
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in layer.weights]


def _activation(value: Any) -> Any:
    """gpurnn's name for one of Keras's activations."""
    if isinstance(value, dict):
        value = value.get("config", value.get("class_name"))
    return ACTIVATIONS.get(value, value)


def _of_file(where: str, path: Any) -> dict[str, _Found]:
    _checks.path(where, "source", path)
    h5py = installed(where, "h5py", "keras")
    with _files.open_regular(path) as opened:
        size = os.fstat(opened.fileno()).st_size
    cells: dict[str, list[NDArray[Any]]] = {}
    try:
        with h5py.File(path, "r") as file:
            _Search(h5py, path, size).collect(file, "", cells)
    except _files.FileFormatError:
        raise
    except Exception as error:  # a damaged file can make h5py raise any error
        raise _files.FileFormatError(
            f"{os.fspath(path)}: no HDF5 file that can be read: {_files.reason(error)}"
        ) from error
    found: dict[str, _Found] = {}
    for name, weights in cells.items():
        name = name.removeprefix("layers/")
        owner, _, direction = name.rpartition("/")
        if direction in ("forward_layer", "backward_layer"):
            before = found.get(owner, _Found(None, [], {})).weights
            together = [*before, weights] if direction == "backward_layer" else [weights, *before]
            found[owner] = _Found(None, together, {})
        else:
            found[name] = _Found(None, [weights], {})
    return found


class _Search:
    """Collect the weights of every cell in a file, in time and memory bounded by the file's size.

    A group or an array may have several names; it is read only once, under its first name.
    """

    def __init__(self, h5py: Any, path: Any, size: int) -> None:
        self.h5py, self.path, self.left = h5py, os.fspath(path), size
        self.seen: set[Any] = set()

    def collect(self, group: Any, name: str, cells: dict[str, list[NDArray[Any]]]) -> None:
        """Add the weights of the cells in a group to ``cells``, by the layer's name."""
        if len(name) > 1000:
            raise _files.FileFormatError(f"{self.path}: has groups within groups without end")
        for key in group:
            if not isinstance(group.get(key, getlink=True), self.h5py.HardLink):
                raise _files.FileFormatError(
                    f"{self.path}: {name}/{key} is a link, expected weights in the file itself"
                )
            entry = group[key]
            if not isinstance(entry, self.h5py.Group) or not self.is_new(entry):
                continue
            if key == "cell" and "vars" in entry:
                cells[name] = self.weights(entry["vars"])
            else:
                self.collect(entry, f"{name}/{key}".removeprefix("/"), cells)

    def is_new(self, entry: Any) -> bool:
        place = self.h5py.h5o.get_info(entry.id).addr
        new = place not in self.seen
        self.seen.add(place)
        return new

    def weights(self, group: Any) -> list[NDArray[Any]]:
        arrays = []
        for key in sorted(group, key=lambda k: (len(k), k))[:4]:
            entry = group[key]
            is_array = isinstance(entry, self.h5py.Dataset) and not (entry.is_virtual or entry.external)
            if not is_array or entry.dtype.kind != "f":
                raise _files.FileFormatError(f"{self.path}: {entry.name} is not an array of floats in the file itself")
            self.left -= entry.nbytes
            if self.left < 0:
                raise _files.FileFormatError(f"{self.path}: {entry.name} has more bytes than the file")
            array = entry[()]
            arrays.append(np.asarray(array, np.float32 if array.dtype.itemsize < 4 else array.dtype.newbyteorder("=")))
        if len(arrays) not in (2, 3):
            raise _files.FileFormatError(
                f"{self.path}: {group.name} has {len(group)} arrays, expected a kernel, a recurrent kernel and a bias"
            )
        return arrays


def to_keras(layer: Layer) -> Any:
    """Make the Keras layer with a layer's weights: `SimpleRNN`, `LSTM` or `GRU`, or `Bidirectional` for two directions.

    It returns the outputs of all steps. A stack of layers becomes a `keras.Sequential`. Outputs at masked steps are
    zero with ``zero_masked_output``, and always in a `Bidirectional`.

    Raises
    ------
    ValueError
        Keras has no such layer: the message names the option.
    ImportError
        Keras is not installed.
    """
    where = "to_keras"
    keras = installed(where, "keras", "keras")
    if not isinstance(layer, Recurrent):
        raise ValueError(f"{where}: layer is {_checks.described(layer)}, expected an RNN, an LSTM or a GRU")
    options = _options(where, layer)
    made = [_keras_layer(keras, layer, number, options) for number in range(layer.num_layers)]
    return made[0] if len(made) == 1 else keras.Sequential(made)


def _options(where: str, layer: Recurrent) -> dict[str, Any]:
    options: dict[str, Any] = {"use_bias": layer.bias, "dtype": layer._dtypes()[0]}
    known = _checks.signature(type(layer)).parameters
    spoken = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "merge", "dtype")
    for option, value in layer.config().items():
        if option in spoken:
            continue
        if option in ("activation", "gate_activation"):
            theirs = next((name for name, ours in ACTIVATIONS.items() if ours == value), None)
            if theirs is None:
                raise ValueError(
                    f"{where}: {option} is {value!r}, expected one of {list(ACTIVATIONS.values())}, as Keras has them"
                )
            options["activation" if option == "activation" else "recurrent_activation"] = theirs
        elif option == "variational_dropout":
            options["recurrent_dropout"] = value
        elif option == "zero_masked_output":
            options["zero_output_for_mask"] = value
        elif option == "reset_after":
            options["reset_after"] = value
        elif option == "update":
            if value != "state":
                raise ValueError(f"{where}: update is {value!r}, expected 'state': Keras's GRU has no other")
        elif option == "output_activation":
            if value != layer._argument("activation"):
                raise ValueError(
                    f"{where}: output_activation is {value!r}, expected that of the candidate, as Keras has it"
                )
        elif not is_default(known[option], value):
            raise ValueError(
                f"{where}: {option} is {value!r}, expected {known[option].default!r}: Keras has no such option"
            )
    return options


def _keras_layer(keras: Any, layer: Recurrent, number: int, options: dict[str, Any]) -> Any:
    kind = {cell: name for name, cell in _KINDS.items()}[layer.cell.name]
    made = getattr(keras.layers, kind)(layer.hidden_size, return_sequences=True, **options)
    if layer.bidirectional:
        merge_mode = {ours: theirs for theirs, ours in _MERGES.items()}[layer.merge]
        made = keras.layers.Bidirectional(made, merge_mode=merge_mode)
    inputs = layer.input_size if number == 0 else layer.output_size
    made.build((None, None, inputs))
    suffixes: Sequence[str] = layer._suffixes(number)
    made.set_weights([array for suffix in suffixes for array in _theirs(layer, suffix)])
    return made


def _theirs(layer: Recurrent, suffix: str) -> list[NDArray[Any]]:
    """The kernel, recurrent kernel and bias of a direction. If Keras has one bias, it is the sum of both."""
    theirs, ours = GATES[layer.cell.name]
    state = layer.state_dict()
    arrays = [reordered(state[name + suffix], ours, theirs) for name in ("weight_ih", "weight_hh")]
    weights = [np.ascontiguousarray(array.T) for array in arrays]
    if layer.bias:
        pair = [reordered(state[name + suffix], ours, theirs) for name in ("bias_ih", "bias_hh")]
        two_rows = isinstance(layer, layers.GRU) and layer._argument("reset_after")
        weights.append(np.stack(pair) if two_rows else pair[0] + pair[1])
    return weights
