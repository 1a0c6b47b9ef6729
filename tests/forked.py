"""Forks at random moments while threads are busy in the library; each child does the same work and checks its result.

``python forked.py WHAT FORKS`` prints as JSON how many children were right, wrong or hung.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gpurnn.kernels import compiler, launch
from tqdm import tqdm

import gpurnn

THREADS = 3
SECONDS = 20
"""The time limit of a child: a hundred times what it needs."""

FOLDER = Path(tempfile.mkdtemp())


def kernels() -> bytes:
    """A launch of the host executor, which looks up its library again."""
    with gpurnn.use("host"):
        launch.Module("losses.cu", MODULE.names).library("plain")
        logits = np.arange(60, dtype=np.float32).reshape(6, 10)
        return gpurnn.cross_entropy(logits, np.arange(6)).tobytes()


def conflicts() -> bytes:
    """The same as `kernels`, with every access recorded."""
    from gpurnn.kernels import host

    with host.execution(build="conflicts"):
        return kernels()


def numpy_wing() -> bytes:
    """A step of training, with scratch arrays from the pool."""
    (y, _), pullback = LAYER.vjp(X)
    (dx, _), _ = pullback((y, None))
    return dx.tobytes()


def files() -> bytes:
    """A layer that is saved and read again."""
    path = FOLDER / f"{os.getpid()}-{threading.get_ident()}.safetensors"
    LAYER.save(path)
    other = gpurnn.LSTM(40, 60, rng=1)
    other.load(path)
    path.unlink()
    return b"".join(p.tobytes() for p in other.params.values())


def cache() -> bytes:
    """A file of the compiler's cache, deleted as soon as it is made, so the next call makes it again."""
    path = compiler.cached(f"file-{random.randrange(3)}", lambda path: path.write_bytes(b"content"))
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return b"content"


def progress() -> bytes:
    """A progress bar."""
    with open(os.devnull, "w") as file:
        return bytes(tqdm(range(50), file=file, mininterval=0))


MODULE = launch.Module("losses.cu", ["cross_entropy_forward<float, float>"])
LAYER = gpurnn.LSTM(40, 60, rng=0)
X = np.random.default_rng(0).normal(size=(20, 16, 40)).astype(np.float32)


def run(work: Callable[[], bytes], forks: int) -> collections.Counter[str]:
    expected, busy, ended = work(), True, collections.Counter()

    def hammer() -> None:
        while busy:
            assert work() == expected

    threads = [threading.Thread(target=hammer) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for _ in range(forks):
        time.sleep(random.random() * 0.02)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's warning about forks with threads
            pid = os.fork()
        if pid == 0:
            code = 2
            try:
                for _ in range(2):
                    code = max(code % 2, int(work() != expected))
            finally:
                os._exit(code)
        ended[outcome(pid)] += 1
        if ended["hung"] > 2:
            break
    busy = False
    for thread in threads:
        thread.join()
    return ended


def outcome(pid: int) -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {0: "right", 1: "wrong", 2: "failed"}.get(os.waitstatus_to_exitcode(status), "killed")
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


if __name__ == "__main__":
    print(json.dumps(run(globals()[sys.argv[1]], int(sys.argv[2]))))
