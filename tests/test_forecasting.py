"""Forecasters' inputs and baselines: gaps, short series, tables, covariates, transforms."""

import math

import numpy as np
import pytest
from tolerance import assert_same

import gpurnn
from gpurnn.models import Forecaster, load
from gpurnn.models.forecasting import baselines
from gpurnn.models.forecasting.times import EqualTimes, evenly_spaced
from gpurnn.models.forecasting.transforms import Transforms

pd = pytest.importorskip("pandas")
pl = pytest.importorskip("polars")

MONTHS = pd.date_range("2015-01-01", periods=80, freq="MS")


def wave(n, period=12.0, seed=0, noise=0.05):
    t = np.arange(n)
    return np.sin(2 * np.pi * t / period) + noise * np.random.default_rng(seed).standard_normal(n)


def quick(**options):
    return Forecaster(6, 4, dtype="float64", **options)


# --- transforms ---


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("trend", [False, True])
@pytest.mark.parametrize("season_length", [(), (12.0,), (4.0, 7.5)])
@pytest.mark.parametrize("differences", [(), (1,), (1, 12)])
def test_transforms_are_undone(log, trend, season_length, differences):
    series = np.exp(np.random.default_rng(0).standard_normal((60, 2)))
    transforms = Transforms(log, trend, season_length, differences)
    past = transforms.apply(series[:40], 2)
    assert past.values.shape == (40 - sum(differences), 2)
    assert past.observed.all()
    # The values in the network's units, computed by hand.
    x = np.log(series) if log else series
    design = transforms.design(0, 60, 40)
    if design.size:
        x = x - design @ np.linalg.lstsq(design[:40], x[:40], rcond=None)[0]
    for lag in differences:
        x = x[lag:] - x[:-lag]
    np.testing.assert_allclose(past.values, x[: len(past.values)], atol=1e-9)
    np.testing.assert_allclose(past.inverse(x[-20:]), series[40:], rtol=1e-9)
    paths = np.stack([x[-20:], x[-20:]], axis=1)
    np.testing.assert_allclose(past.inverse(paths), np.stack([series[40:]] * 2, axis=1), rtol=1e-9)


def test_a_gap_holds_the_value_before_it_and_is_not_observed():
    x = np.array([[np.nan], [1.0], [np.nan], [np.nan], [4.0], [5.0]])
    plain = Transforms(False, False, (), ()).apply(x, 1)
    assert plain.values[:, 0].tolist() == [1, 1, 1, 1, 4, 5]
    assert plain.observed[:, 0].tolist() == [False, True, False, False, True, True]
    once = Transforms(False, False, (), (1,)).apply(x, 1)
    assert once.values[:, 0].tolist() == [0, 0, 0, 3, 1]
    assert once.observed[:, 0].tolist() == [False, False, False, False, True]
    assert [v.tolist() for v in plain.scale()] == [[10 / 3], [np.std([1, 4, 5])]]


def test_a_trend_and_a_season_are_found_across_gaps():
    t = np.arange(72.0)
    series = 5 + 0.25 * t + 2 * np.cos(2 * np.pi * t / 12)
    series[[3, 20, 21, 22, 50]] = np.nan
    past = Transforms(False, True, (12.0,), ()).apply(series[:60, None], 1)
    np.testing.assert_allclose(past.values, 0, atol=1e-9)
    np.testing.assert_allclose(past.inverse(np.zeros((12, 1)))[:, 0], series[60:], atol=1e-9)


def test_a_sample_has_a_trend_as_uncertain_as_its_fit():
    t, rng = np.arange(100.0), np.random.default_rng(0)
    transforms = Transforms(False, True, (), ())
    past = transforms.apply((0.1 * t + rng.standard_normal(100))[:, None], 1)
    paths = past.inverse(np.zeros((50, 4000, 1)), np.random.default_rng(1))[-1, :, 0]
    # The variance of a line at step 149: sigma^2 (1/n + (149 - mean t)^2 / sum (t - mean t)^2).
    expected = past.values.std() * math.sqrt(1 / 100 + (149 - 49.5) ** 2 / ((t - 49.5) ** 2).sum())
    assert paths.std() == pytest.approx(expected, rel=0.15)  # the sample's autocorrelation is not exactly 0
    assert paths.mean() == pytest.approx(past.inverse(np.zeros((50, 1)))[-1, 0], abs=4 * expected / math.sqrt(4000))


