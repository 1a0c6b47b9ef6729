"""Which array library and which wing an array belongs to: the one file that knows both wings.

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
"""The choices of `use` that are active in this context; the last one counts."""


def library_of(array: Any) -> str | None:
    """The import name of the supported library that ``array`` belongs to, or None."""
    kind = type(array)
    if kind is np.ndarray:
        return "numpy"
    if isinstance(array, np.ndarray):
        # Other subclasses give their values a further meaning, such as a mask or a unit.
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
        From the name and the value of a masked array to the advice what to pass instead.

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
            from . import _foreign  # which stands on this module

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
        "native" is the same in C++, compiled for this processor. An installation from a wheel of this platform, or from
        source where there is a C++ compiler, has it ready. Without that it is compiled when it is first called, which
        takes a C++ compiler and some seconds for each cell and dtype, and is kept.
        "host" runs the CUDA kernels' own source, compiled for the CPU: what CuPy arrays run on a GPU, to be followed
        and debugged on any machine with a C++ compiler. It is slow.
        "cpu" is the default of NumPy arrays. "cuda" lets only CuPy arrays through, on which the CUDA kernels always
        compute: a NumPy array is rejected, with the call that moves it to the GPU.

    Raises
    ------
    ValueError
        ``wing`` is none of these.
    RuntimeError
        It is "cuda", and there is no CuPy or no CUDA device; the message says why.

    Notes
    -----
    The default is the environment variable ``GPURNN_WING``, one of these names. Without it, it is "native" where the
    installation has that ready, and "reference" elsewhere; ``gpurnn info`` says which and why. The two differ by
    roundings, and in recurrences, scans and dense layers "native" takes numbers below the smallest normal one, 1.2e-38
    in float32, for zero. Where the same bits are wanted on several machines, choose "reference".

    The choice belongs to the current context (`contextvars`), so one thread never changes what computes for another:

    - A new thread starts with the default, whatever the thread that starts it uses; so do the threads of a
      `concurrent.futures.ThreadPoolExecutor`. Call ``use`` in the thread, or run the function in a copy of the context,
      as below. (Python 3.14 has ``-X thread_inherit_context=1``, the default of free-threaded builds, with which a
      thread starts with the context of the one that starts it.)
    - An `asyncio` task and `asyncio.to_thread` start with what their creator used at that time, and change nothing for
      it.
    - A process that is forked starts with what its parent used, a spawned one with the default.

    A pullback stays on the wing of its forward pass. ``with`` statements may be nested, and an object of ``use`` may be
    entered more than once; what is left of them counts, in whatever order they end.

    Examples
    --------
    >>> import gpurnn
    >>> with gpurnn.use("reference"):
    ...     pass

    Threads that compute as the one that starts them:

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
            before = (*before[:-2], before[-1])  # the first of two calls without ``with`` is over
        _uses.set((*before, self))

    def __enter__(self) -> None:
        if self._entered or _uses.get()[-1:] != (self,):
            _uses.set((*_uses.get(), self))
        self._entered = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        uses = list(_uses.get())
        if self in uses:  # not in a context that is another than that of __enter__
            del uses[len(uses) - 1 - uses[::-1].index(self)]
            _uses.set(tuple(uses))


def numpy_wing() -> str:
    """The name of what computes for NumPy arrays, as `use` takes it."""
    uses = _uses.get()
    return uses[-1].wing if uses else _default()[0]


def why_default() -> str:
    """In words, why what computes for NumPy arrays by default is what it is."""
    return _default()[1]


@functools.cache
def _default() -> tuple[str, str]:
    """The wing for NumPy arrays where nobody has chosen one, and why. It stays the same in a process."""
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
    """What computes for an array, as a run's directory names it: "reference", "native (avx512)", "host" or "cuda"."""
    library = library_of(array)
    if library != "numpy":
        return "cuda" if library == "cupy" else str(library)
    wing = numpy_wing()
    if wing != "native":
        return wing
    processor = importlib.import_module(f"{NUMPY_WINGS['native']}.processor")
    return f"native ({processor.chosen()})"


def wing_of_numpy() -> Wing | None:
    """The module of fused operations that computes for NumPy arrays; None where they are not to be computed with."""
    name = numpy_wing()
    return None if name == "cuda" else _functions(NUMPY_WINGS[name])


@functools.cache
def _functions(module_name: str) -> Wing:
    """The functions of a wing, and the reference's in place of those that it does not define.

    Raises
    ------
    TypeError
        The wing defines a forward function without the functions that read what it saves, or one of those alone.
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
    """The device that ``array`` is on, as its library's functions take it."""
    from array_api_compat import device as device_of

    return device_of(array)


def zeros(xp: Any, shape: tuple[int, ...], like: Any) -> Any:
    """Zeros of ``shape``, of the dtype of ``like`` and on its device."""
    return xp.zeros(shape, dtype=like.dtype, device=device(like))


def why_no_cuda() -> Iterator[str]:
    """The reasons why CuPy arrays cannot be computed with; none if they can."""
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
    """The module of arrays of a device that ``to`` is given by name; a module is returned unchanged.

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
