"""Training on several processes started by torchrun, through Gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

TOGETHER = Path(__file__).parents[1] / "trained_together.py"


def result(path, size, model, *arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, str(TOGETHER), model, str(path), *arguments], env=environment,
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("size", [2, 3])
def test_processes_of_torchrun_give_the_bits_of_one(tmp_path, size):
    one = result(tmp_path / "one.json", 1, "classifier", "shards=4")
    several = result(tmp_path / "several.json", size, "classifier", "shards=4")
    assert {digest for digest, *_ in several["every"]} == {one["every"][0][0]}
    assert several["history"] == one["history"]


def test_sums_of_gloo(tmp_path):
    whole = result(tmp_path / "whole.json", 1, "translator")
    plain = result(tmp_path / "plain.json", 2, "translator")
    for name, values in whole["values"].items():
        assert plain["values"][name] == pytest.approx(values, rel=1e-3, abs=1e-5)
