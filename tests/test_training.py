"""The training loop: the data it reads, its updates, when it stops, the files it writes and the errors it raises."""

import json
import math
import os
import re
import signal

import numpy as np
import pytest
from allocations import most_bytes
from hypothesis import given
from hypothesis import strategies as st
from strict_wing import Array, strict
from tolerance import assert_same, epsilon

from gpurnn import GRU, Dense, _metrics
from gpurnn.gradients import add_l2, clip_by_global_norm, clip_by_value
from gpurnn.losses import cross_entropy, mse
from gpurnn.models import CharVocabulary, LanguageModel
from gpurnn.optimizers import SGD, Adam
from gpurnn.schedules import CosineWithWarmup, Exponential, ReduceOnPlateau
from gpurnn.training import CheckpointError, PaddedBatches, TokenStream, Trainer, evaluate
from gpurnn.training.checkpoint import checkpoints

LETTERS = CharVocabulary("?abcde")


def stream(n=70, batch_size=3, steps=4, seed=0):
    return TokenStream(np.random.default_rng(seed).integers(0, 6, n, dtype=np.int32), batch_size, steps)


def sequences(count=7, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 6, rng.integers(2, 9), dtype=np.int32) for _ in range(count)]


def language_model(**options):
    return LanguageModel(LETTERS, 5 if options.get("tied") else 4, 5, **{"dtype": "float64", **options})


def trainer(model, data, **options):
    options = {"optimizer": SGD(lr=0.1), "steps": 4, "progress": False, **options}
    return Trainer(model, data, options.pop("optimizer"), **options)


class Scripted:
    """A model with one parameter and predefined losses and gradients for each step."""

    def __init__(self, losses=None, gradients=None, validation=()):
        self.params = {"first": np.zeros(2), "second": np.zeros(3)}
        self.losses, self.gradients, self.validation = losses or {}, gradients or {}, list(validation)
        self.calls = 0

    def loss(self, inputs, targets, state=None, lengths=None):
        return np.asarray(self.validation.pop(0)), None

    def loss_and_gradients(self, inputs, targets, state=None, lengths=None, *, rng=None):
        grads = {"first": np.ones(2), "second": np.ones(3)}
        grads.update(self.gradients.get(self.calls, {}))
        loss = np.asarray(self.losses.get(self.calls, 1.0))
        self.calls += 1
        return loss, None, grads


# --- data ---


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 7))
def test_a_stream_is_read_whole_lane_by_lane(n, batch_size, steps):
    tokens = np.arange(n)
    lane = n // batch_size
    if lane < steps + 1:
        with pytest.raises(ValueError, match=rf"tokens has {n} tokens, expected at least batch_size \(steps \+ 1\)"):
            TokenStream(tokens, batch_size, steps)
        return
    data = TokenStream(tokens, batch_size, steps)
    assert len(data) == (lane - 1) // steps
    batches = [data.batch(epoch, i) for epoch in (0, 3) for i in range(len(data))]
    half = len(data)
    for first, again in zip(batches[:half], batches[half:], strict=True):
        assert_same(first.inputs, again.inputs)
    for b in range(batch_size):
        inputs = np.concatenate([batch.inputs[:, b] for batch in batches[:half]])
        targets = np.concatenate([batch.targets[:, b] for batch in batches[:half]])
        assert inputs.tolist() == list(range(b * lane, b * lane + half * steps))
        assert (targets == inputs + 1).all()
    assert all(batch.inputs.shape == batch.targets.shape == (steps, batch_size) for batch in batches)
    assert all(batch.count == steps * batch_size for batch in batches)
    assert data.carries_state


def test_a_stream_is_not_copied():
    tokens = np.zeros(1000, np.int32)
    batch = TokenStream(tokens, 10, 9).batch(0, 3)
    assert np.shares_memory(batch.inputs, tokens)
    assert np.shares_memory(batch.targets, tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 2), int), 1, 1), r"tokens has shape \(2, 2\), expected 1 axis \(n,\)"),
        ((np.zeros(9), 1, 1), "tokens has dtype float64, expected an integer dtype"),
        (([1, 2, 3], 1, 1), "tokens is a list, expected a numpy.ndarray"),
        ((np.zeros(9, int), 0, 1), "batch_size is 0, expected at least 1"),
        ((np.zeros(9, int), 1, 2.0), "steps is 2.0, expected a whole number"),
    ],
)
def test_a_stream_refuses(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TokenStream(*arguments)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 4), st.integers(0, 3))
def test_an_epoch_of_padded_batches_has_every_sequence_once(count, batch_size, seed, epoch):
    given = sequences(count, seed)
    data = PaddedBatches(given, batch_size, rng=seed)
    found = []
    for index in range(len(data)):
        batch = data.batch(epoch, index)
        T, B = batch.inputs.shape
        assert max(batch.lengths) == T
        assert batch.count == batch.lengths.sum()
        assert min(batch_size, count - batch_size * index) == B
        for b, length in enumerate(batch.lengths):
            assert not batch.inputs[length:, b].any()
            assert not batch.targets[length:, b].any()
            assert (batch.inputs[1:length, b] == batch.targets[: length - 1, b]).all()
            found.append([*batch.inputs[:length, b].tolist(), int(batch.targets[length - 1, b])])
    assert sorted(found) == sorted(s.tolist() for s in given)


def order(data, epoch):
    return [data.batch(epoch, i).inputs.tolist() for i in range(len(data))]


