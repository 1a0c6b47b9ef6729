"""The linear-Gaussian state-space model: the joint normal distribution, statsmodels, published numbers.

``data/state_space_series.npz`` holds series of the statsmodels package, in the public domain: ``nile``, the flow of the
Nile at Aswan in 10^8 m^3 a year, 1871 to 1970; ``co2``, the CO2 at Mauna Loa in ppm a week, from 29 March 1958 on, with
NaN for missing weeks.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api
from strict_wing import DEVICE, Array, plain, strict
from tolerance import arrays_of, assert_all_close, assert_close, assert_same, check_gradients

import gpurnn
from gpurnn.models.kalman import filter as filtering
from gpurnn.models.kalman import recursion

SERIES = Path(__file__).parent / "data" / "state_space_series.npz"


def series(name: str) -> np.ndarray:
    with np.load(SERIES) as held:
        return held[name][:, None]


def covariance(rng, n: int, rank: int | None = None) -> np.ndarray:
    root = rng.standard_normal((n, rank or n + 2))
    return root @ root.T / n


def draw(
    T: int = 6, B: int = 2, n: int = 3, p: int = 2, varying: str = "", missing: bool = True, diffuse=(), seed: int = 0,
    ahead: int = 0,
):  # fmt: skip
    """A random model and observations of its size; a whole step and single numbers are missing."""
    rng = np.random.default_rng(seed)
    made = {
        "F": lambda: 0.7 * np.eye(n) + 0.3 * rng.standard_normal((n, n)),
        "H": lambda: rng.standard_normal((p, n)),
        "Q": lambda: covariance(rng, n),
        "R": lambda: covariance(rng, p),
    }
    given = {
        name: np.stack([make() for _ in range(T + ahead)]) if name in varying else make() for name, make in made.items()
    }
    P0 = covariance(rng, n)
    for k in diffuse:
        P0[k], P0[:, k] = 0, 0
        P0[k, k] = np.inf
    y = rng.standard_normal((T, B, p))
    if missing:
        y[2, 0] = np.nan
        y[rng.random(y.shape) < 0.2] = np.nan
    return gpurnn.LinearGaussian(**given, m0=rng.standard_normal(n), P0=P0), y


def joint(model, T: int, wide: np.ndarray | None = None):
    """Mean and covariance of all states followed by all observations, by linearity alone."""
    p = {name: np.asarray(a) for name, a in model.params.items()}
    at = lambda name, t: p[name][t] if p[name].ndim == 3 else p[name]  # noqa: E731
    n, m = p["F"].shape[-1], p["H"].shape[-2]
    P0 = p["P0"] if wide is None else wide
    # The states and observations as a linear map of independent sources: x_0, the w_t and the v_t.
    sources = [P0] + [at("Q", t) for t in range(T - 1)] + [at("R", t) for t in range(T)]
    sizes = [len(s) for s in sources]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    states = np.zeros((T, n, starts[-1]))
    states[0, :, :n] = np.eye(n)
    mean = [p["m0"]]
    for t in range(T - 1):
        states[t + 1] = at("F", t) @ states[t]
        states[t + 1, :, starts[1 + t] : starts[2 + t]] += np.eye(n)
        mean.append(at("F", t) @ mean[-1])
    seen = np.stack([at("H", t) @ states[t] for t in range(T)])
    for t in range(T):
        seen[t, :, starts[T + t] : starts[T + t + 1]] += np.eye(m)
    spread = np.zeros((starts[-1], starts[-1]))
    for s, k in zip(sources, starts, strict=False):
        spread[k : k + len(s), k : k + len(s)] = s
    maps = np.concatenate([states.reshape(T * n, -1), seen.reshape(T * m, -1)])
    means = np.concatenate([*mean, *[at("H", t) @ mean[t] for t in range(T)]])
    return means, maps @ spread @ maps.T


def conditioned(mean, spread, values, upto):
    """The joint normal distribution, given those ``values`` below the index ``upto`` that are not NaN."""
    known = ~np.isnan(values) & (np.arange(len(values)) < upto)
    gain = np.linalg.solve(spread[np.ix_(known, known)], spread[known]).T
    return mean + gain @ (values[known] - mean[known]), spread - gain @ spread[known]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("varying", ["", "FHQR"])
@pytest.mark.parametrize("single", [False, True])
def test_it_is_the_joint_normal_distribution(varying, missing, single):
    T, B, n, p, steps = 6, 1 if single else 3, 3, 2, 4
    model, y = draw(T, B, n, p, varying, missing, ahead=steps)
    given = y[:, 0] if single else y
    value, filtered = model(given), model.filter(given)
    smoothed, forecast = model.smooth(given), model.forecast(given, steps)
    if single:
        filtered, smoothed, forecast = ([a[:, None] for a in group] for group in (filtered, smoothed, forecast))
    mean, spread = joint(model, T + steps)
    states, total = (T + steps) * n, 0.0
    for b in range(B):
        values = np.full(len(mean), np.nan)
        values[states : states + T * p] = y[:, b].ravel()
        for t in range(T + steps):
            own, seen = slice(n * t, n * t + n), slice(states + p * t, states + p * t + p)
            cases = [(states + T * p, *((smoothed[0], smoothed[1]) if t < T else (forecast[2], forecast[3])), own)]
            if t < T:
                cases.append((states + t * p, filtered[0], filtered[1], own))
                cases.append((states + (t + 1) * p, filtered[2], filtered[3], own))
            else:
                cases.append((states + T * p, forecast[0], forecast[1], seen))
            for upto, means, spreads, part in cases:
                expected, covariance = conditioned(mean, spread, values, upto)
                at = t if t < T else t - T
                assert_close(means[at, b], expected[part], 1000, magnitude=1)
                assert_close(spreads[at, b], covariance[part, part], 1000, magnitude=1)
        known = ~np.isnan(values)
        residual, S = values[known] - mean[known], spread[np.ix_(known, known)]
        total -= (residual @ np.linalg.solve(S, residual) + np.linalg.slogdet(2 * np.pi * S)[1]) / 2
    assert_close(value, np.array(total), 1000)
    assert value.shape == ()


@pytest.mark.parametrize("diffuse", [(0,), (0, 2), (0, 1, 2)])
def test_a_diffuse_state_is_the_limit_of_a_large_variance(diffuse):
    """The error of a large variance kappa falls as 1/kappa, so two of them give the limit up to 1/kappa^2."""
    model, y = draw(8, 2, varying="FHQR", diffuse=diffuse)
    moderate = np.where(np.isinf(model.params["P0"]), 0, model.params["P0"])
    found = [model(y), *model.smooth(y), *model.forecast(y[:7], 1)]
    limits = []
    for kappa in (1e5, 2e5):
        P0 = moderate + kappa * np.isinf(model.params["P0"])
        proper = gpurnn.LinearGaussian(**{**model.params, "P0": P0})
        value = proper(y) + y.shape[1] * len(diffuse) * np.log(kappa) / 2
        limits.append([value, *proper.smooth(y), *proper.forecast(y[:7], 1)])
    for result, first, second in zip(found, *limits, strict=True):
        assert np.abs(result - first).max() > 10 * np.abs(result - (2 * second - first)).max()
        np.testing.assert_allclose(2 * second - first, result, rtol=1e-6, atol=1e-6)


def test_the_filter_knows_nothing_until_the_diffuse_states_are_determined():
    trend = gpurnn.LinearGaussian(
        np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]]), np.diag([0.1, 0.01]), np.eye(1)
    )
    y = np.array([3.0, np.nan, 4.0, 6.0])[:, None]
    filtered = trend.filter(y)
    assert np.isnan(filtered.mean[:2]).all()
    assert np.isnan(filtered.covariance[:2]).all()
    assert np.isnan(filtered.predicted_mean[:3]).all()
    for a in (filtered.mean[2:], filtered.covariance[2:], filtered.predicted_mean[3:]):
        assert np.isfinite(a).all()
    # The mean is the line through two points.
    np.testing.assert_allclose(filtered.mean[2], [4.0, 0.5], rtol=0.1)
    assert_close(filtered.mean[-1], trend.smooth(y).mean[-1], 10)
    with pytest.raises(ValueError, match="LinearGaussian: y does not determine the diffuse states, expected more obs"):
        trend(y[:2])


@pytest.mark.parametrize(("dtype", "far"), [("float64", 1e4), ("float64", 1e8), ("float32", 1e2), ("float32", 1e5)])
@pytest.mark.parametrize("kind", ["level", "trend", "trend and a proper state"])
def test_it_is_the_same_model_wherever_the_diffuse_states_lie(kind, dtype, far):
    """The errors are those of rounding the observations once, as the gradient with respect to them shows."""
    if kind == "level":
        matrices, diffuse = (np.eye(1), np.eye(1), np.eye(1), np.eye(1), np.zeros(1)), 1
    elif kind == "trend":
        F = np.array([[1.0, 1.0], [0.0, 1.0]])
        matrices, diffuse = (F, np.array([[1.0, 0.0]]), np.diag([1.0, 0.01]), np.eye(1), np.zeros(2)), 2
    else:
        F = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.8]])
        matrices, diffuse = (F, np.array([[1.0, 0.0, 1.0]]), np.diag([0.1, 0.01, 1.0]), np.eye(1), np.ones(3)), 2
    n, T, steps = len(matrices[0]), 200, 5
    P0 = np.diag([np.inf] * diffuse + [1.0] * (n - diffuse))
    start = np.zeros((n, 3, 1))
    start[:diffuse] = far * np.stack([[1.0, -0.5, 0.1], [0.01, 0.02, 0.0]])[:diffuse, :, None]
    shift = [start]
    for _ in range(T + steps - 1):
        shift.append(np.einsum("ij,jbo->ibo", matrices[0], shift[-1]))
    shift = np.stack(shift)[..., 0].transpose(0, 2, 1)
    rng = np.random.default_rng(0)
    near = np.cumsum(rng.standard_normal((T, 3, 1)), axis=0) + rng.standard_normal((T, 3, 1))
    near[rng.random(near.shape) < 0.1] = np.nan
    near[:20, 1] = np.nan
    y = (near + shift[:T] @ matrices[1].T).astype(dtype)
    near = y.astype("float64") - shift[:T] @ matrices[1].T

    model = gpurnn.LinearGaussian(*(a.astype(dtype) for a in (*matrices, P0)))
    exact = gpurnn.LinearGaussian(*matrices, P0)
    (value, pullback), (expected, exact_pullback) = model.vjp(y), exact.vjp(near)
    (dy, grads), (exact_dy, exact_grads) = pullback(1.0), exact_pullback(1.0)
    eps, size = float(np.finfo(dtype).eps), float(np.nanmax(np.abs(y)))
    rounding = eps * size * float(np.abs(exact_dy).sum())
    assert abs(value - expected) < rounding
    for name in ("Q", "R"):
        assert np.abs(grads[name] - exact_grads[name]).max() < rounding, name
    assert np.abs(dy - exact_dy).max() < 10 * eps * size
    # The gradients with respect to F and H depend on where the states lie: that of F grows with them, as do its errors.
    wide = exact.vjp(y.astype("float64"))[1](1.0)[1]
    assert np.abs(grads["H"] - wide["H"]).max() < rounding
    assert np.abs(grads["F"] - wide["F"]).max() < rounding * size

    moved, close = shift[:T], near.astype(dtype)
    for results, same, wanted, by in (
        (model.smooth(y), model.smooth(close), exact.smooth(near), moved),
        (model.filter(y)[2:], model.filter(close)[2:], exact.filter(near)[2:], moved),
        (model.forecast(y, steps)[2:], model.forecast(close, steps)[2:], exact.forecast(near, steps)[2:], shift[T:]),
    ):
        np.testing.assert_array_equal(np.isnan(results[0]), np.isnan(wanted[0]))
        reach = max(size, float(np.abs(by).max()))
        np.testing.assert_allclose(results[0].astype("float64") - by, wanted[0], rtol=0, atol=10 * eps * reach)
        # The covariances do not depend on where the observations lie.
        np.testing.assert_allclose(results[1], same[1], rtol=0, atol=2 * eps * np.nanmax(same[1]))
    if dtype == "float64" and diffuse == n:
        theirs = [oracle(exact, near[:, b]) for b in range(3)]
        assert abs(value - sum(found.llf for found in theirs)) < rounding
        smoothed = np.stack([found.smoothed_state.T for found in theirs], axis=1)
        np.testing.assert_allclose(model.smooth(y).mean - moved, smoothed, rtol=0, atol=10 * eps * size)


def rauch_tung_striebel(model, filtered):
    F = model.params["F"]
    mean, spread = [filtered.mean[-1]], [filtered.covariance[-1]]
    for t in reversed(range(len(filtered.mean) - 1)):
        J = filtered.covariance[t] @ F.T @ np.linalg.inv(filtered.predicted_covariance[t + 1])
        mean.insert(0, filtered.mean[t] + (J @ (mean[0] - filtered.predicted_mean[t + 1])[..., None])[..., 0])
        transposed = np.swapaxes(J, -1, -2)
        spread.insert(0, filtered.covariance[t] + J @ (spread[0] - filtered.predicted_covariance[t + 1]) @ transposed)
    return np.stack(mean), np.stack(spread)


def test_the_smoother_is_that_of_rauch_tung_and_striebel():
    model, y = draw(30, 2)
    assert_all_close(tuple(model.smooth(y)), list(rauch_tung_striebel(model, model.filter(y))), 1000)


def oracle(model, y):
    """The same model in statsmodels, for one sequence."""
    n, p = model.params["F"].shape[-1], model.params["H"].shape[-2]
    other = statsmodels.api.tsa.statespace.MLEModel(y, k_states=n, k_posdef=n)
    matrices = {"transition": "F", "design": "H", "state_cov": "Q", "obs_cov": "R"}
    for name, ours in matrices.items():
        other[name] = np.moveaxis(model.params[ours], 0, -1) if model.params[ours].ndim == 3 else model.params[ours]
    other["selection"] = np.eye(n)
    assert other["design"].shape[0] == p
    P0 = model.params["P0"]
    if np.isinf(P0).all(where=np.eye(n, dtype=bool)):
        other.ssm.initialize_diffuse()
    else:
        other.ssm.initialize_known(model.params["m0"], P0)
    other.ssm.tolerance = 0  # otherwise it takes the covariances to have converged, and stops computing them
    return other.ssm.smooth()


@pytest.mark.parametrize(("level", "observation"), [(1.0, 3.0), (0.1, 1.0), (1e-6, 1.0)])
@pytest.mark.parametrize("rows", ["alike", "different"])
def test_steps_share_covariances_that_have_converged(level, observation, rows):
    """The same model with its parameters repeated over time shares no covariances between steps."""
    T = 500
    F = np.array([[1.0, 1.0], [0.0, 0.9]])
    constant = {
        "F": F, "H": np.array([[1.0, 0.5]]), "Q": level * np.diag([1.0, 0.1]), "R": np.full((1, 1), observation),
    }  # fmt: skip
    y = np.random.default_rng(0).normal(size=(T, 2, 1))
    y[250:253] = np.nan
    if rows == "different":
        y[100, 1] = y[300:304, 0] = np.nan
    model = gpurnn.LinearGaussian(**constant, P0=np.diag([np.inf, 1.0]))
    repeated = gpurnn.LinearGaussian(
        **{name: np.broadcast_to(p, (T, *p.shape)) for name, p in constant.items()}, P0=model.params["P0"]
    )
    if level > 1e-6:  # there the covariances have not converged at the end
        computed = filtering.forward("", np, model.params, y).number[-1] + 1
        assert computed < T / 2
    assert filtering.forward("", np, repeated.params, y).number[-1] + 1 == T
    for one, other in (
        (tuple(model.filter(y)), tuple(repeated.filter(y))),
        (tuple(model.smooth(y)), tuple(repeated.smooth(y))),
        (model(y), repeated(y)),
    ):
        for a, b in zip(arrays_of(one), arrays_of(other), strict=True):
            assert_same(np.isnan(a), np.isnan(b))
            assert_close(np.nan_to_num(a), np.nan_to_num(b), T)
    (dy, grads), (other_dy, others) = model.vjp(y)[1](1.0), repeated.vjp(y)[1](1.0)
    assert_close(dy, other_dy, T)
    for name, gradient in grads.items():
        each = others[name].sum(axis=0) if name in constant else others[name]
        assert_close(gradient, each, T, name, magnitude=np.abs(others[name]).sum())


def test_rows_that_miss_the_same_observations_share_covariances():
    model, y = draw(20, 3, missing=False)
    y[4], y[7, :, 1] = np.nan, np.nan
    alike = [*model.filter(y), *model.smooth(y), *model.forecast(y, 2)]
    assert filtering.forward("", np, model.params, y).covariances.gain.shape[1] == 1
    y[10, 2, 0] = np.nan
    assert filtering.forward("", np, model.params, y).covariances.gain.shape[1] == 3
    different = [*model.filter(y), *model.smooth(y), *model.forecast(y, 2)]
    for one, other in zip(alike, different, strict=True):
        assert_close(one[:, :2], other[:, :2], 100)


@pytest.mark.parametrize("varying", ["", "FHQR"])
@pytest.mark.parametrize("missing", [False, True])
def test_statsmodels_finds_the_same(varying, missing):
    model, y = draw(40, 1, varying=varying, missing=missing, seed=1)
    y = y[:, 0]
    found, filtered, smoothed = oracle(model, y), model.filter(y), model.smooth(y)
    assert_close(model(y), np.array(found.llf), 1000)
    for ours, theirs in (
        (filtered.mean, found.filtered_state), (filtered.covariance, found.filtered_state_cov),
        (filtered.predicted_mean, found.predicted_state[..., :-1]),
        (filtered.predicted_covariance, found.predicted_state_cov[..., :-1]),
        (smoothed.mean, found.smoothed_state), (smoothed.covariance, found.smoothed_state_cov),
    ):  # fmt: skip
        assert_close(ours, np.ascontiguousarray(np.moveaxis(theirs, -1, 0)), 1000)


def test_statsmodels_finds_the_same_of_a_diffuse_level():
    model, y = local_level(1469.1, 15099.0), series("nile")
    found, smoothed = oracle(model, y), model.smooth(y)
    assert_close(model(y), np.array(found.llf), 1000)
    assert_close(smoothed.mean[:, 0], found.smoothed_state[0], 1000)
    assert_close(smoothed.covariance[:, 0, 0], found.smoothed_state_cov[0, 0], 1000)


@pytest.mark.parametrize("diffuse", [(), (1,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("varying", ["", "FHQR", "HQ"])
def test_the_score_against_central_differences(varying, missing, diffuse):
    # As many observations as states: the less is known about a diffuse state, the larger the fifth derivative.
    model, y = draw(5, 2, p=3, varying=varying, missing=missing, diffuse=diffuse)
    value, pullback = model.vjp(y)
    assert_same(value, model(y))
    dy, grads = pullback(1.0)
    assert_same(pullback(1.0), (dy, grads))
    assert list(grads) == list(model.params)
    assert_all_close(list(pullback(-2.0)[1].values()), [-2 * g for g in grads.values()], 0)
    assert not dy[np.isnan(y)].any()

    P0 = model.params["P0"]
    infinite = np.isinf(P0)
    known = ~infinite.any(axis=1)
    start = {
        **model.params,
        "P0": np.where(known[:, None] & known, P0, np.nan),
        "m0": np.where(known, model.params["m0"], np.nan),
    }

    def outputs(inputs):
        # Only symmetric changes of a covariance are meaningful.
        given = {
            name: (a + np.swapaxes(a, -1, -2)) / 2 if name in ("Q", "R", "P0") else a for name, a in inputs.items()
        }
        given["P0"] = np.where(infinite, np.inf, np.where(np.isnan(given["P0"]), 0, given["P0"]))
        given["m0"] = np.where(np.isnan(given["m0"]), 0, given["m0"])
        return [gpurnn.LinearGaussian(**{name: given[name] for name in start})(inputs["y"])]

    check_gradients(outputs, {**start, "y": y}, [np.ones(())], {**grads, "y": dy}, seed=3)


def local_level(level: float, observation: float) -> gpurnn.LinearGaussian:
    one = np.ones((1, 1))
    return gpurnn.LinearGaussian(one, one, level * one, observation * one)


def test_the_nile_has_the_variances_that_durbin_and_koopman_publish():
    """15099 and 1469.1, "Time series analysis by state space methods", 2nd ed., section 2.10.3."""
    y = series("nile")
    model = local_level(y.var() / 2, y.var() / 2)
    history = model.fit(y).log_likelihoods_
    assert len(history) < 20
    assert model.params["R"].item() == pytest.approx(15099, rel=1e-3)
    assert model.params["Q"].item() == pytest.approx(1469.1, rel=1e-3)
    assert history[-1] == pytest.approx(float(model(y)), rel=1e-12)
    assert (np.diff(history) >= 0).all()
    slower = local_level(1560.0, 15000.0)
    history = slower.fit(y, method="em", iterations=60, tolerance=0).log_likelihoods_
    assert len(history) == 61
    assert (np.diff(history) > 0).all()
    assert slower.params["R"].item() == pytest.approx(15099, rel=0.02)
    assert slower.params["Q"].item() == pytest.approx(1469.1, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "observation"),
    [(1, 1), (0.01, 1), (10, 1), (1e4, 1), (1e-4, 1), (1, 1e-4), (1e-4, 1e4), (1e6, 1e-2), (1e-2, 1e6), (1e6, 1e6)],
)
def test_the_nile_is_fitted_from_any_start(level, observation):
    """Where one variance is far too small, the likelihood is flat in it. All may be far too small or too large."""
    y = series("nile")
    model = local_level(level, observation)
    history = model.fit(y).log_likelihoods_
    assert (np.diff(history) >= 0).all()
    assert history[-1] == pytest.approx(float(local_level(1469.1, 15099.0)(y)), abs=1e-4)
    assert history[-1] == pytest.approx(float(model(y)), rel=1e-12)
    assert model.params["R"].item() == pytest.approx(15099, rel=0.02)
    assert model.params["Q"].item() == pytest.approx(1469.1, rel=0.02)


@pytest.mark.slow
def test_a_fit_that_is_ended_early_has_the_parameters_of_its_last_value():
    y = series("nile")
    for iterations in range(8):
        model = local_level(1.0, 1.0)
        history = model.fit(y, iterations=iterations).log_likelihoods_
        assert len(history) == iterations + 1
        assert history[-1] == pytest.approx(float(model(y)), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_likelihood_without_a_maximum_leaves_parameters_that_have_one(dtype):
    """The observations never vary, so smaller variances are always more likely."""
    y = np.zeros((30, 1), dtype)
    one = np.ones((1, 1), dtype)
    model = gpurnn.LinearGaussian(one, one, one, one)
    history = model.fit(y).log_likelihoods_
    assert (np.diff(history) >= 0).all()
    assert history[-1] == pytest.approx(float(model(y)), rel=1e-6)
    assert all(p > 0 for p in (model.params["Q"], model.params["R"]))
    model = gpurnn.LinearGaussian(one, one, one, one)
    if dtype == "float64":
        history = model.fit(y, method="em", iterations=20).log_likelihoods_
        assert history[-1] == pytest.approx(float(model(y)), rel=1e-6)
    else:
        with pytest.raises(ValueError, match=r"iteration .* failed, and the parameters are those before it: Q is n"):
            model.fit(y, method="em")
        assert np.isfinite(model(y))


def co2_model(variances, period: float = 365.25 / 7) -> gpurnn.LinearGaussian:
    """A level with a slope, and two harmonics of the year."""
    F, H = np.eye(6), np.array([[1.0, 0, 1, 0, 1, 0]])
    F[0, 1] = 1
    for k in (1, 2):
        angle = 2 * np.pi * k / period
        c, s = np.cos(angle), np.sin(angle)
        F[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[c, s], [-s, c]]
    level, slope, season, observation = variances
    return gpurnn.LinearGaussian(F, H, np.diag([level, slope, *[season] * 4]), np.full((1, 1), observation))


def generalised_least_squares(model, y) -> float:
    """The log-likelihood of a diffuse model, as a regression on the initial state with correlated residuals."""
    T, n = len(y), len(model.params["F"])
    mean, spread = joint(model, T, wide=np.zeros((n, n)))
    X = [model.params["H"][0]]
    for _ in range(T - 1):
        X.append(X[-1] @ model.params["F"])
    known = ~np.isnan(y[:, 0])
    L = np.linalg.cholesky(spread[T * n :, T * n :][np.ix_(known, known)])
    Xw, yw = (np.linalg.solve(L, a[known]) for a in (np.array(X), y[:, 0] - mean[T * n :]))
    q, r = np.linalg.qr(Xw)
    residual = yw - q @ (q.T @ yw)
    half = np.log(np.diag(L)).sum() + np.log(np.abs(np.diag(r))).sum()
    return float(-half - (residual @ residual + len(yw) * np.log(2 * np.pi)) / 2)


class Theirs(statsmodels.api.tsa.statespace.MLEModel):
    """`co2_model` in statsmodels, with four variances to fit."""

    param_names = ("level", "slope", "season", "observation")

    def __init__(self, y):
        super().__init__(y, k_states=6, k_posdef=6)
        ours = co2_model((1.0, 1.0, 1.0, 1.0))
        self["transition"], self["design"], self["selection"] = ours.params["F"], ours.params["H"], np.eye(6)
        self.ssm.initialize_diffuse()

    def transform_params(self, unconstrained):
        return np.exp(unconstrained)

    def untransform_params(self, constrained):
        return np.log(constrained)

    def update(self, params, **options):
        level, slope, season, observation = super().update(params, **options)
        self["state_cov"] = np.diag([level, slope, *[season] * 4])
        self["obs_cov", 0, 0] = observation


@pytest.mark.slow
def test_co2_is_fitted_and_forecast_through_its_gaps():
    y = series("co2")
    past, future = y[104:520], y[520:572]
    assert np.isnan(past).sum() == 34
    begin = (0.1, 1e-5, 1e-3, 0.5)
    model = co2_model(begin)
    start = past[:150]
    assert_close(model(start), np.array(generalised_least_squares(model, start)), 1000)
    history = model.fit(past).log_likelihoods_
    assert (np.diff(history) >= 0).all()
    assert len(history) < 40
    # No variance, changed relative to its size, would gain anything.
    grads = model.vjp(past)[1](1.0)[1]
    for name in ("Q", "R"):
        assert np.abs(np.diag(grads[name] * model.params[name])).max() < 1e-3, name
    # Our model has a variance for each state of the seasons, so its maximum is no lower. A search ends just below it.
    # Of statsmodels' methods, only that of Nelder and Mead converges with the roundings of every processor tried.
    theirs = Theirs(past).fit(start_params=begin, method="nm", maxiter=1000, disp=0)
    assert theirs.mle_retvals["converged"]
    assert history[-1] > theirs.llf - 0.01
    forecast = model.forecast(past, 52)
    low, high = forecast.interval(0.95)
    known = ~np.isnan(future)
    assert known.sum() > 45
    inside = (low < future) & (future < high)
    assert inside[known].mean() > 0.9
    # The season alone swings by 6 ppm; the last value as forecast for the whole year errs by 2.
    assert np.sqrt(np.mean((forecast.mean - future)[known] ** 2)) < 0.7


@pytest.mark.parametrize("method", ["em", "bfgs"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_every_parameter_is_fitted(method, diagonal):
    """The likelihood rises from a wrong start, with EM at every step, and the score vanishes except along rotations."""
    rng = np.random.default_rng(0)
    model, y = draw(40, 3, n=2, p=2, seed=2)
    if diagonal:
        for name in ("Q", "R", "P0"):
            model.params[name][...] = np.diag(np.diag(model.params[name]))
    names = ("F", "H", "Q", "R", "m0", "P0")
    before = {name: p.copy() for name, p in model.params.items()}
    y = y + np.cumsum(rng.standard_normal(y.shape), axis=0) * 0.3
    history = model.fit(y, names, method=method, diagonal=diagonal, iterations=25, tolerance=0).log_likelihoods_
    assert (np.diff(history) >= 0).all()
    assert history[-1] > history[0] + 10
    for name, p in model.params.items():
        assert (p != before[name]).any(), name
        if name in ("Q", "R", "P0"):
            assert_same(p, p.T.copy())
            assert np.linalg.eigvalsh(p).min() > -1e-12
            assert not diagonal or not p[~np.eye(len(p), dtype=bool)].any()


@pytest.mark.parametrize("names", [("Q",), ("R",), ("F", "Q"), ("H", "R"), ("m0", "P0"), ("F", "H")], ids="".join)
def test_em_stands_still_where_the_score_vanishes(names):
    """An EM step from the maximum found by BFGS changes nothing; one from elsewhere does."""
    model, y = draw(50, 4, n=2, p=2, seed=4, missing=True)
    y *= 1.5
    start = {name: p.copy() for name, p in model.params.items()}
    model.fit(y, names, method="em", diagonal=False, iterations=1)
    moved = max(float(np.abs(model.params[name] - start[name]).max()) for name in names)
    model.fit(y, names, diagonal=False, iterations=100, tolerance=0)
    best = {name: p.copy() for name, p in model.params.items()}
    model.fit(y, names, method="em", diagonal=False, iterations=1, tolerance=0)
    assert max(float(np.abs(model.params[name] - best[name]).max()) for name in names) < 1e-3 * moved


@pytest.mark.parametrize("names", [("F", "H", "Q", "R", "m0", "P0"), ("Q", "R", "P0")], ids="".join)
def test_a_step_of_em_is_that_of_the_definition(names):
    """It follows from the moments of the joint distribution of all states and observations, including missing ones."""
    T, B, n, p = 7, 3, 2, 2
    model, y = draw(T, B, n, p)
    mean, spread = joint(model, T)
    before = {name: a.copy() for name, a in model.params.items()}
    moments = np.zeros((T * (n + p), T * (n + p)))
    initial, second = np.zeros(n), np.zeros((n, n))
    for b in range(B):
        values = np.concatenate([np.full(T * n, np.nan), y[:, b].ravel()])
        m, V = conditioned(mean, spread, values, len(values))
        moments += V + np.outer(m, m)
        initial += m[:n] / B
        second += (V + np.outer(m, m))[:n, :n] / B
    states = [slice(n * t, n * t + n) for t in range(T)]
    seen = [slice(T * n + p * t, T * n + p * t + p) for t in range(T)]

    def regression(name, onto, of, count):
        """The best (or the given) matrix to predict ``onto`` from ``of``, and the remaining covariance."""
        yy, yx, xx = (
            sum(moments[u, v] for u, v in zip(left, right, strict=True))
            for left, right in ((onto, onto), (onto, of), (of, of))
        )
        best = np.linalg.solve(xx, yx.T).T if name in names else before[name]
        return best, (yy - best @ yx.T - yx @ best.T + best @ xx @ best.T) / count

    F, Q = regression("F", states[1:], states[:-1], (T - 1) * B)
    H, R = regression("H", seen, states, T * B)
    m0 = initial if "m0" in names else before["m0"]
    P0 = second - np.outer(initial, m0) - np.outer(m0, initial) + np.outer(m0, m0)
    model.fit(y, names, method="em", diagonal=False, iterations=1)
    for name, expected in zip(before, (F, H, Q, R, m0, P0), strict=True):
        assert_close(model.params[name], expected, 2000, name, magnitude=1)


@pytest.mark.parametrize("method", ["em", "bfgs"])
def test_what_is_diffuse_stays_so_in_a_fit(method):
    model, y = draw(10, 3, diffuse=(1,))
    before = {name: a.copy() for name, a in model.params.items()}
    model.fit(y, ("m0", "P0"), method=method, diagonal=False, iterations=3)
    P0 = model.params["P0"]
    np.testing.assert_array_equal(np.isinf(P0), np.isinf(before["P0"]))
    assert (P0[::2, ::2] != before["P0"][::2, ::2]).all()
    assert not P0[1, ::2].any()
    assert model.params["m0"][1] == before["m0"][1]
    assert (model.params["m0"][::2] != before["m0"][::2]).all()
    level = local_level(1.0, 1.0)
    np.testing.assert_allclose(
        level.fit(series("nile"), ("m0", "P0"), method=method).log_likelihoods_, level(series("nile"))
    )
    assert level.params["P0"] == np.inf


def test_a_fit_finds_what_made_the_data():
    rng = np.random.default_rng(5)
    T, B = 100, 30
    F, x = np.array([[0.9]]), np.zeros((T + 1, B))
    for t in range(T):
        x[t + 1] = 0.9 * x[t] + 0.5 * rng.standard_normal(B)
    y = (x[1:] + 0.3 * rng.standard_normal((T, B)))[..., None]
    model = gpurnn.LinearGaussian(0.3 * F, np.eye(1), np.eye(1), np.eye(1), P0=np.eye(1))
    model.fit(y, ("F", "Q", "R"))
    assert model.params["F"].item() == pytest.approx(0.9, abs=0.03)
    assert model.params["Q"].item() == pytest.approx(0.25, rel=0.1)
    assert model.params["R"].item() == pytest.approx(0.09, rel=0.2)


def test_variances_of_zero_stay_and_singular_covariances_work():
    """A season that repeats exactly: its states have no noise, and their covariances become singular."""
    rng = np.random.default_rng(0)
    y = (np.tile([5.0, -1.0, -4.0], 20) + 0.5 * rng.standard_normal(60))[:, None]
    F = np.array([[-1.0, -1.0], [1.0, 0.0]])
    model = gpurnn.LinearGaussian(F, np.array([[1.0, 0.0]]), np.zeros((2, 2)), np.eye(1))
    for method in ("bfgs", "em"):
        model.fit(y, method=method, iterations=30)
        assert not model.params["Q"].any()
    y[-6:] = np.nan
    np.testing.assert_allclose(model.forecast(y, 3).mean[:, 0], [5, -1, -4], atol=0.5)
    # The variance of a mean over about 18 values of each season.
    assert model.params["R"].item() == pytest.approx(0.25, rel=0.5)
    exact = gpurnn.LinearGaussian(np.eye(1), np.eye(1), np.eye(1), np.zeros((1, 1)))
    assert_close(exact.smooth(y[:10]).mean, y[:10], 10)


def test_covariances_stay_covariances_where_observations_are_nearly_exact():
    F = np.array([[1.0, 1.0], [0.0, 1.0]])
    for dtype, small in (("float64", 1e-12), ("float32", 1e-5)):
        arrays = (F, np.array([[1.0, 0.0]]), 1e-6 * np.eye(2), small * np.eye(1), np.zeros(2), 1e6 * np.eye(2))
        model = gpurnn.LinearGaussian(*(a.astype(dtype) for a in arrays))
        y = np.arange(200.0, dtype=dtype)[:, None]
        filtered = model.filter(y)
        for spread in (filtered.covariance, filtered.predicted_covariance):
            assert spread.dtype == dtype
            assert_same(spread, np.swapaxes(spread, -1, -2).copy())
            scale = np.sqrt(np.diagonal(spread, axis1=-2, axis2=-1).astype("float64"))
            assert (scale > 0).all()
            correlation = spread / scale[:, :, None] / scale[:, None, :]
            assert np.linalg.eigvalsh(correlation).min() > -10 * np.finfo(dtype).eps


@pytest.mark.parametrize("diffuse", [(), (0, 1, 2)])
def test_float32(diffuse):
    model, y = draw(20, 2, diffuse=diffuse)
    small = gpurnn.LinearGaussian(**{name: p.astype("float32") for name, p in model.params.items()})
    single = y.astype("float32")
    value, pullback = small.vjp(single)
    results = [value, *small.smooth(single), *small.forecast(single, 2)]
    expected = [model(y), *model.smooth(y), *model.forecast(y, 2)]
    for r, e in zip(results, expected, strict=True):
        assert_close(r, np.asarray(e, "float32"), 1000)
    dy, grads = pullback(1.0)
    for r, e in zip([dy, *grads.values()], arrays_of(model.vjp(y)[1](1.0)), strict=True):
        assert_close(r, e.astype("float32"), 2000)


def test_an_interval_holds_its_share():
    rng = np.random.default_rng(0)
    B = 4000
    level = np.cumsum(rng.standard_normal((12, B)), axis=0)
    y = (level + 0.5 * rng.standard_normal((12, B)))[..., None]
    model = gpurnn.LinearGaussian(np.eye(1), np.eye(1), np.eye(1), 0.25 * np.eye(1))
    forecast = model.forecast(y[:10], 2)
    for share in (0.5, 0.95):
        low, high = forecast.interval(share)
        inside = ((low < y[10:]) & (y[10:] < high)).mean(axis=1)
        assert (np.abs(inside - share) < 4 * (share * (1 - share) / B) ** 0.5).all()
    for level in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match=r"GaussianForecast.interval: level is"):
            forecast.interval(level)


def test_saved_and_read(tmp_path):
    model, y = draw(6, 1, varying="H", diffuse=(1,))

    class Derived(gpurnn.LinearGaussian):
        pass

    path = tmp_path / "model.safetensors"
    Derived(**model.params).save(path)
    assert type(gpurnn.LinearGaussian.from_file(path)) is Derived
    model.save(path)
    for again in (gpurnn.LinearGaussian.from_file(path), gpurnn.models.load(path)):
        assert type(again) is gpurnn.LinearGaussian
        assert_same(again(y), model(y))
        assert_same(again.params, model.params)
        assert repr(again) == repr(model)
    assert repr(model) == "LinearGaussian(state_size=3, observation_size=2, varying=H, diffuse=1)  # 70 parameters"


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "m"
    with pytest.raises(FileNotFoundError):
        gpurnn.LinearGaussian.from_file(path)
    gpurnn.SequenceTagger(3, 4, 2).save(path)
    with pytest.raises(ValueError, match="m: holds a SequenceTagger, expected a LinearGaussian"):
        gpurnn.LinearGaussian.from_file(path)
    gpurnn.Dense(2, 3).save(path)
    with pytest.raises(ValueError, match="m: holds a layer, expected a model"):
        gpurnn.LinearGaussian.from_file(path)
    draw(4)[0].save(path)
    with pytest.raises(ValueError, match="m: holds a LinearGaussian, expected a SequenceTagger"):
        gpurnn.SequenceTagger.from_file(path)
    with pytest.raises(ValueError, match="m: holds a LinearGaussian, expected a Model"):
        gpurnn.models.Model.from_file(path)


def leaves(nested) -> list:
    if isinstance(nested, dict):
        nested = tuple(nested.values())
    return [leaf for entry in nested for leaf in leaves(entry)] if isinstance(nested, tuple) else [nested]


@pytest.mark.parametrize("diffuse", [(), (0, 2)])
def test_on_arrays_that_are_not_numpys(strict_namespace, monkeypatch, diffuse):
    monkeypatch.setattr(recursion, "WIDEST", 0)  # NumPy arrays go step by step too
    model, y = draw(6, 2, varying="FR", diffuse=diffuse, ahead=2)
    moved = gpurnn.LinearGaussian(**strict(model.params))
    on = strict(y)
    for result, expected in (
        (moved(on), model(y)),
        (tuple(moved.filter(on)), tuple(model.filter(y))),
        (tuple(moved.smooth(on)), tuple(model.smooth(y))),
        (tuple(moved.forecast(on, 2)), tuple(model.forecast(y, 2))),
        (tuple(moved.forecast(on, 2).interval()), tuple(model.forecast(y, 2).interval())),
        (moved.vjp(on)[1](1.0), model.vjp(y)[1](1.0)),
    ):
        for leaf in leaves(result):
            assert isinstance(leaf, Array)
            assert leaf.device == DEVICE
        assert_same(plain(result), expected)
    # A default P0 of a diffuse model, and a fit.
    for method in ("em", "bfgs"):
        free = {name: p[0] if p.ndim == 3 else p for name, p in model.params.items() if name not in ("m0", "P0")}
        one, other = gpurnn.LinearGaussian(**free), gpurnn.LinearGaussian(**strict(free))
        options = {"method": method, "diagonal": False, "iterations": 3}
        one.fit(y, **options)
        other.fit(on, **options)
        np.testing.assert_array_equal(one.log_likelihoods_, other.log_likelihoods_)
        assert_same(plain(other.params), one.params)


GOOD = {"F": np.eye(2), "H": np.ones((1, 2)), "Q": np.eye(2), "R": np.eye(1), "m0": np.zeros(2), "P0": np.eye(2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"F": np.eye(3)}, r"F has shape \(3, 3\), expected \(n, n\) at its end = \(2, 2\)"),
        ({"F": np.ones(2)}, r"F has shape \(2,\), expected \(n, n\), or a first axis of time too"),
        ({"R": np.eye(2)}, r"R has shape \(2, 2\), expected \(p, p\) at its end = \(1, 1\)"),
        ({"m0": np.zeros(3)}, r"m0 has shape \(3,\), expected \(n,\) = \(2,\)"),
        ({"P0": np.zeros(2)}, r"P0 has shape \(2,\), expected \(n, n\)"),
        ({"H": np.ones((0, 2))}, r"H has shape \(0, 2\), expected p and n of at least 1"),
        ({"Q": np.array([[1.0, 0.5], [0.0, 1.0]])}, r"Q is not symmetric, expected a covariance"),
        ({"Q": np.diag([1.0, -0.5])}, r"Q has the eigenvalue -0.5, expected none below 0"),
        ({"F": np.full((2, 2), np.nan)}, r"F holds NaN or infinity, expected finite numbers$"),
        ({"m0": np.array([0.0, np.inf])}, r"m0 holds NaN or infinity, expected finite numbers$"),
        ({"R": np.full((1, 1), np.inf)}, r"R holds NaN or infinity, expected finite numbers$"),
        ({"P0": np.full((2, 2), np.nan)}, r"P0 holds NaN or infinity, expected finite numbers, or inf on the diagonal"),
        ({"P0": np.array([[np.inf, 0.1], [0.1, 1.0]])}, r"P0 has covariances with a diffuse state, expected zeros"),
    ],
)  # fmt: skip
def test_a_model_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=f"LinearGaussian: {message}"):
        gpurnn.LinearGaussian(**{**GOOD, **change})


def test_an_observation_without_any_variance_is_refused():
    """A constant level observed without noise is known after the first observation."""
    one = np.ones((1, 1))
    exact, y = gpurnn.LinearGaussian(one, one, 0 * one, 0 * one), np.ones((3, 2, 1))
    message = r"H P H\^T \+ R of step 1 of row 0 is not positive definite, P being .*; expected a larger R, or Q or P0"
    for name, call in (
        ("LinearGaussian", exact), ("LinearGaussian", exact.vjp), ("LinearGaussian.filter", exact.filter),
        ("LinearGaussian.smooth", exact.smooth), ("LinearGaussian.forecast", lambda y: exact.forecast(y, 1)),
        ("LinearGaussian.fit", exact.fit),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            call(y)
    pair = gpurnn.LinearGaussian(one, np.ones((2, 1)), one, np.zeros((2, 2)), P0=one)
    with pytest.raises(ValueError, match=r"LinearGaussian: H P H.* of step 0 is not positive definite"):
        pair(np.ones((1, 2)))


@pytest.mark.parametrize("seed", range(20))
def test_a_variance_that_is_all_rounding_is_zero(seed):
    """What a noise-free observation adds may be a few units in the last place, of either sign, where it is nothing."""
    rng = np.random.default_rng(seed)
    gain, F, one = rng.normal(size=(2, 1)), rng.normal(size=(2, 2)), np.eye(1)
    states_of_one = gain @ gain.T
    for model, y in (
        (gpurnn.LinearGaussian(one, gain, one, states_of_one, np.zeros(1), one), rng.normal(size=(3, 1)) * gain.T),
        (gpurnn.LinearGaussian(F, F, np.zeros((2, 2)), np.zeros((2, 2)), P0=states_of_one), rng.normal(size=(3, 2))),
        (gpurnn.LinearGaussian(F, gain.T, np.zeros((2, 2)), 0 * one, P0=np.eye(2)), rng.normal(size=(3, 1))),
    ):
        for call in (model, model.filter, model.vjp):
            with pytest.raises(ValueError, match="is not positive definite"):
                call(y)


def test_a_small_variance_next_to_a_large_one_is_none_of_rounding():
    """The second observation differs from the first by a state of variance 1, which rounding does not reach."""
    H = np.array([[1.0, 0], [1, 1]])
    y = np.array([[0, 0.5]])
    model = gpurnn.LinearGaussian(np.eye(2), H, np.zeros((2, 2)), np.zeros((2, 2)), P0=np.diag([1e20, 1]))
    expected = -0.5 * (2 * np.log(2 * np.pi) + np.log(1e20) + 0.25)
    np.testing.assert_allclose(model(y), expected, rtol=1e-12)
    steady = gpurnn.LinearGaussian(np.array([[1.6, -0.7], [1, 0]]), np.eye(2)[:1], np.diag([1.0, 0]), np.zeros((1, 1)))
    missing = np.random.default_rng(0).normal(size=(400, 1))
    missing[::3] = np.nan  # so that no step shares another's covariances
    assert np.isfinite(steady(missing))


def test_infinity_is_no_observation():
    model, y = gpurnn.LinearGaussian(**GOOD), np.ones((4, 1))
    y[2] = -np.inf
    for call in (model, model.vjp, model.filter, model.smooth, lambda y: model.forecast(y, 1), model.fit):
        with pytest.raises(
            ValueError, match=r"LinearGaussian.*: y holds infinity, expected finite numbers, or NaN for"
        ):
            call(y)


def test_refusals():
    model = gpurnn.LinearGaussian(**GOOD)
    for y in (np.ones(4), np.ones((4, 2)), np.ones((0, 1)), np.ones((4, 1, 1, 1))):
        with pytest.raises(ValueError, match=r"y has shape .*, expected \(T, p\) or \(T, B, p\) with p = 1, T > 0"):
            model(y)
    with pytest.raises(TypeError, match="LinearGaussian: y has dtype float32 but params has float64"):
        model(np.ones((4, 1), "float32"))
    y = np.ones((4, 1))
    with pytest.raises(ValueError, match=r"LinearGaussian.forecast: steps is 0, expected at least 1"):
        model.forecast(y, 0)
    varying = gpurnn.LinearGaussian(**{**GOOD, "H": np.ones((4, 1, 2))})
    with pytest.raises(ValueError, match=r"LinearGaussian: H has 4 steps, expected at least T = 5"):
        varying(np.ones((5, 1)))
    with pytest.raises(ValueError, match=r"LinearGaussian.forecast: H has 4 steps, expected at least T \+ steps = 6"):
        varying.forecast(y, 2)
    for options, error, message in (
        ({"parameters": ("A",)}, ValueError, "parameters is 'A', expected one of 'F', 'H'"),
        ({"parameters": "Q"}, TypeError, "parameters is 'Q', expected a tuple of names"),
        ({"parameters": ("H",)}, ValueError, "H varies with time, expected one to fit that does not"),
        ({"method": "newton"}, ValueError, "method is 'newton', expected one of 'bfgs', 'em'"),
        ({"iterations": -1}, ValueError, "iterations is -1, expected at least 0"),
        ({"tolerance": np.nan}, ValueError, "tolerance is nan, expected"),
    ):
        with pytest.raises(error, match=f"LinearGaussian.fit: {message}"):
            varying.fit(y, **options)
    full = gpurnn.LinearGaussian(**{**GOOD, "Q": np.array([[1.0, 0.5], [0.5, 1.0]])})
    with pytest.raises(ValueError, match=r"LinearGaussian.fit: Q is not diagonal, expected a diagonal, or diag"):
        full.fit(y)


def moving_average():
    """An MA(1) in its usual form, where F^2 is zero, and the same in another basis."""
    g = np.array([[1.0], [0.4]])
    F, H, Q = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.0]]), g @ g.T
    yield F, H, Q
    basis = np.array([[1.0, 0.3], [-0.7, 2.1]])
    inverse = np.linalg.inv(basis)
    yield basis @ F @ inverse, H @ inverse, basis @ Q @ basis.T


@pytest.mark.parametrize("form", [0, 1, "zero"])
def test_diffuse_states_that_are_forgotten_before_an_observation(form):
    """The diffuse part of the state vanishes when F^2 = 0 or F = 0, whatever was observed of it."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(40, 1))
    y[:3] = np.nan
    F, H, Q = (np.zeros((1, 1)), np.eye(1), np.eye(1)) if form == "zero" else list(moving_average())[form]
    model = gpurnn.LinearGaussian(F, H, Q, np.eye(1))
    expected = oracle(model, y)
    assert float(model(y)) == pytest.approx(expected.llf, rel=1e-9)
    gone = 1 if form == "zero" else 2
    found, smoothed, ahead = model.filter(y), model.smooth(y), model.forecast(y, 3)
    for mean in (found.mean, found.predicted_mean, smoothed.mean):
        assert np.isnan(mean[:gone]).all()
        assert np.isfinite(mean[gone:]).all()
    np.testing.assert_allclose(found.mean[gone:], expected.filtered_state.T[gone:], atol=1e-9)
    np.testing.assert_allclose(smoothed.mean[gone:], expected.smoothed_state.T[gone:], atol=1e-9)
    np.testing.assert_allclose(smoothed.covariance[gone:], expected.smoothed_state_cov.T[gone:], atol=1e-9)
    assert all(np.isfinite(each).all() for each in ahead)
    # The gradient with respect to the noises, which the forgotten states do not affect.
    _, pull = model.vjp(y)
    _, grads = pull(1.0)
    for name in ("Q", "R"):
        change = np.ones_like(model.params[name])

        def at(step, name=name, change=change):
            return float(gpurnn.LinearGaussian(**{**model.params, name: model.params[name] + step * change})(y))

        numeric = (8 * (at(1e-3) - at(-1e-3)) - (at(2e-3) - at(-2e-3))) / 12e-3 if name == "R" else None
        if numeric is not None:
            assert float((grads[name] * change).sum()) == pytest.approx(numeric, rel=1e-6)
    assert np.all(np.diff(model.fit(y, ("R",)).log_likelihoods_) >= 0)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-6])
