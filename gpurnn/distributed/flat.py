"""Lists of arrays as one array for each dtype, so that they are exchanged at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .. import _checks, _dispatch
from .._contract import Array


def dtype_of(array: Array) -> str:
    return np.dtype(_checks.dtype_name(array)).str


def shaped(flat: Mapping[str, Array], like: Mapping[str, Array]) -> dict[str, Array]:
    """The entries of one array for each dtype, as arrays of the shapes of ``like``."""
    result, place = {}, dict.fromkeys(flat, 0)
    for name, array in like.items():
        dtype, size = dtype_of(array), math.prod(array.shape)
        xp = _dispatch.namespace("distributed", array=flat[dtype])
        result[name] = xp.reshape(flat[dtype][place[dtype] : place[dtype] + size], tuple(array.shape))
        place[dtype] += size
    return result


def changed(arrays: Sequence[Array], change: Callable[[Array], Array]) -> list[Array]:
    """Arrays of the shapes of ``arrays``, whose entries are ``change`` of all entries of a dtype in one array."""
    if not arrays:
        return []
    like = {str(i): array for i, array in enumerate(arrays)}
    xp = _dispatch.namespace("distributed", **{f"arrays[{i}]": array for i, array in like.items()})
    parts: dict[str, list[Array]] = {}
    for array in arrays:
        parts.setdefault(dtype_of(array), []).append(xp.reshape(array, (-1,)))
    return list(shaped({dtype: change(xp.concat(p)) for dtype, p in parts.items()}, like).values())
