"""The options of `fit` and of a `Trainer`, and the reports of a run: names, callbacks, histories, resuming."""

import inspect
import pickle

import numpy as np
import pytest
from tolerance import assert_same

import gpurnn
from gpurnn import models, schedules
from gpurnn.models.fit_options import FitOptions, TrainerOptions
from gpurnn.models.translator import TranslatorOptions
from gpurnn.optimizers import SGD, Adam, AdamW
from gpurnn.training import PaddedBatches, TokenStream, Trainer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5, 2)).astype("float32")
SIGN = X[:, :, 0].sum(axis=1) > 0
TEXT = "".join(np.random.default_rng(1).choice(list("abcd"), 900))
LETTERS = models.CharVocabulary("?abcd")


def classifier(seed=0, **options):
    return models.SequenceClassifier(2, 6, 2, pooling="mean", rng=seed, **options)


def tagger(seed=0):
    return models.SequenceTagger(2, 6, 2, rng=seed)


def run(**options):
    """A trainer of a classifier, with 40 examples in 4 batches, which has not trained yet."""
    data = PaddedBatches(list(X), 10, [np.array(int(s)) for s in SIGN], per_sequence=True)
    return Trainer(classifier(), data, **{"epochs": 2, "progress": False, **options})


# --- the reports of a run ---


def test_the_history_has_a_row_for_each_epoch():
    validation = (X[:7], SIGN[:7])
    trainer = classifier().fit(X, SIGN, epochs=3, batch_size=16, validation=validation).trainer_
    rows = trainer.epoch_history
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6), (3, 9)]
    names = ["epoch", "step", "loss", "accuracy", "validation_loss", "validation_accuracy"]
    assert all(list(row) == names for row in rows)
    # Here a line of the metrics covers an epoch.
    assert [row["loss"] for row in rows] == [line["loss"] for line in trainer.history if "loss" in line]
    assert trainer.history[0]["accuracy"] == rows[0]["accuracy"]


def test_the_loss_of_an_epoch_is_the_mean_over_its_targets():
    losses = []
    trainer = run(epochs=2, lr=0.0, optimizer="sgd")
    trainer.train()
    for batch in (trainer.data.batch(1, i) for i in range(4)):
        losses.append(trainer.model.loss(batch.inputs, batch.targets, None, batch.lengths)[0])
    assert trainer.epoch_history[1]["loss"] == pytest.approx(np.mean(losses))


def test_an_epoch_that_is_not_over_has_a_row():
    trainer = run(epochs=None, steps=6)
    trainer.train()
    assert [(row["epoch"], row["step"]) for row in trainer.epoch_history] == [(1, 4), (1.5, 6)]


@pytest.mark.parametrize("make", [classifier, tagger])
def test_accuracy_is_the_share_of_right_classes(make):
    tags = X[:, :, 0] > 0
    y = SIGN if make is classifier else tags
    weights = (
        {"sample_weight": np.arange(40) % 3} if make is classifier else {"mask": np.arange(200).reshape(40, 5) % 3}
    )
    model = make().fit(X, y, epochs=4, lr=0.05, validation=(X, y))
    row = model.trainer_.epoch_history[-1]
    assert row["validation_accuracy"] == pytest.approx(model.score(X, y))
    # A step with the rate 0 changes nothing, so the accuracy in training is that of the model.
    model.fit(X, y, epochs=1, optimizer="sgd", lr=0.0, **weights)
    right = model.predict(X) == y if make is classifier else np.array(model.predict(X)) == y
    (weight,) = weights.values()
    assert model.trainer_.epoch_history[0]["accuracy"] == pytest.approx((right * weight).sum() / weight.sum())


def test_models_of_values_have_no_accuracy():
    model = models.SequenceRegressor(2, 4, 1).fit(X, X[:, 0, 0], epochs=1)
    assert list(model.trainer_.epoch_history[0]) == ["epoch", "step", "loss"]


