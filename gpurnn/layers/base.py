"""What every layer is: configuration, a flat dict of arrays, and nothing else that changes."""

from __future__ import annotations

import copy
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
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
        """Copies of the parameters as NumPy arrays, by name."""
        return {name: np.array(_dispatch.to_numpy(p)) for name, p in self.params.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Copy values into the parameters.

        Raises
        ------
        KeyError
            A parameter is missing, or a name is not a parameter of this layer.
        ValueError, TypeError
            A shape or a dtype is not the parameter's.
        """
        where = f"{type(self).__name__}.load_state_dict"
        missing, unknown = self.params.keys() - state.keys(), state.keys() - self.params.keys()
        if missing or unknown:
            raise KeyError(
                f"{where}: missing {sorted(missing) or 'none'}, unknown {sorted(unknown) or 'none'}, "
                f"expected {sorted(self.params)}"
            )
        for name, p in self.params.items():
            _checks.shape(where, name, state[name], tuple(p.shape), "the parameter's shape")
            _checks.same_dtype(where, **{"the parameter": p, name: state[name]})
        for name, p in self.params.items():
            xp = _dispatch.namespace(where, **{name: p})
            p[...] = _dispatch.from_numpy(xp, np.asarray(state[name]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a safetensors file, which is there whole or not at all."""
        from safetensors.numpy import save

        _files.write_atomically(path, save(self.state_dict()))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read the parameters from a safetensors file; raises as `load_state_dict` does."""
        from safetensors.numpy import load_file

        self.load_state_dict(load_file(path))

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
