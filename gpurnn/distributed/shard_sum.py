"""Sums over the shards of a batch, whose bits do not depend on the processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _dispatch
from .._contract import Array
from .communicator import Communicator
from .flat import dtype_of, shaped


def own_shards(communicator: Communicator, shards: int) -> range:
    """The shards of a batch that this process computes: as many as the others, or one more or less."""
    rank, size = communicator.rank, communicator.size
    return range(shards * rank // size, shards * (rank + 1) // size)


class ShardSum:
    """The sum of a list of arrays over S shards, in a fixed tree: it has the same bits for any number of processes.

    The tree is that of halves: shards 0 and 1 are added, 2 and 3, then the pairs, and so on. A process adds up what it
    has of it as soon as that is complete, so it holds at most log2 S + 1 partial sums. `total` exchanges them: each
    process completes the sums of a part of the entries, and all gather these.

    Parameters
    ----------
    communicator : Communicator
    shards : int
        S.
    """

    def __init__(self, communicator: Communicator, shards: int) -> None:
        self._communicator, self._shards = communicator, shards
        self._nodes: dict[str, dict[tuple[int, int], NDArray[Any]]] = {}

    def add(self, shard: int, arrays: Mapping[str, Array]) -> None:
        """Add the arrays of a shard of this process, by name; the shards in their order."""
        flat: dict[str, list[NDArray[Any]]] = {}
        for array in arrays.values():
            host = np.asarray(_dispatch.to_numpy(array))
            flat.setdefault(host.dtype.str, []).append(host.ravel())
        for dtype, parts in flat.items():
            _grow(self._nodes.setdefault(dtype, {}), shard, np.concatenate(parts))

    def total(self, like: Mapping[str, Array]) -> dict[str, Array]:
        """The sums over all shards, as arrays like those of ``like``, which name the arrays of a shard."""
        xp, dtypes = _dispatch.namespace("distributed", **like), sorted({dtype_of(array) for array in like.values()})
        return shaped({dtype: _dispatch.from_numpy(xp, self._complete(dtype)) for dtype in dtypes}, like)

    def _complete(self, dtype: str) -> NDArray[Any]:
        own, comm = self._nodes.get(dtype, {}), self._communicator
        if comm.size == 1:
            return _root(own, self._shards)
        lengths = comm.all_gather(next((node.size for node in own.values()), 0))
        length = max(lengths)
        cuts = [length * rank // comm.size for rank in range(comm.size + 1)]
        kept = [own[key] for key in sorted(own)]
        empty = np.empty(0, dtype)
        parts = [
            np.concatenate([node[cuts[r] : cuts[r + 1]] for node in kept]) if kept else empty for r in range(comm.size)
        ]
        received = comm.all_to_all(parts)
        width = cuts[comm.rank + 1] - cuts[comm.rank]
        nodes: dict[tuple[int, int], NDArray[Any]] = {}
        for rank, part in enumerate(received):
            keys: dict[tuple[int, int], None] = {}
            for shard in range(self._shards * rank // comm.size, self._shards * (rank + 1) // comm.size):
                _grow_keys(keys, shard)
            for place, key in enumerate(sorted(keys)):
                nodes[key] = part[place * width : (place + 1) * width]
        return comm.all_gather_array(_root(nodes, self._shards))


def _sibling(key: tuple[int, int]) -> tuple[int, int] | None:
    """The half before this one, if this is the second of two."""
    first, end = key
    width = end - first
    return (first - width, first) if first % (2 * width) else None


def _grow(nodes: dict[tuple[int, int], NDArray[Any]], shard: int, value: NDArray[Any]) -> None:
    """Add a leaf, and every sum that it completes in place of its two halves."""
    key = (shard, shard + 1)
    while (before := _sibling(key)) is not None and before in nodes:
        value = nodes.pop(before) + value
        key = (before[0], key[1])
    nodes[key] = value


def _grow_keys(nodes: dict[tuple[int, int], None], shard: int) -> None:
    """`_grow` without values: what another process has."""
    key = (shard, shard + 1)
    while (before := _sibling(key)) is not None and before in nodes:
        del nodes[before]
        key = (before[0], key[1])
    nodes[key] = None


def _root(nodes: Mapping[tuple[int, int], NDArray[Any]], shards: int) -> NDArray[Any]:
    """The sum at the root of the tree, from nodes that cover all leaves."""

    def value(first: int, end: int) -> NDArray[Any] | None:
        if (first, end) in nodes:
            return nodes[first, end]
        if first >= shards:
            return None
        middle = (first + end) // 2
        left, right = value(first, middle), value(middle, end)
        assert left is not None  # the leaves before a leaf are there
        return left if right is None else left + right

    root = value(0, 1 << (shards - 1).bit_length())
    assert root is not None
    return root
