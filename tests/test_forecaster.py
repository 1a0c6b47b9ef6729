"""The forecaster: against linear autoregressions with known answers, on the sunspots, as a file, as a picture."""

import json
import sys

import numpy as np
import pytest
import strict_wing
from parity import assign
from strict_wing import plain, strict
from tolerance import assert_close, assert_same, check_gradients, recurrence_terms

import gpurnn
from benchmarks.task_data import sunspots
from gpurnn import plots
from gpurnn.models import Backtest, Forecast, Forecaster, SequenceRegressor, load

PHI = np.array([1.2, -0.6])
"""x_t = 1.2 x_{t-1} - 0.6 x_{t-2} + eps_t: oscillates, and is stable."""


def linear(phi=PHI, dtype="float64", mean=0.0, std=1.0, residuals=None):
    """A forecaster whose f is a linear autoregression: its states are a shift register of the window."""
    p = len(phi)
    model = Forecaster(p, p, cell="rnn", activation="identity", dtype=dtype)
    state = {name: np.zeros_like(value) for name, value in model.state_dict().items()}
    state["recurrent.weight_ih_l0"][0] = 1
    state["recurrent.weight_hh_l0"][1:, :-1] = np.eye(p - 1)
    state["output.weight"][0] = phi
    state |= {"mean": np.array([mean]), "std": np.array([std])}
    state["residuals"] = np.asarray([1.0] if residuals is None else residuals, dtype)[:, None]
    model.load_state_dict(state)
    return model


def simulate(n, phi=PHI, seed=0, sigma=1.0):
    rng, x = np.random.default_rng(seed), np.zeros(n + 50)
    for t in range(2, n + 50):
        x[t] = phi[0] * x[t - 1] + phi[1] * x[t - 2] + sigma * rng.standard_normal()
    return x[50:]


def arrays_of(found):
    """The arrays of a forecast or a backtest by name."""
    return {name: getattr(found, name) for name in ("point", "lower", "upper", "actual") if hasattr(found, name)}


def continued(series, phi, steps):
    """The noiseless continuation of a series by its recursion."""
    values = list(series)
    for _ in range(steps):
        values.append(sum(c * values[-1 - i] for i, c in enumerate(phi)))
    return np.array(values[len(series) :])


TERMS = recurrence_terms(2, 1, 1, 2) * 10


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_predictions_are_fed_back(each_wing, dtype):
    series = simulate(40).astype(dtype)
    found = linear(dtype=dtype).predict(series, 10)
    assert_close(found, continued(series.astype("float64"), PHI, 10).astype(dtype), TERMS)
    # If the series has other units, the same model gives the same values in those units.
    other = linear(dtype=dtype, mean=20.0, std=4.0).predict(20 + 4 * series, 10)
    assert_close(other, 20 + 4 * found, TERMS)
    several = linear(dtype=dtype).predict([series, series[:7], series[:20]], 10)
    assert isinstance(several, list)
    for one, part in zip(several, (series, series[:7], series[:20]), strict=True):
        assert_close(one, linear(dtype=dtype).predict(part, 10), TERMS)
    assert linear(dtype=dtype).predict(series).shape == (1,)
    assert linear(dtype=dtype).predict(series[:, None], 3).shape == (3, 1)


def test_an_interval_lies_between_quantiles_of_the_samples():
    series, model = simulate(30), linear(residuals=[0.5, -0.7])
    noise = model._noise((1, 7), "gaussian", np.random.default_rng(5))[0, :, 0]
    found = model.forecast(series, 1, samples=7, level=0.7, rng=5)
    expected = np.quantile(found.point + noise, [0.15, 0.85])
    assert_close(np.concatenate([found.lower, found.upper]), expected, TERMS)


def psi_weights(phi, steps):
    """The response of the autoregression to a unit noise impulse."""
    start = np.zeros(len(phi))
    start[-1] = 1
    return np.concatenate([[1.0], continued(start, phi, steps - 1)])


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_are_those_of_the_linear_theory(level):
    residuals = np.array([0.5, -0.5, 0.7, -0.7])
    sigma = np.sqrt(np.mean(residuals**2))
    series = 10 + 3 * simulate(30)
    model = linear(mean=10.0, std=3.0, residuals=residuals)
    found = model.forecast(series, 8, samples=40_000, level=level, rng=1)
    assert found.level == level
    point = 10 + 3 * continued((series - 10) / 3, PHI, 8)
    assert_close(found.point, point, TERMS)
    quantile = {0.5: 0.6744897501960817, 0.9: 1.6448536269514722}[level]
    width = 3 * quantile * sigma * np.sqrt(np.cumsum(psi_weights(PHI, 8) ** 2))
    # 3%: five standard deviations of a sample quantile of 40,000 at these levels.
    np.testing.assert_allclose(found.upper - point, width, rtol=0.03)
    np.testing.assert_allclose(point - found.lower, width, rtol=0.03)


