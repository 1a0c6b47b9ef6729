"""Containers of examples: lists, tuples and arrays of objects are accepted; those without an order are rejected."""

from __future__ import annotations

import numpy as np
import pytest
from tolerance import arrays_of, assert_same

import gpurnn
from gpurnn import models
from gpurnn.training import PaddedBatches, pad

TOKENS = [np.array([3, 4, 5]), np.array([5]), np.array([4, 3])]
VALUES = [np.random.default_rng(n).standard_normal((n, 2)).astype("float32") for n in (4, 1, 3)]
SERIES = [np.sin(np.arange(n, dtype="float32")) for n in (9, 12, 10)]
CLASSES = [1, 0, 1]
TEXTS = ["a b", "b", "a a"]


def parameters(model):
    return list(model.params.values())


def classifier():
    model = models.SequenceClassifier(2, 3, 2)
    model.params["output.bias"][...] = 0.1, -0.1  # as if fitted
    return model


def encoder_decoder():
    return models.EncoderDecoder(6, 6, 3, 4)


def language_model():
    return models.LanguageModel(gpurnn.WordVocabulary.from_text(" ".join(TEXTS)), 3, 4)


def forecaster():
    model = models.Forecaster(2, 3)
    model.fit(SERIES, steps=1)
    return model


def generator():
    return models.SequenceGenerator(3, 4, 6)


CALLS = {
    "classifier inputs": ("X", VALUES, lambda v: classifier().predict_proba(v)),
    "classifier fit": ("y", CLASSES, lambda v: parameters(classifier().fit(VALUES, v, steps=1))),
    "classifier score": ("y", CLASSES, lambda v: np.array(classifier().score(VALUES, v))),
    "generator fit": (
        "y", TOKENS, lambda v: parameters(generator().fit(np.eye(3, dtype="float32"), v, steps=1)),
    ),
    "encoder-decoder predict": ("sources", TOKENS, lambda v: encoder_decoder().predict(v, max_length=3)),
    "encoder-decoder fit": ("y", TOKENS, lambda v: parameters(encoder_decoder().fit(TOKENS, v, steps=1))),
    "language model predict": ("texts", TEXTS, lambda v: language_model().predict(v)),
    "language model fit": (
        "X", ["a b a", "b b"], lambda v: parameters(language_model().fit(v, steps=1, batch_size=2)),
    ),
    "translator predict": (
        "sources", TEXTS,
        lambda v: np.array(models.Translator.from_texts(TEXTS, TEXTS, 3, 4).predict(v, max_length=3)),
    ),
    "translator": ("targets", TEXTS, lambda v: list(models.Translator.from_texts(TEXTS, v, 3, 4).params.values())),
    "forecaster predict": ("inputs", SERIES, lambda v: forecaster().predict(v)),
    "forecaster fit": ("X", SERIES, lambda v: parameters(models.Forecaster(2, 3).fit(v, steps=1))),
    "pad": ("arrays", VALUES, pad),
    "padded batches": ("sequences", TOKENS[::2], lambda v: PaddedBatches(v, 2, shuffle=False).batch(0, 0).inputs),
    "targets of batches": (
        "targets", TOKENS,
        lambda v: PaddedBatches(VALUES, 3, v, own_lengths=True, shuffle=False).batch(0, 0).targets,
    ),
}  # fmt: skip
each_call = pytest.mark.parametrize("kind", CALLS)


def of_objects(values) -> np.ndarray:
    held = np.empty(len(values), object)
    held[:] = values
    return held


class Sized:
    """Mimics `PaddedBatches`: it has a length but no entries."""

    def __len__(self):
        return 2


class Series:
    """Mimics a column of numbers: it has a dtype and a length, but is not an array."""

    __module__ = "pandas.core.series"
    dtype, ndim = np.dtype("int64"), 1

    def __len__(self):
        return 3

    def __iter__(self):
        return iter((0, 1, 0))

    def to_numpy(self):
        return np.array([0, 1, 0])


