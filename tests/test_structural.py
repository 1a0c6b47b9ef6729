"""Components, and structural models built from them, checked against statsmodels and published numbers.

``data/state_space_series.npz`` is described in `test_kalman`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas
import polars
import pytest
import statsmodels.api
from strict_wing import DEVICE, plain, strict
from tolerance import arrays_of, assert_close, assert_same, check_gradients

import gpurnn
from gpurnn.models import StructuralModel
from gpurnn.models.kalman import ar, level, recursion, regression, seasonal, trend

SERIES = Path(__file__).parent / "data" / "state_space_series.npz"
UnobservedComponents = statsmodels.api.tsa.UnobservedComponents


def nile() -> np.ndarray:
    with np.load(SERIES) as held:
        return held["nile"]


def monthly(T: int = 72, gaps: bool = True):
    """A series with every component, and its two covariates for an additional year."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((T + 12, 2))
    t = np.arange(T)
    y = np.cumsum(rng.normal(0, 0.3, T)) + 3 * np.sin(2 * np.pi * t / 12) + 0.1 * t + X[:T] @ [1.0, -2.0]
    y += rng.normal(0, 0.5, T)
    if gaps:
        y[[5, 16, 17]] = np.nan
    return y, X


CASES = {
    "local level": ((level(),), {"level": "llevel"}, {"sigma2.level": "level.variance"}),
    "local linear trend and dummies": (
        (trend(), seasonal(4)),
        {"level": "lltrend", "seasonal": 4},
        {
            "sigma2.level": "trend.level_variance", "sigma2.trend": "trend.slope_variance",
            "sigma2.seasonal": "seasonal(4).variance",
        },
    ),
    "smooth trend and all harmonics": (
        (trend(level_variance=0.0), seasonal(6, kind="trigonometric")),
        {"level": "strend", "freq_seasonal": [{"period": 6}]},
        {"sigma2.trend": "trend.slope_variance", "sigma2.freq_seasonal_6(3)": "seasonal(6).variance"},
    ),
    "autoregression, regression and two harmonics": (
        (level(), ar(2), regression(2), seasonal(12.5, kind="trigonometric", harmonics=2)),
        {
            "level": "llevel", "autoregressive": 2, "freq_seasonal": [{"period": 12.5, "harmonics": 2}],
            "mle_regression": False,
        },
        {
            "sigma2.level": "level.variance", "sigma2.ar": "ar(2).variance",
            "sigma2.freq_seasonal_12.5(2)": "seasonal(12.5).variance", "ar.L1": "ar(2).coefficients",
            "ar.L2": "ar(2).coefficients",
        },
    ),
}  # fmt: skip
"""Components, the arguments of statsmodels' `UnobservedComponents`, and a map from its parameter names to ours."""


def both(name: str, y, X):
    """Our model and that of statsmodels, with the same parameters, not at a maximum."""
    parts, options, names = CASES[name]
    model = StructuralModel(*parts)
    values = {own: np.linspace(0.5, 0.3, p.size).reshape(p.shape) for own, p in model.params.items()}
    if "ar(2).coefficients" in values:
        values["ar(2).coefficients"] = np.array([0.5, 0.2])
    model.load_state_dict(values)
    exog = X[: len(y)] if "mle_regression" in options else None
    theirs = UnobservedComponents(y, use_exact_diffuse=True, exog=exog, **options)
    theirs.ssm.tolerance = 0
    params = [
        values[{"sigma2.irregular": "noise.variance", **names}[n]].ravel()[-1 if n.endswith("L2") else 0]
        for n in theirs.param_names
    ]
    return model, (None if exog is None else X), theirs, np.array(params)


