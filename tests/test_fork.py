"""A child forked while other threads were busy in the library gives its parent's results, and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from gpurnn import _fork

FORKS = 70


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("work", ["kernels", "conflicts", "numpy_wing", "files", "cache", "progress"])
def test_forks_beside_busy_threads(work, tmp_path):
    """None of 420 forks at random moments hangs."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GPURNN_HOST_BUILD": "plain"}
    environment.pop("LD_PRELOAD", None)
    if work == "cache":
        environment["GPURNN_CACHE_DIR"] = str(tmp_path / "cache")
    script = str(Path(__file__).parent / "forked.py")
    done = subprocess.run([sys.executable, script, work, str(FORKS)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"right": FORKS}, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_who_forks_may_hold_a_lock():
    """A signal handler may fork during a call: the child has a free lock, and its `with` statement ends."""
    lock = _fork.Lock()
    with lock.current:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            with lock.current:
                pass
    if pid == 0:
        with lock.current:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert not lock.current.locked()