@pytest.mark.parametrize("prior", [1e4, 1e8, 1e12])
def test_precise_sensors_of_one_state_that_little_is_known_of(prior, noise, correlation):
    """The covariance of the innovation may be arbitrarily ill-conditioned."""
    R = noise * np.array([[1.0, correlation], [correlation, 4.0]])
    one, y = np.ones((1, 1)), np.array([[3.0, 3.0 + noise**0.5]])
    model = gpurnn.LinearGaussian(one, np.ones((2, 1)), one, R, P0=prior * one)
    precisions = np.linalg.inv(R).sum(axis=0)
    variance = 1 / (precisions.sum() + 1 / prior)
    found = model.filter(y)
    np.testing.assert_allclose(found.covariance[0], [[variance]], rtol=1e-13)
    np.testing.assert_allclose(found.mean[0], [variance * (precisions @ y[0])], rtol=1e-13)
    np.testing.assert_allclose(model.smooth(y).covariance[0], [[variance]], rtol=1e-12)
    squares = y[0] @ np.linalg.inv(R) @ y[0] - variance * (precisions @ y[0]) ** 2
    determinant = np.linalg.det(R) * prior / variance
    expected = -(squares + math.log(determinant) + 2 * math.log(2 * math.pi)) / 2
    assert model(y) == pytest.approx(expected, rel=1e-12, abs=1e-14 / noise)


