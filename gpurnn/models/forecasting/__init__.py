"""The forecaster of time series: nonlinear autoregression, with prediction intervals and a backtest."""

from .forecaster import Backtest as Backtest
from .forecaster import Forecast as Forecast
from .forecaster import Forecaster as Forecaster
