"""Columns of Hugging Face data sets feed `fit`, just as lists of the same arrays do."""

from __future__ import annotations

import numpy as np
import pytest

import gpurnn

datasets = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(2, 6, 24).tolist()
SIGNALS = [RNG.normal(size=(length, 2)).astype("float32") for length in LENGTHS]
WORDS = [RNG.integers(0, 5, length) for length in LENGTHS]
COLUMNS = {
    "signal": SIGNALS,
    "curve": [signal[:, 0] for signal in SIGNALS],
    "square": [RNG.normal(size=(4, 2)).astype("float32") for _ in LENGTHS],
    "words": WORDS,
    "kind": ["up" if s[:, 0].sum() > 0 else "down" for s in SIGNALS],
    "tags": [np.where(s[:, 0] > 0, "above", "below").tolist() for s in SIGNALS],
    "numbers": [np.where(s[:, 0] > 0, 1, 0) for s in SIGNALS],
    "value": [float(s[:, 0].mean()) for s in SIGNALS],
    "pair": [s.mean(axis=0) for s in SIGNALS],
}
"""The columns of the data sets: ragged and rectangular sequences, tokens, labels as words and numbers, values."""


@pytest.fixture(scope="module")
def table():
    return datasets.Dataset.from_dict({name: [np.asarray(v).tolist() for v in c] for name, c in COLUMNS.items()})


@pytest.mark.parametrize(
    ("kind", "x", "y", "options"),
    [
        ("SequenceClassifier", "signal", "kind", {}),
        ("SequenceClassifier", "square", "kind", {}),
        ("SequenceClassifier", "curve", "kind", {}),
        ("SequenceClassifier", "words", "kind", {"num_embeddings": 5, "input_size": 3}),
        ("SequenceTagger", "signal", "tags", {}),
        ("SequenceTagger", "signal", "numbers", {}),
        ("SequenceRegressor", "signal", "value", {}),
        ("SequenceRegressor", "signal", "pair", {}),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["column", "slice"])
def test_a_column_is_the_list_of_its_entries(table, kind, x, y, options, whole):
    table = table.with_format("numpy")
    columns = table[:] if whole else table

    def fitted(X, y):
        return getattr(gpurnn, kind)(hidden_size=4, epochs=2, verbose=False, **options).fit(X, y)

    targets = COLUMNS[y]
    if kind == "SequenceRegressor":  # the library's numbers may be float32
        targets = np.asarray(targets, np.asarray(list(columns[y])).dtype)
    model, expected = fitted(columns[x], columns[y]), fitted(COLUMNS[x], targets)
    for name, p in expected.params.items():
        np.testing.assert_array_equal(model.params[name], p, err_msg=name)
    found = model.predict(columns[x])
    for one, other in zip(found, expected.predict(COLUMNS[x]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert model.score(columns[x], columns[y]) == expected.score(COLUMNS[x], targets)


def test_parts_of_a_data_set_are_fit_and_validated_on(table):
    parts = table.with_format("numpy").train_test_split(0.25, seed=0)
    train, test = parts["train"], parts["test"]
    model = gpurnn.SequenceClassifier(hidden_size=4, verbose=False)
    model.fit(train["signal"], train["kind"], epochs=2, validation=(test["signal"], test["kind"]))
    assert "validation_loss" in model.trainer_.history[-1]
    assert model.predict(test["signal"]).shape == (6,)


def test_texts_of_a_data_set_train_a_language_model():
    texts = datasets.Dataset.from_dict({"text": ["abab", "ab", "ababab"]})
    model = gpurnn.LanguageModel(gpurnn.CharVocabulary("?ab"), 4, 8)
    model.fit(texts["text"], epochs=2, verbose=False)
    assert model.predict(texts["text"]).shape == (3, 3)
