"""Plots of a diagnosis: they draw what was measured."""

import sys

import numpy as np
import pytest

import gpurnn
from gpurnn import analysis
from gpurnn.analysis import plots


def lines(axes):
    return {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines()}


def legend(holder):
    return [text.get_text() for text in holder.get_texts()]


def test_gradient_flow_draws_the_geometric_mean_and_the_range_of_the_batch():
    axes = plots.gradient_flow({"a": np.array([[1.0, 100.0], [4.0, 9.0], [0.0, 0.0]]), "b": np.array([2.0, 3.0, 5.0])})
    assert axes.figure.axes == [axes]
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["a"], [[0, 10], [1, 6]])
    np.testing.assert_allclose(drawn["b"], [[0, 2], [1, 3], [2, 5]])
    (band,) = axes.collections
    assert {(0, 1), (0, 100), (1, 4), (1, 9)} <= {tuple(v) for v in band.get_paths()[0].vertices}
    assert axes.get_yscale() == "log"
    assert legend(axes.get_legend()) == ["a", "b"]


def test_gradient_flow_says_what_is_too_large_to_draw(tmp_path):
    norms = np.array([[np.nan, 1.0], [np.inf, 2.0], [1e201, 3.0], [1e200, 1e-310], [4.0, 9.0]])
    axes = plots.gradient_flow({"a": norms, "b": np.full(5, np.inf)}, tmp_path / "a.png")
    drawn = lines(axes)
    assert list(drawn) == ["a, above 1e+200 at 3 steps", "b, above 1e+200 at 5 steps"]
    np.testing.assert_allclose(drawn["a, above 1e+200 at 3 steps"], [[3, 1e-55], [4, 6]])
    assert (tmp_path / "a.png").exists()


def test_eigenvalues_are_drawn_with_the_unit_circle():
    matrix = np.array([[0.0, -1.5], [1.5, 0.0]])
    first, second = plots.eigenvalues({"i": analysis.spectrum(matrix), "f": analysis.spectrum(0.5 * matrix)})
    drawn = lines(first)
    assert sorted(map(tuple, np.round(drawn["eigenvalues"], 12) + 0.0)) == [(0, -1.5), (0, 1.5)]
    np.testing.assert_allclose(np.hypot(*drawn["unit circle"].T), 1)
    assert [axes.get_title() for axes in (first, second)] == ["i: spectral radius 1.5", "f: spectral radius 0.75"]
    assert first.get_xlim() == second.get_xlim() == (-1.65, 1.65)
    assert legend(first.figure.legends[0]) == ["unit circle", "eigenvalues"]


def test_singular_values_are_drawn_from_the_largest():
    axes = plots.singular_values({"h": analysis.spectrum(np.diag([1.0, 3.0, 2.0]))})
    np.testing.assert_allclose(lines(axes)["h"], [[1, 3], [2, 2], [3, 1]])


@pytest.mark.parametrize("H", [1, 2])
def test_fixed_points_are_told_apart_by_their_stability(H):
    rnn = gpurnn.RNN(1, H, dtype="float64")
    rnn.params["weight_hh_l0"][...] = 2 * np.eye(H)
    found = analysis.fixed_points(rnn, starts=100)
    states, _ = rnn(np.random.default_rng(0).normal(size=(9, 2, 1)))
    left, right = plots.fixed_points(found, states=states)
    drawn = lines(left)
    stable, unstable = f"stable ({2**H})", f"unstable ({3**H - 2**H})"
    assert list(drawn) == ["states of a run", stable, unstable]
    flow = drawn["states of a run"]
    assert len(flow) == 20
    assert np.isnan(flow[[9, 19]]).all()
    steps = np.linalg.norm(np.diff(states, axis=0), axis=2).T
    np.testing.assert_allclose(
        np.linalg.norm(np.diff(flow, axis=0), axis=1)[[*range(8), *range(10, 18)]], steps.ravel()
    )
    # A projection onto as many axes as there are units is a rotation.
    both = np.concatenate([found.states[found.stable], found.states[~found.stable]])
    expected = np.linalg.norm(both[:, None] - both, axis=2)
    plane = np.concatenate([drawn[stable], drawn[unstable]])
    np.testing.assert_allclose(np.linalg.norm(plane[:, None] - plane, axis=2), expected, atol=1e-12)
    assert "100% of the variance" in left.get_title()
    assert sum(len(line.get_xdata()) for line in right.get_lines() if line.get_label() != "unit circle") == H * 3**H


def test_a_fixed_point_alone_has_no_variance():
    (left, _) = plots.fixed_points(analysis.fixed_points(gpurnn.RNN(1, 2), starts=1))
    assert left.get_title() == "fixed points"


def test_gradient_norms_are_drawn_by_layer():
    record = analysis.GradientNorms()
    for step in (0, 1):
        record(step, {}, {"a.weight": np.array([3.0 + step]), "b.weight": np.array([0.5])})
    drawn = lines(plots.gradient_norms(record))
    np.testing.assert_allclose(drawn["a"], [[0, 3], [1, 4]])
    np.testing.assert_allclose(drawn["b"], [[0, 0.5], [1, 0.5]])


def test_saturation_draws_shares_of_the_values():
    gru = gpurnn.GRU(1, 2, dtype="float64")
    gru.params["bias_ih_l0"][2:4] = 0.0, 9.0
    gates = analysis.activity(gru, np.zeros((4, 1, 1)))
    panels = plots.saturation(gates)
    assert [axes.get_xlabel() for axes in panels] == ["r (sigmoid)", "z (sigmoid)", "n (tanh)"]
    (patch,) = panels[1].patches
    values, edges, _ = patch.get_data()
    assert (values.sum(), values.max(), values[-1]) == (100, 50, 50)
    np.testing.assert_array_equal(edges, gates["z"].edges)
    assert panels[1].get_title() == "0% low, 50% high\n1 of 2 units dead"
    assert panels[0].get_ylabel() == "share of the values (%)"


