"""
Hidden states over time
=======================

The states of a trained language model's units while it reads. Each row is a unit, each column a character.
"""

import numpy as np

import gpurnn
from gpurnn import analysis
from gpurnn.analysis import plots

text = "the quick brown fox jumps over the lazy dog. " * 200
vocabulary = gpurnn.CharVocabulary.from_text(text)
model = gpurnn.LanguageModel(vocabulary, embedding_size=16, hidden_size=32)
data = gpurnn.TokenStream(np.array(vocabulary.encode(text)), batch_size=8, steps=45)
gpurnn.Trainer(model, data, gpurnn.Adam(0.01), steps=150, progress=False).train()

tokens = np.array(vocabulary.encode(text[:90]))[:, None]
values = analysis.gates(model.recurrent, model.embedding(tokens))

axes = plots.activations({"h": values["h"]})
