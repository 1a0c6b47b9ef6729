"""The sequence models in scikit-learn: its own checks, clones, pipelines, cross-validation, searches."""

import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

import gpurnn
from gpurnn import SequenceClassifier, SequenceRegressor, SequenceTagger

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone, is_classifier, is_regressor  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402
from sklearn.utils.validation import check_is_fitted, has_fit_parameter  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6, 2)).astype("float32")
WORDS = np.where(X[:, :, 0].sum(axis=1) > 0, "plus", "minus")
VALUES = X[:, :, 0].mean(axis=1)
UNEQUAL = [x[:n] for x, n in zip(X, RNG.integers(3, 7, 60), strict=True)]
TAGS = [np.where(x[:, 0] > 0, "up", "down") for x in UNEQUAL]
FAST = {"hidden_size": 6, "epochs": 15, "lr": 0.03}

EAGER = "options are checked where they are given"
STEPS = "a row of a 2-D array is a sequence of one feature, of any length"
WORDED = "the error says so in other words, and names the example"
FAILED = {
    "check_dont_overwrite_parameters": "fit makes the layers, which are public",
    "check_do_not_raise_errors_in_init_or_set_params": EAGER,
    "check_n_features_in": STEPS,
    "check_n_features_in_after_fitting": STEPS,
    "check_estimators_empty_data_messages": WORDED,
    "check_complex_data": WORDED,
    "check_dtype_object": WORDED,
    "check_fit2d_predict1d": WORDED,
    "check_requires_y_none": WORDED,
}
ONE_LABEL = "the targets of the check are one for each example, and not one for each step"
OF_STEPS = dict.fromkeys(
    [
        "check_fit_score_takes_y", "check_estimators_overwrite_params", "check_dont_overwrite_parameters",
        "check_estimators_fit_returns_self", "check_readonly_memmap_input", "check_positive_only_tag_during_fit",
        "check_estimators_dtypes", "check_sample_weights_pandas_series", "check_sample_weights_not_an_array",
        "check_sample_weights_list", "check_all_zero_sample_weights_error", "check_sample_weights_shape",
        "check_sample_weights_not_overwritten", "check_sample_weight_equivalence_on_dense_data",
        "check_pipeline_consistency", "check_estimators_nan_inf", "check_estimators_pickle",
        "check_f_contiguous_array_estimator", "check_methods_sample_order_invariance",
        "check_methods_subset_invariance", "check_fit2d_1sample", "check_fit2d_1feature", "check_dict_unchanged",
        "check_fit_idempotent", "check_fit_check_is_fitted",
    ],
    ONE_LABEL,
)  # fmt: skip


def failed(estimator):
    """The checks that fail, by name, with the reasons."""
    if isinstance(estimator, SequenceTagger):
        return {**FAILED, **OF_STEPS}
    if isinstance(estimator, SequenceClassifier):
        return {**FAILED, "check_classifiers_train": STEPS, "check_supervised_y_2d": "a column of labels is no mistake"}
    return FAILED


# In float64 and with all examples in one batch, an example given twice equals one of weight 2 in all checked digits.
OPTIONS = {"hidden_size": 6, "lr": 0.05, "batch_size": 256, "dtype": "float64"}


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the class is not scikit-learn's
    each_check = parametrize_with_checks(
        [
            SequenceClassifier(epochs=5, **OPTIONS),
            SequenceRegressor(epochs=40, **OPTIONS),
            SequenceTagger(epochs=1, **OPTIONS),
        ],
        expected_failed_checks=failed,
        xfail_strict=True,
    )


