"""Cells whose units are independent: values by hand, the papers' forms, central differences, wings."""

from __future__ import annotations

import numpy as np
import pytest
import strict_wing
from click.testing import CliRunner
from gpurnn.reference import clock, definitions
from problems import pattern_of_holes, pattern_of_lengths, pattern_of_resets
from tolerance import assert_all_close, assert_close, assert_same, bound, check_gradients, recurrence_terms

import gpurnn
from gpurnn.cells import ELEMENTWISE
from gpurnn.cli import cli
from gpurnn.layers.recurrent import LAYERS

GATES = {"mingru": 2, "minlstm": 3}

X, AB = np.ones((2, 3, 2)), gpurnn.CharVocabulary.from_text("ab")

each_cell = pytest.mark.parametrize("name", ELEMENTWISE)
each_minimal_cell = pytest.mark.parametrize("name", GATES)


def sigma(a: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -a))


def step_by_step(name: str, a: np.ndarray, h: np.ndarray) -> np.ndarray:
    """h (T, B, H) from the arguments of gates and candidate (T, B, G, H), by the paper's first equations."""
    states = []
    for a_t in a:
        p = a_t[:, -1]
        n = np.where(p < 0, sigma(p), p + a.dtype.type(0.5))
        if name == "mingru":
            z = sigma(a_t[:, 0])
            h = sigma(-a_t[:, 0]) * h + z * n
        else:
            log_i, log_f = (-np.logaddexp(0, -a_t[:, k]) for k in (0, 1))
            h = h / (1 + np.exp(log_i - log_f)) + n / (1 + np.exp(log_f - log_i))
        states.append(h)
    return np.stack(states)


def run(name: str, a: np.ndarray, h0: np.ndarray) -> np.ndarray:
    """The same as `step_by_step`, by the function, with weights that pass the arguments on unchanged."""
    T, B, G, H = a.shape
    y, _ = getattr(gpurnn, name)(a.reshape(T, B, G * H), np.eye(G * H, dtype=a.dtype), state=h0)
    return y


LOG_3 = float(np.log(3.0))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("mingru", [LOG_3, 1.5], [2.5, 2.125]),  # z = 3/4, n = 2
        ("mingru", [-LOG_3, -LOG_3], [3.0625, 2.359375]),  # z = 1/4, n = 1/4
        ("minlstm", [LOG_3, 0.0, 1.5], [2.8, 2.32]),  # i : f = 3/4 : 1/2, n = 2
        ("minlstm", [-800.0, -800.0, 1.5], [3.0, 2.5]),  # i : f = 1, though both are 0 in float64
    ],
)
def test_values_by_hand(name, arguments, expected, each_wing):
    a = np.broadcast_to(np.reshape(arguments, (1, 1, -1, 1)), (2, 1, len(arguments), 1)).copy()
    np.testing.assert_allclose(run(name, a, np.full((1, 1), 4.0))[:, 0, 0], expected, rtol=1e-14)


@each_minimal_cell
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (30, 0), (1, -60), (1, 60), (60, -20)])
def test_it_is_as_exact_as_the_form_in_log_space(name, dtype, scale, shift, each_wing):
    """Every digit counts however small h is: all numbers are positive, and none is a difference."""
    rng, T = np.random.default_rng(0), 300
    a = rng.standard_normal((T, 2, GATES[name], 3))
    a[:, :, :-1] = scale * a[:, :, :-1]
    a[:, :, 0] += shift
    a[:, :, -1] *= 5
    a, h0 = a.astype(dtype), np.abs(rng.standard_normal((2, 3))).astype(dtype)
    exact = step_by_step(name, a.astype(np.longdouble), h0.astype(np.longdouble))
    parts = [a[:, :, k] for k in range(GATES[name])]

    def error(h: np.ndarray) -> float:
        assert h.dtype == dtype
        return float(np.abs((h - exact) / exact).max())

    found = error(run(name, a, h0))
    assert found <= bound(dtype, 4 * T)
    assert found <= max(error(getattr(definitions, name)(*parts, h0)), bound(dtype, 8))