def test_bootstrapped_noise_is_drawn_from_the_residuals():
    model = linear(residuals=[-1.0, 2.0, 2.0])
    series = simulate(30)
    found = model.forecast(series, 1, samples=2000, level=0.5, noise="bootstrap")
    # A third of the samples is 1 below the point, the others 2 above.
    assert_close(found.lower - found.point, np.array([-1.0]), TERMS)
    assert_close(found.upper - found.point, np.array([2.0]), TERMS)
    noise = model._noise((4, 1000), "bootstrap", np.random.default_rng(0))
    assert set(np.unique(noise)) == {-1.0, 2.0}
    assert np.mean(noise == 2) == pytest.approx(2 / 3, abs=0.04)


def test_gaussian_noise_has_the_covariance_of_the_residuals():
    model = Forecaster(2, 3, 2, dtype="float64")
    rng = np.random.default_rng(0)
    model.residuals = rng.standard_normal((500, 2)) @ np.array([[1.0, 0.8], [0.0, 0.1]])
    noise = model._noise((200, 200), "gaussian", rng).reshape(-1, 2)
    expected = model.residuals.T @ model.residuals / 500
    np.testing.assert_allclose(noise.T @ noise / len(noise), expected, rtol=0.05)
    # This also holds for a covariance of rank 1, where one feature is twice the other.
    model.residuals = np.stack([model.residuals[:, 0], 2 * model.residuals[:, 0]], axis=1)
    noise = model._noise((10, 10), "gaussian", rng)
    np.testing.assert_allclose(noise[..., 1], 2 * noise[..., 0], atol=1e-6)


@pytest.mark.parametrize("noise", ["gaussian", "bootstrap"])
def test_intervals_of_the_true_model_cover_what_they_say(noise):
    series = simulate(800, seed=1, sigma=0.5)
    residuals = 0.5 * np.random.default_rng(2).standard_normal(1000)
    model = linear(residuals=residuals)
    for level in (0.5, 0.9):
        found = model.backtest(series, 100, horizon=3, stride=3, level=level, noise=noise, samples=400)
        assert found.origins == tuple(range(100, 798, 3))
        # The steps of a forecast are correlated: about a third of the 699 values are independent.
        assert found.coverage == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 233))
    one = model.backtest(series, 100, samples=1)
    assert one.mse == pytest.approx(0.25, rel=0.2)
    assert one.mae == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.1)


def test_a_backtest_is_a_forecast_from_each_origin():
    series, model = simulate(60), linear(residuals=[0.5, -0.5])
    found = model.backtest(series, 20, horizon=4, stride=7, samples=50, rng=3)
    assert isinstance(found, Backtest)
    assert found.origins == (20, 27, 34, 41, 48, 55)
    for i, origin in enumerate(found.origins):
        assert_close(found.point[i], model.predict(series[:origin], 4), TERMS)
        assert_same(found.actual[i], series[origin : origin + 4])
    error = found.point - found.actual
    assert found.mse == pytest.approx(np.mean(error**2))
    assert found.mae == pytest.approx(np.mean(np.abs(error)))
    inside = (found.lower <= found.actual) & (found.actual <= found.upper)
    assert 0 < found.coverage < 1
    assert found.coverage == pytest.approx(inside.mean())
    assert model.backtest(series, 56, horizon=4, samples=1).origins == (56,)
    assert_same(
        model.backtest(series, 20, rng=3, samples=50).lower, model.backtest(series, 20, rng=3, samples=50).lower
    )


def test_what_comes_later_changes_no_forecast():
    series, model = simulate(60), linear(residuals=[0.5, -0.5])
    changed = np.concatenate([series[:30], 100 + series[30:]])
    one, other = (model.backtest(s, 28, horizon=2, samples=20) for s in (series, changed))
    assert_same(one.point[:3], other.point[:3])
    assert_same(one.upper[:3], other.upper[:3])
    assert (one.point[3:] != other.point[3:]).all()


def windows_of(trainer):
    """Window and target, in scaled units, in the single batch of a trainer."""
    batch = trainer.data.batch(0, 0)
    return np.concatenate([batch.inputs[:, :, 0], batch.targets.T]).T.tolist()


def test_windows_of_a_series_are_learnt_in_its_scale():
    series, later = 100 + np.arange(9.0) ** 2, np.arange(6.0)
    for inputs in (series, [series], series.tolist(), [series.tolist()], (series[:, None],)):
        model = Forecaster(3, 2, dtype="float64")
        trainer = model.fit(inputs, steps=1, batch_size=100, validation=later).trainer_
        assert_close(model.mean, np.array([series.mean()]), 20)
        assert_close(model.std, np.array([series.std()]), 20)
        scaled = (series - series.mean()) / series.std()
        expected = [scaled[i : i + 4] for i in range(6)]
        np.testing.assert_allclose(sorted(windows_of(trainer)), expected, rtol=1e-13)
        assert windows_of(trainer) != sorted(windows_of(trainer))  # shuffled
        # A later series is scaled like the one that was learnt.
        validation = trainer.validation.batch(0, 0).inputs
        assert validation.shape == (3, 3, 1)
        np.testing.assert_allclose(validation[:, 0, 0] * series.std() + series.mean(), later[:3], atol=1e-12)
        residuals = [series[t] - model.predict(series[:t])[0] for t in range(3, 9)]
        np.testing.assert_allclose(model.residuals[:, 0] * model.std, residuals, rtol=1e-10)


