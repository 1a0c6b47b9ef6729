"""
Gradients by layer as training goes on
======================================

`GradientNorms` records the norm of each layer's gradients, step by step.
"""

import numpy as np

import gpurnn
from gpurnn.analysis import GradientNorms, plots

text = "the quick brown fox jumps over the lazy dog. " * 200
vocabulary = gpurnn.CharVocabulary.from_text(text)
model = gpurnn.LanguageModel(vocabulary, embedding_size=16, hidden_size=32, num_layers=2)
data = gpurnn.TokenStream(np.array(vocabulary.encode(text)), batch_size=8, steps=45)

record = GradientNorms()
gpurnn.Trainer(model, data, gpurnn.Adam(0.01), steps=150, on_gradients=record, progress=False).train()

axes = plots.gradient_norms(record)
