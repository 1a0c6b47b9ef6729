"""Forecasts of time series: the model, its results and the methods that it is compared with."""

from .forecaster import Forecaster as Forecaster
from .results import Backtest as Backtest
from .results import Forecast as Forecast
