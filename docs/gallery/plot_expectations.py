"""
What a language model expects
=============================

A model has learnt a sentence, and reads one like it. Below each character are the characters that the model expected,
the likeliest at the top. A frame marks the right one.
"""

import numpy as np

import gpurnn
from gpurnn import plots

text = "the quick brown fox jumps over the lazy dog. " * 200
vocabulary = gpurnn.CharVocabulary.from_text(text)
model = gpurnn.LanguageModel(vocabulary, embedding_size=16, hidden_size=32)
data = gpurnn.TokenStream(np.array(vocabulary.encode(text)), batch_size=8, steps=45)
gpurnn.Trainer(model, data, gpurnn.Adam(0.01), steps=60, progress=False).train()

axes = plots.expectations(model, "the quick brown dog jumps over the lazy fox.", guesses=4)
