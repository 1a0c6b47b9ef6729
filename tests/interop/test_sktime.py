"""Estimators for sktime: they pass sktime's own checks, and give the same results as the models of gpurnn."""

from __future__ import annotations

import numpy as np
import pytest

import gpurnn

pytest.importorskip("sktime")
pd = pytest.importorskip("pandas")

from sktime.forecasting.model_selection import ForecastingGridSearchCV  # noqa: E402
from sktime.split import SlidingWindowSplitter  # noqa: E402
from sktime.utils.estimator_checks import check_estimator  # noqa: E402

import gpurnn.sktime  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:::sktime", "ignore:::joblib", "ignore:::pandas")

RNG = np.random.default_rng(0)
MONTHS = pd.period_range("2001-01", periods=60, freq="M")
SERIES = pd.Series(20 + np.sin(np.arange(60) * np.pi / 6) + RNG.normal(size=60) / 9, MONTHS, name="sold")
QUICK = {"window": 6, "hidden_size": 4, "epochs": 2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Forecaster", "SequenceClassifier"])
def test_the_checks_of_sktime(name):
    estimator = getattr(gpurnn.sktime, name).create_test_instance()
    found = check_estimator(estimator, raise_exceptions=False, verbose=False)
    assert len(found) > 100
    assert {check: said for check, said in found.items() if said != "PASSED"} == {}


def test_forecasts_are_those_of_the_model():
    forecaster = gpurnn.sktime.Forecaster(**QUICK, random_state=3).fit(SERIES, fh=[2, 5])
    model = gpurnn.Forecaster(6, 4, rng=3).fit(SERIES.to_numpy(), epochs=2, rng=3, verbose=False)
    found = forecaster.predict()
    np.testing.assert_array_equal(found, model.predict(SERIES.to_numpy(), 5)[[1, 4]].astype(float))
    assert found.index.tolist() == list(pd.PeriodIndex(["2006-02", "2006-05"], freq="M"))
    assert found.name == "sold"
    quantiles = forecaster.predict_quantiles(alpha=[0.1, 0.9])
    expected = model.forecast(SERIES.to_numpy(), 5, quantiles=[0.1, 0.9], rng=3).quantiles
    np.testing.assert_array_equal(quantiles["sold", 0.9], expected[0.9][[1, 4]].astype(float))
    assert (quantiles["sold", 0.1] < quantiles["sold", 0.9]).all()


def test_covariates_are_known_ahead():
    x = pd.DataFrame({"on": RNG.integers(0, 2, 66)}, pd.period_range("2001-01", periods=66, freq="M"))
    forecaster = gpurnn.sktime.Forecaster(**QUICK).fit(SERIES, X=x[:60])
    found = forecaster.predict([1, 6], X=x[60:])
    model = gpurnn.Forecaster(6, 4, known_features=1)
    model = model.fit(SERIES.to_numpy(), known=x[:60].to_numpy(), epochs=2, verbose=False)
    expected = model.predict(SERIES.to_numpy(), 6, known=x.to_numpy())
    np.testing.assert_array_equal(found, expected[[0, 5]].astype(float))
    with pytest.raises(ValueError, match=r"X has no row for 2006-01, expected one for each step up to 2006-02"):
        forecaster.predict([2], X=x[61:])


@pytest.mark.parametrize("remembers", [False, True])
def test_an_update_extends_the_past_and_fits_anew_if_asked(remembers):
    forecaster = gpurnn.sktime.Forecaster(**QUICK).set_config(remember_data=remembers).fit(SERIES[:50], fh=[1])
    before = forecaster.model_
    forecaster.update(SERIES[48:55], update_params=False)  # two months are known already
    assert forecaster.model_ is before
    np.testing.assert_array_equal(forecaster.predict(), before.predict(SERIES[:55].to_numpy(), 1).astype(float))
    forecaster.update(SERIES[55:])
    again = gpurnn.sktime.Forecaster(**QUICK).fit(SERIES, fh=[1])
    pd.testing.assert_series_equal(forecaster.predict(), again.predict())


def test_missing_values_are_gaps():
    gap = SERIES.copy()
    gap.iloc[[5, 20, 21]] = np.nan
    assert np.isfinite(gpurnn.sktime.Forecaster(**QUICK).fit(gap, fh=[1, 2]).predict()).all()


def test_a_search_over_parameters():
    search = ForecastingGridSearchCV(
        gpurnn.sktime.Forecaster(**QUICK), SlidingWindowSplitter(fh=[1], window_length=40, step_length=10),
        {"hidden_size": [2, 6]},
    )  # fmt: skip
    assert search.fit(SERIES, fh=[1]).best_params_["hidden_size"] in (2, 6)


def test_a_classifier_of_series_of_any_length():
    arrays = [RNG.normal(size=(length, 2)) for length in RNG.integers(3, 9, 20)]
    X = [pd.DataFrame(array, columns=["a", "b"]) for array in arrays]
    y = np.where([array[:, 0].sum() > 0 for array in arrays], "up", "down")
    classifier = gpurnn.sktime.SequenceClassifier(hidden_size=4, epochs=2, cell="lstm", random_state=5).fit(X, y)
    model = gpurnn.SequenceClassifier(hidden_size=4, cell="lstm", bidirectional=True, pooling="mean", rng=5)
    model.fit(arrays, y, epochs=2, rng=5, verbose=False)
    np.testing.assert_array_equal(classifier.predict_proba(X), model.predict_proba(arrays))
    assert classifier.predict(X).tolist() == model.predict(arrays).tolist()
