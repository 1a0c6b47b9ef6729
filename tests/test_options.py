"""Options of all public names: NumPy's scalars as numbers and bools, and only bools as bools."""

import importlib
import inspect
import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpurnn
import gpurnn.training
from gpurnn import initializers, models, schedules
from gpurnn.cells import CELLS, ELEMENTWISE
from gpurnn.layers import Decoder
from gpurnn.layers.recurrent import LAYERS
from gpurnn.models import CharVocabulary, Forecaster
from gpurnn.models.kalman import level
from gpurnn.training import Curriculum, PaddedBatches, Reinforce

MODULES = ("gpurnn", "gpurnn.layers", "gpurnn.models", "gpurnn.training", "gpurnn.schedules", "gpurnn.initializers")
X = np.ones((3, 2, 4))
VOCABULARY = CharVocabulary("?ab")
SERIES = np.sin(np.arange(30.0))


def classifier() -> Any:
    return gpurnn.SequenceClassifier(4, 5, 3)


def trainer(**options: Any) -> Any:
    sequences = [np.ones((3, 4), np.float32)] * 4
    data = PaddedBatches(sequences, 2, [np.array(0)] * 4, per_sequence=True)
    options = {"steps": 1, **options} if "epochs" not in options else options
    return gpurnn.Trainer(classifier(), data, **{"optimizer": gpurnn.SGD(), **options})


def attend(**options: Any) -> Any:
    arrays = {"in_proj_weight": np.ones((12, 4)), "out_proj_weight": np.ones((4, 4))}
    return gpurnn.multi_head_attention(X, **arrays, **options)


def fit_kalman(**options: Any) -> Any:
    return gpurnn.LinearGaussian(*[np.ones((1, 1))] * 4).fit(X[:, 0, :1], **options)


def structural(**options: Any) -> Any:
    return models.StructuralModel(level(), **options)


def fit_structural(**options: Any) -> Any:
    return structural().fit(SERIES, **options)


def reinforce(**options: Any) -> Any:
    model = Reinforce(gpurnn.EncoderDecoder(5, 5, 4, 4), lambda tokens, reference: 0.0, **options)
    return {name: getattr(model, name) for name in ("max_length", "samples", "entropy", "decay")}


def fitted(**options: Any) -> Any:
    return Forecaster(3, 4).fit(SERIES.astype("f4"), **{"steps": 1, **options})


FUNCTIONS = [name for name in CELLS | ELEMENTWISE if name != "lstm"]  # one option of lstm changes the shapes


def weights_of(name: str) -> dict[str, Any]:
    """The arrays that a cell's function needs besides x."""
    cell = (CELLS | ELEMENTWISE)[name]()
    shapes = cell.shapes(input_size=4, hidden_size=1)
    return {weight: np.ones(shapes[weight]) for weight in cell.needed}


