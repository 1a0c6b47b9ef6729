"""Jacobians of every cell against central differences, and quantities derived from them against known answers."""

import numpy as np
import pytest
from problems import CELLS
from strict_wing import plain, strict
from tolerance import DIFFERENCE, assert_close, directional

import gpurnn
from gpurnn import analysis, cells
from gpurnn.analysis._transition import Transition
from gpurnn.layers.recurrent import LAYERS

T, B, I, H = 4, 2, 3, 3


def layer_of(cell, I=I, H=H, dtype="float64", **options):
    layer = LAYERS[cell.name](I, H, **cell.values(), dtype=dtype, **options)
    rng = np.random.default_rng(5)
    for p in layer.params.values():
        p[...] = rng.normal(size=p.shape)
    return layer


def drawn(layer, T=T, B=B, dtype="float64"):
    rng = np.random.default_rng(6)
    h, c = rng.normal(size=(2, 1, B, layer.hidden_size)).astype(dtype)
    return rng.normal(size=(T, B, layer.input_size)).astype(dtype), h if layer.cell.states == 1 else (h, c)


@pytest.mark.parametrize("name", CELLS)
def test_jacobians_are_those_of_central_differences(name):
    layer = layer_of(CELLS[name])
    x, state = drawn(layer)
    found = analysis.jacobians(layer, x, state)
    S = H * layer.cell.states
    assert found.shape == (T, B, S, S)
    transition = Transition("test", layer)
    x, s = transition.sequence(x, state)
    states = transition.states(x, s)
    np.testing.assert_array_equal(states[1:, :, :H], layer(x, state)[0])
    for t in range(T):
        for j, unit in enumerate(np.eye(S)):
            for b, i in np.ndindex(B, S):
                numeric = directional(lambda e, t=t, u=unit, b=b, i=i: transition(x[t], states[t] + e * u)[b, i])
                assert abs(numeric - found[t, b, i, j]) < 100 * DIFFERENCE * (1 + abs(states[t + 1, b, i]))


@pytest.mark.kernels
def test_jacobians_are_the_same_on_kernels():
    for cell in (cells.Vanilla("relu", 0.2), cells.LSTM(), cells.GRU()):
        layer = layer_of(cell)
        x, state = drawn(layer, T=2)
        expected = analysis.jacobians(layer, x, state)
        with gpurnn.use("host"):
            assert_close(analysis.jacobians(layer, x, state), expected, 4 * (I + H))


def test_jacobians_stay_on_the_arrays_own_device(strict_namespace):
    for cell in (cells.Vanilla(), cells.LSTM(), cells.GRU()):
        layer = layer_of(cell)
        x, state = drawn(layer)
        dy = np.random.default_rng(2).normal(size=(T, B, H))
        expected = analysis.jacobians(layer, x, state), analysis.state_gradients(layer, x, dy, state=state)
        layer.params = strict(layer.params)
        np.testing.assert_array_equal(analysis.jacobians(layer, *strict([x, state])), expected[0])
        found = analysis.state_gradients(layer, strict(x), strict(dy), state=strict(state))
        np.testing.assert_array_equal(found, expected[1])
        assert plain(layer.params)


@pytest.mark.parametrize("name", ["rnn-tanh-leak", "lstm", "gru-reset-before-candidate"])
def test_gradients_of_the_states_are_the_chain_of_jacobians(name):
    layer = layer_of(CELLS[name])
    x, state = drawn(layer)
    rng = np.random.default_rng(2)
    dy = rng.normal(size=(T, B, H))
    dstate = rng.normal(size=(1, B, H)) if layer.cell.states == 1 else tuple(rng.normal(size=(2, 1, B, H)))
    found = analysis.state_gradients(layer, x, dy, dstate, state)
    (_, dstate0), _ = layer.vjp(x, state)[1]((dy, dstate))
    joined = np.concatenate(dstate0 if isinstance(dstate0, tuple) else [dstate0], axis=2)
    assert_close(found[0], joined[0], 2 * T * (I + H))
    J = analysis.jacobians(layer, x, state)
    for t in range(T, 0, -1):
        expected = np.einsum("bij,bi->bj", J[t - 1], found[t])
        if t > 1:
            expected[:, :H] += dy[t - 2]
        assert_close(found[t - 1], expected, 2 * (I + H))


