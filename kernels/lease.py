"""CuPy memory that calls of the same kind reuse, at the same addresses. Importing it does not import CuPy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from array_api_compat import is_cupy_array

from .arrays import is_captured, stream_key
from .recent import Recent

_MEMORY = Recent(8)
_MEMORY_SHARE = 1 / 64
"""The largest share of a device's memory that the free blocks of a `_Memory` may take."""

_ALIGNMENT = 512
"""Bytes: the alignment of addresses from CuPy's pool."""


class _Memory:
    """The memory of calls that allocate the same arrays: one block for each call whose arrays are still in use."""

    def __init__(self, most: int) -> None:
        self.most = most
        """The most bytes of all free blocks together."""
        self.bytes = 0
        """The most bytes that a call has needed so far."""
        self.free: list[tuple[Any, int]] = []
        """Pointers to the blocks without arrays, and their sizes."""


class _Lease:
    """A block of memory for one call, filled from its first byte on. It is free again when its last array is gone."""

    def __init__(self, memory: _Memory, allocate: Callable[[int], Any], block: tuple[Any, int]) -> None:
        self.memory, self.allocate, self.block, self.used = memory, allocate, block, 0

    def malloc(self, size: int) -> Any:
        """Allocate ``size`` bytes, as the allocator of a pool does."""
        import cupy

        begin, self.used = self.used, self.used + -(-size // _ALIGNMENT) * _ALIGNMENT
        pointer, room = self.block
        if not size or self.used > room:
            return self.allocate(size)
        lent = cupy.cuda.UnownedMemory(pointer.ptr + begin, size, self, pointer.device_id)
        return cupy.cuda.MemoryPointer(lent, 0)

    def __del__(self) -> None:
        free = self.memory.free
        if self.block[1] and sum(size for _, size in free) + self.block[1] <= self.memory.most:
            free.append(self.block)


@contextlib.contextmanager
def in_the_same_memory(like: Any, key: Any) -> Iterator[bool]:
    """Have CuPy allocate at the same addresses as when this context was last entered with ``key``.

    So launches repeat exactly and become a graph, see `Bound.each`; a pool gives other addresses at each call. When the
    last array of a call is gone, its block is free for the next call; so do not store arrays there that callers keep.
    Yields whether there is such a block: not at the first call, nor on the host executor, nor in a capture.
    """
    if not is_cupy_array(like) or is_captured():
        yield False
        return
    import cupy

    key = stream_key(), key
    memory = _MEMORY.get(key)
    if memory is None:
        memory = _Memory(int(_MEMORY_SHARE * cupy.cuda.runtime.memGetInfo()[1]))
        _MEMORY.put(key, memory)
    allocate, wanted = cupy.cuda.get_allocator(), memory.bytes
    if wanted > memory.most:
        yield False
        return
    block = (None, 0)
    while block[1] < wanted:  # smaller blocks are of no more use
        try:
            block = memory.free.pop()
        except IndexError:
            block = allocate(wanted), wanted
    lease = _Lease(memory, allocate, block)
    with cupy.cuda.using_allocator(lease.malloc):
        yield bool(wanted)
    memory.bytes = max(memory.bytes, lease.used)
