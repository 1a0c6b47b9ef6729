"""Weights of PyTorch."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _dispatch, _files, layers
from ..layers.base import Layer, uninitialised
from ..layers.recurrent import Recurrent
from .weights import FromTorchOptions, installed, is_default, made, taken

if TYPE_CHECKING:
    from typing_extensions import Unpack

FORM = {"reset_after": True, "update": "state"}
"""The options of PyTorch's GRU."""

_KINDS = {1: "rnn", 3: "gru", 4: "lstm"}
"""The cells by their number of gates."""

_OWN = {"IndRNN": 1, "MinGRU": 2, "MinLSTM": 3}
"""The modules of gpurnn.torch that `torch.nn` lacks, and the number of gates of their cells."""


def from_torch(source: Any, prefix: str = "", **options: Unpack[FromTorchOptions]) -> Any:
    """Make the layer of a PyTorch module, of its weights, or of a file of weights.

    Parameters
    ----------
    source : torch.nn.Module, dict of arrays, or path
        A module: `torch.nn.RNN`, `LSTM`, `GRU`, their cells, `Linear`, `Embedding`, `LayerNorm`, a module of
        `gpurnn.torch`, or one that has such a module under ``prefix``. Or weights by PyTorch's names, as tensors or
        NumPy arrays. Or a file of weights that `torch.save` wrote, which is read by ``torch.load(weights_only=True)``,
        so that nothing in it is run; or a safetensors file, which does not need PyTorch.
    prefix : str
        The beginning of the weights' names, such as ``"encoder.rnn."``, if there are weights of more than one layer.
    **options
        Arguments of the layer's constructor that weights do not determine: ``batch_first=True``, ``dropout=0.1``, for a
        vanilla network ``activation="relu"``. A module provides them itself.

    Returns
    -------
    layer : RNN, LSTM, GRU, Dense, Embedding or LayerNorm
        For a module of `gpurnn.torch`, the layer of its name. Parameters are copies. A GRU has ``reset_after=True,
        update="state"``, unless a file of gpurnn or ``options`` specify another form.

    Raises
    ------
    ValueError, TypeError, KeyError
        The weights belong to no such layer, or do not fit each other: the message names the first.
    NotImplementedError
        gpurnn has no layer with one of the weights' options.
    FileFormatError, OSError
        The file is not a file of weights, or cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn import interop
    >>> weights = {"rnn.weight_ih_l0": np.zeros((12, 3)), "rnn.weight_hh_l0": np.zeros((12, 4))}
    >>> interop.from_torch(weights, prefix="rnn.")
    GRU(3, 4, bias=False, reset_after=True, update='state', dtype='float64')  # 84 parameters
    """
    where, path = "from_torch", None
    _checks.options(where, options, FromTorchOptions.__annotations__)
    given: dict[str, Any] = {**options}
    if isinstance(source, (str, os.PathLike)):
        path = source
        source, form = _read(where, path, prefix)
        given = {**form, **given}
    elif hasattr(source, "state_dict"):
        module = source.get_submodule(prefix.removesuffix(".")) if prefix else source
        given = {**_options(where, module), **given}
        kind = given.pop("kind", None)
        params = {name: _array(where, name, tensor) for name, tensor in module.state_dict().items()}
        return _layer(where, kind, params, given)
    if not isinstance(source, Mapping):
        raise TypeError(
            f"{where}: source is {_checks.described(source)}, expected a module, a dict of weights or a path"
        )
    own = {name: value for name, value in source.items() if isinstance(name, str) and name.startswith(prefix)}
    if not own:
        raise KeyError(f"{where}: no weight begins with {prefix!r}, expected one of {sorted(map(str, source))[:20]}")
    if path is not None and sum(getattr(value, "nbytes", 0) for value in own.values()) > os.path.getsize(path):
        # Tensors may be views of fewer numbers, which they share or repeat.
        raise _files.FileFormatError(f"{os.fspath(path)}: its weights have more bytes than the file")
    return _layer(where, None, {n.removeprefix(prefix): _array(where, n, a) for n, a in own.items()}, given)


