"""Find the array library and the wing that an array belongs to. Only this file knows both wings.

Shared code asks `namespace` for the array-API functions of its arguments and `wing` for the fused operations that
a matrix product cannot do well. Neither imports an array library that the caller has not imported.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any, cast

import numpy as np

from . import _checks
from ._contract import WING_FUNCTIONS, Wing

WINGS = {"numpy": "gpurnn.reference", "cupy": "gpurnn.kernels"}
"""The module that computes for each array library, by the library's import name."""

NUMPY_WINGS = {"reference": WINGS["numpy"], "native": "gpurnn.kernels.native", "host": WINGS["cupy"]}
"""The modules that can compute for NumPy arrays, by the names that `use` takes. They need not define all functions."""

_VARIABLE = "GPURNN_WING"

_uses: contextvars.ContextVar[tuple[use, ...]] = contextvars.ContextVar("uses", default=())
"""The `use` objects that are active in this context; the last one counts."""


def library_of(array: Any) -> str | None:
    """The import name of the supported library that ``array`` belongs to, or None."""
    kind = type(array)
    if kind is np.ndarray:
        return "numpy"
    if isinstance(array, np.ndarray):
        # Other subclasses add a meaning to their values, such as a mask or a unit.
        return "numpy" if isinstance(array, np.memmap) else None
    name = kind.__module__.partition(".")[0]
    if name in WINGS and name in sys.modules and hasattr(array, "dtype") and hasattr(array, "shape"):
        return name
    return None


def common_library(where: str, arrays: Iterable[tuple[str, Any]], cure: Callable[[str, Any], str] | None = None) -> str:
    """The import name of the library that all ``arrays`` (None is skipped) belong to.

    Parameters
    ----------
    where : str
        The caller's public name, for the message.
    arrays : pairs of a name and an array
    cure : callable, optional
        Takes the name and the value of a masked array, and returns advice on what to pass instead.

    Raises
    ------
    TypeError
        There is no array, one is not of a supported library, or two belong to different ones.
    """
    first_name = first = None
    for name, array in arrays:
        if array is None:
            continue
        library = library_of(array)
        if library is None:
            from . import _foreign  # imports this module

            _foreign.check_one_kind(where, arrays)
            advice = cure(name, array) if cure and isinstance(array, np.ma.MaskedArray) else ""
            raise _checks.not_an_array(where, name, array, advice)
        if first is None:
            first_name, first = name, library
        elif library != first:
            in_numpy, in_cupy = (name, first_name) if library == "numpy" else (first_name, name)
            to_cupy = "layer.to('cuda')" if in_numpy == "params" else f"cupy.asarray({in_numpy})"
            foreign = _checks.caller_library.get() == "torch"
            off_gpu = f"{in_cupy}.cpu()" if foreign else f"cupy.asnumpy({in_cupy})"
            to_numpy = "layer.to('cpu')" if in_cupy == "params" else off_gpu
            raise TypeError(
                f"{where}: {first_name} is a {first} array but {name} is a {library} array, expected one library; "
                f"convert one of them, with {to_cupy} or {to_numpy}"
            )
    if first is None:
        raise TypeError(f"{where}: expected at least one array")
    return first


