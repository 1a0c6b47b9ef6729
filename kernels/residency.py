"""Blocks that must run at once: how many a device holds, and launches that show that it holds fewer."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import is_captured

GIVEN_UP = 1 << 31
"""``given_up`` of ``intrinsics.cuh``: where blocks waited in vain, the word of a `GridBarrier` is at least this."""

AT_ONCE: dict[tuple[int, int], int] = {}
"""The most blocks that may run at once, by device and cluster size, where a launch has shown that the driver says too
many: another process or context may use a part of the device. CuPy cannot ask how many clusters run at once."""

_COOPERATIVE_LAUNCH_TOO_LARGE = 720  # of CUresult
_NO_CLUSTERS = {1, 701, 801, 912}
"""The errors by which a driver may say that it runs no clusters in a cooperative launch: invalid value, too few
resources, not supported, invalid cluster size. The launch's own values have been checked before."""


class NotResident(ValueError):
    """A cooperative grid has more blocks than the device holds at once."""


def _hold_fewer(device: int, cluster: int, blocks: int) -> None:
    AT_ONCE[device, cluster] = min(blocks - 1, AT_ONCE.get((device, cluster), blocks))


def all_at_once(
    launch: Callable[[list[Any]], None], name: str, device: int, cluster: int, blocks: int, values: list[Any]
) -> None:
    from cupy_backends.cuda.api import driver

    try:
        launch(values)
    except driver.CUDADriverError as error:
        none = cluster > 1 and error.status in _NO_CLUSTERS
        if error.status != _COOPERATIVE_LAUNCH_TOO_LARGE and not none:
            raise
        _hold_fewer(device, cluster, 1 if none else blocks)
        in_clusters = f" in clusters of {cluster}" if cluster > 1 else ""
        raise NotResident(
            f"{name}: the driver does not run a cooperative grid of {blocks} blocks{in_clusters} at once"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Watched:
    """The barrier words of a launch, on their way to the host."""

    words: np.ndarray
    arrival: Any
    device: int
    cluster: int
    blocks: int


_watched: collections.deque[_Watched] = collections.deque()


def watch(words: Any, blocks: int, cluster: int = 1) -> None:
    """Check that all blocks of a launch have met at its barriers. ``words`` are those of its `GridBarrier`.

    On a GPU that is known only later: then a later launch raises the error that the host executor raises here. A launch
    that is captured into a graph is not checked.

    Raises
    ------
    RuntimeError
        Some block has waited for the others in vain.
    """
    if isinstance(words, np.ndarray):
        _check_given_up(words, blocks)
    elif not is_captured():
        import cupy

        there: np.ndarray = np.frombuffer(cupy.cuda.alloc_pinned_memory(words.nbytes), words.dtype, words.size)
        words.data.copy_to_host_async(ctypes.c_void_p(there.ctypes.data), words.nbytes)
        arrival = cupy.cuda.Event(disable_timing=True)
        arrival.record()
        _watched.append(_Watched(there, arrival, words.data.device_id, cluster, blocks))


def raise_given_up() -> None:
    """Raise an error that `watch` has found since."""
    while _watched and _watched[0].arrival.done:
        found = _watched.popleft()
        if (found.words >= GIVEN_UP).any():
            _hold_fewer(found.device, found.cluster, found.blocks)
        _check_given_up(found.words, found.blocks)


def _check_given_up(words: np.ndarray, blocks: int) -> None:
    if (words >= GIVEN_UP).any():
        raise RuntimeError(
            f"gpurnn: a launch of {blocks} blocks has ended early, because they did not all run at once; its results "
            "are NaN. Repeat it: then a schedule runs that needs fewer blocks at once"
        )
