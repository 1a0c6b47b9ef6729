"""Arrays of other libraries: gpurnn computes with views of them, and returns results of the same kind.

These are PyTorch's tensors, JAX's arrays, and every array that shares its memory by DLPack or
``__cuda_array_interface__`` and whose library takes one back. The views are NumPy or CuPy arrays, so the code that
computes knows only those two.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import _checks, _dispatch

F = TypeVar("F", bound=Callable[..., Any])

METHODS = ("__call__", "vjp", "step")
"""The methods of a layer that take arrays and return results of the same kind."""

_CPU_DEVICES = (1, 3, 11)
"""DLPack's numbers for memory that a CPU reads: its own, and memory that CUDA or ROCm has pinned."""


class Kind(NamedTuple):
    """A library and a device: all arrays and results of one call are of one kind."""

    library: str
    device: str
    """The device's name, as the library writes it."""
    on_host: bool
    back: Callable[[Any], Any]
    """Converts a NumPy or CuPy array to an array of this kind over the same memory."""
    module: str
    """The module whose ``from_dlpack`` makes an array of this kind, as a user writes it."""

    def __str__(self) -> str:
        return f"{self.library} array on {self.device}"


def kind_of(array: Any) -> Kind | None:
    """The kind of an array of another library; None for NumPy and CuPy arrays, and for anything else."""
    kind = type(array)
    if isinstance(array, np.ndarray) or _dispatch.library_of(array) is not None:
        return None
    library = kind.__module__.partition(".")[0]
    if isinstance(array, _class("torch", "Tensor")):
        return Kind("torch", str(array.device), array.device.type == "cpu", to_torch, "torch")
    if isinstance(array, _class("jax", "Array")):
        return _of_jax(array)
    if hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__"):
        space = array.__array_namespace__() if hasattr(kind, "__array_namespace__") else sys.modules.get(library)
        if hasattr(space, "from_dlpack"):
            number, index = map(int, array.__dlpack_device__())
            on_host = number in _CPU_DEVICES
            device = getattr(array, "device", "cpu" if on_host else f"cuda:{index}")
            back = functools.partial(_to_namespace, space, device)
            return Kind(library, str(device), on_host, back, getattr(space, "__name__", library))
    if library == "numba" and hasattr(kind, "__cuda_array_interface__"):
        return Kind(library, "cuda", False, sys.modules["numba.cuda"].as_cuda_array, "numba.cuda")
    return None


def _class(module: str, name: str) -> Any:
    """A class of a library if the caller has imported the library; otherwise an empty tuple."""
    return getattr(sys.modules.get(module), name, ())


def _of_jax(array: Any) -> Kind:
    import jax

    if isinstance(array, jax.core.Tracer):
        return Kind("jax", "a device that jax chooses", True, _to_jax, "jax.numpy")
    device = next(iter(array.devices()))
    return Kind("jax", str(device), device.platform == "cpu", _to_jax, "jax.numpy")


def view_of(where: str, name: str, array: Any, kind: Kind, *, written: bool = False) -> Any:
    """A NumPy or CuPy view of the memory of an array of ``kind``; ``written`` if it will be changed in place.

    Raises
    ------
    TypeError
        The memory cannot be shared.
    """
    if kind.library == "torch":
        return _view_of_torch(where, name, array, kind, written)
    if kind.library == "jax":
        return _view_of_jax(where, name, array, kind, written)
    if not hasattr(type(array), "__dlpack__"):
        return _cupy(where, name, kind).asarray(array)
    try:
        view = np.from_dlpack(array) if kind.on_host else _cupy(where, name, kind).from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{where}: {name} is a {kind} that cannot be shared: {error}") from error
    if written:
        _checks.writable(where, name, view)
    return view