@pytest.mark.parametrize(
    ("options", "grows"),
    [({"trend": True}, 1.0), ({"differences": 1}, 1.0), ({"log": True, "trend": True}, None)],
)
def test_a_trend_goes_on(options, grows):
    t = np.arange(60.0)
    series = np.exp(0.05 * t) if grows is None else 3 + grows * t
    found = quick(**options).fit(series, steps=30, lr=0.01).forecast(series, 10, samples=50)
    expected = np.exp(0.05 * np.arange(60, 70)) if grows is None else 63 + np.arange(10)
    np.testing.assert_allclose(found.point, expected, rtol=0.02)
    assert (found.lower <= found.upper).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log": "yes"}, "Forecaster: log is 'yes', expected True or False"),
        ({"trend": 1}, "Forecaster: trend is 1, expected True or False"),
        ({"season_length": 1}, "Forecaster: season_length is 1, expected at least 2 steps"),
        ({"season_length": [24, "week"]}, "Forecaster: season_length is 'week', expected a finite number"),
        ({"differences": 0}, "Forecaster: differences is 0, expected at least 1"),
        ({"differences": (1, 1.5)}, "Forecaster: differences is 1.5, expected a whole number"),
        ({"known_features": -1}, "Forecaster: known_features is -1, expected at least 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Forecaster(3, 4, **options)


def test_options_and_columns_are_in_the_file(tmp_path):
    table = pd.DataFrame({"t": range(40), "price": wave(40, 5), "sold": 3 + wave(40)})
    model = quick(log=True, trend=True, season_length=[5, 7.5], differences=1, known_features=1)
    assert "known_features=1, log=True, trend=True, season_length=(5, 7.5), differences=1" in repr(model)
    model.fit(table, time="t", target="sold", known="price", steps=2).save(tmp_path / "m")
    back = load(tmp_path / "m")
    assert back.config() == model.config()
    later = pd.DataFrame({"t": range(40, 45), "price": 1.0})
    assert back.predict(table, 5, known=later).equals(model.predict(table, 5, known=later))


def test_values_without_logarithm_are_named():
    series = pd.Series(np.arange(20.0) + 1, index=MONTHS[:20])
    series.iloc[7] = -3
    with pytest.raises(
        ValueError, match=r"X holds -3 at index 2015-08-01 00:00:00, expected positive values, as log=Tr"
    ):
        quick(log=True).fit(series, steps=1)


def test_a_series_shorter_than_two_seasons_is_rejected():
    with pytest.raises(ValueError, match=r"Forecaster.fit: X\[1\] has 23 steps, expected at least 24"):
        quick(season_length=12).fit([wave(50), wave(23)], steps=1)


# --- gaps and short series ---


def test_gaps_are_no_targets():
    series = wave(30)
    series[[10, 20]] = np.nan
    model = quick().fit(series, steps=1, batch_size=100)
    targets = model.trainer_.data.batch(0, 0).targets
    assert targets.shape == (30 - 6 - 2, 1)
    assert np.isfinite(targets).all()
    assert len(model.residuals) == 22
    there = series[np.isfinite(series)]
    np.testing.assert_allclose([model.mean[0], model.std[0]], [there.mean(), there.std()])
    assert np.isfinite(model.predict(series, 3)).all()
    masked = np.ma.masked_invalid(series)
    nothing = [None if np.isnan(v) else float(v) for v in series]
    for same in (masked, nothing, pd.Series(series), pl.Series("v", nothing), pd.Series(nothing, dtype="Float64")):
        assert_same(np.asarray(model.predict(same, 3)), model.predict(series, 3))


def test_a_gap_at_the_end_is_forecast_through():
    series = wave(60)
    model = quick().fit(series, steps=5)
    cut = series.copy()
    cut[55:] = np.nan
    whole = model.forecast(series[:55], 8, samples=30)
    found = model.forecast(cut, 3, samples=30)
    assert_same((found.point, found.lower), (whole.point[5:], whole.lower[5:]))
    backtest = model.backtest(cut, 54, horizon=6, samples=10)
    assert np.isnan(backtest.actual[0]).tolist() == [False, *[True] * 5]
    assert backtest.mae == pytest.approx(abs(backtest.point[0, 0] - series[54]))


def test_a_gap_in_one_feature_only():
    series = np.stack([wave(40), wave(40, 7)], axis=1)
    series[10, 0] = series[-1, 1] = np.nan
    model = quick(features=2).fit(series, steps=1, batch_size=100)
    assert model.trainer_.data.num_examples == 40 - 6 - 2
    assert np.isfinite(model.predict(series, 3)).all()


def test_series_shorter_than_the_window():
    series = [wave(40), wave(5, seed=1), wave(3, seed=2)]
    model = quick().fit(series, steps=1, batch_size=100)
    lengths = sorted(model.trainer_.data.batch(0, 0).lengths.tolist())
    assert lengths == [1, 1, 2, 2, 3, 4, *[6] * 34]
    alone = [model.forecast(s, 4, samples=20) for s in series]
    together = model.forecast(series, 4, samples=20)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.point, one.point, rtol=1e-9)
    # The window grows to its full length as forecasts are fed back: five values and one forecast.
    one, two = model.predict(series[1], 2)
    grown = np.concatenate([series[1], [one]])
    scale = series[1].mean(), series[1].std()
    value, _ = model(((grown - scale[0]) / scale[1])[:, None, None])
    assert two == pytest.approx(float(value[0, 0]) * scale[1] + scale[0])