@each_minimal_cell
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gates_that_are_shut_or_open(name, dtype, each_wing):
    """Inputs at which sigma rounds to 0 or 1, and larger ones, at which exp would overflow."""
    a = np.zeros((3, 1, GATES[name], 5), dtype)
    a[:, :, 0] = [-1e4, -200, 0, 200, 1e4]
    a[:, :, -1] = 1
    h0 = np.full((1, 5), -2, dtype)  # in log space h0 could not be negative
    found = run(name, a, h0)
    np.testing.assert_array_equal(found[:, 0, [0, 1]], np.full((3, 2), -2))
    np.testing.assert_array_equal(found[:, 0, [3, 4]] if name == "mingru" else 1.5, 1.5)
    x = a.reshape(3, 1, -1)
    _, pullback = getattr(gpurnn, name).vjp(x, np.eye(x.shape[2], dtype=dtype), state=h0)
    (dx, dh0), grads = pullback((np.ones((3, 1, 5), dtype), None))
    assert all(np.isfinite(array).all() for array in (dx, dh0, *grads.values()))
    np.testing.assert_array_equal(dh0[0, [0, 1]], 3)


ACTIVATIONS = [
    {"activation": "tanh"},
    {"activation": "relu", "leak": 0.3},
    {"activation": ("elu", 0.7), "clip": 0.9, "leak": -0.2},
]


@pytest.mark.parametrize("options", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_independent_units_are_a_vanilla_layer_whose_matrix_is_a_diagonal(options, dtype, each_wing):
    T, B, I, H = 9, 4, 3, 70
    rng = np.random.default_rng(0)
    x, w, u, bias, h0, dropout_h, dy, dh = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((T, B, I), (H, I), (H,), (H,), (B, H), (B, H), (T, B, H), (B, H))
    )
    given = {"lengths": pattern_of_lengths(T, B), "mask": pattern_of_holes(T, B), "resets": pattern_of_resets(T, B)}
    given |= {"state": h0, "dropout_h": dropout_h, **options}
    x[~given["mask"]] = np.nan
    outputs, pullback = gpurnn.indrnn.vjp(x, w, u, bias, **given)
    found = pullback((dy, dh))
    assert_same(gpurnn.indrnn(x, w, u, bias, **given), outputs)
    with gpurnn.use("reference"):
        expected, pull = gpurnn.rnn.vjp(x, w, np.diag(u), bias, **given)
        (dx, dstate), grads = pull((dy, dh))
    grads["weight_hh"] = np.diag(grads["weight_hh"]).copy()
    terms = recurrence_terms(T, B, I, 1)
    assert_all_close(outputs, expected, terms)
    assert_all_close(found[0], (dx, dstate), 4 * terms)
    assert_all_close(found[1], {n: grads[n] for n in found[1]}, 4 * terms)


def test_dropouts_of_independent_units():
    """The dropouts act on h_{t-1} and on u, and the gradients are those of the masked layer."""
    layer = gpurnn.IndRNN(3, 4, activation="tanh", variational_dropout=0.5, recurrent_dropout=0.5, dtype="float64")
    given, cotangents = arguments(layer, 5, 3, ())
    plain = layer(**given)[0]
    inputs = {**given, **{n: p.copy() for n, p in layer.params.items()}}

    def outputs(inputs):
        for n, p in layer.params.items():
            p[...] = inputs[n]
        return list(layer.vjp(inputs["x"], inputs["state"], rng=7)[0])

    (dx, dstate), grads = layer.vjp(**given, rng=7)[1](cotangents)
    check_gradients(outputs, inputs, list(cotangents), {"x": dx, "state": dstate, **grads}, seed=3)
    assert not np.array_equal(outputs(inputs)[0], plain)
    assert 0 < np.count_nonzero(grads["weight_hh_l0"]) < 4