def test_noises_that_are_correlated_and_of_any_size():
    """A small noise keeps its digits next to a large one. A noise determined by another has no variance left."""
    one, y = np.ones((1, 1)), np.array([[2.0, 1.0]])
    R = np.array([[1e12, 0.5], [0.5, 1e-12]])
    found = gpurnn.LinearGaussian(one, np.array([[0.0], [1.0]]), one, R, P0=one).filter(y)
    # Given the first noise, 3/4 of the second one's variance remains.
    expected = 0.75e-12 / (1 + 0.75e-12)
    np.testing.assert_allclose(found.covariance[0], [[expected]], rtol=1e-13)
    known = gpurnn.LinearGaussian(one, np.array([[0.0], [1.0]]), one, np.ones((2, 2)), P0=one).filter(y)
    np.testing.assert_allclose(known.mean[0], [-1.0], rtol=1e-14)
    np.testing.assert_allclose(known.covariance[0], [[0.0]], atol=1e-15)


@pytest.mark.parametrize("unit", [1e-12, 1e6, 1e12])
def test_without_noise_the_unit_does_not_matter(unit):
    """A state of known variance and a diffuse one, both determined by one observation without noise."""
    F, H = np.array([[0.83, 1.23], [0.83, 0.66]]), np.array([[-0.75, -0.17], [1.55, 1.16]])
    y, none = np.array([[np.nan, np.nan], [54.0, 31.0]]), np.zeros((2, 2))
    found = gpurnn.LinearGaussian(F, H, none, none, P0=np.diag([4 * unit**2, np.inf])).smooth(unit * y)
    expected = np.linalg.solve(H @ F, y[1])
    np.testing.assert_allclose(found.mean[0] / unit, expected, rtol=1e-9)
    assert np.abs(found.covariance[0]).max() / unit**2 < 1e-9


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_some_diffuse_states_forgotten_and_others_determined(scale):
    """The likelihood is that of the determined states alone."""
    rng = np.random.default_rng(1)
    y = rng.normal(size=(30, 1)).cumsum(axis=0)
    y[:2] = np.nan
    F = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    H = np.array([[scale, 1.0, 0.0]])
    model = gpurnn.LinearGaussian(F, H, np.diag([scale**-2, 0.3, 0.2]), np.eye(1))
    alone = gpurnn.LinearGaussian(
        F, H, np.diag([scale**-2, 0.3, 0.2]), np.eye(1), np.zeros(3), np.diag([np.inf, 0.5, 0.2])
    )
    assert float(model(y)) == pytest.approx(float(alone(y)), rel=1e-9)
    for name, value in alone.vjp(y)[1](1.0)[1].items():
        if name in ("H", "Q", "R"):
            np.testing.assert_allclose(model.vjp(y)[1](1.0)[1][name], value, rtol=1e-6, atol=1e-9 * np.abs(value).max())
    assert np.isnan(model.filter(y).mean[:2]).all()
    assert np.isnan(model.filter(y).predicted_mean[2]).all()
    np.testing.assert_allclose(model.filter(y).mean[2:], alone.filter(y).mean[2:], rtol=1e-6, atol=1e-12)


