"""Measures the memory that a call allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from gpurnn.reference import buffers


def most_bytes(call: Callable[[], object]) -> int:
    """The peak number of bytes that ``call`` allocates, not counting scratch memory left by earlier calls.

    That is the least of three calls. The first one imports modules, and in any of them other threads may allocate, or a
    collection of garbage may run finalizers of earlier tests. What the call itself allocates, each of them does.
    """
    return min(_bytes(call) for _ in range(3))


def _bytes(call: Callable[[], object]) -> int:
    pool, buffers._pool[:] = buffers._pool[:], []
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        buffers._pool[:] = pool
