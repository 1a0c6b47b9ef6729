"""Truncated backpropagation through time, BPTT(k1, k2): its definition, PyTorch's results, and resumed runs."""

from __future__ import annotations

import itertools
import re

import golden
import numpy as np
import pytest
from allocations import most_bytes
from test_checkpointing import assert_bits
from tolerance import assert_all_close, assert_close, assert_golden, check_gradients, recurrence_terms

import gpurnn
from gpurnn import kernels, reference
from gpurnn.models import CharVocabulary, LanguageModel, language_model
from gpurnn.training import CheckpointError, TokenStream, Trainer, evaluate, truncated_bptt
from gpurnn.training.truncation import borders

# All combinations of options are drawn, including those without effect.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

KS = [(1, 1), (3, 3), (3, 4), (2, 5), (4, 8), (5, 100), (100, 100)]


@pytest.mark.parametrize(("k1", "k2"), KS)
def test_borders(k1, k2):
    T, before = 13, 0
    for index in range(-(-T // k1)):
        start, new, stop, following = borders(index, k1, k2, T)
        assert new == index * k1
        assert stop == min(new + k1, T)
        assert start == max(new + k1 - k2, 0) == before
        assert start <= following
        assert following <= stop or stop == T
        before = following
    assert stop == T


@pytest.mark.parametrize("record", golden.records("truncation"), ids=lambda record: record["name"])
def test_against_pytorch(record, each_wing):
    """In PyTorch, the graph is cut every k steps and the losses are added."""
    a, k = golden.arrays("truncation", record["name"]), record["scalars"]["k"]
    T, B, I = a["x"].shape
    layer = gpurnn.RNN(I, record["H"], dtype="float64")
    names = {"weight_ih_l0": "Wxh", "weight_hh_l0": "Whh", "bias_ih_l0": "b"}
    layer.load_state_dict({**{name: a[theirs] for name, theirs in names.items()}, "bias_hh_l0": np.zeros_like(a["b"])})
    y, dx, dh0, total = [], [], None, {}
    for window in truncated_bptt(layer, a["x"], a["h0"][None], steps=k):
        assert window.steps == window.gradient_steps
        y.append(window.y)
        (part, dstate), grads = window.pullback(a["ct_y"][window.steps])
        dx.append(part)
        dh0 = dstate if dh0 is None else dh0
        total = {name: total.get(name, 0) + g for name, g in grads.items()}
    terms = recurrence_terms(T, B, I, record["H"])
    assert_golden(np.concatenate(y), a["y"], terms, "y")
    assert_close(np.array((np.concatenate(y) * a["ct_y"]).sum()), np.array(record["loss"]), terms, at_least=1e-9)
    assert_golden(np.concatenate(dx), a["g_x"], terms, "x")
    assert_golden(dh0[0], a["g_h0"], terms, "h0")
    for name, theirs in names.items():
        assert_golden(total[name], a[f"g_{theirs}"], terms, name)


T, B, I, H = 13, 3, 2, 3
TERMS = recurrence_terms(T, B, I, H, 2)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def stack():
    return gpurnn.Sequential(
        gpurnn.LSTM(I, H, residual=True, dtype="float64"), gpurnn.GRU(H, H, 2, dtype="float64", rng=1)
    )


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize(("k1", "k2"), KS)
def test_against_the_definition(k1, k2, update):
    """Each window is computed from its beginning, with the state that the window before had there."""
    layer, x, dy = stack(), normal(T, B, I), normal(T, B, H, seed=1)
    resets = np.random.default_rng(2).random((T, B)) < 0.1
    definition = stack()
    state, count = None, 0
    for window in truncated_bptt(layer, x, steps=k1, gradient_steps=k2, resets=resets):
        start, new, stop, following = borders(count, k1, k2, T)
        assert (window.gradient_steps, window.steps) == (slice(start, stop), slice(new, stop))
        (y, final), pull = definition.vjp(x[start:stop], state, None, resets[start:stop])
        weights = np.concatenate([np.zeros_like(dy[start:new]), dy[new:stop]])
        expected = pull((weights, None))
        assert_all_close(window.y, y[new - start :], TERMS)
        assert_all_close(window.pullback(dy[new:stop]), expected, TERMS)
        assert not any(g.any() for g in window.pullback(None)[1].values())
        if stop == T:
            state = final
        elif following > start:
            state = definition(x[start:following], state, None, resets[start:following])[1]
        if state is not None:
            assert_all_close(window.state, state, TERMS)
        if update:
            for own in (layer, definition):
                gpurnn.SGD(0.1).step(own.params, expected[1])
        count += 1
    assert count == -(-T // k1)


def test_gradients_through_all_steps_are_those_of_the_whole():
    layer, x, dy = stack(), normal(T, B, I), normal(T, B, H, seed=1)
    (_, final), pull = layer.vjp(x)
    _, expected = pull((dy, None))
    total = {}
    for window in truncated_bptt(layer, x, steps=3, gradient_steps=15):
        _, grads = window.pullback(dy[window.steps])
        total = {name: total.get(name, 0) + g for name, g in grads.items()}
    assert_all_close(total, expected, TERMS)
    assert_all_close(window.state, final, TERMS)
    for window in truncated_bptt(layer, x, steps=3):
        _, grads = window.pullback(dy[window.steps])
    with pytest.raises(AssertionError):
        assert_all_close(total, expected, 0)


def test_dropout_is_one_for_a_window_and_the_state_handed_on_is_that_of_training():
    layer = gpurnn.LSTM(I, H, 2, dropout=0.5, variational_dropout=0.5, dtype="float64")
    x = normal(T, B, I)
    first, second = itertools.islice(truncated_bptt(layer, x, steps=4, gradient_steps=6, rng=3), 2)
    rng = np.random.default_rng(3)
    (y, state), _ = layer.vjp(x[:4], rng=rng, state_after=2)
    assert_bits((first.y, first.state), (y, state))
    (y, state), _ = layer.vjp(x[2:8], state, rng=rng, state_after=4)
    assert_bits((second.y, second.state), (y[2:], state))


REFUSED = [
    ({"steps": 0}, "steps is 0, expected at least 1"),
    ({"steps": 3, "gradient_steps": 2}, "gradient_steps is 2, expected at least 3"),
    ({"steps": 3, "x": np.zeros(4)}, "x has shape (4,), expected (T, B, ...)"),
    ({"steps": 3, "x": None}, "x is None, expected an array"),
    ({"steps": 3, "resets": np.zeros((2, 2), bool)}, "resets has shape (2, 2), expected (T, B) = (13, 3)"),
    ({"steps": 3, "layer": gpurnn.GRU(I, H, batch_first=True)}, "layer has batch_first=True, expected a layer"),
    (
        {"steps": 3, "layer": gpurnn.Sequential(gpurnn.GRU(I, H, batch_first=True))},
        "layer has batch_first=True, expected a layer",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda value: str(value)[:20])
def test_arguments_are_refused_at_once(arguments, message):
    """The call itself rejects them, before the first window is requested."""
    arguments = {"layer": stack(), "x": normal(T, B, I), **arguments}
    with pytest.raises((TypeError, ValueError), match=f"^truncated_bptt: {re.escape(message)}"):
        truncated_bptt(**arguments)


def test_a_cotangent_of_all_outputs_is_refused():
    _, window = itertools.islice(truncated_bptt(stack(), normal(T, B, I), steps=2, gradient_steps=4), 2)
    with pytest.raises(ValueError, match=r"truncated_bptt: dy has shape \(4, 3, 3\), expected the shape of y"):
        window.pullback(normal(4, B, H))


@pytest.mark.usefixtures("strict_namespace")
def test_on_arrays_that_are_no_numpy_arrays():
    import strict_wing

    layer, x, dy = stack(), normal(T, B, I), normal(T, B, H)
    moved = layer.to(strict_wing.xp)
    windows = truncated_bptt(moved, strict_wing.strict(x), steps=4, gradient_steps=6, rng=1)
    for window, expected in zip(windows, truncated_bptt(layer, x, steps=4, gradient_steps=6, rng=1), strict=True):
        found = window.pullback(strict_wing.strict(dy[expected.steps]))
        assert_bits(strict_wing.plain((window.y, found)), (expected.y, expected.pullback(dy[expected.steps])))


@pytest.mark.parametrize(("k1", "k2"), KS[:-1])
def test_a_stream_of_overlapping_windows(k1, k2):
    tokens = np.arange(3 * 14)
    plain, stream = TokenStream(tokens, 3, k1), TokenStream(tokens, 3, k1, gradient_steps=k2)
    assert len(stream) == len(plain)
    for index in range(len(stream)):
        batch, newest = stream.batch(1, index), plain.batch(1, index)
        start, new, stop, following = borders(index, k1, k2)
        assert_bits(batch.targets, newest.targets)
        assert_bits(batch.inputs[batch.context :], newest.inputs)
        assert batch.inputs[0].tolist() == [start, 14 + start, 28 + start]
        assert batch.inputs.shape[0] == stop - start
        assert (stop - start if batch.state_after is None else batch.state_after) == following - start
        assert (batch.context, batch.count) == (new - start, newest.count)
    assert stream.config() != plain.config()


def test_a_stream_refuses_fewer_steps_for_gradients():
    with pytest.raises(ValueError, match=r"^TokenStream: gradient_steps is 2, expected at least 3"):
        TokenStream(np.zeros(20, int), 2, 3, gradient_steps=2)


VOCABULARY = CharVocabulary("?abcdefg")


def tokens_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 8, n, dtype=np.int32)


def model_of(**options):
    return LanguageModel(VOCABULARY, 3, 4, num_layers=2, dtype="float64", rng=1, **options)


def test_a_trainer_does_it():
    """Over two epochs, a trainer gives the results of calling `truncated_bptt` by hand."""
    model, tokens = model_of(cell="gru"), tokens_of(3 * 14)
    parts = model.embedding, model.recurrent, model.output
    by_hand = gpurnn.Sequential(gpurnn.Embedding(8, 3, dtype="float64"), gpurnn.GRU(3, 4, 2, dtype="float64"))
    by_hand = gpurnn.Sequential(*by_hand.layers, gpurnn.Dense(4, 8, dtype="float64"))
    for own, theirs in zip(by_hand.layers, parts, strict=True):
        own.load_state_dict(theirs.state_dict())
    Trainer(
        model, TokenStream(tokens, 3, 4, gradient_steps=7), gpurnn.SGD(0.5), epochs=2, progress=False
    ).train()  # fmt: skip
    lanes = tokens.reshape(3, 14).T
    for _ in range(2):
        for window in truncated_bptt(by_hand, lanes[:12], steps=4, gradient_steps=7):
            _, pull_loss = gpurnn.cross_entropy.vjp(window.y, lanes[1:13][window.steps])
            gpurnn.SGD(0.5).step(by_hand.params, window.pullback(pull_loss(1.0)[0])[1])
    for own, theirs in zip(by_hand.layers, parts, strict=True):
        assert_all_close(theirs.state_dict(), own.state_dict(), 100 * TERMS)


def test_evaluation_counts_each_step_once():
    model, tokens = model_of(), tokens_of(100)
    losses = [evaluate(model, TokenStream(tokens, 3, 4, **o)) for o in ({}, {"gradient_steps": 11})]
    assert losses[0] == losses[1]


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of few rows, so that short sequences have several."""
    monkeypatch.setattr(reference.clock, "CHUNK_ROWS", 3)
    monkeypatch.setattr(kernels.recurrence.layer, "CHUNK_ROWS", 3)
    monkeypatch.setattr(language_model, "_ROWS", 6)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("stop", [1, 2, 4, 5, 6, 8])
def test_a_resumed_run_is_the_same(tmp_path, stop):
    """The run has dropout and crosses the end of an epoch. Gradient checkpointing changes nothing."""

    def run(name, steps, **options):
        model = model_of(dropout=0.3, variational_dropout=0.3)
        data = TokenStream(tokens_of(3 * 21), 3, 4, gradient_steps=10)
        assert len(data) == 5
        trainer = Trainer(
            model, data, gpurnn.Adam(0.05), steps=steps, directory=tmp_path / name, checkpoint_interval=100,
            log_interval=1, rng=2, progress=False, **options,
        )  # fmt: skip
        if name == "cut" and (tmp_path / name).exists():
            assert trainer.resume() == stop
        trainer.train()
        return model.state_dict(), [r["loss"] for r in trainer.history]

    whole = run("whole", 9)
    run("cut", stop)
    params, losses = run("cut", 9, gradient_checkpoint_every=2)
    assert_bits(params, whole[0])
    assert losses == whole[1]


def test_a_trainer_tells_the_model_only_what_it_must():
    told = []

    class Told(LanguageModel):
        def loss_and_gradients(self, *arguments, rng, **options):
            told.append(options)
            return super().loss_and_gradients(*arguments, rng=rng, **options)

    def train(data, **options):
        told.clear()
        model = Told(VOCABULARY, 3, 4)
        Trainer(model, data, gpurnn.SGD(0.1), epochs=1, progress=False, **options).train()
        return told

    tokens = tokens_of(3 * 13)
    assert train(TokenStream(tokens, 3, 4)) == [{}] * 3
    assert train(TokenStream(tokens, 3, 4), gradient_checkpoint_every="sqrt") == [{"checkpoint_every": "sqrt"}] * 3
    stream = TokenStream(tokens, 3, 4, gradient_steps=6)
    assert train(stream) == [{"state_after": 2}, {"state_after": 4}, {"state_after": 4}]


def test_another_truncation_is_another_run(tmp_path):
    def trainer(**options):
        data = TokenStream(tokens_of(60), 3, 4, **options)
        return Trainer(model_of(), data, gpurnn.SGD(0.1), steps=1, directory=tmp_path, progress=False)

    trainer(gradient_steps=6).train()
    with pytest.raises(CheckpointError, match="gradient_steps is 6, but here it is None"):
        trainer().resume()


def batch_of(S, seed=0):
    return tokens_of(T * B, seed).reshape(T, B), tokens_of(S * B, seed + 1).reshape(S, B)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lengths", [None, [13, 9, 4], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("S", [13, 5, 0])
def test_the_loss_of_a_language_model_is_that_of_its_logits(S, lengths, tied, monkeypatch):
    model = LanguageModel(VOCABULARY, 4, 4, dropout=0.3, tied=tied, dtype="float64")
    inputs, targets = batch_of(S)
    lengths = None if lengths is None else np.array(lengths)
    (logits, state), pullback = model.vjp(inputs, None, lengths)
    mask = None if lengths is None else (np.arange(T)[:, None] < lengths)[T - S :]
    loss, pull_loss = gpurnn.cross_entropy.vjp(logits[T - S :], targets, mask=mask)
    dlogits = np.concatenate([np.zeros_like(logits[: T - S]), pull_loss(1.0)[0]])
    _, grads = pullback((dlogits, None))
    for rows in (1024, 3, 7):
        monkeypatch.setattr(language_model, "_ROWS", rows)
        found = model.loss_and_gradients(inputs, targets, None, lengths)
        assert_all_close(found, (loss, state, grads), TERMS)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("state_after", [None, 0, 6])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_checkpoints_change_no_bit_of_a_language_model(cell, state_after, each_wing):
    model = model_of(cell=cell, dropout=0.3, recurrent_dropout=0.3)
    inputs, targets = batch_of(9)
    inputs, lengths = inputs[:10], np.array([10, 3, 7])
    options = {"rng": 4, "state_after": state_after}
    expected = model.loss_and_gradients(inputs, targets, None, lengths, **options)
    assert_bits(model.loss_and_gradients(inputs, targets, None, lengths, checkpoint_every=2, **options), expected)
    outputs, pullback = model.vjp(inputs, None, lengths, **options)
    expected = outputs, pullback((outputs[0], outputs[1]))
    outputs, pullback = model.vjp(inputs, None, lengths, checkpoint_every=2, **options)
    assert_bits((outputs, pullback((outputs[0], outputs[1]))), expected)


@pytest.mark.usefixtures("short_chunks")
def test_gradients_of_the_newest_losses_by_differences():
    model = model_of()
    inputs, targets = batch_of(5)

    def loss(arrays):
        model.load_state_dict(arrays)
        return [model.loss_and_gradients(inputs, targets)[0]]

    arrays = model.state_dict()
    _, state, grads = model.loss_and_gradients(inputs, targets, state_after=9, checkpoint_every=2)
    assert_close(state[0], model(inputs[:9])[1][0], TERMS)
    check_gradients(loss, arrays, [np.array(1.0)], grads, seed=0)


@pytest.mark.parametrize("shape", [(14, 3), (5, 2)], ids=str)
def test_a_language_model_refuses_targets_that_do_not_fit(shape):
    message = re.escape(f"targets has shape {shape}, expected (S, B) with S <= T = 13 and B = 3")
    with pytest.raises(ValueError, match=rf"^LanguageModel\.loss_and_gradients: {message}"):
        model_of().loss_and_gradients(batch_of(1)[0], np.zeros(shape, np.int32))


def test_memory_of_a_loss_does_not_hold_all_logits(monkeypatch):
    monkeypatch.setattr(language_model, "_ROWS", 16)
    model = LanguageModel(CharVocabulary("".join(map(chr, range(300, 1300)))), 2, 2, cell="rnn")
    inputs = np.zeros((400, 4), np.int32)
    assert most_bytes(lambda: model.loss_and_gradients(inputs, inputs)) < inputs.size * 1000 * 4 / 8