def test_a_state_that_only_fades_is_not_forgotten():
    model = gpurnn.LinearGaussian(0.5 * np.eye(1), np.eye(1), np.eye(1), np.eye(1))
    y = np.full((200, 1), np.nan)
    assert np.isnan(model.filter(y).mean).all()
    with pytest.raises(ValueError, match="y does not determine"):
        model(y)
    line = gpurnn.LinearGaussian(np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]]), np.eye(2), np.eye(1))
    assert np.isnan(line.filter(y).mean).all()


def test_the_row_without_observations_is_named():
    model = gpurnn.LinearGaussian(np.eye(1), np.eye(1), np.eye(1), np.eye(1))
    y = np.random.default_rng(0).normal(size=(9, 3, 1))
    y[:, 1] = np.nan
    for call in (model, model.vjp, model.smooth, model.fit, lambda y: model.forecast(y, 1)):
        with pytest.raises(ValueError, match="y of row 1 does not determine the diffuse states, expected more obs"):
            call(y)
    zero = gpurnn.LinearGaussian(np.eye(1), np.eye(1), np.zeros((1, 1)), np.zeros((1, 1)), P0=np.zeros((1, 1)))
    y[:, 0] = np.nan
    with pytest.raises(ValueError, match="of step 0 of row 2 is not positive definite"):
        zero(y)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e20), ("float64", 1e165), ("float64", 1e200)])
