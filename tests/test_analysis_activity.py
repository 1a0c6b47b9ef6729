"""Saturation and dead units of networks whose gates are known."""

import numpy as np
import pytest
from problems import CELLS
from strict_wing import strict
from test_analysis_jacobians import drawn, layer_of
from tolerance import assert_close

import gpurnn
from gpurnn import analysis, cells
from gpurnn.analysis._transition import Transition
from gpurnn.analysis.activity import gate_values

T, B, I, H = 5, 2, 3, 3


@pytest.mark.parametrize("name", CELLS)
def test_the_gates_are_those_that_made_the_states(name):
    layer = layer_of(CELLS[name])
    x, state = drawn(layer)
    transition = Transition("test", layer)
    states = transition.states(*transition.sequence(x, state))
    gates = {gate: values for gate, (_, values) in gate_values(transition, x, states).items()}
    h, new = states[:-1, :, :H], states[1:, :, :H]
    if isinstance(layer.cell, cells.Vanilla):
        made = gates["h"] + layer.cell.leak * h
        w = layer.params
        a = x @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
        f = {"tanh": np.tanh, "relu": lambda a: a * (a > 0), "sigmoid": lambda a: 1 / (1 + np.exp(-a))}
        assert_close(gates["h"], f.get(layer.cell.activation, lambda a: a)(a), 4 * (I + H))
    elif layer.cell.states == 2:
        c = gates["f"] * states[:-1, :, H:] + gates["i"] * gates["g"]
        assert_close(c, states[1:, :, H:], 4 * (I + H))
        made = gates["o"] * gates["tanh(c)"]
    else:
        z = gates["z"] if layer.cell.update == "candidate" else 1 - gates["z"]
        made = (1 - z) * h + z * gates["n"]
    assert_close(made, new, 4 * (I + H))


def test_the_gates_of_an_lstm_by_their_biases(each_wing):
    lstm = gpurnn.LSTM(I, H, dtype="float64")
    for p in lstm.params.values():
        p[...] = 0
    logit = np.log(0.94 / 0.06)
    lstm.params["bias_ih_l0"][...] = np.array([[-9, 0, 9], [logit, 4, -4], [9, -9, 0], [0, 0, logit]]).ravel()
    found = analysis.activity(lstm, np.zeros((T, B, I)))
    assert list(found) == ["i", "f", "g", "o", "tanh(c)"]
    assert [list(found["i"].low), list(found["i"].high)] == [[1, 0, 0], [0, 0, 1]]
    assert [list(found["f"].low), list(found["f"].high)] == [[0, 0, 1], [0, 1, 0]]
    assert list(found["f"].dead) == [False, True, True]
    assert [list(found["g"].low), list(found["g"].high)] == [[0, 1, 0], [1, 0, 0]]
    assert found["o"].saturated == 0
    assert found["i"].saturated == pytest.approx(2 / 3)
    wide = analysis.activity(lstm, np.zeros((T, B, I)), margin=0.07)
    assert list(wide["f"].high) == [1, 1, 0]
    assert found["i"].counts.sum() == T * B * H
    assert found["i"].counts[0] == found["i"].counts[-1] == T * B
    assert (found["i"].edges[0], found["i"].edges[-1], found["g"].edges[0]) == (0, 1, -1)


def test_the_shares_are_those_of_the_steps():
    rnn = gpurnn.RNN(1, 1, dtype="float64")
    rnn.params["weight_ih_l0"][...], rnn.params["weight_hh_l0"][...] = 1, 0
    x = np.array([9.0, -9.0, 0.0, 9.0, 1.4, 1.5]).reshape(6, 1, 1)  # tanh 1.4 = 0.885, tanh 1.5 = 0.905
    found = analysis.activity(rnn, x)["h"]
    assert found.high[0] == pytest.approx(3 / 6)
    assert found.low[0] == pytest.approx(1 / 6)
    assert not found.dead[0]
    assert analysis.activity(rnn, x[:2])["h"].saturated == 1
    assert not analysis.activity(rnn, x[:2])["h"].dead[0]


def test_dead_units_of_a_relu():
    rnn = gpurnn.RNN(1, 3, activation="relu", dtype="float64")
    rnn.params["weight_ih_l0"][...], rnn.params["weight_hh_l0"][...] = np.array([[1.0], [1.0], [0.0]]), 0
    rnn.params["bias_ih_l0"][...] = [0.0, -10.0, 2.0]
    found = analysis.activity(rnn, np.array([-1.0, 3.0, 0.5]).reshape(3, 1, 1))["h"]
    assert list(found.dead) == [False, True, False]
    np.testing.assert_allclose(found.low, [1 / 3, 1, 0])
    assert found.edges[-1] == 3


def test_an_identity_does_not_saturate():
    rnn = gpurnn.RNN(1, 2, activation="identity", dtype="float64")
    found = analysis.activity(rnn, 100 * np.ones((4, 1, 1)))["h"]
    assert found.saturated == 0
    assert not found.dead.any()


def test_arrays_on_another_device(strict_namespace):
    for cell in (cells.Vanilla(), cells.LSTM(), cells.GRU(), cells.GRU(reset_after=True)):
        layer = layer_of(cell)
        x, state = drawn(layer)
        expected = analysis.activity(layer, x, state)
        layer.params = strict(layer.params)
        for name, found in analysis.activity(layer, *strict([x, state])).items():
            np.testing.assert_array_equal(found.counts, expected[name].counts)
            np.testing.assert_array_equal(found.low, expected[name].low)


def test_what_is_refused():
    rnn, x = gpurnn.RNN(I, H), np.zeros((T, B, I), np.float32)
    refused = [
        (TypeError, "activity: layer is a Dense", lambda: analysis.activity(gpurnn.Dense(2, 2), x)),
        (ValueError, "expected T and B of 1 at least", lambda: analysis.activity(rnn, x[:0])),
        (ValueError, "margin is 0.5", lambda: analysis.activity(rnn, x, margin=0.5)),
        (ValueError, "margin is 0.0, ", lambda: analysis.activity(rnn, x, margin=0)),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("layer", [gpurnn.RNN, gpurnn.GRU, gpurnn.LSTM])
def test_gates_are_those_of_the_run(layer):
    layer = layer(3, 4, dtype="float64", rng=0)
    x = np.random.default_rng(0).normal(size=(6, 2, 3))
    y, _ = layer(x)
    values = gpurnn.analysis.gates(layer, x)
    np.testing.assert_allclose(values["h"], y, rtol=1e-12)
    if "o" in values:
        np.testing.assert_allclose(values["o"] * values["tanh(c)"], y, rtol=1e-12)
        before = np.concatenate([np.zeros((1, 2, 4)), values["c"][:-1]])
        np.testing.assert_allclose(values["f"] * before + values["i"] * values["g"], values["c"], rtol=1e-12)
