"""fit, predict and score of models accept examples, labels, targets and weights in the usual forms."""

import numpy as np
import pytest

import gpurnn
from gpurnn import models

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6, 2)).astype("float32")
SIGN = X[:, :, 0].sum(axis=1) > 0
FAST = {"epochs": 30, "lr": 0.02}


def classifier(classes=2):
    return models.SequenceClassifier(2, 8, classes, pooling="mean")


@pytest.mark.parametrize(
    "labels",
    [("no", "yes"), (-1, 1), (1, 2), (False, True), ((0, "a"), (0, "b")), (0.5, 1.5)],
    ids=["words", "-1 and 1", "1 and 2", "bools", "pairs", "floats"],
)
def test_labels_of_any_kind(labels, tmp_path):
    y = [labels[int(one)] for one in SIGN]
    model = classifier().fit(X, y, **FAST)
    assert model.classes_.tolist() == list(labels)
    assert model.score(X, y) > 0.9
    assert set(model.predict(X).tolist()) == set(labels)
    of_first = model.predict(X[:1]).tolist()[0]
    assert of_first == model.classes_[model.predict_proba(X[:1])[0].argmax()]
    with pytest.raises(ValueError, match=r"score: y\[1\] is 'c', which fit did not see, expected one of"):
        model.score(X[:2], [labels[0], "c"])
    if isinstance(labels[0], tuple):
        with pytest.raises(TypeError, match=r"save: the label \(0, 'a'\) is a tuple of 2, expected labels that a file"):
            model.save(tmp_path / "model.safetensors")
    else:
        model.save(tmp_path / "model.safetensors")
        again = models.load(tmp_path / "model.safetensors")
        assert again.predict(X).tolist() == model.predict(X).tolist()
        assert again.classes_.dtype == model.classes_.dtype


def test_numbers_keep_classes_that_no_label_has():
    model = classifier(4).fit(X, SIGN.astype(int), steps=1)
    assert model.classes_.tolist() == [0, 1, 2, 3]
    assert model.predict_proba(X[:2]).shape == (2, 4)


