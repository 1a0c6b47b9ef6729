"""Large scratch arrays, used again from call to call.

Fresh memory is handed out by the kernel page by page on first touch, which for the arrays of a training step costs as
much as a good part of its arithmetic. `empty` lends memory of this pool instead. A buffer is free again once nothing
but the pool refers to it: a view keeps its buffer alive, so what a pullback has saved, or what a caller still holds,
is never lent twice. Where references are not counted exactly, on PyPy and on free-threaded CPython, there is no pool.

`gpurnn.scratch` is the public side of it.
"""

from __future__ import annotations

import math
import sys
import sysconfig
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpurnn import _fork

ENABLED = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
"""Whether references are counted exactly."""

LIMIT = 1 << 30
"""Bytes of the pool by default."""

SMALL = 1 << 16
"""Bytes of the smallest array that comes from the pool."""

_LENDS_KEPT = 128
"""A free buffer that was not lent in so many calls of `empty` is given back when no buffer fits: sizes have changed."""


class _Buffer:
    def __init__(self, size: int) -> None:
        self.size = size
        self.memory: NDArray[np.uint8] = np.empty(size, np.uint8)
        self.lent = 0
        """The number of the call of `empty` that lent it last."""

    def references(self) -> int:
        return sys.getrefcount(self.memory)

    @property
    def is_free(self) -> bool:
        return self.references() == _UNUSED


_UNUSED = _Buffer(0).references() if ENABLED else 0
_pool: list[_Buffer] = []
_lends = 0
_limit = LIMIT
_asked: list[int] = []
"""The sizes that the pool is still to be shrunk to, in bytes."""
_lock = _fork.Lock()
_fork.in_child(_pool.clear)  # blocks that other threads of the parent borrowed would never be freed


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.floating]:
    """An uninitialised C-contiguous array, for scratch that no caller of the wing gets to see."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = None
    if size >= SMALL and ENABLED:
        # Never waits: a signal handler or finaliser may get here while its own thread holds the lock.
        lock = _lock.current
        if lock.acquire(blocking=False):
            try:
                memory = _lend(size)
            finally:
                lock.release()
            _shrink_as_asked()
    return np.empty(shape, dtype) if memory is None else memory[:size].view(dtype).reshape(shape)


def _lend(size: int) -> NDArray[np.uint8] | None:
    """Memory of a free buffer that fits or of a new one; None if the limit leaves no room for one."""
    global _lends
    _lends += 1
    fitting = [buffer for buffer in _pool if size <= buffer.size <= 2 * size and buffer.is_free]
    if fitting:
        buffer = min(fitting, key=lambda buffer: buffer.size)
    else:
        _drop_near(size)
        _shrink(_limit - size, _lends - _LENDS_KEPT)
        if total_bytes() + size > _limit:
            return None
        buffer = _Buffer(size)
        _pool.append(buffer)
    buffer.lent = _lends
    return buffer.memory


def _drop_near(size: int) -> None:
    """Give back the largest free buffer that is just too small: one of ``size`` will serve both."""
    near = [buffer for buffer in _pool if buffer.size < size <= 2 * buffer.size and buffer.is_free]
    if near:
        _pool.remove(max(near, key=lambda buffer: buffer.size))


def _shrink(most: int, since: int) -> None:
    """Give back free buffers: those last lent before the call ``since``, and the next oldest while over ``most``."""
    for buffer in sorted(_pool, key=lambda buffer: buffer.lent):
        if buffer.lent >= since and total_bytes() <= most:
            break
        if buffer.is_free:
            _pool.remove(buffer)


def _shrink_as_asked() -> None:
    """Do what `_asked` says.

    Never waits, as `empty` does not: who has the lock comes here next.
    """
    while _asked:
        lock = _lock.current
        if not lock.acquire(blocking=False):
            return
        try:
            while _asked:
                _shrink(_asked.pop(), 0)
        finally:
            lock.release()


def set_limit(size: int) -> None:
    """The most bytes of the pool from now on."""
    global _limit
    _limit = size
    _asked.append(size)
    _shrink_as_asked()


def get_limit() -> int:
    """The most bytes of the pool."""
    return _limit


def free_all_blocks() -> None:
    """Give back all free buffers."""
    _asked.append(-1)
    _shrink_as_asked()


def total_bytes() -> int:
    """Bytes of the pool's buffers."""
    return sum(buffer.size for buffer in tuple(_pool))


def used_bytes() -> int:
    """Bytes of the buffers that are lent."""
    return sum(buffer.size for buffer in tuple(_pool) if not buffer.is_free)


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """``a @ b`` of two matrices, in memory of the pool."""
    return np.matmul(a, b, out=empty((a.shape[0], b.shape[1]), a.dtype))
