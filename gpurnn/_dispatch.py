"""Which array library and which wing an array belongs to: the one file that knows both wings.

Shared code asks `namespace` for the array-API functions of its arguments and `wing` for the fused operations that
a matrix product cannot do well. Neither imports an array library that the caller has not imported.
"""

from __future__ import annotations

import contextvars
import importlib
import sys
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from . import _checks

WINGS = {"numpy": "gpurnn.reference", "cupy": "gpurnn.kernels"}
"""The module that computes for each array library, by the library's import name."""

_HOST_WINGS = {"reference": WINGS["numpy"], "host": WINGS["cupy"]}
"""The modules that can compute for NumPy arrays, by the names that `use` takes."""

_numpy_wing: contextvars.ContextVar[str] = contextvars.ContextVar("numpy_wing", default="reference")

_CONVERT = {
    "torch": "numpy.asarray(x.detach().cpu()) or cupy.from_dlpack(x)",
    "jax": "numpy.asarray(x)",
    "tensorflow": "x.numpy()",
    "pandas": "x.to_numpy()",
}


def _library(array: Any) -> str | None:
    """The import name of the supported library that ``array`` belongs to, or None."""
    if isinstance(array, np.ndarray):
        return None if isinstance(array, (np.ma.MaskedArray, np.matrix)) else "numpy"
    name = type(array).__module__.partition(".")[0]
    if name in WINGS and name in sys.modules and hasattr(array, "dtype") and hasattr(array, "shape"):
        return name
    return None


def _refusal(where: str, name: str, array: Any) -> TypeError:
    kind = type(array)
    library = kind.__module__.partition(".")[0]
    name_of_kind = kind.__qualname__ if library == "builtins" else f"{library}.{kind.__qualname__}"
    convert = _CONVERT.get(library, "numpy.asarray(x)")
    return TypeError(
        f"{where}: {name} is a {name_of_kind}, expected a numpy.ndarray or a cupy.ndarray; convert it with {convert}"
    )


def _common_library(where: str, arrays: dict[str, Any]) -> str:
    first_name = first = None
    for name, array in arrays.items():
        if array is None:
            continue
        library = _library(array)
        if library is None:
            raise _refusal(where, name, array)
        if first is None:
            first_name, first = name, library
        elif library != first:
            raise TypeError(
                f"{where}: {first_name} is a {first} array but {name} is a {library} array, expected one library; "
                f"convert one of them, with {first}.asarray or {library}.asarray"
            )
    if first is None:
        raise TypeError(f"{where}: expected at least one array")
    return first


class use:
    """Choose what computes for NumPy arrays from here on, or within a ``with`` statement.

    Parameters
    ----------
    wing : {"host", "reference"}
        "host" runs the CUDA kernels' own source, compiled for the CPU: what CuPy arrays run on a GPU, to be followed
        and debugged on any machine with a C++ compiler. It is slow. "reference" is NumPy, the default.

    Raises
    ------
    ValueError
        ``wing`` is neither.

    Examples
    --------
    >>> import gpurnn
    >>> with gpurnn.use("reference"):
    ...     pass
    """

    def __init__(self, wing: str) -> None:
        _checks.choice("use", "wing", wing, tuple(_HOST_WINGS))
        self._token = _numpy_wing.set(wing)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _numpy_wing.reset(self._token)


_namespaces: dict[str, ModuleType] = {}


def namespace(where: str, **arrays: Any) -> Any:
    """The array-API namespace that all ``arrays`` (None is skipped) belong to.

    Parameters
    ----------
    where : str
        The caller's public name, for the message.
    **arrays
        The arguments by name.

    Raises
    ------
    TypeError
        An argument is not an array of a supported library, or two belong to different ones.
    """
    library = _common_library(where, arrays)
    found = _namespaces.get(library)
    if found is None:
        from array_api_compat import array_namespace

        found = array_namespace(next(a for a in arrays.values() if a is not None))
        _namespaces[library] = found
    return found


def wing(where: str, **arrays: Any) -> Any:
    """The module of fused operations that computes for ``arrays``; raises as `namespace` does."""
    library = _common_library(where, arrays)
    name = WINGS[library] if library != "numpy" else _HOST_WINGS[_numpy_wing.get()]
    return importlib.import_module(name)


def device(array: Any) -> Any:
    """The device that ``array`` is on, as its library's functions take it."""
    from array_api_compat import device as device_of

    return device_of(array)


def zeros(xp: Any, shape: tuple[int, ...], like: Any) -> Any:
    """Zeros of ``shape``, of the dtype of ``like`` and on its device."""
    return xp.zeros(shape, dtype=like.dtype, device=device(like))


def from_numpy(xp: Any, array: np.ndarray[Any, Any]) -> Any:
    """A copy of a NumPy array in the namespace ``xp``, on its default device."""
    return xp.asarray(array, copy=True)


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """The values of an array of any supported library as a NumPy array, which may be the array itself."""
    return array.get() if _library(array) == "cupy" else np.asarray(array)
