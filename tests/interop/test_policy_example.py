"""The worked example of gpurnn.torch gives the results that it describes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "benchmarks" / "examples" / "policy.py"


@pytest.mark.slow
def test_a_policy_learns_to_remember_over_episodes_of_many_lengths():
    pytest.importorskip("torch")
    command = [sys.executable, str(EXAMPLE), "80"]
    text = subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
    first, last = map(int, re.findall(r"(\d+)%", text))
    assert first < 75
    assert last > 95