def test_series_of_very_different_size_each_have_a_scale_of_their_own():
    small, large = wave(100), -6000 + 100 * wave(100, seed=1)
    model = Forecaster(12, 8).fit([large, small], epochs=15)
    found = model.predict(np.stack([large, small]), 12)
    np.testing.assert_allclose(found[1], np.sin(2 * np.pi * np.arange(100, 112) / 12), atol=0.5)
    np.testing.assert_allclose(found[0], -6000 + 100 * np.sin(2 * np.pi * np.arange(100, 112) / 12), atol=50)


def test_whole_numbers_and_bools_are_numbers():
    whole = (10 * wave(40)).astype(int)
    for model in (quick(), Forecaster(6, 4)):
        model.fit(whole, steps=1)
        assert model.predict(whole, 2).dtype == np.float64  # float32 does not hold all whole numbers
        np.testing.assert_array_equal(model.predict(whole.tolist(), 2), model.predict(whole.astype(float), 2))
        of_floats = model.predict((whole > 0).astype(np.float32), 2)
        np.testing.assert_array_equal(model.predict(whole > 0, 2), of_floats, strict=True)


class Tensor:
    """A tensor of another library, which shares its memory."""

    def __init__(self, values):
        self._values, self.ndim, self.shape = values, values.ndim, values.shape

    def __len__(self):
        return len(self._values)

    def __dlpack__(self, **options):
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._values.__dlpack_device__()


def test_tensors_of_other_libraries():
    series, model = np.stack([wave(40), wave(40, 7)]), quick()
    model.fit(Tensor(series[0]), steps=1)
    assert_same(model.predict(Tensor(series[0]), 2), model.predict(series[0], 2))
    assert_same(model.predict([Tensor(s) for s in series], 2), model.predict(list(series), 2))
    assert_same(model.predict(Tensor(series), 2), model.predict(list(series), 2))


# --- pandas and polars ---


