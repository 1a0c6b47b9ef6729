"""
Loss curves of several runs
===========================

Three sizes of a network learn the same task. Plain lines are the loss in training, lines with markers the loss in
validation.
"""

import numpy as np

import gpurnn
from gpurnn import plots

rng = np.random.default_rng(0)
sequences = [rng.normal(size=(length, 2)) for length in rng.integers(3, 12, 400)]
words = ["first" if s[:, 0].sum() > s[:, 1].sum() else "second" for s in sequences]

runs = {}
for hidden_size in (2, 8, 32):
    model = gpurnn.SequenceClassifier(hidden_size=hidden_size, verbose=False)
    model.fit(sequences, words, epochs=20, lr=0.01, validation_split=0.2, log_interval=2)
    runs[f"{hidden_size} units"] = model.trainer_.history

axes = plots.loss_curve(runs)
