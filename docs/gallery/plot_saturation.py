"""
Saturated gates
===============

How often each gate of each unit is nearly closed or nearly open. The LSTM's forget gates start open.
"""

import numpy as np

import gpurnn
from gpurnn.analysis import activity, plots

rng = np.random.default_rng(0)
layer = gpurnn.LSTM(8, 48, rng=0)
layer.params["bias_hh_l0"][48:96] = 2
x = 4 * rng.normal(size=(100, 8, 8)).astype("float32")

axes = plots.saturation(activity(layer, x))
