"""
Forecast with intervals
=======================

A forecaster learns a series with a trend and a season. It forecasts the values to come, with intervals.
"""

import numpy as np

import gpurnn
from gpurnn import plots

rng = np.random.default_rng(0)
t = np.arange(300)
series = 0.02 * t + 3 * np.sin(2 * np.pi * t / 12) + rng.normal(size=300) / 2

model = gpurnn.Forecaster(window=24, hidden_size=16, trend=True, season_length=12)
model.fit(series[:250], verbose=False)
forecast = model.forecast(series[:250], 50, level=0.9, rng=0)

axes = plots.forecast(series[180:250], forecast, actual=series[250:], start=180)
