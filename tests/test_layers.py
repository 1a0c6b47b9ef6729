"""The layers: arguments and results of a call, what is kept, and the dropouts."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import json
import pickle

import numpy as np
import pytest
from parity import assign
from problems import pattern_of_lengths, pattern_of_resets
from safetensors.numpy import load_file, save_file
from tolerance import assert_all_close, assert_close, assert_same, check_gradients, recurrence_terms

import gpurnn
from gpurnn.layers import Decoder
from gpurnn.models.pooling import AttentionPooling

# All combinations of options are drawn, including those without effect.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")

RECURRENT = {"RNN": gpurnn.RNN, "LSTM": gpurnn.LSTM, "GRU": gpurnn.GRU}
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
each_recurrent = pytest.mark.parametrize("kind", RECURRENT)


def states_of(state) -> tuple[np.ndarray, ...]:
    return state if isinstance(state, tuple) else (state,)


def state_like(kind: str, shape: tuple[int, ...], seed: int = 0, dtype: str = "float64"):
    rng = np.random.default_rng(seed)
    h, c = rng.standard_normal((2, *shape)).astype(dtype)
    return (h, c) if kind == "LSTM" else h


def normal(*shape: int, seed: int = 1, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@each_recurrent
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(("layers", "bidirectional"), list(itertools.product((1, 3), (False, True))))
def test_shapes_are_those_of_torch(kind, layers, bidirectional, batch_first):
    T, B, I, H, D, G = 5, 3, 4, 6, 1 + bidirectional, GATES[kind]
    layer = RECURRENT[kind](I, H, layers, True, batch_first, 0.0, bidirectional)
    x = np.zeros((B, T, I) if batch_first else (T, B, I), "float32")
    for y, state in (layer(x), layer.vjp(x)[0]):
        assert y.shape == ((B, T, D * H) if batch_first else (T, B, D * H))
        assert y.dtype == np.float32
        assert len(states_of(state)) == (2 if kind == "LSTM" else 1)
        assert all(s.shape == (layers * D, B, H) and s.dtype == np.float32 for s in states_of(state))
    expected = {}
    for number in range(layers):
        for suffix in (f"_l{number}", f"_l{number}_reverse")[:D]:
            expected[f"weight_ih{suffix}"] = (G * H, I if number == 0 else D * H)
            expected[f"weight_hh{suffix}"] = (G * H, H)
            expected[f"bias_ih{suffix}"] = expected[f"bias_hh{suffix}"] = (G * H,)
    assert {name: p.shape for name, p in layer.params.items()} == expected
    assert list(layer.params) == list(expected)


@each_recurrent
def test_arguments_are_those_of_torch_in_its_order(kind):
    parameters = inspect.signature(RECURRENT[kind]).parameters
    positional = {n: p.default for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert positional == {
        "input_size": inspect.Parameter.empty,
        "hidden_size": inspect.Parameter.empty,
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
    }
    own = {
        field.name: field.default for field in dataclasses.fields(RECURRENT[kind]._kind) if field.name != "step_masks"
    }
    keyword = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert keyword.pop("init") is not None
    shared = {"merge": "concat", "reverse": False, "zero_masked_output": False}
    shared |= {"residual": False, "variational_dropout": 0.0, "recurrent_dropout": 0.0, "dtype": "float32", "rng": 0}
    assert keyword == own | shared
    assert list(inspect.signature(gpurnn.Dense).parameters)[:3] == ["in_features", "out_features", "bias"]
    assert list(inspect.signature(gpurnn.Embedding).parameters)[:3] == [
        "num_embeddings",
        "embedding_dim",
        "padding_idx",
    ]


MODELS = {
    "RNN": lambda **more: gpurnn.RNN(3, 4, 2, bidirectional=True, **more),
    "LSTM": lambda **more: gpurnn.LSTM(3, 4, bias=False, **more),
    "GRU": lambda **more: gpurnn.GRU(3, 4, **more),
    "Dense": lambda **more: gpurnn.Dense(3, 5, **more),
    "Embedding": lambda **more: gpurnn.Embedding(7, 3, **more),
    "Sequential": lambda **more: gpurnn.Sequential(
        gpurnn.Embedding(7, 3, **more), gpurnn.Dropout(0.5), gpurnn.LSTM(3, 4, **more), gpurnn.Dense(4, 7, **more)
    ),
}
each_model = pytest.mark.parametrize("model", MODELS)


@each_model
def test_repr_tells_the_class_and_the_parameter_count(model):
    layer = MODELS[model]()
    count = sum(p.size for p in layer.params.values())
    text = repr(layer)
    assert text.startswith(f"{model}(")
    assert text.endswith(f"# {count:,} parameters")
    assert layer.num_parameters == count


def test_repr_tells_what_differs_from_the_defaults():
    layer = gpurnn.GRU(30, 40, 2, batch_first=True, reset_after=True, variational_dropout=0.1, dtype="float64")
    options = "num_layers=2, batch_first=True, reset_after=True, variational_dropout=0.1, dtype='float64'"
    count = 3 * 40 * (30 + 40 + 2) + 3 * 40 * (40 + 40 + 2)
    assert count == 18480
    assert repr(layer) == f"GRU(30, 40, {options})  # 18,480 parameters"


@each_model
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_survive_a_safetensors_file(model, dtype, tmp_path):
    first, second = (MODELS[model](dtype=dtype, rng=seed) for seed in (1, 2))
    before = {name: p.copy() for name, p in first.params.items()}
    assert any((second.params[name] != p).any() for name, p in before.items())
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    assign(second, load_file(tmp_path / "weights.safetensors"))
    assert_same(dict(second.params), before)
    first.save(tmp_path / "again.safetensors")
    assert_same(load_file(tmp_path / "again.safetensors"), before)
    second.save(tmp_path / "equal.safetensors")
    assert (tmp_path / "equal.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    third = MODELS[model](dtype=dtype, rng=3)
    third.load(tmp_path / "again.safetensors")
    assert_same(dict(third.params), before)


@each_model
def test_a_state_dict_is_a_copy_and_is_copied(model):
    layer = MODELS[model]()
    state = layer.state_dict()
    before = {name: p.copy() for name, p in layer.params.items()}
    for value in state.values():
        value[...] = 7
    assert_same(dict(layer.params), before)
    assign(layer, state)
    for value in state.values():
        value[...] = 8
    assert all((p == 7).all() for p in layer.params.values())


@each_model
def test_a_foreign_state_dict_is_refused_and_changes_nothing(model):
    layer = MODELS[model]()
    before = {name: p.copy() for name, p in layer.params.items()}
    name, value = next(iter(layer.state_dict().items()))
    new = {key: p + 1 for key, p in layer.state_dict().items()}
    last = list(new)[-1]
    for wrong, error, told in (
        ({key: p for key, p in new.items() if key != name}, KeyError, name),
        ({**new, "stranger": value}, KeyError, "stranger"),
        ({**new, last: new[last][:-1]}, ValueError, last),
        ({**new, last: new[last].astype("float64")}, TypeError, last),
    ):
        with pytest.raises(error, match=told.replace(".", r"\.")):
            layer.load_state_dict(wrong)
        assert_same(dict(layer.params), before)


@each_model
def test_the_seed_decides_the_parameters(model):
    first, same, other = (MODELS[model](rng=rng) for rng in (4, np.random.default_rng(4), 5))
    if model != "Sequential":
        assert_same(dict(first.params), dict(same.params))
    assert any((first.params[name] != p).any() for name, p in other.params.items())


def test_biases_start_at_zero_and_the_forget_gate_at_one():
    layer = gpurnn.LSTM(3, 4, 2, bidirectional=True)
    for name, p in layer.params.items():
        if name.startswith("bias"):
            total = p + layer.params[name.replace("ih", "xx").replace("hh", "ih").replace("xx", "hh")]
            np.testing.assert_array_equal(total, np.repeat([0, 1, 0, 0], 4).astype("float32"))
    assert not gpurnn.GRU(3, 4).params["bias_ih_l0"].any()


@each_recurrent
def test_batch_first_is_the_transposed_result(kind):
    T, B, I, H = 5, 3, 6, 3
    options = {"num_layers": 2, "bidirectional": True, "residual": True, "dtype": "float64"}
    major, minor = (RECURRENT[kind](I, H, batch_first=batch_first, **options) for batch_first in (False, True))
    x, state = normal(T, B, I), state_like(kind, (4, B, H))
    lengths, resets = pattern_of_lengths(T, B), pattern_of_resets(T, B)
    dy, dstate = normal(T, B, 2 * H, seed=2), state_like(kind, (4, B, H), seed=3)

    (y, final), pullback = major.vjp(x, state, lengths, resets)
    (dx, dstate0), gradients = pullback((dy, dstate))
    (y_t, final_t), pullback = minor.vjp(x.swapaxes(0, 1), state, lengths, resets.T)
    (dx_t, dstate0_t), gradients_t = pullback((dy.swapaxes(0, 1), dstate))
    assert_same((y_t.swapaxes(0, 1), final_t, dx_t.swapaxes(0, 1)), (y, final, dx))
    assert_same((dstate0_t, gradients_t), (dstate0, gradients))
    y_t, final_t = minor(x.swapaxes(0, 1), state, lengths, resets.T)
    assert_same((y_t.swapaxes(0, 1), final_t), major(x, state, lengths, resets))


@each_recurrent
def test_a_stack_is_its_layers_one_after_another(kind):
    T, B, I, H, D = 4, 3, 2, 3, 2
    stack = RECURRENT[kind](I, H, 3, bidirectional=True, dtype="float64", rng=1)
    x, lengths, resets = normal(T, B, I), pattern_of_lengths(T, B), pattern_of_resets(T, B)
    state = state_like(kind, (3 * D, B, H))
    expected, expected_state = stack(x, state, lengths, resets)
    y, finals = x, []
    for number in range(3):
        one = RECURRENT[kind](y.shape[2], H, bidirectional=True, dtype="float64")
        assign(one, {name: stack.params[name.replace("_l0", f"_l{number}")] for name in one.params})
        part = tuple(s[number * D : (number + 1) * D] for s in states_of(state))
        y, final = one(y, part if kind == "LSTM" else part[0], lengths, resets)
        finals.append(states_of(final))
    assert_same(y, expected)
    assert_same(tuple(map(np.concatenate, zip(*finals, strict=True))), states_of(expected_state))


@each_recurrent
def test_a_layer_is_its_function(kind):
    function = {"RNN": gpurnn.rnn, "LSTM": gpurnn.lstm, "GRU": gpurnn.gru}[kind]
    layer = RECURRENT[kind](3, 4, dtype="float64")
    x, state = normal(5, 2, 3), state_like(kind, (1, 2, 4))
    y, final = layer(x, state)
    part = tuple(s[0] for s in states_of(state))
    expected, expected_final = function(x, *layer.params.values(), part if kind == "LSTM" else part[0])
    assert_same(y, expected)
    assert_same(tuple(s[0] for s in states_of(final)), states_of(expected_final))


@each_recurrent
@pytest.mark.parametrize("lengths", [None, "given"])
def test_residual_adds_the_input_where_the_widths_agree(kind, lengths):
    T, B, H = 4, 3, 3
    lengths = None if lengths is None else pattern_of_lengths(T, B)
    x = normal(T, B, H)
    plain, residual = (RECURRENT[kind](H, H, residual=on, dtype="float64") for on in (False, True))
    y, state = plain(x, lengths=lengths)
    y_r, state_r = residual(x, lengths=lengths)
    exists = np.ones((T, B), bool) if lengths is None else np.arange(T)[:, None] < lengths
    assert_same(y_r, y + x * exists[:, :, None])
    assert_same(state_r, state)
    narrow = normal(T, B, 2)
    layers = [RECURRENT[kind](2, H, residual=on, dtype="float64") for on in (False, True)]
    assert_same(layers[1](narrow), layers[0](narrow))


def test_residual_with_lengths_of_a_narrow_dtype_and_a_long_sequence():
    layer = gpurnn.RNN(2, 2, residual=True)
    x = normal(300, 2, 2, dtype="float32")
    assert_same(layer(x, lengths=np.array([200, 7], "uint8")), layer(x, lengths=np.array([200, 7], "int64")))


DROPOUTS = ("dropout", "variational_dropout", "recurrent_dropout")


def with_dropout(kind: str, which: str, **more):
    return RECURRENT[kind](3, 4, 2, dtype="float64", **{which: 0.5}, **more)


@each_recurrent
@pytest.mark.parametrize("which", DROPOUTS)
def test_dropouts_act_in_training_only_and_follow_the_seed(kind, which):
    layer, plain = with_dropout(kind, which), RECURRENT[kind](3, 4, 2, dtype="float64")
    x = normal(5, 3, 3)
    expected = plain(x)
    assert_same(layer(x), expected)
    evaluated, pullback = layer.vjp(x)
    assert_all_close(evaluated, expected, recurrence_terms(5, 3, 4, 4, 2))
    plain_result, plain_pullback = plain.vjp(x)
    assert_same(evaluated, plain_result)
    dy = normal(5, 3, 4, seed=2)
    assert_same(pullback((dy, None)), plain_pullback((dy, None)))

    (first, _), pullback = layer.vjp(x, rng=1)
    (again, _), pullback_again = layer.vjp(x, rng=np.random.default_rng(1))
    (other, _), _ = layer.vjp(x, rng=2)
    assert_same(first, again)
    assert_same(pullback((dy, None)), pullback_again((dy, None)))
    assert_same(pullback((dy, None)), pullback((dy, None)))
    assert (first != other).any()
    assert (first != expected[0]).any()
    generator = np.random.default_rng(3)
    (one, _), _ = layer.vjp(x, rng=generator)
    (two, _), _ = layer.vjp(x, rng=generator)
    assert (one != two).any()


def test_dropout_between_layers_leaves_the_first_input_and_the_last_output_alone():
    layer = gpurnn.RNN(4, 40, 1, dropout=0.5, activation="identity", dtype="float64")
    x = normal(6, 5, 4)
    assert_same(layer.vjp(x, rng=0)[0], layer.vjp(x)[0])
    stack = gpurnn.RNN(40, 40, 2, bias=False, dropout=0.25, activation="identity", dtype="float64")
    for name, p in stack.params.items():
        p[...] = np.eye(40) if "weight_ih" in name else 0
    ratio = stack.vjp(np.ones((30, 20, 40)), rng=0)[0][0]
    assert set(np.unique(ratio)) == {0.0, 1 / 0.75}
    # Every number is masked on its own: 24000 trials with probability 0.75, within 5 standard deviations.
    assert abs((ratio > 0).mean() - 0.75) < 5 * (0.75 * 0.25 / ratio.size) ** 0.5


def test_variational_dropout_repeats_one_mask_at_every_step():
    layer = gpurnn.RNN(1, 200, bias=False, variational_dropout=0.5, activation="identity", dtype="float64")
    layer.params["weight_ih_l0"][...] = 0
    layer.params["weight_hh_l0"][...] = np.eye(200)
    (y, _), _ = layer.vjp(np.zeros((3, 4, 1)), np.ones((1, 4, 200)), rng=0)
    for t in range(3):
        np.testing.assert_array_equal(y[t], np.where(y[0] > 0, 2.0 ** (t + 1), 0))
    assert abs((y[0] > 0).mean() - 0.5) < 5 * 0.5 / y[0].size ** 0.5
    assert (y[0, 0] != y[0, 1]).any()


def test_recurrent_dropout_drops_entries_of_the_recurrent_weights():
    layer = gpurnn.RNN(1, 100, bias=False, recurrent_dropout=0.5, activation="identity", dtype="float64")
    layer.params["weight_ih_l0"][...] = 0
    layer.params["weight_hh_l0"][...] = 1
    state = np.eye(100)[None]
    (y, _), _ = layer.vjp(np.zeros((1, 100, 1)), state, rng=0)
    assert set(np.unique(y)) == {0.0, 2.0}
    assert abs((y > 0).mean() - 0.5) < 5 * 0.5 / y.size**0.5
    (two, _), _ = layer.vjp(np.zeros((2, 100, 1)), state, rng=0)
    np.testing.assert_array_equal(two[1], two[0] @ two[0])


@each_recurrent
@pytest.mark.parametrize("which", ["variational_dropout", "recurrent_dropout"])
def test_directions_and_layers_have_masks_of_their_own(kind, which):
    """With equal masks and weights, a mirrored input would give mirrored outputs in the two directions."""
    layer = RECURRENT[kind](3, 8, bidirectional=True, dtype="float64", **{which: 0.5})
    for name in list(layer.params):
        if name.endswith("_reverse"):
            layer.params[name][...] = layer.params[name.removesuffix("_reverse")]
    half = normal(3, 2, 3)
    x = np.concatenate([half, half[::-1]])
    (y, _), _ = layer.vjp(x)
    assert_close(y[:, :, :8], y[::-1, :, 8:], recurrence_terms(6, 2, 3, 8))
    (y, _), _ = layer.vjp(x, rng=0)
    assert (np.abs(y[1:, :, :8] - y[::-1, :, 8:][1:]) > 1e-3).any()


def test_dropout_layer():
    layer = gpurnn.Dropout(0.3)
    x = np.ones((100, 100))
    assert_same(layer(x), x)
    y, pullback = layer.vjp(x)
    assert_same((y, pullback(2 * x)), (x, (2 * x, {})))
    y, pullback = layer.vjp(x, rng=0)
    assert_same(y, gpurnn.dropout(x, 0.3, rng=0))
    kept = y > 0
    assert_close(y[kept], np.full(kept.sum(), 1 / 0.7), 1)
    assert abs(kept.mean() - 0.7) < 5 * (0.7 * 0.3 / y.size) ** 0.5
    assert_same(pullback(3 * x), (3 * y, {}))
    assert not pullback(None)[0].any()
    assert gpurnn.Dropout(0.0).vjp(x, rng=0)[0].all()


def test_embedding_gathers_rows_and_sums_their_gradients():
    layer = gpurnn.Embedding(5, 3, padding_idx=1, dtype="float64")
    table = layer.params["weight"]
    assert not table[1].any()
    indices = np.array([[0, 1, 4], [4, 4, 0]])
    y, pullback = layer.vjp(indices)
    assert_same((y, layer(indices)), (table[indices], table[indices]))
    dy = normal(2, 3, 3)
    dx, gradients = pullback(dy)
    assert dx is None
    expected = np.zeros((5, 3))
    np.add.at(expected, indices, dy)
    expected[1] = 0
    assert_close(gradients["weight"], expected, indices.size)
    assert not pullback(None)[1]["weight"].any()


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "sigmoid", "softmax"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)])
def test_dense_acts_on_the_last_axis(activation, shape):
    layer = gpurnn.Dense(4, 5, activation=activation, dtype="float64", rng=1)
    layer.params["bias"][...] = normal(5)
    x = normal(*shape, seed=2)
    a = np.einsum("...i,oi->...o", x, layer.params["weight"]) + layer.params["bias"]
    with np.errstate(over="ignore"):
        expected = {
            "identity": lambda: a,
            "tanh": lambda: np.tanh(a),
            "relu": lambda: np.maximum(a, 0),
            "sigmoid": lambda: 1 / (1 + np.exp(-a)),
            "softmax": lambda: np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True),
        }[activation]()
    assert_close(layer(x), expected, 20)
    y, pullback = layer.vjp(x)
    assert_same(y, layer(x))
    dy = normal(*y.shape, seed=3)
    inputs = {"x": x, **layer.params}

    def outputs(arrays):
        return [gpurnn.dense(arrays["x"], arrays["weight"], arrays["bias"], activation=activation)]

    dx, gradients = pullback(dy)
    check_gradients(outputs, inputs, [dy], {"x": dx, **gradients}, seed=4)
    assert not any(g.any() for g in (pullback(None)[0], *pullback(None)[1].values()))


def test_sequential_always_returns_a_tuple_of_states():
    model = gpurnn.Sequential(
        gpurnn.Embedding(7, 3), gpurnn.LSTM(3, 4, 2), gpurnn.Dropout(0.5), gpurnn.GRU(4, 5), gpurnn.Dense(5, 7)
    )
    tokens = np.arange(10).reshape(5, 2) % 7
    y, state = model(tokens)
    assert y.shape == (5, 2, 7)
    assert isinstance(state, tuple)
    (h, c), g = state
    assert (h.shape, c.shape, g.shape) == ((2, 2, 4), (2, 2, 4), (1, 2, 5))
    assert_all_close(model.vjp(tokens)[0], (y, state), recurrence_terms(5, 2, 4, 5, 3))
    y, state = gpurnn.Sequential(gpurnn.Dense(3, 4), gpurnn.Dropout(0.1))(np.zeros((2, 3), "float32"))
    assert y.shape == (2, 4)
    assert state == ()


def test_sequential_is_its_layers_one_after_another():
    T, B = 5, 3
    layers = [
        gpurnn.LSTM(2, 4, dtype="float64"),
        gpurnn.Dense(4, 3, dtype="float64"),
        gpurnn.GRU(3, 3, dtype="float64"),
    ]
    model = gpurnn.Sequential(*layers)
    x, lengths, resets = normal(T, B, 2), pattern_of_lengths(T, B), pattern_of_resets(T, B)
    s0, s1 = state_like("LSTM", (1, B, 4)), state_like("GRU", (1, B, 3))
    (y, state), pullback = model.vjp(x, (s0, s1), lengths, resets)
    (a, f0), pull0 = layers[0].vjp(x, s0, lengths, resets)
    b, pull1 = layers[1].vjp(a)
    (c, f1), pull2 = layers[2].vjp(b, s1, lengths, resets)
    assert_same((y, state), (c, (f0, f1)))
    assert_all_close(model(x, (s0, s1), lengths, resets), (y, state), recurrence_terms(T, B, 4, 4, 3))
    dy, d0, d1 = normal(T, B, 3, seed=5), state_like("LSTM", (1, B, 4), 6), state_like("GRU", (1, B, 3), 7)
    for cotangents, (e, e0, e1) in (
        ((dy, (d0, d1)), (dy, d0, d1)),
        ((dy, None), (dy, None, None)),
        ((None, (None, d1)), (None, None, d1)),
    ):
        (db, dg), g2 = pull2((e, e1))
        da, g1 = pull1(db)
        (dx, dl), g0 = pull0((da, e0))
        grads = {f"{k}.{name}": g for k, own in enumerate((g0, g1, g2)) for name, g in own.items()}
        assert_same(pullback(cotangents), ((dx, (dl, dg)), grads))


def test_sequential_passes_the_generator_on():
    model = gpurnn.Sequential(gpurnn.RNN(3, 4, variational_dropout=0.5), gpurnn.Dropout(0.5))
    x = normal(4, 2, 3, dtype="float32")
    assert_all_close(model.vjp(x)[0], model(x), recurrence_terms(4, 2, 3, 4))
    assert_same(model.vjp(x, rng=1)[0], model.vjp(x, rng=np.random.default_rng(1))[0])
    assert (model.vjp(x, rng=1)[0][0] != model.vjp(x, rng=2)[0][0]).any()
    assert (model.vjp(x, rng=1)[0][0] == 0).any()


def test_sequential_shares_its_layers_parameters():
    dense = gpurnn.Dense(2, 2)
    model = gpurnn.Sequential(gpurnn.Dropout(0.1), dense)
    assert model.params["1.weight"] is dense.params["weight"]


@each_model
def test_moved_to_numpy_is_a_copy(model):
    layer = MODELS[model]()
    before = {name: p.copy() for name, p in layer.params.items()}
    moved = layer.to(np)
    assert repr(moved) == repr(layer)
    assert_same(dict(moved.params), before)
    for p in moved.params.values():
        p[...] = 9
    assert_same(dict(layer.params), before)


@each_recurrent
def test_a_pullback_may_be_called_again_with_other_cotangents(kind):
    layer = RECURRENT[kind](3, 4, 2, dropout=0.5, bidirectional=True, dtype="float64")
    x = normal(5, 3, 3)
    (y, state), pullback = layer.vjp(x, rng=1)
    dy, dstate = normal(*y.shape, seed=2), state_like(kind, (4, 3, 4))
    first = pullback((dy, dstate))
    pullback((None, None))
    y[...] = np.nan
    for s in states_of(state):
        s[...] = np.nan
    assert_same(pullback((dy, dstate)), first)
    zero = pullback((None, None))
    assert not any(a.any() for a in (zero[0][0], *states_of(zero[0][1]), *zero[1].values()))


@each_recurrent
def test_gradients_are_not_shared_between_calls_of_a_pullback(kind):
    layer = RECURRENT[kind](3, 4)
    _, pullback = layer.vjp(normal(5, 3, 3, dtype="float32"))
    dy = normal(5, 3, 4, dtype="float32")
    _, first = pullback((dy, None))
    kept = {name: g.copy() for name, g in first.items()}
    _, second = pullback((2 * dy, None))
    for g in second.values():
        g[...] = 0
    assert_same(first, kept)


def of_others(state):
    """A state as another program would write it."""
    return {str(name): value for name, value in state.items()}


FORMS = list(itertools.product((False, True), ("candidate", "state")))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other", FORMS)
@pytest.mark.parametrize("nested", [False, True])
def test_the_form_of_a_gru_goes_with_its_weights(tmp_path, form, other, nested):
    def make(form):
        gru = gpurnn.GRU(3, 4, reset_after=form[0], update=form[1])
        return gpurnn.Sequential(gpurnn.Dense(2, 3), gru) if nested else gru

    layer, target = make(form), make(other)
    layer.save(tmp_path / "file")
    state = layer.state_dict()
    if form == other:
        target.load(tmp_path / "file")
        target.load_state_dict(pickle.loads(pickle.dumps(copy.deepcopy(state))))
        return
    kept = copy.deepcopy(target.params)
    said = r"1 is a GRU with" if nested else r": a GRU with"
    message = f"{said} reset_after={form[0]}, update='{form[1]}', expected reset_after={other[0]}, update='{other[1]}'"
    with pytest.raises(ValueError, match=message):
        target.load(tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(state)
    for name, p in target.params.items():
        np.testing.assert_array_equal(p, kept[name])


def test_weights_that_do_not_say_their_form_warn_unless_the_layer_is_pytorchs(tmp_path):
    textbook, pytorchs = gpurnn.GRU(3, 4), gpurnn.GRU(3, 4, reset_after=True, update="state")
    plain = of_others(textbook.state_dict())
    pytorchs.load_state_dict(plain)
    message = (
        "GRU.load_state_dict: this is a GRU with reset_after=False, update='candidate', and the weights do not say "
        "which form they are of. PyTorch's are of reset_after=True, update='state'"
    )
    with pytest.warns(UserWarning, match=message) as seen:
        textbook.load_state_dict(plain)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    save_file(plain, tmp_path / "foreign")
    with pytest.warns(UserWarning, match=message):
        textbook.load(tmp_path / "foreign")
    model = gpurnn.SequenceClassifier(3, 4, 2)
    with pytest.warns(UserWarning, match="SequenceClassifier.load_state_dict: recurrent is a GRU with reset"):
        model.load_state_dict(of_others(model.state_dict()))
    gpurnn.LSTM(3, 4).load_state_dict(of_others(gpurnn.LSTM(3, 4).state_dict()))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "make", [lambda **form: gpurnn.GRU(3, 4, **form), lambda **form: gpurnn.SequenceClassifier(3, 4, 2, **form)]
)
def test_a_dict_that_is_made_of_a_state_says_the_form(make):
    layer = make()
    state = layer.state_dict()
    for made in (
        dict(state),
        {name: value for name, value in state.items()},  # noqa: C416
        {name: 0.9 * value for name, value in layer.params.items()},
        {name: state[name] + layer.params[name] for name in state},
        copy.deepcopy(dict(layer.params)),
        pickle.loads(pickle.dumps(dict(state))),
        dict(layer.to(np).params),
    ):
        layer.load_state_dict(made)
        with pytest.raises(ValueError, match="a GRU with reset_after=False, update='candidate'"):
            make(reset_after=True, update="state").load_state_dict(made)
    assert list(state) == list(of_others(state))
    assert json.loads(json.dumps(dict.fromkeys(state, 1))) == dict.fromkeys(state, 1)


@pytest.mark.filterwarnings("error")
def test_a_layer_in_two_places_says_its_form_once():
    gru = gpurnn.GRU(3, 3)
    layer, other = gpurnn.Sequential(gru, gru), gpurnn.Sequential(*[gpurnn.GRU(3, 3)] * 2)
    other.load_state_dict(layer.state_dict())
    assert_same(other.state_dict(), layer.state_dict())


def test_a_models_file_says_the_form_of_its_gru(tmp_path):
    model = gpurnn.SequenceClassifier(3, 4, 2)
    model.save(tmp_path / "model")
    gpurnn.SequenceClassifier(3, 4, 2).load(tmp_path / "model")
    with pytest.raises(ValueError, match="recurrent is a GRU with reset_after=False, update='candidate', expected"):
        gpurnn.SequenceClassifier(3, 4, 2, reset_after=True, update="state").load(tmp_path / "model")


def of_another_shape(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """Shapes that broadcasting, or a loop over the first rows, could mistake for this one."""
    found = {(), (1,), (1,) * len(shape), (1, *shape), (*shape, 1), shape[::-1]}
    for axis, size in enumerate(shape):
        found |= {(*shape[:axis], other, *shape[axis + 1 :]) for other in (1, size - 1, size + 1, 2 * size)}
    return found - {shape}


X, MEMORY = normal(4, 3, 2), normal(5, 3, 6)
WITH_PARAMETERS = {
    "rnn": (lambda: gpurnn.RNN(2, 3, dtype="float64"), (X,)),
    "lstm": (lambda: gpurnn.LSTM(2, 3, 2, bidirectional=True, dtype="float64"), (X,)),
    "gru": (lambda: gpurnn.GRU(2, 3, reset_after=True, dtype="float64"), (X,)),
    "dense": (lambda: gpurnn.Dense(2, 3, dtype="float64"), (X,)),
    "layer norm": (lambda: gpurnn.LayerNorm(2, dtype="float64"), (X,)),
    "state space": (lambda: gpurnn.StateSpace(2, 3, 4, dtype="float64"), (X,)),
    "diagonal": (lambda: gpurnn.DiagonalStateSpace(2, 3, 4, dtype="float64"), (X,)),
    "real diagonal": (lambda: gpurnn.DiagonalStateSpace(2, 3, 4, complex=False, dtype="float64"), (X,)),
    "pooling": (lambda: AttentionPooling(2, dtype="float64", rng=0), (X,)),
    "bahdanau": (lambda: Decoder(gpurnn.GRU(2 + 6, 3, 2, dtype="float64"), "additive", memory_size=6), (X, MEMORY)),
    "luong": (lambda: Decoder(gpurnn.GRU(2, 3, dtype="float64"), "general", memory_size=6), (X, MEMORY)),
    "luong fed": (
        lambda: Decoder(gpurnn.LSTM(2 + 3, 3, dtype="float64"), "general", memory_size=6, input_feeding=True),
        (X, MEMORY),
    ),
}


@pytest.mark.parametrize("kind", WITH_PARAMETERS)
def test_a_parameter_that_was_replaced_by_one_of_another_shape_is_rejected(kind):
    """A wing does not check shapes: it would read the first rows of a larger array, and past a smaller one's end."""
    make, arguments = WITH_PARAMETERS[kind]
    for place in make()._places():
        for shape in of_another_shape(make().params[place].shape):
            for run in ("__call__", "vjp"):
                layer = make()
                held, own = layer._places()[place]
                with pytest.raises(ValueError, match=r"^params: .* has shape .*expected the parameter's shape"):
                    held[own] = normal(*shape)
                dict.__setitem__(held, own, normal(*shape))  # as a dict of the caller's in its place may hold
                with pytest.raises(ValueError, match=r"has shape \(.*expected|expected .* axes"):
                    getattr(layer, run)(*arguments)