def test_inputs_of_any_dtype_and_container_learn_the_same():
    whole = (100 * X).round().astype("int16")
    expected = classifier().fit(whole.astype("float32"), SIGN, steps=3).params
    for held in (whole, whole.tolist(), list(whole), whole.astype("float64"), whole.astype("float16")):
        found = classifier().fit(held, SIGN, steps=3).params
        for name, p in expected.items():
            np.testing.assert_array_equal(found[name], p, strict=True)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_table_with_a_group_for_each_example(library):
    table = pytest.importorskip(library).DataFrame
    n, steps = len(X), X.shape[1]
    columns = {
        "a": X[:, :, 0].reshape(-1), "who": np.repeat(np.arange(n) + 100, steps), "b": X[:, :, 1].reshape(-1),
        "sign": np.repeat(np.where(SIGN, "plus", "minus"), steps),
    }  # fmt: skip
    frame = table(columns)
    model = classifier().fit(frame, "sign", group="who", **FAST)
    assert model.classes_.tolist() == ["minus", "plus"]
    assert model.score(frame, "sign", group="who") > 0.9
    plain = classifier().fit(X, np.where(SIGN, "plus", "minus"), **FAST)
    np.testing.assert_array_equal(model.predict_proba(frame, group="who"), plain.predict_proba(X))
    # predict needs only the feature columns, by name and in any order.
    fewer = table({name: columns[name] for name in ("who", "b", "a")})
    np.testing.assert_array_equal(model.predict(fewer, group="who"), plain.predict(X))
    with pytest.raises(ValueError, match="predict: X has no column 'b', expected a, b"):
        model.predict(table({name: columns[name] for name in ("who", "a")}), group="who")
    mixed = dict(columns, sign=np.tile(["plus", "minus"], n * steps // 2))
    with pytest.raises(ValueError, match="fit: X of who 100 has the targets 'plus' and 'minus', expected one"):
        classifier().fit(table(mixed), "sign", group="who", steps=1)
    with pytest.raises(TypeError, match="fit: y names a column of X, expected group too"):
        classifier().fit(frame, "sign", steps=1)


def test_a_tagger_of_a_table():
    table = pytest.importorskip("pandas").DataFrame
    frame = table({"who": [1, 1, 1, 2], "x": [1.0, -1.0, 1.0, -1.0], "tag": ["up", "down", "up", "down"]})
    model = models.SequenceTagger(1, 4, 2).fit(frame, "tag", group="who", epochs=60, lr=0.05)
    assert [tags.tolist() for tags in model.predict(frame, group="who")] == [["up", "down", "up"], ["down"]]
    assert model.score(frame, "tag", group="who") == 1


def test_targets_are_learnt_in_their_own_units(tmp_path):
    y = 5000 + 300 * X[:, :, 0].mean(axis=1)
    model = models.SequenceRegressor(2, 8, 1, pooling="mean").fit(X, y, epochs=60, lr=0.02)
    assert model.score(X, y) > 0.9
    assert abs(model.predict(X) - y).mean() < 50
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(models.load(tmp_path / "model.safetensors").predict(X), model.predict(X))
    raw = models.SequenceRegressor(2, 8, 1, pooling="mean", standardize=False).fit(X, y, steps=1)
    assert abs(raw.predict(X)).max() < 100
    bounded = models.SequenceRegressor(2, 8, 1, output_activation="sigmoid").fit(X, SIGN, steps=1)
    assert 0 < bounded.predict(X).min() < bounded.predict(X).max() < 1
    assert models.SequenceRegressor(2, 8, 1).fit(X, y, steps=1).score(X, np.full(60, 7.0)) == 0


def test_two_outputs_have_a_scale_each():
    y = np.stack([1e4 * X[:, :, 0].mean(axis=1), 1e-4 * X[:, :, 1].mean(axis=1)], axis=1)
    model = models.SequenceRegressor(2, 12, 2, pooling="mean").fit(X, y, epochs=60, lr=0.02)
    assert model.score(X, y) > 0.8


def test_weights_of_zero_leave_examples_out():
    kept = np.arange(60) < 40
    wrong = np.where(kept, SIGN, ~SIGN)
    weighed = classifier().fit(X, wrong, sample_weight=kept, steps=5, batch_size=60)
    alone = classifier().fit(X[:40], SIGN[:40], steps=5, batch_size=60)
    for name, p in alone.params.items():
        np.testing.assert_allclose(weighed.params[name], p, atol=2e-6)
    assert weighed.score(X, wrong, sample_weight=kept) == weighed.score(X[:40], SIGN[:40])


def test_balanced_classes():
    few = np.r_[np.flatnonzero(SIGN)[:3], np.flatnonzero(~SIGN)]
    x, y = X[few], SIGN[few]
    weights = np.where(y, len(y) / (2 * 3), len(y) / (2 * (len(y) - 3)))
    options = {"steps": 5, "batch_size": len(y)}
    balanced = classifier().fit(x, y, class_weight="balanced", **options)
    by_hand = classifier().fit(x, y, sample_weight=weights, **options)
    named = classifier().fit(x, y, class_weight={True: weights[0], False: weights[-1]}, **options)
    for name, p in by_hand.params.items():
        np.testing.assert_allclose(balanced.params[name], p, atol=1e-6)
        np.testing.assert_allclose(named.params[name], p, atol=1e-6)
    with pytest.raises(ValueError, match="fit: class_weight's label 'c' is 'c', which fit did not see"):
        classifier().fit(x, y, class_weight={"c": 1}, steps=1)
    with pytest.raises(ValueError, match="fit: class_weight is 'equal', expected one of 'balanced'"):
        classifier().fit(x, y, class_weight="equal", steps=1)


def test_padding_labels_and_masks_count_nowhere(tmp_path):
    tags = (X[:, :, 0] > 0).astype(int)
    counts = RNG.random(tags.shape) < 0.7
    tagger = models.SequenceTagger(2, 6, 2, dtype="float64")
    start = tagger.state_dict()
    results = []
    for y, options in (
        (np.where(counts, tags, -100), {"padding_label": -100}),
        (np.where(counts, tags, 1 - tags), {"mask": counts}),
    ):
        tagger.load_state_dict(start)
        results.append(tagger.fit(X, y, steps=5, **options).state_dict())
    for name, p in results[0].items():
        np.testing.assert_array_equal(results[1][name], p)
    assert tagger.classes_.tolist() == [0, 1]
    masked = tagger.score(X, np.where(counts, tags, 1 - tags), mask=counts)
    assert masked == (np.stack(tagger.predict(X)) == tags)[counts].mean()
    tagger.load_state_dict(start)
    tagger.fit(X, np.where(counts, tags, -100), steps=5, padding_label=-100)
    tagger.save(tmp_path / "model")
    for model in (tagger, models.load(tmp_path / "model")):
        assert model.score(X, np.where(counts, tags, -100)) == masked
    for model, options, message in (
        (classifier(), {"padding_label": 0}, "padding_label is given, expected None: there is one label for each"),
        (classifier(), {"mask": counts}, "mask is given, expected None: there is one target for each example"),
    ):
        with pytest.raises(TypeError, match=message):
            model.fit(X, SIGN, steps=1, **options)


@pytest.mark.slow
def test_fit_ends_by_itself_and_keeps_the_best_parameters():
    model = classifier()
    assert model.fit(X, SIGN) is model
    trainer = model.trainer_
    losses = [line["validation_loss"] for line in trainer.history if "validation_loss" in line]
    assert trainer.validation.num_examples == 6
    # Epochs have two updates: stop after 400 updates without gain, or after 1,000.
    assert trainer.patience == 200
    assert trainer.total == 1000
    assert classifier().fit(X, SIGN, batch_size=1, callbacks=lambda t: t.stop()).trainer_.patience == 10
    assert gpurnn.training.evaluate(model, trainer.validation) == pytest.approx(min(losses), rel=1e-5)
    again = classifier().fit(X, SIGN)
    for name, p in model.params.items():
        np.testing.assert_array_equal(again.params[name], p)


def test_a_validation_split_is_of_the_size_that_was_asked_for():
    trainer = classifier().fit(X, SIGN, epochs=2, validation_split=0.25).trainer_
    assert (trainer.data.num_examples, trainer.validation.num_examples) == (45, 15)
    assert trainer.patience is None
    assert classifier().fit(X, SIGN, epochs=2, patience=1).trainer_.validation.num_examples == 6
    for share in (0, 1, 2.5):
        with pytest.raises(ValueError, match=r"fit: validation_split is .*, expected a number in"):
            classifier().fit(X, SIGN, epochs=1, validation_split=share)
    with pytest.raises(TypeError, match="validation and validation_split are both given"):
        classifier().fit(X, SIGN, epochs=1, validation_split=0.1, validation=(X, SIGN))


def test_optimizers_by_name():
    assert type(classifier().fit(X, SIGN, steps=1, optimizer="nadam").trainer_.optimizer) is gpurnn.NAdam
    assert classifier().fit(X, SIGN, steps=1, optimizer="sgd", lr=0.5).trainer_.optimizer.lr == 0.5
    assert classifier().fit(X, SIGN, steps=1).trainer_.optimizer.lr == 0.003
    with pytest.raises(ValueError, match="fit: optimizer is 'adamm', expected one of 'adadelta'"):
        classifier().fit(X, SIGN, steps=1, optimizer="adamm")
    with pytest.raises(TypeError, match="fit: lr is given together with an optimizer"):
        classifier().fit(X, SIGN, steps=1, optimizer=gpurnn.SGD(0.1), lr=0.1)


def test_what_a_failed_fit_learnt_is_forgotten():
    model = classifier()
    with pytest.raises(ValueError, match=r"X\[1\] holds NaN"):
        model.fit([X[0], X[1] * np.nan], ["a", "b"], steps=1)
    with pytest.raises(TypeError, match="is not an option"):
        model.fit(X[:2], ["a", "b"], steps=1, stepps=3)
    assert model.fit(X[:2], ["c", "d"], steps=1).classes_.tolist() == ["c", "d"]


# --- data in the usual forms ---


def many(count=12, features=1):
    return np.random.default_rng(0).normal(size=(count, 5, features)).astype("float32")


def test_a_class_without_a_label_is_not_answered():
    model = gpurnn.SequenceClassifier(1, 4, 3)
    message = r"SequenceClassifier.fit: y has 2 classes, 'a', 'b', expected classes = 3, or whole numbers from 0 to 2"
    with pytest.raises(ValueError, match=message):
        model.fit(many(), ["a", "b"] * 6, epochs=1)
    model.fit(many(), [0, 2] * 6, epochs=1)
    assert model.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", [gpurnn.SequenceClassifier, gpurnn.SequenceRegressor])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.0] * 12, "score: weights of targets are all zero, expected one above zero"),
        ([-1.0, 2.0] * 6, "score: sample_weight holds -1.0, expected finite numbers of at least 0"),
        ([np.nan] * 12, "score: sample_weight holds nan, expected finite numbers of at least 0"),
        ([np.inf] * 12, "score: sample_weight holds inf, expected finite numbers of at least 0"),
    ],
)
def test_a_score_of_no_weights_is_none(kind, weights, message):
    y = [0, 1] * 6
    model = kind(1, 4, 2 if kind is gpurnn.SequenceClassifier else 1).fit(many(), y, epochs=1)
    for what in ("score", "fit"):
        with pytest.raises(ValueError, match=message.replace("score", what)):
            getattr(model, what)(many(), y, sample_weight=weights)


