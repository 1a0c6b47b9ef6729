"""Translate: numbers into English words. `python benchmarks/examples/translate.py [PICTURE]`."""

import sys

import numpy as np
from num2words import num2words

import gpurnn

rng = np.random.default_rng(0)
numbers = rng.choice(100_000, 3_000, replace=False)
digits = [str(n) for n in numbers]
words = [num2words(int(n)).replace("-", " ").replace(",", "") for n in numbers]
new = slice(0, 200)
train = slice(200, None)

model = gpurnn.Translator.from_texts(digits, words, 24, 64, source_level="char", target_level="word")
print(model)
model.fit(digits[train], words[train], epochs=8, optimizer=gpurnn.Adam(0.005))

found = model.predict(digits[new], beam_size=3)
right = np.mean([a == b for a, b in zip(found, words[new], strict=True)])
print(f"of 200 numbers it had not seen {right:.1%} are right; BLEU {model.bleu(digits[new], words[new]):.1f}")
print(digits[0], "->", found[0])
if len(sys.argv) > 1:
    gpurnn.plots.alignment(*model.alignment(digits[0]), sys.argv[1])
