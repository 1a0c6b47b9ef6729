"""The results of a forecaster: forecasts with their intervals, and backtests compared with other methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import _dispatch


@dataclass(frozen=True)
class Forecast:
    """The values that are forecast, and intervals around them.

    All of them are of the same kind as the series: an array, or a pandas or polars series or table whose index or time
    column continues the series' own.

    Attributes
    ----------
    point : (steps,) or (steps, features) array, series or table
        The free-running forecast, without noise.
    lower, upper : like point
        The prediction interval of each value by itself.
    level : float
        The intended probability that a value lies in its interval.
    quantiles : dict
        The quantiles of the values, like point, for each of the requested levels.
    """

    point: Any
    lower: Any
    upper: Any
    level: float
    quantiles: Mapping[float, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Backtest:
    """Forecasts from several origins of a series, with the values that followed.

    Its repr is a table: the model and each baseline, with their errors and the coverage of their intervals.

    Attributes
    ----------
    origins : tuple of int
        The N origins: the index of the first value of each forecast, which was made from the values before it.
    point, lower, upper : (N, horizon) or (N, horizon, features) arrays
        As in `Forecast`.
    actual : array like point
        The values of the series, NaN in its gaps, which errors and coverage leave out.
    level : float
    naive_error : (features,) NumPy array
        The mean absolute error of repeating the last season, or the last value if there is no season, one step ahead in
        the values before the first origin. `mase` divides by it.
    baselines : dict of str to Backtest
        The same forecasts made by other methods: "naive", "seasonal_naive", "ets", "theta".

    References
    ----------
    R. J. Hyndman, A. B. Koehler, "Another look at measures of forecast accuracy", International Journal of Forecasting
    22 (2006): the mean absolute scaled error.
    """

    origins: tuple[int, ...]
    point: Any
    lower: Any
    upper: Any
    actual: Any
    level: float
    naive_error: Any = None
    baselines: Mapping[str, Backtest] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def mse(self) -> float:
        """The mean squared error of the point forecasts."""
        return _mean(self._errors() ** 2)

    @property
    def rmse(self) -> float:
        """The root of `mse`."""
        return float(np.sqrt(self.mse))

    @property
    def mae(self) -> float:
        """The mean absolute error of the point forecasts."""
        return _mean(np.abs(self._errors()))

    @property
    def mase(self) -> float:
        """The mean absolute error over that of repeating the last season in the past; below 1 is better than that.

        For several features it is the mean over them. It is infinite or NaN if the past had no errors.
        """
        errors = np.abs(self._errors()).reshape(len(self.origins), -1, np.size(self.naive_error))
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(
                np.mean([_mean(errors[..., i]) for i in range(errors.shape[2])] / np.asarray(self.naive_error))
            )

    @property
    def coverage(self) -> float:
        """The share of the actual values that lie in their intervals; it should be near ``level``."""
        lower, upper, actual = (_numpy(a) for a in (self.lower, self.upper, self.actual))
        return _mean(np.where(np.isnan(actual), np.nan, (lower <= actual) & (actual <= upper)))

    def _errors(self) -> NDArray[np.float64]:
        return _numpy(self.point) - _numpy(self.actual)

    def __repr__(self) -> str:
        rows = [("Forecaster", self), *((name, other) for name, other in self.baselines.items())]
        N, horizon = self.point.shape[:2]
        width = max(len(name) for name, _ in rows)
        lines = [
            f"Backtest: {horizon} step{'s' * (horizon > 1)} ahead from {N} origin{'s' * (N > 1)}, "
            f"{self.origins[0]} to {self.origins[-1]}",
            f"  {'':{width}}  {'MASE':>8}  {'MAE':>8}  {'RMSE':>8}  coverage of {100 * self.level:g}%",
        ]
        for name, test in rows:
            numbers = "  ".join(f"{value:8.4g}" for value in (test.mase, test.mae, test.rmse))
            lines.append(f"  {name:{width}}  {numbers}  {100 * test.coverage:5.1f}%")
        return "\n".join(lines)


def _mean(values: NDArray[np.float64]) -> float:
    """The mean of the values that are not NaN; NaN if all are."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else np.nan


def _numpy(array: Any) -> NDArray[np.float64]:
    return _dispatch.to_numpy(array).astype(np.float64)