def _not_recorded(where: str, name: str, array: Any, kind: Kind) -> None:
    """Reject an array whose operations PyTorch or JAX records, because the record would lack this call."""
    if kind.library == "torch":
        import torch

        if array.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                f"{where}: {name} requires gradients, which PyTorch does not record here; use the modules of "
                f"gpurnn.torch, or pass {name}.detach()"
            )
    elif kind.library == "jax":
        import jax

        if isinstance(array, jax.core.Tracer):
            raise TypeError(
                f"{where}: {name} is traced by JAX, as within jax.jit and jax.grad, expected an array with values; use "
                "the functions of gpurnn.jax"
            )


def _view_of_torch(where: str, name: str, tensor: Any, kind: Kind, written: bool) -> Any:
    import torch

    if tensor.layout is not torch.strided:
        raise TypeError(f"{where}: {name} is a {tensor.layout} tensor, expected a dense one; pass {name}.to_dense()")
    if tensor.dtype is torch.bfloat16:
        expected = " or ".join(_checks.FLOATS)
        raise TypeError(f"{where}: {name} has dtype bfloat16, expected {expected}; cast it with {name}.float()")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if kind.on_host:
        return tensor.numpy()
    if not tensor.is_cuda:
        raise TypeError(f"{where}: {name} is on {kind.device}, expected the CPU or a CUDA device; pass {name}.cpu()")
    return _cupy(where, name, kind).from_dlpack(tensor)


def _view_of_jax(where: str, name: str, array: Any, kind: Kind, written: bool) -> Any:
    if written:
        raise TypeError(
            f"{where}: {name} is an array of JAX, expected one that can be changed in place; pass numpy.array({name})"
        )
    if kind.on_host:
        return np.asarray(array)
    return _cupy(where, name, kind).from_dlpack(array)


def _cupy(where: str, name: str, kind: Kind) -> Any:
    """Return CuPy; reject an array on a GPU if CUDA cannot compute here."""
    reasons = list(_dispatch.why_no_cuda())
    if reasons:
        raise RuntimeError(f"{where}: {name} is a {kind}, and CUDA cannot compute here: {'; '.join(reasons)}")
    import cupy

    return cupy


def to_torch(array: Any) -> Any:
    """A tensor over the memory of a NumPy or CuPy array, or over a copy if no tensor can be stored like the array."""
    import torch

    if not isinstance(array, np.ndarray):
        return torch.from_dlpack(array)
    # Tensors have neither negative strides nor read-only memory.
    plain = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if plain else array.copy())


def _to_jax(array: Any) -> Any:
    import jax.numpy

    if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return jax.numpy.from_dlpack(array)


def _to_namespace(space: Any, device: Any, array: Any) -> Any:
    made = space.from_dlpack(array)
    return made if getattr(made, "device", device) == device else made.to_device(device)


def mixed(where: str, name: str, array: Any, other: str, with_array: Any) -> TypeError:
    """The error for two arrays of different kinds, at least one of them from another library."""
    one, two = _described(array), _described(with_array)
    if one[0] == two[0]:
        cure = f"{name}.to('{two[1]}') or {other}.to('{one[1]}')"
        if one[0] == "jax":
            cure = f"jax.device_put({name}, {other}.device) or jax.device_put({other}, {name}.device)"
        said = f"{name} is on {one[1]} but {other} is on {two[1]}, expected one device; move one of them, with {cure}"
        return TypeError(f"{where}: {said}")
    cures = [_converted(other, two, one), _converted(name, one, two)]
    return TypeError(
        f"{where}: {name} is a {one[0]} array but {other} is a {two[0]} array, expected one library; convert one of "
        f"them, with {' or '.join(cures)}"
    )


def check_one_kind(where: str, arrays: Iterable[tuple[str, Any]]) -> None:
    """Reject arrays, named by their expressions, unless all are of one kind; NumPy and CuPy count as one here."""
    found = [(name, array, kind_of(array)) for name, array in arrays if _is_array(array)]
    for name, array, kind in found[1:]:
        if not _alike(kind, found[0][2]):
            raise mixed(where, found[0][0], found[0][1], name, array)


def _alike(one: Kind | None, two: Kind | None) -> bool:
    return (one and one[:2]) == (two and two[:2])


