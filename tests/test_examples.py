"""The worked examples give the results that they describe."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "benchmarks" / "examples"


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def number(pattern, text):
    found = re.search(pattern, text)
    assert found, text
    return float(found[1])


@pytest.mark.slow
def test_classify():
    assert number(r"accuracy on 450 digits by other hands: (0\.\d+)", run("classify")) > 0.9


@pytest.mark.slow
def test_generate():
    text = run("generate")
    assert number(r"bits per character of the last tenth: (\d\.\d+)", text) < 2.7
    assert len(text.partition("The statement")[2]) > 150


@pytest.mark.slow
def test_forecast(tmp_path):
    pytest.importorskip("matplotlib")
    text = run("forecast", tmp_path / "forecast.png")
    error = number(r"mean absolute error (\d+\.\d)", text)
    assert error < 0.8 * number(r"the year before as the forecast: (\d+\.\d)", text)
    assert len(re.findall(r"^19\d\d: .* to .*it was", text, re.MULTILINE)) == 10
    assert (tmp_path / "forecast.png").stat().st_size > 10_000


@pytest.mark.slow
def test_translate(tmp_path):
    pytest.importorskip("matplotlib")
    text = run("translate", tmp_path / "alignment.png")
    assert number(r"(\d+\.\d)% are right", text) > 90
    assert (tmp_path / "alignment.png").stat().st_size > 10_000


ELSEWHERE = {"policy"}  # needs PyTorch: tests/interop/test_policy_example.py


def test_every_example_is_tried():
    assert {path.stem for path in EXAMPLES.glob("*.py")} - ELSEWHERE == {
        name.removeprefix("test_") for name in globals() if name.startswith("test_") and "every" not in name
    }
