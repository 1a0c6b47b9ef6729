"""The worker threads of this process: how many, and their library."""

from __future__ import annotations

import ctypes
import functools
import math
import os

from gpurnn import _fork

from . import build

PATIENCE = -1.0
"""Microseconds that a call waits for its threads. Negative: its work decides that, and whether to wake any."""


FEW_PRODUCTS = 300_000
"""With fewer products a call has one thread in any case (``threads.h`` says when more pay off), without `most`."""


class Team(ctypes.Structure):
    """``Team`` of ``threads.h``."""

    _fields_ = (("run", ctypes.c_void_p), ("most", ctypes.c_int64), ("patience", ctypes.c_double))


LIBRARY = build.Library("threads", lambda: '#include "native/threads.cpp"\n', ("-fexceptions",))


@functools.cache
def library() -> ctypes.CDLL:
    """The library of ``threads.cpp``."""
    loaded = build.load(LIBRARY)
    loaded.gpurnn_set_num_threads.argtypes = [ctypes.c_int]
    return loaded


def most() -> int:
    """The number of threads that a call may have: `available`, or the limit of threadpoolctl if that is less."""
    limit: int = library().gpurnn_get_num_threads()
    return min(available(), limit) if limit > 0 else available()


def available() -> int:
    """The number of processors that the process may run on, or ``$OMP_NUM_THREADS`` if that is less."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(count, int(text)) if text.isdigit() and int(text) > 0 else count


def release() -> None:
    """End the worker threads. The next call that needs some starts new ones."""
    if library.cache_info().currsize:
        library().gpurnn_release()


def team(products: float = math.inf) -> Team:
    """The threads that a call with so many multiplications may have now."""
    return Team(*fields(products))


def fields(products: float) -> tuple[int, int, float]:
    """The fields of the `Team` of such a call."""
    return _run(), 1 if products < FEW_PRODUCTS and PATIENCE < 0 else most(), PATIENCE


@functools.cache
def _run() -> int:
    return ctypes.cast(library().gpurnn_run, ctypes.c_void_p).value or 0


@_fork.in_child
def _forget() -> None:
    if library.cache_info().currsize:
        library().gpurnn_forget()