def test_a_language_model_has_its_metric_by_epoch():
    model = models.LanguageModel(LETTERS, 4, 4).fit(TEXT, epochs=2, batch_size=4, window=8, validation_split=0.2)
    rows = model.trainer_.epoch_history
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        assert row["bits_per_character"] == pytest.approx(row["loss"] / np.log(2))
        assert row["validation_bits_per_character"] == pytest.approx(row["validation_loss"] / np.log(2))


def test_a_model_that_only_passes_keywords_on_is_given_no_metrics():
    class Wrapped:
        def __init__(self):
            self.inner = models.LanguageModel(LETTERS, 3, 3)
            self.params = self.inner.params

        def loss(self, *arguments, **options):
            return self.inner.loss(*arguments, **options)

        def loss_and_gradients(self, *arguments, **options):
            return self.inner.loss_and_gradients(*arguments, **options)

    stream = TokenStream(LETTERS.encode(TEXT), 4, 8)
    trainer = Trainer(Wrapped(), stream, steps=2, validation=stream, progress=False)
    trainer.train()
    assert "accuracy" not in trainer.epoch_history[0]


def test_the_repr_says_how_the_run_went():
    trainer = run(epochs=2)
    assert repr(trainer) == "Trainer(SequenceClassifier, PaddedBatches, Adam(lr=0.003))\n  0 of 8 steps, 0 epochs"
    trainer.train()
    assert "\n  8 of 8 steps, 2 epochs\n  last epoch: loss 0." in repr(trainer)
    assert ", accuracy 0." in repr(trainer)
    shuffled = np.random.default_rng(0).permutation(SIGN)
    stopped = classifier().fit(X, shuffled, validation_split=0.3, epochs=90, patience=2, lr=0.1).trainer_
    assert "; stopped early: 2 evaluations did not lower the validation loss\n" in repr(stopped)
    best = min(stopped.epoch_history, key=lambda row: row["validation_loss"])
    assert repr(stopped).endswith(f"best validation loss: {best['validation_loss']:.4g}, at step {best['step']}")


# --- names ---


def test_optimizers_and_schedules_by_name():
    assert run().optimizer.lr == 0.003
    assert isinstance(run().optimizer, Adam)
    assert isinstance(run(optimizer="adamw", lr=0.5).optimizer, AdamW)
    assert run(optimizer="adamw", lr=0.5).optimizer.lr == 0.5
    expected = {
        "constant": schedules.Constant(0.5),
        "cosine": schedules.CosineWithWarmup(0.5, 8),
        "linear": schedules.Polynomial(0.5, 8),
        "one_cycle": schedules.OneCycle(0.5, 8),
        "plateau": schedules.ReduceOnPlateau(0.5, factor=0.5, patience=5),
    }
    for name, schedule in expected.items():
        trainer = run(lr=0.5, schedule=name, validation=TokenStream(np.zeros(9, int), 1, 2))
        assert trainer.schedule == schedule
    with pytest.raises(ValueError, match="Trainer: schedule is 'cosin', expected one of 'constant', 'cosine', "):
        run(schedule="cosin")
    with pytest.raises(ValueError, match="Trainer: optimizer is 'adamm', expected one of 'adadelta', "):
        run(optimizer="adamm")
    with pytest.raises(TypeError, match="Trainer: lr is given together with an optimizer"):
        run(optimizer=SGD(), lr=0.1)
    with pytest.raises(ValueError, match="Trainer: lr is -1, expected a number of at least 0"):
        run(lr=-1)
    with pytest.warns(UserWarning, match=r"Trainer: lr=0\.5 has no effect, as schedule is a function"):
        run(lr=0.5, schedule=schedules.Constant(0.1))


def test_fit_takes_a_schedule_by_name():
    model = classifier().fit(X, SIGN, epochs=5, schedule="cosine", lr=0.02, log_interval=1)
    rates = [line["learning_rate"] for line in model.trainer_.history]
    whole = schedules.CosineWithWarmup(0.02, 10)
    assert rates == [whole(step) for step in range(10)]


