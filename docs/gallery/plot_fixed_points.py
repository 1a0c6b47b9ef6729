"""
Fixed points and flow
=====================

A network of two units with two stable states and a saddle between them: one bit of memory. The grey lines are the flow,
from twelve starts.
"""

import numpy as np

import gpurnn
from gpurnn import analysis
from gpurnn.analysis import plots

layer = gpurnn.RNN(1, 2, dtype="float64", rng=0)
layer.params["weight_hh_l0"][...] = [[1.8, 0.3], [0.3, 0.6]]
layer.params["bias_ih_l0"][...] = layer.params["bias_hh_l0"][...] = 0

points = analysis.fixed_points(layer, starts=40)
starts = np.random.default_rng(0).normal(size=(12, 2))
states, _ = layer(np.zeros((30, 12, 1)), state=starts[None])

axes = plots.fixed_points(points, states=states)