def test_windows_of_several_series_are_learnt_each_in_its_own_scale():
    one, two = np.arange(10.0), 1e6 + 1e3 * np.arange(7.0) ** 2
    model = Forecaster(3, 2, dtype="float64")
    trainer = model.fit([one, two], steps=1, batch_size=100, validation=[two[:5], one]).trainer_
    assert_close(model.mean, np.array([[one.mean()], [two.mean()]]), 20)
    assert_close(model.std, np.array([[one.std()], [two.std()]]), 20)
    scaled = [(s - s.mean()) / s.std() for s in (one, two)]
    expected = sorted(s[i : i + 4].tolist() for s in scaled for i in range(len(s) - 3))
    np.testing.assert_allclose(sorted(windows_of(trainer)), expected, rtol=1e-9, atol=1e-9)
    validation = trainer.validation.batch(0, 0).inputs[:, 0, 0]
    np.testing.assert_allclose(validation, ((two - two[:5].mean()) / two[:5].std())[:3], rtol=1e-9)
    residuals = [s[t] - float(model(s[t - 3 : t, None, None])[0][0, 0]) for s in scaled for t in range(3, len(s))]
    np.testing.assert_allclose(model.residuals[:, 0], residuals, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def of_two_sizes():
    """A forecaster that has learnt one wave at two scales, and both series."""
    t = np.arange(200) / 4
    small, large = np.sin(t).astype("f4"), (1e4 * np.sin(t) + 5e4).astype("f4")
    model = Forecaster(12, 16, rng=0)
    model.fit([small, large], epochs=30, optimizer=gpurnn.Adam(0.01))
    return model, small, large


def test_series_of_different_sizes_are_forecast_in_their_own_units(of_two_sizes, tmp_path):
    model, small, large = of_two_sizes
    wave = np.sin(np.arange(200, 208) / 4)
    np.testing.assert_allclose(model.predict(small, 8), wave, atol=0.05)
    np.testing.assert_allclose(model.predict(large, 8), 1e4 * wave + 5e4, atol=500)
    for found, alone in zip(model.predict([large, small], 8), (large, small), strict=True):
        np.testing.assert_allclose(found, model.predict(alone, 8), rtol=1e-4, atol=1e-4)
    # Neither the series nor its units occurred in training.
    np.testing.assert_allclose(model.predict(1e-6 * small - 3e-6, 8), 1e-6 * wave - 3e-6, atol=5e-8)
    widths = [(f.upper - f.lower)[0] for f in (model.forecast(s, 3) for s in (small, large))]
    assert widths[0] < 0.1
    assert widths[1] == pytest.approx(1e4 * widths[0], rel=0.01)
    model.save(tmp_path / "m")
    back = load(tmp_path / "m")
    assert_same(back.state_dict(), model.state_dict())
    assert back.mean.shape == (2, 1)
    assert_same(back.predict([small, large], 3), model.predict([small, large], 3))


def test_a_backtest_after_a_fit_to_several_scales_by_what_was_before(of_two_sizes):
    model, _, large = of_two_sizes
    found = model.backtest(large, 150, horizon=4, stride=16, samples=20)
    for i, origin in enumerate(found.origins):
        np.testing.assert_allclose(found.point[i], model.predict(large[:origin], 4), rtol=1e-5)
    assert found.mae < 500
    changed = large.copy()
    changed[160:] = 0
    other = model.backtest(changed, 150, horizon=4, stride=16, samples=20)
    assert_same((found.point[0], found.upper[0]), (other.point[0], other.upper[0]))
    assert (found.point[1:] != other.point[1:]).all()


def test_a_refit_to_one_series_scales_by_it_again():
    one, two = simulate(30), 100 + simulate(30, seed=1)
    model = Forecaster(3, 2, dtype="float64")
    model.fit([one, two], steps=1)
    assert model.mean.shape == model.std.shape == (2, 1)
    model.fit([two], steps=1)
    assert_same((model.mean, model.std), (np.array([two.mean()]), np.array([two.std()])))


def test_a_constant_feature_is_not_divided_by_zero():
    series = np.stack([simulate(30), np.full(30, 7.0)], axis=1)
    model = Forecaster(3, 2, 2, dtype="float64")
    model.fit(series, steps=3)
    assert model.std[1] == 1
    assert np.isfinite(model.forecast(series, 3, samples=5).upper).all()


@pytest.mark.parametrize("value", [0.1, 1e-3, 7.7, -1e10, 1e-300, 1e300])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("several", [False, True])
def test_a_constant_feature_is_found_by_the_rounding_of_its_mean(value, dtype, several):
    if dtype == "float32" and not 1e-30 < abs(value) < 1e30:
        value = np.sign(value) * 1e-30 if abs(value) < 1 else 1e30
    wave = np.sin(np.arange(100) / 4)
    series = np.stack([wave, np.full(100, value)], axis=1).astype(dtype)
    model = Forecaster(5, 8, features=2, dtype=dtype, rng=0)
    model.fit([series, series] if several else series, epochs=3)
    assert (model.std[..., 1] == 1).all()
    np.testing.assert_allclose(model.std[..., 0], series[:, 0].std(), rtol=1e-5)
    moved = series.copy()
    moved[:, 1] += 1e-9
    assert np.abs(model.predict(moved, 3) - model.predict(series, 3))[:, 0].max() < 1e-6


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 2.0**900), ("float64", 2.0**-900), ("float32", 2.0**-90)])
@pytest.mark.parametrize("several", [False, True])
def test_very_large_and_very_small_series(dtype, scale, several):
    """The squares of the values are out of the dtype's range."""
    series = simulate(60).astype(dtype)
    found = []
    for factor in (1.0, scale):
        model = Forecaster(3, 4, dtype=dtype)
        given = (series * factor).astype(dtype)
        model.fit([given, given[:30]] if several else given, steps=3)
        ahead = model.forecast(given, 4, samples=10)
        found.append(tuple(a.astype("f8") / factor for a in (model.predict(given, 4), ahead.lower, model.std)))
    assert_same(found[1], found[0])


