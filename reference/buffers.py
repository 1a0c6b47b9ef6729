"""Large scratch arrays that are reused from call to call.

The operating system hands out new memory page by page on first touch, which for the arrays of a training step costs a
good part of the time of its arithmetic. `empty` lends memory of this pool instead. A buffer is free again once only the
pool refers to it. A view keeps its buffer alive, so memory that a pullback has saved, or that a caller still holds, is
never lent twice. Where references are not counted exactly, on PyPy and on free-threaded CPython, there is no pool.

`gpurnn.scratch` is the public interface.
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
"""The pool's default limit, in bytes."""

SMALL = 1 << 16
"""The bytes of the smallest array that comes from the pool."""

_LENDS_KEPT = 128
"""When no buffer fits, free buffers that were not lent in this many calls of `empty` are freed: sizes have changed."""


class _Buffer:
    def __init__(self, size: int) -> None:
        self.size = size
        self.memory: NDArray[np.uint8] = np.empty(size, np.uint8)
        self.lent = 0
        """The number of the call of `empty` that last lent the buffer."""

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
"""The sizes, in bytes, that the pool must still shrink to."""
_lock = _fork.Lock()
_fork.in_child(_pool.clear)  # blocks that other threads of the parent borrowed would never be freed


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.floating]:
    """An uninitialised C-contiguous array, for scratch that no caller of the wing ever sees."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = None
    if size >= SMALL and ENABLED:
        # Never wait: a signal handler or finaliser may run this while its own thread holds the lock.
        lock = _lock.current
        if lock.acquire(blocking=False):
            try:
                memory = _lend(size)
            finally:
                lock.release()
            _shrink_as_asked()
    return np.empty(shape, dtype) if memory is None else np.ndarray(shape, dtype, memory)


def _lend(size: int) -> NDArray[np.uint8] | None:
    """The memory of a free buffer that fits, or of a new one; None if the limit leaves no room."""
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
    """Free the largest free buffer that is just too small: one of ``size`` will serve both uses."""
    near = [buffer for buffer in _pool if buffer.size < size <= 2 * buffer.size and buffer.is_free]
    if near:
        _pool.remove(max(near, key=lambda buffer: buffer.size))


def _shrink(most: int, since: int) -> None:
    """Free unused buffers: those last lent before the call ``since``, then the next oldest while over ``most``."""
    for buffer in sorted(_pool, key=lambda buffer: buffer.lent):
        if buffer.lent >= since and total_bytes() <= most:
            break
        if buffer.is_free:
            _pool.remove(buffer)


def _shrink_as_asked() -> None:
    """Shrink the pool to the sizes in `_asked`.

    Like `empty`, it never waits: whoever has the lock calls this function next.
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
    """Set the largest number of bytes of the pool."""
    global _limit
    _limit = size
    _asked.append(size)
    _shrink_as_asked()


def get_limit() -> int:
    """The largest number of bytes of the pool."""
    return _limit


def free_all_blocks() -> None:
    """Free all unused buffers."""
    _asked.append(-1)
    _shrink_as_asked()


def total_bytes() -> int:
    """The bytes of the pool's buffers."""
    return sum(buffer.size for buffer in tuple(_pool))


def used_bytes() -> int:
    """The bytes of the buffers that are lent."""
    return sum(buffer.size for buffer in tuple(_pool) if not buffer.is_free)


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """``a @ b`` of two matrices, in memory of the pool."""
    return np.matmul(a, b, out=empty((a.shape[0], b.shape[1]), a.dtype))
