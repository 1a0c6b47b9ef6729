"""repr, config and clone follow from the constructor: they describe a layer well enough to make another like it."""

import inspect
import json
import re

import numpy as np
import pytest

import gpurnn
import gpurnn.layers
import gpurnn.models
from gpurnn.layers import Decoder, Layer, Sequential
from gpurnn.layers.recurrent import LAYERS
from gpurnn.models import Forecaster
from gpurnn.models.kalman import level, seasonal

TEXTS = gpurnn.CharVocabulary.from_text("hello"), gpurnn.WordVocabulary.from_text("one two two")
RECURRENT = {
    "num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True, "residual": True,
    "variational_dropout": 0.1, "recurrent_dropout": 0.2, "merge": "mul", "zero_masked_output": True,
    "dtype": "float64",
}  # fmt: skip
WITHOUT_W_HH = {n: v for n, v in RECURRENT.items() if n not in ("variational_dropout", "recurrent_dropout")}
OF_CELL = {"clip": 3.0, "zoneout": 0.25, "layer_norm": True}
SEQUENCE = {
    "num_layers": 2, "cell": "rnn", "bidirectional": True, "dropout": 0.5, "variational_dropout": 0.25,
    "recurrent_dropout": 0.125, "residual": True, "dtype": "float64",
    "activation": "relu", "leak": 0.5, "merge": "average", "cell_options": {"clip": 2.0, "layer_norm": True},
}  # fmt: skip
FIT = {
    "standardize_inputs": False, "epochs": 3, "batch_size": 4, "optimizer": "sgd", "lr": 0.5, "schedule": "cosine",
    "clip_norm": None, "l2": 0.1, "validation_split": 0.25, "patience": 2, "verbose": False,
}  # fmt: skip
PLAIN = {
    "RNN": ((2, 3), {**RECURRENT, **OF_CELL, "activation": "relu", "leak": 0.5}),
    "LSTM": (
        (2, 3),
        {
            **RECURRENT, **OF_CELL, "activation": "relu", "gate_activation": "hard_sigmoid",
            "output_activation": "identity", "cell_clip": 5.0, "peephole": True, "coupled": True,
            "zoneout": (0.1, 0.2), "candidate_dropout": 0.3,
            "proj_size": 2,
        },
    ),
    "GRU": (
        (2, 3),
        {
            **RECURRENT, **OF_CELL, "reset_after": True, "update": "state", "activation": "relu",
            "gate_activation": "hard_sigmoid",
        },
    ),
    "IndRNN": ((2, 3), {**RECURRENT, "activation": "tanh", "leak": 0.5, "clip": 3.0}),
    "MinGRU": ((2, 3), WITHOUT_W_HH),
    "MinLSTM": ((2, 3), WITHOUT_W_HH),
    "Dense": ((2, 3), {"bias": False, "activation": "tanh", "dtype": "float64"}),
    "Embedding": ((4, 3), {"padding_idx": 2, "dtype": "float64"}),
    "Dropout": ((0.3,), {}),
    "LayerNorm": ((5,), {"eps": 0.1, "bias": False, "dtype": "float64"}),
    "MultiHeadAttention": (
        (4, 2),
        {"bias": False, "causal": True, "key_size": 3, "value_size": 5, "batch_first": True, "dtype": "float64"},
    ),
    "PositionalEncoding": ((), {}),
    "TransformerBlock": (
        (8, 2),
        {"hidden_size": 5, "causal": True, "activation": "gelu", "dropout": 0.1, "dtype": "float64"},
    ),
    "StateSpace": (
        (2, 3, 4),
        {"output_state": "before", "feedthrough": False, "radius": 0.5, "dtype": "float64"},
    ),
    "DiagonalStateSpace": (
        (2, 3, 4),
        {"output_state": "before", "feedthrough": False, "radius": (0.5, 0.6), "max_phase": 1.0, "dtype": "float64"},
    ),
    "SequenceClassifier": (
        (3, 4, 2),
        {**SEQUENCE, **FIT, "class_weight": "balanced", "num_embeddings": 7, "pooling": "attention"},
    ),
    "SequenceTagger": ((3, 4, 2), {**SEQUENCE, **FIT, "class_weight": "balanced", "num_embeddings": 7}),
    "SequenceRegressor": (
        (3, 4, 2),
        {
            **SEQUENCE, **FIT, "num_embeddings": 7, "pooling": None, "output_activation": "tanh", "loss": "huber",
            "standardize": False,
        },
    ),
    "Forecaster": (
        (5, 4),
        {
            **SEQUENCE, "features": 2, "pooling": "mean", "loss": "l1", "known_features": 1, "past_features": 2,
            "static_features": 3, "log": True, "trend": True, "season_length": 12, "differences": (1, 12),
        },
    ),
    "SequenceGenerator": (
        (3, 4, 2),
        {"activation": "relu", "output_activation": "identity", "loss": "l1", "dtype": "float64"},
    ),
    "EncoderDecoder": (
        (5, 6, 3, 4),
        {
            "num_layers": 2, "encoder_layers": 1, "cell": "rnn", "bidirectional": True, "attention": "additive",
            "attention_size": 3, "dropout": 0.5, "begin": 2, "end": 1, "dtype": "float64",
            "activation": "relu", "leak": 0.5, "cell_options": {"clip": 2.0, "layer_norm": True},
        },
    ),
}  # fmt: skip
"""Constructors with JSON-compatible arguments, by name: the sizes, and a value other than the default per option."""