def _read(where: str, path: Any, prefix: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The weights in a file, and the form of the GRU under ``prefix`` if the file records it."""
    _checks.path(where, "source", path)
    if Path(path).suffix == ".safetensors":
        content, tensors = _files.read_tensors(path)
        forms = content.get("forms") if isinstance(content, dict) else None
        form = forms.get(prefix) if isinstance(forms, dict) else None
        return tensors, _parsed(path, form)
    torch = installed(where, "torch", "torch")
    with _files.open_regular(path) as file:
        _check_archive(path, file)
    try:
        source = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can make PyTorch raise any error
        first = str(error).strip().partition("\n")[0]
        raise _files.FileFormatError(f"{os.fspath(path)}: no file of weights that PyTorch reads: {first}") from error
    if not isinstance(source, Mapping):
        raise _files.FileFormatError(
            f"{os.fspath(path)}: holds {_checks.described(source)}, expected a dict of weights"
        )
    return source, {}


def _check_archive(path: Any, file: BinaryIO) -> None:
    """Reject compressed entries: PyTorch writes none, and they may expand to any size."""
    try:
        with zipfile.ZipFile(file) as archive:
            compressed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return  # not an archive: PyTorch's older format, or a file that PyTorch will reject
    if compressed:
        raise _files.FileFormatError(
            f"{os.fspath(path)}: {compressed[0]} is compressed, expected what torch.save writes"
        )


def _parsed(path: Any, form: Any) -> dict[str, Any]:
    """The options of a GRU, from the form that gpurnn's files record."""
    if form is None:
        return {}
    for reset_after in (False, True):
        for update in ("candidate", "state"):
            if form == f"reset_after={reset_after!r}, update={update!r}":
                return {"reset_after": reset_after, "update": update}
    raise _files.FileFormatError(f"{os.fspath(path)}: says the form {form!r}, expected one of a GRU")


def _array(where: str, name: str, value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        try:
            value = value.detach().cpu()
            if str(value.dtype) in ("torch.float16", "torch.bfloat16"):
                value = value.float()  # float32 represents all their numbers
            value = value.numpy()
        except (RuntimeError, TypeError) as error:
            raise TypeError(f"{where}: {name} is not an array of numbers: {_files.reason(error)}") from error
    if _dispatch.library_of(value) is None:
        raise TypeError(f"{where}: {name} is {_checks.described(value)}, expected an array")
    return np.asarray(_dispatch.to_numpy(value))


def _options(where: str, module: Any) -> dict[str, Any]:
    """The kind of layer of a module, and the arguments of its constructor."""
    kind = type(module).__name__
    if kind in ("RNN", "LSTM", "GRU", *_OWN):
        options = {"batch_first": module.batch_first, "dropout": module.dropout if module.num_layers > 1 else 0.0}
        if kind == "RNN":
            options["activation"] = module.nonlinearity
        # A module of gpurnn.torch has further options.
        options |= {n: v for n, v in getattr(module, "options", {}).items() if n != "proj_size"}
        return {"kind": kind.lower(), **options}
    if kind in ("RNNCell", "LSTMCell", "GRUCell"):
        options = {"activation": module.nonlinearity} if kind == "RNNCell" else {}
        return {"kind": kind.removesuffix("Cell").lower(), **options}
    if kind == "Linear":
        return {"kind": "dense"}
    if kind == "Embedding":
        return {"kind": "embedding", "padding_idx": module.padding_idx}
    if kind == "LayerNorm":
        return {"kind": "layer_norm", "eps": module.eps}
    raise TypeError(
        f"{where}: source is a {kind}, expected RNN, LSTM, GRU, one of their cells, Linear, Embedding or LayerNorm; "
        "name "
        "the one of its modules that is meant with prefix"
    )


def _layer(where: str, kind: str | None, params: dict[str, NDArray[Any]], options: dict[str, Any]) -> Layer:
    if "weight_hh" in params:  # the weights of a cell
        params = {f"{name}_l0": array for name, array in params.items()}
    if "weight_hh_l0" in params or kind in (*_KINDS.values(), *map(str.lower, _OWN)):
        return _recurrent(where, kind, params, options)
    weight = params.get("weight")
    if weight is None or params.keys() - {"weight", "bias"}:
        raise ValueError(
            f"{where}: the weights are {sorted(params)[:20]}, expected those of one layer; say which by prefix"
        )
    if kind is None and weight.ndim == 2 and "bias" not in params:
        raise ValueError(
            f"{where}: weight is of a Linear without bias or of an Embedding, expected one; pass the module"
        )
    kind = kind or ("dense" if weight.ndim == 2 else "layer_norm")
    dtype = _float(where, "weight", weight)
    with uninitialised():
        layer: Layer
        if kind == "dense":
            layer = layers.Dense(weight.shape[1], weight.shape[0], "bias" in params, dtype=dtype, **options)
        elif kind == "embedding":
            layer = layers.Embedding(*weight.shape, dtype=dtype, **options)
        else:
            layer = layers.LayerNorm(weight.shape[0], bias="bias" in params, dtype=dtype, **options)
    taken(where, layer, params, {name: p.shape for name, p in layer.params.items()})
    return layer


def _float(where: str, name: str, array: NDArray[Any]) -> str:
    if array.dtype.name not in _checks.FLOATS:
        raise TypeError(f"{where}: {name} has dtype {array.dtype.name}, expected {' or '.join(_checks.FLOATS)}")
    return array.dtype.name


def _recurrent(where: str, kind: str | None, params: dict[str, NDArray[Any]], options: dict[str, Any]) -> Recurrent:
    own = {name.lower(): gates for name, gates in _OWN.items()}
    for name in ("weight_ih_l0", *(() if kind in own else ("weight_hh_l0",))):
        if name not in params:
            raise ValueError(f"{where}: {name} is missing, expected it besides {sorted(params)[:20]}")
        _checks.ndim(where, name, params[name], 2, "(gates*hidden_size, ...)")
    w_ih, projection = params["weight_ih_l0"], params.get("weight_hr_l0")
    if kind in own:
        hidden = w_ih.shape[0] // own[kind]
    else:
        w_hh = params["weight_hh_l0"]
        hidden = w_hh.shape[1] if projection is None else projection.shape[-1]
        gates, rest = divmod(w_hh.shape[0], hidden) if hidden else (0, 0)
        if rest or (kind is None and gates not in _KINDS):
            raise ValueError(
                f"{where}: weight_hh_l0 has shape {w_hh.shape}, expected 1, 3 or 4 times {hidden} rows: an RNN, a GRU "
                "or an LSTM"
            )
        kind = kind or _KINDS[gates]
    numbers = {name.rpartition("_l")[2].removesuffix("_reverse") for name in params if "_l" in name}
    num_layers = len(numbers)
    arguments = {
        "input_size": w_ih.shape[1],
        "hidden_size": hidden,
        "num_layers": num_layers,
        "bias": "bias_ih_l0" in params,
        "bidirectional": "weight_ih_l0_reverse" in params,
        **(FORM if kind == "gru" else {}),
        **({} if projection is None else {"proj_size": projection.shape[0]}),
        **options,
    }
    layer: Recurrent = made(where, kind, arguments, params)
    return layer


def to_torch(layer: Layer) -> Any:
    """Make the module of `torch.nn` with a layer's weights: `RNN`, `LSTM`, `GRU`, `Linear`, `Embedding` or `LayerNorm`.

    In a GRU with ``update="candidate"``, z weighs the candidate; in PyTorch's, z weighs the state. So z is one minus
    PyTorch's z, and the weights of z are negated.

    Raises
    ------
    ValueError
        PyTorch has no such layer: the message names the option.
    ImportError
        PyTorch is not installed.

    Examples
    --------
    >>> import gpurnn
    >>> from gpurnn import interop
    >>> layer = gpurnn.LSTM(3, 4, batch_first=True)
    >>> interop.from_torch(interop.to_torch(layer))  # doctest: +SKIP
    LSTM(3, 4, batch_first=True)  # 128 parameters
    """
    where = "to_torch"
    torch = installed(where, "torch", "torch")
    params = {name: array.copy() for name, array in layer.state_dict().items()}
    dtype = getattr(torch, layer._dtypes()[0]) if layer._dtypes() else torch.float32
    if isinstance(layer, Recurrent):
        module = getattr(torch.nn, type(layer).__name__)(**_arguments(where, layer), dtype=dtype)
        if getattr(layer.cell, "update", "state") == "candidate":
            hidden = layer.hidden_size
            for array in params.values():
                array[hidden : 2 * hidden] *= -1
    elif isinstance(layer, layers.Dense):
        _only(where, layer, "activation", "identity", "put the activation behind it")
        module = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias, dtype=dtype)
    elif isinstance(layer, layers.Embedding):
        module = torch.nn.Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, dtype=dtype)
    elif isinstance(layer, layers.LayerNorm):
        module = torch.nn.LayerNorm(layer.features, layer.eps, bias=layer.bias, dtype=dtype)
    else:
        raise ValueError(f"{where}: layer is {_checks.described(layer)}, expected a layer that torch.nn has too")
    module.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})
    return module


