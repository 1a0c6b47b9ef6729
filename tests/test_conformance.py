"""The conformance suite passes right kernels, finds planted faults, and reports unsupported options."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import gpurnn
from gpurnn import conformance

CELLS = ("rnn", "lstm", "gru", "indrnn", "mingru", "minlstm")
GRU = conformance.find("gpurnn", "gru")[0].function


def kernel(cell: str):
    """A right kernel, in the form that the suite takes."""

    return conformance.find("gpurnn", cell)[0].function


def found(function, cell="lstm", **options) -> set[tuple[str, str]]:
    return {(r.option, r.check) for r in conformance.run(function, cell, **options).failures}


@pytest.mark.parametrize("cell", CELLS)
def test_right_kernels_pass_every_check(cell):
    """Uses the wing that needs no compilation; other tests compare the other wings with it."""
    with gpurnn.use("reference"):
        report = conformance.run(kernel(cell), cell)
    assert report.passed, report.text()
    assert {r.status for r in report.results} == {"ok"}
    checks = {r.check for r in report.results}
    expected = {"output", "same bits", "gradient", "differences", "rows", "steps", "padding", "golden", "rejected"}
    assert checks == expected - (set() if cell in ("rnn", "lstm", "gru") else {"golden"})
    assert {"layer_norm=True", "proj_size=2"} <= {r.option for r in report.results} or cell != "lstm"


def altered(cell, *, weights=None, outputs=None, gradients=None, arguments=None):
    """A kernel with a fault in one place."""
    right = kernel(cell)

    def given(x, w, state, options):
        w = weights(w) if weights else w
        return arguments(x, w, state, options) if arguments else (x, w, state, options)

    def run(x, w, state, **options):
        x, w, state, rest = given(x, w, state, options)
        y, final = right(x, w, state, **rest)
        return outputs(y, final, options) if outputs else (y, final)

    def vjp(x, w, state, **options):
        x, w, state, rest = given(x, w, state, options)
        (y, final), pullback = right.vjp(x, w, state, **rest)
        if outputs:
            y, final = outputs(y, final, options)

        def pull(cotangents):
            found = pullback(cotangents)
            return gradients(x, w, found, pullback, cotangents, options) if gradients else found

        return (y, final), pull

    run.vjp = vjp
    return run


def swapped(weights):
    """Exchange the gates f and g of an LSTM."""
    order = [0, 2, 1, 3]
    return {
        n: a if n == "weight_hr" else np.concatenate([np.split(a, 4)[k] for k in order]) for n, a in weights.items()
    }


def dropped_state(x, w, found, pullback, cotangents, options):
    (dx, (dh, dc)), grads = found
    return (dx, (np.zeros_like(dh), dc)), grads


def half_the_batch(x, w, found, pullback, cotangents, options):
    dy, (dh, dc) = cotangents
    half = dy.shape[1] - dy.shape[1] // 2
    parts = [a.copy() for a in (dy, dh, dc)]
    parts[0][:, half:] = 0
    parts[1][half:] = 0
    parts[2][half:] = 0
    _, grads = pullback((parts[0], (parts[1], parts[2])))
    return found[0], {**found[1], "weight_hh": grads["weight_hh"]}


def leaking(x, w, found, pullback, cotangents, options):
    (dx, dstate), grads = found
    lengths = options.get("lengths")
    if lengths is not None:
        dx = dx.copy()
        dx[lengths.min() :] += 1e-3 * (np.arange(len(x))[lengths.min() :, None, None] >= lengths[None, :, None])
    return (dx, dstate), grads


def unmasked_output(y, final, options):
    lengths = options.get("lengths")
    if lengths is not None:
        y = y.copy()
        for b, length in enumerate(lengths):
            if length:
                y[length:, b] = y[length - 1, b]
    return y, final


def reads_padding(x, w, state, options):
    if options.get("lengths") is not None:
        x = x + 0 * x.sum()
    return x, w, state, options


class Drifting:
    """A fault that differs from call to call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, y, final, options):
        self.calls += 1
        return np.nextafter(y, np.inf, dtype=y.dtype) if self.calls % 2 and y.any() else y, final


FAULTS = {
    "a swapped gate": ({"weights": swapped}, ("plain", "output"), ("plain", "golden")),
    "no gradient of h0": ({"gradients": dropped_state}, ("plain", "gradient"), ("plain", "differences")),
    "a weight's gradient of half the batch": (
        {"gradients": half_the_batch},
        ("plain", "gradient"),
        ("plain", "golden"),
    ),
    "gradients of steps past a length": ({"gradients": leaking}, ("lengths", "gradient"), ("lengths", "padding")),
    "outputs past a length": ({"outputs": unmasked_output}, ("lengths", "output"), ("lengths of 0", "output")),
    "padding that is read": ({"arguments": reads_padding}, ("lengths", "padding"), ("resets, lengths", "padding")),
    "bits that differ from run to run": ({"outputs": Drifting()}, ("plain", "same bits"), ("one row", "same bits")),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name):
    fault, *expected = FAULTS[name]
    failures = found(altered("lstm", **fault))
    assert set(expected) <= failures
    if expected[0][0] != "plain":  # no other option is blamed
        assert all("length" in option for option, _ in failures), failures