def test_observations_whose_squares_overflow(dtype, size, known):
    """Means are linear in the observations, and covariances independent of them. Only the likelihood becomes -inf."""
    one = np.ones((1, 1), dtype)
    model = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=one, P0=one if known else None)
    y = np.random.default_rng(0).normal(size=(20, 1)).astype(dtype)
    big = y * np.dtype(dtype).type(size)
    with np.errstate(over="ignore", invalid="ignore"):
        assert model(big) == -np.inf
        for expected, found in ((model.smooth(y), model.smooth(big)), (model.forecast(y, 2), model.forecast(big, 2))):
            assert_close(found.mean / size, expected.mean, 1000)
            assert_close(found.covariance, expected.covariance, 1000)
        with pytest.raises(ValueError, match=r"^LinearGaussian.fit: the log-likelihood of y is -inf, expected"):
            model.fit(big)


def test_what_the_pullback_takes():
    one = np.ones((1, 1))
    _, pullback = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=one).vjp(np.ones((4, 1)))
    assert_same(pullback(np.array(2.0)), pullback(2))
    dy, grads = pullback(None)
    assert not any(a.any() for a in (dy, *grads.values()))
    for wrong, message in (("a", "dvalue is a str"), (np.ones(3), r"dvalue has shape \(3,\)")):
        with pytest.raises((TypeError, ValueError), match=f"^LinearGaussian: {message}"):
            pullback(wrong)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_gradient_by_the_log_likelihood_is_one_number(dtype):
    """The cotangent of the log-likelihood may have any type: the gradients keep the parameters' dtype and shapes."""
    one, y = np.ones((1, 1), dtype), np.arange(5, dtype=dtype)[:, None]
    model = gpurnn.LinearGaussian(one, one, one, one, P0=one)
    _, pull = model.vjp(y)
    whole = pull(1.0)
    for dvalue in (2, 2.0, np.float64(2), np.array(2, dtype)):
        dy, grads = pull(dvalue)
        np.testing.assert_array_equal(dy, 2 * whole[0], strict=True)
        for name, gradient in grads.items():
            np.testing.assert_array_equal(gradient, 2 * whole[1][name], strict=True)
            assert gradient.shape == model.params[name].shape
    assert not any(np.any(a) for a in (pull(None)[0], *pull(None)[1].values()))
    for dvalue in (np.ones(3, dtype), np.ones((1, 1), dtype), np.array(2, "float16"), 1j, "1", [1.0]):
        with pytest.raises((TypeError, ValueError), match=r"LinearGaussian: dvalue (is|has) "):
            pull(dvalue)


