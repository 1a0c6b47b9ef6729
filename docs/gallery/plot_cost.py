"""
Cost of a sequence
==================

Arithmetic and memory of an LSTM against the length of a sequence: of a forward pass, of full backpropagation through
time, and of backpropagation truncated to 64 steps.
"""

import gpurnn
from gpurnn.analysis import plots

axes = plots.cost(gpurnn.LSTM(64, 256), 16)