def test_a_pandas_series_goes_on_in_its_index():
    months = pd.Series(wave(80), index=MONTHS, name="sold")
    model = quick().fit(months, steps=2)
    plain = model.predict(months.to_numpy(), 3)
    found = model.predict(months, 3)
    assert found.name == "sold"
    assert found.index.equals(pd.date_range("2021-09-01", periods=3, freq="MS"))
    assert_same(found.to_numpy(), plain)
    ahead = model.forecast(months, 3, samples=20, quantiles=(0.1, 0.5))
    for part in (ahead.point, ahead.lower, ahead.upper, *ahead.quantiles.values()):
        assert part.index.equals(found.index)
    ends = {
        "business days": (
            pd.bdate_range("2024-01-01", periods=80),
            [pd.Timestamp("2024-04-22"), pd.Timestamp("2024-04-23")],
        ),
        "hours across a change of clocks": (
            pd.date_range("2024-03-27 18:00", periods=80, freq="h", tz="Europe/Berlin"),
            pd.date_range("2024-03-31 03:00", periods=2, freq="h", tz="Europe/Berlin"),
        ),
        "days across a change of clocks": (
            pd.date_range("2024-01-11", periods=80, tz="Europe/Berlin"),
            pd.date_range("2024-03-31", periods=2, tz="Europe/Berlin"),
        ),
        "periods": (pd.period_range("2001", periods=80, freq="Q"), [pd.Period("2021Q1"), pd.Period("2021Q2")]),
        "numbers": (pd.Index(np.arange(80) * 5), [400, 405]),
        "range": (pd.RangeIndex(10, 90), [90, 91]),
        "names": (pd.Index([f"row {i}" for i in range(80)]), [80, 81]),
    }
    for index, expected in ends.values():
        found = model.predict(pd.Series(wave(80), index=index), 2)
        assert found.index.equals(pd.Index(expected))
        assert_same(found.to_numpy(), plain[:2])


def test_rows_that_are_missing_are_gaps_and_rows_out_of_order_are_put_in_order():
    months = pd.Series(wave(80), index=MONTHS)
    model = quick().fit(months, steps=2)
    gaps = months.copy()
    gaps.iloc[[30, 78]] = np.nan
    dropped = gaps.dropna()
    assert len(dropped) == 78
    for same in (dropped, dropped.sample(frac=1, random_state=0)):
        pd.testing.assert_series_equal(model.predict(same, 3), model.predict(gaps, 3), check_freq=False)
    with pytest.raises(ValueError, match=r"inputs has the same time at index 2015-01-01 00:00:00 and index 2015-01-01"):
        model.predict(pd.concat([months, months[:1]]), 3)
    uneven = months.copy()
    uneven.index = [*MONTHS[:-1], MONTHS[-1] + pd.Timedelta(days=9)]
    with pytest.warns(UserWarning, match="the times of inputs are not at equal distances, first at index"):
        assert_same(model.predict(uneven, 3).to_numpy(), model.predict(months, 3).to_numpy())


