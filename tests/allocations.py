"""Measures the memory that a call allocates."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from gpurnn.reference import buffers


def most_bytes(call: Callable[[], object]) -> int:
    """The peak number of bytes that a second ``call`` allocates, not counting scratch memory left by earlier calls.

    The first call imports modules, and fills what is kept from call to call.
    """
    call()
    pool, buffers._pool[:] = buffers._pool[:], []
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        buffers._pool[:] = pool