@pytest.mark.parametrize("call", ["__call__", "vjp", "filter", "smooth", "forecast", "fit"])
def test_parameters_that_a_caller_replaced_are_checked(call):
    def run(model, y):
        return getattr(model, call)(y, *([2] if call == "forecast" else []))

    for name in ("F", "H", "Q", "R", "m0", "P0"):
        n = 1 if name == "m0" else 2
        for wrong in (np.ones((3,) * n), np.ones((1,) * (n + 2)), np.array(1.0), np.ones((2, 1)), np.ones(3)):
            model, y = draw(n=2, missing=False)
            model.params[name] = wrong
            with pytest.raises(ValueError, match=rf"params\['{name}'\] has shape .*, expected the shape"):
                run(model, y)
        for wrong in ([[1.0]], None, model.params["F"].astype("float32"), np.ma.array(model.params["F"])):
            model, y = draw(n=2, missing=False)
            model.params[name] = wrong
            with pytest.raises(TypeError, match=r"LinearGaussian(\.\w+)?: params\["):
                run(model, y)
        for wrong in (np.nan, np.inf):
            model, y = draw(n=2, missing=False)
            model.params[name].flat[1] = wrong
            with pytest.raises(FloatingPointError, match=rf"params\['{name}'\] holds NaN or infinity"):
                run(model, y)


def test_a_fit_changes_nothing_if_one_of_its_parameters_is_read_only():
    model, y = local_level(2.0, 3.0), np.arange(9.0)[:, None] % 4
    model.params["R"].flags.writeable = False
    with pytest.raises(ValueError, match=r"LinearGaussian\.fit: params\['R'\] is read-only, expected an array"):
        model.fit(y)
    assert (model.params["Q"], model.params["R"]) == (2.0, 3.0)
    model.fit(y, ("Q",))


def test_forecasts_that_overflow_are_none():
    huge = np.full((1, 1), 1e200)
    model = gpurnn.LinearGaussian(huge, np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    with (
        np.errstate(all="ignore"),
        pytest.raises(FloatingPointError, match=r"forecasts are not finite, .* overflow"),
    ):
        model.forecast(np.ones((1, 1)), 3)
