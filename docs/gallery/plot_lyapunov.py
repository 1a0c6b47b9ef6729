"""
Lyapunov spectrum
=================

A random tanh network with gain 2. Mean-field theory predicts chaos above gain 1: the largest exponent is positive.
"""

import numpy as np

import gpurnn
from gpurnn import analysis
from gpurnn.analysis import plots

rng = np.random.default_rng(0)
layer = gpurnn.RNN(1, 60, dtype="float64", rng=0)
layer.params["weight_hh_l0"][...] = 2 * rng.normal(size=(60, 60)) / np.sqrt(60)

spectrum = analysis.lyapunov_spectrum(layer, steps=800)
print(spectrum.verdict)

axes = plots.lyapunov_spectrum(spectrum)