def test_equal_values_are_forecast_to_stay():
    for series in (np.full(30, 5.0), [5.0] * 30, [np.full(30, 5.0), np.full(20, -1e6)]):
        model = Forecaster(3, 2, dtype="float64")
        model.fit(series, epochs=40, optimizer=gpurnn.Adam(0.02))
        first = model.predict(series, 3)
        np.testing.assert_allclose(first[0] if isinstance(first, list) else first, 5, atol=0.1)


def test_the_series_units_do_not_matter():
    series = simulate(80)
    found = []
    for scale, shift in ((1.0, 0.0), (64.0, 0.0), (64.0, 1024.0)):
        model = Forecaster(4, 5, dtype="float64")
        model.fit(shift + scale * series, epochs=3)
        ahead = model.forecast(shift + scale * series, 5, samples=20)
        found.append([(a - shift) / scale for a in (ahead.point, ahead.lower, ahead.upper)])
    assert_same(found[1], found[0])  # powers of two change only the exponents
    np.testing.assert_allclose(found[2], found[0], atol=1e-9)


def test_forecasts_of_large_values_keep_the_digits_of_the_series(tmp_path):
    """Float32 cannot tell apart two values about 1e8 that differ by less than 8."""
    series, far = simulate(80), 1e8
    ahead, moved = [], []
    for shift, found in ((0.0, ahead), (far, moved)):
        model = Forecaster(4, 5).fit(shift + series, epochs=3)
        model.save(tmp_path / "model")
        given = shift + series
        for one in (model, load(tmp_path / "model")):
            forecast = one.forecast(given, 5, samples=20, quantiles=[0.2])
            test = one.backtest(given, 70, 5, 5, samples=20)
            of_two = one.predict([given, given[:60].tolist()], 5)
            answers = (
                one.predict(given, 5), forecast.point, forecast.lower, forecast.upper, forecast.quantiles[0.2],
                test.point, test.lower, test.actual, test.baselines["naive"].upper, *of_two,
            )  # fmt: skip
            assert all(answer.dtype == np.float64 for answer in answers)
            found += [answer - shift for answer in answers]
    for a, b in zip(moved, ahead, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    float32 = model.forecast((far + series).astype("float32"), 5, samples=20)
    assert float32.point.dtype == float32.upper.dtype == np.float32
    for dtype in ("int64", "int8"):  # float32 holds all numbers of int8
        assert model.predict(np.arange(80).astype(dtype)).dtype == ("float64" if dtype == "int64" else "float32")


def autoregression(series, p):
    """The AR(p) by least squares, with a constant: the coefficients of 1, x_{t-1}, ..., x_{t-p}."""
    columns = [np.ones(len(series) - p), *(series[p - i : len(series) - i] for i in range(1, p + 1))]
    return np.linalg.lstsq(np.stack(columns, axis=1), series[p:], rcond=None)[0]


@pytest.mark.parametrize(("cell", "seed"), [("gru", 0), ("lstm", 0), ("rnn", 0)])
def test_sunspots(cell, seed):
    series = sunspots().astype("float32")
    at = {1700 + i: i for i in range(len(series))}
    periods = [(at[1921], at[1956]), (at[1956], at[1980])]
    # Errors are divided by 1535, the variance of the years 1700-1920, as in the literature.
    phi = autoregression(series[: at[1921]].astype("float64"), 9)
    linear_errors = []
    for start, stop in periods:
        errors = [series[t] - phi @ [1, *series[t - 9 : t][::-1]] for t in range(start, stop)]
        linear_errors.append(np.mean(np.square(errors)) / 1535)
    np.testing.assert_allclose(linear_errors, [0.123, 0.342], atol=0.0005)

    model = Forecaster(12, 8, cell=cell, rng=seed)
    model.fit(series[: at[1921]], epochs=60, optimizer=gpurnn.Adam(0.01), rng=seed)
    found = [model.backtest(series[:stop], start, rng=seed) for start, stop in periods]
    assert [len(f.origins) for f in found] == [35, 24]
    assert found[0].mse / 1535 < 0.16
    assert found[1].mse / 1535 < 0.54
    assert found[0].mse / 1535 < linear_errors[0]
    assert found[0].coverage > 0.65
    # Eleven steps ahead, about a cycle, it is worse than one step ahead, and better than the mean.
    far = model.backtest(series[: at[1956]], at[1921], horizon=11, samples=50)
    around_mean = np.mean((far.actual - series[: at[1921]].mean()) ** 2)
    assert found[0].mse < far.mse < around_mean


def test_two_series_that_follow_each_other_are_learnt():
    rng = np.random.default_rng(0)
    first = rng.standard_normal(500)
    series = np.stack([first, np.roll(first, 1)], axis=1) * [1.0, 50.0] + [0.0, 1000.0]
    model = Forecaster(3, 8, 2, cell="rnn", dtype="float64")
    model.fit(series[:400], epochs=20, optimizer=gpurnn.Adam(0.01))
    found = model.backtest(series, 400)
    assert found.point.shape == found.lower.shape == (100, 1, 2)
    errors = np.mean((found.point - found.actual) ** 2, axis=(0, 1)) / series.var(axis=0)
    assert errors[1] < 0.1 < 0.8 < errors[0]
    assert 0.8 < found.coverage <= 1
    assert model.predict(series, 4).shape == (4, 2)
    assert model.forecast(series, 4, samples=5).upper.shape == (4, 2)


CHOICES = {
    "plain": {},
    "attention": {"pooling": "attention", "bidirectional": True, "cell": "lstm"},
    "stack": {"num_layers": 2, "pooling": "mean", "residual": True, "cell": "rnn", "activation": "sigmoid"},
}


@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
def test_gradients_against_central_differences(each_wing, options):
    model = Forecaster(3, 3, 2, dtype="float64", **options)
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((3, 4, 2)), rng.standard_normal((4, 2))
    loss, _, grads = model.loss_and_gradients(x, target)
    if each_wing == "host":
        with gpurnn.use("reference"):
            expected = model.loss_and_gradients(x, target)
        assert_close(np.asarray(loss), np.asarray(expected[0]), recurrence_terms(3, 4, 3, 6, 2))
        return

    def outputs(values):
        moved = Forecaster(3, 3, 2, dtype="float64", **options)
        assign(moved, {**model.state_dict(), **values})
        return [moved.loss_and_gradients(x, target)[0]]

    check_gradients(outputs, dict(model.params), [np.ones(())], grads, seed=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
def test_a_file_holds_the_whole_model(tmp_path, options, dtype):
    series = np.stack([simulate(30), simulate(30, seed=1)], axis=1).astype(dtype)
    model = Forecaster(3, 4, 2, dtype=dtype, **options)
    model.fit(series, steps=2)
    model.save(tmp_path / "model.safetensors")
    back = load(tmp_path / "model.safetensors")
    assert type(back) is Forecaster
    assert back.config() == model.config() == json.loads(json.dumps(model.config()))
    assert repr(back) == repr(model)
    assert_same(back.state_dict(), model.state_dict())
    one, other = (m.forecast(series, 4, samples=10) for m in (model, back))
    assert_same((one.point, one.lower, one.upper), (other.point, other.lower, other.upper))
    assert one.point.dtype == one.lower.dtype == dtype
    with pytest.raises(ValueError, match="holds a Forecaster, expected a SequenceRegressor"):
        SequenceRegressor.from_file(tmp_path / "model.safetensors")


def test_repr_draws_the_shapes():
    assert repr(Forecaster(12, 8, 2, pooling="mean")).splitlines() == [
        "Forecaster(12, 8, features=2, pooling='mean')  # 306 parameters",
        "  (12, B, 2)  windows",
        "  (12, B, 8)  GRU(2, 8)",
        "  (B, 8)      MeanPooling()",
        "  (B, 2)      Dense(8, 2): x_t",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, r"Forecaster\.load_state_dict: missing \['mean'\], expected \["),
        ({"output.bias": None}, r"missing \['output.bias'\], unknown none"),
        ({"more": np.zeros(1)}, r"unknown \['more'\]"),
        ({"mean": np.ones((2, 1))}, r"state\['std'\] has shape \(1,\), expected \(..., features\) = \(2, 1\)"),
        ({"mean": np.ones((2, 2, 1))}, r"state\['mean'\] has shape \(2, 2, 1\), expected \(..., features\) = \(2, 1\)"),
        ({"std": np.ones(2)}, r"state\['std'\] has shape \(2,\), expected \(..., features\) = \(1,\)"),
        ({"residuals": np.zeros((3, 2))}, r"state\['residuals'\] has shape \(3, 2\), expected \(..., features\) = "),
        ({"residuals": np.zeros((3, 1), int)}, r"state\['residuals'\] has dtype int64, expected float32 or float64"),
    ],
)
def test_load_state_dict_refuses(change, message):
    model = linear(residuals=[1.0])
    before = model.state_dict()
    state = {name: value for name, value in {**before, **change}.items() if value is not None}
    with pytest.raises((KeyError, ValueError, TypeError), match=message):
        model.load_state_dict(state)
    assert_same(model.state_dict(), before)