@pytest.mark.parametrize("name", CASES)
def test_statsmodels_finds_the_same(name):
    y, X = monthly()
    model, X, theirs, params = both(name, y, X)
    own = None if X is None else X[: len(y)]
    expected = theirs.smooth(params)
    assert float(model(y, own)) == pytest.approx(expected.llf, rel=1e-9)
    ahead = model.forecast(y, 12, X)
    forecast = expected.get_forecast(12, **({} if X is None else {"exog": X[len(y) :]}))
    np.testing.assert_allclose(ahead.mean, forecast.predicted_mean, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(ahead.variance, forecast.var_pred_mean, rtol=1e-7)
    np.testing.assert_allclose(np.stack(ahead.interval(0.9), 1), forecast.conf_int(alpha=0.1), rtol=1e-6, atol=1e-6)
    parts = model.decompose(y, own)
    found = {"level": "level", "trend": "level", "ar(2)": "autoregressive"}
    for part in model.components:
        if part.name in found:
            smoothed = getattr(expected, found[part.name])
            np.testing.assert_allclose(parts[part.name].mean, smoothed.smoothed, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(parts[part.name].variance, smoothed.smoothed_cov, rtol=1e-6, atol=1e-6)
        if part.name == "seasonal(4)":
            np.testing.assert_allclose(parts[part.name].mean, expected.seasonal.smoothed, rtol=1e-6, atol=1e-6)
        elif part.kind == "seasonal":
            smoothed = expected.freq_seasonal[0].smoothed
            np.testing.assert_allclose(parts[part.name].mean, smoothed, rtol=1e-6, atol=1e-6)
    total = sum(part.mean for part in parts.values())
    np.testing.assert_allclose(total[~np.isnan(y)], y[~np.isnan(y)], rtol=1e-9)
    assert np.isnan(parts["noise"].mean[np.isnan(y)]).all()


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_against_central_differences(name):
    y, X = monthly(30)
    model, X, *_ = both(name, y, X)
    X = None if X is None else X[:30]
    value, pullback = model.vjp(y, X)
    assert_same(value, model(y, X))
    dy, grads = pullback(1.0)
    assert dy.shape == y.shape
    assert list(grads) == list(model.params)

    def outputs(inputs):
        again = model.clone()
        again.load_state_dict({n: a for n, a in inputs.items() if n != "y"})
        return [again(inputs["y"], X)]

    check_gradients(outputs, {**model.params, "y": y}, [np.ones(())], {**grads, "y": dy}, seed=3)


def test_the_nile_has_the_variances_that_durbin_and_koopman_publish():
    """15099 and 1469.1, "Time series analysis by state space methods", 2nd ed., section 2.10.3."""
    model = StructuralModel(level())
    assert model.fit(nile()) is model
    assert model.params["noise.variance"] == pytest.approx(15099, rel=1e-3)
    assert model.params["level.variance"] == pytest.approx(1469.1, rel=1e-3)
    assert (np.diff(model.log_likelihoods_) >= 0).all()
    assert model.log_likelihoods_[-1] == pytest.approx(float(model(nile())), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "size"), [("local linear trend and dummies", 1e6), ("smooth trend and all harmonics", 1e-6)]
)
def test_a_fit_reaches_at_least_what_that_of_statsmodels_does(name, size):
    y, _ = monthly(48)
    parts, options, _ = CASES[name]
    model = StructuralModel(*parts).fit(y * size)
    theirs = UnobservedComponents(y, use_exact_diffuse=True, **options).fit(disp=0, maxiter=200)
    diffuse = len(model.state_names)
    scaled = model.log_likelihoods_[-1] + (np.count_nonzero(~np.isnan(y)) - diffuse) * np.log(size)
    # The likelihood of the second model has two maxima.
    assert scaled > theirs.llf - 1e-5


def test_an_autoregression_is_fitted_and_stays_stationary():
    """The result is that of statsmodels, which also assumes a stationary start."""
    rng = np.random.default_rng(3)
    z = np.zeros(150)
    for t in range(2, len(z)):
        z[t] = 0.6 * z[t - 1] + 0.3 * z[t - 2] + rng.normal()
    model = StructuralModel(ar(2), noise_variance=0.0).fit(z)
    theirs = statsmodels.api.tsa.SARIMAX(z, order=(2, 0, 0)).fit(disp=0)
    assert model.log_likelihoods_[-1] == pytest.approx(theirs.llf, abs=1e-5)
    np.testing.assert_allclose(model.params["ar(2).coefficients"], theirs.params[:2], atol=1e-3)
    assert "noise" not in model.decompose(z)
    assert_close(model.decompose(z)["ar(2)"].mean, z, 100)
    # A random walk is not stationary, but the fit stays within the stationary models.
    walk = np.cumsum(rng.normal(size=150))
    near = StructuralModel(ar(3), noise_variance=0.0).fit(walk).params["ar(3).coefficients"]
    roots = np.abs(np.roots([1, *-near]))
    assert 0.9 < roots.max() < 1


def test_partial_autocorrelations_make_coefficients_and_back():
    from gpurnn.models.kalman.structural import _coefficients, _coordinates

    x = np.array([0.7, -2.0, 0.1, 5.0])
    phi, by_x = _coefficients(x)
    assert_close(_coordinates(phi), x, 1000)
    for k in range(4):
        step = np.eye(4)[k] * 1e-6
        numeric = (_coefficients(x + step)[0] - _coefficients(x - step)[0]) / 2e-6
        np.testing.assert_allclose(by_x[:, k], numeric, atol=1e-8)
    # The last coefficient is the partial autocorrelation at its lag.
    assert phi[-1] == pytest.approx(5 / np.sqrt(26))
    assert np.abs(np.roots([1, *-phi])).max() < 1


def test_several_series_share_their_parameters():
    y, _ = monthly(40)
    several = np.stack([y, y[::-1], np.roll(y, 7)], axis=1)
    model = (level() + seasonal(4)).fit(several, iterations=5)
    assert float(model(several)) == pytest.approx(sum(float(model(several[:, b])) for b in range(3)), rel=1e-9)
    parts, ahead = model.decompose(several), model.forecast(several, 3)
    assert parts["level"].mean.shape == (40, 3)
    assert ahead.mean.shape == ahead.components["level"].variance.shape == (3, 3)
    for b in range(3):
        assert_close(parts["level"].mean[:, b], model.decompose(several[:, b])["level"].mean, 1000)
        assert_close(ahead.variance[:, b], model.forecast(several[:, b], 3).variance, 1000)


def test_what_people_have_as_series():
    y, X = monthly(40, gaps=False)
    model = level() + regression(2)
    model.load_state_dict({name: 0.5 * np.ones_like(p) for name, p in model.params.items()})
    dates = pandas.date_range("2020-01-31", periods=40, freq="ME")
    expected = model(y, X[:40])
    for series, table in (
        (y.tolist(), X[:40].tolist()),
        (pandas.Series(y, dates), pandas.DataFrame(X[:40], dates, ["a", "b"])),
        (y[::-1][::-1], np.asfortranarray(X[:40])),
    ):
        assert_same(model(series, table), expected)
    integers = StructuralModel(level()).fit(pandas.Series([3, 4, 6, 5, 7, 9, 8]))
    assert integers.forecast([3, 4, 6], 2).mean.dtype == "float64"


def test_the_index_of_a_series_goes_on():
    y, X = monthly(40, gaps=False)
    model = level() + regression(2)
    model.load_state_dict({name: 0.5 * np.ones_like(p) for name, p in model.params.items()})
    dates = pandas.date_range("2020-01-31", periods=44, freq="ME")
    named = pandas.Series(y, dates[:40], name="sales")
    parts, ahead = model.decompose(named, X[:40]), model.forecast(named, 4, X[:44])
    plainly = model.forecast(y, 4, X[:44])
    pandas.testing.assert_index_equal(parts["level"].mean.index, dates[:40])
    for found, expected in ((ahead, plainly), (ahead.components["level"], plainly.components["level"])):
        pandas.testing.assert_index_equal(found.mean.index, dates[40:])
        np.testing.assert_array_equal(found.mean, expected.mean)
        low, _ = found.interval(0.9)
        pandas.testing.assert_series_equal(low, pandas.Series(expected.interval(0.9)[0], dates[40:], name=low.name))
    # Omitted dates are missing values.
    few = named.drop(dates[[7, 8, 20]])
    gone = y.copy()
    gone[[7, 8, 20]] = np.nan
    rest = np.delete(X[:40], [7, 8, 20], axis=0)
    assert_close(model(few, rest), model(gone, X[:40]), 1000)
    with_gaps = StructuralModel(level())
    with_gaps.load_state_dict({name: 0.5 * np.ones_like(p) for name, p in with_gaps.params.items()})
    assert_same(with_gaps(few), with_gaps(gone))
    again = with_gaps.decompose(few)["level"].mean
    assert list(again.index) == list(dates[:40])
    np.testing.assert_array_equal(again, with_gaps.decompose(gone)["level"].mean)
    found = with_gaps.forecast(polars.Series("sales", y), 2)
    assert isinstance(found.mean, polars.Series)
    np.testing.assert_array_equal(found.mean, with_gaps.forecast(y, 2).mean)
    numbered = with_gaps.forecast(pandas.Series(y), 2).mean
    assert list(numbered.index) == [40, 41]


def test_float32():
    y, X = monthly(48)
    for name in CASES:
        model, covariates, *_ = both(name, y, X)
        small = StructuralModel(*model.components, dtype="float32")
        small.load_state_dict({n: p.astype("f4") for n, p in model.params.items()})
        X_past = None if covariates is None else covariates[: len(y)]
        X_all = None if covariates is None else covariates[: len(y) + 2]
        results = [small(y, X_past), *small.vjp(y, X_past)[1](1.0), small.forecast(y, 2, X_all).mean]
        expected = [model(y, X_past), *model.vjp(y, X_past)[1](1.0), model.forecast(y, 2, X_all).mean]
        for one, other in zip(arrays_of(results), arrays_of(expected), strict=True):
            assert one.dtype == "float32"
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * np.abs(other).max())
    assert StructuralModel(level(), dtype="float32").fit(nile()).params["level.variance"] == pytest.approx(
        1469, rel=0.05
    )


