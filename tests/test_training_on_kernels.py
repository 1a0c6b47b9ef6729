"""Layers and models trained end to end on the kernels, compared with the NumPy wing."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from gpurnn.kernels.recurrence import plan
from problems import SCHEDULES
from tolerance import assert_close, bound, recurrence_terms

import gpurnn

STEPS = 20
TERMS = STEPS * recurrence_terms(T=8, B=4, I=10, H=7, layers=3)
"""Each step of training adds the rounding of its forward and backward pass to the parameters."""
TEXT = "the quick brown fox jumps over the lazy dog. " * 12


@pytest.fixture
def trained(kernel_wing):
    """Checks the losses and parameters of ``train(xp)`` on the kernels against those on the NumPy wing."""

    def check(train, terms=TERMS):
        with gpurnn.use("reference"):
            expected = train(np)
        on_host = kernel_wing.name == "host"
        with gpurnn.use("host") if on_host else contextlib.nullcontext():
            losses, params = train(kernel_wing.xp)
        assert all(isinstance(value, kernel_wing.xp.ndarray) for value in params.values())
        found = kernel_wing.back(dict(params))
        for step, (a, b) in enumerate(zip(losses, expected[0], strict=True)):
            assert abs(a - b) <= bound("float64", terms) * abs(b), f"step {step}"
        for name, value in expected[1].items():
            assert_close(found[name], value, terms, name)
        assert expected[0][-1] < expected[0][0]

    return check


def recording(model):
    """The list in which the model will record its training losses."""
    losses, gradients = [], model.loss_and_gradients

    def recorded(*args, **options):
        found = gradients(*args, **options)
        losses.append(float(found[0]))
        return found

    model.loss_and_gradients = recorded
    return losses


@pytest.mark.parametrize("optimizer", [gpurnn.Adam, gpurnn.SGD, gpurnn.RMSprop])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_language_model(trained, cell, optimizer):
    vocabulary = gpurnn.CharVocabulary.from_text(TEXT)

    def train(xp):
        model = gpurnn.LanguageModel(vocabulary, 5, 7, cell=cell, dtype="float64", rng=3).to(xp)
        data = gpurnn.TokenStream(xp.asarray(vocabulary.encode(TEXT)), batch_size=3, steps=8)
        losses = recording(model)
        gpurnn.Trainer(model, data, optimizer(0.01), steps=STEPS, clip_norm=1.0, progress=False).train()
        return losses, model.params

    trained(train)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stack_of_layers_by_every_schedule(trained, schedule):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((6, 4, 3)), rng.standard_normal((6, 4, 2)), np.array([6, 2, 0, 5])

    def train(xp):
        x, target, lengths = map(xp.asarray, arrays)
        model = gpurnn.Sequential(
            gpurnn.LSTM(3, 5, bidirectional=True, dtype="float64", rng=1),
            gpurnn.GRU(10, 6, num_layers=2, variational_dropout=0.2, dropout=0.2, dtype="float64", rng=2),
            gpurnn.Dense(6, 2, dtype="float64", rng=3),
        ).to(xp)
        optimizer, losses = gpurnn.Adam(0.02), []
        for step in range(STEPS):
            (y, _), pullback = model.vjp(x, lengths=lengths, rng=step % 3)
            loss, pull = gpurnn.mse.vjp(y, target)
            _, gradients = pullback((pull(1.0)[0], None))
            gradients, _ = gpurnn.clip_by_global_norm(gradients, 1.0)
            optimizer.step(model.params, gradients)
            losses.append(float(loss))
        return losses, model.params

    with plan.schedule(schedule):
        trained(train)
