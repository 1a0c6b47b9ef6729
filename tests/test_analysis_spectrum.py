"""Spectra and fixed points, checked against matrices and networks with known answers."""

import numpy as np
import pytest
from strict_wing import strict

import gpurnn
from gpurnn import analysis

ROOT = 0.9575040240772687
"""The positive root of h = tanh(2 h)."""


def scalar(weight, **options):
    rnn = gpurnn.RNN(1, 1, dtype="float64", **options)
    rnn.params["weight_hh_l0"][...] = weight
    return rnn


def test_spectrum_of_a_matrix_of_known_eigenvalues():
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    found = analysis.spectrum(Q @ np.diag([0.5, -2.0, 1.0, 0.25]) @ Q.T)
    np.testing.assert_allclose(found.eigenvalues, [-2.0, 1.0, 0.5, 0.25], atol=1e-14)
    np.testing.assert_allclose(found.singular_values, [2.0, 1.0, 0.5, 0.25], atol=1e-14)
    assert found.radius == pytest.approx(2.0)
    shear = analysis.spectrum(np.array([[0.5, 10.0], [0.0, 0.25]], np.float32))
    assert shear.radius == 0.5
    assert shear.norm == pytest.approx(10.01, abs=0.01)
    assert shear.eigenvalues.dtype == np.complex64


def test_spectra_are_those_of_the_gates_in_order():
    lstm = gpurnn.LSTM(1, 2, dtype="float64")
    lstm.params["weight_hh_l0"][...] = np.concatenate([k * np.eye(2) for k in (1, 2, 3, 4)])
    assert {gate: s.radius for gate, s in analysis.spectra(lstm).items()} == {"i": 1, "f": 2, "g": 3, "o": 4}
    gru = gpurnn.GRU(1, 2, dtype="float64")
    gru.params["weight_hh_l0"][...] = np.concatenate([k * np.eye(2) for k in (1, 2, 3)])
    assert {gate: s.norm for gate, s in analysis.spectra(gru).items()} == {"r": 1, "z": 2, "n": 3}


def test_the_fixed_point_of_a_linear_network():
    rng = np.random.default_rng(0)
    rnn = gpurnn.RNN(3, 5, activation="identity", leak=0.2, dtype="float64")
    for p in rnn.params.values():
        p[...] = 0.3 * rng.normal(size=p.shape)
    W, x = rnn.params["weight_hh_l0"] + 0.2 * np.eye(5), rng.normal(size=3)
    b = rnn.params["weight_ih_l0"] @ x + rnn.params["bias_ih_l0"] + rnn.params["bias_hh_l0"]
    found = analysis.fixed_points(rnn, x, starts=7)
    np.testing.assert_allclose(found.states, np.linalg.solve(np.eye(5) - W, b)[None], rtol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, analysis.spectrum(W).eigenvalues[None], rtol=1e-10)
    assert list(found.starts) == [7]
    assert found.failed == 0
    assert found.stable[0] == (analysis.spectrum(W).radius < 1)


