"""Every public object with a state can be pickled and copied, and the copy behaves like the original."""

import copy
import inspect
import pickle
import tempfile

import numpy as np
import pytest
from tolerance import assert_same

import gpurnn
from gpurnn import analysis, layers, models, optimizers, schedules, training
from gpurnn.layers.recurrent import LAYERS
from gpurnn.models import CharVocabulary, LanguageModel, TokenizerVocabulary, WordVocabulary
from gpurnn.models.kalman import ar, level
from gpurnn.training import Batch, Curriculum, PaddedBatches, Reinforce, TokenStream, Trainer


def reward(tokens, reference):
    return float(tokens == reference)


def tokens(n=40):
    return np.random.default_rng(0).integers(0, 6, n)


def padded(**options):
    return PaddedBatches([tokens(n) for n in (5, 3, 8, 2)], **{"batch_size": 2, **options})


def translator():
    return models.Translator.from_texts(["a b", "b"], ["x y", "y"], 4, 5)


def trainer():
    return Trainer(
        LanguageModel(CharVocabulary("?abcde"), 3, 4, rng=0), TokenStream(tokens(), 2, 3), gpurnn.Adam(0.1), steps=3
    )


def token_file():
    with tempfile.TemporaryDirectory() as folder:
        training.write_token_file(f"{folder}/x", CharVocabulary("?abc"), 3, ["abc"])
        return training.TokenFile(f"{folder}/x")


ONE = np.ones((1, 1))


class Letters:
    vocab_size = 3

    def encode(self, text):
        return ["abc".index(letter) for letter in text]

    def decode(self, tokens):
        return "".join("abc"[token] for token in tokens)


OBJECTS = {
    "Constant": lambda: schedules.Constant(0.1),
    "TimeBased": lambda: schedules.TimeBased(0.1, 0.2),
    "Exponential": lambda: schedules.Exponential(0.1, 0.9),
    "Linear": lambda: schedules.Linear(0.1, 0.01),
    "InverseSigmoid": lambda: schedules.InverseSigmoid(10),
    "Step": lambda: schedules.Step(0.1, 2),
    "MultiStep": lambda: schedules.MultiStep(0.1, [1, 2]),
    "Polynomial": lambda: schedules.Polynomial(0.1, 5),
    "CosineWithWarmup": lambda: schedules.CosineWithWarmup(0.1, 5, 2),
    "CosineWithWarmRestarts": lambda: schedules.CosineWithWarmRestarts(0.1, 2),
    "Cyclic": lambda: schedules.Cyclic(0.1, 0.2, 3),
    "OneCycle": lambda: schedules.OneCycle(0.1, 9),
    "ReduceOnPlateau": lambda: schedules.ReduceOnPlateau(0.1, patience=1),
    "SGD": lambda: optimizers.SGD(0.1, momentum=0.9),
    "RMSprop": lambda: optimizers.RMSprop(0.1),
    "Adam": lambda: optimizers.Adam(0.1),
    "AdamW": lambda: optimizers.AdamW(0.1),
    "NAdam": lambda: optimizers.NAdam(0.1),
    "Adamax": lambda: optimizers.Adamax(0.1),
    "Adagrad": lambda: optimizers.Adagrad(0.1),
    "Adadelta": lambda: optimizers.Adadelta(1.0),
    "Rprop": lambda: optimizers.Rprop(0.1),
    **{kind.__name__: lambda kind=kind: kind(2, 3, 2, bidirectional=True, dropout=0.5) for kind in LAYERS.values()},
    "Dense": lambda: layers.Dense(2, 3),
    "Dropout": lambda: layers.Dropout(0.5),
    "Embedding": lambda: layers.Embedding(6, 3),
    "LayerNorm": lambda: layers.LayerNorm(3),
    "Sequential": lambda: layers.Sequential(layers.Dense(2, 3), layers.GRU(3, 3)),
    "Decoder": lambda: layers.Decoder(layers.GRU(5, 3), "additive", memory_size=2, attention_size=4),
    "MultiHeadAttention": lambda: layers.MultiHeadAttention(4, 2),
    "TransformerBlock": lambda: layers.TransformerBlock(4, 2),
    "StateSpace": lambda: layers.StateSpace(2, 3, 2),
    "DiagonalStateSpace": lambda: layers.DiagonalStateSpace(2, 3, 2),
    "LanguageModel": lambda: LanguageModel(CharVocabulary("?abcde"), 4, 4, tied=True),
    "SequenceClassifier": lambda: models.SequenceClassifier(2, 3, 2, pooling="attention"),
    "SequenceTagger": lambda: models.SequenceTagger(2, 3, 2),
    "SequenceRegressor": lambda: models.SequenceRegressor(2, 3, 2, pooling=None),
    "SequenceGenerator": lambda: models.SequenceGenerator(2, 3, 2),
    "Forecaster": lambda: models.Forecaster(3, 4),
    "EncoderDecoder": lambda: models.EncoderDecoder(5, 6, 3, 4),
    "Translator": translator,
    "LinearGaussian": lambda: models.LinearGaussian(ONE, ONE, ONE, ONE),
    "StructuralModel": lambda: level() + ar(2),
    "CharVocabulary": lambda: CharVocabulary("?abc"),
    "TokenizerVocabulary": lambda: TokenizerVocabulary(Letters()),
    "WordVocabulary": lambda: WordVocabulary(["<unk>", "a", "b"]),
    "TokenStream": lambda: TokenStream(tokens(), 2, 3, gradient_steps=5),
    "TokenFile": token_file,
    "PaddedBatches": padded,
    "Curriculum": lambda: Curriculum(2, 3, 9),
    "Batch": lambda: Batch(tokens(), tokens(), None, 3),
    "Reinforce": lambda: Reinforce(translator(), reward, max_length=4),
    "Trainer": trainer,
    "GradientNorms": analysis.GradientNorms,
    "Map": lambda: analysis.Map(np.sin, np.cos),
    "PositionalEncoding": lambda: layers.PositionalEncoding(),
}

