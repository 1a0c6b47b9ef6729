"""Large scratch arrays, used again from call to call.

Fresh memory is handed out by the kernel page by page on first touch, which for the arrays of a training step costs as
much as a good part of its arithmetic. `empty` lends memory of this pool instead. A buffer is free again once nothing
but the pool refers to it: a view keeps its buffer alive, so what a pullback has saved, or what a caller still holds,
is never lent twice.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LIMIT = 1 << 30
"""Bytes that the pool may keep. A buffer that it forgets lives on until its last user is done."""

_SMALL = 1 << 16
_pool: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
_lock = threading.Lock()


def _references(index: int) -> int:
    return sys.getrefcount(_pool[index])


_UNUSED = _references(0)
_pool.clear()


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.floating]:
    """An uninitialised C-contiguous array, for scratch that no caller of the wing gets to see."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if not _SMALL <= size <= LIMIT:
        return np.empty(shape, dtype)
    with _lock:
        fitting = [k for k in range(len(_pool)) if size <= _pool[k].nbytes <= 2 * size and _references(k) == _UNUSED]
        if fitting:
            raw = _pool[min(fitting, key=lambda k: _pool[k].nbytes)]
        else:
            while _pool and sum(buffer.nbytes for buffer in _pool) + size > LIMIT:
                del _pool[0]
            raw = np.empty(size, np.uint8)
            _pool.append(raw)
    return raw[:size].view(dtype).reshape(shape)


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """``a @ b`` of two matrices, in memory of the pool."""
    return np.matmul(a, b, out=empty((a.shape[0], b.shape[1]), a.dtype))