@pytest.mark.parametrize(
    ("model", "y", "message"),
    [
        (gpurnn.SequenceRegressor(verbose=False), 3.0, r"y has shape \(\), expected 2 axes \(N, outputs\)"),
        (
            gpurnn.SequenceRegressor(pooling=None, verbose=False),
            [1.0] * 12,
            r"y\[0\] has shape \(\), expected 2 axes \(T, outputs\)",
        ),
        (gpurnn.SequenceTagger(verbose=False), [["-"] * 5] * 12, "y has only padding, expected at least 2 classes"),
    ],
)
def test_targets_that_say_nothing_about_the_outputs(model, y, message):
    options = {"padding_label": "-"} if isinstance(model, gpurnn.SequenceTagger) else {}
    with pytest.raises(ValueError, match=f"{type(model).__name__}.fit: {message}"):
        model.fit(many(), y, epochs=1, **options)


def test_masked_entries_in_lists_are_not_read_as_numbers():
    X, masked = many(), np.ma.masked_array([[7.0]] * 5, mask=[[True], *[[False]] * 4])
    for name, given in (("X\\[0\\]", list(masked)), ("X\\[0\\]", masked)):
        with pytest.raises(ValueError, match=f"fit: {name} has masked entries, expected numbers only"):
            gpurnn.SequenceClassifier(1, 4, 2).fit([given, *X[1:]], [0, 1] * 6, epochs=1)
    values = [np.ma.masked_array([1.0], mask=[True]), *(np.array([1.0]) for _ in X[1:])]
    with pytest.raises(ValueError, match="fit: y has masked entries, expected numbers only"):
        gpurnn.SequenceRegressor(1, 4, 1).fit(X, values, epochs=1)
    with pytest.raises(ValueError, match=r"fit: y\[0\] is None, expected a label"):
        gpurnn.SequenceClassifier(1, 4, 2).fit(X, [np.ma.masked, *[0, 1] * 5, 1], epochs=1)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_labels_in_words_beside_a_table(library):
    frame = pytest.importorskip(library).DataFrame
    wide = frame({f"t{t}": many()[:, t, 0] for t in range(5)})
    words = ["cat", "dog"] * 6
    model = gpurnn.SequenceClassifier(1, 4, 2).fit(wide, words, epochs=1)
    assert model.classes_.tolist() == ["cat", "dog"]
    long = frame({"id": np.repeat(np.arange(6), 2), "x": np.arange(12.0)})
    model = gpurnn.SequenceClassifier(1, 4, 2).fit(long, words[:6], group="id", epochs=1)
    assert model.predict(long, group="id").shape == (6,)


