"""
Gates as heat maps
==================

The gates of an LSTM with a forget bias of 3, over 60 steps. Open gates are light, closed ones dark.
"""

import numpy as np

import gpurnn
from gpurnn import analysis
from gpurnn.analysis import plots

rng = np.random.default_rng(0)
layer = gpurnn.LSTM(8, 24, rng=0)
layer.params["bias_hh_l0"][24:48] = 3
x = np.repeat(3 * rng.normal(size=(6, 1, 8)), 10, axis=0).astype("float32")

values = analysis.gates(layer, x)

axes = plots.activations({name: values[name] for name in ("i", "f", "g", "o", "c", "h")})