def _is_array(value: Any) -> bool:
    return _dispatch.library_of(value) is not None or kind_of(value) is not None


def _described(array: Any) -> tuple[str, str, bool, str]:
    """The library of an array, its device, whether that is the CPU, and the module that has ``from_dlpack``."""
    kind = kind_of(array)
    if kind is not None:
        return kind.library, kind.device, kind.on_host, kind.module
    library = str(_dispatch.library_of(array))
    return library, "cpu" if library == "numpy" else "cuda", library == "numpy", library


def _converted(name: str, source: tuple[str, str, bool, str], target: tuple[str, str, bool, str]) -> str:
    """The expression that converts ``name`` to the target's library and device."""
    if source[2] == target[2]:
        return f"{target[3]}.from_dlpack({name})"
    if source[0] == "torch":
        moved = f"{name}.cpu()" if target[2] else f"{name}.cuda()"
    elif source[0] == "cupy":
        moved = f"cupy.asnumpy({name})"
    elif source[0] == "numpy":
        moved = f"cupy.asarray({name})"
    else:
        moved = f"numpy.asarray({name})" if target[2] else f"cupy.asarray({name})"
    library = moved.partition(".")[0]
    return moved if library == target[0] else f"{target[3]}.from_dlpack({moved})"


def _leaves(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """The entries of nested tuples, lists and dicts, each with the expression that a caller writes for it."""
    if isinstance(tree, (tuple, list)):
        for index, entry in enumerate(tree):
            yield from _leaves(f"{name}[{index}]", entry)
    elif isinstance(tree, Mapping):
        for key, entry in tree.items():
            yield from _leaves(f"{name}[{key!r}]", entry)
    else:
        yield name, tree


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, (tuple, list)):
        make = getattr(type(tree), "_make", type(tree))  # of a named tuple
        return make(_mapped(entry, function) for entry in tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(entry, function) for key, entry in tree.items()}
    return function(tree)


@contextlib.contextmanager
def advice_for(library: str) -> Iterator[None]:
    """Within this context, messages give advice in the terms of this library."""
    token = _checks.caller_library.set(library)
    try:
        yield
    finally:
        _checks.caller_library.reset(token)