RESULTS = {
    "Activity", "Backtest", "Complexity", "Cost", "Explanation", "Filtered", "FixedPoints", "Forecast",
    "GateActivity", "GaussianForecast", "GradientBound", "GradientGrowth", "Hypothesis", "LayerExplanation",
    "LyapunovSpectrum", "Smoothed", "Spectrum", "Window", "Divergence",
}  # fmt: skip
"""The results of functions: plain tuples and dataclasses of arrays. A `Window` has a pullback, which is a function."""


def public_classes():
    found = set()
    for module in (gpurnn, layers, models, optimizers, schedules, training, analysis):
        for name in getattr(module, "__all__", [n for n in vars(module) if n[0].isupper()]):
            value = getattr(module, name)
            if inspect.isclass(value) and not inspect.isabstract(value) and not issubclass(value, BaseException):
                found.add(name)
    return found


def test_every_public_class_is_tried():
    others = {
        "Optimizer",
        "Policy",
        "Tokenizer",
        "use",
        "Any",
        "Array",
        "Callable",
        "ClassVar",
        "Mapping",
        "Iterable",
        "Literal",
    }
    assert public_classes() - OBJECTS.keys() - RESULTS - others == set()


def values(thing):
    """Everything that a thing holds, recursively, in a form that is equal for equal things."""
    if isinstance(thing, (np.ndarray, np.generic, str, int, float, bool, type(None), complex)):
        return thing
    if isinstance(thing, dict):
        return {str(key): values(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple, set)):
        return {str(i): values(item) for i, item in enumerate(thing)}
    if isinstance(thing, np.random.Generator):
        return str(thing.bit_generator.state)
    if callable(thing) and not hasattr(thing, "__dict__"):
        return repr(thing)
    if inspect.isfunction(thing) or inspect.ismodule(thing) or inspect.isclass(thing):
        return thing.__name__
    return values(vars(thing))