@pytest.mark.usefixtures("strict_namespace")
def test_arrays_of_another_library():
    series = np.stack([simulate(40), simulate(40, seed=1)], axis=1)
    for flat, options in ((True, {}), (False, {"pooling": "attention", "features": 2})):
        data = series[:, 0] if flat else series
        model = Forecaster(3, 4, dtype="float64", **options)
        other = model.to(strict_wing.xp)
        for m, s in ((model, data), (other, strict(data))):
            m.fit(s, steps=2, validation=[s])
        assert_same(other.state_dict(), model.state_dict())
        assert_same(plain(other.predict(strict([data, data]), 3)), model.predict([data, data], 3))
        for noise in ("gaussian", "bootstrap"):
            for call in (
                lambda m, s, noise=noise: m.forecast(s, 3, samples=9, noise=noise),
                lambda m, s, noise=noise: m.backtest(s, 30, horizon=2, samples=9, noise=noise),
            ):
                found, expected = arrays_of(call(other, strict(data))), arrays_of(call(model, data))
                assert_same({name: plain(value) for name, value in found.items()}, expected)
        found, expected = (m.backtest(s, 30, samples=9) for m, s in ((other, strict(data)), (model, data)))
        assert (found.mse, found.mae, found.coverage) == (expected.mse, expected.mae, expected.coverage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "Forecaster: window is 0, expected at least 1"),
        ({"features": 0}, "Forecaster: features is 0, expected at least 1"),
        ({"hidden_size": 0}, "hidden_size is 0, expected at least 1"),
        ({"pooling": None}, "Forecaster: pooling is None, expected one of 'last', 'mean', 'attention'"),
        ({"loss": "l7"}, "Forecaster: loss is 'l7', expected one of 'mse'"),
        ({"num_embeddings": 3}, "Forecaster: num_embeddings is not an option"),
        ({"output_activation": "tanh"}, "Forecaster: output_activation is not an option, expected one of activation, "),
        ({"cell": "elman"}, "Forecaster: cell is 'elman', expected one of"),
    ],
)
def test_constructor_refuses(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Forecaster(**{"window": 3, "hidden_size": 4, **options})


X = simulate(20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fit(X, X, steps=1), r"Forecaster\.fit: y is given, expected None"),
        (lambda m: m.fit(None, steps=1), r"Forecaster\.fit: X is None, expected an array"),
        (lambda m: m.fit(3, steps=1), r"Forecaster\.fit: X is an int, expected an array or several"),
        (lambda m: m.fit([], steps=1), r"Forecaster\.fit: X is empty, expected at least one series"),
        (lambda m: m.fit([X, X[:1]], steps=1), r"Forecaster\.fit: X\[1\] has 1 step, expected at least 2"),
        (
            lambda m: m.fit(X, steps=1, validation=X[:1]),
            r"Forecaster\.fit: validation has 1 step, expected at least 2",
        ),
        (
            lambda m: m.fit(np.zeros((9, 2)), steps=1),
            r"fit: X has shape \(9, 2\), which may be one series of 2 features or 9 series; make the model",
        ),
        (lambda m: m.fit(np.zeros((9, 1, 1)), steps=1), r"fit: X\[0\] has 1 step, expected at least 2"),
        (lambda m: m.fit(np.zeros((9, 1, 1, 1)), steps=1), r"fit: X has shape \(9, 1, 1, 1\), expected \(T,\), "),
        (
            lambda m: m.fit(np.zeros((2, 9, 2)), steps=1),
            r"X\[0\] has shape \(9, 2\), expected \(T, features\) = \(9, 1\)",
        ),
        (lambda m: m.fit(X * np.nan, steps=1), r"Forecaster\.fit: X holds no numbers, expected a series of such"),
        (
            lambda m: m.fit([X, [*X, -np.inf]], steps=1),
            r"fit: X\[1\] holds infinity at step 20, expected finite numbers, or NaN for a gap",
        ),
        (lambda m: m.fit([1.0], steps=1), r"Forecaster\.fit: X has 1 step, expected at least 2"),
        (lambda m: m.fit(["a"] * 9, steps=1), r"Forecaster\.fit: X\[0\] is a str, expected numbers"),
        (lambda m: m.fit(X, steps=1, group="store"), r"fit: group is 'store', which is for tables, but X is an array"),
        (lambda m: m.fit(X, steps=1, target="sales"), r"fit: target is 'sales', which is for tables, but X is an arr"),
        (lambda m: m.fit(X, steps=1, known=X), r"fit: known is given, but the model has no known features; make it "),
        (lambda m: m.fit(X, steps=1, static=[1]), r"fit: static is given, but the model has no static features; make"),
        (lambda m: m.fit(X, steps=1, validation=X, patience=-1), "patience is -1"),
        (lambda m: m.fit(X, steps=1, unknown=1), "unknown"),
        (lambda m: m.predict(X[:0]), r"Forecaster\.predict: inputs holds no numbers, expected a series"),
        (lambda m: m.predict([X, None]), r"Forecaster\.predict: inputs\[1\] is None, expected an array"),
        (lambda m: m.predict(X, 0), r"Forecaster\.predict: steps is 0, expected at least 1"),
        (lambda m: m.forecast(X, 0), r"Forecaster\.forecast: steps is 0, expected at least 1"),
        (lambda m: m.forecast(X[:0], 1), r"Forecaster\.forecast: series holds no numbers, expected a series"),
        (
            lambda m: m.forecast(X, 1, quantiles=[0.1, 1]),
            r"forecast: quantiles\[1\] is 1\.0, expected a level in \(0, 1",
        ),
        (lambda m: m.forecast(X, 1, samples=0), r"Forecaster\.forecast: samples is 0, expected at least 1"),
        (lambda m: m.forecast(X, 1, level=1.0), r"level is 1\.0, expected a probability in \(0, 1\)"),
        (lambda m: m.forecast(X, 1, level=0.0), r"level is 0\.0, expected a probability in \(0, 1\)"),
        (lambda m: m.forecast(X, 1, level="a"), r"forecast: level is 'a', expected"),
        (lambda m: m.forecast(X, 1, noise="pink"), "noise is 'pink', expected one of 'gaussian', 'bootstrap'"),
        (lambda m: m.forecast(X, 1, rng="x"), r"Forecaster\.forecast: rng is 'x', expected an int seed"),
        (lambda m: m.backtest(X, 0), r"Forecaster\.backtest: start is 0, expected at least 1"),
        (
            lambda m: m.backtest(X, 5, baselines=["arima"]),
            r"baselines is 'arima', expected one of 'naive', 'seasonal_na",
        ),
        (lambda m: m.backtest(X, 5, 0), r"Forecaster\.backtest: horizon is 0, expected at least 1"),
        (lambda m: m.backtest(X, 5, 1, 0), r"Forecaster\.backtest: stride is 0, expected at least 1"),
        (
            lambda m: m.backtest(X, 18, 3),
            r"backtest: start \+ horizon is 21, expected at most the 20 steps of series",
        ),
        (lambda m: linear(residuals=[]).forecast(X, 1), r"Forecaster\.forecast: there are no residuals, .* call fit"),
        (lambda m: linear(residuals=[]).backtest(X, 5), r"Forecaster\.backtest: there are no residuals, .* call fit"),
        (lambda m: linear(residuals=[]).predict(X), r"Forecaster\.predict: the model was never fitted, .* call fit"),
        (lambda m: Forecaster(2, 3, dtype="float64").predict(X), "predict: the model was never fitted"),
    ],
)
def test_refusals(call, message):
    model = linear(residuals=[0.5])
    before = model.state_dict()
    with pytest.raises((ValueError, TypeError), match=message):
        call(model)
    assert_same(model.state_dict(), before)