class Passage:
    """The conversion of the arrays of one call, in both directions.

    Parameters
    ----------
    where : str
        The caller's public name, for messages.
    arguments : dict
        The arguments that may hold arrays, by name.
    in_place : tuple of str
        The names of the arguments whose arrays are changed.
    """

    def __init__(self, where: str, arguments: Mapping[str, Any], in_place: tuple[str, ...] = ()) -> None:
        self.where = where
        self.leaves = [leaf for name, argument in arguments.items() for leaf in _leaves(name, argument)]
        self.kind = next((kind for _, array in self.leaves if (kind := kind_of(array)) is not None), None)
        self._given: dict[int, Any] = {}
        self._views: dict[int, Any] = {}
        if self.kind is None:
            return
        for name, array in self.leaves:
            kind = kind_of(array)
            if kind is not None and name.partition("[")[0] not in in_place:
                _not_recorded(where, name, array, kind)
        check_one_kind(where, self.leaves)
        for name, array in self.leaves:
            if kind_of(array) is not None and id(array) not in self._views:
                written = name.partition("[")[0] in in_place
                view = view_of(where, name, array, self.kind, written=written)
                self._views[id(array)], self._given[id(view)] = view, array
        self._changed = [array for name, array in self.leaves if name.partition("[")[0] in in_place]

    @property
    def one(self) -> Any:
        """One of the arrays that were converted."""
        return next(iter(self._given.values()))

    def into(self, tree: Any) -> Any:
        """Replace arrays by their views."""
        return _mapped(tree, lambda leaf: self._views.get(id(leaf), leaf))

    def out(self, tree: Any) -> Any:
        """Convert results to the kind of the arguments; a view of an argument becomes that argument again."""

        def back(leaf: Any) -> Any:
            if id(leaf) in self._given:
                return self._given[id(leaf)]
            return self.kind.back(leaf) if _dispatch.library_of(leaf) is not None else leaf  # type: ignore[union-attr]

        return _mapped(tree, back)

    def through(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function with views; its messages give advice in the terms of the caller's library."""
        with advice_for(self.kind.library if self.kind else "numpy"):
            return function(*args, **kwargs)

    def changed(self) -> None:
        """Tell PyTorch which tensors were changed in place."""
        if self._changed and self.kind is not None and self.kind.library == "torch":
            import torch

            torch.autograd.graph.increment_version(self._changed)


def through(
    where: str,
    arguments: Mapping[str, Any],
    run: Callable[[dict[str, Any]], Any],
    *,
    vjp: bool = False,
    of_layer: bool = False,
    in_place: tuple[str, ...] = (),
) -> Any:
    """Call ``run``, which computes with NumPy and CuPy arrays, for arrays of any library; return results of their kind.

    Parameters
    ----------
    where : str
        The caller's public name, for messages.
    arguments : dict
        The arguments by name.
    run : callable
        Takes ``arguments`` with views in place of the arrays.
    vjp : bool
        Whether ``run`` also returns a pullback.
    of_layer : bool
        Whether the pullback's gradients of the parameters stay NumPy or CuPy arrays, as a layer's do.
    in_place : tuple of str
        The names of the arguments whose arrays ``run`` changes.
    """
    passage = Passage(where, arguments, in_place)
    if passage.kind is None:
        return run(dict(arguments))
    result = passage.through(run, passage.into(arguments))
    passage.changed()
    if not vjp:
        return passage.out(result)
    outputs, pull = result

    def pullback(cotangents: Any) -> tuple[Any, dict[str, Any]]:
        back = Passage(where, {"cotangents": cotangents})
        for name, array in back.leaves:
            if _is_array(array) and not _alike(kind_of(array), passage.kind):
                cure = _converted(name, _described(array), _described(passage.one))
                raise TypeError(
                    f"{where}: {name} is {_checks.described(array)}, expected a {passage.kind} as the inputs are; "
                    f"convert it with {cure}"
                )
        inputs, gradients = passage.through(pull, back.into(cotangents))
        return passage.out(inputs), gradients if of_layer else passage.out(gradients)

    return passage.out(outputs), pullback


def call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    method: bool = False,
    in_place: tuple[str, ...] = (),
) -> Any:
    """Call a function, or a method of a layer, with arrays of any library; see `through`.

    A function named "vjp" also returns a pullback.
    """
    signature = _signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return function(*args, **kwargs)  # raises the error that its caller expects
    name = function.__name__
    where = type(args[0]).__name__ if method else function.__qualname__.removesuffix(".vjp")
    if method and name not in ("__call__", "vjp"):
        where += f".{name}"

    def run(arguments: dict[str, Any]) -> Any:
        bound.arguments.update(arguments)
        return function(*bound.args, **bound.kwargs)

    arguments = dict(list(bound.arguments.items())[method:])
    return through(where, arguments, run, vjp=name == "vjp", of_layer=method, in_place=in_place)


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


def accepts(function: F, *, method: bool = False, in_place: tuple[str, ...] = ()) -> F:
    """Let a function take arrays of any library; see `call`. For NumPy arrays this costs one comparison."""
    first = int(method)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if len(args) > first:
            kind = type(args[first])
            if kind is dict and args[first]:
                kind = type(next(iter(args[first].values())))
            if kind is np.ndarray:
                return function(*args, **kwargs)
        return call(function, args, kwargs, method=method, in_place=in_place)

    return called  # type: ignore[return-value]


def accepts_in_place(*names: str) -> Callable[[F], F]:
    """Let a method take arrays of any library; it changes the arrays of the arguments ``names`` in place."""
    return functools.partial(accepts, method=True, in_place=names)


def handles(function: F) -> F:
    """Mark a layer's method that itself passes arrays of other libraries through `call`."""
    function.handles_foreign = True  # type: ignore[attr-defined]
    return function
