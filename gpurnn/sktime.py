"""Estimators with sktime's interface, for its pipelines, searches and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import pandas as pd
    from sktime.classification.base import BaseClassifier
    from sktime.forecasting.base import BaseForecaster, ForecastingHorizon
except ImportError as error:
    raise ImportError("gpurnn.sktime needs sktime; pip install 'gpurnn[sktime]'") from error

from . import models

__all__ = ["Forecaster", "SequenceClassifier"]

_FEW = {"hidden_size": 4, "epochs": 1, "fit_options": {"batch_size": 64}}
"""Parameters of a fast fit, for sktime's tests."""


class Forecaster(BaseForecaster):
    """`gpurnn.Forecaster` as an sktime forecaster of one series or several variables, with intervals by sampling.

    ``X`` are covariates that are known in the future. Missing values of ``y`` are gaps.

    Parameters
    ----------
    window, hidden_size, num_layers, cell, log, trend, season_length, differences, dropout
        As in `gpurnn.Forecaster`.
    epochs : int, optional
        None means until the loss on the last tenth of the series no longer falls.
    samples : int
        The number of sampled paths from which quantiles are taken.
    options : dict, optional
        Further options of `gpurnn.Forecaster`, by name.
    fit_options : dict, optional
        Further options of its ``fit``, such as ``lr``, by name.
    random_state : int
        Seeds the parameters, the order of the windows, dropout and the noise of the intervals.

    Attributes
    ----------
    model_ : gpurnn.Forecaster
        After ``fit``.

    Raises
    ------
    ValueError, TypeError, FloatingPointError
        In ``fit`` and ``predict``, as `gpurnn.Forecaster`; or X lacks a row for one of the steps up to the last.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from gpurnn.sktime import Forecaster
    >>> months = pd.period_range("2001-01", periods=72, freq="M")
    >>> y = pd.Series(20 + np.sin(np.arange(72) * np.pi / 6), months)
    >>> forecaster = Forecaster(window=12, season_length=12, epochs=5).fit(y, fh=[1, 2, 3])
    >>> forecaster.predict().round(1)
    2007-01    20.0
    2007-02    20.5
    2007-03    20.9
    Freq: M, dtype: float64
    """

    _tags = {  # noqa: RUF012 - as sktime has them
        "y_inner_mtype": "pd.DataFrame",
        "X_inner_mtype": "pd.DataFrame",
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:non_contiguous_X": False,
        "requires-fh-in-fit": False,
        "capability:missing_values": True,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:random_state": True,
        "capability:update": True,
        "capability:categorical_in_X": False,
    }
    _config = {"remember_data": False}  # noqa: RUF012 - as sktime has it; `_past` remembers

    def __init__(
        self,
        window: int = 24,
        hidden_size: int = 16,
        num_layers: int = 1,
        *,
        cell: str = "gru",
        log: bool = False,
        trend: bool = False,
        season_length: float | Sequence[float] | None = None,
        differences: int | Sequence[int] | None = None,
        dropout: float = 0.0,
        epochs: int | None = None,
        samples: int = 1000,
        options: Mapping[str, Any] | None = None,
        fit_options: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ) -> None:
        self.window, self.hidden_size, self.num_layers = window, hidden_size, num_layers
        self.cell, self.log, self.trend, self.season_length = cell, log, trend, season_length
        self.differences, self.dropout, self.epochs, self.samples = differences, dropout, epochs, samples
        self.options, self.fit_options, self.random_state = options, fit_options, random_state
        super().__init__()
        self._y = self._X = None  # sktime fills them where `set_config(remember_data=True)` asks for it

    def _fit(self, y: pd.DataFrame, X: pd.DataFrame | None, fh: Any) -> Forecaster:
        self._past = y, None if X is None else X.loc[y.index]
        self.model_ = models.Forecaster(
            self.window, self.hidden_size, y.shape[1], self.num_layers, cell=self.cell, log=self.log, trend=self.trend,
            season_length=self.season_length, differences=self.differences, dropout=self.dropout,
            known_features=0 if X is None else X.shape[1], rng=self.random_state, **(self.options or {}),
        )  # fmt: skip
        options = {"verbose": False, "epochs": self.epochs, "rng": self.random_state, **(self.fit_options or {})}
        values, known = (None if table is None else table.to_numpy() for table in self._past)
        self.model_.fit(values, known=known, **options)
        return self

    def _update(self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True) -> Forecaster:
        values, known = self._past
        values = _joined(values, y)
        if known is not None and X is not None:
            known = _joined(known, X).loc[values.index]
        if update_params:
            return self._fit(values, known, None)
        self._past = values, known
        return self

    def _predict(self, fh: Any, X: pd.DataFrame | None) -> pd.DataFrame:
        steps, known = self._ahead(fh, X)
        found = self.model_.predict(self._past[0].to_numpy(), steps[-1], known=known)
        found = found[steps - 1].astype(np.float64)
        return pd.DataFrame(found, fh.to_absolute_index(self.cutoff), self._past[0].columns)

    def _predict_quantiles(self, fh: Any, X: pd.DataFrame | None, alpha: list[float]) -> pd.DataFrame:
        steps, known = self._ahead(fh, X)
        found = self.model_.forecast(
            self._past[0].to_numpy(), steps[-1], known=known, samples=self.samples, quantiles=alpha,
            rng=self.random_state,
        ).quantiles  # fmt: skip
        names = self._get_varnames()
        values = [found[level][steps - 1, i] for i in range(len(names)) for level in alpha]
        columns = pd.MultiIndex.from_product([names, alpha])
        return pd.DataFrame(np.stack(values, axis=1).astype(np.float64), fh.to_absolute_index(self.cutoff), columns)

    def _ahead(self, fh: Any, X: pd.DataFrame | None) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
        """The steps to forecast, from 1, and the covariates of the past and of all steps up to the last."""
        steps = fh.to_relative(self.cutoff).to_numpy().astype(np.int64)
        known = self._past[1]
        if known is None or X is None:
            return steps, None
        ahead = ForecastingHorizon(range(1, steps[-1] + 1), is_relative=True).to_absolute_index(self.cutoff)
        missing = ahead.difference(X.index)
        if len(missing):
            raise ValueError(
                f"Forecaster.predict: X has no row for {missing[0]}, expected one for each step up to {ahead[-1]}"
            )
        return steps, pd.concat([known, X.loc[ahead]]).to_numpy()

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters with which sktime's tests make forecasters."""
        return [
            {"window": 4, "samples": 50, **_FEW},
            {"window": 3, "samples": 50, "cell": "lstm", "trend": True, "options": {"pooling": "mean"}, **_FEW},
        ]