class use:
    """Choose what computes for NumPy arrays from here on, or within a ``with`` statement.

    Parameters
    ----------
    wing : {"reference", "native", "host", "cpu", "cuda"}
        "reference" is NumPy: the definition, which runs everywhere.
        "native" is the same in C++, compiled for this processor. It comes compiled with a wheel for this platform, or
        with an installation from source on a machine with a C++ compiler. Otherwise it is compiled on the first call,
        which needs a C++ compiler and some seconds for each cell and dtype; the result is kept.
        "host" runs the CUDA kernels' own source, compiled for the CPU. Use it to follow and debug the code that CuPy
        arrays run on a GPU, on any machine with a C++ compiler. It is slow.
        "cpu" is the default for NumPy arrays. "cuda" accepts only CuPy arrays, for which the CUDA kernels always
        compute: a NumPy array is rejected, and the error names the call that moves it to the GPU.

    Raises
    ------
    ValueError
        ``wing`` is none of these.
    RuntimeError
        ``wing`` is "cuda", and there is no CuPy or no CUDA device; the message says why.

    Notes
    -----
    The environment variable ``GPURNN_WING`` sets the default to one of these names. Without it, the default is "native"
    where the installation comes with it compiled, and "reference" elsewhere; ``gpurnn info`` says which and why. The
    two differ by rounding, and in recurrences, scans and dense layers "native" treats numbers below the smallest normal
    one, 1.2e-38 in float32, as zero. If you need the same bits on several machines, choose "reference".

    The choice belongs to the current context (`contextvars`), so one thread never changes the choice of another:

    - A new thread starts with the default, whatever the thread that starts it uses; so do the threads of a
      `concurrent.futures.ThreadPoolExecutor`. Call ``use`` in the thread, or run the function in a copy of the context,
      as below. (With ``-X thread_inherit_context=1`` of Python 3.14, the default of free-threaded builds, a thread
      starts with the context of the thread that starts it.)
    - An `asyncio` task and `asyncio.to_thread` start with the choice of their creator at that time, and do not change
      it for the creator.
    - A forked process starts with the choice of its parent, a spawned one with the default.

    A pullback stays on the wing of its forward pass. ``with`` statements may be nested, and a ``use`` object may be
    entered more than once. They may end in any order; the last one that has not ended counts.

    Examples
    --------
    >>> import gpurnn
    >>> with gpurnn.use("reference"):
    ...     pass

    Threads that use the choice of the thread that starts them:

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from contextvars import copy_context
    >>> def total(x):
    ...     return float(gpurnn.dense(x, np.ones((1, 2)))[0])
    >>> with ThreadPoolExecutor() as pool, gpurnn.use("reference"):
    ...     pool.submit(copy_context().run, total, np.array([3.0, 4.0])).result()
    7.0
    """

    def __init__(self, wing: str) -> None:
        self.wing = _checks.choice("use", "wing", _default()[0] if wing == "cpu" else wing, (*NUMPY_WINGS, "cuda"))
        reasons = list(why_no_cuda()) if wing == "cuda" else []
        if reasons:
            raise RuntimeError(f"use: 'cuda' cannot compute here: {'; '.join(reasons)}")
        self._entered = False
        before = _uses.get()
        if len(before) > 1 and not (before[-1]._entered or before[-2]._entered):
            before = (*before[:-2], before[-1])  # of two calls without ``with``, the second replaces the first
        _uses.set((*before, self))

    def __enter__(self) -> None:
        if self._entered or _uses.get()[-1:] != (self,):
            _uses.set((*_uses.get(), self))
        self._entered = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        uses = list(_uses.get())
        if self in uses:  # false if this context is not that of __enter__
            del uses[len(uses) - 1 - uses[::-1].index(self)]
            _uses.set(tuple(uses))


def numpy_wing() -> str:
    """The name of the wing that computes for NumPy arrays, one of those that `use` takes."""
    uses = _uses.get()
    return uses[-1].wing if uses else _default()[0]


def why_default() -> str:
    """Explain why NumPy arrays have the default wing that they have."""
    return _default()[1]


@functools.cache
def _default() -> tuple[str, str]:
    """The default wing for NumPy arrays, and the reason for it. It stays the same throughout a process."""
    named = os.environ.get(_VARIABLE)
    if named:
        if named not in NUMPY_WINGS:
            raise ValueError(f"{_VARIABLE} is {named!r}, expected one of {', '.join(map(repr, NUMPY_WINGS))}")
        return named, f"{_VARIABLE} is {named}"
    install = importlib.import_module(f"{NUMPY_WINGS['native']}.install")
    reason = install.why_not()
    return ("reference", reason) if reason else ("native", "this installation has its compiled libraries")


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
    return namespace_of(common_library(where, arrays.items()), next(a for a in arrays.values() if a is not None))


_namespaces: dict[str, ModuleType] = {}


def namespace_of(library: str, array: Any) -> Any:
    """The array-API namespace of a supported library, by its import name and one of its arrays."""
    xp = _namespaces.get(library)
    if xp is None:
        from array_api_compat import array_namespace

        xp = _namespaces[library] = array_namespace(array)
    return xp


def wing(where: str, **arrays: Any) -> Wing:
    """The module of fused operations that computes for ``arrays``; raises as `namespace` does."""
    library = common_library(where, arrays.items())
    if library != "numpy":
        return _functions(WINGS[library])
    if numpy_wing() == "cuda":
        name = next(name for name, array in arrays.items() if array is not None)
        raise TypeError(
            f"{where}: {name} is a numpy array, expected a cupy array after gpurnn.use('cuda'); move it with "
            f"cupy.asarray({name}), and a layer or a model with its to('cuda')"
        )
    return _functions(NUMPY_WINGS[numpy_wing()])


