"""The ingress: a caller's arrays become the arrays that shared code and the wings compute with.

A public function passes its arrays through `take`, which checks them, converts them and returns them. Every array that
it returns is aligned, C-contiguous and in the machine's byte order, so a result does not depend on how the caller's
array is stored. An array that is already stored like that is returned itself. A caller's array is never written to.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable, Mapping, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks, _dispatch
from ._contract import Array

if TYPE_CHECKING:
    import cupy

Arrays = Mapping[str, "Array | None"]

_NONE: Arrays = {}

_LARGEST = 2**63 - 1

_STORED = 0x101
"""The bits of a NumPy array's ``flags.num`` for C-contiguous and aligned."""


def take(
    where: str,
    floats: Arrays = _NONE,
    integers: Arrays = _NONE,
    bools: Arrays = _NONE,
    weights: Arrays = _NONE,
    *,
    needed: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = _checks.FLOATS,
    nan_is_missing: bool = False,
) -> tuple[Any, ...]:
    """Return the namespace of a caller's arrays, then the arrays in the order given, ready to compute with.

    Parameters
    ----------
    where : str
        The caller's public name, for messages.
    floats : dict of arrays or None
        Arrays by argument name. They have one dtype, which is in ``dtypes``.
    integers : dict of arrays or None
        Arrays of any integer dtype. They are returned as int64.
    bools : dict of arrays or None
        Bool arrays, or integer arrays of zeros and ones. They are returned as bool.
    weights : dict of arrays or None
        The mask of a loss: an array as in ``bools``, or an array of the dtype of ``floats``.
    needed : tuple of str
        The arguments that may not be None.
    dtypes : tuple of str
    nan_is_missing : bool
        Whether NaN in ``floats`` stands for a missing value. The message about a masked array says so.

    Raises
    ------
    TypeError
        An array is missing, belongs to no supported library, belongs to another library than the rest, or has a wrong
        dtype.
    ValueError
        An unsigned integer is above 2**63 - 1, or an integer that stands for a bool is neither 0 nor 1. This is
        checked in NumPy arrays only, because reading an array on a GPU would wait for the device.

    Examples
    --------
    >>> xp, x, lengths = take("f", {"x": np.ones(2, ">f8")}, {"lengths": np.array([1], "u1")})
    >>> x.dtype, lengths.dtype
    (dtype('float64'), dtype('int64'))
    """
    groups = (floats, integers, bools, weights)
    library, first = "numpy", None
    for group in groups:
        for name, array in group.items():
            if array is None:
                if name in needed:
                    raise TypeError(f"{where}: {name} is None, expected an array")
            else:
                first = array
                if type(array) is not np.ndarray:
                    library = ""
    if first is None or not library:
        pairs = [pair for group in groups for pair in group.items()]
        cure = functools.partial(_unmasked, tuple(integers), tuple(weights), nan_is_missing)
        library = _dispatch.common_library(where, pairs, cure)
    xp, stored = _dispatch.namespace_of(library, first), _STORED_BY.get(library, _as_it_is)

    taken, like = [xp], None
    for array in floats.values():
        if array is not None:
            # Arrays of one dtype share its object, unless their byte orders differ.
            if like is None:
                like = array
                if _checks.dtype_name(array) not in dtypes:
                    _checks.same_dtype(where, dtypes, **floats)
            elif array.dtype is not like.dtype:
                _checks.same_dtype(where, dtypes, **floats)
            array = stored(array)
        taken.append(array)
    for name, array in integers.items():
        taken.append(None if array is None else _integers(where, name, xp, stored(array)))
    for name, array in bools.items():
        taken.append(None if array is None else _bools(where, name, xp, stored(array)))
    for name, array in weights.items():
        if array is not None:
            array = stored(array)
            if like is None or _checks.dtype_name(array) != _checks.dtype_name(like):
                or_else = "" if like is None else f", or numbers of dtype {_checks.dtype_name(like)}"
                array = _bools(where, name, xp, array, or_else)
        taken.append(array)
    return tuple(taken)


def cotangent(where: str, name: str, value: Array | None, output: Array) -> Any:
    """Return the cotangent d``name``, ready to compute with; reject one that is neither None nor like ``output``."""
    if value is None:
        return None
    _, _, value = take(where, {name: output, f"d{name}": value}, dtypes=_checks.INEXACT)
    _checks.shape(where, f"d{name}", value, tuple(output.shape), f"the shape of {name}")
    return value