def test_on_arrays_that_are_not_numpys(strict_namespace, monkeypatch):
    monkeypatch.setattr(recursion, "WIDEST", 0)  # NumPy arrays go step by step too
    y, X = monthly(24)
    model, X, *_ = both("autoregression, regression and two harmonics", y, X[:26])
    moved = model.to(strict_namespace)
    on, covariates = strict(y), strict(X[:26])
    for result, expected in (
        (moved(on, covariates[:24, :]), model(y, X[:24])),
        (moved.vjp(on, covariates[:24, :])[1](1.0), model.vjp(y, X[:24])[1](1.0)),
        (dict(moved.decompose(on, covariates[:24, :])), dict(model.decompose(y, X[:24]))),
        (moved.forecast(on, 2, covariates).components, model.forecast(y, 2, X[:26]).components),
        (moved.forecast(on, 2, covariates).interval(), model.forecast(y, 2, X[:26]).interval()),
    ):
        nested, plainly = (
            {name: tuple(a) for name, a in part.items()} if isinstance(part, dict) else part
            for part in (result, expected)
        )
        assert_same(plain(nested), plainly)
    assert moved(on, covariates[:24, :]).device == DEVICE
    one, other = model.clone(), moved.clone().to(strict_namespace)
    one.fit(y, X[:24], iterations=2)
    other.fit(on, covariates[:24, :], iterations=2)
    assert_same(plain(other.params), one.params)


