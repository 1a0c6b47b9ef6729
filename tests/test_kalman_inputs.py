"""`LinearGaussian` with inputs, offsets, a stationary start and noiseless observations, against statsmodels."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import statsmodels.api
from strict_wing import DEVICE, plain, strict
from tolerance import arrays_of, assert_close, assert_same, check_gradients

import gpurnn
from gpurnn.models.kalman import level, recursion, seasonal

n, p, k = 3, 2, 2


def draw(T: int = 9, B: int = 2, varying: bool = False, diffuse: bool = False, stationary: bool = False):
    """A random model with all options, observations with gaps, and inputs for two steps more."""
    rng = np.random.default_rng(3)
    over = (T + 2,) if varying else ()
    root = rng.standard_normal((n, n))
    P0 = root @ root.T
    if diffuse:
        P0[0], P0[:, 0] = 0, 0
        P0[0, 0] = np.inf
    model = gpurnn.LinearGaussian(
        0.3 * np.eye(n) + 0.1 * rng.standard_normal((n, n)), rng.standard_normal((p, n)), np.diag([1.0, 0.5, 0.2]),
        np.diag([0.3, 0.4]), **({} if stationary else {"m0": rng.standard_normal(n), "P0": P0}),
        B=rng.standard_normal((*over, n, k)), D=rng.standard_normal((*over, p, k)),
        c=rng.standard_normal((*(() if stationary else over), n)), d=rng.standard_normal((*over, p)),
        stationary=stationary,
    )  # fmt: skip
    y, u = rng.standard_normal((T, B, p)), rng.standard_normal((T + 2, B, k))
    y[2], y[4, 0, 1] = np.nan, np.nan
    return model, y, u


def theirs(model, y, u):
    """The model in statsmodels for one sequence, with the inputs as intercepts that vary with time."""
    values = model.params
    own = statsmodels.api.tsa.statespace.MLEModel(y, k_states=n, k_posdef=n)
    for name, ours in {"transition": "F", "design": "H", "state_cov": "Q", "obs_cov": "R"}.items():
        own[name] = values[ours]
    own["selection"] = np.eye(n)
    T = len(y)
    upto = {name: values[name][:T] if values[name].ndim > (name in "BD") + 1 else values[name] for name in "BDcd"}
    own["state_intercept"] = ((upto["B"] @ u[..., None])[..., 0] + upto["c"]).T
    own["obs_intercept"] = ((upto["D"] @ u[..., None])[..., 0] + upto["d"]).T
    own.ssm.initialize_known(values["m0"], values["P0"])
    own.ssm.tolerance = 0
    return own.ssm.smooth()


@pytest.mark.parametrize("varying", [False, True])
def test_statsmodels_finds_the_same_with_inputs_and_offsets(varying):
    model, y, u = draw(varying=varying)
    T = len(y)
    found = [theirs(model, y[:, b], u[:T, b]) for b in range(2)]
    assert_close(model(y, u[:T]), np.array(sum(each.llf for each in found)), 1000)
    filtered, smoothed = model.filter(y, u[:T]), model.smooth(y, u[:T])
    for b, each in enumerate(found):
        for ours, expected in (
            (filtered.mean, each.filtered_state), (filtered.predicted_mean, each.predicted_state[..., :-1]),
            (smoothed.mean, each.smoothed_state),
        ):  # fmt: skip
            assert_close(ours[:, b], np.ascontiguousarray(expected.T), 1000)
        assert_close(smoothed.covariance[:, b], np.ascontiguousarray(np.moveaxis(each.smoothed_state_cov, -1, 0)), 1000)


@pytest.mark.parametrize("diffuse", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_known_inputs_only_shift_what_is_observed(varying, diffuse):
    """After subtracting the response to the inputs, the observations follow the model without inputs."""
    model, y, u = draw(varying=varying, diffuse=diffuse)
    T, bare = len(y), gpurnn.LinearGaussian(**{name: a for name, a in model.params.items() if name not in "BDcd"})
    over = {name: a if varying else np.broadcast_to(a, (T + 2, *a.shape)) for name, a in model.params.items()}
    shift = [np.zeros((2, n))]
    for t in range(T + 1):
        shift.append(shift[-1] @ model.params["F"].T + u[t] @ over["B"][t].T + over["c"][t])
    shift = np.stack(shift)
    seen = shift @ model.params["H"].T + np.einsum("tpk,tbk->tbp", over["D"], u) + over["d"][:, None]
    bared = y - seen[:T]
    assert_close(model(y, u[:T]), bare(bared), 1000)
    assert_close(model.smooth(y, u[:T]).mean, bare.smooth(bared).mean + shift[:T], 1000)
    ours, expected = model.forecast(y, 2, u), bare.forecast(bared, 2)
    assert_close(ours.mean, expected.mean + seen[T:], 1000)
    assert_close(ours.state_mean, expected.state_mean + shift[T:], 1000)
    assert_close(ours.covariance, expected.covariance, 100)


@pytest.mark.parametrize("diffuse", [False, True])
@pytest.mark.parametrize("varying", [False, True])
def test_the_score_by_inputs_and_offsets_against_central_differences(varying, diffuse):
    model, y, u = draw(6, varying=varying, diffuse=diffuse)
    u = u[:6]
    value, pullback = model.vjp(y, u)
    (dy, du), grads = pullback(1.0)
    assert_same(value, model(y, u))
    assert list(grads) == list(model.params)
    changed = ("B", "D", "c", "d")

    def outputs(inputs):
        own = {**model.params, **{name: inputs[name] for name in changed}}
        return [gpurnn.LinearGaussian(**own)(inputs["y"], inputs["u"])]

    inputs = {**{name: model.params[name] for name in changed}, "y": y, "u": u}
    gradients = {**{name: grads[name] for name in changed}, "y": dy, "u": du}
    check_gradients(outputs, inputs, [np.ones(())], gradients, seed=3)


def test_inputs_that_all_sequences_share():
    model, y, u = draw()
    T = len(y)
    one, each = u[:, 0].copy(), np.broadcast_to(u[:, :1], u.shape)
    assert_same(model(y, one[:T]), model(y, each[:T]))
    assert_same(tuple(model.forecast(y, 2, one)), tuple(model.forecast(y, 2, each)))
    (dy, du), grads = model.vjp(y, one[:T])[1](1.0)
    (dy_each, du_each), grads_each = model.vjp(y, each[:T])[1](1.0)
    assert du.shape == (T, k)
    assert_same((dy, grads), (dy_each, grads_each))
    assert_close(du, du_each.sum(axis=1), 10)
    single = model.vjp(y[:, 0], one[:T])[1](1.0)[0]
    assert single[1].shape == (T, k)


def test_inputs_on_arrays_that_are_not_numpys_and_in_float32(strict_namespace, monkeypatch):
    monkeypatch.setattr(recursion, "WIDEST", 0)  # NumPy arrays go step by step too
    model, y, u = draw(diffuse=True)
    T = len(y)
    moved, on, inputs = gpurnn.LinearGaussian(**strict(model.params)), strict(y), strict(u)
    for result, expected in (
        (moved(on, inputs[:T, ...]), model(y, u[:T])),
        (tuple(moved.forecast(on, 2, inputs)), tuple(model.forecast(y, 2, u))),
        (moved.vjp(on, inputs[:T, ...])[1](1.0), model.vjp(y, u[:T])[1](1.0)),
    ):
        assert_same(plain(result), expected)
    assert moved(on, inputs[:T, ...]).device == DEVICE
    small = gpurnn.LinearGaussian(**{name: a.astype("f4") for name, a in model.params.items()})
    dy, grads = small.vjp(y.astype("f4"), u[:T].astype("f4"))[1](1.0)
    expected_dy, expected_grads = model.vjp(y, u[:T])[1](1.0)
    for one, other in zip(arrays_of([dy, grads]), arrays_of([expected_dy, expected_grads]), strict=True):
        assert_close(one, other.astype("f4"), 2000)


def test_a_fit_finds_the_inputs_and_offsets_that_made_the_data():
    rng = np.random.default_rng(0)
    T, one = 200, np.ones((1, 1))
    u, x, y = rng.standard_normal((T, 2)), 0.0, np.empty((T, 1))
    for t in range(T):
        y[t] = x + u[t] @ [0.5, -1.0] + 3.0 + 0.1 * rng.standard_normal()
        x = 0.7 * x + u[t] @ [1.0, 0.0] - 0.4 + 0.1 * rng.standard_normal()
    zero = np.zeros((1, 2))
    model = gpurnn.LinearGaussian(0.5 * one, one, one, one, P0=one, B=zero, D=zero, c=np.zeros(1), d=np.array([2.9]))
    fitted = model.fit(y, ("F", "B", "D", "c", "Q", "R"), u)
    assert fitted is model
    assert (np.diff(model.log_likelihoods_) >= 0).all()
    assert model.log_likelihoods_[-1] == pytest.approx(float(model(y, u)), rel=1e-9)
    np.testing.assert_allclose(model.params["B"][0], [1.0, 0.0], atol=0.05)
    np.testing.assert_allclose(model.params["D"][0], [0.5, -1.0], atol=0.05)
    assert model.params["F"].item() == pytest.approx(0.7, abs=0.03)


def test_the_stationary_start_is_that_of_scipy_and_statsmodels():
    model, y, _ = draw(stationary=True)
    own = statsmodels.api.tsa.statespace.MLEModel(y[:, 0], k_states=n, k_posdef=n)
    for name, ours in {"transition": "F", "design": "H", "state_cov": "Q", "obs_cov": "R"}.items():
        own[name] = model.params[ours]
    own["selection"], own["state_intercept"] = np.eye(n), model.params["c"][:, None]
    own["obs_intercept"] = model.params["d"][:, None]
    own.ssm.initialize_stationary()
    own.ssm.tolerance = 0
    bare = gpurnn.LinearGaussian(
        **{name: model.params[name] for name in ("F", "H", "Q", "R", "c", "d")}, stationary=True
    )
    assert_same({name: bare.params[name] for name in ("m0", "P0")}, {name: model.params[name] for name in ("m0", "P0")})
    assert_close(bare(y[:, 0]), np.array(own.ssm.loglike()), 1000)
    F, P0 = model.params["F"], model.params["P0"]
    assert_close(F @ P0 @ F.T + model.params["Q"], P0, 100)
    small = gpurnn.LinearGaussian(*(bare.params[name].astype("f4") for name in "FHQR"), stationary=True)
    assert small.params["P0"].dtype == "float32"
    assert_close(small.params["P0"], P0.astype("f4"), 100)


def test_the_stationary_start_follows_a_fit():
    rng = np.random.default_rng(1)
    one, y = np.ones((1, 1)), np.empty((150, 1))
    x = 2.0
    for t in range(len(y)):
        y[t] = x
        x = 0.8 * x + 0.4 + 0.5 * rng.standard_normal()
    model = gpurnn.LinearGaussian(0.1 * one, one, one, 0 * one, c=np.zeros(1), stationary=True)
    model.fit(y, ("F", "Q", "c"))
    expected = statsmodels.api.tsa.SARIMAX(y, order=(1, 0, 0), trend="c").fit(disp=0)
    # The noise variance is zero, as statsmodels assumes.
    assert model.log_likelihoods_[-1] == pytest.approx(expected.llf, abs=1e-6)
    c, phi, variance = expected.params
    for name, value in (("c", c), ("F", phi), ("Q", variance), ("m0", c / (1 - phi)), ("P0", variance / (1 - phi**2))):
        assert model.params[name].item() == pytest.approx(value, rel=1e-3), name
    _, grads = model.vjp(y)[1](1.0)
    assert abs(float(grads["P0"].item())) > 1e-3  # P0 as a parameter of its own


def test_the_gradient_through_the_stationary_start_against_central_differences():
    from gpurnn.models.kalman import stationary

    model, y, u = draw(6, stationary=True)
    _, grads = model.vjp(y, u[:6])[1](1.0)
    stationary.add_gradient(model.params, grads)
    names = ("F", "Q", "c")

    def outputs(inputs):
        own = {name: a for name, a in model.params.items() if name not in ("m0", "P0")}
        symmetric = {**inputs, "Q": (inputs["Q"] + inputs["Q"].T) / 2}
        return [gpurnn.LinearGaussian(**{**own, **symmetric}, stationary=True)(y, u[:6])]

    inputs = {name: model.params[name] for name in names}
    check_gradients(outputs, inputs, [np.ones(())], {name: grads[name] for name in names}, seed=5)


@pytest.mark.parametrize(("ar", "ma"), [((0.5, -0.3), ()), ((0.6,), (0.4,)), ((), (0.5, 0.2))])
def test_observations_without_noise_as_of_arma(ar, ma):
    """An ARMA process is observed without noise; its noiseless states have covariances of zero."""
    size = max(len(ar), len(ma) + 1)
    F = np.diag(np.ones(size - 1), 1)
    F[: len(ar), 0] = ar
    g = np.zeros((size, 1))
    g[0], g[1 : len(ma) + 1, 0] = 1, ma
    y = np.random.default_rng(2).standard_normal((60, 1))
    y[10:12] = np.nan
    model = gpurnn.LinearGaussian(F, np.eye(1, size), 0.7 * g @ g.T, np.zeros((1, 1)), stationary=True)
    own = statsmodels.api.tsa.SARIMAX(y, order=(len(ar), 0, len(ma)))
    own.ssm.tolerance = 0
    expected = own.smooth([*ar, *ma, 0.7])
    assert_close(model(y), np.array(expected.llf), 1000)
    seen = ~np.isnan(y[:, 0])
    np.testing.assert_allclose(model.smooth(y).mean[seen, 0], y[seen, 0], rtol=0, atol=1e-12)
    ahead = model.forecast(y, 3)
    theirs = expected.get_forecast(3)
    assert_close(ahead.mean[:, 0], theirs.predicted_mean, 1000)
    assert_close(ahead.covariance[:, 0, 0], theirs.var_pred_mean, 1000)
    small = gpurnn.LinearGaussian(*(model.params[name].astype("f4") for name in "FHQR"), stationary=True)
    assert_close(small(y.astype("f4")), np.asarray(model(y), "f4"), 1000)


@pytest.mark.parametrize("kind", ["walk", "smooth trend", "level and season", "level and autoregression"])
def test_observations_without_noise_of_diffuse_states(kind):
    """Observed quantities are known exactly, so the covariances of the states have zero eigenvalues."""
    y = np.cumsum(np.random.default_rng(0).standard_normal((60, 1)), axis=0)
    y[20:22] = np.nan
    F, H, Q = {
        "walk": (np.eye(1), np.eye(1), np.eye(1)),
        "smooth trend": (np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]]), np.diag([0.0, 0.5])),
        "level and season": (
            np.array([[1.0, 0, 0], [0, -1, -1], [0, 1, 0]]), np.array([[1.0, 1, 0]]), np.diag([1.0, 0, 0]),
        ),
        "level and autoregression": (
            np.array([[1.0, 0, 0], [0, 0.6, 0.2], [0, 1, 0]]), np.array([[1.0, 1, 0]]), np.diag([0.0, 1, 0]),
        ),
    }[kind]  # fmt: skip
    model = gpurnn.LinearGaussian(F, H, Q, np.zeros((1, 1)))
    own = statsmodels.api.tsa.statespace.MLEModel(y, k_states=len(F), k_posdef=len(F))
    for name, value in {"transition": F, "design": H, "state_cov": Q, "selection": np.eye(len(F))}.items():
        own[name] = value
    own.ssm.initialize_diffuse()
    own.ssm.tolerance = 0
    expected, smoothed = own.ssm.smooth(), model.smooth(y)
    assert float(model(y)) == pytest.approx(expected.llf, rel=1e-10)
    np.testing.assert_allclose(smoothed.mean, expected.smoothed_state.T, rtol=0, atol=1e-10)
    seen = ~np.isnan(y[:, 0])
    np.testing.assert_allclose((smoothed.mean @ H.T)[seen], y[seen], rtol=0, atol=1e-12)
    assert np.isfinite(model.vjp(y)[1](1.0)[1]["Q"]).all()


def test_inputs_are_saved_cloned_and_shown(tmp_path):
    model, y, u = draw()
    assert repr(model) == "LinearGaussian(state_size=3, observation_size=2, input_size=2, diffuse=0)  # 55 parameters"
    still = draw(stationary=True)[0]
    assert "input_size=2, stationary=True)" in repr(still)
    assert still.config() == {"stationary": True}
    model.fit(y, u=u[: len(y)], iterations=2)
    for original in (model, still):
        original.save(tmp_path / "m")
        for again in (gpurnn.models.load(tmp_path / "m"), original.clone()):
            assert_same(again.params, original.params)
            assert again.stationary is original.stationary
            assert_same(again(y, u[: len(y)]), original(y, u[: len(y)]))
    model.save(tmp_path / "m")
    assert_same(gpurnn.models.load(tmp_path / "m").log_likelihoods_, model.log_likelihoods_)


def test_inputs_that_do_not_fit_are_rejected():
    model, y, u = draw()
    T = len(y)
    bare = gpurnn.LinearGaussian(**{name: a for name, a in model.params.items() if name not in "BD"})
    calls = (
        ("LinearGaussian", lambda m, u: m(y, u)),
        ("LinearGaussian", lambda m, u: m.vjp(y, u)),
        ("LinearGaussian.filter", lambda m, u: m.filter(y, u)),
        ("LinearGaussian.smooth", lambda m, u: m.smooth(y, u)),
        ("LinearGaussian.fit", lambda m, u: m.fit(y, ("R",), u)),
    )
    for where, call in calls:
        with pytest.raises(TypeError, match=rf"^{where}: u is None, expected an array of 2 inputs for each step"):
            call(model, None)
        with pytest.raises(TypeError, match=rf"^{where}: u is an array of .*, expected None, as the model has neither"):
            call(bare, u[:T])
        for wrong in (u, u[:T, :1], u[:T, :, :1], u[0]):
            with pytest.raises(ValueError, match=rf"^{where}: u has shape .*, expected \(T, k\) = \(9, 2\) or \(T, B"):
                call(model, wrong)
        for bad in (np.nan, np.inf):
            with pytest.raises(ValueError, match=rf"^{where}: u holds NaN or infinity, expected finite numbers"):
                call(model, np.full((T, 2), bad))
    with pytest.raises(
        ValueError, match=r"forecast: u has shape \(9, 2, 2\), expected \(T \+ steps, k\) = \(11, 2\) or"
    ):
        model.forecast(y, 2, u[:T])
    with pytest.raises(ValueError, match=r"u has shape \(9, 2, 2\), expected \(T, k\) = \(9, 2\)$"):
        model(y[:, 0], u[:T])
    with pytest.raises(TypeError, match="u has dtype float32"):
        model(y, u[:T].astype("f4"))


GOOD = {"F": 0.5 * np.eye(2), "H": np.ones((1, 2)), "Q": np.eye(2), "R": np.eye(1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": np.ones((3, 1))}, r"B has shape \(3, 1\), expected \(n, k\) at its end = \(2, 1\)"),
        ({"B": np.ones((2, 1)), "D": np.ones((1, 2))}, r"D has shape \(1, 2\), expected \(p, k\) at its"),
        ({"D": np.ones(2)}, r"D has shape \(2,\), expected \(p, k\), or a first axis of time too"),
        ({"B": np.ones((2, 0))}, r"B and D have no column, expected one for each input, or None"),
        ({"c": np.ones(3)}, r"c has shape \(3,\), expected \(n,\) at its end = \(2,\)"),
        ({"d": np.ones((1, 1, 1))}, r"d has shape \(1, 1, 1\), expected \(p,\), or a first axis of time too"),
        ({"c": np.array([0.0, np.nan])}, r"c holds NaN or infinity, expected finite numbers"),
        ({"stationary": True, "P0": np.eye(2)}, r"P0 is given, expected None, as stationary is True"),
        ({"stationary": True, "m0": np.ones(2)}, r"m0 is given, expected None, as stationary is True"),
        ({"stationary": True, "c": np.ones((5, 2))}, r"c varies with time, expected one that does not, as stationary"),
        ({"stationary": True, "F": np.eye(2)}, r"F has an eigenvalue of modulus 1, expected all below 1, as"),
    ],
)  # fmt: skip
def test_a_model_with_what_does_not_fit_is_rejected(change, message):
    with pytest.raises(ValueError, match=f"^LinearGaussian: {message}"):
        gpurnn.LinearGaussian(**{**GOOD, **change})


def test_what_a_fit_cannot_change_is_rejected():
    with pytest.raises(TypeError, match="LinearGaussian: stationary is 1, expected True or False"):
        gpurnn.LinearGaussian(**GOOD, stationary=1)
    still, y = gpurnn.LinearGaussian(**GOOD, c=np.ones(2), stationary=True), np.ones((5, 1))
    for parameters, method, message in (
        (("P0",), "bfgs", "parameters holds 'P0', expected F, Q or c, as the start is stationary"),
        (("Q",), "em", "method is 'em', which does not fit Q if the start is stationary, expected 'bfgs'"),
        (("c",), "em", "method is 'em', which does not fit c, expected 'bfgs'"),
        (("d",), "bfgs", "parameters is 'd', expected one of 'F', 'H', 'Q', 'R', 'm0', 'P0', 'c'"),
    ):
        with pytest.raises(ValueError, match=f"LinearGaussian.fit: {message}"):
            still.fit(y, parameters, method=method)
    still.fit(y, ("R",), method="em", iterations=1)


def online(case: str, dtype: str):
    """A model, observations and inputs for each case that a filter may meet."""
    rng = np.random.default_rng(0)
    F, H = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0]])
    T, u = 150, None
    if case == "everything, proper":
        model, y, u = draw(T, 2, varying=True)
        u = u[:T]
    elif case == "everything, diffuse":
        model, y, u = draw(T, 2, diffuse=True)
        u = u[:T]
    elif case == "far from zero, sparse":
        model = gpurnn.LinearGaussian(F, H, np.diag([1.0, 0.01]), np.eye(1))
        y = 1e6 + np.cumsum(rng.standard_normal((T, 1, 1)), axis=0)
        y[[0, 1, 2, 5, 60, 61, 100]] = np.nan
    elif case == "rows that differ":
        model = gpurnn.LinearGaussian(F, H, np.diag([1.0, 0.01]), np.eye(1))
        y = np.cumsum(rng.standard_normal((T, 3, 1)), axis=0)
        y[:40, 1], y[100, 2], y[101, :2] = np.nan, np.nan, np.nan
    elif case == "forgotten":
        model = gpurnn.LinearGaussian(np.array([[0.0, 1.0], [0.0, 0.0]]), H, np.eye(2), np.eye(1))
        y = rng.standard_normal((T, 2, 1))
        y[:3] = y[3, 1] = np.nan
    elif case == "fixed pattern":
        model = (level(0.5) + seasonal(4, variance=0.0)).linear_gaussian()
        model.params["R"][...] = 0.3
        y = rng.standard_normal((T, 1, 1))
    else:
        one = np.ones((1, 1))
        model = gpurnn.LinearGaussian(one, one, 1e-4 * one, one)
        y = rng.standard_normal((T, 70, 1))  # too many rows for a banded matrix
    values = {name: a.astype(dtype) for name, a in model.params.items()}
    return gpurnn.LinearGaussian(**values), y.astype(dtype), None if u is None else u.astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "case",
    [
        "everything, proper", "everything, diffuse", "far from zero, sparse", "rows that differ", "forgotten",
        "fixed pattern", "many rows",
    ],
)  # fmt: skip
def test_updates_give_the_bits_of_the_whole_filter(case, dtype):
    model, y, u = online(case, dtype)
    whole, state = model.filter(y, u), None
    for t in range(len(y)):
        state = model.update(y[t], state, None if u is None else u[t])
        now = (state.predicted_mean, state.predicted_covariance, state.mean, state.covariance)
        for name, one, other in zip(whole._fields, now, whole, strict=True):
            np.testing.assert_array_equal(one, other[t], err_msg=f"{name} of step {t}", strict=True)
    assert state.steps == len(y)


def test_a_state_is_kept_in_a_file_and_takes_other_parameters():
    one, y = np.ones((1, 1)), np.random.default_rng(0).standard_normal((101, 1, 1))
    model, state = gpurnn.LinearGaussian(one, one, one, one), None
    for value in y[:100]:
        state = model.update(value, state)
    again = pickle.loads(pickle.dumps(state))
    assert_same(model.update(y[100], again).mean, model.update(y[100], state).mean)
    # Covariances that have converged for one noise are wrong for another.
    before = model.update(y[100], state)
    model.params["R"][...] *= 100
    after = model.update(y[100], state)
    assert_same(after.predicted_covariance, before.predicted_covariance)
    P, H, R = after.predicted_covariance[0], model.params["H"], model.params["R"]
    gain = P @ H.T / (H @ P @ H.T + R)
    assert_close(after.covariance[0], P - gain @ H @ P, 100)


def test_an_update_of_one_sequence_and_its_checks():
    model, y, u = draw(6)
    state = None
    for t in range(6):
        state = model.update(y[t, 0], state, u[t, 0])
    whole = model.filter(y[:, 0], u[:6, 0])
    assert_same((state.mean, state.covariance), (whole.mean[-1], whole.covariance[-1]))
    assert state.mean.shape == (n,)
    assert "steps" not in repr(state)
    where = r"^LinearGaussian\.update: "
    with pytest.raises(TypeError, match=where + "state is a tuple of 2, expected what the update before returned"):
        model.update(y[0], (1, 2), u[0])
    with pytest.raises(ValueError, match=where + "state is of 1 sequences and 3 states, expected that of an update of"):
        model.update(y[0], state, u[0])
    with pytest.raises(ValueError, match=where + r"y has shape \(6, 2, 2\), expected \(p,\) or \(B, p\), for one step"):
        model.update(y)
    with pytest.raises(TypeError, match=where + "u is None, expected an array of 2 inputs"):
        model.update(y[0, 0], state)
    with pytest.raises(TypeError, match=where + "y is None, expected an array"):
        model.update(None)
    varying = gpurnn.LinearGaussian(*[np.ones((2, 1, 1))] * 4, P0=np.eye(1))
    last = varying.update(np.ones(1), varying.update(np.ones(1)))
    with pytest.raises(ValueError, match=where + "F has 2 steps, expected at least T = 3"):
        varying.update(np.ones(1), last)


@pytest.mark.parametrize("case", ["everything, diffuse", "fixed pattern", "rows that differ"])
def test_a_banded_system_is_the_loop_over_the_steps(case, monkeypatch):
    model, y, u = online(case, "float64")
    results = [[*model.filter(y, u), *model.smooth(y, u), model(y, u), *arrays_of(model.vjp(y, u)[1](1.0))]]
    monkeypatch.setattr(recursion, "WIDEST", 0)
    results.append([*model.filter(y, u), *model.smooth(y, u), model(y, u), *arrays_of(model.vjp(y, u)[1](1.0))])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        assert_close(np.nan_to_num(np.asarray(one)), np.nan_to_num(np.asarray(other)), 100)