def test_lists_of_numbers_are_series():
    series, model = simulate(30).round(3), linear(residuals=[0.5, -0.5])
    assert_same(model.predict(series.tolist(), 3), model.predict(series, 3))
    several = model.predict([series.tolist(), tuple(series[:9].tolist())], 3)
    assert isinstance(several, list)
    assert_same(several, model.predict([series, series[:9]], 3))
    for call in (lambda s: model.forecast(s, 3, samples=9), lambda s: model.backtest(s, 20, samples=9)):
        assert_same(arrays_of(call(series.tolist())), arrays_of(call(series)))
    whole = [int(v) for v in 10 * series]
    assert_same(model.predict(whole, 2), model.predict(np.array(whole, float), 2))
    assert model.predict(np.float32(3) * np.ones(4, "f8"), 1).dtype == "float64"
    both = np.stack([series, series[::-1]], axis=1)
    two = Forecaster(3, 2, 2, dtype="float64")
    two.fit(both.tolist(), steps=1)
    assert two.mean.shape == (2,)
    assert_same(two.predict(both.tolist(), 3), two.predict(both, 3))
    assert_same(two.predict([both.tolist(), both], 3), two.predict([both, both], 3))
    with pytest.raises(ValueError, match=r"predict: inputs\[1\] has 1 entries, expected features = 2"):
        two.predict([[1.0, 2.0], [3.0], [1.0, 2.0]])


