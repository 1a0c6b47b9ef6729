"""The conformance suite on kernels of other libraries."""

from __future__ import annotations

import numpy as np
import pytest

import gpurnn
from gpurnn import conformance
from gpurnn.conformance.kernels import Case, Function

NOT_OF_PYTORCH = {"lengths of 0", "resets", "resets, lengths"}


def outcomes(report) -> dict[str, set[str]]:
    """The options with each status."""
    found: dict[str, set[str]] = {}
    for r in report.results:
        found.setdefault(r.status, set()).add(r.option)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # PyTorch warns once
@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("LSTM", NOT_OF_PYTORCH), ("GRU", {*NOT_OF_PYTORCH, "reset_after=False", "update='candidate'"}),
        ("RNN", {*NOT_OF_PYTORCH, "activation='sigmoid'", "activation='identity'", "leak=0.3"}),
    ],
)  # fmt: skip
def test_pytorch(name, lacks):
    pytest.importorskip("torch")
    (theirs,) = conformance.find(f"torch.nn.{name}")
    found = outcomes(conformance.run(theirs))
    assert lacks <= found["unsupported"]
    # Given the lengths of two rows for three, packing takes the two.
    assert found.get("fail", set()) == {"lengths of another batch"}
    assert "error" not in found
    (ours,) = conformance.find(f"gpurnn.torch.{name}")
    assert set(outcomes(conformance.run(ours))) == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_onnx_runtime(cell):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (kernel,) = conformance.find("onnxruntime", cell)
    report = conformance.run(kernel)
    found = outcomes(report)
    assert not {"fail", "error"} & found.keys(), report.text()
    assert {"resets", "float64"} <= found["unsupported"]


def test_functions_of_pytorch_are_differentiated_by_it():
    torch = pytest.importorskip("torch")

    def kernel(x, weights, state, *, tanh=torch.tanh, stack=torch.stack):
        h, ys = state, []
        for x_t in x:
            h = tanh(
                x_t @ weights["weight_ih"].T + weights["bias_ih"] + h @ weights["weight_hh"].T + weights["bias_hh"]
            )
            ys.append(h)
        return stack(ys), h

    def wrong(x, weights, state):
        return kernel(x, weights, state.detach())

    report = conformance.run(kernel, "rnn", library="torch")
    by_option = {(r.option, r.check): r.status for r in report.results}
    assert by_option["plain", "gradient"] == by_option["plain", "differences"] == by_option["plain", "golden"] == "ok"
    assert by_option["lengths", "output"] == "unsupported"
    assert by_option["without biases", "output"] == "error"
    assert ("plain", "gradient") in {
        (r.option, r.check) for r in conformance.run(wrong, "rnn", library="torch").failures
    }


def test_functions_of_jax():
    jax = pytest.importorskip("jax")

    def kernel(x, weights, state):
        def step(h, x_t):
            h = jax.numpy.tanh(x_t @ weights["weight_ih"].T + h @ weights["weight_hh"].T)
            return h, h

        h, y = jax.lax.scan(step, state, x)
        return y, h

    made = Function(kernel, "rnn", "jax", {})
    rng = np.random.default_rng(0)
    x, h, w_ih, w_hh = (rng.normal(size=shape) for shape in ((4, 2, 3), (2, 5), (5, 3), (5, 5)))
    with jax.enable_x64(True):
        case = Case(x, {"weight_ih": w_ih, "weight_hh": w_hh}, (h,), np.ones((4, 2, 5)), (h,))
        outputs, found = made.forward(case), made.gradients(case)
    (y, final), pullback = gpurnn.rnn.vjp(x, w_ih, w_hh, state=h)
    (dx, dh), grads = pullback((case.dy, h))
    for name, expected in {"y": y, "h": final}.items():
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-12)
    for name, expected in {"x": dx, "h": dh, **grads}.items():
        if name in found:
            np.testing.assert_allclose(found[name], expected, rtol=1e-9)
    assert found.keys() == {"x", "weight_ih", "weight_hh", "h"}
