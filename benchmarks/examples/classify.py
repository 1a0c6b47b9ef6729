"""Classify: handwritten digits, read row by row. `python benchmarks/examples/classify.py`."""

from pathlib import Path

import numpy as np

import gpurnn

with np.load(Path(__file__).parents[1] / "data" / "digits.npz") as archive:
    images, labels = archive["images"] / np.float32(16), archive["labels"].astype(np.int64)
# An example is a sequence (T, input_size): 8 rows of 8 pixels.
train, test = slice(0, 1347), slice(1347, None)

model = gpurnn.SequenceClassifier(8, 64, 10, cell="gru", bidirectional=True, pooling="attention", dropout=0.1)
print(model)
model.fit(images[train], labels[train], epochs=15, optimizer=gpurnn.Adam(0.005))

print(f"accuracy on {len(labels[test])} digits by other hands: {model.score(images[test], labels[test]):.3f}")
print("the first ten:", model.predict(images[test][:10]), "expected", labels[test][:10])
