"""Safety after a fork, which copies the memory but only the thread that forks.

A lock that another thread held would stay locked in the child for ever, and what it protects may be half changed. Here
is the one place that renews both in the child. The host executor's C++ state is renewed by ``executor.cpp``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_renewals: list[Callable[[], object]] = []


class Lock:
    """A lock for ``with`` statements that is free in the child of a fork, whoever held it."""

    def __init__(self) -> None:
        self.renew()
        _locks.add(self)

    def renew(self) -> None:
        """Forget who holds the lock."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _held(self, blocking: bool) -> Iterator[bool]:
        # The thread that forks may hold the lock itself, and in the child then releases the one that it took.
        lock = self._lock
        taken = lock.acquire(blocking)
        try:
            yield taken
        finally:
            if taken:
                lock.release()

    def held(self) -> contextlib.AbstractContextManager[bool]:
        """``with lock.held(): ...`` waits for the lock."""
        return self._held(True)

    def held_if_free(self) -> contextlib.AbstractContextManager[bool]:
        """``with lock.held_if_free() as held: ...`` does not wait; ``held`` says whether it has the lock."""
        return self._held(False)


def in_child(renew: Callable[[], object]) -> None:
    """Have ``renew()`` called in the child of each fork, after all locks are free."""
    _renewals.append(renew)


def _renew() -> None:
    for lock in _locks:
        lock.renew()
    for renew in _renewals:
        renew()
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None:
        tqdm.tqdm.set_lock(threading.RLock())  # one lock of all bars, which a bar of the parent may hold


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
