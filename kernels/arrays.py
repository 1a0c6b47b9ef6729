"""Layout, addresses and memory of arrays for kernels, and CuPy's current stream. Importing it imports no CuPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from array_api_compat import is_cupy_array

from . import host


def namespace(array: Any) -> Any:
    """The library of ``array``: the module ``cupy`` or ``numpy``."""
    if is_cupy_array(array):
        import cupy

        return cupy
    return np


def contiguous(array: Any) -> Any:
    """``array`` in C order, as kernels need it: itself if it is so already, else a copy. None stays None."""
    if array is None or array.flags.c_contiguous:
        return array
    copy = empty(array, array.shape, array.dtype)
    copy[...] = array
    return copy


def address(array: Any) -> int:
    """The address of the first element of an array in C order."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def empty(like: Any, shape: int | Sequence[int], dtype: Any) -> Any:
    """Fresh device memory where ``like`` is. On the host executor it holds NaN and is guarded by a red zone.

    Raises
    ------
    RuntimeError
        The current stream is being captured and the memory would come from CuPy's default pool.
    """
    if not is_cupy_array(like):
        return host.empty(shape, dtype)
    import cupy

    if getattr(cupy.cuda.get_allocator(), "__self__", None) is cupy.get_default_memory_pool() and is_captured():
        raise RuntimeError(
            "gpurnn: the current stream is being captured, and the graph would write to memory that CuPy's default "
            "pool has given to others by then; make `pool = cupy.cuda.MemoryPool()`, capture within "
            "`with cupy.cuda.using_allocator(pool.malloc):`, and keep pool as long as the graph"
        )
    return cupy.empty(shape, dtype)


def is_captured() -> bool:
    """Whether CuPy's current stream is being captured into a graph."""
    import cupy

    return bool(cupy.cuda.get_current_stream().is_capturing())


def stream_key() -> tuple[int, int]:
    """The current device and stream of CuPy, as numbers."""
    import cupy

    return cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr


def uncaptured(array: np.ndarray) -> Any:
    """Copy ``array`` to the current device at once, although the current stream is being captured."""
    import cupy

    with cupy.cuda.Stream(non_blocking=True) as stream:
        there = cupy.asarray(array)
        stream.synchronize()
    return there