def test_the_order_is_that_of_the_seed_and_the_epoch():
    given = sequences(20)
    data = PaddedBatches(given, 4, rng=1)
    assert order(data, 0) == order(PaddedBatches(given, 4, rng=1), 0)
    assert order(data, 0) == order(PaddedBatches(given, 4, rng=np.random.default_rng(1)), 0)
    assert order(data, 0) != order(data, 1)
    assert order(data, 0) != order(PaddedBatches(given, 4, rng=2), 0)
    first = order(data, 0)
    order(data, 1)
    assert order(data, 0) == first
    plain = PaddedBatches(given, 4, shuffle=False)
    assert order(plain, 0) == order(plain, 1)
    assert plain.batch(0, 0).lengths.tolist() == [len(s) - 1 for s in given[:4]]


def test_targets_may_belong_to_steps_or_to_sequences():
    inputs = [np.ones((3, 2)), np.full((1, 2), 2.0)]
    steps = PaddedBatches(inputs, 2, [np.arange(3.0), np.array([7.0])], shuffle=False).batch(0, 0)
    assert steps.inputs.shape == (3, 2, 2)
    assert_same(steps.targets, np.array([[0.0, 7.0], [1.0, 0.0], [2.0, 0.0]]))
    assert steps.count == 4
    whole = PaddedBatches(inputs, 2, [np.array(3), np.array(5)], per_sequence=True, shuffle=False).batch(0, 0)
    assert_same(whole.targets, np.array([3, 5]))
    assert whole.count == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "sequences is empty"),
        (([np.array([1])],), r"sequences\[0\] has shape \(1,\), expected at least 2 steps"),
        (([np.array([1, 2]), np.array([1.0, 2.0])],), r"sequences\[1\] has dtype float64, expected int64"),
        (([np.array([1.0, 2.0])],), r"sequences\[0\] has dtype float64, expected an integer dtype"),
        (
            ([np.ones((3, 2)), np.ones((3, 4))], [np.ones(3)] * 2),
            r"sequences\[1\] has shape \(3, 4\), expected that of",
        ),
        (([np.ones((3, 2))], [np.ones(2)]), r"targets\[0\] has shape \(2,\), expected 3 steps, as sequences\[0\] has"),
        (([np.ones((3, 2))], []), "targets has 0 entries, expected 1"),
        (([np.ones((3, 2))], [1.0]), r"targets\[0\] is a float, expected a numpy.ndarray"),
        (([np.array(3)],), r"sequences\[0\] has shape \(\), expected \(T, \.\.\.\), steps first"),
        (([[1, 2, 3]],), r"sequences\[0\] is a list, expected a numpy.ndarray"),
    ],
)
def test_padded_batches_refuse(arguments, message):
    given, *targets = arguments
    with pytest.raises((TypeError, ValueError), match=message):
        PaddedBatches(given, 2, *targets)


# --- updates ---


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_truncated_backpropagation_is_this_loop(cell):
    data, optimizer = stream(), Adam(lr=0.05)
    ours, theirs = language_model(cell=cell), language_model(cell=cell)
    trainer(ours, data, steps=2 * len(data) + 2, optimizer=Adam(lr=0.05)).train()
    for step in range(2 * len(data) + 2):
        index = step % len(data)
        state = None if index == 0 else state  # noqa: F821 - of the window before
        batch = data.batch(0, index)
        (logits, state), pullback = theirs.vjp(batch.inputs, state)
        _, pull_loss = cross_entropy.vjp(logits, batch.targets)
        _, grads = pullback((pull_loss(1.0)[0], None))
        optimizer.step(theirs.params, grads)
    assert_same(ours.state_dict(), theirs.state_dict())


def test_a_window_as_long_as_the_stream_is_full_backpropagation():
    tokens = np.random.default_rng(0).integers(0, 6, 31)
    one, other = language_model(), language_model()
    trainer(one, TokenStream(tokens, 1, 30), steps=3).train()
    trainer(other, PaddedBatches([tokens], 1), steps=3).train()
    assert_same(one.state_dict(), other.state_dict())


def test_the_gradient_of_a_padded_batch_is_that_of_its_sequences():
    given = sequences(3)
    batched, single = language_model(), language_model()
    trainer(batched, PaddedBatches(given, 3), steps=1, optimizer=SGD(lr=1.0)).train()
    total = sum(len(s) - 1 for s in given)
    update = {name: np.zeros_like(p) for name, p in single.params.items()}
    for s in given:
        _, _, grads = single.loss_and_gradients(s[:-1, None], s[1:, None])
        for name in update:
            update[name] += grads[name] * (len(s) - 1) / total
    for name, p in single.params.items():
        np.testing.assert_allclose(batched.params[name], p - update[name], rtol=0, atol=100 * epsilon("float64"))


def test_l2_then_value_then_norm_then_the_scheduled_rate():
    data, ours, theirs = stream(), language_model(), language_model()
    schedule = CosineWithWarmup(0.5, 6, 2)
    run = trainer(
        ours,
        data,
        steps=3,
        schedule=schedule,
        l2=0.1,
        clip_value=0.02,
        clip_norm=0.05,
        optimizer=SGD(lr=9.0),
        log_interval=1,
    )
    run.train()
    state, optimizer = None, SGD(lr=9.0)
    for step in range(3):
        batch = data.batch(0, step)
        loss, state, grads = theirs.loss_and_gradients(batch.inputs, batch.targets, state)
        grads = add_l2(grads, theirs.params, 0.1)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        assert run.history[step]["gradient_norm"] == pytest.approx(norm, rel=1e3 * epsilon("float64"))
        assert run.history[step]["loss"] == float(loss)
        assert run.history[step]["learning_rate"] == schedule(step)
        grads, clipped = clip_by_global_norm(clip_by_value(grads, 0.02), 0.05)
        assert clipped > 0.05
        optimizer.step(theirs.params, grads, lr=schedule(step))
    assert_same(ours.state_dict(), theirs.state_dict())


