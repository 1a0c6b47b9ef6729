"""What every layer is: configuration, a flat dict of arrays, and nothing else that changes."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _checks, _dispatch, _files
from .._op import Pullback

if TYPE_CHECKING:
    from typing_extensions import Self

Array = Any


class Layer(ABC):
    """A function of arrays with named parameters.

    Calling a layer is inference and saves nothing; `vjp` also returns the pullback to the gradients. A subclass sets
    ``params`` and defines ``__call__``, ``vjp`` and ``_describe``.

    Attributes
    ----------
    params : dict of str to array
        The parameters by name; an optimizer updates the arrays in place.
    stateful : bool
        Whether the layer takes ``(x, state, lengths, resets)`` and returns ``(y, state)``, instead of x and y.
    """

    stateful = False
    params: dict[str, Array]

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters hold."""
        return sum(math.prod(p.shape) for p in self.params.values())

    def to(self, xp: Any) -> Self:
        """This layer with its parameters copied to the array library ``xp``: numpy, cupy or an array-API namespace."""
        moved = copy.copy(self)
        moved.params = {name: _dispatch.from_numpy(xp, _dispatch.to_numpy(p)) for name, p in self.params.items()}
        return moved

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of the parameters as NumPy arrays, by name; C-contiguous, whatever the parameters are."""
        return {name: copied(p) for name, p in self.params.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Copy values into the parameters: all of them, or none if one does not fit.

        Raises
        ------
        KeyError
            A parameter is missing, or a name is not a parameter of this layer.
        ValueError, TypeError
            A value is no array, or its shape or dtype is not the parameter's; a parameter is read-only.
        """
        where = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state, Mapping):
            raise TypeError(f"{where}: state is a {type(state).__qualname__}, expected a dict of arrays by name")
        missing, unknown = self.params.keys() - state.keys(), state.keys() - self.params.keys()
        if missing or unknown:
            raise KeyError(
                f"{where}: missing {sorted(missing) or 'none'}, unknown {sorted(unknown, key=str) or 'none'}, "
                f"expected {sorted(self.params)}"
            )
        values = []
        for name, p in self.params.items():
            value = state[name]
            _dispatch.namespace(where, **{name: value})
            _checks.shape(where, name, value, tuple(p.shape), "the parameter's shape")
            _checks.same_dtype(where, **{"the parameter": p, name: value})
            _checks.writable(where, f"the parameter {name}", p)
            # Copied before anything is written, because values may be parameters of this layer.
            values.append(_dispatch.from_numpy(_dispatch.namespace(where, **{name: p}), _dispatch.to_numpy(value)))
        for p, value in zip(self.params.values(), values, strict=True):
            p[...] = value

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a safetensors file, which other programs can read too.

        Parameters
        ----------
        path : path
            A file there is replaced at once, and keeps its mode; a symbolic link stays, and its target is replaced. If
            writing fails, the old file stays and nothing new is left behind.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        _files.write_tensors(path, f"{type(self).__name__}.save", "layer", None, self.state_dict())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the parameters from a safetensors file of gpurnn, known by its checksum to be undamaged, or of others.

        Raises
        ------
        FileFormatError
            The file is damaged or no safetensors file, or its arrays are not those of this layer, by `load_state_dict`.
            The layer stays as it was. A `ValueError`.
        OSError
            The file does not exist or cannot be read.
        """
        _, tensors = _files.read_tensors(path)
        try:
            self.load_state_dict(tensors)
        except (KeyError, ValueError, TypeError) as error:
            raise _files.FileFormatError(f"{os.fspath(path)}: {_files.reason(error)}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()})  # {self.num_parameters:,} parameters"

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's outputs; nothing is saved."""

    @abstractmethod
    def vjp(self, *args: Any, **kwargs: Any) -> tuple[Any, Pullback]:
        """The layer's outputs and their pullback."""

    @abstractmethod
    def _describe(self) -> str:
        """The arguments of the constructor, as the repr shows them."""


def copied(array: Array) -> np.ndarray[Any, Any]:
    """A C-contiguous copy of an array of any supported library as a NumPy array in the machine's byte order."""
    values = _dispatch.to_numpy(array)
    return np.array(values, values.dtype.newbyteorder("="), order="C")


class _Allowance:
    """How many parameters a constructor may still make, and of how many bytes."""

    def __init__(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        # Twice what the file holds, because a model may make a parameter that it then ties to another.
        self.count = 2 * len(tensors)
        self.size = 2 * sum(tensor.nbytes for tensor in tensors.values())

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.count -= 1
        self.size -= math.prod(shape) * dtype.itemsize
        if self.count < 0 or self.size < 0:
            raise ValueError("the configuration asks for more parameters than the file holds")


_allowance: contextvars.ContextVar[_Allowance | None] = contextvars.ContextVar("allowance", default=None)


@contextlib.contextmanager
def uninitialised(tensors: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[None]:
    """Have `parameter` make zeros, to be overwritten by ``tensors``, and no more of them than ``tensors`` can fill."""
    token = _allowance.set(_Allowance(tensors))
    try:
        yield
    finally:
        _allowance.reset(token)


def parameter(
    shape: tuple[int, ...], dtype: np.dtype[Any], initialise: Callable[[], np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """A new parameter of a layer, from ``initialise()``; every layer makes all of its parameters here.

    While a file is read, initial values would be overwritten: an orthogonal matrix costs seconds that are saved.
    """
    allowance = _allowance.get()
    if allowance is None:
        return initialise()
    allowance.take(shape, dtype)
    return np.zeros(shape, dtype)


def parameter_dtype(where: str, dtype: Any) -> np.dtype[Any]:
    """The NumPy dtype of a layer's ``dtype`` argument; refuse what is not supported."""
    expected = " or ".join(_checks.FLOATS)
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"{where}: dtype is {dtype!r}, expected {expected}") from error
    # None is float64 to NumPy.
    if dtype is None or found.name not in _checks.FLOATS:
        raise TypeError(f"{where}: dtype is {dtype!r}, expected {expected}")
    return found
