"""
Where a decoder looks
=====================

A translator with attention reads a number digit by digit and writes it in words. The picture shows how much it attends
to each digit while it writes each word.
"""

import numpy as np

import gpurnn
from gpurnn import plots

rng = np.random.default_rng(0)
digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
numbers = [str(n) for n in rng.integers(0, 100_000, 600)]
words = [" ".join(digits[int(digit)] for digit in number) for number in numbers]

model = gpurnn.Translator.from_texts(numbers, words, 12, 32, source_level="char", target_level="word")
model.fit(numbers, words, epochs=12, batch_size=20, optimizer=gpurnn.Adam(0.01), verbose=False)

axes = plots.alignment(*model.alignment("40715"))