# Public callables, with valid arguments, and values of options that require other options.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, dict[str, Any]]]] = {
    **{kind.__name__: (kind, {"input_size": 4, "hidden_size": 4, "num_layers": 2}, {}) for kind in LAYERS.values()},
    "Dense": (gpurnn.Dense, {"in_features": 3, "out_features": 4}, {}),
    "Embedding": (gpurnn.Embedding, {"num_embeddings": 5, "embedding_dim": 4, "padding_idx": 2}, {}),
    "Dropout": (gpurnn.Dropout, {"rate": 0.5}, {}),
    "LayerNorm": (gpurnn.LayerNorm, {"features": 4}, {}),
    "MultiHeadAttention": (gpurnn.MultiHeadAttention, {"features": 4, "num_heads": 2}, {}),
    "TransformerBlock": (gpurnn.TransformerBlock, {"features": 4, "num_heads": 2, "hidden_size": 3}, {}),
    "StateSpace": (gpurnn.StateSpace, {"input_size": 3, "state_size": 4, "output_size": 2}, {}),
    "DiagonalStateSpace": (gpurnn.DiagonalStateSpace, {"input_size": 3, "state_size": 4, "output_size": 2}, {}),
    "Decoder": (
        lambda **options: Decoder(gpurnn.GRU(8, 4), "general", **options),
        {"memory_size": 4},
        {"attention_size": {"attention": "additive"}},
    ),
    "SequenceClassifier": (gpurnn.SequenceClassifier, {"input_size": 4, "hidden_size": 4, "classes": 3}, {}),
    "SequenceTagger": (gpurnn.SequenceTagger, {"input_size": 4, "hidden_size": 4, "classes": 3}, {}),
    "SequenceRegressor": (gpurnn.SequenceRegressor, {"input_size": 4, "hidden_size": 4, "outputs": 3}, {}),
    "SequenceGenerator": (gpurnn.SequenceGenerator, {"input_size": 4, "hidden_size": 4, "outputs": 3}, {}),
    "Forecaster": (gpurnn.Forecaster, {"window": 4, "hidden_size": 4, "features": 4}, {}),
    "LanguageModel": (gpurnn.LanguageModel, {"vocabulary": VOCABULARY, "embedding_size": 4, "hidden_size": 4}, {}),
    "EncoderDecoder": (
        gpurnn.EncoderDecoder,
        {"source_symbols": 5, "target_symbols": 6, "embedding_size": 4, "hidden_size": 4},
        {"attention_size": {"attention": "additive"}, "input_feeding": {"attention": "dot"}},
    ),
    "Translator": (
        gpurnn.Translator,
        {"source_vocabulary": VOCABULARY, "target_vocabulary": VOCABULARY, "embedding_size": 4, "hidden_size": 4},
        {"input_feeding": {"attention": "dot", "bidirectional": False}},
    ),
    "SGD": (gpurnn.SGD, {}, {"nesterov": {"momentum": 0.9}, "dampening": {"momentum": 0.9}}),
    "RMSprop": (gpurnn.RMSprop, {}, {}),
    "Adam": (gpurnn.Adam, {}, {}),
    "AdamW": (gpurnn.AdamW, {}, {}),
    "Adagrad": (gpurnn.Adagrad, {}, {}),
    "Adadelta": (gpurnn.Adadelta, {}, {}),
    "NAdam": (gpurnn.NAdam, {}, {}),
    "Adamax": (gpurnn.Adamax, {}, {}),
    "Rprop": (gpurnn.Rprop, {}, {}),
    "Constant": (schedules.Constant, {"lr": 0.5}, {}),
    "TimeBased": (schedules.TimeBased, {"lr": 0.5, "decay": 0.5}, {}),
    "Exponential": (schedules.Exponential, {"lr": 0.5, "gamma": 0.5}, {}),
    "Linear": (schedules.Linear, {"lr": 0.5, "decay": 0.5}, {}),
    "InverseSigmoid": (schedules.InverseSigmoid, {"k": 2.0}, {}),
    "Step": (schedules.Step, {"lr": 0.5, "step_size": 3}, {}),
    "MultiStep": (schedules.MultiStep, {"lr": 0.5, "milestones": (1, 2)}, {}),
    "Polynomial": (schedules.Polynomial, {"lr": 0.5, "total_steps": 3}, {}),
    "CosineWithWarmup": (schedules.CosineWithWarmup, {"lr": 0.5, "total_steps": 9}, {}),
    "CosineWithWarmRestarts": (schedules.CosineWithWarmRestarts, {"lr": 0.5, "T_0": 3}, {}),
    "Cyclic": (
        schedules.Cyclic,
        {"base_lr": 0.125, "max_lr": 0.5, "step_size": 3},
        {"gamma": {"mode": "exp_range"}},
    ),
    "OneCycle": (schedules.OneCycle, {"max_lr": 0.5, "total_steps": 30}, {}),
    "ReduceOnPlateau": (schedules.ReduceOnPlateau, {"lr": 0.5}, {}),
    "Curriculum": (Curriculum, {"start": 1.0, "increment": 1.0, "maximum": 9.0}, {}),
    "PaddedBatches": (
        PaddedBatches,
        {"sequences": [X[:, 0]] * 3, "targets": [X[:, 0]] * 3, "batch_size": 2},
        {"token_budget": {"batch_size": None}},
    ),
    "TokenStream": (gpurnn.TokenStream, {"tokens": np.arange(30), "batch_size": 2, "steps": 3}, {}),
    "Trainer": (
        trainer,
        {},
        {
            "validation_interval": {"validation": trainer().data},
            "patience": {"validation": trainer().data},
            "lr": {"optimizer": "sgd"},
        },
    ),
    "Reinforce": (reinforce, {"max_length": 3}, {}),
    "Model.fit": (fitted, {}, {"epochs": {"steps": None}, "validation_interval": {"validation_split": 0.5}}),
    "LinearGaussian.fit": (fit_kalman, {"iterations": 1}, {}),
    "StructuralModel": (structural, {}, {}),
    "StructuralModel.fit": (fit_structural, {"iterations": 1}, {}),
    "attention": (gpurnn.attention, {"query": X, "keys": X}, {}),
    "dense": (gpurnn.dense, {"x": X, "weight": np.ones((2, 4))}, {}),
    "dropout": (gpurnn.dropout, {"x": X, "rate": 0.5, "rng": 0}, {}),
    "embedding": (gpurnn.embedding, {"indices": np.array([0]), "weight": np.ones((5, 2))}, {}),
    **{name: (getattr(gpurnn, name), {"x": X, **weights_of(name)}, {}) for name in FUNCTIONS},
    **{f"{name}_cell": (getattr(gpurnn, f"{name}_cell"), {"x": X[0], **weights_of(name)}, {}) for name in FUNCTIONS},
    "layer_norm": (gpurnn.layer_norm, {"x": X}, {}),
    "multi_head_attention": (attend, {"num_heads": 2}, {}),
    "ssm": (gpurnn.ssm, {"x": X, "A": np.ones(1), "B": np.ones((1, 4)), "C": np.ones((1, 1))}, {}),
    "cross_entropy": (gpurnn.cross_entropy, {"logits": X, "labels": np.zeros((3, 2), int)}, {}),
    "mse": (gpurnn.mse, {"y": X, "target": X}, {}),
    "huber": (gpurnn.huber, {"y": X, "target": X}, {}),
    "smooth_l1": (gpurnn.smooth_l1, {"y": X, "target": X}, {}),
    "global_norm": (gpurnn.global_norm, {"grads": {"weight": X}}, {}),
    "clip_by_global_norm": (gpurnn.clip_by_global_norm, {"grads": {"weight": X}, "max_norm": 1.0}, {}),
    "clip_by_value": (gpurnn.clip_by_value, {"grads": {"weight": X}, "clip_value": 1.0}, {}),
    "add_l2": (gpurnn.add_l2, {"grads": {"weight": X}, "params": {"weight": X}, "weight": 0.5}, {}),
    "identity": (initializers.identity, {}, {}),
    "normal": (initializers.normal, {"std": 0.5}, {}),
    "orthogonal": (initializers.orthogonal, {}, {}),
    "uniform": (initializers.uniform, {"bound": 0.5}, {}),
    "xavier_normal": (initializers.xavier_normal, {}, {}),
    "xavier_uniform": (initializers.xavier_uniform, {}, {}),
}
WITHOUT_OPTIONS = {
    "CharVocabulary", "WordVocabulary", "Tokenizer", "TokenizerVocabulary", "Layer", "LinearGaussian",
    "PositionalEncoding", "Sequential", "Backtest",
    "Forecast", "Hypothesis", "Model", "Vocabulary", "load", "Batch", "CheckpointError", "FileFormatError", "Policy",
    "RunDirectoryError", "Window", "TokenFile", "write_token_file",
    "binary_cross_entropy", "l1", "linear_scan", "lstm", "lstm_cell", "explain", "use",
    "evaluate",
    "pad", "truncated_bptt", "zeros", "get", "Initializer",
}  # fmt: skip


