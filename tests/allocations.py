"""The memory that a call takes, as tests compare it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from gpurnn.reference import buffers


def most_bytes(call: Callable[[], object]) -> int:
    """The most bytes that ``call`` allocates at a time, without scratch memory of calls before it."""
    pool, buffers._pool[:] = buffers._pool[:], []
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        buffers._pool[:] = pool
