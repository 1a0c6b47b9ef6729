"""Translate: numbers into English words. `python benchmarks/examples/translate.py [PICTURE]`."""

import sys

import numpy as np

import gpurnn

SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """A number below a million, as it is read: "two thousand and seven"."""
    if number < 20:
        return SMALL[number]
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if number >= unit:
            rest = number % unit
            link = " and " if 0 < rest < 100 else " "
            return f"{in_words(number // unit)} {name}" + (f"{link}{in_words(rest)}" if rest else "")
    return TENS[number // 10] + (f" {SMALL[number % 10]}" if number % 10 else "")


rng = np.random.default_rng(0)
numbers = rng.choice(100_000, 3_000, replace=False)
digits = [str(n) for n in numbers]
words = [in_words(int(n)) for n in numbers]
new = slice(0, 200)
train = slice(200, None)

model = gpurnn.Translator.from_texts(digits, words, 24, 64, source_level="char", target_level="word")
print(model)
model.fit(digits[train], words[train], epochs=8, optimizer=gpurnn.Adam(0.005))

found = model.predict(digits[new], beam_size=3)
right = np.mean([a == b for a, b in zip(found, words[new], strict=True)])
print(f"of 200 numbers it had not seen {right:.1%} are right")
print(digits[0], "->", found[0])
if len(sys.argv) > 1:
    gpurnn.plots.alignment(*model.alignment(digits[0]), sys.argv[1])