# --- callbacks ---


def test_callbacks_are_called_after_each_epoch():
    seen = []
    validation = PaddedBatches(list(X), 40, [np.array(int(s)) for s in SIGN], per_sequence=True)
    trainer = run(
        epochs=3,
        validation=validation,
        callbacks=[lambda t: seen.append(t.step), lambda t: seen.append(t.epoch_history[-1])],
    )
    trainer.train()
    assert seen[::2] == [4, 8, 12]
    assert seen[1::2] == trainer.epoch_history
    assert all("validation_loss" in row for row in seen[1::2])


def test_a_callback_ends_the_training():
    trainer = run(epochs=9, callbacks=lambda trainer: trainer.stop() if trainer.step == 8 else None)
    trainer.train()
    assert trainer.step == 8
    assert not trainer.stopped_early
    whole = run(epochs=2)
    whole.train()
    for name, p in whole.model.params.items():
        assert_same(trainer.model.params[name], p)
    trainer.train()
    assert trainer.step == 36


def test_a_callback_that_fails_is_called_again():
    called = []

    def callback(trainer):
        called.append(trainer.step)
        if len(called) == 1:
            raise RuntimeError("no")

    trainer = run(epochs=2, callbacks=[callback, lambda trainer: called.append("second")])
    with pytest.raises(RuntimeError, match="no"):
        trainer.train()
    trainer.train()
    assert called == [4, 4, "second", 8, "second"]


def test_callbacks_are_functions():
    with pytest.raises(TypeError, match="Trainer: callbacks is an int, expected a sequence of functions"):
        run(callbacks=3)
    with pytest.raises(TypeError, match=r"Trainer: callbacks\[0\] is 'log', expected a function"):
        run(callbacks=["log"])
    with pytest.raises(TypeError, match=r"Trainer: callbacks\[1\] is the class SGD, expected an object of it"):
        run(callbacks=[print, SGD])


# --- resuming ---


def test_fit_resumes_the_run_in_its_directory(tmp_path):
    def stop(trainer):
        if trainer.step == 2:
            trainer.stop()

    options = {"epochs": 5, "validation_split": 0.25, "patience": 20, "directory": tmp_path, "resume": True}
    whole = classifier().fit(X, SIGN, **{**options, "directory": tmp_path / "whole"})
    first = classifier().fit(X, SIGN, **options, callbacks=stop)
    assert first.trainer_.step == 2
    again = classifier(seed=3).fit(X, SIGN, **options, rng=0)
    assert again.trainer_.step == whole.trainer_.step
    assert again.trainer_.epoch_history == whole.trainer_.epoch_history
    for name, p in whole.params.items():
        assert_same(again.params[name], p)
    with pytest.raises(
        gpurnn.training.RunDirectoryError, match=r"already holds a training run .* call resume\(\) first"
    ):
        classifier().fit(X, SIGN, **{**options, "resume": False})
    with pytest.raises(ValueError, match="Trainer: resume is True and directory is None, expected the directory"):
        classifier().fit(X, SIGN, **{**options, "directory": None})
    with pytest.raises(TypeError, match="Trainer: resume is 'yes', expected True or False"):
        classifier().fit(X, SIGN, **{**options, "resume": "yes"})


TOKENS = [RNG.integers(1, 5, n, dtype=np.int32) for n in (2, 5, 3, 4) * 6]
EVERY_FIT = {
    "LanguageModel": (lambda: models.LanguageModel(LETTERS, 4, 4), (TEXT,)),
    "Forecaster": (lambda: models.Forecaster(5, 4), (np.sin(np.arange(200) / 5),)),
    "EncoderDecoder": (lambda: models.EncoderDecoder(5, 5, 4, 4), (TOKENS, TOKENS)),
    "Translator": (lambda: models.Translator(LETTERS, LETTERS, 4, 4), (["ab", "cd"] * 6, ["ba", "dc"] * 6)),
    "SequenceGenerator": (lambda: models.SequenceGenerator(2, 4, 3), (X[:, 0], [[0, 1, 2]] * 40)),
    "SequenceRegressor": (lambda: models.SequenceRegressor(2, 4, 1), (X, X[:, 0, 0])),
}


