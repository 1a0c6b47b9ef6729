"""
Cost of a sequence
==================

Arithmetic and memory of an LSTM over the length of a sequence: with full backpropagation through time, truncated, and
checkpointed.
"""

import gpurnn
from gpurnn.analysis import plots

axes = plots.cost(gpurnn.LSTM(64, 256), 16)
