"""`Sequential` accepts layers that fit together, and passes options of ``vjp`` to the right layers."""

import numpy as np
import pytest

import gpurnn
from gpurnn.layers import Decoder
from gpurnn.models.pooling import MeanPooling
from gpurnn.training import truncated_bptt

VOCABULARY = gpurnn.CharVocabulary("?ab")


class Scale(gpurnn.Layer):
    """A layer that a user might write."""

    def __init__(self):
        self.params = {}

    def __call__(self, x):
        return 2 * x

    def vjp(self, x, rng=None):
        return 2 * x, lambda dy: (2 * dy, {})


class OtherCall(Scale):
    def vjp(self, x, scale):
        return scale * x, lambda dy: (scale * dy, {})


class Total(Scale):
    """A layer with a state, whose author did not think of windows."""

    stateful = True

    def vjp(self, x, state=None, lengths=None, resets=None, rng=None):
        return (x, x[-1]), lambda cotangents: ((cotangents[0], cotangents[1]), {})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            (gpurnn.Dense(3, 4), gpurnn.GRU(5, 6)),
            "argument 1, a GRU, takes 5 features, expected 4, as argument 0, a Dense, puts out",
        ),
        (
            (gpurnn.LSTM(3, 4, bidirectional=True), gpurnn.Dropout(0.5), gpurnn.Dense(4, 2)),
            "argument 2, a Dense, takes 4 features, expected 8, as argument 0, an LSTM, puts out",
        ),
        (
            (gpurnn.Embedding(9, 4), gpurnn.PositionalEncoding(), gpurnn.TransformerBlock(6, 2)),
            "argument 2, a TransformerBlock, takes 6 features, expected 4, as argument 0, an Embedding, puts out",
        ),
        (
            (gpurnn.StateSpace(3, 4, 5), gpurnn.LayerNorm(4)),
            "argument 1, a LayerNorm, takes 4 features, expected 5, as argument 0, a StateSpace, puts out",
        ),
        (
            (gpurnn.Dense(3, 4), gpurnn.Sequential(gpurnn.Dropout(0.5), gpurnn.Dense(5, 4))),
            "argument 1, a Sequential, takes 5 features, expected 4, as argument 0, a Dense, puts out",
        ),
        (
            (gpurnn.Sequential(gpurnn.Dense(3, 4), gpurnn.Dropout(0.5)), gpurnn.RNN(5, 6)),
            "argument 1, an RNN, takes 5 features, expected 4, as argument 0, a Sequential, puts out",
        ),
        (
            (gpurnn.Dense(3, 4), gpurnn.Embedding(9, 4)),
            "argument 1, an Embedding, takes tokens, expected features, as argument 0, a Dense, puts out",
        ),
        (
            (gpurnn.Dense(3, 4), gpurnn.Sequential(gpurnn.Embedding(9, 4))),
            "argument 1, a Sequential, takes tokens, expected features",
        ),
        (
            (gpurnn.GRU(3, 4, batch_first=True), gpurnn.GRU(4, 4)),
            "argument 0, a GRU, has batch_first=True, expected False, as argument 1, a GRU, takes",
        ),
        (
            (gpurnn.PositionalEncoding(), gpurnn.Sequential(gpurnn.GRU(3, 4, batch_first=True))),
            "argument 1, a GRU, has batch_first=True, expected False, as argument 0, a PositionalEncoding, takes",
        ),
        (
            (gpurnn.Dense(3, 4), gpurnn.Dense(4, 4, dtype="float64")),
            "argument 1, a Dense, has parameters of float64, expected float32 as argument 0, a Dense, has",
        ),
        (
            (gpurnn.MultiHeadAttention(4, 2),),
            "argument 0, a MultiHeadAttention, takes .query, keys, values, rng, key_padding_mask, attn_mask. in its "
            "vjp, expected a layer that takes .x, rng, ....; TransformerBlock holds one and fits",
        ),
        ((Decoder(gpurnn.GRU(3, 4)),), "argument 0, a Decoder, takes .x, memory, state, lengths, rng. in its vjp"),
        ((MeanPooling(),), "argument 0, a MeanPooling, takes .y, lengths. in its vjp"),
        ((gpurnn.SequenceClassifier(3, 4, 2),), "argument 0, a SequenceClassifier, takes .inputs, state, lengths, rng"),
        ((gpurnn.SequenceGenerator(3, 4, 2),), "argument 0, a SequenceGenerator, takes .x, steps, rng."),
        ((gpurnn.EncoderDecoder(5, 5, 4, 4),), "argument 0, an EncoderDecoder, takes .source, previous, lengths, rng."),
        ((gpurnn.LinearGaussian(*[np.ones((1, 1))] * 4),), "argument 0, a LinearGaussian, takes"),
        (
            (OtherCall(),),
            r"argument 0, a .*OtherCall, takes .x, scale. in its vjp, expected a layer that takes .x, rng",
        ),
        (([gpurnn.Dense(3, 4)],), r"argument 0 is a list of 1, expected a Layer; pass them one by one: Sequential\("),
        ((gpurnn.Dense,), "argument 0 is .*, expected a Layer"),
    ],
)
def test_layers_that_do_not_fit_are_named_when_they_are_put_together(layers, message):
    with pytest.raises((ValueError, TypeError), match=f"Sequential: {message}"):
        gpurnn.Sequential(*layers)


