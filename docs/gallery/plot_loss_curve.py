"""
Loss curve
==========

The loss in training and in validation, from the records of a run.
"""

import numpy as np

import gpurnn
from gpurnn import plots

rng = np.random.default_rng(0)
sequences = [rng.normal(size=(length, 2)) for length in rng.integers(3, 12, 400)]
words = ["first" if s[:, 0].sum() > s[:, 1].sum() else "second" for s in sequences]

model = gpurnn.SequenceClassifier(hidden_size=16, verbose=False)
model.fit(sequences, words, epochs=30, lr=0.01, validation_split=0.2, log_interval=1)

axes = plots.loss_curve(model.trainer_.history)
