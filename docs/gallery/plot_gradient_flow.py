"""
Gradient flow by step
=====================

How strongly the last state depends on each earlier one, in a tanh network with small weights and in an LSTM with open
forget gates.
"""

import numpy as np

import gpurnn
from gpurnn import analysis
from gpurnn.analysis import plots

rng = np.random.default_rng(0)
x = rng.normal(size=(60, 4, 3))


def norms(layer):
    """||ds_T / ds_t||, the mean over the batch."""
    return analysis.product_norms(analysis.jacobians(layer, x)).mean(axis=1)


vanilla = gpurnn.RNN(3, 32, dtype="float64", rng=0)
vanilla.params["weight_hh_l0"][...] *= 0.8
lstm = gpurnn.LSTM(3, 32, dtype="float64", rng=0)
lstm.params["bias_hh_l0"][32:64] = 3

axes = plots.gradient_flow({"tanh, weights times 0.8": norms(vanilla), "LSTM, forget bias 3": norms(lstm)})
axes.set_ylabel("||ds_T / ds_t||")
