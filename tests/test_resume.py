"""Training killed with SIGKILL, at any moment and any number of times, ends with the same bits."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def killed(mode, directory):
    script = pathlib.Path(__file__).with_name("killed_training.py")
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(script), mode, str(directory)]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_kill_at_any_event_of_writing_loses_nothing(tmp_path):
    found = killed("events", tmp_path)
    assert len(found["killed"]) > 40
    for at, outcome in enumerate(found["killed"], 1):
        assert outcome == found["whole"], f"killed at event {at}"
    assert [r["step"] for r in found["whole"]["metrics"] if "loss" in r] == [3, 5]


def test_kills_at_random_times_lose_nothing(tmp_path):
    found = killed("random", tmp_path)
    assert found["kills"] >= 3  # all nine, unless the machine has become several times faster in between
    assert found["killed"] == [found["whole"]]