def test_gradients_are_shown_before_they_are_clipped():
    model, shown = language_model(), []

    def look(step, params, grads):
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads.values()))
        shown.append((step, norm, params["output.bias"].copy()))

    bias = model.params["output.bias"].copy()
    run = trainer(model, stream(), l2=0.1, clip_norm=1e-3, clip_value=1e-3, log_interval=1, on_gradients=look)
    run.train()
    assert [step for step, _, _ in shown] == [0, 1, 2, 3]
    for (_, norm, _), record in zip(shown, run.history, strict=True):
        assert norm == pytest.approx(record["gradient_norm"], rel=1e3 * epsilon("float64"))
        assert norm > 1e-2
    assert_same(shown[0][2], bias)  # the value before the update


def test_a_gradient_that_is_not_finite_is_shown_too():
    shown = []
    model = Scripted(gradients={1: {"first": np.array([1.0, math.nan])}})
    with pytest.raises(FloatingPointError):
        trainer(model, stream(), on_gradients=lambda step, params, grads: shown.append(grads["first"][1])).train()
    assert [math.isnan(g) for g in shown] == [False, True]


class Forced(Scripted):
    """Records its teacher forcing."""

    def __init__(self):
        super().__init__()
        self.forced = []

    def loss_and_gradients(self, *arguments, **keywords):
        self.forced.append(keywords.pop("teacher_forcing", None))
        return super().loss_and_gradients(*arguments, **keywords)


@pytest.mark.parametrize(
    ("teacher_forcing", "expected"),
    [(None, [None] * 4), (0, [0.0] * 4), (1.0, [1.0] * 4), (Exponential(1.0, 0.5), [1.0, 0.5, 0.25, 0.125])],
)
def test_the_model_is_told_of_teacher_forcing(teacher_forcing, expected):
    model = Forced()
    run = trainer(model, stream(), teacher_forcing=teacher_forcing, log_interval=1)
    run.train()
    assert model.forced == expected
    assert [record.get("teacher_forcing") for record in run.history] == expected


def test_teacher_forcing_belongs_to_the_run(tmp_path):
    def run(teacher_forcing, steps):
        return trainer(Forced(), stream(), teacher_forcing=teacher_forcing, steps=steps, directory=tmp_path)

    run(Exponential(1.0, 0.5), 3).train()
    for other in (None, 0.0, 1.0, Exponential(1.0, 0.25)):
        with pytest.raises(CheckpointError, match="belongs to a run whose teacher_forcing is"):
            run(other, 5).resume()
    resumed = run(Exponential(1.0, 0.5), 5)
    assert resumed.resume() == 3
    resumed.train()
    assert resumed.model.forced == [0.125, 0.0625]


def test_a_schedule_of_teacher_forcing_knows_the_step_alone():
    with pytest.raises(TypeError, match="teacher_forcing is a ReduceOnPlateau, expected a probability or a function"):
        trainer(Forced(), stream(), teacher_forcing=ReduceOnPlateau(1.0))


def test_a_schedule_of_teacher_forcing_stays_a_probability():
    with pytest.raises(ValueError, match=r"teacher_forcing\(2\) is 1.5, expected a probability in \[0, 1\]"):
        trainer(Forced(), stream(), teacher_forcing=lambda step: 0.5 * (step + 1)).train()


def test_each_kind_of_weight_has_a_penalty_of_its_own():
    l2 = {"weight_hh": 0.3, "weight_ih": 0.2, "output.weight": 0.1, "_hh_l0": 0.05, "embedding": 0.0}
    params = language_model().params
    grads = {name: np.ones_like(p) for name, p in params.items()}
    found = add_l2(grads, params, l2)
    expected = {
        "recurrent.weight_hh_l0": 0.35,  # of two entries
        "recurrent.bias_hh_l0": 0.05,
        "recurrent.weight_ih_l0": 0.2,
        "output.weight": 0.1,
    }
    for name, p in params.items():
        np.testing.assert_allclose(
            found[name], 1 + expected.get(name, 0.0) * p, rtol=4 * epsilon("float64"), err_msg=name
        )
    assert found["recurrent.bias_ih_l0"] is grads["recurrent.bias_ih_l0"]
    assert add_l2(grads, params, {}) == grads


def test_the_trainer_adds_each_penalty(tmp_path):
    l2 = {"weight_hh": 0.3, "output.weight": 0.1}
    plain, penalised = language_model(), language_model()
    trainer(plain, stream(), steps=1).train()
    trainer(penalised, stream(), steps=1, l2=l2, directory=tmp_path).train()
    start = language_model().params
    for name, p in penalised.params.items():
        strength = sum(value for text, value in l2.items() if text in name)
        expected = plain.params[name] - 0.1 * strength * start[name]
        np.testing.assert_allclose(p, expected, rtol=0, atol=10 * epsilon("float64"))
    assert trainer(language_model(), stream(), l2=l2, directory=tmp_path).resume() == 1
    with pytest.raises(CheckpointError, match=r"belongs to a run whose l2\.weight_hh is 0\.3, but here it is 0\.2"):
        trainer(language_model(), stream(), l2={**l2, "weight_hh": 0.2}, directory=tmp_path).resume()


