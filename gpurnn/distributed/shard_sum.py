"""Sums over the shards of a batch, whose bits do not depend on the number of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _dispatch
from .._contract import Array
from .communicator import Communicator
from .flat import by_dtype, even_sizes, of_dtypes, shaped, split


def own_shards(communicator: Communicator, shards: int) -> range:
    """The shards of a batch that this process computes: as many as the others, or one more or less."""
    return shards_of(communicator.rank, communicator.size, shards)


def shards_of(rank: int, size: int, shards: int) -> range:
    """The `own_shards` of process ``rank`` of ``size``."""
    return range(shards * rank // size, shards * (rank + 1) // size)


class ShardSum:
    """The sum of a list of arrays over S shards, in a fixed tree: it has the same bits for any number of processes.

    The tree is binary: shards 0 and 1 are added, 2 and 3, then the pairs, and so on. A process adds two halves as soon
    as it has both, so it holds at most log2 S + 1 partial sums. `total` exchanges them: each process completes the sums
    of a part of the entries, and all gather these.

    Parameters
    ----------
    communicator : Communicator
    shards : int
        S.
    """

    def __init__(self, communicator: Communicator, shards: int) -> None:
        self._communicator, self._shards = communicator, shards
        self._nodes: dict[str, dict[tuple[int, int], Any]] = {}

    def add(self, shard: int, arrays: Mapping[str, Array]) -> None:
        """Add the arrays of a shard of this process, by name. Call it for the shards in their order."""
        for dtype, flat in by_dtype(list(arrays.values())).items():
            own = flat if self._communicator.takes(flat) else _dispatch.to_numpy(flat)
            _grow(self._nodes.setdefault(dtype, {}), shard, own)

    def total(self, like: Mapping[str, Array]) -> dict[str, Array]:
        """The sums over all shards, by name; ``like`` gives the names, shapes and dtypes of the arrays of a shard."""
        with self._communicator.exchanging():
            return shaped(self._sums(like), like)

    def _sums(self, like: Mapping[str, Array]) -> dict[str, Array]:
        sums = {}
        for dtype, arrays in of_dtypes(list(like.values())).items():
            first, length = arrays[0], sum(math.prod(array.shape) for array in arrays)
            xp = _dispatch.namespace("distributed", like=first)
            if self._communicator.takes(first):
                sums[dtype] = self._complete(dtype, length, _dispatch.zeros(xp, (0,), first))
            else:
                sums[dtype] = _dispatch.from_numpy(xp, self._complete(dtype, length, np.empty(0, dtype)))
        return sums

    def _complete(self, dtype: str, length: int, empty: Any) -> Any:
        """The sum of the ``length`` entries of one dtype; ``empty`` is an array of its kind without entries."""
        own, comm = self._nodes.get(dtype, {}), self._communicator
        if comm.size == 1:
            return _root(own, self._shards)
        xp = _dispatch.namespace("distributed", empty=empty)
        of_rank = [_kept(shards_of(rank, comm.size, self._shards)) for rank in range(comm.size)]
        widths = even_sizes(length, comm.size)
        pieces = [split(own[key], widths) for key in of_rank[comm.rank]]
        parts = [xp.concat([of_node[rank] for of_node in pieces]) if pieces else empty for rank in range(comm.size)]
        width = widths[comm.rank]
        received = comm.all_to_all(parts, [len(keys) * width for keys in of_rank])
        nodes: dict[tuple[int, int], Any] = {}
        for keys, part in zip(of_rank, received, strict=True):
            nodes.update(zip(keys, split(part, [width] * len(keys)), strict=True))
        return comm.all_gather_array(_root(nodes, self._shards), widths)


def _sibling(key: tuple[int, int]) -> tuple[int, int] | None:
    """The first half that belongs to this node, if this is a second half."""
    first, end = key
    width = end - first
    return (first - width, first) if first % (2 * width) else None


def _grow(nodes: dict[tuple[int, int], Any], shard: int, value: Any) -> None:
    """Add a leaf, and replace every pair of halves that it completes with their sum."""
    key = (shard, shard + 1)
    while (before := _sibling(key)) is not None and before in nodes:
        value = nodes.pop(before) + value
        key = (before[0], key[1])
    nodes[key] = value


def _kept(shards: range) -> list[tuple[int, int]]:
    """The nodes that a process holds after it has added these shards, in their order."""
    nodes: dict[tuple[int, int], int] = {}
    for shard in shards:
        _grow(nodes, shard, 0)
    return sorted(nodes)


def _root(nodes: Mapping[tuple[int, int], Any], shards: int) -> Any:
    """The sum at the root of the tree, from nodes that cover all leaves."""

    def value(first: int, end: int) -> Any:
        if (first, end) in nodes:
            return nodes[first, end]
        if first >= shards:
            return None
        middle = (first + end) // 2
        left, right = value(first, middle), value(middle, end)
        assert left is not None  # shards are contiguous from 0, so a left half is never empty
        return left if right is None else left + right

    root = value(0, 1 << (shards - 1).bit_length())
    assert root is not None
    return root