def test_it_is_a_linear_gaussian_model():
    y, X = monthly(30)
    model, X, *_ = both("autoregression, regression and two harmonics", y, X)
    inner = model.linear_gaussian(X[:30])
    assert_same(inner(y[:, None]), model(y, X[:30]))
    assert model.state_names[:5] == ("level", "ar(2)[0]", "ar(2)[1]", "regression[0]", "regression[1]")
    assert inner.params["F"].shape == (9, 9)
    smoothed = inner.smooth(y[:, None]).mean
    np.testing.assert_allclose(model.decompose(y, X[:30])["regression"].mean, (smoothed[:, 3:5] * X[:30]).sum(axis=1))


def test_sums_saved_models_clones_and_reprs(tmp_path):
    model = level() + seasonal(4, kind="trigonometric", harmonics=1) + ar(1, coefficients=[0.5])
    same = level() + (seasonal(4, kind="trigonometric", harmonics=1) + ar(1, coefficients=[0.5]))
    shown = "level(), seasonal(4, kind='trigonometric', harmonics=1), ar(1, coefficients=(0.5,))"
    assert repr(model) == repr(same) == f"StructuralModel({shown})  # 4 parameters"
    assert list(model.params) == ["level.variance", "seasonal(4).variance", "ar(1).variance", "noise.variance"]
    assert repr(eval(repr(model).partition("  #")[0])) == repr(model)
    y, _ = monthly(24)
    model.fit(y, iterations=3)
    model.save(tmp_path / "m")
    again = gpurnn.models.load(tmp_path / "m")
    assert repr(again) == repr(model)
    assert_same(again.params, model.params)
    assert_same(again.log_likelihoods_, model.log_likelihoods_)
    assert_same(again.forecast(y, 2).mean, model.forecast(y, 2).mean)
    assert json.loads(json.dumps(model.config())) == again.config() | {
        "components": json.loads(json.dumps(again.config()["components"]))
    }
    fresh = StructuralModel(level(variance=2.0), noise_variance=1.0, dtype="float32")
    assert repr(fresh.clone()) == (
        "StructuralModel(level(variance=2.0), noise_variance=1.0, dtype='float32')  # 0 parameters"
    )
    # All parameters are given, so there is nothing to fit.
    assert fresh.forecast(y, 1).mean.dtype == "float32"
    assert len(fresh.fit(y).log_likelihoods_) == 1
    assert (fresh + ar(1)).noise_variance == 1.0