def test_the_jacobians_of_a_linear_network_are_its_matrix():
    layer = layer_of(cells.Vanilla("identity", 0.25))
    x, _ = drawn(layer, T=6)
    J = layer.params["weight_hh_l0"] + 0.25 * np.eye(H)
    found = analysis.jacobians(layer, x)
    assert_close(found, np.broadcast_to(J, found.shape), 2 * H)
    expected = [np.linalg.norm(np.linalg.matrix_power(J, 6 - t), 2) for t in range(7)]
    assert_close(analysis.product_norms(found), np.stack([expected] * B, axis=1), 6 * 4 * H)
    growth = analysis.gradient_growth(found)
    assert growth.total == pytest.approx(expected[0], rel=1e-12)
    assert growth.per_step == pytest.approx(expected[0] ** (1 / 6), rel=1e-12)


def test_the_norms_of_products_that_do_not_commute():
    J = np.random.default_rng(0).normal(size=(4, 1, 3, 3))
    norms = analysis.product_norms(J)[:, 0]
    expected = [np.linalg.norm(J[3, 0] @ J[2, 0] @ J[1, 0] @ J[0, 0], 2), np.linalg.norm(J[3, 0] @ J[2, 0], 2)]
    np.testing.assert_allclose(norms[[0, 2]], expected, rtol=1e-13)
    assert analysis.gradient_growth(J).total == pytest.approx(expected[0], rel=1e-13)


@pytest.mark.parametrize(
    ("gain", "bound", "growth"),
    [(0.9, "vanishing", "vanishing"), (1.0, "neither", "neither"), (1.1, "exploding", "exploding")],
)
def test_orthogonal_weights_by_their_gain(gain, bound, growth):
    layer = gpurnn.RNN(2, 6, activation="identity", dtype="float32", init="orthogonal")
    layer.params["weight_hh_l0"] *= np.float32(gain)
    found = analysis.gradient_bound(layer)
    assert found.verdict == bound
    assert found.bound == found.lambda_max == pytest.approx(gain, rel=1e-6)
    J = analysis.jacobians(layer, np.zeros((100, 1, 2), np.float32))
    assert analysis.gradient_growth(J).verdict == growth
    assert analysis.gradient_growth(J).per_step == pytest.approx(gain, rel=1e-6)


def test_orthogonal_weights_are_neither_whatever_their_rounding():
    bounds = []
    for seed in range(5):
        layer = gpurnn.RNN(2, 40, dtype="float32", init="orthogonal", rng=seed)
        weight = layer.params["weight_hh_l0"]
        weight[...] = weight @ weight @ weight
        found = analysis.gradient_bound(layer)
        assert found.verdict == "neither"
        bounds.append(found.bound)
    assert min(bounds) < 1 or max(bounds) > 1


def test_growth_of_a_long_product_is_finite():
    for factor in (0.01, 100.0):
        growth = analysis.gradient_growth(np.full((1000, 1, 1, 1), factor))
        assert growth.per_step == pytest.approx(factor, rel=1e-9)
    assert analysis.gradient_growth(np.zeros((3, 1, 2, 2))).verdict == "vanishing"