class DataFrame:
    """Mimics a table: iterating over it gives the names of its columns."""

    __module__ = "pandas.core.frame"
    ndim, shape = 2, (3, 2)

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(("a", "b"))

    def to_numpy(self):
        return np.zeros((3, 2))


@each_call
@pytest.mark.parametrize("held", [tuple, of_objects, lambda values: dict(enumerate(values)).values()])
def test_a_sequence_of_any_kind_is_as_good_as_a_list(kind, held):
    _, values, call = CALLS[kind]
    for found, expected in zip(arrays_of(call(held(values))), arrays_of(call(values)), strict=True):
        assert_same(found, expected)


@each_call
@pytest.mark.parametrize(
    "held",
    [
        lambda v: dict(enumerate(v)), lambda v: set(range(len(v))), lambda v: iter(v), lambda v: b"abc", lambda v: 3,
        lambda v: Sized(),
        lambda v: np.array(None, object),
    ],
    ids=["dict", "set", "iterator", "bytes", "int", "data", "array without axes"],
)  # fmt: skip
def test_what_holds_no_examples_in_an_order_is_rejected(kind, held):
    name, values, call = CALLS[kind]
    with pytest.raises(TypeError, match=rf"^\w+(\.\w+)?: {name} is (a|an)\b.*, expected a"):
        call(held(values))


@each_call
@pytest.mark.parametrize("table", [Series, DataFrame])
def test_tables_are_to_be_made_arrays(kind, table):
    name, _, call = CALLS[kind]
    if kind in ("classifier fit", "classifier score"):
        if table is DataFrame:
            with pytest.raises(TypeError, match=r"y is a pandas.*, expected one column"):
                call(table())
        else:
            call(table())  # a column of labels is a usual form
        return
    if kind.startswith("forecaster"):
        if table is DataFrame:
            with pytest.raises(
                ValueError, match=r"has shape \(3, 2\), which may be one series of 2 features or 3 series"
            ):
                call(table())
        else:
            call(table())
        return
    with pytest.raises(TypeError, match=rf"^\w+(\.\w+)?: {name} is a pandas.*{name}\.to_numpy\(\)$"):
        call(table())


def test_classes_as_numbers_of_any_size_and_kind():
    model = classifier()
    assert model.score(VALUES, [0, 1, 0]) == model.score(VALUES, np.array([0, 1, 0], object))
    for number in (2, -1, 2**70, np.uint64(2**64 - 1)):
        with pytest.raises(ValueError, match="fit: y has 3 classes, expected at most classes = 2"):
            model.fit(VALUES, [0, number, 1], steps=1)
        assert classifier().fit(VALUES, [0, number, 0], steps=1).classes_.tolist() == sorted([0, int(number)])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_not_learnt_from(wrong):
    bad, target = VALUES[1] * wrong, [np.zeros(1, "float32"), np.full(1, wrong, "float32"), np.ones(1, "float32")]
    fine, regressor = [np.ones(1, "float32")] * 3, models.SequenceRegressor(2, 3, 1)
    x, sequences = np.eye(3, dtype="float32"), [np.ones((2, 4), "float32")] * 3
    values = models.SequenceGenerator(3, 4, 4, output_activation="identity")
    for call, name in (
        (lambda: classifier().fit([VALUES[0], bad], [0, 1], steps=1), r"X\[1\]"),
        (lambda: regressor.fit(VALUES, target, steps=1), "y"),
        (
            lambda: regressor.fit(VALUES, fine, steps=1, validation=(VALUES, target)),
            "validation's y",
        ),
        (lambda: values.fit(x * wrong, sequences, steps=1), "X"),
        (lambda: values.fit(x, [*sequences[:2], sequences[2] * wrong], steps=1), r"y\[2\]"),
    ):
        with np.errstate(invalid="ignore"), pytest.raises((ValueError, TypeError), match=rf"fit: {name} "):
            call()


def test_a_list_of_numbers_may_hold_one_that_is_no_float():
    with pytest.raises(ValueError, match=r"predict: inputs\[2\] is beyond the range of float64, expected finite"):
        forecaster().predict([1, 2, 10**400])