def test_a_product_of_bistable_units_has_nine_fixed_points():
    rnn = gpurnn.RNN(1, 2, dtype="float64")
    rnn.params["weight_hh_l0"][...] = 2 * np.eye(2)
    found = analysis.fixed_points(rnn, starts=200)
    assert len(found) == 9
    expected = {(a, b) for a in (-ROOT, 0, ROOT) for b in (-ROOT, 0, ROOT)}
    for point, stable, eigenvalues in zip(found.states, found.stable, found.eigenvalues, strict=True):
        match = min(expected, key=lambda e, p=point: np.linalg.norm(p - e))
        np.testing.assert_allclose(point, match, atol=1e-12)
        expected.remove(match)
        assert stable == (0 not in match)
        slopes = sorted((2 * (1 - h * h) for h in match), reverse=True)
        np.testing.assert_allclose(eigenvalues, slopes, atol=1e-10)
    assert not expected
    assert found.starts.sum() + found.failed == 200
    assert list(found.starts) == sorted(found.starts, reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_degenerate_point_is_one(dtype):
    epsilon = float(np.finfo(dtype).eps)
    rnn = gpurnn.RNN(1, 1, dtype=dtype)  # h = tanh(h): a triple root at 0
    rnn.params["weight_hh_l0"][...] = 1
    elsewhere = np.random.default_rng(0).uniform(-1, 1, (50, 1)).astype(dtype)
    for starts, count in ((100, 100), (elsewhere, 50)):  # with 0 itself among the starts, and without
        found = analysis.fixed_points(rnn, starts=starts)
        assert len(found) == 1
        assert abs(found.states[0, 0]) < epsilon ** (1 / 3)
        assert found.starts[0] + found.failed == count
    # One direction of thirty is degenerate.
    W = np.random.default_rng(1).normal(size=(30, 30))
    W = (W + W.T) / np.abs(np.linalg.eigvalsh(W + W.T)).max()
    rnn = gpurnn.RNN(1, 30, dtype=dtype)
    rnn.params["weight_hh_l0"][...] = W if np.linalg.eigvalsh(W).max() > 0.999 else -W
    found = analysis.fixed_points(rnn, starts=60)
    assert len(found) == 1
    assert np.linalg.norm(found.states) < 30**0.5 * epsilon ** (1 / 3)
    # At a fold, tanh(2 h + b) touches h where its slope is 1, a double root; it crosses h elsewhere.
    fold, touch = gpurnn.RNN(1, 1, dtype=dtype), 0.5**0.5
    fold.params["weight_hh_l0"][...], fold.params["bias_ih_l0"][...] = 2, np.arctanh(touch) - 2 * touch
    found = analysis.fixed_points(fold)
    low, high = np.sort(found.states[:, 0])
    assert high == pytest.approx(touch, abs=10 * epsilon**0.5)
    assert low == pytest.approx(np.tanh(2 * float(low) + np.arctanh(touch) - 2 * touch), abs=10 * epsilon)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_points_just_past_a_pitchfork_are_three(dtype):
    above = 30 * float(np.finfo(dtype).eps) ** (2 / 3)
    rnn = gpurnn.RNN(1, 1, dtype=dtype)
    rnn.params["weight_hh_l0"][...] = 1 + above
    found = analysis.fixed_points(rnn, starts=200)
    root = (3 * above) ** 0.5
    np.testing.assert_allclose(np.sort(found.states[:, 0]), [-root, 0, root], atol=0.1 * root)


def test_a_line_of_fixed_points_is_found_as_points_of_it():
    rnn = gpurnn.RNN(1, 2, activation="identity", bias=False, dtype="float64")
    rnn.params["weight_hh_l0"][...] = np.diag([1.0, 0.5])
    starts = np.stack([np.linspace(-1, 1, 9), np.ones(9)], axis=1)
    found = analysis.fixed_points(rnn, starts=starts)
    np.testing.assert_allclose(np.sort(found.states[:, 0]), starts[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.states[:, 1], 0, atol=1e-12)


def test_how_many_starts_may_be_any_whole_number():
    expected = analysis.fixed_points(scalar(2.0), starts=5)
    for five in (np.int64(5), np.array(5)):
        np.testing.assert_array_equal(analysis.fixed_points(scalar(2.0), starts=five).states, expected.states)


def test_the_first_start_is_zero():
    for seed in range(10):
        assert analysis.fixed_points(scalar(2.0), starts=1, rng=seed).states == [[0.0]]


def test_an_input_moves_the_fixed_points():
    rnn = scalar(2.0)
    rnn.params["weight_ih_l0"][...] = 1.0
    found = analysis.fixed_points(rnn, np.array([3.0]))
    (point,) = found.states[:, 0]
    assert point == pytest.approx(np.tanh(2 * point + 3), abs=1e-15)


def test_a_gru_that_is_a_bistable_unit():
    gru = gpurnn.GRU(1, 1, dtype="float64")
    for p in gru.params.values():
        p[...] = 0
    gru.params["weight_hh_l0"][2] = 4.0  # r = z = 1/2: n = tanh(2 h)
    found = analysis.fixed_points(gru)
    order = np.argsort(found.states[:, 0])
    np.testing.assert_allclose(found.states[order, 0], [-ROOT, 0, ROOT], atol=1e-12)
    expected = [0.5 + 0.5 * 2 * (1 - h * h) for h in (-ROOT, 0, ROOT)]
    np.testing.assert_allclose(found.eigenvalues[order, 0], expected, rtol=1e-10)


def test_the_lstm_of_constant_gates():
    lstm = gpurnn.LSTM(1, 2, dtype="float64")
    for p in lstm.params.values():
        p[...] = 0
    lstm.params["bias_ih_l0"][...] = [0.3, 0.3, 1.0, 1.0, 0.5, -0.5, 0.2, 0.2]
    found = analysis.fixed_points(lstm, starts=5)
    i, f, o = (1 / (1 + np.exp(-a)) for a in (0.3, 1.0, 0.2))
    c = i * np.tanh([0.5, -0.5]) / (1 - f)
    np.testing.assert_allclose(found.states, [[*(o * np.tanh(c)), *c]], rtol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, [[f, f, 0, 0]], atol=1e-12)
    assert found.stable[0]


def test_float32_finds_the_same_to_its_precision(each_wing):
    rnn = gpurnn.RNN(1, 1)
    rnn.params["weight_hh_l0"][...] = 2
    found = analysis.fixed_points(rnn, starts=20)
    assert found.states.dtype == np.float32
    np.testing.assert_allclose(np.sort(found.states[:, 0]), [-ROOT, 0, ROOT], atol=1e-6)


def test_what_is_stable_is_found_where_newton_alone_stalls():
    lstm = gpurnn.LSTM(1, 16, dtype="float64")
    rng = np.random.default_rng(1)
    for p in lstm.params.values():
        p[...] = 0.7 * rng.normal(size=p.shape)
    x = np.zeros((1000, 8, 1))
    _, (h, c) = lstm(x, tuple(rng.normal(size=(2, 1, 8, 16))))
    (_, (again, _)) = lstm(x[:1], (h, c))
    assert np.abs(again - h).max() < 1e-9  # every row has come to rest
    ends = np.concatenate([h[0], c[0]], axis=1)
    found = analysis.fixed_points(lstm, starts=20)
    assert found.failed == 0
    for end in ends:
        assert np.linalg.norm(found.states[found.stable] - end, axis=1).min() < 1e-6
    lstm.params = {name: p.astype(np.float32) for name, p in lstm.params.items()}
    single = analysis.fixed_points(lstm, starts=20)
    distances = np.linalg.norm(single.states[:, None] - found.states, axis=2)
    assert len(set(distances.argmin(axis=1))) == len(single)  # no point occurs twice
    assert distances.min(axis=1).max() < 1e-3


def test_where_there_is_none():
    shift = gpurnn.RNN(1, 1, activation="identity", dtype="float64")
    shift.params["weight_hh_l0"][...] = 1
    shift.params["bias_ih_l0"][...] = 1
    found = analysis.fixed_points(shift, starts=4, iterations=5)
    assert len(found) == 0
    assert found.failed == 4
    assert found.stable.shape == (0,)


def test_fixed_points_of_arrays_on_another_device(strict_namespace):
    lstm = gpurnn.LSTM(2, 3, dtype="float64")
    x, starts = np.array([0.5, -1.0]), np.random.default_rng(0).normal(size=(4, 6))
    expected = analysis.fixed_points(lstm, x, starts=starts)
    radius = analysis.spectra(lstm)["f"].radius
    lstm.params = strict(lstm.params)
    found = analysis.fixed_points(lstm, strict(x), starts=strict(starts))
    np.testing.assert_array_equal(found.states, expected.states)
    np.testing.assert_array_equal(found.eigenvalues, expected.eigenvalues)
    assert len(analysis.fixed_points(lstm, starts=3)) >= 1
    assert analysis.spectra(lstm)["f"].radius == radius


def test_what_is_refused():
    rnn = gpurnn.RNN(2, 3)
    refused = [
        (
            ValueError,
            r"spectrum: matrix has shape \(2, 3\), expected \(n, n\)",
            lambda: analysis.spectrum(np.ones((2, 3))),
        ),
        (ValueError, "n of 1 at least", lambda: analysis.spectrum(np.ones((0, 0)))),
        (TypeError, "matrix has dtype int64", lambda: analysis.spectrum(np.ones((2, 2), int))),
        (TypeError, "spectra: layer is a Dense", lambda: analysis.spectra(gpurnn.Dense(2, 2))),
        (ValueError, r"x has shape \(3,\), expected", lambda: analysis.fixed_points(rnn, np.ones(3, np.float32))),
        (TypeError, "x has dtype float64", lambda: analysis.fixed_points(rnn, np.ones(2))),
        (ValueError, "starts is 0", lambda: analysis.fixed_points(rnn, starts=0)),
        (TypeError, r"starts is 5\.0, expected a whole number", lambda: analysis.fixed_points(rnn, starts=5.0)),
        (TypeError, r"starts is \[1, 2\], expected a whole", lambda: analysis.fixed_points(rnn, starts=[1, 2])),
        (
            ValueError,
            r"starts has shape \(1, 2\)",
            lambda: analysis.fixed_points(rnn, starts=np.ones((1, 2), np.float32)),
        ),
        (ValueError, "iterations is 0", lambda: analysis.fixed_points(rnn, iterations=0)),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