def flat(thing, path=""):
    if isinstance(thing, dict):
        found = {}
        for key, value in thing.items():
            found |= flat(value, f"{path}/{key}")
        return found
    return {path: thing}


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("name", OBJECTS)
def test_a_copy_is_equal_and_its_own(name, copied):
    thing = OBJECTS[name]()
    found = copied(thing)
    assert type(found) is type(thing)
    one, other = flat(values(thing)), flat(values(found))
    assert one.keys() == other.keys()
    for path, value in one.items():
        if isinstance(value, np.ndarray):
            assert_same(other[path], value)
            assert other[path].dtype == value.dtype
        else:
            assert other[path] == value or value != value, path
    if hasattr(thing, "params"):
        # The layers of the copy compute with the arrays in its params, and share none with the original.
        mine = {id(p) for p in thing.params.values()}
        assert not mine & {id(p) for p in found.params.values()}
        for (n, p), q in zip(thing.params.items(), found.params.values(), strict=True):
            assert not np.shares_memory(p, q), n


SPECIAL = {
    "LanguageModel": lambda m: m.loss_and_gradients(tokens(12).reshape(6, 2), tokens(12).reshape(6, 2)),
    "SequenceClassifier": lambda m: m.loss_and_gradients(np.ones((4, 2, 2), "f4"), np.array([0, 1])),
    "SequenceTagger": lambda m: m.loss_and_gradients(np.ones((4, 2, 2), "f4"), np.zeros((4, 2), int)),
    "SequenceRegressor": lambda m: m.loss_and_gradients(np.ones((4, 2, 2), "f4"), np.zeros((4, 2, 2), "f4")),
    "Translator": lambda m: m.predict(["a b"]),
    "GRU": lambda m: m(np.ones((4, 2, 2), "f4")),
    "Sequential": lambda m: m(np.ones((4, 2, 2), "f4")),
}


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("name", SPECIAL)
def test_a_copy_computes_with_its_own_parameters(name, copied):
    thing = OBJECTS[name]()
    found = copied(thing)
    for model in (thing, found):
        for i, p in enumerate(model.params.values()):
            p += np.asarray(0.01 * (i + 1), p.dtype)

    one, other = (flat(values(SPECIAL[name](model))) for model in (thing, found))
    assert_same(other, one)


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
@pytest.mark.parametrize("kind", [n for n in OBJECTS if inspect.isclass(getattr(optimizers, n, None))])
def test_an_optimizer_goes_on(kind, copied):
    optimizer, rng = OBJECTS[kind](), np.random.default_rng(0)
    params = {"weight_hh": rng.normal(size=(3, 2)), "bias": rng.normal(size=3)}
    gradients = [{name: rng.normal(size=p.shape) for name, p in params.items()} for _ in range(4)]
    for grads in gradients[:2]:
        optimizer.step(params, grads)
    other, theirs = copied((optimizer, params))
    for grads in gradients[2:]:
        optimizer.step(params, grads)
        other.step(theirs, grads)
    assert_same(theirs, params)
    assert_same(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("copied", [pickled, copy.deepcopy])
def test_data_give_the_same_batches(copied):
    for data in (TokenStream(tokens(), 2, 3, gradient_steps=5), padded(), padded(curriculum=Curriculum(3, 3, 9))):
        found = copied(data)
        assert found.config() == data.config()
        assert len(found) == len(data)
        for index in range(len(found)):
            one, other = data.batch(4, index), found.batch(4, index)
            assert_same(np.asarray(other.inputs), np.asarray(one.inputs))
            assert_same(np.asarray(other.targets), np.asarray(one.targets))


def test_a_stream_is_pickled_once():
    stream = TokenStream(np.zeros(100_000, np.int64), 10, 10)
    assert len(pickle.dumps(stream)) < 1.1 * 800_000
    found = pickled(stream)
    assert np.shares_memory(found._lanes, found._tokens)


def test_what_has_a_lambda_is_named_by_python():
    for thing in (
        Curriculum(1, 1, difficulty=lambda sequence, target: 1),
        Reinforce(translator(), lambda *_: 1.0, max_length=4),
    ):
        with pytest.raises((pickle.PicklingError, AttributeError), match="<lambda>"):
            pickle.dumps(thing)