def test_a_table_with_a_column_for_each_feature():
    table = pd.DataFrame({"a": wave(80), "b": 100 + wave(80, 7)}, index=MONTHS)
    model = quick(features=2).fit(table, steps=2)
    found = model.predict(table, 3)
    assert list(found.columns) == ["a", "b"]
    assert found.index[0] == pd.Timestamp("2021-09-01")
    assert_same(found.to_numpy(), model.predict(table.to_numpy(), 3))
    assert_same(model.predict(table[["a", "b"]], 3).to_numpy(), found.to_numpy())
    dated = pl.DataFrame({"when": [str(m.date()) for m in MONTHS], "a": wave(80), "b": 100 + wave(80, 7)})
    of_polars = quick(features=2).fit(dated, time="when", steps=2).predict(dated, 3)
    assert isinstance(of_polars, pl.DataFrame)
    assert of_polars["when"].to_list() == ["2021-09-01", "2021-10-01", "2021-11-01"]
    assert_same(of_polars.select("a", "b").to_numpy(), found.to_numpy())
    several = model.predict([table, table[:50]], 3)
    assert several[1].index[0] == MONTHS[50]


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_a_table_of_several_series(library):
    days = [np.datetime64("2024-01-01") + i for i in range(50)]
    north, south = wave(50), 1000 + 50 * wave(40, seed=1)
    columns = {
        "store": ["north"] * 50 + ["south"] * 40,
        "day": np.array(days + days[:40], "datetime64[us]"),
        "sold": np.concatenate([north, south]),
    }
    table = library.DataFrame(columns)
    order = np.random.default_rng(0).permutation(90)
    mixed = library.DataFrame({name: np.asarray(column)[order] for name, column in columns.items()})
    model = quick().fit(table, target="sold", time="day", group="store", steps=2)
    again = quick().fit([north, south], steps=2)
    assert_same(model.state_dict(), again.state_dict())
    found = model.forecast(table, 3, samples=20).point
    assert type(found) is type(table)
    assert list(found.columns) == ["store", "day", "sold"]
    assert found["store"].to_list() == ["north"] * 3 + ["south"] * 3
    assert [str(d)[:10] for d in found["day"].to_list()] == [
        "2024-02-20", "2024-02-21", "2024-02-22", "2024-02-10", "2024-02-11", "2024-02-12",
    ]  # fmt: skip
    expected = np.concatenate(again.predict([north, south], 3))
    np.testing.assert_allclose(found["sold"].to_numpy(), expected, rtol=1e-12)
    shuffled = model.predict(mixed, 3)
    by_store = dict(zip(shuffled["store"].to_list()[::3], np.split(shuffled["sold"].to_numpy(), 2), strict=True))
    np.testing.assert_allclose(np.concatenate([by_store["north"], by_store["south"]]), expected, rtol=1e-12)
    tests = model.backtest(table, 35, samples=10)
    assert list(tests) == ["north", "south"]
    assert tests["south"].origins == tuple(range(35, 40))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"sold": np.inf},
            {},
            r"X of store 'b'\['sold'\] holds infinity|X\['sold'\] holds infinity at index 31, expected",
        ),
        ({}, {"time": "date"}, r"X has no column 'date', expected one of store, day, sold"),
        (
            {},
            {"target": ["sold", "day"]},
            r"X has the columns sold, day to forecast, expected 1; name them with target=",
        ),
        (
            {},
            {"target": None, "group": None, "time": None},
            r"X has the columns store, day, sold to forecast, expected 1",
        ),
        ({}, {"known": "sold"}, r"known names 1 columns, expected 0: the model was made with known_features=0"),
        ({"day": 30}, {}, r"X of store 'b' has the same time at index 30 and index 31, expected a row for each"),
        ({"sold": "many"}, {}, r"X\['sold'\]\[31\] is a str, expected a number"),
        ({"store": None}, {}, r"X\['store'\] is nan in row 31, expected the series of each row"),
        ({}, {"static": {"day"}}, r"static is a set, expected the name of a column of X, or a list of such"),
    ],
)
def test_tables_are_checked(change, options, message):
    table = pd.DataFrame({"store": ["a"] * 30 + ["b"] * 30, "day": list(range(60)), "sold": wave(60)})
    for column, value in change.items():
        table[column] = table[column].astype(object) if isinstance(value, str) else table[column]
        table.loc[31, column] = value
    with pytest.raises((ValueError, TypeError), match=message):
        quick().fit(table, steps=1, **{"target": "sold", "time": "day", "group": "store", **options})


def test_an_index_of_several_levels_is_to_be_columns():
    table = pd.DataFrame({"v": wave(60), "store": ["a"] * 30 + ["b"] * 30, "t": [*range(30)] * 2})
    with pytest.raises(TypeError, match=r"X has an index of several levels, expected one level; pass X.reset"):
        quick().fit(table.set_index(["store", "t"]), steps=1)


def test_times_beyond_what_dates_can_be_are_named():
    table = pl.DataFrame({"t": [f"99{i:02d}" + "-01-01" for i in range(60, 100)], "v": wave(40)})
    model = quick().fit(table, time="t", steps=1)
    with pytest.raises(ValueError, match=r"predict: steps is 3, expected fewer: the times after 9999-01-01 00"):
        model.predict(table, 3)


def test_an_infinity_is_named_by_its_index():
    series = pd.Series(wave(80), index=MONTHS)
    series.iloc[3] = np.inf
    with pytest.raises(
        ValueError, match=r"X holds infinity at index 2015-04-01 00:00:00, expected finite numbers, or NaN"
    ):
        quick().fit(series, steps=1)


# --- times ---


def test_times_in_steps():
    def following(*when):
        return evenly_spaced(when).times.following(2)

    stamps = pd.Timestamp
    assert following(1, 2, 4, 5) == [6, 7]
    assert following(0.5, 0.75) == [1.0, 1.25]
    assert following(stamps("2024-01-31"), stamps("2024-02-29")) == [stamps("2024-03-31"), stamps("2024-04-30")]
    assert following(stamps("2023-01-01"), stamps("2024-01-01")) == [stamps("2025-01-01"), stamps("2026-01-01")]
    rows = evenly_spaced([4, 1, 2, 7])
    assert (rows.order, rows.places, rows.times.values, rows.uneven) == (
        [1, 2, 0, 3],
        [0, 1, 3, 6],
        [*range(1, 8)],
        None,
    )
    assert evenly_spaced([1, 2, 3, 3.4]).uneven == 3
    assert evenly_spaced([1, 2, 1000]).uneven == 2  # more gaps than rows
    with pytest.raises(EqualTimes) as error:
        evenly_spaced([1, 2, 1])
    assert error.value.rows == (0, 2)