@pytest.mark.parametrize("kind", EVERY_FIT)
def test_every_model_takes_the_options(kind, tmp_path):
    make, examples = EVERY_FIT[kind]
    examples = tuple(
        [np.array(y) for y in e] if kind == "SequenceGenerator" and isinstance(e, list) else e for e in examples
    )
    options = {"epochs": 3, "schedule": "linear", "optimizer": "adamw", "lr": 0.01, "gradient_accumulation_steps": 2}
    kept = {"directory": tmp_path, "resume": True}
    make().fit(*examples, **options, **kept, callbacks=lambda trainer: trainer.stop())
    resumed = make().fit(*examples, **options, **kept)
    whole = make().fit(*examples, **options)
    assert len(whole.trainer_.epoch_history) == 3
    assert resumed.trainer_.epoch_history == whole.trainer_.epoch_history
    assert_same(resumed.params, whole.params)


def test_sums_of_an_epoch_are_in_the_checkpoint(tmp_path):
    whole = run(epochs=None, steps=10)
    whole.train()
    first = run(epochs=None, steps=10, directory=tmp_path, checkpoint_interval=3, callbacks=lambda t: t.stop())
    first.train()
    assert first.step == 4
    again = run(epochs=None, steps=10, directory=tmp_path, checkpoint_interval=3, resume=True)
    assert again.epoch_history == first.epoch_history
    again = pickle.loads(pickle.dumps(again))
    again.train()
    assert again.epoch_history == whole.epoch_history


# --- early stopping by itself ---


def test_a_language_model_of_one_text_stops_by_itself():
    model = models.LanguageModel(LETTERS, 4, 4)
    trainer = model.fit(TEXT[:300], batch_size=8, window=8, lr=0.1, patience=8).trainer_
    assert trainer.stopped_early
    assert trainer.step < trainer.total
    held_out = trainer.validation.config()["tokens"]
    assert held_out == 30
    assert trainer.data.config()["tokens"] == 270
    assert gpurnn.training.evaluate(model, trainer.validation) == trainer._best["loss"]
    short = models.LanguageModel(LETTERS, 4, 4).fit(TEXT[:30], batch_size=2, window=8, verbose=False, epochs=1)
    assert short.trainer_.validation is None


