"""Forecast: sunspot numbers, a year ahead and ten. `python benchmarks/examples/forecast.py [PICTURE]`."""

import sys
from pathlib import Path

import numpy as np

import gpurnn

with np.load(Path(__file__).parents[1] / "data" / "sunspots.npz") as archive:
    series, first = archive["sunspots"].astype(np.float32), int(archive["first_year"])
known = 1979 - first  # 1700 to 1978

model = gpurnn.Forecaster(12, 8, cell="gru", dropout=0.1)
print(model)
model.fit(series[:known], epochs=100, batch_size=64, optimizer=gpurnn.Adam(0.01))

test = model.backtest(series[: known + 30], start=known, horizon=1)
print(f"a year ahead, 1979 to 2008: mean absolute error {test.mae:.1f}, {test.coverage:.0%} in the 90% interval")
print(f"the year before as the forecast: {test.baselines['naive'].mae:.1f}")

forecast = model.forecast(series[:known], 10, level=0.9, rng=0)
for year, point, lower, upper, actual in zip(
    range(1979, 1989), forecast.point, forecast.lower, forecast.upper, series[known:], strict=False
):
    print(f"{year}: {point:5.1f} ({lower:5.1f} to {upper:5.1f}), it was {actual:5.1f}")
if len(sys.argv) > 1:
    actual = series[known : known + 10]
    gpurnn.plots.forecast(series[known - 60 : known], forecast, sys.argv[1], actual=actual, start=1979 - 60)
