"""Safety after a fork, which copies all memory but only the thread that forks.

A lock that another thread held would stay locked in the child for ever, and the data that it protects may be half
changed. This module renews both in the child. ``executor.cpp`` renews the C++ state of the host executor.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

_locks: weakref.WeakSet[Lock] = weakref.WeakSet()
_renewals: list[Callable[[], object]] = []


class Lock:
    """A lock that is free in the child of a fork, whoever held it: ``with lock.current: ...``.

    Parameters
    ----------
    kind : callable
        `threading.Lock`, or `threading.RLock` if a signal handler or finaliser may need the lock while its own thread
        holds it.

    Attributes
    ----------
    current : threading.Lock or RLock
        A new lock in the child. If the thread that forks holds the old lock, it releases the old one.
    """

    def __init__(self, kind: Callable[[], Any] = threading.Lock) -> None:
        self.kind = kind
        self.current = kind()
        _locks.add(self)


def in_child(renew: Callable[[], object]) -> None:
    """Have ``renew()`` called in the child of each fork, after all locks are free."""
    _renewals.append(renew)


def _renew() -> None:
    for lock in _locks:
        lock.current = lock.kind()
    for renew in _renewals:
        renew()
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None:
        tqdm.tqdm.set_lock(threading.RLock())  # all bars share one lock, which another thread may hold


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
