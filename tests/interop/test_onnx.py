"""ONNX: its operators computed by gpurnn, and PyTorch's exported models."""

from __future__ import annotations

import re
import unittest
import warnings

import golden
import numpy as np
import pytest
from tolerance import assert_close, recurrence_terms

import gpurnn
from gpurnn import interop

onnx = pytest.importorskip("onnx")
from gpurnn.interop import onnx_backend  # noqa: E402

RNG = np.random.default_rng(0)
T, B, I, H = 6, 4, 3, 5


def normal(*shape, dtype="float32"):
    return RNG.normal(size=shape).astype(dtype)


# ---- The operators ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning:onnx")
def test_the_node_tests_of_onnx():
    from onnx.backend.test import BackendTest

    pattern = re.compile(r"^test_(simple_rnn|rnn|lstm|gru)_\w+_cpu$")
    case = BackendTest(onnx_backend.Backend, __name__).test_cases["OnnxBackendNodeModelTest"]
    names = [name for name in vars(case) if pattern.match(name)]
    assert len(names) == 18
    result = unittest.TestResult()
    unittest.TestSuite(map(case, names)).run(result)
    assert result.testsRun == len(names)
    assert not result.errors + result.failures + result.skipped, result


def of_record(record):
    """The operator of a golden case as a model, with its inputs and ONNX Runtime's outputs."""
    a = golden.arrays("onnx", record["name"], "float32")
    inputs = {name.removeprefix("in_"): array for name, array in a.items() if name.startswith("in_")}
    outputs = [name for name in ("out_Y", "out_Y_h", "out_Y_c") if name in a]
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
    if "sequence_lens" in inputs:
        inputs["sequence_lens"] = inputs["sequence_lens"].astype(np.int32)
    named = [name if name in inputs else "" for name in order]
    while not named[-1]:
        named.pop()
    node = onnx.helper.make_node(record["op"], named, outputs, **record["attributes"])
    return node, inputs, [a[name] for name in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("wing", ["reference", "native"])
def test_the_golden_cases_through_the_operators(wing):
    for record in golden.records("onnx"):
        node, inputs, expected = of_record(record)
        shape = record["shape"]
        terms = recurrence_terms(shape["T"], shape["N"], shape["I"], shape["H"])
        with gpurnn.use(wing):
            outputs = onnx_backend.run_node(node, inputs)
        for found, value in zip(outputs, expected, strict=True):
            assert_close(found, value, terms, record["name"], at_least=2 * record["maxdiff_vs_float64_spec"])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_operators_of_other_dtypes(dtype):
    x, w, r = normal(T, B, I, dtype=dtype), normal(1, 3 * H, I, dtype=dtype), normal(1, 3 * H, H, dtype=dtype)
    node = onnx.helper.make_node("GRU", ["X", "W", "R"], ["", "Y_h"], hidden_size=H)
    (found,) = onnx_backend.run_node(node, [x, w, r])
    single = [a.astype("float32") for a in (x, w, r)] if dtype == "float16" else (x, w, r)
    (expected,) = onnx_backend.run_node(node, single)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, expected.astype(dtype))


def test_operators_that_do_not_fit_are_rejected():
    x, w, r = normal(T, B, I), normal(1, 4 * H, I), normal(1, 4 * H, H)

    def run(inputs=("X", "W", "R"), given=(x, w, r), op="LSTM", **attributes):
        node = onnx.helper.make_node(op, list(inputs), ["Y"], **attributes)
        return onnx_backend.run_node(node, list(given))

    for attributes, message in (
        ({"hidden_size": 7}, "LSTM: hidden_size is 7, expected 5, as R has"),
        ({"direction": "sideways"}, "LSTM: direction is 'sideways', expected one of 'forward'"),
        ({"direction": "bidirectional"}, r"LSTM: W has shape \(1, 20, 3\), expected .* = \(2, 20, 3\)"),
        ({"activations": ["Tanh"]}, "LSTM: activations has 1 names, expected 3"),
        ({"activations": ["Tanh", "Tanh", "Sine"]}, "LSTM: activations has 'Sine'"),
        ({"clip": -1.0}, r"clip is -1\.0, expected a positive number"),
        ({"layout": 2}, "LSTM: layout is 2, expected 0 or 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**attributes)
    with pytest.raises(ValueError, match=r"GRU: W has shape \(1, 20, 3\)"):
        run(op="GRU")
    with pytest.raises(ValueError, match="length"):
        run(("X", "W", "R", "", "L"), (x, w, r, np.array([1, 2, 3, 99], np.int32)))
    with pytest.raises(ValueError, match=r"LSTM: initial_h has shape \(4, 5\)"):
        run(("X", "W", "R", "", "", "h"), (x, w, r, normal(B, H)))
    with pytest.raises(ValueError, match="prepare: device is 'CUDA', expected 'CPU'"):
        onnx_backend.prepare(interop.to_onnx(gpurnn.RNN(I, H)), "CUDA")


# ---- Exported PyTorch models -----------------------------------------------------------------------------------------


def exported(module, arguments, inputs, dynamic, path):
    """Export a module to an ONNX model with PyTorch."""
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, but its successor exports no packed sequence
        torch.onnx.export(
            module, arguments, path, input_names=inputs, output_names=["out"], dynamic_axes=dynamic, dynamo=False
        )
    return onnx.load(path)


def evaluated(model, **feeds):
    """The outputs of a model from ONNX's evaluator with gpurnn's operators. gpurnn must compute each of them."""
    evaluator = onnx.reference.ReferenceEvaluator(model, new_ops=interop.onnx_ops())
    recurrent = [node for node in evaluator.rt_nodes_ if node.op_type in ("RNN", "LSTM", "GRU")]
    assert recurrent
    assert all(type(node).__module__ == "gpurnn.interop.onnx_backend" for node in recurrent)
    return evaluator.run(None, feeds)


@pytest.mark.slow
def test_a_packed_classifier_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch")
    from torch.nn.utils.rnn import pack_padded_sequence

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(I, H, num_layers=2, batch_first=True, bidirectional=True)
            self.head = torch.nn.Linear(2 * H, 3)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            _, (h, _) = self.lstm(packed)
            return self.head(torch.cat([h[-2], h[-1]], dim=1))

    module = Classifier().eval()
    x, lengths = torch.randn(B, T, I), torch.tensor([6, 4, 3, 1])
    dynamic = {"x": {0: "B", 1: "T"}, "lengths": {0: "B"}}
    model = exported(module, (x, lengths), ["x", "lengths"], dynamic, tmp_path / "classifier.onnx")
    x, lengths = torch.randn(B + 1, T + 3, I), torch.tensor([9, 9, 5, 2, 1])
    (found,) = evaluated(model, x=x.numpy(), lengths=lengths.numpy())
    np.testing.assert_allclose(found, module(x, lengths).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_tagger_of_pytorch(kind, tmp_path):
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(11, I)
            self.recurrent = getattr(torch.nn, kind)(I, H, bidirectional=True)
            self.head = torch.nn.Linear(2 * H, 4)

        def forward(self, tokens):
            return self.head(self.recurrent(self.embed(tokens))[0]).log_softmax(-1)

    module = Tagger().eval()
    dynamic = {"tokens": {0: "T", 1: "B"}}
    model = exported(module, (torch.randint(11, (T, B)),), ["tokens"], dynamic, tmp_path / "tagger.onnx")
    tokens = torch.randint(11, (T + 2, B + 1))
    (found,) = evaluated(model, tokens=tokens.numpy())
    np.testing.assert_allclose(found, module(tokens).detach().numpy(), rtol=1e-5, atol=1e-6)