@pytest.mark.parametrize(("library", "missing"), [("pandas", None), ("pandas", np.nan), ("polars", None)])
def test_a_row_without_a_group_is_named(library, missing):
    frame = pytest.importorskip(library).DataFrame
    table = frame({"id": ["a", "a", missing, "b", missing], "x": np.arange(5.0)}, **_LENIENT[library])
    with pytest.raises(ValueError, match=r"fit: X\['id'\] is .* in row 2, expected the group of each row"):
        gpurnn.SequenceClassifier(1, 4, 2).fit(table, [0, 1, 1], group="id", epochs=1)
    numbers = frame({"id": [0.0, 0.0, np.nan], "x": np.arange(3.0)})
    with pytest.raises(ValueError, match=r"fit: X\['id'\] is nan in row 2, expected the group of each row"):
        gpurnn.SequenceClassifier(1, 4, 2).fit(numbers, [0, 1], group="id", epochs=1)


_LENIENT = {"pandas": {}, "polars": {"strict": False}}


def test_a_table_of_another_width_is_named():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"id": [0, 0, 1, 1], "x": np.arange(4.0), "z": np.arange(4.0)})
    with pytest.raises(ValueError, match="fit: X of id 0 has 2 features, expected 1"):
        gpurnn.SequenceClassifier(1, 4, 2).fit(table, [0, 1], group="id", epochs=1)
    numbered = pandas.DataFrame({0: [0, 0, 1, 1], "x": np.arange(4.0), "y": [0, 0, 1, 1]})
    model = gpurnn.SequenceClassifier(1, 4, 2).fit(numbered, "y", group=0, epochs=1)
    assert model.predict(numbered, group=0).shape == (2,)