@pytest.mark.filterwarnings("ignore")
@each_check
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_scikit_learn_is_not_imported():
    code = "import sys, gpurnn, numpy; gpurnn.SequenceClassifier(hidden_size=3).fit(numpy.ones((4, 2)), [0, 1, 0, 1], "
    code += "steps=1).predict(numpy.ones((1, 2))); assert not [n for n in sys.modules if n.startswith('sklearn')]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sizes_are_found_out_by_fit():
    model = SequenceClassifier(**FAST)
    assert re.match(r"SequenceClassifier\(hidden_size=6, .*\)  # fit makes the parameters$", repr(model))
    assert model.fit(X, WORDS) is model
    assert repr(model).startswith("SequenceClassifier(2, 6, 2, standardize_inputs=True, epochs=15, lr=0.03)  # ")
    assert model.classes_.tolist() == ["minus", "plus"]
    assert model.n_features_in_ == 2
    assert model.score(X, WORDS) > 0.9
    assert model.get_params()["classes"] is None
    # Other data of other sizes: training starts again.
    model.fit([x[:, :1] for x in UNEQUAL], np.arange(60) % 3)
    assert (model.n_features_in_, model.classes_.tolist()) == (1, [0, 1, 2])
    values = SequenceRegressor(**FAST).fit(X, np.stack([VALUES, VALUES], axis=1))
    assert values.predict(X).shape == (60, 2)
    known = SequenceClassifier(classes=4, **FAST).fit(X, (WORDS == "plus").astype(int))
    assert known.predict_proba(X).shape == (60, 4)