OF_A_GRU = {"reset_after", "update"}
REVERSE = {"reverse"}  # requires a single direction
NOT_AN_OPTION = {
    **dict.fromkeys([kind.__name__ for kind in LAYERS.values()], REVERSE),
    "DiagonalStateSpace": {"complex"},  # excludes max_phase
    # These require another attention, and a single direction.
    "EncoderDecoder": {"input_feeding", "bridge", *OF_A_GRU},
    **dict.fromkeys(["SequenceClassifier", "SequenceTagger", "SequenceRegressor", "Forecaster"], OF_A_GRU | REVERSE),
}
OTHERS = {
    "Decoder": lambda **rng: Decoder(gpurnn.LSTM(8, 4), "general", memory_size=4, attentional_size=7, **rng),
    "Sequential": lambda **rng: Sequential(gpurnn.GRU(2, 3, **rng), Sequential(gpurnn.Dense(3, 4, **rng))),
    "LanguageModel": lambda **rng: gpurnn.LanguageModel(TEXTS[0], 4, 4, tied=True, cell="gru", **rng),
    "Translator": lambda **rng: gpurnn.Translator(*TEXTS, 3, 4, attention=None, cell_options={"zoneout": 0.25}, **rng),
    "StructuralModel": lambda: level() + seasonal(4, variance=0.0),
}


def kind_of(name):
    return getattr(gpurnn, name, None) or getattr(gpurnn.models, name)


def plain(name, **rng):
    sizes, options = PLAIN[name]
    return kind_of(name)(*sizes, **options, **rng)


MAKE = {**{name: lambda name=name, **rng: plain(name, **rng) for name in PLAIN}, **OTHERS}
WITHOUT_RNG = {"Dropout", "LayerNorm", "PositionalEncoding", "StructuralModel"}


def test_every_public_layer_is_in_the_tables():
    public = {
        name
        for module in (gpurnn, gpurnn.layers, gpurnn.models)
        for name in module.__all__
        if inspect.isclass(kind := getattr(module, name)) and issubclass(kind, Layer) and not inspect.isabstract(kind)
    }
    assert public == {*MAKE, "LinearGaussian"}


@pytest.mark.parametrize("name", PLAIN)
def test_the_repr_makes_the_same_layer_and_shows_what_differs_from_the_defaults(name):
    layer = plain(name)
    shown = repr(layer).splitlines()[0].partition("  #")[0]
    names = {name: getattr(module, name) for module in (gpurnn, gpurnn.models) for name in module.__all__}
    assert repr(eval(shown, names)) == repr(layer)
    sizes, options = PLAIN[name]
    for option, value in options.items():
        assert re.search(rf"\b{option}={re.escape(repr(value))}[,)]", shown), option
    assert re.match(rf"{name}\({', '.join(map(repr, sizes))}[,)]", shown)
    if name != "Dropout":
        assert repr(kind_of(name)(*sizes)).startswith(f"{name}({', '.join(map(repr, sizes))})  #")


@pytest.mark.parametrize("name", PLAIN)
def test_the_configuration_is_json_and_holds_every_argument(name):
    layer = plain(name)
    config = json.loads(json.dumps(layer.config()))
    assert repr(type(layer)(**config)) == repr(layer)
    signature = inspect.signature(kind_of(name)).parameters
    expected = {n for n, p in signature.items() if p.kind is not p.VAR_KEYWORD} | PLAIN[name][1].keys()
    assert config.keys() >= expected - {"init", "rng", "random_state"}
    assert not config.keys() & {"init", "rng", "random_state"}
    given = {**PLAIN[name][1], **dict(zip(signature, PLAIN[name][0], strict=False))}
    assert {n: config[n] for n in given} == json.loads(json.dumps(given))