@pytest.mark.parametrize("clip_norm", [0.01, 1000.0])
def test_the_norm_of_an_update_is_bounded(clip_norm):
    model = language_model()
    before = model.state_dict()
    run = trainer(model, stream(), steps=1, clip_norm=clip_norm, optimizer=SGD(lr=1.0), log_interval=1)
    run.train()
    change = math.sqrt(sum(float(((p - before[name]) ** 2).sum()) for name, p in model.params.items()))
    norm = run.history[0]["gradient_norm"]
    assert change == pytest.approx(norm * min(1, clip_norm / (norm + 1e-6)), rel=1e4 * epsilon("float64"))


def test_dropout_is_the_seeds():
    models = [language_model(dropout=0.5) for _ in range(4)]
    for model, rng in zip(models, (1, 1, np.random.default_rng(1), 2), strict=True):
        trainer(model, stream(), rng=rng).train()
    assert_same(models[0].state_dict(), models[1].state_dict())
    assert_same(models[0].state_dict(), models[2].state_dict())
    assert not np.array_equal(models[0].params["output.bias"], models[3].params["output.bias"])


def test_epochs_are_steps_times_batches():
    data = stream()
    by_epochs, by_steps = language_model(), language_model()
    run = Trainer(by_epochs, data, SGD(lr=0.1), epochs=2, progress=False)
    run.train()
    assert run.step == run.total == 2 * len(data)
    trainer(by_steps, data, steps=2 * len(data)).train()
    assert_same(by_epochs.state_dict(), by_steps.state_dict())


def test_a_language_is_learnt():
    vocabulary = CharVocabulary.from_text("abcd")
    tokens = vocabulary.encode("abcd" * 100)
    model = LanguageModel(vocabulary, 4, 8)
    run = trainer(model, TokenStream(tokens, 4, 10), steps=150, optimizer=Adam(lr=0.03), metric="bits_per_character")
    run.train()
    assert run.history[-1]["bits_per_character"] < 0.1
    assert model.sample(8, "ab", temperature=0) == "cdabcdab"


class LastStep:
    """A regression on the last state of a GRU, as an example of training any layers."""

    def __init__(self):
        self.layer, self.head = GRU(1, 8, dtype="float64", rng=1), Dense(8, 1, dtype="float64", rng=2)

    @property
    def params(self):
        return {f"{part}.{n}": p for part in ("layer", "head") for n, p in getattr(self, part).params.items()}

    def loss(self, inputs, targets, state=None, lengths=None):
        _, h = self.layer(inputs, state, lengths)
        return mse(self.head(h[0]), targets), None

    def loss_and_gradients(self, inputs, targets, state=None, lengths=None, *, rng=None):
        (_, h), pull_layer = self.layer.vjp(inputs, state, lengths, rng=rng)
        y, pull_head = self.head.vjp(h[0])
        loss, pull_loss = mse.vjp(y, targets)
        dh, head = pull_head(pull_loss(1.0)[0])
        _, layer = pull_layer((None, dh[None]))
        return (
            loss,
            None,
            {f"{part}.{n}": g for part, own in (("layer", layer), ("head", head)) for n, g in own.items()},
        )


def test_regression_on_sequences_of_any_length():
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((rng.integers(1, 6), 1)) for _ in range(60)]
    data = PaddedBatches(inputs, 20, [np.tanh(x.sum(axis=0)) for x in inputs], per_sequence=True)
    model = LastStep()
    before = evaluate(model, data)
    trainer(model, data, steps=300, optimizer=Adam(lr=0.02)).train()
    assert evaluate(model, data) < before / 20


def test_memory_does_not_grow_with_the_stream():
    def peak(windows):
        data = stream(n=4 * (20 * windows + 1), batch_size=4, steps=20)
        model = language_model()
        return most_bytes(lambda: trainer(model, data, steps=windows, log_interval=1000).train())

    assert peak(60) < 1.1 * peak(6)


# --- evaluation and stopping ---


def test_evaluation_is_the_mean_over_targets():
    model, given = language_model(dropout=0.5), sequences(5)
    data = PaddedBatches(given, 2)
    nats = [float(model.loss(s[:-1, None], s[1:, None])[0]) * (len(s) - 1) for s in given]
    expected = sum(nats) / sum(len(s) - 1 for s in given)
    assert evaluate(model, data) == pytest.approx(expected, rel=1e3 * epsilon("float64"))


def test_evaluation_of_a_stream_carries_the_state():
    model, data = language_model(), stream(n=41, batch_size=1, steps=8)
    logits, _ = model(data.batch(0, 0).inputs)
    assert logits.shape == (8, 1, 6)
    tokens = np.concatenate([data.batch(0, i).inputs for i in range(5)] + [data.batch(0, 4).targets[-1:]])
    whole, _ = model.loss(tokens[:-1], tokens[1:])
    assert evaluate(model, data) == pytest.approx(float(whole), rel=1e3 * epsilon("float64"))


def test_validation_is_at_its_interval_and_at_the_end():
    model = language_model()
    run = trainer(model, stream(), steps=7, validation=stream(seed=1), validation_interval=3, metric="perplexity")
    run.train()
    found = [record for record in run.history if "validation_loss" in record]
    assert [record["step"] for record in found] == [3, 6, 7]
    assert found[-1]["validation_loss"] == evaluate(model, stream(seed=1))
    assert found[-1]["validation_perplexity"] == math.exp(found[-1]["validation_loss"])
    by_epoch = trainer(language_model(), stream(), steps=2 * len(stream()), validation=stream(seed=1))
    by_epoch.train()
    assert [r["step"] for r in by_epoch.history if "validation_loss" in r] == [len(stream()), 2 * len(stream())]