# --- covariates ---


def test_a_known_covariate_says_what_comes():
    rng = np.random.default_rng(0)
    offer = (rng.random(220) < 0.3).astype(float)
    sold = 10 + 5 * offer + 0.1 * rng.standard_normal(220)
    model = Forecaster(4, 8, known_features=1).fit(sold[:200], known=offer[:200], epochs=40, lr=0.01)
    found = model.predict(sold[:200], 20, known=offer)
    np.testing.assert_allclose(found, 10 + 5 * offer[200:], atol=0.7)
    # Only the known value of the forecast step is read, and not those after it.
    changed = offer.copy()
    changed[203] = 1 - changed[203]
    other = model.predict(sold[:200], 20, known=changed)
    assert_same(other[:3], found[:3])
    assert abs(other[3] - found[3]) > 2
    backtest = model.backtest(sold, 200, known=offer, samples=50)
    assert backtest.mase < 0.2
    with pytest.raises(ValueError, match="known has 19 steps after those of inputs, expected at least steps = 20"):
        model.predict(sold[:200], 20, known=offer[:219])
    with pytest.raises(TypeError, match="predict: known is None, expected the model's 1 known features"):
        model.predict(sold[:200], 20)
    with pytest.raises(
        ValueError, match=r"known has shape \(199, 1\), expected at least 200 steps of 1 known features"
    ):
        model.predict(sold[:200], 20, known=offer[:199])


def test_a_past_covariate_leads_the_series():
    rng = np.random.default_rng(0)
    leader = rng.standard_normal(400)
    series = 50 + np.concatenate([[0], 10 * leader[:-1]]) + rng.standard_normal(400)
    model = Forecaster(3, 8, past_features=1).fit(series[:300], past=leader[:300], epochs=25, lr=0.01)
    assert model.mean.shape == (2,)
    backtest = model.backtest(series, 300, past=leader, samples=50)
    assert backtest.point.shape == (100, 1)
    assert backtest.rmse < 3 < series.std()
    assert backtest.coverage > 0.75
    assert model.predict(series, 5, past=leader).shape == (5,)


def test_a_static_covariate_tells_series_apart():
    rng = np.random.default_rng(0)
    kinds = np.array([0, 1] * 10)
    signs = [rng.choice([-1.0, 1.0], 30) for _ in kinds]
    # The last value is repeated, or its opposite follows.
    series = [np.cumprod(np.full(30, 1.0 if kind else -1.0)) * sign[0] for kind, sign in zip(kinds, signs, strict=True)]
    series = [s + 0.01 * rng.standard_normal(30) for s in series]
    model = Forecaster(1, 8, static_features=1, trend=False).fit(series[:18], static=kinds[:18], epochs=1)
    table = pd.DataFrame({"id": np.repeat(range(20), 30), "kind": np.repeat(kinds, 30), "v": np.concatenate(series)})
    again = Forecaster(1, 8, static_features=1)
    again.fit(table[table.id < 18], group="id", static="kind", target="v", epochs=1)
    assert_same(again.state_dict(), model.state_dict())
    assert not np.allclose(model.predict(series[18], 1, static=[0]), model.predict(series[18], 1, static=[1]))
    table.loc[5, "kind"] = 1
    with pytest.raises(
        ValueError, match=r"X of id 0\['kind'\] is 1 at index 5 and 0 before, expected one value for each"
    ):
        again.fit(table, group="id", static="kind", target="v")


@pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
def test_covariates_in_columns(library):
    rng = np.random.default_rng(0)
    T, ahead = 40, 5
    columns = {
        "shop": ["a"] * (T + ahead) + ["b"] * (T + ahead),
        "t": [*range(T + ahead)] * 2,
        "y": rng.standard_normal(2 * (T + ahead)),
        "price": rng.standard_normal(2 * (T + ahead)),
        "visits": rng.standard_normal(2 * (T + ahead)),
        "size": [1.0] * (T + ahead) + [7.0] * (T + ahead),
    }
    is_past = np.array(columns["t"]) < T
    past, future = (
        library.DataFrame({name: np.asarray(values)[which] for name, values in columns.items() if name in names})
        for which, names in ((is_past, columns), (~is_past, ("shop", "t", "price")))
    )
    sizes = {"known_features": 1, "past_features": 1, "static_features": 1}
    model = quick(**sizes).fit(
        past, target="y", time="t", group="shop", known=["price"], past=["visits"], static=["size"], steps=3
    )
    found = model.predict(past, ahead, known=future)

    def both(name, which):
        return np.split(np.asarray(columns[name])[which], 2)

    arrays = quick(**sizes)
    given = {"past": both("visits", is_past), "static": [[1.0], [7.0]]}
    arrays.fit(both("y", is_past), known=both("price", is_past), **given, steps=3)
    assert_same(arrays.state_dict(), model.state_dict())
    every = np.ones(len(is_past), bool)
    expected = arrays.predict(both("y", is_past), ahead, known=both("price", every), **given)
    assert_same(found["y"].to_numpy(), np.concatenate(expected))
    with pytest.raises(ValueError, match=r"known has 5 steps after those of inputs of shop 'a', expected at least"):
        model.predict(past, ahead + 1, known=future)
    with pytest.raises(ValueError, match=r"known has 0 steps after those of inputs of shop 'a', expected at least"):
        model.predict(past, 1)


# --- validation by time ---


def test_the_last_part_of_each_series_is_validated_on():
    series = [np.arange(50.0), 100 + np.arange(20.0)]
    model = quick(trend=False).fit(series, epochs=1, validation_split=0.25, batch_size=100)
    learnt, held = (d.batch(0, 0).targets[:, 0] for d in (model.trainer_.data, model.trainer_.validation))
    (first, second) = [(s - s.mean()) / s.std() for s in series]
    np.testing.assert_allclose(held, [*first[-11:], *second[-4:]])  # in order of time
    np.testing.assert_allclose(sorted(learnt), sorted([*first[6:-11], *second[6:-4]]))


def test_fit_stops_by_itself_and_widens_residuals_to_those_it_did_not_learn():
    series = wave(120, noise=0.1)
    series[106:] += np.random.default_rng(1).standard_normal(14)
    model = Forecaster(6, 16, dtype="float64").fit(series, lr=0.02)
    trainer = model.trainer_
    assert trainer.validation is not None
    assert trainer.step < trainer.total  # it stopped early
    held = model.residuals[trainer.validation.places]
    learnt = model.residuals[trainer.data.places]
    assert (learnt**2).mean() == pytest.approx((held**2).mean(), rel=1e-9)
    before = [(series[t] - model.predict(series[:t])[0]) / model.std[0] for t in trainer.validation.places + 6]
    np.testing.assert_allclose(held[:, 0], before, rtol=1e-8)


# --- quantiles, backtests, baselines ---


def test_quantiles_of_the_samples():
    series = wave(60)
    model = quick().fit(series, steps=5)
    found = model.forecast(series, 4, samples=400, level=0.8, quantiles=[0.1, 0.5, 0.9])
    assert list(found.quantiles) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose([found.quantiles[0.1], found.quantiles[0.9]], [found.lower, found.upper], rtol=1e-12)
    assert (found.lower < found.quantiles[0.5]).all()
    assert model.forecast([series, series], 2, samples=9, quantiles=0.5)[1].quantiles[0.5].shape == (2,)


