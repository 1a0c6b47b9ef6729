"""ONNX: its operators computed by gpurnn, PyTorch's exported models, and gpurnn's layers and models in ONNX Runtime."""

from __future__ import annotations

import json
import re
import unittest
import warnings

import golden
import numpy as np
import pytest
from tolerance import assert_close, recurrence_terms

import gpurnn
from gpurnn import interop, models

onnx = pytest.importorskip("onnx")
from gpurnn.interop import onnx_backend  # noqa: E402

RNG = np.random.default_rng(0)
T, B, I, H = 6, 4, 3, 5
LENGTHS = np.array([6, 0, 4, 3], np.int32)
LAYERS = {"rnn": gpurnn.RNN, "lstm": gpurnn.LSTM, "gru": gpurnn.GRU, "indrnn": gpurnn.IndRNN}


def normal(*shape, dtype="float32"):
    return RNG.normal(size=shape).astype(dtype)


def filled(layer):
    """Fill the layer with random parameters, biases too."""
    for p in layer.params.values():
        p[...] = RNG.normal(scale=0.5, size=p.shape)
    return layer


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


# ---- Layers and models of gpurnn -------------------------------------------------------------------------------------


def by_runtime(model, **feeds):
    """The outputs of a model by name, computed by ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def hold(found, expected, terms=4 * T * (I + 2 * H)):
    assert_close(found, np.asarray(expected), terms)


OPTIONS = [
    ("rnn", {"activation": ("leaky_relu", 0.2), "clip": 1.5, "reverse": True}),
    ("rnn", {"bidirectional": True, "num_layers": 3, "merge": "mul", "activation": "softsign"}),
    ("indrnn", {"bidirectional": True, "num_layers": 2, "clip": 1.5}),
    ("indrnn", {"activation": "tanh", "bias": False}),
    ("lstm", {"peephole": True, "coupled": True, "bidirectional": True, "merge": "sum", "num_layers": 2}),
    ("lstm", {"gate_activation": ("hard_sigmoid", 0.3, 0.4), "activation": "scaled_tanh", "output_activation": "elu"}),
    ("lstm", {"residual": True, "num_layers": 2, "hidden_size": I, "batch_first": True}),
    ("gru", {"bidirectional": True, "merge": "average", "residual": True, "hidden_size": I, "num_layers": 2}),
    ("gru", {"gate_activation": ("hard_sigmoid", 0.3, 0.5), "activation": "thresholded_relu", "bias": False}),
    ("gru", {"reset_after": True, "update": "state", "gate_activation": ("affine", 0.2, 0.1), "reverse": True}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_layers_with_options(kind, options):
    options = {"hidden_size": H, **options}
    layer = filled(LAYERS[kind](I, **options))
    rows, width = layer.num_layers * layer.num_directions, layer.hidden_size
    x = normal(B, T, I) if layer.batch_first else normal(T, B, I)
    past = np.arange(T)[:, None] >= LENGTHS
    x[past.T if layer.batch_first else past] = np.nan  # values past a length are not read
    states = {name: normal(rows, B, width) for name in ("h", "c")[: layer.cell.states]}
    expected, final = layer(x, tuple(states.values()) if kind == "lstm" else states["h"], lengths=LENGTHS)
    found = by_runtime(interop.to_onnx(layer), x=x, lengths=LENGTHS, **states)
    hold(found["y"], expected)
    for name, value in zip(states, final if kind == "lstm" else (final,), strict=True):
        hold(found[f"{name}_n"], value)
    model = interop.to_onnx(layer)
    operator = kind.upper().removeprefix("IND")
    assert [node.op_type for node in model.graph.node].count(operator) == layer.num_layers
    if layer.num_layers == 1:
        again = interop.from_onnx(model)
        assert again.reverse == layer.reverse
        hold(again(x, tuple(states.values()) if kind == "lstm" else states["h"], lengths=LENGTHS)[0], expected)


def test_a_layer_of_float64_has_the_bits_of_its_own_call():
    """ONNX Runtime has no recurrent operators for float64."""
    layer = filled(gpurnn.LSTM(I, H, 2, bidirectional=True, dtype="float64"))
    x, h, c = normal(T, B, I, dtype="float64"), normal(4, B, H, dtype="float64"), normal(4, B, H, dtype="float64")
    expected, (h_n, c_n) = layer(x, (h, c), lengths=LENGTHS)
    for found, value in zip(
        evaluated(interop.to_onnx(layer), x=x, lengths=LENGTHS, h=h, c=c), (expected, h_n, c_n), strict=True
    ):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_one_after_another(batch_first):
    layer = gpurnn.Sequential(
        gpurnn.Embedding(7, I), gpurnn.LayerNorm(I), gpurnn.GRU(I, H, batch_first=batch_first), gpurnn.Dropout(0.5),
        gpurnn.Sequential(gpurnn.LSTM(H, H, batch_first=batch_first), gpurnn.Dense(H, 4, activation="softmax")),
    )  # fmt: skip
    filled(layer)
    tokens = RNG.integers(7, size=(T, B))
    tokens[np.arange(T)[:, None] >= LENGTHS] = -1
    tokens = np.ascontiguousarray(tokens.T) if batch_first else tokens
    states = {name: normal(1, B, H) for name in ("2.h", "4.0.h", "4.0.c")}
    expected, (gru, ((h, c),)) = layer(tokens, (states["2.h"], ((states["4.0.h"], states["4.0.c"]),)), LENGTHS)
    found = by_runtime(interop.to_onnx(layer), x=tokens, lengths=LENGTHS, **states)
    hold(found["y"], expected)
    for name, value in {"2.h_n": gru, "4.0.h_n": h, "4.0.c_n": c}.items():
        hold(found[name], value)


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "sigmoid", "softmax"])
def test_layers_without_time(activation):
    layer = filled(gpurnn.Dense(I, H, activation=activation))
    x = normal(T, B, I)
    hold(by_runtime(interop.to_onnx(layer), x=x)["y"], layer(x))
    layer = filled(gpurnn.Embedding(7, I))
    hold(by_runtime(interop.to_onnx(layer), x=np.array([[6, 0]]))["y"], layer(np.array([[6, 0]])))


SIZES = (3, 6, 1, 2)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2, "cell": "lstm", "residual": True}])
def test_classifiers(pooling, options):
    examples = [normal(size, I) * 40 + 1000 for size in SIZES]
    model = gpurnn.SequenceClassifier(
        hidden_size=H, pooling=pooling, verbose=False, epochs=1, standardize_inputs=True, **options
    )
    model = filled(model.fit(examples, ["a", "b", "c", "a"]))
    padded, lengths = padded_of(examples)
    onnx_model = interop.to_onnx(model)
    found = by_runtime(onnx_model, x=padded, lengths=lengths)
    hold(found["probabilities"], model.predict_proba(examples))
    classes = {p.key: p.value for p in onnx_model.metadata_props}["classes"]
    assert [json.loads(classes)[i] for i in found["y"].argmax(axis=1)] == model.predict(examples).tolist()


def padded_of(examples):
    lengths = np.array([len(example) for example in examples], np.int32)
    padded = np.zeros((lengths.max(), len(examples), *examples[0].shape[1:]), examples[0].dtype)
    for i, example in enumerate(examples):
        padded[: len(example), i] = example
    return padded, lengths


def test_a_tagger():
    examples = [RNG.integers(9, size=size) for size in SIZES]
    model = filled(gpurnn.SequenceTagger(I, H, 4, num_embeddings=9, bidirectional=True, cell="rnn"))
    model._is_fitted = True
    tokens, lengths = padded_of(examples)
    found = by_runtime(interop.to_onnx(model), x=tokens, lengths=lengths)
    for i, expected in enumerate(model.predict_proba(examples)):
        hold(found["probabilities"][: SIZES[i], i], expected)


@pytest.mark.parametrize("pooling", ["last", None])
def test_a_regressor_gives_values_in_the_units_of_the_targets(pooling):
    examples = [normal(size, I) for size in SIZES]
    targets = [normal(2) * 30 + 500 if pooling else normal(size, 2) * 30 + 500 for size in SIZES]
    model = gpurnn.SequenceRegressor(hidden_size=H, pooling=pooling, verbose=False, epochs=1).fit(examples, targets)
    padded, lengths = padded_of(examples)
    found = by_runtime(interop.to_onnx(model), x=padded, lengths=lengths)["y"]
    for i, expected in enumerate(model.predict(examples)):
        hold(found[i] if pooling else found[: SIZES[i], i], expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model(tied):
    vocabulary = models.CharVocabulary.from_text("hello world")
    model = filled(models.LanguageModel(vocabulary, H, H, num_layers=2, tied=tied))
    tokens = RNG.integers(len(vocabulary), size=(T, B))
    h, c = normal(2, B, H), normal(2, B, H)
    expected, final = model(tokens, (h, c), LENGTHS)
    onnx_model = interop.to_onnx(model)
    found = by_runtime(onnx_model, x=tokens, lengths=LENGTHS, h=h, c=c)
    for name, value in {"y": expected, "h_n": final[0], "c_n": final[1]}.items():
        hold(found[name], value)
    assert json.loads(onnx_model.metadata_props[0].value) == list(vocabulary.symbols)


def test_what_has_no_form_in_onnx_is_named():
    for layer, message in (
        (gpurnn.RNN(I, H, leak=0.5), r"to_onnx: leak is 0\.5, expected 0\.0: ONNX has no such attribute"),
        (gpurnn.LSTM(I, H, layer_norm=True), "to_onnx: layer_norm is True"),
        (gpurnn.LSTM(I, H, zoneout=(0.1, 0.0)), r"to_onnx: zoneout is \(0\.1, 0\.0\)"),
        (gpurnn.LSTM(I, H, proj_size=2), "to_onnx: proj_size is 2"),
        (gpurnn.LSTM(I, H, cell_clip=2.0), r"to_onnx: cell_clip is 2\.0"),
        (gpurnn.GRU(I, H, gate_activation="tanh"), "to_onnx: update is 'candidate' and gate_activation 'tanh'"),
        (gpurnn.StateSpace(2, I, 2), "to_onnx: layer is a StateSpace, which cannot be written as ONNX"),
        (gpurnn.MinGRU(I, H), "to_onnx: layer is a MinGRU"),
        (gpurnn.SequenceClassifier(I, H, 2, cell="mingru"), "to_onnx: layer recurrent is a MinGRU"),
        (gpurnn.Forecaster(3, H), "to_onnx: layer is a Forecaster"),
        (gpurnn.Sequential(gpurnn.Dense(I, I), gpurnn.TransformerBlock(I, 1)), "layer 1 is a TransformerBlock"),
        (models.SequenceGenerator(I, H, 2), "to_onnx: layer is a SequenceGenerator"),
        (gpurnn.SequenceClassifier(), "the model has no parameters before fit"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.to_onnx(layer)
    with pytest.raises(TypeError, match="to_onnx: layer is None, expected a Layer"):
        interop.to_onnx(None)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["kind", "size"])
def test_the_command_line_writes_what_fit_made(target, tmp_path):
    from click.testing import CliRunner

    from gpurnn.cli import cli

    def run(*arguments):
        result = CliRunner().invoke(cli, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.output

    rows = ["trip,speed,height,kind,size"]
    for trip in range(12):
        kind, size = ("car", 10 + trip) if trip % 2 else ("bike", 500 + trip)
        rows += [f"{trip},{100 + size * 0.1 + step},{3000 - trip * step},{kind},{size}" for step in range(3 + trip % 4)]
    (tmp_path / "trips.csv").write_text("\n".join(rows))
    table, made = tmp_path / "trips.csv", tmp_path / "made"
    kept = rows[0].replace(",kind" if target == "size" else ",size", "").split(",")
    lines = [line.split(",") for line in rows]
    table.write_text("\n".join(",".join(line[lines[0].index(name)] for name in kept) for line in lines))
    run("fit", table, "--group", "trip", "--target", target, "--out", made, "--epochs", 2, "--hidden", 4)
    said = run("export", made, tmp_path / "made.onnx")
    assert "x, lengths to y" in said
    run("predict", made, table, "--out", tmp_path / "answers.csv")
    answers = [line.split(",") for line in (tmp_path / "answers.csv").read_text().splitlines()[1:]]
    examples = {name: [] for name, *_ in answers}
    for line in lines[1:]:
        examples[line[0]].append([float(line[1]), float(line[2])])
    padded, lengths = padded_of([np.array(example, np.float32) for example in examples.values()])
    model = onnx.load(tmp_path / "made.onnx")
    found = by_runtime(model, x=padded, lengths=lengths)
    if target == "size":
        np.testing.assert_allclose(found["y"][:, 0], [float(answer) for _, answer, *_ in answers], rtol=1e-5)
    else:
        classes = json.loads(next(p.value for p in model.metadata_props if p.key == "classes"))
        assert [classes[i] for i in found["y"].argmax(axis=1)] == [answer for _, answer, *_ in answers]
        chances = [[float(chance) for chance in rest] for _, _, *rest in answers]
        np.testing.assert_allclose(found["probabilities"], chances, atol=1e-4)
    result = CliRunner().invoke(cli, ["export", str(made), str(tmp_path / "made.onnx")])
    assert result.exit_code == 2
    assert "is there already" in result.output