@pytest.mark.parametrize(
    ("losses", "stopped", "best"),
    [
        ([3, 2, 2.5, 2.6, 1], 4, 2),
        ([3, 2, 2.5, 1.9, 2, 3], 6, 4),
        ([3, 3, 3], 3, 1),
        ([6, 5, 4, 3, 2, 1, 0.5, 0.4], None, 8),
        ([1, 2, 0.5, 2, 0.4, 2, 0.3, 2], None, 7),
    ],
)
def test_early_stopping_leaves_the_parameters_of_the_best_validation(losses, stopped, best):
    model = Scripted(validation=losses)
    one = TokenStream(np.zeros(2, int), 1, 1)
    run = trainer(model, one, steps=8, validation=one, validation_interval=1, patience=2, optimizer=SGD(lr=1.0))
    run.train()
    assert run.stopped_early == (stopped is not None)
    assert run.step == (stopped or 8)
    assert_same(model.params["first"], np.full(2, -float(best)))


# --- NaN and infinity ---


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 1.0}, {"clip_value": 1.0}, {"clip_value": 1.0, "clip_norm": 1.0}]
)
def test_a_gradient_that_is_not_finite_stops_training(tmp_path, bad, options):
    model = Scripted(gradients={3: {"second": np.array([1.0, bad, 1.0])}})
    run = trainer(model, stream(), steps=9, directory=tmp_path, checkpoint_interval=2, **options)
    kept = "step-000000002.safetensors"
    message = rf"step 3: the loss is 1 and the gradient norm .*: the gradient of second is not finite; .*{kept}"
    with pytest.raises(FloatingPointError, match=message):
        run.train()
    assert run.step == 3
    assert np.isfinite(model.params["second"]).all()
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")][-1] == kept
    # The run resumes from that checkpoint once the cause is gone.
    again = trainer(Scripted(), stream(), steps=9, directory=tmp_path, checkpoint_interval=2, **options)
    assert again.resume() == 2
    again.train()
    assert again.step == 9


def test_a_loss_that_is_not_finite_stops_training():
    with pytest.raises(FloatingPointError, match=r"step 2: the loss is nan .*; last good checkpoint: none was written"):
        trainer(Scripted(losses={2: np.nan}), stream()).train()
    with pytest.raises(
        FloatingPointError, match="step 2: the validation loss is inf: all is finite, the largest entry"
    ):
        trainer(Scripted(validation=[np.inf]), stream(), validation=stream(n=15), validation_interval=2).train()


def test_a_parameter_that_is_not_finite_is_named():
    model = language_model()
    model.params["recurrent.weight_hh_l0"][2, 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"step 0: .*: parameter recurrent.weight_hh_l0 is not finite"):
        trainer(model, stream()).train()


def test_an_update_that_overflows_is_not_written_to_a_checkpoint(tmp_path):
    model = Scripted(gradients={3: {"first": np.array([1e150, 1.0])}})
    run = trainer(model, stream(), steps=4, directory=tmp_path, checkpoint_interval=2, optimizer=SGD(lr=1e200))
    with pytest.raises(FloatingPointError, match=r"step 4: .*parameter first is not finite.*step-000000002"):
        run.train()
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")][-1] == "step-000000002.safetensors"


def test_real_divergence_is_caught_without_numpy_warnings():
    model = LanguageModel(LETTERS, 4, 5, cell="rnn", activation="relu")
    with pytest.raises(FloatingPointError, match="Trainer: step"):
        trainer(model, stream(), steps=200, optimizer=SGD(lr=1e6)).train()


# --- metrics and checkpoints ---


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_the_history_and_cover_every_step(tmp_path):
    run = trainer(
        language_model(), stream(), steps=7, directory=tmp_path, log_interval=3, metric="bits_per_character",
        validation=stream(seed=1), validation_interval=5,
    )  # fmt: skip
    run.train()
    assert lines(tmp_path) == run.history
    training = [record for record in run.history if "loss" in record]
    assert [record["step"] for record in training] == [3, 6, 7]
    single = trainer(language_model(), stream(), steps=7, log_interval=1)
    single.train()
    each = [record["loss"] for record in single.history]
    for record, part in zip(training, (each[:3], each[3:6], each[6:]), strict=True):
        assert record["loss"] == pytest.approx(np.mean(part), rel=10 * epsilon("float64"))
        assert record["bits_per_character"] == record["loss"] / math.log(2)
        assert record["epoch"] == record["step"] / len(stream())
        assert record["tokens_per_second"] > 0
        assert record["learning_rate"] == 0.1
        assert record["gradient_norm"] > 0


