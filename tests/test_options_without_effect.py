"""Options without effect are reported once, contradictions are rejected, and unknown names list the known ones."""

import warnings

import numpy as np
import pytest

import gpurnn
from gpurnn.schedules import Constant
from gpurnn.training import PaddedBatches, Reinforce, TokenStream

X = [np.ones((3, 4), np.float32)] * 4
VOCABULARY = gpurnn.CharVocabulary("?ab")


def classifier(**options):
    return gpurnn.SequenceClassifier(4, 4, 2, **options)


def data():
    return PaddedBatches(X, 2, [np.array(0)] * 4, per_sequence=True)


def trainer(model=None, batches=None, optimizer=None, **options):
    return gpurnn.Trainer(model or classifier(), batches or data(), optimizer or gpurnn.SGD(), steps=1, **options)


def translator():
    return gpurnn.EncoderDecoder(5, 5, 4, 4)


def one_step(optimizer):
    optimizer.step({"weight": np.ones(2)}, {"weight": np.ones(2)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gpurnn.LSTM(3, 4, dropout=0.5), r"LSTM: dropout=0\.5 has no effect, as there is one layer"),
        (lambda: gpurnn.GRU(3, 4, dropout=0.5), "GRU: dropout=0.5 has no effect"),
        (
            lambda: gpurnn.RNN(3, 4, residual=True),
            "RNN: residual=True has no effect, as the input has 3 features and the",
        ),
        (lambda: gpurnn.RNN(4, 4, residual=True, bidirectional=True), "the input has 4 features and the output 8"),
        (lambda: gpurnn.SGD(dampening=0.5), r"SGD: dampening=0\.5 has no effect without momentum"),
        (
            lambda: one_step(gpurnn.Adam(recurrent_weight_decay=0.1)),
            "Adam.step: recurrent_weight_decay=0.1 has no effect",
        ),
        (
            lambda: trainer(optimizer=gpurnn.Rprop(), schedule=Constant(0.1)),
            "Trainer: schedule has no effect after the",
        ),
        (lambda: trainer(on_checkpoint=print), "Trainer: on_checkpoint has no effect, as directory is None"),
        (lambda: trainer(checkpoint_interval=5), "Trainer: checkpoint_interval=5 has no effect, as directory is None"),
        (
            lambda: translator().sample(np.array([[3]]), max_length=2, temperature=0, top_k=3, rng=0),
            "EncoderDecoder.sample: top_k=3 has no effect, as temperature=0 takes the likeliest token",
        ),
        (
            lambda: gpurnn.LanguageModel(VOCABULARY, 3, 3).sample(2, temperature=0, top_p=0.5),
            r"LanguageModel.sample: top_p=0\.5 has no effect",
        ),
        (lambda: classifier().fit(data(), steps=1, batch_size=8), "SequenceClassifier.fit: batch_size=8 has no effect"),
        (
            lambda: gpurnn.LanguageModel(VOCABULARY, 3, 3).fit(["abab", "ba"], steps=1, window=8),
            "LanguageModel.fit: window=8 has no effect, as X holds several texts",
        ),
        (
            lambda: Reinforce(translator(), lambda y, r: 0.0, max_length=3, baseline=None, decay=0.5),
            "Reinforce: decay=0.5 has no effect with baseline=None",
        ),
    ],
)
def test_an_option_without_effect_warns_once_and_at_the_callers_line(call, message):
    with pytest.warns(UserWarning, match=message) as seen:
        call()
    assert len(seen) == 1
    assert seen[0].filename == __file__


@pytest.mark.parametrize(
    "call",
    [
        lambda: gpurnn.LSTM(3, 4, 2, dropout=0.5),
        lambda: gpurnn.GRU(4, 4, residual=True),
        lambda: gpurnn.GRU(3, 4, 2, residual=True),
        lambda: classifier(dropout=0.5),
        lambda: gpurnn.LanguageModel(VOCABULARY, 3, 3, dropout=0.5),
        lambda: gpurnn.EncoderDecoder(5, 5, 4, 4, dropout=0.5, attention="dot"),
        lambda: gpurnn.SGD(momentum=0.9, dampening=0.5),
        lambda: classifier().fit(data(), steps=1, batch_size=3, validation=(X, [0, 1, 0, 1])),
        lambda: translator().greedy(np.array([[3]]), max_length=2),
    ],
)
def test_an_option_with_an_effect_does_not_warn(call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


def test_a_models_dropout_is_not_that_between_layers_it_does_not_have():
    assert classifier(dropout=0.5).recurrent.dropout == 0
    assert classifier(dropout=0.5, num_layers=2).recurrent.dropout == 0.5
    assert classifier(dropout=0.5).config()["dropout"] == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gpurnn.DiagonalStateSpace(3, 4, 2, complex=False, max_phase=1.0),
            "DiagonalStateSpace: max_phase is 1.0, expected none with complex=False",
        ),
        (
            lambda: gpurnn.SequenceGenerator(3, 4, 2, loss="l1"),
            "SequenceGenerator: loss is 'l1', expected none with output_activation='softmax'",
        ),
        (
            lambda: classifier(output_activation="tanh"),
            "SequenceClassifier: output_activation is not an option, expected one of activation, ",
        ),
        (
            lambda: gpurnn.SequenceTagger(3, 4, 2, output_activation="tanh"),
            "SequenceTagger: output_activation is not an option, expected one of activation, ",
        ),
        (
            lambda: trainer(teacher_forcing=0.5),
            "Trainer: teacher_forcing is given, expected none, as SequenceClassifier.loss_and_gradients takes no",
        ),
        (
            lambda: trainer(translator(), gradient_checkpoint_every=2),
            "Trainer: gradient_checkpoint_every is given, expected none, as EncoderDecoder.loss_and_gradients takes no",
        ),
        (
            lambda: trainer(batches=TokenStream(np.arange(40), 2, 3, 6)),
            "Trainer: data has gradient_steps above steps, but SequenceClassifier.loss_and_gradients takes no state",
        ),
        (
            lambda: classifier(hiden=3),
            "SequenceClassifier: hiden is not an option, expected one of activation, .*bidirectional, "
            ".*num_embeddings, .*pooling, .*rng",
        ),
        (
            lambda: classifier(poling="mean"),
            "SequenceClassifier: poling is not an option, .*; did you mean pooling?",
        ),
        (lambda: classifier(loss="mse"), "SequenceClassifier: loss is not an option"),
        (
            lambda: gpurnn.Translator(VOCABULARY, VOCABULARY, 4, 4, atention="dot"),
            "Translator: atention is not an option, expected one of activation, attention, .*; did you mean attention?",
        ),
        (
            lambda: classifier().fit(X, [0, 1, 0, 1], steps=1, pattience=3),
            "SequenceClassifier.fit: pattience is not an option, expected one of .*, patience, .*; did you mean "
            "patience?",
        ),
        (
            lambda: gpurnn.LanguageModel(VOCABULARY, 3, 3).fit("ababab" * 99, steps=1, windows=8),
            "LanguageModel.fit: windows is not an option, expected one of .*; did you mean window?",
        ),
        (
            lambda: translator().predict([np.array([3])], beam_size=2, lenght_penalty=1.0),
            "EncoderDecoder.predict: lenght_penalty is not an option, expected one of batch_size, beam_size, ",
        ),
    ],
)
def test_contradictions_and_unknown_options_are_rejected(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
