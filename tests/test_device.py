"""`python -m benchmarks device`: its checks, its handling of failures, and its message without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from gpurnn.kernels import launch

from benchmarks import device, gpu, kernel_parity, nvrtc

TESTS = Path(__file__).parent
HOST = types.SimpleNamespace(asarray=np.copy)


@pytest.mark.skipif(gpu.has_gpu(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "device"], cwd=TESTS.parent, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr == (
        "Error: no GPU was found: this measures one, by CuPy; pip install 'gpurnn[cuda]' where there is one\n"
    )


@pytest.mark.kernels
@pytest.mark.slow
def test_every_family_of_kernels_is_checked_and_agrees(monkeypatch):
    """The host executor runs the kernels."""
    sources, call = set(), launch.Bound.__call__

    def noted(bound, *values):
        sources.add(bound.kernel.module.source.name)
        call(bound, *values)

    monkeypatch.setattr(launch.Bound, "__call__", noted)
    for check in kernel_parity.checks(small=True):
        found = check.run(HOST)
        assert found["agrees"], (check.what, found)
    assert sources == {module.source.name for module in nvrtc.modules()}


def test_what_differs_does_not_agree():
    def compute(wing, to):
        return to(np.array([1, 2 if wing is kernel_parity.reference else 2 + 3e-5], "float32"))

    for terms, agrees in ((200, True), (100, False)):
        assert kernel_parity.Check("", "", "float32", terms, compute).run(HOST)["agrees"] is agrees


def test_a_part_that_fails_or_for_which_no_time_is_left_is_a_line(monkeypatch):
    def fail():
        raise ValueError("wrong")

    def parts(small, end):
        yield {"part": 1}, lambda: {"agrees": True}
        yield {"part": 2}, fail
        yield {"part": 3}, lambda: {"agrees": False}
        monkeypatch.setattr(device.time, "monotonic", lambda: 60.0)
        yield from [({"part": n}, fail) for n in (4, 5)]

    monkeypatch.setattr(device, "SECTIONS", {"first": (parts, 0.5), "second": (lambda small, end: [], 0.5)})
    monkeypatch.setattr(device.gpu, "has_gpu", lambda: True)
    monkeypatch.setattr(device.time, "monotonic", lambda: 0.0)
    lines = list(device.report(seconds=100))
    assert lines == [
        {"what": "first", "part": 1, "agrees": True, "at": 0.0},
        {"what": "first", "part": 2, "error": "ValueError: wrong", "at": 0.0},
        {"what": "first", "part": 3, "agrees": False, "at": 0.0},
        {"what": "first", "skipped": 2, "error": "no time was left"},
    ]
    assert [device.is_good(line) for line in lines] == [True, False, False, False]


@pytest.mark.parametrize(("exit_status", "agrees"), [(0, True), (9, True), (0, False)])
def test_the_checks_run_under_each_tool(tmp_path, monkeypatch, exit_status, agrees):
    program = tmp_path / "compute-sanitizer"
    line = json.dumps({"agrees": agrees})
    program.write_text(f"#!/bin/sh\necho '{line}'\necho \"== ERROR SUMMARY: $*\"\nexit {exit_status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(device.gpu, "has_gpu", lambda: True)
    lines = list(device.report(sections=("sanitizer",)))
    assert [line["tool"] for line in lines] == ["racecheck", "memcheck", "synccheck"]
    for found in lines:
        assert (found["exit"], found["checks"]) == (exit_status, 1)
        assert f"--tool {found['tool']} --error-exitcode 9 {sys.executable} -m benchmarks device" in found["summary"][0]
        assert device.is_good(found) == (exit_status == 0 and agrees)


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing(), reason=str(nvrtc.missing()))
def test_what_is_measured_gets_through_cupy(tmp_path):
    """Uses the driver of `cupy_on_host`, whose events report that a millisecond has passed."""
    pytest.importorskip("cupy", reason="CuPy isn't installed")
    code = (
        "import json, os, cupy_on_host; cupy_on_host.compute_with_numpy(); from benchmarks import device\n"
        "sections = ('device', 'launch', 'barrier', 'clock', 'schedule', 'stack')\n"
        "for line in device.report(sections=sections, small=True): print(json.dumps(line), flush=True)\n"
        "os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8",
        env={**os.environ, "CUPY_CACHE_DIR": str(tmp_path), "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(map(device.is_good, lines)), lines
    assert {line["what"] for line in lines} == {"device", "launch", "barrier", "clock", "schedule", "stack"}
    assert [line["blocks"] for line in lines if line["what"] == "barrier"] == [8, 16, 32, 64, 132]
    ways = {line["way"]: line for line in lines if line["what"] == "schedule" and line["mode"] == "inference"}
    assert {*ways} >= {"stepwise", "step-fused", "block", "persistent", gpu.GRAPH}
    assert all(line["predicted"] > 0 for way, line in ways.items() if way in ("stepwise", "block"))
    assert ways["block"]["microseconds_a_step"] == pytest.approx(1000 / 3)
