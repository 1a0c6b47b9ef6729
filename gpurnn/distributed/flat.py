"""Lists of arrays as one array for each dtype, so that they are exchanged at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .. import _checks, _dispatch
from .._contract import Array


def dtype_of(array: Array) -> str:
    return np.dtype(_checks.dtype_name(array)).str


def shaped(flat: Mapping[str, Array], like: Mapping[str, Array]) -> dict[str, Array]:
    """Arrays of the shapes of ``like``, cut from one flat array for each dtype."""
    result, place = {}, dict.fromkeys(flat, 0)
    for name, array in like.items():
        dtype, size = dtype_of(array), math.prod(array.shape)
        xp = _dispatch.namespace("distributed", array=flat[dtype])
        result[name] = xp.reshape(flat[dtype][place[dtype] : place[dtype] + size], tuple(array.shape))
        place[dtype] += size
    return result


def changed(arrays: Sequence[Array], change: Callable[[Array], Array]) -> list[Array]:
    """Call ``change`` with all entries of each dtype in one array; return arrays of the shapes of ``arrays``."""
    if not arrays:
        return []
    like = {str(i): array for i, array in enumerate(arrays)}
    _dispatch.namespace("distributed", **{f"arrays[{i}]": array for i, array in like.items()})  # all of one library
    return list(shaped({dtype: change(flat) for dtype, flat in by_dtype(arrays).items()}, like).values())


def by_dtype(arrays: Sequence[Array]) -> dict[str, Array]:
    """All entries of the arrays of each dtype, concatenated."""
    flat = {}
    for dtype, same in of_dtypes(arrays).items():
        xp = _dispatch.namespace("distributed", array=same[0])
        flat[dtype] = xp.concat([xp.reshape(array, (-1,)) for array in same])
    return flat


def of_dtypes(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """The arrays of each dtype."""
    found: dict[str, list[Array]] = {}
    for array in arrays:
        found.setdefault(dtype_of(array), []).append(array)
    return found


def split(flat: Array, sizes: Sequence[int]) -> list[Array]:
    """Consecutive views of ``flat``, with ``sizes`` entries."""
    ends = list(itertools.accumulate(sizes))
    return [flat[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def even_sizes(count: int, parts: int) -> list[int]:
    """The sizes of ``parts`` parts of ``count`` entries; they differ by one at most."""
    return [count * (part + 1) // parts - count * part // parts for part in range(parts)]