def strict_json(line):
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_numbers_that_are_not_finite_are_strict_json(tmp_path):
    model = Scripted(losses={0: 1.0, 1: 1000.0, 2: 2.0})
    options = {"steps": 3, "log_interval": 1, "directory": tmp_path, "metric": "perplexity"}
    run = trainer(model, stream(), **options)
    run.train()
    perplexities = [record["perplexity"] for record in run.history]
    assert perplexities == [math.exp(1), math.inf, math.exp(2)]
    written = [strict_json(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["perplexity"] for record in written] == [math.exp(1), "Infinity", math.exp(2)]
    assert _metrics.read(tmp_path / "metrics.jsonl").records == run.history
    resumed = trainer(Scripted(), stream(), **options)
    resumed.resume()
    assert resumed.history == run.history
    resumed.total = 4
    resumed.train()
    assert _metrics.read(tmp_path / "metrics.jsonl").records == resumed.history


def test_numbers_that_are_not_finite_are_read_in_both_forms(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = [math.inf, -math.inf, math.nan]
    names = ("Infinity", "-Infinity", "NaN")
    path.write_text("".join(f'{{"step": 1, "loss": {form}}}\n' for name in names for form in (name, f'"{name}"')))
    read = [record["loss"] for record in _metrics.read(path).records]
    np.testing.assert_array_equal(read, np.repeat(values, 2))
    again = _metrics.encoded([{"step": 1, "loss": value, "loss_unit": "NaN"} for value in values])
    path.write_bytes(again)
    assert [strict_json(line)["loss"] for line in again.splitlines()] == list(names)
    np.testing.assert_array_equal([record["loss"] for record in _metrics.read(path).records], values)
    assert {record["loss_unit"] for record in _metrics.read(path).records} == {"NaN"}
    path.write_text('{"step": 1, "loss": "infinity"}\n{"step": "NaN", "loss": 1.0}\n')
    with pytest.warns(UserWarning, match="lines 1, 2 are damaged"):
        assert _metrics.read(path).records == []


def test_the_metrics_are_on_the_disk_before_the_checkpoint_that_counts_on_them(tmp_path, monkeypatch):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to name an open file")
    flushed, fsync = [], os.fsync

    def traced(descriptor):
        flushed.append(re.sub(r"\.[0-9a-f]{16}\.", ".", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", traced)
    trainer(language_model(), stream(), steps=2, directory=tmp_path / "run").train()

    def written(step):
        return [f".step-{step:09d}.safetensors.partial", "checkpoints"]

    taken = [tmp_path.name, ".run.json.partial", "run"]
    assert flushed == [*taken, "metrics.jsonl", "run", *written(0), "metrics.jsonl", *written(2)]


def comparable(records):
    return [{name: value for name, value in record.items() if name != "tokens_per_second"} for record in records]


@pytest.mark.parametrize("stop", range(1, 14))
def test_training_resumed_from_any_step_ends_with_the_same_bits(tmp_path, stop):
    def run(directory, **options):
        model = language_model(dropout=0.3)
        return model, trainer(
            model, stream(), steps=14, directory=directory, optimizer=Adam(lr=0.05), rng=3, log_interval=4,
            schedule=CosineWithWarmup(0.05, 14, 3), validation=stream(seed=1), validation_interval=3, patience=4,
            checkpoint_interval=5, **options,
        )  # fmt: skip

    model, whole = run(tmp_path / "whole")
    whole.train()

    class Stop(Exception):
        pass

    _, part = run(tmp_path / "part")
    step_of, learn = part.optimizer.step, []

    def step(*arguments, **options):
        if len(learn) == stop:
            raise Stop
        learn.append(1)
        step_of(*arguments, **options)

    part.optimizer.step = step
    with pytest.raises(Stop):
        part.train()
    resumed_model, resumed = run(tmp_path / "part")
    assert resumed.resume() == stop // 5 * 5
    resumed.train()
    assert_same(resumed_model.state_dict(), model.state_dict())
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert comparable(lines(tmp_path / "part")) == comparable(lines(tmp_path / "whole")) == comparable(resumed.history)


def test_shuffled_batches_resume_in_the_middle_of_an_epoch(tmp_path):
    def run(directory, steps):
        model = language_model()
        return model, trainer(model, PaddedBatches(sequences(), 2, rng=4), steps=steps, directory=directory)

    whole, one = run(tmp_path / "whole", 11)
    one.train()
    run(tmp_path / "part", 6)[1].train()
    part, other = run(tmp_path / "part", 11)
    assert other.resume() == 6
    other.train()
    assert_same(part.state_dict(), whole.state_dict())


def test_a_finished_run_resumes_to_nothing_and_keeps_its_best_parameters(tmp_path):
    one = TokenStream(np.zeros(2, int), 1, 1)

    def run(validation):
        model = Scripted(validation=validation)
        options = {"validation": one, "validation_interval": 1, "patience": 2, "directory": tmp_path}
        return model, trainer(model, one, steps=8, optimizer=SGD(lr=1.0), **options)

    run([3, 2, 4, 5])[1].train()
    before = lines(tmp_path)
    model, again = run([])
    assert again.resume() == 4
    assert again.stopped_early
    again.train()
    assert_same(model.params["first"], np.full(2, -2.0))
    assert lines(tmp_path) == before


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path):
    model = language_model()
    trainer(model, stream(), steps=6, directory=tmp_path, checkpoint_interval=2).train()
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    other = language_model()
    run = trainer(other, stream(), steps=6, directory=tmp_path, checkpoint_interval=2)
    with pytest.warns(UserWarning, match="step-000000006.safetensors: damaged.*using the one before it"):
        assert run.resume() == 4
    run.train()
    assert_same(other.state_dict(), model.state_dict())
    for path in checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"000006.*damaged.*000004.*damaged"):
        trainer(language_model(), stream(), steps=6, directory=tmp_path).resume()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"cell": "gru"}}, r"a run whose parameters.recurrent.weight_ih_l0 is .*20, 4.*here it is .*15, 4"),
        ({"model": {"dtype": "float32"}}, "a run whose parameters.embedding.weight is .*float64.*here .*float32"),
        ({"model": {"tied": True}, "data": {}}, "a run whose parameters.embedding.weight is"),
        ({"data": {"n": 80}}, "a run whose data.tokens is 70, but here it is 80"),
        ({"data": {"seed": 5}}, "a run whose data.crc32"),
        ({"data": {"batch_size": 2}}, "a run whose data.batch_size is 3, but here it is 2"),
        ({"validation": stream(seed=1)}, "a run whose validation is None, but here"),
        ({"optimizer": SGD(lr=0.2)}, r"a run whose optimizer is SGD\(lr=0.1.*but here it is SGD\(lr=0.2"),
        ({"optimizer": Adam(lr=0.1)}, "a run whose optimizer"),
        ({"clip_norm": 1.0}, "a run whose clip_norm is None, but here it is 1.0"),
        ({"clip_value": 1.0}, "a run whose clip_value"),
        ({"l2": 0.5}, "a run whose l2 is 0.0, but here it is 0.5"),
        ({"schedule": CosineWithWarmup(0.1, 9)}, "a run whose learning_rate is None"),
        ({"rng": np.random.Generator(np.random.MT19937(0))}, "a run whose rng is PCG64, but here it is MT19937"),
        ({"log_interval": 7}, "a run whose log_interval is 10, but here it is 7"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    trainer(language_model(), stream(), directory=tmp_path).train()
    model = language_model(**change.pop("model", {}))
    data = stream(**change.pop("data", {}))
    before = model.state_dict()
    with pytest.raises(CheckpointError, match=f"step-000000004.safetensors: belongs to {message}"):
        trainer(model, data, directory=tmp_path, **change).resume()
    assert_same(model.state_dict(), before)


def test_another_schedule_is_another_run(tmp_path):
    trainer(language_model(), stream(), directory=tmp_path, schedule=CosineWithWarmup(0.1, 9)).train()
    with pytest.raises(CheckpointError, match="a run whose learning_rate"):
        trainer(language_model(), stream(), directory=tmp_path, schedule=CosineWithWarmup(0.1, 10)).resume()
    run = trainer(language_model(), stream(), directory=tmp_path, schedule=CosineWithWarmup(0.1, 9), steps=9)
    assert run.resume() == 4


@pytest.mark.parametrize("generator", [np.random.MT19937, np.random.Philox, np.random.PCG64DXSM])
def test_the_state_of_any_generator_is_kept(tmp_path, generator):
    def run(directory, steps):
        model = language_model(dropout=0.5)
        rng = np.random.Generator(generator(7))
        return model, trainer(model, stream(), steps=steps, directory=directory, rng=rng)

    whole, one = run(tmp_path / "whole", 6)
    one.train()
    run(tmp_path / "part", 3)[1].train()
    part, other = run(tmp_path / "part", 6)
    other.resume()
    other.train()
    assert_same(part.state_dict(), whole.state_dict())


def test_a_directory_with_a_run_is_not_overwritten(tmp_path):
    trainer(language_model(), stream(), directory=tmp_path).train()
    with pytest.raises(ValueError, match=r"already holds a training run \(step-000000004.safetensors\); call resume"):
        trainer(language_model(), stream(), directory=tmp_path).train()
    with pytest.raises(CheckpointError, match="no checkpoint in there"):
        trainer(language_model(), stream(), directory=tmp_path / "other").resume()
    with pytest.raises(ValueError, match="directory is None, expected the directory of a training run"):
        trainer(language_model(), stream()).resume()


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(language_model(), stream()).train()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_announced_after_it_is_there(tmp_path):
    found = []
    run = trainer(
        language_model(), stream(), steps=5, directory=tmp_path, checkpoint_interval=2,
        on_checkpoint=lambda: found.append(checkpoints(tmp_path / "checkpoints")[-1].name[5:14]),
    )  # fmt: skip
    run.train()
    assert found == ["000000000", "000000002", "000000004", "000000005"]
    assert run.saved_step == 5


def test_an_interrupt_waits_for_the_step_and_leaves_a_checkpoint(tmp_path):
    whole = language_model()
    trainer(whole, stream(), steps=6).train()

    model = language_model()
    run = trainer(model, stream(), steps=6, directory=tmp_path)
    step_of = run.optimizer.step

    def step(*arguments, **options):
        if run.step == 2:
            signal.raise_signal(signal.SIGINT)
        step_of(*arguments, **options)

    run.optimizer.step = step
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert run.step == run.saved_step == 3
    resumed = language_model()
    again = trainer(resumed, stream(), steps=6, directory=tmp_path)
    assert again.resume() == 3
    again.train()
    assert_same(resumed.state_dict(), whole.state_dict())


def test_a_second_interrupt_acts_at_once(tmp_path):
    run = trainer(language_model(), stream(), steps=6, directory=tmp_path)

    def step(*_, **__):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second interrupt did nothing")

    run.optimizer.step = step
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.step == run.saved_step == 0


def test_each_line_of_the_metrics_is_reported_once():
    reported = []
    options = {"steps": 7, "log_interval": 2, "validation": stream(), "validation_interval": 3}
    run = trainer(language_model(), stream(), on_log=reported.append, **options)
    run.train()
    assert sorted(reported, key=str) == sorted(run.history, key=str)
    assert len([record for record in reported if "validation_loss" in record]) == 3


@pytest.mark.parametrize("at", range(1, 7))
def test_a_report_that_fails_is_made_again_and_nothing_is_logged_twice(at):
    options = {"steps": 6, "log_interval": 2, "validation": stream(), "validation_interval": 2}
    whole = trainer(language_model(), stream(), **options)
    whole.train()
    reported = []

    def report(record):
        reported.append(record["step"])
        if len(reported) == at:
            raise OSError

    run = trainer(language_model(), stream(), on_log=report, **options)
    with pytest.raises(OSError):  # noqa: PT011
        run.train()
    run.train()
    times = [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in run.history]
    assert times == [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in whole.history]


def test_the_progress_bar_shows_loss_metric_and_speed(capsys):
    run = trainer(language_model(), stream(), progress=True, metric="bits_per_character", log_interval=1)
    run.train()
    shown = capsys.readouterr().err
    last = run.history[-1]
    assert "4/4" in shown
    assert f"loss {last['loss']:.3f}, bits per character {last['bits_per_character']:.3f}, " in shown
    assert "k tokens/s" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "steps is None and epochs is None, expected exactly one"),
        ({"epochs": 2}, "steps is 4 and epochs is 2, expected exactly one"),
        ({"steps": -1}, "steps is -1, expected at least 0"),
        ({"steps": 1.5}, "steps is 1.5, expected a whole number"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0, expected a positive number"),
        ({"clip_value": math.nan}, "clip_value is nan, expected a positive number"),
        ({"l2": -0.1}, "l2 is -0.1, expected a number of at least 0"),
        ({"l2": {"weight_hh": -1}}, r"l2\['weight_hh'\] is -1, expected a number of at least 0"),
        ({"l2": {"weigth_hh": 0.1}}, r"l2 has 'weigth_hh', expected a part of one of the names \['embedding.weight'"),
        ({"patience": 2}, "validation is None, expected data for early stopping"),
        ({"validation_interval": 2}, "validation is None, expected data"),
        ({"validation": stream(), "validation_interval": 0}, "validation_interval is 0, expected at least 1"),
        ({"validation": stream(), "patience": 0}, "patience is 0, expected at least 1"),
        ({"checkpoint_interval": 0}, "checkpoint_interval is 0, expected at least 1"),
        ({"log_interval": 0}, "log_interval is 0, expected at least 1"),
        ({"teacher_forcing": 1.1}, r"teacher_forcing is 1.1, expected a probability in \[0, 1\]"),
        ({"teacher_forcing": math.nan}, r"teacher_forcing is nan, expected a probability"),
        ({"teacher_forcing": "half"}, r"teacher_forcing is 'half', expected a probability in \[0, 1\]"),
        ({"metric": "accuracy"}, "metric is 'accuracy', expected one of 'bits_per_character', 'perplexity'"),
        ({"rng": None}, "rng is None, expected an int seed or a numpy.random.Generator"),
        ({"l2": {3: 0.1}}, "l2 has the key 3, expected a part of the name of a parameter"),
        ({"schedule": 0.1}, "schedule is 0.1, expected a function or None"),
        ({"schedule": Exponential}, "schedule is the class Exponential, expected an object of it"),
        ({"on_checkpoint": 3}, "on_checkpoint is 3, expected a function or None"),
        ({"on_log": 3}, "on_log is 3, expected a function or None"),
        ({"on_gradients": "norm"}, "on_gradients is 'norm', expected a function or None"),
        ({"optimizer": Adam}, "optimizer is the class Adam, expected an object"),
        ({"directory": 3}, "directory is an int, expected a str or a path-like object"),
        ({"directory": ""}, "directory is '', expected the path of a file or a directory"),
    ],
)
def test_the_trainer_refuses(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(language_model(), stream(), **options)


def test_a_model_that_cannot_load_its_training_state_is_rejected():
    model = language_model()
    model.training_state = dict
    with pytest.raises(TypeError, match=r"Trainer: model is .* without \['load_training_state'\]"):
        trainer(model, stream())


# --- arrays of another library ---


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("data", [stream, lambda: PaddedBatches(sequences(), 3)], ids=["stream", "padded"])
def test_shared_code_trains_strict_arrays_to_the_same_bits(strict_namespace, tmp_path, cell, data):
    def moved_data():
        if data is stream:
            return TokenStream(strict(np.random.default_rng(0).integers(0, 6, 70, dtype=np.int32)), 3, 4)
        return PaddedBatches(strict(sequences()), 3)

    def run(model, data, directory, steps):
        return trainer(
            model, data, optimizer=Adam(lr=0.05), steps=steps, l2=0.01, clip_norm=0.5, clip_value=0.1, validation=data,
            validation_interval=3, patience=9, directory=tmp_path / directory, checkpoint_interval=3,
        )  # fmt: skip

    model = language_model(dropout=0.2, cell=cell)
    run(model, data(), "plain", 9).train()
    run(language_model(dropout=0.2, cell=cell).to(strict_namespace), moved_data(), "strict", 6).train()
    other = language_model(dropout=0.2, cell=cell).to(strict_namespace)
    resumed = run(other, moved_data(), "strict", 9)
    assert resumed.resume() == 6
    resumed.train()
    assert all(isinstance(p, Array) for p in other.params.values())
    assert_same(other.state_dict(), model.state_dict())


def test_a_parameter_of_another_library_that_is_not_finite_is_named(strict_namespace):
    model = language_model().to(strict_namespace)
    model.params["output.bias"][1] = math.inf
    data = TokenStream(strict(np.zeros(70, np.int32)), 3, 4)
    with pytest.raises(FloatingPointError, match=r"parameter output.bias is not finite"):
        trainer(model, data).train()