def test_norms_of_a_long_product_are_right_where_float64_holds_them():
    large, small = (analysis.product_norms(np.full((2000, 1, 2, 2), entry))[:, 0] for entry in (8.0, 0.03125))
    np.testing.assert_array_equal(large[-201:], 16.0 ** np.arange(200, -1, -1))
    np.testing.assert_array_equal(small[-201:], 16.0 ** np.arange(-200, 1))
    assert large[0] == np.inf
    assert small[0] == 0
    # Up beyond the range of float64 and down again.
    J = np.repeat([4.0, 0.25], 1000)[:, None, None, None]
    assert analysis.product_norms(J)[0] == 1
    assert analysis.product_norms(J[::-1])[0] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_its_place(value):
    def gradients(layer, x):
        return analysis.state_gradients(layer, x, None)

    runs = (analysis.jacobians, analysis.gradient_bound, analysis.activity, gradients)
    layer = gpurnn.RNN(1, 2, activation="relu", dtype="float64")
    x = np.ones((5, 2, 1))
    x[3, 1] = value
    for call in runs:
        with pytest.raises(ValueError, match=r"x\[3\] is NaN or infinite, expected finite numbers"):
            call(layer, x)
    J = np.ones((5, 1, 2, 2))
    J[4, 0, 1] = value
    for call in (analysis.product_norms, analysis.gradient_growth):
        with pytest.raises(ValueError, match=rf"{call.__name__}: jacobians\[4\] is NaN or infinite"):
            call(J)
    with pytest.raises(ValueError, match=r"spectrum: matrix\[1\] is NaN or infinite"):
        analysis.spectrum(J[4, 0])
    with pytest.raises(ValueError, match=r"fixed_points: x is NaN or infinite"):
        analysis.fixed_points(layer, x[3, 1])
    with pytest.raises(ValueError, match=r"state_gradients: dstate is NaN or infinite"):
        analysis.state_gradients(layer, np.ones((2, 1, 1)), None, np.full((1, 1, 2), value))
    layer.params["weight_hh_l0"][...] = 2 * np.eye(2)
    layer.params["bias_ih_l0"][...] = 1
    long = np.zeros((1100, 1, 1))
    for call in runs:
        with pytest.raises(ValueError, match=r"the state after 10[0-9]{2} steps is NaN or infinite"):
            call(layer, long)
    layer.params["weight_hh_l0"][...] = value
    with pytest.raises(ValueError, match=r"spectra: weight_hh_l0\[0\] is NaN or infinite"):
        analysis.spectra(layer)


def test_the_bound_holds_for_every_jacobian_of_a_run_and_is_reached_by_one():
    for activation in ("tanh", "sigmoid", "relu"):
        layer = layer_of(cells.Vanilla(activation, -0.3), H=1)
        x, state = drawn(layer, T=20)
        norms = np.linalg.norm(analysis.jacobians(layer, x, state), 2, axis=(2, 3))
        run, anywhere = analysis.gradient_bound(layer, x, state), analysis.gradient_bound(layer)
        weight = abs(float(layer.params["weight_hh_l0"][0, 0]))
        assert run.lambda_max == weight
        slopes = np.abs(analysis.jacobians(layer, x, state) + 0.3) / weight
        assert run.max_slope == pytest.approx(slopes.max(), rel=1e-12)
        assert norms.max() <= run.bound <= anywhere.bound
        assert anywhere.max_slope == {"tanh": 1, "sigmoid": 0.25, "relu": 1}[activation]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [gpurnn.RNN, gpurnn.LSTM, gpurnn.GRU])
def test_parts_of_a_stack_run_as_in_the_stack(kind, bidirectional, residual):
    for I in (H, 2 * H):  # the second is as wide as the first layer's output
        stack = kind(I, H, num_layers=2, bidirectional=bidirectional, residual=residual, dtype="float64")
        x = np.random.default_rng(0).normal(size=(T, B, I))
        parts = analysis.parts(stack)
        assert list(parts) == (["l0", "l0_reverse", "l1", "l1_reverse"] if bidirectional else ["l0", "l1"])
        y = x
        for k in range(2):
            made = [parts[f"l{k}"](y)[0]]
            if bidirectional:
                made.append(parts[f"l{k}_reverse"](y[::-1])[0][::-1])
            made = np.concatenate(made, axis=2)
            y = made + y if residual and made.shape == y.shape else made
        expected, _ = stack(x)
        assert_close(y, expected, 4 * T * (I + H))
        assert parts["l1"].params["weight_hh_l0"] is stack.params["weight_hh_l1"]