def _only(where: str, layer: Any, option: str, value: Any, cure: str) -> None:
    if (own := layer._argument(option)) != value:
        raise ValueError(f"{where}: {option} is {own!r}, expected {value!r}, as PyTorch has it; {cure}")


def _arguments(where: str, layer: Recurrent) -> dict[str, Any]:
    """The arguments of the constructor in `torch.nn`; reject options that it lacks."""
    shared = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    arguments = {name: layer._argument(name) for name in shared}
    if layer.cell.name == "rnn":
        activation = layer._argument("activation")
        if activation not in ("tanh", "relu"):
            raise ValueError(f"{where}: activation is {activation!r}, expected 'tanh' or 'relu', as PyTorch has it")
        arguments["nonlinearity"] = activation
    known = _checks.signature(type(layer)).parameters
    for option, value in layer.config().items():
        if option == "proj_size" and value:
            arguments["proj_size"] = value
        elif option not in (*shared, "activation" if layer.cell.name == "rnn" else "", "update", "dtype", "proj_size"):
            usual = FORM.get(option, known[option].default) if layer.cell.name == "gru" else known[option].default
            if not is_default(known[option].replace(default=usual), value):
                raise ValueError(f"{where}: {option} is {value!r}, expected {usual!r}: PyTorch's has no other form")
    return arguments
