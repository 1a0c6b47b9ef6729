"""Models, layers and tools built by shared code from the wings' functions, on the kernels and their arrays."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import gpurnn
from gpurnn import analysis
from gpurnn.models.kalman import ar, level, regression

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def agree(kernel_wing):
    """Checks the results of ``compute(xp)`` on the kernels against those on the NumPy wing."""

    def check(compute):
        with gpurnn.use("reference"):
            expected = list(flat(compute(np)))
        with gpurnn.use("host") if kernel_wing.name == "host" else contextlib.nullcontext():
            found = list(flat(compute(kernel_wing.xp)))
        assert len(found) == len(expected) > 1
        for a, b in zip(found, expected, strict=True):
            assert not isinstance(b, np.ndarray) or isinstance(a, (kernel_wing.xp.ndarray, np.ndarray))
            # About a hundred steps of training and time in float64, each of which may amplify the roundings of the
            # others.
            np.testing.assert_allclose(kernel_wing.back(a), b, rtol=1e-8, atol=1e-10)

    return check


def flat(results):
    for result in results:
        if isinstance(result, (list, tuple)):
            yield from flat(result)
        elif isinstance(result, dict):
            yield from result.values()
        else:
            yield result


def sequences(xp, count=12, features=3):
    rng = np.random.default_rng(1)
    return [xp.asarray(rng.standard_normal((length, features))) for length in rng.integers(2, 9, count).tolist()]


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_a_classifier(agree, pooling):
    def compute(xp):
        model = gpurnn.SequenceClassifier(3, 6, 2, bidirectional=True, pooling=pooling, dtype="float64").to(xp)
        examples, classes = sequences(xp), [i % 2 for i in range(12)]
        model.fit(examples, classes, epochs=2, optimizer=gpurnn.Adam(0.01))
        return model.params, model.score(examples, classes), model.predict(examples)

    agree(compute)


def test_a_tagger_and_a_regressor(agree):
    def compute(xp):
        examples = sequences(xp)
        tagger = gpurnn.SequenceTagger(3, 6, 2, dtype="float64").to(xp)
        tagger.fit(examples, [xp.arange(len(x)) % 2 for x in examples], epochs=1)
        regressor = gpurnn.SequenceRegressor(3, 6, 1, dtype="float64").to(xp)
        regressor.fit(examples, [xp.asarray([float(i)]) for i in range(12)], epochs=1)
        return tagger.params, regressor.params

    agree(compute)


def test_a_forecaster(agree):
    def compute(xp):
        series = xp.asarray(np.sin(np.arange(60) / 4))
        model = gpurnn.Forecaster(window=4, hidden_size=3, dtype="float64").to(xp)
        model.fit(series[:20], epochs=1)
        forecast = model.forecast(series, 5, level=0.9, samples=10, rng=0)
        return model.params, forecast.point, forecast.lower, model.backtest(series, start=57, horizon=3).mae

    agree(compute)


@pytest.mark.parametrize("attention", [None, "additive", "general"])
def test_a_translator(agree, attention):
    numbers = [str(n) for n in np.random.default_rng(2).integers(0, 1000, 10)]
    words = [" ".join(DIGITS[int(digit)] for digit in number) for number in numbers]

    def compute(xp):
        model = gpurnn.Translator.from_texts(
            numbers, words, 4, 5, source_level="char", target_level="word", attention=attention, dtype="float64"
        ).to(xp)
        model.fit(numbers, words, epochs=1, batch_size=5)
        assert len(model.predict(numbers[:3], beam_size=2)) == 3
        return model.params, model.bleu(numbers, words)

    agree(compute)


def test_a_language_model_reads_and_writes(agree):
    text = "abcde fghij. " * 6
    vocabulary = gpurnn.CharVocabulary.from_text(text)

    def compute(xp):
        model = gpurnn.LanguageModel(vocabulary, 4, 6, dtype="float64").to(xp)
        return model.perplexity(text), [ord(character) for character in model.sample(8, prompt="ab", rng=0)]

    agree(compute)


def test_state_space_layers_and_a_transformer(agree):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((70, 2, 3)), np.array([70, 40])

    def compute(xp):
        x, lengths = map(xp.asarray, arrays)
        model = gpurnn.Sequential(
            gpurnn.DiagonalStateSpace(3, 6, 8, dtype="float64"),
            gpurnn.StateSpace(8, 5, 8, dtype="float64"),
            gpurnn.LayerNorm(8, dtype="float64"),
            gpurnn.PositionalEncoding(),
            gpurnn.TransformerBlock(8, 2, causal=True, activation="gelu", dropout=0.1, dtype="float64"),
        ).to(xp)
        (y, _), pullback = model.vjp(x, rng=1, lengths=lengths)
        (dx, _), gradients = pullback((y, None))
        return y, dx, gradients

    agree(compute)


def test_a_kalman_filter(agree):
    series = np.cumsum(np.random.default_rng(0).standard_normal(40))[:, None]
    series[5:8] = np.nan

    def compute(xp):
        y, one = xp.asarray(series), xp.ones((1, 1))
        model = gpurnn.LinearGaussian(F=one, H=one, Q=one, R=one)
        value, pullback = model.vjp(y)
        return value, pullback(1.0), model.smooth(y), model.forecast(y, 4).interval(0.9)

    agree(compute)


def test_a_kalman_filter_with_inputs_step_by_step(agree):
    rng = np.random.default_rng(0)
    series, inputs = rng.standard_normal((12, 2, 1)), rng.standard_normal((12, 2))
    series[3, 0] = np.nan

    def compute(xp):
        y, u, one = xp.asarray(series), xp.asarray(inputs), xp.ones((1, 1))
        model = gpurnn.LinearGaussian(one / 2, one, one, one, B=xp.ones((1, 2)), d=xp.ones(1), stationary=True)
        state = None
        for t in range(12):
            state = model.update(y[t], state, xp.stack([u[t], u[t]]))
        return state.mean, state.covariance, model.vjp(y, u)[1](1.0), model.fit(y, u=u, iterations=2).params

    agree(compute)


def test_a_structural_model(agree):
    series = np.cumsum(np.random.default_rng(0).standard_normal(24))
    series[5:7] = np.nan

    def compute(xp):
        y, X = xp.asarray(series), xp.asarray(np.arange(26.0)[:, None] % 5)
        model = (level() + ar(1) + regression(1)).to(xp).fit(y, X[:24], iterations=2)
        ahead = model.forecast(y, 2, X)
        parts = [*model.decompose(y, X[:24]).values(), *ahead.components.values()]
        return model.params, parts, ahead.mean, model.vjp(y, X[:24])[1](1.0)

    agree(compute)


@pytest.mark.parametrize("cell", [gpurnn.RNN, gpurnn.LSTM, gpurnn.GRU])
def test_diagnosis(agree, cell):
    driven = np.random.default_rng(0).standard_normal((20, 2, 3))

    def compute(xp):
        layer, x = cell(3, 6, dtype="float64").to(xp), xp.asarray(driven)
        jacobians = analysis.jacobians(layer, x)
        spectrum = analysis.lyapunov_spectrum(layer, x, exponents=2, transient=2)
        saturated = [gate.saturated for gate in analysis.activity(layer, x).values()]
        return jacobians, spectrum.exponents, saturated, analysis.gradient_growth(jacobians).per_step

    agree(compute)
