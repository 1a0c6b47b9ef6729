"""
Cost of a sequence
==================

Arithmetic and memory of an LSTM as functions of the sequence length: for a forward pass, for full backpropagation
through time, and for backpropagation truncated to 64 steps.
"""

import gpurnn
from gpurnn.analysis import plots

axes = plots.cost(gpurnn.LSTM(64, 256), 16)