@pytest.mark.parametrize(
    "layers",
    [
        (),
        (gpurnn.Dropout(0.5),),
        (gpurnn.Dense(3, 4), gpurnn.GRU(4, 6), gpurnn.Dense(6, 2)),
        (gpurnn.Dense(3, 4), Scale(), gpurnn.Dense(5, 2)),
        (gpurnn.Embedding(9, 4), gpurnn.TransformerBlock(4, 2), gpurnn.DiagonalStateSpace(4, 3, 2)),
        (gpurnn.Dense(3, 4), gpurnn.GRU(4, 6, batch_first=True), gpurnn.LSTM(6, 6, batch_first=True)),
        (gpurnn.LanguageModel(VOCABULARY, 4, 4), gpurnn.Dense(3, 2)),
        (gpurnn.Sequential(gpurnn.Sequential()), gpurnn.Sequential(gpurnn.Dense(3, 4)), gpurnn.Dense(4, 2)),
    ],
)
def test_layers_that_fit(layers):
    assert len(gpurnn.Sequential(*layers).layers) == len(layers)


X = np.random.default_rng(0).normal(size=(12, 2, 4)).astype("f4")


@pytest.mark.parametrize(
    "other", [gpurnn.TransformerBlock(4, 2), gpurnn.StateSpace(4, 3, 4), gpurnn.DiagonalStateSpace(4, 3, 4), Scale()]
)
def test_gradient_checkpointing_goes_to_the_layers_that_have_it(other):
    model = gpurnn.Sequential(gpurnn.GRU(4, 4), gpurnn.Sequential(other), gpurnn.LSTM(4, 4))
    (y, _), pull = model.vjp(X)
    (z, _), pull_again = model.vjp(X, checkpoint_every=2)
    np.testing.assert_array_equal(y, z)
    grads, again = pull((y, None))[1], pull_again((y, None))[1]
    for name, g in grads.items():
        np.testing.assert_array_equal(again[name], g)


def test_gradient_checkpointing_without_a_layer_that_has_it():
    model = gpurnn.Sequential(gpurnn.TransformerBlock(4, 2), gpurnn.Sequential(Total()))
    with pytest.raises(ValueError, match="Sequential: checkpoint_every is 2, expected None: no layer takes it"):
        model.vjp(X, checkpoint_every=2)


def test_a_state_between_two_steps():
    model = gpurnn.Sequential(gpurnn.TransformerBlock(4, 2), gpurnn.GRU(4, 4))
    (_, (none, h)), _ = model.vjp(X, state_after=5)
    assert none is None
    np.testing.assert_array_equal(h, model.layers[1](model.layers[0](X)[0][:5])[1])
    with pytest.raises(ValueError, match=r"state_after is 5, expected None: argument 1, a .*Total, does not tell its"):
        gpurnn.Sequential(gpurnn.GRU(4, 4), Total()).vjp(X, state_after=5)


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (gpurnn.Dense(4, 4), {}, "layer is a Dense, expected a recurrent layer, or a Sequential"),
        (Total(), {"gradient_steps": 4}, "layer is a .*Total, whose vjp takes no state_after"),
        (
            gpurnn.TransformerBlock(4, 2),
            {"checkpoint_every": 2},
            "takes no checkpoint_every, expected a recurrent or a state-space layer",
        ),
    ],
)
def test_truncation_names_the_layer_that_it_cannot_cut(layer, options, message):
    with pytest.raises(TypeError, match=f"truncated_bptt: .*{message}"):
        list(truncated_bptt(layer, X, steps=2, **options))


PAIR = (np.zeros((1, 2, 4), "f4"), np.zeros((1, 2, 4), "f4"))