def test_loading_into_a_model_brings_labels_and_scales(tmp_path):
    X, path = many(), tmp_path / "a.safetensors"
    model = gpurnn.SequenceRegressor(1, 4, 1).fit(X, np.arange(12) * 100 + 5000, epochs=2)
    model.save(path)
    other = gpurnn.SequenceRegressor(1, 4, 1).fit(X, np.arange(12) - 5, epochs=1)
    other.load(path)
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    named = gpurnn.SequenceClassifier(1, 4, 2).fit(X, ["a", "b"] * 6, epochs=1)
    numbered = gpurnn.SequenceClassifier(1, 4, 2).fit(X, [0, 1] * 6, epochs=1)
    named.save(path)
    again = numbered.clone()
    again.load(path)
    np.testing.assert_array_equal(again.predict(X), named.predict(X))
    numbered.save(path)
    named.load(path)
    np.testing.assert_array_equal(named.predict(X), numbered.predict(X))


def test_large_whole_numbers_as_labels_stay_whole():
    model = gpurnn.SequenceClassifier(1, 4, 2).fit(many(), [2**63, 1] * 6, epochs=1)
    assert [type(label) for label in model.classes_.tolist()] == [int, int]


def test_digits_that_the_dtype_of_the_model_rounds_away_are_said():
    y = 1e9 + np.arange(12.0)
    with pytest.warns(
        UserWarning, match=r"fit: y holds numbers about 1e\+09 that differ by 11 at most, of which float32"
    ):
        gpurnn.SequenceRegressor(1, 4, 1, standardize=False).fit(many(), y, epochs=1)
    gpurnn.SequenceRegressor(1, 4, 1, standardize=False, dtype="float64").fit(many(), y, epochs=1)
    gpurnn.SequenceRegressor(1, 4, 1).fit(many(), y, epochs=1)  # they are scaled in float64
    X = np.random.default_rng(0).normal(size=(12, 5, 2)) + np.array([0, 1.7e9])
    with pytest.warns(UserWarning, match=r"fit: X\[0\] holds numbers about 1.7e\+09 that differ by .* at most"):
        gpurnn.SequenceClassifier(2, 4, 2).fit(X[:1], [0], epochs=1)
    gpurnn.SequenceRegressor(2, 4, 1).fit(X - [0, 1.7e9], np.full(12, 1e9), epochs=1)  # constant, or of usual size
    with pytest.raises(ValueError, match=r"y holds 1e\+39, which is beyond the range of float32"):
        gpurnn.SequenceRegressor(2, 4, 1, standardize=False).fit(X - [0, 1.7e9], [1e39] * 12, epochs=1)