@pytest.mark.parametrize(
    ("count", "lanes", "window"), [(3000, 32, 64), (900, 32, 27), (100, 5, 19), (10, 1, 9), (2, 1, 1)]
)
def test_a_short_text_is_read_in_smaller_windows_and_fewer_lanes(count, lanes, window):
    model = models.LanguageModel(LETTERS, 3, 3)
    data = model.fit("abcd" * (count // 4) + "ab" * (count % 4 // 2), steps=1).trainer_.data
    assert (data.batch_size, data.steps) == (lanes, window)
    with pytest.raises(ValueError, match=r"X has \d+ tokens, expected at least batch_size \(window \+ 1\) = "):
        model.fit("abc", batch_size=2, steps=1)
    with pytest.raises(ValueError, match=r"X has \d+ tokens, expected at least batch_size \(window \+ 1\) = "):
        model.fit("abc", window=9, steps=1)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_stream_is_split_by_time(share):
    tokens = np.arange(103)
    rest, part = TokenStream(tokens, 4, 5).split(share)
    cut = 103 - round(103 * share)
    assert rest.config()["tokens"] == cut
    assert part.batch(0, 0).inputs[0, 0] == cut
    assert part.config()["batch_size"] == min(4, (103 - cut) // 6)
    assert (rest.steps, part.steps) == (5, 5)


def test_a_stream_that_is_too_short_is_not_split():
    with pytest.raises(ValueError, match=r"TokenStream.split: the stream has 11 tokens, expected at least .* = 12"):
        TokenStream(np.arange(11), 1, 5).split(0.5)
    with pytest.raises(ValueError, match=r"TokenStream.split: share is 1.5, expected a number in \(0, 1\)"):
        TokenStream(np.arange(12), 1, 5).split(1.5)


# --- which options there are ---


def test_the_options_that_a_type_checker_sees_are_those_that_there_are():
    of_trainer = {n: p for n, p in inspect.signature(Trainer).parameters.items() if p.kind is p.KEYWORD_ONLY}
    own = {"epochs", "steps", "lr", "validation", "patience", "clip_norm", "rng"}  # `fit` gives them other defaults
    assert TrainerOptions.__annotations__.keys() == of_trainer.keys() - own - {"progress"}
    shown = inspect.signature(models.SequenceRegressor.fit).parameters
    assert FitOptions.__annotations__.keys() == shown.keys() - {"self", "X", "y", "group", "sample_weight", "mask"}
    assert shown["schedule"].default is None
    assert shown["clip_norm"].default == 1.0
    assert "window" in inspect.signature(models.LanguageModel.fit).parameters


@pytest.mark.parametrize(
    "model",
    [
        classifier(), tagger(), models.SequenceRegressor(2, 4, 1), models.Forecaster(3, 4),
        models.LanguageModel(LETTERS, 4, 4), models.EncoderDecoder(5, 5, 4, 4), models.SequenceGenerator(2, 4, 2),
        models.Translator(LETTERS, LETTERS, 4, 4),
    ],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_an_unknown_option_is_answered_with_all_that_there_are(model):
    kind = type(model).__name__
    with pytest.raises(TypeError, match=rf"^{kind}\.fit: opt is not an option, expected one of ") as caught:
        model.fit([[1.0]], opt=3)
    listed = str(caught.value).partition("expected one of ")[2].partition(";")[0].split(", ")
    assert set(listed) == inspect.signature(model.fit).parameters.keys() - {"X"}
    with pytest.raises(TypeError, match=r"did you mean schedule\?$"):
        model.fit([[1.0]], shedule="cosine")


def test_layers_optimizers_schedules_and_data_answer_an_unknown_option_too():
    with pytest.raises(
        TypeError, match=r"^LSTM: hidden is not an option, expected one of activation, batch_first, bias, .*hidden_size"
    ):
        gpurnn.LSTM(3, hidden=4)
    with pytest.raises(
        TypeError, match=r"^Adam: learning_rate is not an option, expected one of amsgrad, betas, .*, lr, "
    ):
        Adam(learning_rate=0.1)
    with pytest.raises(TypeError, match=r"^Adam: ema_decy is not an option, .*; did you mean ema_decay\?$"):
        Adam(ema_decy=0.9)
    with pytest.raises(TypeError, match=r"^OneCycle: lr is not an option, expected one of .*, max_lr, "):
        schedules.OneCycle(lr=0.1, total_steps=9)
    with pytest.raises(TypeError, match=r"^PaddedBatches: size is not an option, expected one of batch_size, "):
        PaddedBatches([np.ones(3)], size=3)
    translator = models.Translator(LETTERS, LETTERS, 4, 4)
    keywords = inspect.signature(models.Translator).parameters.keys()
    held = {"source_vocabulary", "target_vocabulary", "embedding_size", "hidden_size"}
    assert TranslatorOptions.__annotations__.keys() == keywords - held
    assert isinstance(pickle.loads(pickle.dumps(translator)), models.Translator)


def test_a_trainer_answers_an_unknown_option_too():
    with pytest.raises(TypeError, match=r"^Trainer: patient is not an option, .*; did you mean patience\?$"):
        run(patient=3)

    class Mine(Trainer):
        def __init__(self, model, data, **options):
            super().__init__(model, data, "sgd", steps=1, progress=False, **options)

    assert Mine(classifier(), run().data, clip_norm=1.0).clip_norm == 1.0