@pytest.mark.parametrize(
    ("layer", "state", "message"),
    [
        (gpurnn.GRU(4, 4), PAIR, r"GRU: state is a pair \(h, c\), the state of an LSTM, expected h alone, an array"),
        (gpurnn.RNN(4, 4), list(PAIR), r"RNN: state is a pair \(h, c\), the state of an LSTM"),
        (gpurnn.GRU(4, 4), PAIR[:1], "GRU: state is a tuple of 1, expected h alone, an array"),
        (
            gpurnn.LSTM(4, 4),
            PAIR[0],
            r"LSTM: state is an array of shape \(1, 2, 4\), the state of an RNN or a GRU, expected a pair \(h, c\)",
        ),
        (gpurnn.LSTM(4, 4), (*PAIR, None), r"LSTM: state is a tuple of 3, expected a pair \(h, c\)"),
        (gpurnn.StateSpace(4, 4, 4), PAIR, "StateSpace: state is a tuple of 2, expected one array, as the states of"),
        (
            gpurnn.DiagonalStateSpace(4, 4, 4),
            PAIR[0],
            r"state is an array of shape \(1, 2, 4\), expected a pair \(real",
        ),
        (
            gpurnn.GRU(4, 4, 2),
            PAIR[0],
            r"state has shape \(1, 2, 4\), expected \(num_layers\*D, B, hidden_size\) = \(2",
        ),
        (gpurnn.GRU(4, 4, bidirectional=True), PAIR[0], r"expected \(num_layers\*D, B, hidden_size\) = \(2, 2, 4\)"),
        (
            gpurnn.Sequential(gpurnn.LSTM(4, 4)),
            PAIR,
            "state is a tuple of 2, expected a tuple with one state for each of",
        ),
        (gpurnn.Sequential(gpurnn.GRU(4, 4)), (PAIR,), r"GRU: state is a pair \(h, c\), the state of an LSTM"),
        (gpurnn.TransformerBlock(4, 2), PAIR, "state is a tuple of 2, expected None: a block has no state"),
        (gpurnn.SequenceClassifier(4, 4, 2), PAIR, r"GRU: state is a pair \(h, c\), the state of an LSTM"),
    ],
)
def test_a_state_of_another_cell_is_named(layer, state, message):
    with pytest.raises((TypeError, ValueError), match=message):
        layer(X, state)
    with pytest.raises((TypeError, ValueError), match=message):
        layer.vjp(X, state)


def test_a_state_gradient_of_another_cell_is_named():
    (_, _), pull = gpurnn.GRU(4, 4).vjp(X)
    with pytest.raises(TypeError, match=r"GRU: dstate is a pair \(h, c\), the state of an LSTM"):
        pull((None, PAIR))
    with pytest.raises(TypeError, match=r"gru: state is a pair \(h, c\), the state of an LSTM"):
        gpurnn.gru(X, np.ones((12, 4), "f4"), np.ones((12, 4), "f4"), state=PAIR)
    with pytest.raises(TypeError, match=r"Decoder: state is a pair \(h, c\), the state of an LSTM"):
        Decoder(gpurnn.GRU(8, 4), "general", memory_size=4, input_feeding=True)(X, X, PAIR)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_mask_goes_to_the_layers_that_take_it(batch_first):
    """The result equals that of the layers called one by one, and x is not read in the mask's holes."""
    options = {"batch_first": batch_first, "dtype": "float64"}
    dense, gru = gpurnn.Dense(4, 3, dtype="float64"), gpurnn.GRU(3, 5, **options)
    lstm, head = gpurnn.LSTM(5, 2, bidirectional=True, **options), gpurnn.Dense(4, 2, dtype="float64")
    model = gpurnn.Sequential(dense, gpurnn.Sequential(gru, lstm), head)
    rng = np.random.default_rng(1)
    x, mask, lengths = X.astype("f8"), rng.random(X.shape[:2]) < 0.6, np.array([12, 9])
    absent = ~mask | (np.arange(12)[:, None] >= lengths)
    if batch_first:
        x, mask, absent = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (x, mask, absent))
    y, h = gru(dense(x), None, lengths, mask=mask)
    y, state = lstm(y, None, lengths, mask=mask)
    x[absent] = np.nan
    outputs, pullback = model.vjp(x, None, lengths, mask=mask)
    np.testing.assert_array_equal(outputs[0], head(y))
    np.testing.assert_array_equal(model(x, None, lengths, None, mask.astype(int))[0], outputs[0])
    np.testing.assert_array_equal(outputs[1][0][0], h)
    np.testing.assert_array_equal(outputs[1][0][1][1], state[1])
    (dx, _), grads = pullback((np.ones_like(outputs[0]), None))
    assert not dx[absent].any()
    assert dx[~absent].any(axis=-1).all()
    assert all(np.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([gpurnn.Dense(4, 4)], "mask is .*, expected None: no layer takes it, only recurrent ones do"),
        (
            [gpurnn.GRU(4, 4), gpurnn.Sequential(gpurnn.TransformerBlock(4, 2))],
            "expected None: argument 1, a TransformerBlock, has a state, and takes lengths but no mask",
        ),
    ],
)
def test_a_mask_that_a_layer_cannot_take_is_rejected(layers, message):
    model = gpurnn.Sequential(*layers)
    for call in (model, model.vjp):
        with pytest.raises(ValueError, match=message):
            call(X, mask=np.ones((12, 2), bool))
