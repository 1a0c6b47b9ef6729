"""The pool of scratch memory for computations on NumPy arrays: set its limit, and free it.

A layer's large arrays that are needed for one call, or until its pullback is gone, come from a pool, and the next call
uses them again: new memory costs a page fault for every 4 KiB. The pool adapts to the sizes that a program uses. When
no buffer fits, it replaces one that is just too small, and frees those that have not been used for long. All threads of
a process share the pool, and it is empty in the child of a fork. PyPy and free-threaded CPython do not count references
exactly, so there the pool stays empty, and setting a limit has no effect.

The functions have the names of `cupy.cuda.MemoryPool`'s methods. CuPy arrays come from CuPy's own pool, which
``cupy.get_default_memory_pool()`` controls.

Examples
--------
>>> import numpy as np
>>> import gpurnn
>>> before = gpurnn.scratch.get_limit()
>>> gpurnn.scratch.set_limit(100 * 2**20)
>>> layer = gpurnn.LSTM(64, 64)
>>> y, state = layer(np.zeros((100, 8, 64), np.float32))
>>> 0 <= gpurnn.scratch.used_bytes() <= gpurnn.scratch.total_bytes() <= 100 * 2**20
True
>>> gpurnn.scratch.free_all_blocks()
>>> gpurnn.scratch.set_limit(before)
"""

from __future__ import annotations

import importlib
from typing import Any

from . import _checks, _dispatch

__all__ = ["free_all_blocks", "get_limit", "set_limit", "total_bytes", "used_bytes"]

_buffers: Any = importlib.import_module(f"{_dispatch.WINGS['numpy']}.buffers")


def set_limit(size: int) -> None:
    """Set the largest number of bytes that the pool may have, 1 GiB by default.

    Memory beyond the limit is allocated by NumPy, and freed like any other array. Unused buffers are freed until the
    pool is within the limit.

    Parameters
    ----------
    size : int
        Bytes, at least 0. With 0 nothing is kept; in CuPy, 0 means that there is no limit.

    Raises
    ------
    TypeError, ValueError
        ``size`` is not an integer, or is negative.

    Examples
    --------
    >>> import gpurnn
    >>> before = gpurnn.scratch.get_limit()
    >>> gpurnn.scratch.set_limit(2**20)
    >>> gpurnn.scratch.get_limit()
    1048576
    >>> gpurnn.scratch.set_limit(before)
    """
    _buffers.set_limit(_checks.integer_at_least("scratch.set_limit", "size", size, 0))


def get_limit() -> int:
    """The largest number of bytes that the pool may have."""
    return int(_buffers.get_limit())


def free_all_blocks() -> None:
    """Free all unused memory of the pool; memory that a pullback still needs stays.

    It never waits, so that a signal handler can call it: if another call is using the pool, that call frees the memory.

    Examples
    --------
    >>> import gpurnn
    >>> gpurnn.scratch.free_all_blocks()
    >>> gpurnn.scratch.total_bytes() == gpurnn.scratch.used_bytes()
    True
    """
    _buffers.free_all_blocks()


def total_bytes() -> int:
    """The bytes that the pool has, in use or not."""
    return int(_buffers.total_bytes())


def used_bytes() -> int:
    """The bytes of the pool's buffers that are in use: by a computation, or by a pullback that still exists."""
    return int(_buffers.used_bytes())
