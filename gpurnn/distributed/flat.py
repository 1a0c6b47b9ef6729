"""Lists of arrays as one array for each dtype, so that they are exchanged at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks, _dispatch
from .._contract import Array


def dtype_of(array: Array) -> str:
    return np.dtype(_checks.dtype_name(array)).str


def shaped(flat: Mapping[str, NDArray[Any]], like: Mapping[str, Array]) -> dict[str, Array]:
    """The entries of one array for each dtype, as arrays of the shapes and libraries of ``like``."""
    result, place = {}, dict.fromkeys(flat, 0)
    for name, array in like.items():
        dtype, size = dtype_of(array), int(np.prod(array.shape))
        part = flat[dtype][place[dtype] : place[dtype] + size].reshape(tuple(array.shape))
        place[dtype] += size
        result[name] = _dispatch.from_numpy(_dispatch.namespace("distributed", array=array), part)
    return result


def changed(arrays: Sequence[Array], change: Callable[[str, NDArray[Any]], NDArray[Any]]) -> list[Array]:
    """Arrays of the shapes of ``arrays``, whose entries are ``change`` of all entries of a dtype in one array."""
    like = {str(i): array for i, array in enumerate(arrays)}
    parts: dict[str, list[NDArray[Any]]] = {}
    for array in arrays:
        parts.setdefault(dtype_of(array), []).append(np.asarray(_dispatch.to_numpy(array)).ravel())
    return list(shaped({dtype: change(dtype, np.concatenate(p)) for dtype, p in parts.items()}, like).values())