@pytest.mark.usefixtures("each_wing")
def test_parameters_that_are_nan_give_no_forecast():
    series = simulate(30)
    for name in [*linear().params, "residuals"]:
        model = linear(residuals=[0.5, -0.5])
        if name == "residuals":
            model.residuals[0] = np.nan
            blame = "residuals holds NaN or infinity"
        else:
            model.params[name][...] = np.nan
            blame = f"parameter {name} holds NaN or infinity"
            with pytest.raises(FloatingPointError, match=f"Forecaster.predict: the forecasts are not finite: {blame}"):
                model.predict([series, series], 2)
        for noise in ("bootstrap", "gaussian"):
            with pytest.raises(FloatingPointError, match=f"forecast: the forecasts are not finite: {blame}"):
                model.forecast(series, 2, noise=noise, samples=50)
            with pytest.raises(FloatingPointError, match=f"backtest: the forecasts are not finite: {blame}"):
                model.backtest(series, 20, noise=noise, samples=50)


def test_a_forecast_that_overflows_is_none():
    model = linear(phi=[3.0, 0.0])
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=r"predict: the forecasts .* they overflow"):
        model.predict(simulate(30), 1000)


def test_training_that_fails_leaves_no_residuals_of_another_series():
    series, model = simulate(30), Forecaster(3, 2, dtype="float64")
    model.fit(series, steps=2)

    def fail(*_):
        raise KeyError

    with pytest.raises(KeyError):
        model.fit(100 + series, steps=2, on_gradients=fail)
    assert model.mean[0] == pytest.approx(100 + series.mean())
    assert np.isfinite(model.predict(100 + series)).all()
    with pytest.raises(ValueError, match="there are no residuals, expected those of a fit; call fit first"):
        model.forecast(100 + series, 2)


