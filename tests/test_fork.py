"""A child that was forked while other threads were busy in the library computes what its parent does, and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FORKS = 70


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("work", ["kernels", "conflicts", "numpy_wing", "files", "cache", "progress"])
def test_forks_beside_busy_threads(work, tmp_path):
    """420 of them at random moments, none of which hangs."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "GPURNN_HOST_BUILD": "plain"}
    environment.pop("LD_PRELOAD", None)
    if work == "cache":
        environment["GPURNN_CACHE_DIR"] = str(tmp_path / "cache")
    script = str(Path(__file__).parent / "forked.py")
    done = subprocess.run([sys.executable, script, work, str(FORKS)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"right": FORKS}, done.stderr