def public() -> Iterator[tuple[str, Any]]:
    for module in map(importlib.import_module, MODULES):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for name in names:
            value = getattr(module, name)
            if callable(value) and getattr(value, "__module__", "").startswith("gpurnn"):
                yield name, value


SIGNATURES = {
    **dict(public()),
    "Trainer": gpurnn.Trainer,
    "Model.fit": models.Model.fit,
    "LinearGaussian.fit": gpurnn.LinearGaussian.fit,
    "StructuralModel.fit": models.StructuralModel.fit,
    "multi_head_attention": gpurnn.multi_head_attention,
    "Decoder": Decoder,
}


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The parameters of the callable ``name``."""
    return dict(inspect.signature(SIGNATURES[name]).parameters)


def test_every_public_name_is_in_one_of_the_tables():
    assert sorted(set(dict(public())) - CALLS.keys() - WITHOUT_OPTIONS) == []


def options(kinds: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(name, option, parameter, id=f"{name}-{option}")
        for name in CALLS
        for option, parameter in parameters(name).items()
        if str(parameter.annotation).removesuffix(" | None") in kinds and option not in ("training", "complex_")
    ]


def call(name: str, option: str, value: Any) -> Any:
    make, given, beside = CALLS[name]
    cell = {"leak": "rnn", "reset_after": "gru"}.get(option)
    of_cell = {"cell": cell} if cell and "cell" in parameters(name) else {}
    arguments = {**given, **of_cell, **beside.get(option, {}), option: value}
    if name == "Decoder" and option == "attention_size":
        return Decoder(gpurnn.GRU(8, 4), "additive", memory_size=4, attention_size=value)
    return make(**arguments)


@pytest.mark.parametrize(("name", "option", "parameter"), options(("bool",)))
def test_an_option_that_is_a_bool_takes_nothing_else(name, option, parameter):
    for value in ("sum", "no", 0.5, 1, 0, np.int64(1), np.array(True), np.array([True]), (), {}):
        with pytest.raises(TypeError, match=rf": {option} is .*, expected True or False"):
            call(name, option, value)


@pytest.mark.parametrize(("name", "option", "parameter"), options(("bool",)))
def test_an_option_that_is_a_bool_takes_numpys(name, option, parameter):
    value = option not in ("own_lengths", "resume", "bidirectional" if name == "LanguageModel" else "")
    made, expected = (call(name, option, kind(value)) for kind in (np.bool_, bool))
    assert plain(made) == plain(expected)


def plain(made: Any) -> Any:
    """A comparable form of a result: its repr, its configuration, and the types of its attributes."""
    if isinstance(made, (tuple, list)):
        return [plain(item) for item in made]
    if isinstance(made, dict):
        return {key: plain(item) for key, item in made.items()}
    if isinstance(made, np.ndarray):
        return made.tolist()
    if type(made).__module__ == "builtins" and not callable(made):
        return repr(made)
    if isinstance(made, gpurnn.Layer):
        assert made.params is not None  # initial parameters are made on first use
    held = {n: repr(v) for n, v in vars(made).items() if isinstance(v, (bool, int, float, str, np.generic, tuple))}
    held.pop("_initial", None)  # a pending initialiser
    if isinstance(made, gpurnn.Trainer):
        held = {name: value for name, value in held.items() if name in parameters("Trainer")}
        return held, json.dumps(made._config())
    config = json.dumps(made.config()) if hasattr(made, "config") else ""
    shown = "" if "<function" in repr(made) or " at 0x" in repr(made) else repr(made)
    return held, config, shown


NUMBERS = {"int": (np.int64, np.uint8, lambda v: np.array(v, np.int16)), "float": (np.float32, np.float16, np.float64)}


@pytest.mark.parametrize(("name", "option", "parameter"), options(("int", "float")))
def test_an_option_that_is_a_number_takes_numpys_and_keeps_pythons(name, option, parameter, tmp_path):
    kind = str(parameter.annotation).removesuffix(" | None")
    given = CALLS[name][1].get(option, parameter.default)
    if given is None or given is parameter.empty:
        given = {"max_length": 3, "encoder_layers": 2}.get(option, 4 if kind == "int" else 0.5)
    if kind == "float" and given == 0.0:
        given = 0.25
    for number, convert in enumerate((*NUMBERS[kind], lambda v: np.array(v))):
        if isinstance(given, int) and given > 200 and convert is np.uint8:
            continue
        value = convert(given)
        made, expected = call(name, option, value), call(name, option, value.item())
        assert plain(made) == plain(expected)
        if number:
            continue  # the contents are equal, so saving gives equal files
        if hasattr(made, "save"):
            made.save(tmp_path / "model")
            if hasattr(made, "from_file"):
                assert plain(models.load(tmp_path / "model")) == plain(made)
        if not isinstance(made, gpurnn.Trainer) and not inspect.isfunction(made):
            assert plain(pickle.loads(pickle.dumps(made))) == plain(made)


@pytest.mark.parametrize(("name", "option", "parameter"), options(("int", "float")))
def test_an_option_that_is_a_number_takes_nothing_else(name, option, parameter):
    for value in (True, "4", np.array([4, 4]), 1j, np.ma.masked):
        with pytest.raises(TypeError, match=rf": {option} is "):
            call(name, option, value)


@pytest.mark.parametrize("make", [gpurnn.SequenceClassifier, gpurnn.SequenceTagger, gpurnn.SequenceRegressor])
def test_a_choice_is_kept_as_python_text(make):
    model = make(4, 4, 3, cell=np.str_("lstm"))
    assert type(model.config()["cell"]) is str
    assert "np.str_" not in repr(model)


def test_dropout_of_float32_is_that_number():
    assert gpurnn.GRU(3, 4, 2, dropout=np.float32(0.1)).dropout == float(np.float32(0.1))
    assert repr(gpurnn.Dropout(np.float32(0.5))) == "Dropout(0.5)  # 0 parameters"


@pytest.mark.parametrize("rng", [np.int64(3), np.uint8(3), 3])
def test_a_seed_may_be_numpys(rng):
    assert gpurnn.Dense(2, 2, rng=rng).params["weight"].tolist() == gpurnn.Dense(2, 2, rng=3).params["weight"].tolist()


@pytest.mark.parametrize("rng", [-1, np.int8(-1)])
def test_a_seed_below_zero(rng):
    with pytest.raises(ValueError, match="Dense: rng is -1, expected at least 0"):
        gpurnn.Dense(2, 2, rng=rng)
