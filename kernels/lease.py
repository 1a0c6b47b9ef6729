"""Memory of CuPy that calls of the same kind take again, at the same addresses. This imports no CuPy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from array_api_compat import is_cupy_array

from .arrays import is_captured, stream_key
from .recent import Recent

_MEMORY = Recent(8)
_MEMORY_SHARE = 1 / 64
"""Of a device's memory, which the free blocks of one of them have at most."""

_ALIGNMENT = 512
"""Bytes, as of the addresses that CuPy's pool gives."""


class _Memory:
    """The memory of calls that allocate the same: a block for each of them that still has arrays in it."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Bytes of all free blocks, at most."""
        self.bytes = 0
        """That a call has needed so far."""
        self.free: list[tuple[Any, int]] = []
        """Pointers to the blocks that no array is in, and their sizes."""


class _Lease:
    """A block of memory, from its first byte on for one call; free for another when no array is left in it."""

    def __init__(self, memory: _Memory, allocate: Callable[[int], Any], block: tuple[Any, int]) -> None:
        self.memory, self.allocate, self.block, self.used = memory, allocate, block, 0

    def malloc(self, size: int) -> Any:
        """As the allocator of a pool."""
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
    """Have CuPy allocate what it allocated at the same addresses when this was last entered with ``key``.

    So launches come again and are a graph, see `Bound.each`; a pool gives other addresses at each call. The block of a
    call is free for the next one when the last array in it is gone, so arrays that callers keep should not lie there.
    Gives whether there is such a block: not at the first call, on the host executor, nor in a capture.
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
    while block[1] < wanted:  # smaller ones are of no use any more
        try:
            block = memory.free.pop()
        except IndexError:
            block = allocate(wanted), wanted
    lease = _Lease(memory, allocate, block)
    with cupy.cuda.using_allocator(lease.malloc):
        yield bool(wanted)
    memory.bytes = max(memory.bytes, lease.used)