def parameters(where: str, params: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return a layer's parameters, ready to compute with; reject one whose shape differs from that in ``shapes``.

    A wing does not check them: it would read only a part of an array that is too large, and past the end of one that is
    too small.
    """
    first = next(iter(params.values()))
    if (
        all(_is_stored(p) and p.dtype == first.dtype and p.shape == shapes[name] for name, p in params.items())
        and _checks.dtype_name(first) in _checks.FLOATS
    ):
        return dict(params)  # nearly always
    named = {f"params[{name!r}]": p for name, p in params.items()}
    _, *taken = take(where, named, needed=tuple(named), dtypes=_checks.INEXACT)
    for name, array in zip(params, taken, strict=True):
        _checks.shape(where, f"params[{name!r}]", array, shapes[name], "the shape that the layer made it with")
    return dict(zip(params, taken, strict=True))


def is_single(value: Any) -> bool:
    """Whether a value is one array of numbers, and not a sequence of arrays or of texts.

    NumPy and pandas can store such sequences too, in arrays whose dtype is for objects or texts.
    """
    dtype = getattr(value, "dtype", None)
    return dtype is not None and getattr(dtype, "kind", "") not in ("O", "U", "S", "T")


def has_masked(value: Any) -> bool:
    """Whether an array, or an array in nested lists, has masked entries, which NumPy silently turns into numbers."""
    if isinstance(value, (list, tuple)):
        return any(map(has_masked, value))
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any())


def entries(where: str, name: str, values: Any, expected: str) -> list[Any]:
    """Return the entries of a sequence, or of an array along its first axis; reject anything else.

    Raises
    ------
    TypeError
        ``values`` is not a sequence, or is an array of an unsupported library.
    ValueError
        ``values`` is an array without axes.
    """
    if is_single(values):
        _dispatch.namespace(where, **{name: values})
        if values.ndim == 0:
            raise ValueError(f"{where}: {name} has shape (), expected {expected}")
        return [values[i, ...] for i in range(values.shape[0])]
    if hasattr(values, "to_numpy") and getattr(values, "ndim", 1) > 1:
        raise _checks.not_an_array(where, name, values)  # its entries would be the names of its columns
    unordered = isinstance(values, (str, bytes, Mapping, Set))
    sequence = hasattr(values, "__len__") and (hasattr(values, "__iter__") or hasattr(values, "__getitem__"))
    if unordered or not sequence or getattr(values, "ndim", 1) == 0:
        raise TypeError(f"{where}: {name} is {_checks.described(values)}, expected {expected}")
    return list(values)


def contiguous(array: Array) -> Array:
    """Return an array of a supported library in C order; the array itself if it already is in C order."""
    return _STORED_BY.get(str(_dispatch.library_of(array)), _as_it_is)(array)


def native(array: Array) -> Array:
    """Return an array of a supported library in the machine's byte order; nothing else about its storage changes."""
    return array if getattr(array.dtype, "isnative", True) else array.astype(array.dtype.newbyteorder("="))


def apart(arrays: Mapping[str, Array], written: Mapping[str, Array]) -> dict[str, Array]:
    """Return ``arrays``, with copies of those that overlap in memory with an array that will be written."""
    everything = [*arrays.values(), *written.values()]
    if not hasattr(everything[0], "flags"):
        return dict(arrays)  # it is not known where they are stored
    # Nearly always no array is a view, and none is given twice.
    if len({id(a) for a in everything if a.flags.owndata}) == len(everything):
        return dict(arrays)
    bounds = sorted(_bounds(array) for array in written.values())
    # Running maximum of the ends of the written arrays, which may overlap each other.
    ends = list(itertools.accumulate((end for _, end in bounds), max))

    def overlaps(array: Array) -> bool:
        start, end = _bounds(array)
        before = bisect.bisect_left(bounds, (end,))
        return before > 0 and ends[before - 1] > start

    return {
        name: _dispatch.namespace("", array=array).asarray(array, copy=True) if overlaps(array) else array
        for name, array in arrays.items()
    }


def write_back(values: Array, into: Array) -> None:
    """Write ``values``, an updated array that `take` made from ``into``, to ``into``, unless they share memory."""
    if values is into or not values.size or _bounds(values) == _bounds(into):
        return
    if _dispatch.library_of(into) == "cupy" and _is_unaligned(into):
        values, into = _bytes(values), _bytes(into)
    into[...] = values


def _integers(where: str, name: str, xp: Any, array: Array) -> Array:
    if array.dtype == xp.int64:
        return array
    _checks.integer(where, name, array)
    if _checks.dtype_name(array) == "uint64":
        if isinstance(array, np.ndarray):
            largest = int(array.max(initial=0))
            if largest > _LARGEST:
                raise ValueError(f"{where}: {name} holds {largest}, expected at most 2**63 - 1 = {_LARGEST}")
        else:
            # The value is not read, and a clipped one is still out of any range.
            bound = xp.asarray(_LARGEST, dtype=xp.uint64, device=_dispatch.device(array))
            array = xp.where(array > bound, bound, array)
    return xp.astype(array, xp.int64)


def _bools(where: str, name: str, xp: Any, array: Array, or_else: str = "") -> Array:
    if array.dtype == xp.bool:
        return array
    _checks.boolean(where, name, array, or_else)
    if isinstance(array, np.ndarray):
        wrong = array[(array != 0) & (array != 1)]
        if wrong.size:
            raise ValueError(f"{where}: {name} holds {wrong[0]}, expected bools, or integers 0 and 1{or_else}")
    return array != 0


def is_ready(array: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether an array is NumPy's, has this dtype and shape, is aligned and is in C order.

    The strides of axes of length 1 are ignored.
    """
    return (
        type(array) is np.ndarray
        and (array.dtype is dtype or array.dtype == dtype)
        and array.shape == shape
        and array.flags.num & _STORED == _STORED
    )


def _is_stored(array: Array) -> bool:
    """Whether `_stored_numpy` would return the array itself."""
    return (
        type(array) is np.ndarray
        and array.flags.num & _STORED == _STORED
        and array.dtype.isnative
        and 1 not in array.shape
    )


def _stored_numpy(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if type(array) is not np.ndarray:
        array = np.asarray(array)  # a mapped file, or a NumPy scalar
    if array.flags.num & _STORED != _STORED or not array.dtype.isnative:
        return np.array(array, array.dtype.newbyteorder("="), order="C")
    # NumPy counts any stride along an axis of length 1 as contiguous. A BLAS may not.
    return array.reshape(-1).reshape(array.shape) if 1 in array.shape else array


def _stored_cupy(array: cupy.ndarray) -> cupy.ndarray:
    if _is_unaligned(array):
        return _bytes(array).copy(order="C").view(array.dtype).reshape(array.shape)
    return array if array.flags.c_contiguous else array.copy(order="C")


def _is_unaligned(array: cupy.ndarray) -> bool:
    """Whether a CuPy array is misaligned, so that only its bytes can be read."""
    return bool(array.size and array.data.ptr % array.dtype.itemsize)


def _bytes(array: cupy.ndarray) -> cupy.ndarray:
    """The bytes of a CuPy array, along an additional last axis."""
    of_kind, size = type(array), array.dtype.itemsize
    return of_kind((*array.shape, size), np.uint8, memptr=array.data, strides=(*array.strides, 1))


def _bounds(array: Array) -> tuple[int, int]:
    """The addresses where the memory of a NumPy or CuPy array begins and ends."""
    if isinstance(array, np.ndarray):
        return np.lib.array_utils.byte_bounds(array)
    start = end = int(array.data.ptr)
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            start += stride * (size - 1)
        else:
            end += stride * (size - 1)
    return start, end + array.dtype.itemsize


def _as_it_is(array: Array) -> Array:
    return array


_STORED_BY: dict[str, Callable[[Array], Array]] = {"numpy": _stored_numpy, "cupy": _stored_cupy}
"""For each library, the function that makes an array aligned, C-contiguous and native in byte order."""


def _unmasked(integers: tuple[str, ...], weights: tuple[str, ...], nan_is_missing: bool, name: str, array: Any) -> str:
    """Advice on how to pass a masked array without losing its mask."""
    if nan_is_missing:
        floats = name if array.dtype.kind == "f" else f"{name}.astype('float64')"
        return f"NaN stands for what is missing, so pass {floats}.filled(numpy.nan)"
    if "mask" in weights and name in ("labels", "target"):
        return f"pass {name}.filled(0), and mask=~numpy.ma.getmaskarray({name})"
    if "lengths" in integers and name != "lengths":
        return f"pass {name}.filled(0), and the steps of each sequence that exist as lengths"
    return _checks.unmasked(name)