def test_more_faults():
    def ignores_resets(x, weights, state, resets=None, **options):
        return GRU(x, weights, state, **options)

    assert ("resets", "output") in found(ignores_resets, "gru")

    def rows_mixed(x, weights, state, **options):
        y, h = GRU(x, weights, state, **options)
        return y, h + 1e-2 * h[::-1] - 1e-2 * h

    assert ("plain", "output") in found(rows_mixed, "gru")

    def writes(x, weights, state, **options):
        y, h = GRU(x, weights, state, **options)
        x += 1
        return y, h

    assert ("plain", "same bits") in found(writes, "gru")

    def trusting(x, weights, state, **options):
        width = weights["weight_ih"].shape[1]
        return gpurnn.gru(np.resize(x, (*x.shape[:2], width)), **weights, state=state, **options)

    assert ("x of another width", "rejected") in found(trusting, "gru")

    def narrow(x, weights, state, **options):
        y, h = GRU(x, weights, state, **options)
        return y.astype("float32"), h

    assert ("float64", "output") in found(narrow, "gru")

    def single(x, weights, state, **options):
        weights = {n: w.astype("float16").astype(w.dtype) for n, w in weights.items()}
        return GRU(x, weights, state, **options)

    assert ("plain", "output") in found(single, "gru")


def test_what_a_kernel_lacks_is_not_a_failure_and_is_said():
    def small(x, weights, state):
        if x.dtype != np.float32:
            raise NotImplementedError("float32 only")
        return GRU(x, weights, state, reset_after=True)

    report = conformance.run(small, "gru", form={"reset_after": True})
    assert report.passed
    status = {(r.option, r.check, r.dtype): (r.status, r.detail) for r in report.results}
    assert status["float64", "output", "float64"] == ("unsupported", "float32 only")
    assert status["plain", "output", "float32"] == ("ok", "")
    assert status["plain", "gradient", "float32"] == ("unsupported", "the kernel has no vjp")
    assert "unexpected keyword argument 'lengths'" in status["lengths", "output", "float32"][1]
    assert status["update='state'", "output", "float32"][0] == "unsupported"
    assert ("plain", "differences", "float64") not in status
    assert "lengths'" in report.text()


def test_an_error_is_reported_with_its_message():
    def broken(x, weights, state, **options):
        raise RuntimeError("no device\nand more")

    report = conformance.run(broken, "rnn")
    assert not report.passed
    assert {(r.status, r.detail) for r in report.results if r.check == "output"} == {
        ("error", "RuntimeError: no device")
    }


def test_forms_of_a_report():
    report = conformance.run(altered("lstm", weights=swapped), "lstm")
    content = json.loads(report.json())
    assert content["passed"] is False
    assert len(content["results"]) == len(report.results)
    suite = ElementTree.fromstring(report.junit())
    assert int(suite.get("tests")) == len(report.results) == len(suite.findall("testcase"))
    assert int(suite.get("failures")) == len(report.failures) == len(suite.findall("testcase/failure"))
    lines = report.text().splitlines()
    assert "checks failed" in lines[0]
    plain = next(line for line in lines if line.startswith("plain "))
    assert plain.split()[1:3] == ["FAIL", "ok"]


KERNEL = """
import gpurnn

def textbook(x, weights, state, *, layer_norm=False, **options):
    return gpurnn.gru(x, **weights, state=state, **options)

def wrong(x, weights, state, *, layer_norm=False, **options):
    y, h = gpurnn.gru(x, **weights, state=state, **options)
    return y, 2 * h
"""


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "gpurnn.conformance", *arguments], cwd=folder, capture_output=True, encoding="utf-8"
    )


@pytest.mark.slow
def test_the_command(tmp_path):
    (tmp_path / "mine.py").write_text(KERNEL)
    good = command(tmp_path, "mine:textbook", "--cell", "gru")
    assert good.returncode == 0, good.stderr
    assert good.stdout.startswith("mine:textbook, gru: passed")
    bad = command(tmp_path, "mine:wrong", "--cell", "gru", "--format", "junit", "--output", "report.xml")
    assert bad.returncode == 1
    assert int(ElementTree.parse(tmp_path / "report.xml").getroot().find("testsuite").get("failures")) > 5
    form = command(tmp_path, "mine:textbook", "--cell", "gru", "--form", "reset_after=True", "--format", "json")
    assert json.loads(form.stdout)["passed"] is False  # it has the other form
    for arguments, said in (
        (("mine:textbook",), "cell is None, expected that of mine:textbook"),
        (("mine:none", "--cell", "gru"), "has no none"),
        (("nonsense",), "expected gpurnn, onnxruntime, torch.nn.LSTM or module:function"),
        (("nowhere:f", "--cell", "gru"), "No module named 'nowhere'"),
    ):  # fmt: skip
        result = command(tmp_path, *arguments)
        assert result.returncode == 1
        assert said in result.stderr


def test_bad_arguments():
    with pytest.raises(ValueError, match="cell is None, expected one of 'rnn', 'lstm', 'gru'"):
        conformance.run(kernel("gru"))
    with pytest.raises(TypeError, match="target is the class"):
        conformance.find("gpurnn.Dense")
