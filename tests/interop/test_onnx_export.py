"""ONNX: gpurnn's layers and models in ONNX Runtime and in ONNX's reference evaluator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_configuration import MAKE
from tolerance import assert_close

import gpurnn
from gpurnn import cells, interop, layers, models

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
reference = pytest.importorskip("onnx.reference")

RNG = np.random.default_rng(0)
T, B, I, H = 6, 4, 3, 5
LENGTHS = np.array([6, 0, 4, 3], np.int32)
ONE = np.array([3], np.int32)
LAYERS = {"rnn": gpurnn.RNN, "lstm": gpurnn.LSTM, "gru": gpurnn.GRU, "indrnn": gpurnn.IndRNN}


def normal(*shape, dtype="float32"):
    return RNG.normal(size=shape).astype(dtype)


def padded(lengths, *features, dtype="float32", steps=T):
    """An input (T, B, ...) with NaN past the lengths, where nothing may read it."""
    x = normal(steps, len(lengths), *features, dtype=dtype)
    x[np.arange(steps)[:, None] >= lengths] = np.nan
    return x


def filled(layer):
    """Fill the layer with random parameters, biases too."""
    for p in layer.params.values():
        p[...] = RNG.normal(scale=0.5, size=p.shape)
    return layer


def by_runtime(model, **feeds):
    """The outputs of a model by name, computed by ONNX Runtime."""
    session = runtime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def by_reference(model, **feeds):
    """The same by ONNX's evaluator, whose recurrent operators are gpurnn's."""
    evaluator = reference.ReferenceEvaluator(model, new_ops=interop.onnx_ops())
    names = [output.name for output in model.graph.output]
    return dict(zip(names, evaluator.run(names, feeds), strict=True))


def hold(found, expected, terms=4 * T * (I + 2 * H)):
    assert_close(found, np.asarray(expected), terms)


def check(model, feeds, expected):
    """Check the outputs of a model in both."""
    for run in (by_runtime, by_reference):
        found = run(model, **feeds)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            hold(found[name], value)


def states_of(value):
    """The arrays of a state."""
    return value if isinstance(value, tuple) else (value,)


# ---- Recurrent layers by an operator ---------------------------------------------------------------------------------


OPTIONS = [
    ("rnn", {"activation": ("leaky_relu", 0.2), "clip": 1.5, "reverse": True}),
    ("rnn", {"bidirectional": True, "num_layers": 3, "merge": "mul", "activation": "softsign"}),
    ("indrnn", {"bidirectional": True, "num_layers": 2, "clip": 1.5}),
    ("indrnn", {"activation": "tanh", "bias": False}),
    ("lstm", {"peephole": True, "coupled": True, "bidirectional": True, "merge": "sum", "num_layers": 2}),
    ("lstm", {"gate_activation": ("hard_sigmoid", 0.3, 0.4), "activation": "scaled_tanh", "output_activation": "elu"}),
    ("lstm", {"residual": True, "num_layers": 2, "hidden_size": I, "batch_first": True}),
    ("gru", {"bidirectional": True, "merge": "average", "residual": True, "hidden_size": I, "num_layers": 2}),
    ("gru", {"gate_activation": ("hard_sigmoid", 0.3, 0.5), "activation": "thresholded_relu", "bias": False}),
    ("gru", {"reset_after": True, "update": "state", "gate_activation": ("affine", 0.2, 0.1), "reverse": True}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_layers_with_options(kind, options):
    options = {"hidden_size": H, **options}
    layer = filled(LAYERS[kind](I, **options))
    rows, width = layer.num_layers * layer.num_directions, layer.hidden_size
    x = normal(B, T, I) if layer.batch_first else normal(T, B, I)
    past = np.arange(T)[:, None] >= LENGTHS
    x[past.T if layer.batch_first else past] = np.nan  # values past a length are not read
    states = {name: normal(rows, B, width) for name in ("h", "c")[: layer.cell.states]}
    expected, final = layer(x, tuple(states.values()) if kind == "lstm" else states["h"], lengths=LENGTHS)
    found = by_runtime(interop.to_onnx(layer), x=x, lengths=LENGTHS, **states)
    hold(found["y"], expected)
    for name, value in zip(states, final if kind == "lstm" else (final,), strict=True):
        hold(found[f"{name}_n"], value)
    model = interop.to_onnx(layer)
    operator = kind.upper().removeprefix("IND")
    assert [node.op_type for node in model.graph.node].count(operator) == layer.num_layers
    if layer.num_layers == 1:
        again = interop.from_onnx(model)
        assert again.reverse == layer.reverse
        hold(again(x, tuple(states.values()) if kind == "lstm" else states["h"], lengths=LENGTHS)[0], expected)


def test_a_layer_of_float64_has_the_bits_of_its_own_call():
    """ONNX Runtime has no recurrent operators for float64."""
    layer = filled(gpurnn.LSTM(I, H, 2, bidirectional=True, dtype="float64"))
    x, h, c = normal(T, B, I, dtype="float64"), normal(4, B, H, dtype="float64"), normal(4, B, H, dtype="float64")
    expected, (h_n, c_n) = layer(x, (h, c), lengths=LENGTHS)
    found = by_reference(interop.to_onnx(layer), x=x, lengths=LENGTHS, h=h, c=c)
    for name, value in {"y": expected, "h_n": h_n, "c_n": c_n}.items():
        np.testing.assert_array_equal(found[name], value)


# ---- Recurrent layers as loops ---------------------------------------------------------------------------------------

VALUES = {
    "activation": ("scaled_tanh", 1.2, 0.8), "gate_activation": ("hard_sigmoid", 0.3, 0.4),
    "output_activation": "softsign",
    "clip": 0.8, "cell_clip": 0.3, "peephole": True, "coupled": True, "leak": 0.5, "candidate_dropout": 0.5,
    "proj_size": 2, "layer_norm": True, "reset_after": True, "update": "state",
}  # fmt: skip
"""A value other than the default for each option of a cell; there is a test of `zoneout` of its own."""

BY_LOOP = [
    (kind, {option: VALUES[option]})
    for kind, cell in (cells.CELLS | cells.ELEMENTWISE).items()
    for option in cell.options()
    if option != "zoneout"
] + [
    ("rnn", {"zoneout": 0.2, "layer_norm": False}), ("gru", {"zoneout": 0.2, "layer_norm": False}),
    ("lstm", {"zoneout": (0.2, 0.3), "layer_norm": False}), ("lstm", {"peephole": True, "coupled": True}),
    ("mingru", {}), ("minlstm", {}), ("gru", {"bias": False}), ("minlstm", {"bias": False}), ("lstm", {"bias": False}),
    ("gru", {"reset_after": True, "update": "state", "reverse": True}),
    ("mingru", {"num_layers": 2, "bidirectional": True, "merge": "average"}),
    ("lstm", {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    ("rnn", {"num_layers": 3, "residual": True, "hidden_size": I, "batch_first": True}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "options"), BY_LOOP)
def test_cells_without_an_operator(kind, options, dtype):
    options = {"hidden_size": H, "dtype": dtype, **options}
    if kind in cells.CELLS:
        options.setdefault("layer_norm", True)  # no operator has it
    elif kind == "indrnn":
        options.setdefault("leak", 0.3)
    layer = filled(gpurnn.layers.recurrent.LAYERS[kind](I, **options))
    model = interop.to_onnx(layer)
    assert "Scan" in [node.op_type for node in model.graph.node]
    for lengths, steps in ((LENGTHS, T), (ONE, T + 2)):
        x = padded(lengths, I, dtype=dtype, steps=steps)
        x = np.ascontiguousarray(x.transpose(1, 0, 2)) if layer.batch_first else x
        rows = layer.num_layers * layer.num_directions
        state = tuple(normal(rows, len(lengths), n, dtype=dtype) for n in layer.cell.state_sizes(layer.hidden_size))
        y, final = layer(x, state if kind == "lstm" else state[0], lengths)
        feeds = dict(zip(layer.cell.state_names, state, strict=True))
        finals = dict(zip(("h_n", "c_n"), states_of(final), strict=False))
        check(model, {"x": x, "lengths": lengths, **feeds}, {"y": y, **finals})


@pytest.mark.parametrize("activation", cells.activations.NAMES)
def test_activations_in_loops(activation):
    layer = filled(gpurnn.RNN(I, H, activation=activation, leak=0.3, dtype="float64"))
    x, h = padded(LENGTHS, I, dtype="float64"), normal(1, B, H, dtype="float64")
    y, final = layer(x, h, LENGTHS)
    check(interop.to_onnx(layer), {"x": x, "lengths": LENGTHS, "h": h}, {"y": y, "h_n": final})


# ---- Other layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (gpurnn.StateSpace, {}), (gpurnn.StateSpace, {"output_state": "before", "feedthrough": False}),
        (gpurnn.DiagonalStateSpace, {}), (gpurnn.DiagonalStateSpace, {"output_state": "before"}),
        (gpurnn.DiagonalStateSpace, {"complex": False, "feedthrough": False}),
    ],
)  # fmt: skip
def test_state_space_layers(kind, options, dtype):
    layer = filled(kind(I, H, 2, dtype=dtype, **options))
    names = ("h_real", "h_imag") if layer.complex else ("h",)
    model = interop.to_onnx(layer)
    for lengths, steps in ((LENGTHS, T), (ONE, T + 2)):
        x = padded(lengths, I, dtype=dtype, steps=steps)
        state = tuple(normal(1, len(lengths), H, dtype=dtype) for _ in names)
        y, final = layer(x, state if layer.complex else state[0], lengths)
        finals = {f"{name}_n": value for name, value in zip(names, states_of(final), strict=True)}
        check(model, {"x": x, "lengths": lengths, **dict(zip(names, state, strict=True))}, {"y": y, **finals})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"causal": True, "activation": "gelu", "hidden_size": 7}])
def test_transformer_blocks(options, dtype):
    layer = filled(gpurnn.TransformerBlock(6, 2, dtype=dtype, **options))
    model = interop.to_onnx(layer)
    for lengths, steps in ((LENGTHS, T), (ONE, T + 2)):
        x = padded(lengths, 6, dtype=dtype, steps=steps)
        check(model, {"x": x, "lengths": lengths}, {"y": layer(x, None, lengths)[0]})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "batch_first": True}, {"bias": False, "key_size": 4, "value_size": 5}]
)
def test_multi_head_attention(options, dtype):
    layer = filled(gpurnn.MultiHeadAttention(6, 2, dtype=dtype, **options))
    model, S = interop.to_onnx(layer), T + 1
    for lengths in (LENGTHS, ONE):
        query = normal(T, len(lengths), 6, dtype=dtype)
        keys, values = (padded(lengths, n, dtype=dtype, steps=S) for n in (layer.key_size, layer.value_size))
        arrays = [query, keys, values]
        if layer.batch_first:
            arrays = [np.ascontiguousarray(a.transpose(1, 0, 2)) for a in arrays]
        y, weights = layer(*arrays, key_padding_mask=np.arange(S) >= lengths[:, None])
        feeds = dict(zip(("query", "keys", "values"), arrays, strict=True))
        check(model, {**feeds, "lengths": lengths}, {"y": y, "weights": weights})


@pytest.mark.parametrize("features", [4, 5])
def test_positions(features):
    x = normal(300, 2, features)
    check(interop.to_onnx(gpurnn.PositionalEncoding()), {"x": x}, {"y": gpurnn.PositionalEncoding()(x)})


def test_a_language_model_of_blocks():
    layer = gpurnn.Sequential(
        gpurnn.Embedding(9, 6), gpurnn.PositionalEncoding(), gpurnn.TransformerBlock(6, 2, causal=True),
        gpurnn.LayerNorm(6, eps=1e-3, bias=False), gpurnn.MinGRU(6, H), gpurnn.StateSpace(H, 4, 6), gpurnn.Dense(6, 9),
    )  # fmt: skip
    filled(layer)
    tokens = RNG.integers(9, size=(T, B))
    tokens[np.arange(T)[:, None] >= LENGTHS] = -1
    states = {"4.h": normal(1, B, H), "5.h": normal(1, B, 4)}
    y, (_, *finals) = layer(tokens, (None, *states.values()), LENGTHS)
    expected = {f"{name}_n": value for name, value in zip(states, finals, strict=True)}
    check(interop.to_onnx(layer), {"x": tokens, "lengths": LENGTHS, **states}, {"y": y, **expected})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kind", "sizes", "attention", "options"),
    [
        (gpurnn.GRU, (I, H), None, {}), (gpurnn.LSTM, (I + 6, H, 2), "additive", {"attention_size": 4}),
        (gpurnn.RNN, (I, H), "general", {"attentional_size": 4}), (gpurnn.GRU, (I, 6), "dot", {}),
        (gpurnn.LSTM, (I + 4, H, 2), "general", {"attentional_size": 4, "input_feeding": True}),
    ],
)  # fmt: skip
def test_decoders(kind, sizes, attention, options, dtype):
    stack = kind(*sizes, dtype=dtype, layer_norm=kind is gpurnn.LSTM)
    memory_size = None if attention is None else 6
    decoder = filled(layers.Decoder(stack, attention, memory_size=memory_size, **options))
    x = normal(T, B, I, dtype=dtype)
    state = tuple(normal(stack.num_layers, B, stack.hidden_size, dtype=dtype) for _ in stack.cell.state_names)
    feeds, memory, lengths = dict(zip(stack.cell.state_names, state, strict=True)), None, None
    if attention is not None:
        memory, lengths = padded(LENGTHS, 6, dtype=dtype, steps=T + 1), LENGTHS
        feeds |= {"memory": memory, "lengths": lengths}
    if decoder.input_feeding:
        feeds["fed"] = np.zeros((B, decoder.output_size), dtype)
    y, weights, final = decoder(x, memory, state if len(state) == 2 else state[0], lengths)
    expected = {"y": y, **({} if attention is None else {"weights": weights})}
    expected |= dict(zip(("h_n", "c_n"), states_of(final), strict=False))
    if decoder.input_feeding:
        expected["fed_n"] = y[-1]
    model = interop.to_onnx(decoder)
    check(model, {"x": x, **feeds}, expected)
    for t in range(T):  # step by step, from the state of the step before
        found = by_runtime(model, x=x[t : t + 1], **feeds)
        hold(found["y"][0], y[t])
        feeds |= {name.removesuffix("_n"): value for name, value in found.items() if name.endswith("_n")}


@pytest.mark.parametrize("batch_first", [False, True])
def test_layers_one_after_another(batch_first):
    layer = gpurnn.Sequential(
        gpurnn.Embedding(7, I), gpurnn.LayerNorm(I), gpurnn.GRU(I, H, batch_first=batch_first), gpurnn.Dropout(0.5),
        gpurnn.Sequential(gpurnn.LSTM(H, H, batch_first=batch_first), gpurnn.Dense(H, 4, activation="softmax")),
    )  # fmt: skip
    filled(layer)
    tokens = RNG.integers(7, size=(T, B))
    tokens[np.arange(T)[:, None] >= LENGTHS] = -1
    tokens = np.ascontiguousarray(tokens.T) if batch_first else tokens
    states = {name: normal(1, B, H) for name in ("2.h", "4.0.h", "4.0.c")}
    expected, (gru, ((h, c),)) = layer(tokens, (states["2.h"], ((states["4.0.h"], states["4.0.c"]),)), LENGTHS)
    found = by_runtime(interop.to_onnx(layer), x=tokens, lengths=LENGTHS, **states)
    hold(found["y"], expected)
    for name, value in {"2.h_n": gru, "4.0.h_n": h, "4.0.c_n": c}.items():
        hold(found[name], value)


@pytest.mark.parametrize("activation", ["identity", "tanh", "relu", "sigmoid", "softmax"])
def test_layers_without_time(activation):
    layer = filled(gpurnn.Dense(I, H, activation=activation))
    x = normal(T, B, I)
    hold(by_runtime(interop.to_onnx(layer), x=x)["y"], layer(x))
    layer = filled(gpurnn.Embedding(7, I))
    hold(by_runtime(interop.to_onnx(layer), x=np.array([[6, 0]]))["y"], layer(np.array([[6, 0]])))


SIZES = (3, 6, 1, 2)


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2, "cell": "lstm", "residual": True}])
def test_classifiers(pooling, options):
    examples = [normal(size, I) * 40 + 1000 for size in SIZES]
    model = gpurnn.SequenceClassifier(
        hidden_size=H, pooling=pooling, verbose=False, epochs=1, standardize_inputs=True, **options
    )
    model = filled(model.fit(examples, ["a", "b", "c", "a"]))
    x, lengths = padded_of(examples)
    onnx_model = interop.to_onnx(model)
    found = by_runtime(onnx_model, x=x, lengths=lengths)
    hold(found["probabilities"], model.predict_proba(examples))
    classes = {p.key: p.value for p in onnx_model.metadata_props}["classes"]
    assert [json.loads(classes)[i] for i in found["y"].argmax(axis=1)] == model.predict(examples).tolist()


def padded_of(examples):
    lengths = np.array([len(example) for example in examples], np.int32)
    x = np.zeros((lengths.max(), len(examples), *examples[0].shape[1:]), examples[0].dtype)
    for i, example in enumerate(examples):
        x[: len(example), i] = example
    return x, lengths


def test_a_tagger():
    examples = [RNG.integers(9, size=size) for size in SIZES]
    model = filled(gpurnn.SequenceTagger(I, H, 4, num_embeddings=9, bidirectional=True, cell="rnn"))
    model._is_fitted = True
    tokens, lengths = padded_of(examples)
    found = by_runtime(interop.to_onnx(model), x=tokens, lengths=lengths)
    for i, expected in enumerate(model.predict_proba(examples)):
        hold(found["probabilities"][: SIZES[i], i], expected)


@pytest.mark.parametrize("pooling", ["last", None])
def test_a_regressor_gives_values_in_the_units_of_the_targets(pooling):
    examples = [normal(size, I) for size in SIZES]
    targets = [normal(2) * 30 + 500 if pooling else normal(size, 2) * 30 + 500 for size in SIZES]
    model = gpurnn.SequenceRegressor(hidden_size=H, pooling=pooling, verbose=False, epochs=1).fit(examples, targets)
    x, lengths = padded_of(examples)
    found = by_runtime(interop.to_onnx(model), x=x, lengths=lengths)["y"]
    for i, expected in enumerate(model.predict(examples)):
        hold(found[i] if pooling else found[: SIZES[i], i], expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model(tied):
    vocabulary = models.CharVocabulary.from_text("hello world")
    model = filled(models.LanguageModel(vocabulary, H, H, num_layers=2, tied=tied))
    tokens = RNG.integers(len(vocabulary), size=(T, B))
    h, c = normal(2, B, H), normal(2, B, H)
    expected, final = model(tokens, (h, c), LENGTHS)
    onnx_model = interop.to_onnx(model)
    found = by_runtime(onnx_model, x=tokens, lengths=LENGTHS, h=h, c=c)
    for name, value in {"y": expected, "h_n": final[0], "c_n": final[1]}.items():
        hold(found[name], value)
    assert json.loads(onnx_model.metadata_props[0].value) == list(vocabulary.symbols)


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "mingru"}, {"cell": "lstm", "cell_options": {"proj_size": 3}}, {"reverse": True},
        {"bidirectional": True, "merge": "sum"},
        {"cell": "lstm", "bidirectional": True, "merge": "mul", "num_layers": 2},
    ],
)  # fmt: skip
def test_the_last_output_of_any_stack(options):
    model = filled(gpurnn.SequenceRegressor(I, H, 2, pooling="last", **options))
    x = padded(LENGTHS, I)
    check(interop.to_onnx(model), {"x": x, "lengths": LENGTHS}, {"y": model(x, None, LENGTHS)[0]})


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"bidirectional": True, "attention": "additive", "num_layers": 2},
        {"attention": "general", "input_feeding": True, "encoder_layers": 2},
        {"attention": "dot", "bridge": True, "cell_options": {"layer_norm": True}},
    ],
)  # fmt: skip
def test_an_encoder_decoder_writes_the_tokens_of_greedy(cell, options):
    model = filled(gpurnn.EncoderDecoder(7, 8, 6, H, cell=cell, **options))
    model.output.params["bias"][model.end] += 1.0  # so that rows end at different steps
    lengths = np.array([5, 1, 3, 2], np.int32)
    source = RNG.integers(3, 7, size=(5, 4))
    onnx_model = interop.to_onnx(model)
    for rows in (slice(4), slice(1, 2)):
        x, own = source[:, rows], lengths[rows]
        tokens, counts = model.greedy(x, own, max_length=9)
        x = np.where(np.arange(5)[:, None] >= own, -1, x)  # not read
        for run in (by_runtime, by_reference):
            found = run(onnx_model, x=x, lengths=own, max_length=np.full(len(own), 9))
            np.testing.assert_array_equal(found["y"], tokens)
            np.testing.assert_array_equal(found["y_lengths"], counts)


@pytest.mark.slow
def test_a_translator_has_its_symbols():
    texts = {"12": "one two", "21": "two one", "1": "one", "2": "two"}
    model = gpurnn.Translator.from_texts(list(texts), list(texts.values()), 6, 16, source_level="char")
    model = model.fit(list(texts), list(texts.values()), epochs=40, optimizer=gpurnn.Adam(0.02), verbose=False)
    onnx_model = interop.to_onnx(model)
    symbols = {p.key: json.loads(p.value) for p in onnx_model.metadata_props}
    source, target = ([None] * 3 + symbols[f"{name}_symbols"] for name in ("source", "target"))
    examples = [np.array([source.index(symbol) for symbol in text]) for text in texts]
    x, lengths = padded_of(examples)
    found = by_runtime(onnx_model, x=x, lengths=lengths, max_length=2 * lengths.astype(np.int64) + 10)
    counts = found["y_lengths"] - 1  # without the end symbol
    answers = [" ".join(target[token] for token in found["y"][:n, i]) for i, n in enumerate(counts)]
    assert answers == model.predict(list(texts)) == list(texts.values())


@pytest.mark.parametrize("activation", ["softmax", "tanh"])
def test_a_generator(activation):
    model = filled(models.SequenceGenerator(I, H, 4, activation="sigmoid", output_activation=activation))
    onnx_model = interop.to_onnx(model)
    for batch, steps in ((3, 7), (1, 1)):
        x = normal(batch, I)
        check(onnx_model, {"x": x, "steps": np.array(steps)}, {"y": model(x, steps)})


def series_of(steps=60):
    t = np.arange(steps)
    return np.stack([1000 + 5 * np.sin(t / 3) + t, 50 + t % 7], axis=1)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"log": True}, {"differences": [1, 7]}, {"log": True, "differences": 1, "cell": "mingru"},
        {"bidirectional": True, "merge": "sum"}, {"pooling": "attention", "reverse": True}, {"pooling": "mean"},
    ],
)  # fmt: skip
def test_a_forecaster_gives_values_in_the_units_of_the_series(options):
    series = series_of()
    model = models.Forecaster(8, H, 2, **options).fit(series, epochs=2, verbose=False)
    onnx_model = interop.to_onnx(model)
    for length in (60, 9):  # the latter is less than the window and the differences
        expected = model.predict(series[:length], 5)
        for run in (by_runtime, by_reference):
            found = run(onnx_model, x=series[:length, None], steps=np.array(5))["y"][:, 0]
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_forecaster_of_several_series_scales_each():
    many = [series_of(40), series_of(50) * 100, series_of(50) + 1e4]
    many[1][:, 1] = 7.0  # a constant
    model = models.Forecaster(8, H, 2).fit(many, epochs=2, verbose=False)
    found = by_runtime(interop.to_onnx(model), x=np.stack(many[1:], axis=1), steps=np.array(5))["y"]
    for i, expected in enumerate(model.predict(many[1:], 5)):
        np.testing.assert_allclose(found[:, i], expected, rtol=1e-6)


def test_a_forecaster_with_covariates():
    known, past, series = normal(66, 2), normal(60, 1), series_of()
    model = models.Forecaster(8, H, 2, known_features=2, past_features=1, static_features=1, log=True, differences=1)
    model.fit(
        [series] * 2, known=[known[:60], known[6:]], past=[past] * 2, static=[[1.0], [2.0]], epochs=2, verbose=False
    )  # fmt: skip
    (expected,) = model.predict([series], 5, known=[known[:65]], past=[past], static=[[1.5]])
    feeds = {"x": np.concatenate([series, past], axis=1), "known": known[:65].astype(np.float64)}
    feeds = {name: array[:, None] for name, array in feeds.items()} | {"static": np.array([[1.5]])}
    found = by_runtime(interop.to_onnx(model), **feeds, steps=np.array(5))["y"]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


NOT_WRITTEN = {"Forecaster", "StructuralModel"}
"""A trend, which the forecaster of the table has, and a Kalman filter."""


@pytest.mark.parametrize("name", sorted(MAKE.keys() - NOT_WRITTEN))
def test_every_layer_can_be_written(name):
    layer = MAKE[name]()
    assert interop.to_onnx(layer).graph.output[0].name == "y"


def test_what_has_no_form_in_onnx_is_named():
    pooling = models.SequenceClassifier(I, H, 2).pooling
    for layer, message in (
        (pooling, "to_onnx: layer is a LastPooling, which cannot be written as ONNX"),
        (MAKE["StructuralModel"](), "to_onnx: layer is a StructuralModel"),
        (gpurnn.Forecaster(3, H, trend=True), "to_onnx: trend is True, expected none"),
        (gpurnn.Forecaster(3, H, season_length=12), "to_onnx: season_length is 12, expected none"),
        (gpurnn.SequenceClassifier(), "the model has no parameters before fit"),
    ):
        with pytest.raises(ValueError, match=message):
            interop.to_onnx(layer)
    with pytest.raises(TypeError, match="to_onnx: layer is None, expected a Layer"):
        interop.to_onnx(None)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["kind", "size"])
def test_the_command_line_writes_what_fit_made(target, tmp_path):
    from click.testing import CliRunner

    from gpurnn.cli import cli

    def run(*arguments):
        result = CliRunner().invoke(cli, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.output

    rows = ["trip,speed,height,kind,size"]
    for trip in range(12):
        kind, size = ("car", 10 + trip) if trip % 2 else ("bike", 500 + trip)
        rows += [f"{trip},{100 + size * 0.1 + step},{3000 - trip * step},{kind},{size}" for step in range(3 + trip % 4)]
    (tmp_path / "trips.csv").write_text("\n".join(rows))
    table, made = tmp_path / "trips.csv", tmp_path / "made"
    kept = rows[0].replace(",kind" if target == "size" else ",size", "").split(",")
    lines = [line.split(",") for line in rows]
    table.write_text("\n".join(",".join(line[lines[0].index(name)] for name in kept) for line in lines))
    run("fit", table, "--group", "trip", "--target", target, "--out", made, "--epochs", 2, "--hidden", 4)
    said = run("export", made, tmp_path / "made.onnx")
    assert "x, lengths to y" in said
    run("predict", made, table, "--out", tmp_path / "answers.csv")
    answers = [line.split(",") for line in (tmp_path / "answers.csv").read_text().splitlines()[1:]]
    examples = {name: [] for name, *_ in answers}
    for line in lines[1:]:
        examples[line[0]].append([float(line[1]), float(line[2])])
    x, lengths = padded_of([np.array(example, np.float32) for example in examples.values()])
    model = onnx.load(tmp_path / "made.onnx")
    found = by_runtime(model, x=x, lengths=lengths)
    if target == "size":
        np.testing.assert_allclose(found["y"][:, 0], [float(answer) for _, answer, *_ in answers], rtol=1e-5)
    else:
        classes = json.loads(next(p.value for p in model.metadata_props if p.key == "classes"))
        assert [classes[i] for i in found["y"].argmax(axis=1)] == [answer for _, answer, *_ in answers]
        chances = [[float(chance) for chance in rest] for _, _, *rest in answers]
        np.testing.assert_allclose(found["probabilities"], chances, atol=1e-4)
    result = CliRunner().invoke(cli, ["export", str(made), str(tmp_path / "made.onnx")])
    assert result.exit_code == 2
    assert "is there already" in result.output