def test_lyapunov_exponents_are_drawn_with_how_they_settled():
    rnn = gpurnn.RNN(1, 4, dtype="float64")
    found = analysis.lyapunov_spectrum(rnn, steps=60, exponents=2)
    left, right = plots.lyapunov_spectrum(found)
    np.testing.assert_array_equal(left.get_lines()[0].get_ydata(), found.exponents)
    assert left.get_title() == f"2 of 4 exponents: {found.verdict}"
    drawn = [line for line in right.get_lines() if str(line.get_label()).startswith("$")]
    assert left.get_ylabel() == "Lyapunov exponent (nats per step)"
    assert [axis.get_label_text() for axis in (right.xaxis, right.yaxis)] == [
        "time averaged over (steps)",
        "estimate (nats per step)",
    ]
    flow = analysis.runge_kutta(lambda s: -s, lambda s: np.full((1, 1, 1), -1.0), 0.1)
    of_flow = plots.lyapunov_spectrum(analysis.lyapunov_spectrum(flow, state=np.ones((1, 1)), steps=20))
    assert of_flow[0].get_ylabel() == "Lyapunov exponent (nats per unit of time)"
    assert of_flow[1].get_xlabel() == "time averaged over (units of time)"
    assert len(drawn) == 2
    np.testing.assert_array_equal(drawn[1].get_xydata(), np.stack([found.times, found.history[:, 1]], axis=1))


def test_cost_is_drawn_against_the_length():
    lstm = gpurnn.LSTM(3, 4)
    panels = plots.cost(lstm, 2, steps=(8, 32), k=16)
    names = ["forward", "BPTT", "BPTT truncated to 16 steps"]
    assert legend(panels[0].figure.legends[0]) == names
    whole, window = analysis.complexity(lstm, 32, 2, 16), analysis.complexity(lstm, 8, 2)
    for axes, quantity, unit in zip(panels, ("flops", "bytes", "memory"), (1, 1, 2**20), strict=True):
        drawn = lines(axes)
        assert list(drawn["forward"][:, 0]) == [8, 32]
        assert drawn["forward"][1, 1] == getattr(whole.forward, quantity) / unit
        assert drawn["BPTT"][0, 1] == getattr(window.bptt, quantity) / unit
        assert drawn[names[2]][1, 1] == getattr(whole.truncated, quantity) / unit
        assert axes.get_xscale() == axes.get_yscale() == "log"
    assert legend(plots.cost(lstm, 2, steps=(8,), k=None)[0].figure.legends[0]) == names[:2]


def test_a_picture_is_written(tmp_path):
    plots.singular_values({"h": analysis.spectrum(np.eye(2))}, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_refused():
    shift = gpurnn.RNN(1, 1, activation="identity", dtype="float64")
    shift.params["weight_hh_l0"][...] = shift.params["bias_ih_l0"][...] = 1
    nothing = analysis.fixed_points(shift, starts=1)
    something = analysis.fixed_points(gpurnn.RNN(1, 2), starts=1)
    refused = [
        ("gradient_flow: norms is empty", lambda: plots.gradient_flow({})),
        (r"norms\['a'\] has shape \(\)", lambda: plots.gradient_flow({"a": np.array(1.0)})),
        ("eigenvalues: spectra is empty", lambda: plots.eigenvalues({})),
        ("singular_values: spectra is empty", lambda: plots.singular_values({})),
        ("cost: steps is empty", lambda: plots.cost(gpurnn.RNN(1, 1), 1, steps=())),
        ("saturation: gates is empty", lambda: plots.saturation({})),
        ("fixed_points: points holds no fixed point", lambda: plots.fixed_points(nothing)),
        ("states of 3 numbers, .* S = 2", lambda: plots.fixed_points(something, states=np.ones((2, 3)))),
        ("gradient_norms: record holds no steps", lambda: plots.gradient_norms(analysis.GradientNorms())),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"singular_values: matplotlib is not installed; pip install matplotlib"):
        plots.singular_values({"h": analysis.spectrum(np.eye(2))})


# --- activations ---


def test_activations_draw_units_over_time():
    rng = np.random.default_rng(0)
    gate, state = rng.uniform(size=(7, 2, 3)), rng.normal(size=(7, 3))
    of_gate, of_state = plots.activations({"f": gate, "c": state}, row=1)
    np.testing.assert_array_equal(of_gate.images[0].get_array(), gate[:, 1].T)
    np.testing.assert_array_equal(of_state.images[0].get_array(), state.T)
    assert of_gate.images[0].get_clim() == (0, 1)
    assert of_state.images[0].get_clim() == (-np.abs(state).max(), np.abs(state).max())
    assert [axes.get_xlabel() for axes in (of_gate, of_state)] == ["time step t"] * 2


def test_activations_of_nothing_but_zeros_and_nan():
    plots.activations({"h": np.zeros((3, 2))})
    plots.activations({"h": np.full((3, 2), np.nan)})


@pytest.mark.parametrize(
    ("values", "row", "message"),
    [
        ({}, 0, "values is empty, expected at least one entry"),
        ({"h": np.zeros(3)}, 0, r"values\['h'\] has shape \(3,\), expected \(T, H\) or \(T, B, H\)"),
        ({"h": np.zeros((3, 2, 1))}, 2, r"row is 2, expected 0 \.\.\. 1"),
    ],
)
def test_activations_reject_what_cannot_be_drawn(values, row, message):
    with pytest.raises(ValueError, match=f"activations: {message}"):
        plots.activations(values, row=row)