class SequenceClassifier(BaseClassifier):
    """`gpurnn.SequenceClassifier` as an sktime classifier of series of one or several variables, of any lengths.

    Parameters
    ----------
    hidden_size, num_layers, cell, bidirectional, pooling, dropout
        As in `gpurnn.SequenceClassifier`.
    epochs : int, optional
        None means until the loss on a tenth of the examples no longer falls.
    options : dict, optional
        Further options of `gpurnn.SequenceClassifier`, by name.
    fit_options : dict, optional
        Further options of its ``fit``, such as ``lr``, by name.
    random_state : int
        Seeds the parameters, the order of the examples and dropout.

    Attributes
    ----------
    model_ : gpurnn.SequenceClassifier
        After ``fit``.

    Raises
    ------
    ValueError, TypeError, FloatingPointError
        In ``fit`` and ``predict``, as `gpurnn.SequenceClassifier`.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.sktime import SequenceClassifier
    >>> X = np.random.default_rng(0).normal(size=(200, 1, 10))  # examples, variables, steps
    >>> y = np.where(X.sum(axis=(1, 2)) > 0, "up", "down")
    >>> classifier = SequenceClassifier(hidden_size=8, epochs=20, fit_options={"lr": 0.02}).fit(X, y)
    >>> bool((classifier.predict(X) == y).mean() > 0.9)
    True
    """

    _tags = {  # noqa: RUF012 - as sktime has them
        "X_inner_mtype": "df-list",
        "y_inner_mtype": "numpy1D",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": False,
        "capability:predict_proba": True,
        "capability:random_state": True,
    }

    def __init__(
        self,
        hidden_size: int = 32,
        num_layers: int = 1,
        *,
        cell: str = "gru",
        bidirectional: bool = True,
        pooling: str = "mean",
        dropout: float = 0.0,
        epochs: int | None = None,
        options: Mapping[str, Any] | None = None,
        fit_options: Mapping[str, Any] | None = None,
        random_state: int = 0,
    ) -> None:
        self.hidden_size, self.num_layers, self.cell, self.bidirectional = hidden_size, num_layers, cell, bidirectional
        self.pooling, self.dropout, self.epochs = pooling, dropout, epochs
        self.options, self.fit_options, self.random_state = options, fit_options, random_state
        super().__init__()

    def _fit(self, X: Any, y: NDArray[Any]) -> SequenceClassifier:
        self.model_ = models.SequenceClassifier(
            hidden_size=self.hidden_size, num_layers=self.num_layers, cell=self.cell, bidirectional=self.bidirectional,
            pooling=self.pooling, dropout=self.dropout, rng=self.random_state, **(self.options or {}),
        )  # fmt: skip
        options = {"verbose": False, "epochs": self.epochs, "rng": self.random_state, **(self.fit_options or {})}
        self.model_.fit(_examples(X), y, **options)
        return self

    def _predict(self, X: Any) -> NDArray[Any]:
        found: NDArray[Any] = self.model_.predict(_examples(X))
        return found

    def _predict_proba(self, X: Any) -> NDArray[Any]:
        found: NDArray[Any] = self.model_.predict_proba(_examples(X))
        return found

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters with which sktime's tests make classifiers."""
        return [_FEW, {"cell": "lstm", "pooling": "last", "num_layers": 2, **_FEW}]


def _joined(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The rows of both tables in order; where both have a time, the new row."""
    both = pd.concat([old, new])
    return both[~both.index.duplicated(keep="last")].sort_index()


def _examples(X: Any) -> list[NDArray[Any]]:
    return [table.to_numpy() for table in X]