def test_a_second_fit_starts_anew_only_where_it_found_out_the_sizes():
    once = SequenceClassifier(**FAST).fit(X, WORDS).state_dict()
    twice = SequenceClassifier(**FAST).fit(X, WORDS).fit(X, WORDS).state_dict()
    longer = SequenceClassifier(2, classes=2, **FAST).fit(X, WORDS).fit(X, WORDS).state_dict()
    for name, p in once.items():
        np.testing.assert_array_equal(twice[name], p)
        assert (longer[name] != p).any()


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceTagger, SequenceRegressor])
def test_what_is_called_before_fit_says_what_to_do(kind, tmp_path):
    model = kind(input_size=2, hidden_size=4)
    outputs = "outputs" if kind is SequenceRegressor else "classes"
    message = rf"{kind.__name__}: the model has no parameters before fit, which finds out {outputs}; call fit, or give "
    calls = [
        lambda: model(X), lambda: model.vjp(X), lambda: model.loss(X, WORDS), lambda: model.params,
        model.state_dict, lambda: model.num_parameters, lambda: model.save(tmp_path / "m"), lambda: model.to(np),
        lambda: model.recurrent, lambda: model.load_state_dict({}), lambda: model.n_features_in_,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(NotFittedError, match=message):
            call()
    for call in (lambda: model.predict(X), lambda: model.score(X, WORDS), lambda: check_is_fitted(model)):
        with pytest.raises(NotFittedError, match=r"never fitted|not fitted yet"):
            call()
    batches = gpurnn.PaddedBatches(list(X), 4, list(np.zeros(60, int)), per_sequence=True)
    with pytest.raises(
        TypeError, match=rf"fit: X holds batches, expected examples, from which fit finds out {outputs}"
    ):
        model.fit(batches, steps=1)
    assert not hasattr(model, "classes_")
    assert not hasattr(model, "feature_names_in_")
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model) == repr(model.clone()) == repr(clone(model))
    with pytest.raises(TypeError, match=rf"{kind.__name__}: sizes is not an option, expected one of activation, "):
        kind(sizes=3)
    for options, name in (
        ({"hidden_size": 0}, "hidden_size is 0"), ({"bidirectional": "no"}, "bidirectional is 'no'"),
        ({"leak": 0.5}, "leak is not an option of the cell 'gru'"), ({"dtype": "int32"}, "dtype is 'int32'"),
        ({"random_state": "x"}, "random_state is 'x'"), ({"lr": -1}, "lr is -1"), ({"optimizer": "adm"}, "optimizer"),
        ({"num_embeddings": 3, "input_size": None}, "input_size is None, expected the width of the embedding"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=name):
            kind(**options)


def test_parameters_of_the_constructor_can_be_read_and_changed():
    model = SequenceClassifier(hidden_size=np.int64(5), lr=0.1, rng=np.random.default_rng(3))
    params = model.get_params()
    assert list(params)[:4] == ["input_size", "hidden_size", "classes", "num_layers"]
    again = clone(model)
    assert again.get_params()["hidden_size"] == 5
    assert again is not model
    model.fit(X, WORDS, steps=1)
    learnt = model.state_dict()
    assert model.set_params(lr=0.5, epochs=2) is model
    assert (model.lr, model.get_params()["epochs"]) == (0.5, 2)
    np.testing.assert_array_equal(model.state_dict()["output.bias"], learnt["output.bias"])
    assert model.fit(X, WORDS).trainer_.optimizer.lr == 0.5
    assert model.trainer_.total == 4
    model.set_params(hidden_size=7)
    with pytest.raises(NotFittedError):
        model.predict(X)
    before = model.get_params()
    for changes, message in (
        ({"hiden_size": 3}, "hiden_size is not a parameter, expected one of "),
        ({"lr": 0}, "lr is"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_params(**changes)
        assert model.get_params() == before


def test_a_random_state_is_the_rng_and_that_of_the_fit():
    def parameters(**options):
        return SequenceClassifier(hidden_size=6, epochs=3, batch_size=16, **options).fit(X, WORDS).state_dict()

    expected = parameters(rng=5)
    for name, p in parameters(random_state=5).items():
        np.testing.assert_array_equal(p, expected[name])
    for name, p in parameters(random_state=5, rng=4).items():
        np.testing.assert_array_equal(p, expected[name])
    sizes = {"input_size": 2, "classes": 2}
    start = SequenceClassifier(hidden_size=6, epochs=0, random_state=np.random.RandomState(0), **sizes)
    same = SequenceClassifier(hidden_size=6, epochs=0, random_state=np.random.RandomState(0), **sizes)
    np.testing.assert_array_equal(start.params["output.weight"], same.params["output.weight"])
    one, other = (
        SequenceClassifier(hidden_size=6, epochs=1, random_state=seed).fit(X, WORDS).trainer_.data for seed in (0, 1)
    )
    assert (one.batch(0, 0).inputs != other.batch(0, 0).inputs).any()


def test_options_of_fit_come_from_the_constructor_unless_the_call_has_them():
    model = SequenceClassifier(
        hidden_size=4, epochs=2, batch_size=20, optimizer="sgd", lr=0.25, clip_norm=None, l2=0.5, validation_split=0.5,
        patience=2, class_weight="balanced",
    )  # fmt: skip
    trainer = model.fit(X, WORDS).trainer_
    assert (trainer.total, trainer.optimizer.lr, trainer.clip_norm, trainer.l2) == (4, 0.25, None, 0.5)
    assert (type(trainer.optimizer), trainer.validation.num_examples, trainer.patience) == (gpurnn.SGD, 30, 2)
    trainer = model.fit(X, WORDS, steps=3, optimizer="adam", validation=(X, WORDS), clip_norm=2.0).trainer_
    assert (trainer.total, trainer.optimizer.lr, trainer.clip_norm) == (3, 0.003, 2.0)
    assert (type(trainer.optimizer), trainer.validation.num_examples) == (gpurnn.Adam, 60)
    weighed = SequenceClassifier(hidden_size=4, class_weight="balanced").fit(X[:20], WORDS[:20], steps=3)
    plain = SequenceClassifier(hidden_size=4).fit(X[:20], WORDS[:20], steps=3)
    assert (weighed.params["output.bias"] != plain.params["output.bias"]).any()
    optimizer = gpurnn.Adam(0.02)
    model = SequenceClassifier(hidden_size=4, optimizer=optimizer, epochs=1)
    unused = pickle.dumps(optimizer)
    assert model.fit(X, WORDS).trainer_.optimizer.lr == 0.02
    assert pickle.dumps(optimizer) == unused


def test_what_a_failed_fit_made_is_forgotten():
    model = SequenceClassifier(**FAST).fit(X, WORDS)
    expected = model.predict_proba(X)
    bad = X.copy()
    bad[3, 5, 1] = np.nan
    with pytest.raises(ValueError, match=r"fit: X\[3\] holds NaN at step 5 in feature 1"):
        model.fit(bad, np.arange(60) % 3)
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    with pytest.raises(ValueError, match="fit: y has one class, 'a', expected at least 2"):
        model.fit(X, ["a"] * 60)
    with pytest.raises(ValueError, match="fit: y holds 60 different numbers for 60 targets, which looks continuous"):
        model.fit(X, VALUES)


def test_a_file_holds_the_sizes_and_plain_options_of_fit(tmp_path):
    model = SequenceClassifier(**FAST, class_weight={"plus": 2.0}).fit(X, WORDS)
    model.save(tmp_path / "model")
    again = gpurnn.models.load(tmp_path / "model")
    assert again.get_params()["classes"] == 2
    assert (again.lr, again.epochs) == (0.03, 15)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_predictions_have_the_shape_of_the_targets(tmp_path):
    flat = SequenceRegressor(**FAST).fit(X, VALUES)
    assert flat.predict(X).shape == (60,)
    flat.save(tmp_path / "model")
    np.testing.assert_array_equal(gpurnn.models.load(tmp_path / "model").predict(X), flat.predict(X))
    assert SequenceRegressor(**FAST).fit(X, VALUES[:, None]).predict(X).shape == (60, 1)
    each = SequenceRegressor(pooling=None, hidden_size=4, epochs=1).fit(UNEQUAL, [x[:, 0] for x in UNEQUAL])
    assert [y.shape for y in each.predict(UNEQUAL[:3])] == [x.shape[:1] for x in UNEQUAL[:3]]
    assert each.score(UNEQUAL, [x[:, 0] for x in UNEQUAL]) < 1


def test_weights_of_targets_weigh_their_scale_too():
    wild = np.where(np.arange(60) < 50, VALUES, 1e6)
    model = SequenceRegressor(**FAST).fit(X, wild, sample_weight=np.arange(60) < 50)
    alone = SequenceRegressor(**FAST).fit(X[:50], VALUES[:50])
    np.testing.assert_allclose(model._learnt["std"], alone._learnt["std"])
    assert model.score(X[:50], VALUES[:50]) > 0.8


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_names_of_features_are_those_of_a_frame(library):
    frame = pytest.importorskip(library).DataFrame
    table = frame({"who": np.repeat(np.arange(60), 6), "a": X[:, :, 0].reshape(-1), "b": X[:, :, 1].reshape(-1)})
    model = SequenceClassifier(**FAST).fit(table, WORDS, group="who")
    assert model.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="fit: y has 60 entries, expected 360; each row of X is an example; where it"):
        SequenceClassifier(**FAST).fit(table, WORDS)
    frames = [frame({"b": x[:, 1], "a": x[:, 0]}) for x in UNEQUAL]
    assert SequenceClassifier(**FAST).fit(frames, WORDS).feature_names_in_.tolist() == ["b", "a"]
    np.testing.assert_array_equal(model.predict(frames), model.predict(UNEQUAL))


def test_kinds_of_estimators():
    assert is_classifier(SequenceClassifier())
    assert is_regressor(SequenceRegressor())
    assert not is_classifier(SequenceTagger())  # its targets cannot stratify folds
    for kind in (SequenceClassifier, SequenceTagger, SequenceRegressor):
        assert has_fit_parameter(kind(), "sample_weight")


def test_cross_validation():
    assert cross_val_score(SequenceClassifier(**FAST), X, WORDS, cv=3, scoring="roc_auc").mean() > 0.8
    assert cross_val_score(SequenceRegressor(**FAST), X, VALUES, cv=2).mean() > 0.5
    assert cross_val_score(SequenceClassifier(**FAST), UNEQUAL, WORDS, cv=3).mean() > 0.6
    assert cross_val_score(SequenceTagger(**FAST), UNEQUAL, TAGS, cv=3).mean() > 0.9
    assert cross_val_predict(SequenceRegressor(**FAST), X, VALUES, cv=2).shape == (60,)


@pytest.mark.parametrize("examples", [X, UNEQUAL], ids=["array", "unequal lengths"])
def test_searches(examples):
    grid = {"hidden_size": [1, 6], "lr": [1e-6, 0.03]}
    search = GridSearchCV(SequenceClassifier(epochs=10), grid, cv=2).fit(examples, WORDS)
    assert search.best_params_["lr"] == 0.03
    assert search.best_estimator_.get_params()["lr"] == 0.03
    assert search.predict(examples).shape == (60,)
    assert clone(search.best_estimator_).get_params() == search.best_estimator_.get_params()


def test_pipelines():
    halves = FunctionTransformer(lambda x: 0.5 * x)
    pipeline = make_pipeline(halves, SequenceClassifier(**FAST))
    pipeline.set_params(sequenceclassifier__hidden_size=4).fit(X, WORDS, sequenceclassifier__verbose=False)
    assert pipeline.score(X, WORDS) > 0.8
    assert pipeline[-1].recurrent.hidden_size == 4
    assert "SequenceClassifier" in pipeline._repr_html_()
    rows = make_pipeline(StandardScaler(), SequenceRegressor(**FAST)).fit(X[:, :, 0], VALUES)
    assert rows.score(X[:, :, 0], VALUES) > 0.5
    search = GridSearchCV(pipeline, {"sequenceclassifier__epochs": [1, 2]}, cv=2).fit(X, WORDS)
    assert search.best_estimator_[-1].epochs in (1, 2)


@pytest.mark.parametrize("pooling", ["last", None])
def test_targets_of_any_unit_keep_their_digits(tmp_path, pooling):
    values = np.asarray(VALUES, "float64")
    values = values if pooling else np.repeat(values[:, None], X.shape[1], axis=1)
    big = 1e8 + values  # float32 has no digits left for their differences
    plain, model = (SequenceRegressor(pooling=pooling, **FAST).fit(X, y) for y in (values, big))
    assert model.score(X, big) == pytest.approx(plain.score(X, values), abs=1e-3)
    model.save(tmp_path / "model")
    for one in (model, gpurnn.models.load(tmp_path / "model")):
        found = np.asarray(one.predict(X))
        assert found.dtype == np.float64
        np.testing.assert_allclose(found - 1e8, np.asarray(plain.predict(X)), atol=1e-4)
    single = SequenceRegressor(pooling=pooling, **FAST).fit(X, values.astype("float32"))
    assert np.asarray(single.predict(X)).dtype == np.float32


def test_features_of_any_unit_are_learnt_from_where_fit_finds_out_their_size(tmp_path):
    big = 1e9 + 1e3 * X.astype("float64")  # float32 has no digits left for their differences
    model, plain = SequenceClassifier(**FAST).fit(big, WORDS), SequenceClassifier(**FAST).fit(X, WORDS)
    assert model.score(big, WORDS) > 0.9
    np.testing.assert_allclose(model.predict_proba(big), plain.predict_proba(X), atol=1e-3)
    assert repr(model).startswith("SequenceClassifier(2, 6, 2, standardize_inputs=True, ")
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(gpurnn.models.load(tmp_path / "model").predict_proba(big), model.predict_proba(big))
    off = SequenceClassifier(standardize_inputs=False, **FAST)
    with pytest.warns(UserWarning, match="of which float32 rounds the digits away") as said:
        off.fit(big, WORDS)
    assert len(said) == 1
    with pytest.warns(UserWarning, match="of which float32 rounds the digits away"):
        assert off.score(big, WORDS) < 0.7
    sized = SequenceClassifier(2, classes=2, standardize_inputs=True, **FAST).fit(big, WORDS)
    np.testing.assert_array_equal(sized.predict_proba(big), model.predict_proba(big))
    tokens = SequenceClassifier(3, 4, num_embeddings=2).fit((WORDS == "plus").astype(int)[:, None], WORDS, steps=1)
    assert tokens.n_features_in_ == 1
    with pytest.raises(TypeError, match="standardize_inputs is 'no', expected True or False"):
        SequenceClassifier(standardize_inputs="no")
    with pytest.warns(UserWarning, match="standardize_inputs=True has no effect, as inputs are tokens"):
        SequenceClassifier(3, num_embeddings=2, standardize_inputs=True)
