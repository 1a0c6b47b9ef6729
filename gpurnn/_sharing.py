"""Shared arrays: one array is one parameter, however many names it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ._contract import Array


def first_names(arrays: Mapping[str, Array]) -> dict[str, str]:
    """For each name the first name of the same array: one with the same memory, shape, strides and dtype."""
    if _apart(arrays.values()):
        return {name: name for name in arrays}
    first: dict[Any, str] = {}
    return {name: first.setdefault(_identity(array), name) for name, array in arrays.items()}


def merged(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return ``arrays`` with each array once, under its first name."""
    return {name: arrays[name] for name, first in first_names(arrays).items() if name == first}


def summed(grads: Mapping[str, Array], first: Mapping[str, str]) -> dict[str, Array]:
    """The gradient of each parameter: the sum over all names that share its ``first`` name."""
    total: dict[str, Array] = {}
    for name, parameter in first.items():
        if name in grads:
            total[parameter] = total[parameter] + grads[name] if parameter in total else grads[name]
    return total


def check_apart(where: str, argument: str, arrays: Mapping[str, Array]) -> None:
    """Reject arrays that share memory, unless they are one and the same array."""
    if _apart(arrays.values()):
        return
    spans = sorted((*span, name) for name, array in merged(arrays).items() if (span := _span(array)) is not None)
    end, last = -1, ""
    for start, stop, name in spans:
        if start < end and _overlap(arrays[last], arrays[name]):
            one, other = (n for n in arrays if n in (last, name))
            raise ValueError(
                f"{where}: {argument}[{other!r}] has memory in common with {argument}[{one!r}] but is another view of "
                f"it, expected separate arrays, or one and the same array; make one of them a copy"
            )
        if stop > end:
            end, last = stop, name


def _apart(arrays: Iterable[Array]) -> bool:
    """Whether all are NumPy arrays with different owners of their memory, which needs no look at addresses."""
    owners, count = set(), 0
    for array in arrays:
        owner = array
        if type(array) is np.ndarray and array.base is not None:
            owner = array.base
        if type(owner) is not np.ndarray or not owner.flags.owndata:
            return False
        owners.add(id(owner))
        count += 1
    return len(owners) == count


def _address(array: Array) -> Any:
    """The address where an array begins, or None if its library does not expose it."""
    if isinstance(array, np.ndarray):
        return array.__array_interface__["data"][0]
    return getattr(getattr(array, "data", None), "ptr", None)


def _identity(array: Array) -> Any:
    address = _address(array)
    if address is None or 0 in array.shape:
        return id(array)
    steps = tuple(stride for stride, n in zip(array.strides, array.shape, strict=True) if n > 1)
    return type(array), address, tuple(array.shape), steps, str(array.dtype)


def _span(array: Array) -> tuple[int, int] | None:
    """The first address of an array and the one after its last; None if it is empty or the address is unknown."""
    address = _address(array)
    if address is None or 0 in array.shape:
        return None
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    return address + sum(min(r, 0) for r in reach), address + sum(max(r, 0) for r in reach) + array.dtype.itemsize


def _overlap(a: Array, b: Array) -> bool:
    """Whether two arrays share memory; interleaved parts of one array do not."""
    if isinstance(a, np.ndarray):
        return np.shares_memory(a, b)
    import cupy

    return bool(cupy.shares_memory(a, b))
