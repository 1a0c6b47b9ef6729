"""Code that all libraries share: reorder gates, and make gpurnn's layer for some weights."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks, cells
from ..layers.base import Layer
from ..layers.recurrent import LAYERS, OwnOptions, Recurrent, RecurrentOptions

Arrays = Mapping[str, NDArray[Any]]


class FromTorchOptions(OwnOptions, cells.GateOptions, total=False):
    """The options of layers that PyTorch's weights do not determine."""

    activation: str | tuple[str, float] | tuple[str, float, float]
    batch_first: bool
    dropout: float
    padding_idx: int | None
    eps: float


class FromKerasOptions(RecurrentOptions, total=False):
    """The options of layers that Keras's weights do not determine."""

    batch_first: bool
    dropout: float


def reordered(array: NDArray[Any], gates: Sequence[str], into: Sequence[str]) -> NDArray[Any]:
    """Reorder the blocks of the first axis, one for each of ``gates``, to the order ``into``."""
    blocks = dict(zip(gates, np.split(array, len(gates)), strict=True))
    return np.concatenate([blocks[gate] for gate in into])


def is_default(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether the value of an option in `Layer.config` is the constructor's default."""
    default = parameter.default
    return bool(value == (list(default) if isinstance(default, tuple) and isinstance(value, list) else default))


def installed(where: str, library: str, extra: str) -> Any:
    """Import a library; if it is missing, raise an error that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"{where} needs {library}; pip install 'gpurnn[{extra}]'") from error


def made(where: str, kind: str, arguments: Mapping[str, Any], params: Arrays) -> Any:
    """Make the recurrent layer of a cell with these parameters.

    Raises
    ------
    ValueError, TypeError
        A parameter is missing, or its shape does not fit the arguments.
    NotImplementedError
        The layer lacks an option.
    """
    make: Any = LAYERS[kind]
    known = _checks.signature(make).parameters
    for name, value in arguments.items():
        if name not in known:
            raise NotImplementedError(
                f"{where}: the weights are of {name}={value!r}, which gpurnn.{make.__name__} lacks"
            )
    for name, array in params.items():
        if array.size == 0:
            raise ValueError(f"{where}: {name} has shape {array.shape}, expected weights")
    dtypes = {array.dtype.name for array in params.values()}
    if len(dtypes) != 1 or not dtypes <= set(_checks.FLOATS):
        raise TypeError(
            f"{where}: the weights have the dtypes {sorted(dtypes)}, expected one, {' or '.join(_checks.FLOATS)}"
        )
    layer: Recurrent = make(**arguments, dtype=dtypes.pop())
    names = layer.cell.parameters if layer.bias else layer.cell.needed
    shapes = {name: shape for name, shape in layer._parameter_shapes().items() if name.rpartition("_l")[0] in names}
    taken(where, layer, params, shapes)
    return layer


def taken(where: str, layer: Layer, params: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Copy the parameters into a layer; reject those that do not fit, by name."""
    for name in shapes:
        if name not in params:
            raise ValueError(f"{where}: {name} is missing, expected {sorted(shapes)}")
    for name, array in params.items():
        if name not in shapes:
            raise ValueError(f"{where}: {name} is not a parameter of {layer._expression()}, expected {sorted(shapes)}")
        _checks.shape(where, name, array, shapes[name], f"that of {layer._expression()}")
    with layer._overwritten():  # not made before all are known to exist: a file may ask for more than it holds
        for name in shapes:
            layer.params[name][...] = params[name]