AHEAD = Forecast(np.array([3.0, 4.0]), np.array([2.0, 2.5]), np.array([4.0, 5.5]), 0.95)


def test_the_picture_shows_history_forecast_and_interval():
    (axes,) = plots.forecast(
        np.array([0.0, 1.0, 2.0]), AHEAD, actual=np.array([3.5, 3.0]), names=["level (m)"], start=1900
    )
    assert axes.get_xlabel() == "time"
    assert axes.get_ylabel() == "level (m)"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines == {
        "history": [[1900, 0], [1901, 1], [1902, 2]],
        "actual": [[1903, 3.5], [1904, 3]],
        "forecast": [[1903, 3], [1904, 4]],
    }
    (band,) = axes.collections
    assert band.get_label() == "95% prediction interval"
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1903, 2), (1904, 2.5), (1903, 4), (1904, 5.5)}
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*lines, "95% prediction interval"]


def test_the_picture_has_a_panel_for_each_feature_and_is_written(tmp_path):
    both = Forecast(*(np.stack([a, a + 10], axis=1) for a in (AHEAD.point, AHEAD.lower, AHEAD.upper)), 0.8)
    panels = plots.forecast(np.zeros((4, 2)), both, tmp_path / "forecast.png")
    assert (tmp_path / "forecast.png").stat().st_size > 1000
    assert [axes.get_ylabel() for axes in panels] == ["value of feature 0", "value of feature 1"]
    assert panels[1].get_xlabel() == "time step"
    (forecast,) = [line for line in panels[1].get_lines() if line.get_label() == "forecast"]
    assert forecast.get_xydata().tolist() == [[4, 13], [5, 14]]
    corners = panels[1].collections[0].get_paths()[0].vertices.tolist()
    assert {tuple(point) for point in corners} == {(4, 12), (5, 12.5), (4, 14), (5, 15.5)}
    assert plots.forecast(np.zeros(3), AHEAD)[0].get_ylabel() == "value"


def test_the_picture_refuses(monkeypatch):
    with pytest.raises(ValueError, match="forecast: history has 2 features, expected 1 as the forecast has"):
        plots.forecast(np.zeros((3, 2)), AHEAD)
    with pytest.raises(
        ValueError, match=r"forecast: history has shape \(1, 1, 1\), expected \(T,\) or \(T, features\)"
    ):
        plots.forecast(np.zeros((1, 1, 1)), AHEAD)
    with pytest.raises(
        ValueError, match=r"forecast: actual has shape \(3, 1\), expected \(steps, features\) = \(2, 1\)"
    ):
        plots.forecast(np.zeros(3), AHEAD, actual=np.zeros(3))
    with pytest.raises(ValueError, match="forecast: names has 2 entries, expected 1"):
        plots.forecast(np.zeros(3), AHEAD, names=["a", "b"])
    with pytest.raises(TypeError, match=r"forecast: history is a list, expected a numpy\.ndarray"):
        plots.forecast([1.0], AHEAD)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib is not installed; pip install matplotlib"):
        plots.forecast(np.zeros(3), AHEAD)


@pytest.mark.parametrize("state", [None, [], "mean"])
def test_a_state_dict_is_a_dict(state):
    with pytest.raises(TypeError, match=r"Forecaster\.load_state_dict: state is .*, expected a dict of arrays by name"):
        Forecaster(2, 3).load_state_dict(state)


def test_numbers_of_any_kind_in_a_list_are_a_series():
    from decimal import Decimal
    from fractions import Fraction

    values = [1.0, 2.5, 0.5, 3.0] * 5
    expected = Forecaster(2, 3).fit(values, steps=2).predict(values, 2)
    for kind in (Decimal, Fraction, np.float32):
        given = [kind(value) for value in values]
        found = Forecaster(2, 3).fit(given, steps=2).predict(given, 2)
        assert_same(found, expected.astype(np.float32 if kind is np.float32 else np.float64))
    for wrong in ([[1.0, 2.0], 3.0], [np.array(1.0), [2.0]], np.float64(3.0)):
        with pytest.raises((TypeError, ValueError), match=r"^Forecaster\.fit: X"):
            Forecaster(2, 3).fit(wrong, steps=1)