@pytest.mark.parametrize("kind", WITH_PARAMETERS)
@pytest.mark.parametrize("change", [np.ndarray.tolist, lambda p: np.ma.array(p), lambda p: p.astype("int64")])
def test_a_parameter_that_was_replaced_by_no_array_of_numbers_is_rejected(kind, change):
    make, arguments = WITH_PARAMETERS[kind]
    for place in make()._places():
        layer = make()
        held, own = layer._places()[place]
        with pytest.raises(TypeError, match=r"^params: .* (is a (list|numpy.MaskedArray)|has dtype int64)"):
            held[own] = change(held[own])
        dict.__setitem__(held, own, change(held[own]))
        with pytest.raises(TypeError, match=r": .* (is a (list|numpy.MaskedArray)|has dtype int64)"):
            layer(*arguments)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_are_in_the_machines_byte_order_whatever_dtype_is_asked_for(dtype):
    swapped = np.dtype(dtype).newbyteorder()
    for layer in (
        gpurnn.LSTM(2, 3, dtype=swapped),
        gpurnn.Dense(2, 3, dtype=swapped),
        gpurnn.Embedding(2, 3, dtype=swapped),
        gpurnn.DiagonalStateSpace(2, 3, 4, dtype=swapped),
        gpurnn.TransformerBlock(2, 1, dtype=swapped),
        gpurnn.EncoderDecoder(4, 4, 2, 3, attention="additive", dtype=swapped),
    ):
        assert {str(p.dtype) for p in layer.params.values()} == {dtype}


@each_model
@pytest.mark.parametrize("xp", [None, "cupy"])
def test_a_layer_goes_to_a_module_of_arrays(model, xp):
    with pytest.raises((TypeError, ValueError), match=r"to: device is .*, expected 'cpu', 'cuda', "):
        MODELS[model](dtype="float32").to(xp)


def test_an_initializer_is_one_or_a_pair():
    for init in ((), ("xavier",), ("xavier",) * 3):
        with pytest.raises(TypeError, match=rf"GRU: init is a tuple of {len(init)}, expected one, or a pair of them"):
            gpurnn.GRU(2, 3, init=init)