def arguments(layer, T: int, B: int, options: tuple[str, ...], seed: int = 0):
    """The arguments of a call by name, where x is NaN at missing steps, and cotangents."""
    rng, dtype = np.random.default_rng(seed), layer.params["weight_ih_l0"].dtype
    shape = layer.num_layers * layer.num_directions, B, layer.hidden_size
    given = {"x": rng.standard_normal((T, B, layer.input_size)).astype(dtype)}
    given["state"] = rng.standard_normal(shape).astype(dtype)
    there = np.ones((T, B), bool)
    if "lengths" in options:
        given["lengths"] = pattern_of_lengths(T, B)
        there &= np.arange(T)[:, None] < given["lengths"]
    if "mask" in options:
        given["mask"] = pattern_of_holes(T, B)
        there &= given["mask"]
    if "resets" in options:
        given["resets"] = pattern_of_resets(T, B)
    given["x"][~there] = np.nan
    dy = rng.standard_normal((T, B, layer.output_size)).astype(dtype)
    return given, (dy, rng.standard_normal(shape).astype(dtype))


ALL = ("lengths", "mask", "resets")


@each_cell
@pytest.mark.parametrize(
    ("options", "of_layer"),
    [
        ((), {}),
        (("lengths",), {"bias": False, "reverse": True}),
        (ALL, {"bidirectional": True, "merge": "mul", "zero_masked_output": True}),
        (ALL, {"bidirectional": True, "residual": True, "num_layers": 2}),
    ],
    ids=str,
)
def test_gradients(name, options, of_layer, monkeypatch):
    monkeypatch.setattr(clock, "CHUNK_ROWS", 6)  # two steps at a time
    smooth = {"activation": "tanh"} if name == "indrnn" else {}
    layer = LAYERS[name](3, 3, dtype="float64", rng=1, **smooth, **of_layer)
    for p in layer.params.values():
        p += 0.3 * np.random.default_rng(2).standard_normal(p.shape)
    given, cotangents = arguments(layer, 5, 3, options)
    fixed = {n: given.pop(n) for n in ALL if n in given}

    def outputs(inputs):
        for n, p in layer.params.items():
            p[...] = inputs[n]
        y, state = layer(inputs["x"], inputs["state"], **fixed)
        return [y, state]

    inputs = {**given, **{n: p.copy() for n, p in layer.params.items()}}
    (y, state), pullback = layer.vjp(**given, **fixed)
    assert_same((y, state), tuple(outputs(inputs)))
    (dx, dstate), grads = pullback(cotangents)
    check_gradients(outputs, inputs, list(cotangents), {"x": dx, "state": dstate, **grads}, seed=3)
    outputs(inputs)
    assert_same(pullback(cotangents), ((dx, dstate), grads))


