"""The simple and the classical forecasts that a model must beat: naive, seasonal naive, ETS and Theta."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from statistics import NormalDist
from typing import Any

import numpy as np

from .results import Backtest
from .series import Answer, Series
from .transforms import Values

Interval = tuple[Values, Values, Values]
"""The point forecast and the ends of its prediction interval, (horizon,) each."""

BASELINES = ("naive", "seasonal_naive", "ets", "theta")


def baseline(name: str, series: Values, first: int, season: int) -> Callable[[int, int, float], Interval]:
    """A method that forecasts a series (T,), NaN in its gaps: a function of an origin, a horizon and a level.

    Anything else that it learns comes from the values before the ``first`` origin, as for the model.

    Raises
    ------
    ImportError
        The method needs statsmodels, which is not installed.
    """
    if name == "ets":
        return _ets(series, first, season)
    if name == "theta":
        return _theta(series, season)
    lag = season if name == "seasonal_naive" else 1

    def repeat(origin: int, horizon: int, level: float) -> Interval:
        past = _repeated_over(series[:origin], lag)
        step = min(lag, len(past))
        point = np.resize(past[-step:], horizon)
        errors = past[step:] - past[:-step]
        sigma = np.sqrt(np.mean(errors**2)) if len(errors) else 0.0
        half = _quantile(level) * sigma * np.sqrt(np.arange(horizon) // step + 1)
        return point, point - half, point + half

    return repeat


def _repeated_over(past: Values, lag: int) -> Values:
    """A series whose gaps hold the value one ``lag`` before; gaps without such a value are interpolated."""
    filled = past.copy()
    for step in range(lag, len(filled)):
        if np.isnan(filled[step]):
            filled[step] = filled[step - lag]
    return _interpolated(filled)


def _interpolated(past: Values) -> Values:
    """A series whose gaps are filled on the straight lines between their neighbours."""
    there = np.flatnonzero(~np.isnan(past))
    return past if len(there) == len(past) else np.interp(np.arange(len(past)), there, past[there])


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _ets(series: Values, first: int, season: int) -> Callable[[int, int, float], Interval]:
    """Exponential smoothing with additive errors and season; Akaike's criterion chooses the trend."""
    try:
        import pandas as pd
        from statsmodels.tsa.exponential_smoothing.ets import ETSModel
    except ImportError as error:
        raise _missing("ets") from error
    seasonal = {"seasonal": "add", "seasonal_periods": season} if season > 1 and first >= 2 * season + 2 else {}
    kinds = [
        {"trend": trend, "damped_trend": damped, "initialization_method": "heuristic", **seasonal}
        for trend, damped in ((None, False), ("add", False), ("add", True))
    ]
    if first < 12:  # the heuristic start needs this many
        raise ValueError(f"ets needs at least 12 values, and there are {first} before the first origin")
    scale = float(np.nanmax(np.abs(series[:first]))) or 1.0

    def model(length: int, kind: dict[str, Any]) -> Any:
        return ETSModel(pd.Series(_repeated_over(series[:length], season) / scale), error="add", **kind)

    def quietly(call: Callable[[], Any]) -> Any:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a search that stops early warns, but its best result counts
            return call()

    fits = [quietly(partial(model(first, kind).fit, disp=False)) for kind in kinds]
    best = min(range(len(fits)), key=lambda i: fits[i].aicc if np.isfinite(fits[i].aicc) else np.inf)

    def forecast(origin: int, horizon: int, level: float) -> Interval:
        smoothed = quietly(lambda: model(origin, kinds[best]).smooth(fits[best].params))
        found = quietly(
            lambda: smoothed.get_prediction(start=origin, end=origin + horizon - 1).summary_frame(alpha=1 - level)
        )
        point, lower, upper = (scale * np.asarray(found[c], float) for c in ("mean", "pi_lower", "pi_upper"))
        return point, lower, upper

    return forecast


def _theta(series: Values, season: int) -> Callable[[int, int, float], Interval]:
    try:
        import pandas as pd
        from statsmodels.tsa.forecasting.theta import ThetaModel
    except ImportError as error:
        raise _missing("theta") from error

    def forecast(origin: int, horizon: int, level: float) -> Interval:
        seasonal = season > 1 and origin >= 2 * season
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            past = pd.Series(_repeated_over(series[:origin], season))
            fit = ThetaModel(
                past, period=season if seasonal else 1, deseasonalize=seasonal,
                method="additive" if seasonal else "auto",
            ).fit()  # fmt: skip
            bounds = np.asarray(fit.prediction_intervals(horizon, alpha=1 - level), float)
            return np.asarray(fit.forecast(horizon), float), bounds[:, 0], bounds[:, 1]

    return forecast


def _missing(name: str) -> ImportError:
    return ImportError(
        f"Forecaster.backtest: the baseline {name!r} needs statsmodels, which is not installed; pip install statsmodels"
    )


def compared(
    series: Series,
    arrays: list[Values],
    origins: tuple[int, ...],
    level: float,
    season: int,
    names: list[str],
    array: Answer,
) -> Backtest:
    """A backtest of point, lower, upper and actual (N, horizon, features), with the backtests of the baselines."""
    horizon, first = arrays[0].shape[1], origins[0]
    past = series.values[:first, : arrays[3].shape[2]]
    lag = season if season < first else 1
    with np.errstate(invalid="ignore"):
        steps = np.abs(past[lag:] - past[:-lag])
    naive_error = np.array([np.mean(s[np.isfinite(s)]) if np.isfinite(s).any() else np.nan for s in steps.T])
    of_others: dict[str, list[Values]] = {}
    for name in names:
        found = []
        for feature in range(arrays[3].shape[2]):
            method = baseline(name, series.values[:, feature], first, season)
            found.append([method(origin, horizon, level) for origin in origins])
        # (features, N, 3, horizon) as three arrays (N, horizon, features).
        of_others[name] = [np.asarray(found)[:, :, i, :].transpose(1, 2, 0) for i in range(3)]

    def made(bounds: list[Values], others: Mapping[str, Backtest]) -> Backtest:
        shaped = [v[:, :, 0] if series.is_flat else v for v in (*bounds, arrays[3])]
        point, lower, upper, actual = (array(values, series.dtype) for values in shaped)
        return Backtest(origins, point, lower, upper, actual, float(level), naive_error, others)

    tests = {name: made(bounds, {}) for name, bounds in of_others.items()}
    return made(arrays[:3], tests)
