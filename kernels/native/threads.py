"""The worker threads of this process: how many, and their library."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

from gpurnn import _fork

from . import build


@functools.cache
def library() -> ctypes.CDLL:
    """The library of ``threads.cpp``."""
    loaded = build.load("gpurnn_threads", '#include "native/threads.cpp"\n', ("-fexceptions",))
    loaded.gpurnn_set_num_threads.argtypes = [ctypes.c_int]
    return loaded


def most() -> int:
    """The number of threads that a call may have.

    It is the number of processors that the process may run on, or ``$OMP_NUM_THREADS`` if that is less, or what
    threadpoolctl says.
    """
    count = _processors()
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    limits = [int(text) if text.isdigit() else 0, int(library().gpurnn_get_num_threads())]
    return max(1, min([count, *(limit for limit in limits if limit > 0)]))


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def release() -> None:
    """End the worker threads. The next call that wants some makes them anew."""
    if library.cache_info().currsize:
        library().gpurnn_release()


def run() -> Any:
    """The address of the function that runs a call's work on its threads."""
    return ctypes.cast(library().gpurnn_run, ctypes.c_void_p)


@_fork.in_child
def _forget() -> None:
    if library.cache_info().currsize:
        library().gpurnn_forget()