def test_a_series_of_which_every_second_value_is_missing_is_fitted_in_any_unit():
    y = np.full(120, np.nan)
    y[::2] = np.cumsum(np.random.default_rng(0).normal(size=60)) + np.random.default_rng(1).normal(size=60)
    one, other = StructuralModel(level()).fit(y), StructuralModel(level()).fit(1e6 * y)
    assert other.params["level.variance"] == pytest.approx(1e12 * one.params["level.variance"], rel=1e-4)


def test_a_variance_that_is_given_stays():
    y, _ = monthly(40)
    model = StructuralModel(level(variance=0.25), ar(1, variance=1.0), noise_variance=0.5).fit(y)
    assert list(model.params) == ["ar(1).coefficients"]
    inner = model.linear_gaussian().params
    assert_same((np.diag(inner["Q"]), inner["R"].item()), (np.array([0.25, 1.0]), 0.5))


def test_a_fit_that_fails_leaves_the_parameters():
    model = StructuralModel(level())
    model.load_state_dict({"level.variance": np.array(0.3), "noise.variance": np.array(0.4)})
    with pytest.raises(ValueError, match=r"fit: y does not determine where the components start, expected more obs"):
        model.fit([np.nan, np.nan])
    assert (model.params["level.variance"], model.params["noise.variance"]) == (0.3, 0.4)
    with pytest.raises(ValueError, match=r"fit: y never changes, expected observations that do"):
        model.fit(np.full((9, 2), 5.0))
    with pytest.raises(
        AttributeError, match=r"level\(\) is a component, not a model; use StructuralModel\(level\(\)\)\.fit"
    ):
        level().fit(nile())
    twins = StructuralModel(level(), regression(1))
    with pytest.raises(ValueError, match=r"fit: y does not determine .* covariates that none of the other components"):
        twins.fit(nile(), np.ones(100))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: level(-1.0), ValueError, "level: variance is -1.0, expected a number of at least 0"),
        (lambda: trend(slope_variance="a"), TypeError, "trend: slope_variance is 'a', expected"),
        (lambda: seasonal(1), ValueError, "seasonal: period is 1, expected at least 2"),
        (lambda: seasonal(12.5), TypeError, "seasonal: period is 12.5, expected a whole number"),
        (lambda: seasonal(4, kind="fourier"), ValueError, "seasonal: kind is 'fourier', expected one of 'dummy', 'tr"),
        (lambda: seasonal(4, harmonics=1), TypeError, r"seasonal: harmonics is 1, expected None, or kind='trigonom"),
        (lambda: seasonal(5, kind="trigonometric", harmonics=3), ValueError, "harmonics is 3, .* which is 2"),
        (lambda: seasonal(1.5, kind="trigonometric"), ValueError, "seasonal: period is 1.5, expected at least 2"),
        (
            lambda: seasonal(8766),
            ValueError,
            "seasonal: period is 8766, which makes 8765 states, expected at most 1000",
        ),
        (lambda: ar(0), ValueError, "ar: order is 0, expected at least 1"),
        (lambda: ar(2, [0.5]), ValueError, "ar: coefficients has 1 numbers, expected order = 2"),
        (lambda: ar(1, [1.0]), ValueError, "ar: coefficients is .* a root of modulus 1, expected all below 1"),
        (lambda: regression(0), ValueError, "regression: covariates is 0, expected at least 1"),
        (lambda: level() + trend(), ValueError, "StructuralModel: two components have a level: level and trend, exp"),
        (lambda: ar(1) + ar(1), ValueError, r"StructuralModel: two components are ar\(1\), expected one of a name"),
        (lambda: level() + 1, TypeError, "unsupported operand"),
        (
            lambda: StructuralModel(),
            ValueError,
            "StructuralModel: components is empty, expected some of gpurnn.models.kalman",
        ),
        (lambda: StructuralModel("level"), TypeError, r"components\[0\] is a str, expected what a function of .*level"),
        (lambda: StructuralModel(level(), noise_variance=-1), ValueError, "noise_variance is -1, expected a number of"),
        (
            lambda: StructuralModel(level(), dtype="float16"),
            ValueError,
            "dtype is 'float16', expected one of 'float64'",
        ),
    ],
)
def test_components_that_are_none_are_rejected(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_data_that_do_not_fit_are_rejected():
    y, X = monthly(20, gaps=False)
    model = level() + regression(2)
    for call in (model.decompose, lambda y, X: model.forecast(y, 1, X)):
        with pytest.raises(ValueError, match="the model is not fitted, expected a call of fit or load_state_dict"):
            call(y, X[:20])
    model.fit(y, X[:20], iterations=1)
    assert model(y, X[:20]) > -np.inf
    with pytest.raises(TypeError, match=r"StructuralModel.decompose: X is None, expected 2 covariates for each step"):
        model.decompose(y)
    with pytest.raises(ValueError, match=r"forecast: X has shape \(20, 2\), expected \(T \+ steps, k\) = \(23, 2\)"):
        model.forecast(y, 3, X[:20])
    with pytest.raises(ValueError, match=r"fit: X\[3, 1\] is not finite, expected covariates that are known"):
        model.fit(y, np.where(np.arange(40).reshape(20, 2) == 7, np.nan, X[:20]))
    with pytest.raises(TypeError, match=r"X is an array of shape .*, expected None, as the model has no regression"):
        StructuralModel(level())(y, X)
    with pytest.raises(ValueError, match=r"StructuralModel: y\[2\] is infinite, expected a finite number, or NaN"):
        StructuralModel(level())([1.0, 2.0, np.inf])
    with pytest.raises(ValueError, match=r"StructuralModel: y has shape \(2, 1, 1\), expected \(T,\) or \(T, B\), T"):
        StructuralModel(level())(np.ones((2, 1, 1)))
    with pytest.raises(TypeError, match=r"StructuralModel.fit: y is None, expected an array"):
        model.fit(None)
    with pytest.raises(ValueError, match=r"StructuralModel.forecast: steps is 0, expected at least 1"):
        model.forecast(y, 0, X)
    with pytest.raises(ValueError, match=r"Normal.interval: level is 1.0, expected"):
        model.forecast(y, 1, X[:21]).interval(1.0)