@each_cell
@pytest.mark.parametrize("wing", ["native", pytest.param("host", marks=pytest.mark.kernels)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_wings_agree(name, wing, dtype):
    T, B, I, H = 70, 5, 3, 9
    layer = LAYERS[name](I, H, 2, bidirectional=True, dtype=dtype)
    given, cotangents = arguments(layer, T, B, ALL)

    def results():
        outputs, pullback = layer.vjp(**given)
        return outputs, pullback(cotangents)

    with gpurnn.use("reference"):
        expected = results()
    with gpurnn.use(wing):
        found = results()
        assert_same(results(), found)
    assert_all_close(found, expected, recurrence_terms(T, B, I, H, 2))


@each_cell
def test_rows_are_those_of_their_steps_alone(name, each_wing):
    """Each row, without its holes and cut at its resets, is run piece by piece, also in steps and backward."""
    layer = LAYERS[name](3, 4, dtype="float64")
    given, _ = arguments(layer, 9, 4, ALL)
    y, final = layer(**given)
    for b in range(4):
        h, expected = given["state"][:, b : b + 1], np.zeros((9, 4))
        for t in range(int(given["lengths"][b])):
            if given["resets"][t, b]:
                h = np.zeros_like(h)
            if given["mask"][t, b]:
                expected[t], h = layer.step(given["x"][t, b : b + 1], h)
            elif given["mask"][: t + 1, b].any():
                expected[t] = h[0]
        assert_close(y[:, b], expected, 100)
        assert_close(final[0, b], h[0, 0], 100)


@each_cell
def test_on_arrays_that_are_no_numpy_arrays(name, strict_namespace):
    layer = LAYERS[name](3, 4, 2, bidirectional=True, dropout=0.3)
    given, cotangents = arguments(layer, 6, 3, ALL)
    outputs, pullback = layer.vjp(**given, rng=1)
    expected = outputs, pullback(cotangents)
    outputs, pullback = layer.to(strict_namespace).vjp(**strict_wing.strict(given), rng=1)
    found = strict_wing.plain((outputs, pullback(strict_wing.strict(cotangents))))
    assert_all_close(found, expected, 50)


@each_cell
def test_a_language_model_learns(name):
    text = "abcab" * 40
    model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text(text), 8, 16, num_layers=2, cell=name)
    before = model.log_likelihood(text)
    model.fit(text, epochs=15, lr=0.03, verbose=False)
    assert model.log_likelihood(text) > 0.5 * before
    assert model.cell == name


@each_cell
def test_the_command_line_says_that_it_diagnoses_no_such_model(name, tmp_path):
    gpurnn.LanguageModel(AB, 2, 3, cell=name).save(tmp_path / "model.safetensors")
    done = CliRunner().invoke(cli, ["diagnose", str(tmp_path)])
    assert done.exit_code == 2
    assert f"its cell is '{name}', expected one with a product with W_hh: rnn, lstm, gru" in done.output


def test_explain_says_how_the_states_are_computed():
    found = gpurnn.explain(gpurnn.MinGRU(64, 512, bidirectional=True), (1000, 4, 64), device="A100")
    assert (found.schedule, found.block, found.bound_by) == ("scan", (128,), "bytes")
    assert found.launches == 2 * (3 + 20)
    assert "not persistent: no unit reads the state of another one" in str(found)
    found = gpurnn.explain(gpurnn.IndRNN(64, 512), (1000, 4, 64), device="A100")
    assert (found.schedule, found.grid, found.launches) == ("independent", (16,), 1)
    assert (found.bytes_per_step, found.backward.bytes_per_step) == (2 * 4 * 512 * 4, 4 * 4 * 512 * 4)
    model = gpurnn.SequenceClassifier(3, 4, 2, cell="minlstm")
    assert gpurnn.explain(model, (10, 2, 3))["recurrent"].launches == 1 + 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gpurnn.MinGRU(2, 3, variational_dropout=0.1),
            "MinGRU: variational_dropout is not an option, expected one of",
        ),
        (lambda: gpurnn.MinLSTM(2, 3, init=("xavier", "zeros")), r"MinLSTM: init is \(.*, that of W_ih"),
        (
            lambda: gpurnn.indrnn(X, np.ones((3, 2)), np.ones((3, 3))),
            r"indrnn: weight_hh .*, expected \(hidden_size,\) = ",
        ),
        (lambda: gpurnn.IndRNN(2, 3, layer_norm=True), "IndRNN: layer_norm is not an option"),
        (lambda: gpurnn.MinLSTM(2, 3, dtype="float64")(X, (X, X)), r"MinLSTM: state is a pair \(h, c\)"),
        (lambda: gpurnn.mingru(X, np.ones((5, 2))), r"mingru: weight_ih has shape \(5, 2\), expected \(2\*hidden_size"),
        (lambda: gpurnn.mingru(X, np.ones((1, 2))), "mingru: weight_ih has shape .* a hidden_size of at least 1"),
        (lambda: gpurnn.minlstm(X, np.ones((3, 2)), lengths=np.array([1, 2, 3])), "minlstm: lengths holds 1 ... 3"),
        (
            lambda: gpurnn.LanguageModel(AB, 2, 3, cell="mingru", recurrent_dropout=0.1),
            "LanguageModel: recurrent_dropout is not an option of the cell 'mingru', which has no product with W_hh",
        ),
        (
            lambda: gpurnn.LanguageModel(AB, 2, 3, cell="minlstm", activation="relu"),
            "LanguageModel: activation is not an option of the cell 'minlstm', expected none of them",
        ),
        (
            lambda: gpurnn.EncoderDecoder(4, 4, 2, 3, begin=1, end=2, cell="mingru"),
            "EncoderDecoder: cell is 'mingru', expected one of 'rnn', 'lstm', 'gru'",
        ),
        (lambda: gpurnn.analysis.jacobians(gpurnn.MinGRU(2, 3), X), "layer is a MinGRU.*, expected a gpurnn.RNN, LSTM"),
    ],
)
def test_what_makes_no_sense_is_rejected_by_name(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