def test_norms_of_the_gradients_in_training():
    params = {"rnn.weight_ih_l0": np.ones(4), "rnn.weight_hh_l1_reverse": np.ones(2), "out.bias": np.ones(1)}
    record = analysis.GradientNorms(every=2)
    for step in range(5):
        record(step, params, {name: (step + 1) * p for name, p in params.items()})
    assert record.steps == [0, 2, 4]
    assert record.norms["rnn.weight_ih_l0"] == [2.0, 6.0, 10.0]
    assert {name: list(norms) for name, norms in record.layers.items()} == {
        "rnn.l0": [2.0, 6.0, 10.0],
        "rnn.l1_reverse": pytest.approx([2**0.5, 3 * 2**0.5, 5 * 2**0.5]),
        "out": [1.0, 3.0, 5.0],
    }


def test_the_norm_of_a_layer_is_finite_where_its_square_is_not():
    record = analysis.GradientNorms()
    record(0, {}, {"weight_ih_l0": np.full(1, 3e200), "weight_hh_l0": np.full(1, 4e200)})
    record(1, {}, {"weight_ih_l0": np.full(1, 3e-200), "weight_hh_l0": np.full(1, 4e-200)})
    assert list(record.layers["l0"]) == pytest.approx([5e200, 5e-200], rel=1e-12, abs=0)


def test_a_trainer_calls_the_hook(each_wing):
    model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("abab"), 2, 3, dtype="float64")
    data = gpurnn.TokenStream(model.vocabulary.encode("abab" * 8), batch_size=2, steps=4)
    record = analysis.GradientNorms()
    trainer = gpurnn.Trainer(
        model, data, gpurnn.SGD(lr=0.1), steps=2, log_interval=1, on_gradients=record, progress=False
    )
    trainer.train()
    assert record.steps == [0, 1]
    assert set(record.norms) == set(model.params)
    assert set(record.layers) == {"embedding", "recurrent.l0", "output"}
    total = np.sqrt(sum(norms**2 for norms in record.layers.values()))
    expected = [record["gradient_norm"] for record in trainer.history if "loss" in record]
    assert list(total) == pytest.approx(expected, rel=1e-6)
    assert (total > 0).all()


def test_what_is_refused():
    rnn, x = gpurnn.RNN(I, H), np.zeros((T, B, I), np.float32)
    refused = [
        (
            TypeError,
            "jacobians: layer is a Dense, expected a gpurnn.RNN",
            lambda: analysis.jacobians(gpurnn.Dense(2, 2), x),
        ),
        (TypeError, "parts: layer is a Dense", lambda: analysis.parts(gpurnn.Dense(2, 2))),
        (ValueError, "num_layers=2.*expected one layer", lambda: analysis.jacobians(gpurnn.RNN(I, H, 2), x)),
        (ValueError, "expected input_size = 3", lambda: analysis.jacobians(rnn, x[:, :, :1])),
        (ValueError, r"expected 3 axes \(T, B, input_size\)", lambda: analysis.jacobians(rnn, x[0])),
        (TypeError, "x has dtype float64", lambda: analysis.jacobians(rnn, x.astype(float))),
        (TypeError, "x is None", lambda: analysis.jacobians(rnn, None).shape),
        (ValueError, r"state has shape \(2, 3\)", lambda: analysis.jacobians(rnn, x, x[0])),
        (ValueError, "dy has shape", lambda: analysis.state_gradients(rnn, x, x[1:])),
        (ValueError, "dstate has shape", lambda: analysis.state_gradients(rnn, x, x, x[0])),
        (ValueError, "gradient_bound: layer is a LSTM", lambda: analysis.gradient_bound(gpurnn.LSTM(I, H))),
        (ValueError, r"product_norms: jacobians has shape \(4,\)", lambda: analysis.product_norms(np.zeros(4))),
        (ValueError, "expected T and B of 1", lambda: analysis.gradient_growth(np.zeros((0, 1, 2, 2)))),
        (ValueError, r"x has shape \(0, 2, 3\), expected T and B of 1", lambda: analysis.gradient_bound(rnn, x[:0])),
        (ValueError, r"x has shape \(4, 0, 3\), expected T and B of 1", lambda: analysis.gradient_bound(rnn, x[:, :0])),
        (ValueError, "factor is 1", lambda: analysis.gradient_growth(np.zeros((1, 1, 2, 2)), factor=1)),
        (ValueError, "every is 0", lambda: analysis.GradientNorms(every=0)),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