@pytest.mark.parametrize("name", PLAIN)
def test_the_table_has_an_option_of_each_name(name):
    options = set(inspect.signature(kind_of(name)).parameters) - {"init", "rng", "random_state"}
    assert options - NOT_AN_OPTION.get(name, set()) <= {
        *PLAIN[name][1],
        *list(inspect.signature(kind_of(name)).parameters)[: len(PLAIN[name][0])],
    }


@pytest.mark.parametrize("name", MAKE)
def test_a_clone_is_what_the_constructor_makes(name):
    make = MAKE[name]
    layer = make() if name in WITHOUT_RNG else make(rng=3)
    before = {n: p.copy() for n, p in layer.params.items()}
    clone, again = layer.clone(rng=5), layer.clone(rng=5)
    assert type(clone) is type(layer)
    assert repr(clone) == repr(layer)
    assert json.dumps(clone.config()) == json.dumps(layer.config())
    assert clone.params.keys() == layer.params.keys()
    for n, p in clone.params.items():
        assert not np.shares_memory(p, layer.params[n])
        np.testing.assert_array_equal(p, again.params[n], strict=True)
        np.testing.assert_array_equal(layer.params[n], before[n], strict=True)
    if name not in ("Decoder", "Sequential", *WITHOUT_RNG):  # those draw in another order
        for n, p in make(rng=5).params.items():
            np.testing.assert_array_equal(clone.params[n], p, strict=True)
    if name not in WITHOUT_RNG:
        assert any((p != layer.params[n]).any() for n, p in clone.params.items())
        with pytest.raises(ValueError, match=rf"{name}.clone: rng is -1, expected at least 0"):
            layer.clone(rng=-1)


def test_a_clone_shares_what_the_layer_shares():
    layer = gpurnn.Dense(3, 3)
    model = Sequential(layer, gpurnn.Dense(3, 3), layer)
    model.layers[1].params["bias"] = layer.params["bias"]
    clone = model.clone(rng=1)
    assert [*clone.params] == [*model.params] == ["0.weight", "0.bias", "1.weight"]
    assert clone.layers[2].params["weight"] is clone.layers[0].params["weight"]
    assert clone.layers[1].params["bias"] is clone.layers[0].params["bias"]


def test_a_clone_of_a_kalman_filter_has_its_parameters():
    one = np.ones((1, 1))
    model = gpurnn.LinearGaussian(one, 2 * one, 3 * one, 4 * one)
    model.fit(np.arange(9.0)[:, None] % 4, iterations=2)
    clone = model.clone()
    for name, p in model.params.items():
        np.testing.assert_array_equal(clone.params[name], p, strict=True)
        assert not np.shares_memory(clone.params[name], p)


class Scale(Layer):
    """A layer that a user might write."""

    def __init__(self, factor, offset=0.0, *, keep=True):
        self.factor = factor
        self.offset = offset
        if keep:
            self.keep = keep
        self.params = {}

    def __call__(self, x):
        return self.factor * x + self.offset

    def vjp(self, x, rng=None):
        return self(x), lambda dy: (self.factor * dy, {})


class Wide(Scale):
    """A layer that passes options on and changes a default."""

    def __init__(self, factor=3, **options):
        super().__init__(factor, **{"keep": True, **options})


def test_a_layer_of_a_user_has_them_too():
    layer = Scale(2, offset=1.0)
    assert repr(layer) == "Scale(2, offset=1.0)  # 0 parameters"
    assert layer.config() == {"factor": 2, "offset": 1.0, "keep": True}
    clone = layer.clone()
    assert (clone.factor, clone.offset) == (2, 1.0)
    assert repr(Sequential(layer).clone()) == repr(Sequential(layer))
    assert repr(Wide()) == "Wide()  # 0 parameters"
    assert repr(Wide(4)) == "Wide(factor=4)  # 0 parameters"
    assert Wide(4).config() == {"factor": 4, "keep": True}


def test_an_argument_that_a_layer_of_a_user_does_not_keep():
    layer = Scale(2, keep=False)
    assert repr(layer) == "Scale(2, ...)  # 0 parameters"
    for method in (layer.config, layer.clone):
        with pytest.raises(AttributeError, match="Scale: keep is not an attribute, expected one with the val"):
            method()


def test_a_forecaster_is_cloned_without_what_it_has_learnt_of_its_series():
    model = Forecaster(3, 4).fit(np.sin(np.arange(40.0)).astype("float32"), epochs=1)
    assert model.mean != 0
    assert model.clone().mean == 0