def test_naive_baselines():
    series = np.array([1.0, 2, 3, 5, 4, 8, 9, 10])
    naive = baselines.baseline("naive", series, 6, 3)(6, 4, 0.9)
    assert naive[0].tolist() == [8] * 4
    sigma = math.sqrt(np.mean(np.diff(series[:6]) ** 2))
    np.testing.assert_allclose(naive[2] - naive[0], 1.6448536269514722 * sigma * np.sqrt([1, 2, 3, 4]))
    seasonal = baselines.baseline("seasonal_naive", series, 6, 3)(7, 5, 0.5)
    assert seasonal[0].tolist() == [4, 8, 9, 4, 8]
    sigma = math.sqrt(np.mean((series[3:7] - series[:4]) ** 2))
    np.testing.assert_allclose(seasonal[0] - seasonal[1], 0.6744897501960817 * sigma * np.sqrt([1, 1, 1, 2, 2]))
    gaps = np.array([1.0, 2, 3, 4, np.nan, np.nan])
    assert baselines.baseline("naive", gaps, 6, 3)(6, 2, 0.9)[0].tolist() == [4, 4]
    assert baselines.baseline("seasonal_naive", gaps, 6, 3)(6, 3, 0.9)[0].tolist() == [4, 2, 3]


@pytest.mark.parametrize("name", ["ets", "theta"])
def test_classical_baselines_know_trend_and_season(name):
    pytest.importorskip("statsmodels")
    t = np.arange(120)
    series = 50 + 0.1 * t + 3 * np.sin(2 * np.pi * t / 4) + 0.1 * np.random.default_rng(0).standard_normal(120)
    series[[30, 97]] = np.nan
    method = baselines.baseline(name, series, 100, 4)
    for origin in (100, 108):
        point, lower, upper = method(origin, 12, 0.9)
        assert np.abs(point - series[origin : origin + 12]).mean() < 0.7
        assert ((lower < point) & (point < upper)).all()


def test_a_backtest_shows_the_model_beside_baselines():
    series = 5 + wave(120, noise=0.2)
    model = quick(season_length=12).fit(series[:90], steps=20)
    found = model.backtest(series, 90, horizon=6, stride=6, samples=50)
    assert list(found.baselines) == ["naive", "seasonal_naive"]
    scale = np.abs(series[12:90] - series[:78]).mean()
    np.testing.assert_allclose(found.naive_error, [scale])
    assert found.mase == pytest.approx(found.mae / scale)
    other = found.baselines["seasonal_naive"]
    assert other.mase == pytest.approx(other.mae / scale)
    expected = [np.resize(series[o - 12 : o], 6) for o in found.origins]
    assert_same(other.point, np.array(expected))
    lines = repr(found).splitlines()
    assert lines[0] == "Backtest: 6 steps ahead from 5 origins, 90 to 114"
    assert lines[1].split() == ["MASE", "MAE", "RMSE", "coverage", "of", "90%"]
    assert [line.split()[0] for line in lines[2:]] == ["Forecaster", "naive", "seasonal_naive"]
    assert f"{found.mase:.4g}" in lines[2]
    assert list(model.backtest(series, 110, baselines=[]).baselines) == []
    dated = pd.Series(series, index=pd.date_range("2010-01-01", periods=120, freq="MS"))
    for start in ("2019-01", pd.Timestamp("2019-01-01")):
        assert model.backtest(dated, start, samples=5).origins[0] == 108
    with pytest.raises(ValueError, match=r"start is 'soon', expected an int, or a time such as 2010-01-01 00:00:00"):
        model.backtest(dated, "soon")


def test_a_missing_statsmodels_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "statsmodels.tsa.forecasting.theta", None)
    with pytest.raises(ImportError, match="baseline 'theta' needs statsmodels, which is not installed; pip install st"):
        quick().fit(wave(60), steps=1).backtest(wave(60), 50, baselines=["theta"])


@pytest.mark.parametrize(
    ("options", "seeds"),
    [({"epochs": 3}, range(2)), pytest.param({}, range(10), marks=pytest.mark.slow)],
    ids=["short", "as long as fit likes"],
)
def test_trend_and_season_are_forecast_better_than_by_repeating(options, seeds):
    coverage = []
    for seed in seeds:
        t = np.arange(600)
        series = 0.02 * t + 3 * np.sin(2 * np.pi * t / 12) + 0.3 * np.random.default_rng(seed).standard_normal(600)
        model = gpurnn.Forecaster(12, 8, trend=True, season_length=12).fit(series[:500], **options)
        found = model.backtest(series, 500, horizon=100, level=0.9, samples=100)
        assert found.origins == (500,)
        assert found.mase < 0.5 * found.baselines["seasonal_naive"].mase
        coverage.append(found.coverage)
    assert 0.8 <= np.mean(coverage) <= 0.97