def computing(array: Any) -> str:
    """What computes for an array, for the record of a run: "reference", "native (avx512)", "host" or "cuda"."""
    library = library_of(array)
    if library != "numpy":
        return "cuda" if library == "cupy" else str(library)
    wing = numpy_wing()
    if wing != "native":
        return wing
    processor = importlib.import_module(f"{NUMPY_WINGS['native']}.processor")
    return f"native ({processor.chosen()})"


def wing_of_numpy() -> Wing | None:
    """The module of fused operations that computes for NumPy arrays; None after ``use("cuda")``, which rejects them."""
    name = numpy_wing()
    return None if name == "cuda" else _functions(NUMPY_WINGS[name])


@functools.cache
def _functions(module_name: str) -> Wing:
    """The functions of a wing; the reference's functions replace those that it does not define.

    Raises
    ------
    TypeError
        The wing defines only some of the functions that share saved values, such as a forward function alone.
    """
    module: Any = importlib.import_module(module_name)
    missing = [name for name in WING_FUNCTIONS if not hasattr(module, name)]
    if not missing:
        return cast("Wing", module)
    for name in missing:
        kind = name.rpartition("_")[0]
        defined = [other for other in WING_FUNCTIONS if other.rpartition("_")[0] == kind and other not in missing]
        if f"{kind}_forward" in WING_FUNCTIONS and defined:
            raise TypeError(
                f"{module_name} defines {defined[0]} but not {name}, expected both or neither: they share what a "
                "forward function saves"
            )
    reference = importlib.import_module(NUMPY_WINGS["reference"])
    functions = {name: getattr(reference if name in missing else module, name) for name in WING_FUNCTIONS}
    return cast("Wing", SimpleNamespace(**functions))


def device(array: Any) -> Any:
    """The device that ``array`` is on, in the form that its library's functions take."""
    from array_api_compat import device as device_of

    return device_of(array)


def zeros(xp: Any, shape: tuple[int, ...], like: Any) -> Any:
    """Return zeros of ``shape``, with the dtype and the device of ``like``."""
    return xp.zeros(shape, dtype=like.dtype, device=device(like))


def why_no_cuda() -> Iterator[str]:
    """The reasons why gpurnn cannot compute with CuPy arrays; none if it can."""
    try:
        import cupy
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        yield f"CuPy cannot be imported ({reason}); pip install 'cupy-cuda12x[ctk]'"
        return
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        yield f"CuPy {cupy.__version__} finds no CUDA device ({error})"
        return
    if devices == 0:
        yield f"CuPy {cupy.__version__} finds no CUDA device"


def arrays_on(device: Any) -> Any:
    """The array module for a device name that was passed to ``to``; a module is returned unchanged.

    Raises
    ------
    ValueError
        No device has the name.
    RuntimeError
        CUDA cannot compute here; the message says why.
    """
    if not isinstance(device, str):
        return device
    kind, colon, place = device.partition(":")
    if device == "cpu":
        return np
    if kind != "cuda" or (colon and not place.isdecimal()):
        raise ValueError(f"to: device is {device!r}, expected 'cpu', 'cuda', 'cuda:1', ..., or a module of arrays")
    reasons = list(why_no_cuda())
    if reasons:
        raise RuntimeError(f"to: device is {device!r}, which cannot compute here: {'; '.join(reasons)}")
    import cupy

    number, count = int(place or 0), cupy.cuda.runtime.getDeviceCount()
    if number >= count:
        raise RuntimeError(f"to: device is {device!r}, expected 'cuda:0' to 'cuda:{count - 1}', as there are {count}")
    if not colon:
        return cupy

    def asarray(array: Any, *, copy: bool) -> Any:
        with cupy.cuda.Device(number):
            return cupy.asarray(array, copy=copy)

    return SimpleNamespace(asarray=asarray)


def from_numpy(xp: Any, array: np.ndarray[Any, Any]) -> Any:
    """A copy of a NumPy array in the namespace ``xp``, on its default device."""
    if not hasattr(xp, "asarray"):
        raise TypeError(f"to: device is {xp!r}, expected 'cpu', 'cuda', or a module of arrays, such as numpy or cupy")
    return xp.asarray(array, copy=True)


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """The values of an array of any supported library as a NumPy array, which may be the array itself."""
    return array.get() if library_of(array) == "cupy" else np.asarray(array)
