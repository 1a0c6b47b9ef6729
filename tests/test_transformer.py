"""The Transformer block and its positions: PyTorch's numbers, central differences, causality, lengths, and learning."""

from __future__ import annotations

import math

import golden
import numpy as np
import pytest
from click.testing import CliRunner
from gpurnn.kernels import launch as kernel_launch
from parity import assign
from strict_wing import plain, strict
from tolerance import assert_all_close, assert_close, assert_golden, assert_same, check_gradients

import gpurnn
from benchmarks import transformer
from benchmarks.__main__ import main

CASES = golden.records("transformer")
T, B, E, HEADS, HIDDEN = 5, 3, 4, 2, 6


def block(dtype="float64", **options):
    """A small block in which no parameter has its initial value."""
    layer = gpurnn.TransformerBlock(E, HEADS, HIDDEN, dtype=dtype, **options)
    rng = np.random.default_rng(5)
    for p in layer.params.values():
        p += (0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return layer


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("record", CASES, ids=lambda record: record["name"])
def test_it_gives_what_torch_gives(record, dtype):
    a = golden.arrays("transformer", record["name"], dtype)
    features = a["x"].shape[2]
    layer = gpurnn.TransformerBlock(
        features, record["heads"], record["hidden_size"],
        causal=record["causal"], activation=record["activation"], dtype=dtype,
    )  # fmt: skip
    layer.load_state_dict({name: a[name] for name in layer.params})
    lengths = a["lengths"] if record["padded"] else None
    (y, state), pullback = layer.vjp(a["x"], None, lengths)
    (dx, dstate), gradients = pullback((a["cy"], None))
    assert (state, dstate) == (None, None)
    assert {f"g_{name}" for name in ("x", *gradients)} == {name for name in a if name.startswith("g_")}
    # Every entry passes through five products and two normalisations; a parameter's gradient is a sum over all
    # positions.
    terms = 20 * (5 * features + 2 * record["hidden_size"]) + y.shape[0] * y.shape[1]
    size = max(float(abs(a[f"g_{name}"]).max()) for name in gradients)
    for name, g in {"x": dx, **gradients}.items():
        if dtype == "float64":
            assert_golden(g, a[f"g_{name}"], terms, name)
        else:
            assert_close(g, a[f"g_{name}"], terms, name, magnitude=size)
    assert_golden(y, a["y"], terms, "y")
    assert_same(layer(a["x"], None, lengths)[0], y)


def test_the_golden_cases_have_every_choice():
    choices = {(r["causal"], r["activation"], r["padded"]) for r in CASES}
    assert len(choices) == 8


@pytest.mark.parametrize("rng", [None, 7], ids=["evaluation", "dropout"])
@pytest.mark.parametrize("lengths", [None, [5, 0, 2]], ids=["all", "lengths"])
@pytest.mark.parametrize(("causal", "activation"), [(True, "gelu"), (False, "gelu"), (True, "relu")])
def test_gradients(causal, activation, lengths, rng):
    layer = block(causal=causal, activation=activation, dropout=0.4)
    x, dy = normal(T, B, E), normal(T, B, E, seed=1)
    lengths = None if lengths is None else np.array(lengths)
    (_, _), pullback = layer.vjp(x, None, lengths, rng=rng)
    (dx, _), gradients = pullback((dy, None))

    def outputs(inputs):
        moved = block(causal=causal, activation=activation, dropout=0.4)
        moved.load_state_dict({name: inputs[name] for name in moved.params})
        return [moved.vjp(inputs["x"], None, lengths, rng=rng)[0][0]]

    check_gradients(outputs, {"x": x, **layer.params}, [dy], {"x": dx, **gradients}, seed=2)
    first = {name: g.copy() for name, g in gradients.items()}
    assert_same(pullback((dy, None)), ((dx.copy(), None), first))
    zeros = {name: np.zeros_like(p) for name, p in layer.params.items()}
    (dx, _), gradients = pullback((None, None))
    assert_same((dx, gradients), (np.zeros_like(x), zeros))


def test_dropout_acts_on_both_branches_and_only_with_an_rng():
    """The branches have zero weights, so y is x plus their biases, which dropout scales or drops."""
    layer = gpurnn.TransformerBlock(64, 4, dropout=0.25, init="zeros", dtype="float64")
    x = normal(20, 5, 64)
    assert_same(layer.vjp(x)[0][0], x)
    for name, own in (("self_attn.out_proj.bias", 1.0), ("linear2.bias", 10.0)):
        layer.params[name][...] = own
    assert_close(layer(x)[0], x + 11, terms=4)
    dropped = layer.vjp(x, rng=0)[0][0] - x
    shares = [np.isclose(dropped, value).mean() for value in (0, 4 / 3, 40 / 3, 44 / 3)]
    np.testing.assert_allclose(shares, [1 / 16, 3 / 16, 3 / 16, 9 / 16], atol=0.02)
    assert_same(layer.vjp(x, rng=0)[0][0] - x, dropped)
    assert (layer.vjp(x, rng=1)[0][0] - x != dropped).any()


@pytest.mark.kernels
def test_both_wings_drop_the_same():
    layer, x, lengths = block(causal=True, dropout=0.4), normal(T, B, E), np.array([5, 0, 2])
    outputs, pullback = layer.vjp(x, None, lengths, rng=3)
    with gpurnn.use("host"):
        host_outputs, host_pullback = layer.vjp(x, None, lengths, rng=3)
        # The kernels add up a softmax in another order.
        assert_all_close(host_outputs, outputs, 100)
        assert_all_close(host_pullback(outputs), pullback(outputs), 500)


@pytest.mark.kernels
def test_a_block_makes_no_weights_on_the_kernels(monkeypatch):
    launched = []
    launch = kernel_launch.Kernel.__call__
    monkeypatch.setattr(kernel_launch.Kernel, "__call__", lambda kernel, *args, **options: (
        launched.append(kernel.name.split("<")[0]), launch(kernel, *args, **options)))  # fmt: skip
    layer, x = block(causal=True), normal(T, B, E)
    with gpurnn.use("host"):
        outputs, pullback = layer.vjp(x)
        pullback(outputs)
        assert [name for name in launched if "tile" in name] == [
            "attend_tiles", "tile_means", "tile_query_gradient", "tile_source_gradients",
        ]  # fmt: skip
        layer.self_attn(x)
        assert launched[-1] == "tile_weights"


def stack(**options):
    """A language model's body and head, with two causal blocks."""
    blocks = [gpurnn.TransformerBlock(16, 2, causal=True, rng=seed, **options) for seed in range(2)]
    return gpurnn.Sequential(
        gpurnn.Embedding(11, 16), gpurnn.PositionalEncoding(), *blocks, gpurnn.LayerNorm(16), gpurnn.Dense(16, 11)
    )


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_causal_stack_does_not_see_later_steps(activation):
    model = stack(activation=activation)
    tokens = np.random.default_rng(0).integers(0, 11, (12, 3))
    logits, states = model(tokens)
    assert states == (None, None)
    for t in range(12):
        changed = tokens.copy()
        changed[t:] = (changed[t:] + 1) % 11
        other, _ = model(changed)
        assert_same(other[:t], logits[:t])
        assert (other[t:] != logits[t:]).any(axis=-1).all()
        before, _ = model(tokens[: t + 1])
        assert_close(before, logits[: t + 1], terms=1000)


def test_without_causality_every_step_is_seen():
    layer, x = block(), normal(T, B, E)
    y, _ = layer(x)
    for t in range(T):
        changed = x.copy()
        changed[t] += normal(E, seed=t + 1)
        assert (layer(changed)[0] != y).any(axis=-1).all()


def test_without_positions_the_order_is_not_seen():
    layer, x = block(), normal(T, B, E)
    order = [3, 0, 4, 1, 2]
    assert_close(layer(x[order])[0], layer(x)[0][order], terms=100)
    positions = gpurnn.PositionalEncoding()
    other = layer(positions(x[order]))[0] - layer(positions(x))[0][order]
    assert (abs(other) > 1e-3).any(axis=-1).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["int64", "int8", "uint8"])
def test_padded_sequences_equal_trimmed_ones(causal, kind):
    layer = block(causal=causal)
    lengths = np.array([5, 0, 2], kind)
    x, dy = normal(T, B, E), normal(T, B, E, seed=1)
    x[np.arange(T)[:, None] >= lengths] = np.nan
    (y, _), pullback = layer.vjp(x, None, lengths)
    (dx, _), gradients = pullback((dy, None))
    assert not y[np.arange(T)[:, None] >= lengths].any()
    assert not dx[np.arange(T)[:, None] >= lengths].any()
    total = {name: np.zeros_like(p) for name, p in layer.params.items()}
    for b, length in enumerate(lengths.tolist()):
        own = (slice(length), slice(b, b + 1))
        (trimmed, _), pullback = layer.vjp(x[own])
        (dtrimmed, _), own_gradients = pullback((dy[own], None))
        assert_close(y[own], trimmed, terms=100)
        assert_close(dx[own], dtrimmed, terms=100)
        total = {name: g + own_gradients[name] for name, g in total.items()}
    for name, g in gradients.items():
        assert_close(g, total[name], 100, name, magnitude=1)


def test_positions_are_those_of_the_paper():
    positions = gpurnn.PositionalEncoding()
    for features in (1, 6, 7):
        p = positions(np.zeros((9, 2, features)))
        for t in range(9):
            for i in range(features):
                angle = t / 10000 ** (2 * (i // 2) / features)
                expected = math.cos(angle) if i % 2 else math.sin(angle)
                np.testing.assert_allclose(p[t, :, i], expected, atol=1e-14)
    late = positions(np.zeros((5000, 1, 8), "float32"))[4999, 0, :2]
    assert late.dtype == "float32"
    np.testing.assert_allclose(late, [math.sin(4999), math.cos(4999)], atol=1e-7)


def test_positions_pass_gradients_on():
    x, dy = normal(T, B, E), normal(T, B, E, seed=1)
    y, pullback = gpurnn.PositionalEncoding().vjp(x, rng=0)
    assert_same(y, gpurnn.PositionalEncoding()(x))
    assert_same((pullback(dy), pullback(None)), ((dy, {}), (np.zeros_like(x), {})))


def test_a_stack_learns_to_look_back():
    """It learns the token three steps before, about which the last token and token counts say nothing."""
    model = stack()
    optimizer = gpurnn.Adam(0.01)
    rng = np.random.default_rng(0)
    for step in range(150):
        tokens = rng.integers(0, 11, (15, 32))
        (logits, _), pullback = model.vjp(tokens, rng=step)
        loss, pull_loss = gpurnn.cross_entropy.vjp(logits[3:], tokens[:-3])
        if step == 0:
            assert loss == pytest.approx(math.log(11), rel=0.3)
        dlogits = np.concatenate([np.zeros_like(logits[:3]), pull_loss(1.0)[0]])
        _, gradients = pullback((dlogits, None))
        optimizer.step(model.params, gpurnn.clip_by_global_norm(gradients, 1.0)[0])
    tokens = rng.integers(0, 11, (15, 32))
    logits, _ = model(tokens)
    assert gpurnn.cross_entropy(logits[3:], tokens[:-3]) < 0.1


def test_initial_parameters_names_and_repr():
    layer = gpurnn.TransformerBlock(8, 2, rng=1)
    assert {name: p.shape for name, p in layer.params.items()} == {
        "self_attn.in_proj_weight": (24, 8), "self_attn.in_proj_bias": (24,),
        "self_attn.out_proj.weight": (8, 8), "self_attn.out_proj.bias": (8,),
        "linear1.weight": (32, 8), "linear1.bias": (32,), "linear2.weight": (8, 32), "linear2.bias": (8,),
        "norm1.weight": (8,), "norm1.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,),
    }  # fmt: skip
    assert_same(gpurnn.TransformerBlock(8, 2, rng=1).params, layer.params)
    assert (gpurnn.TransformerBlock(8, 2, rng=2).params["linear1.weight"] != layer.params["linear1.weight"]).any()
    assert repr(layer) == "TransformerBlock(8, 2)  # 872 parameters"
    told = "TransformerBlock(8, 2, hidden_size=5, causal=True, activation='gelu', dropout=0.1)  # 413 parameters"
    assert repr(gpurnn.TransformerBlock(8, 2, 5, causal=True, activation="gelu", dropout=0.1)) == told


def test_save_and_load(tmp_path):
    layer, other = block(), gpurnn.TransformerBlock(E, HEADS, HIDDEN, dtype="float64")
    layer.save(tmp_path / "block.safetensors")
    other.load(tmp_path / "block.safetensors")
    assert_same(other(normal(T, B, E)), layer(normal(T, B, E)))


@pytest.mark.parametrize("rng", [None, 1])
@pytest.mark.parametrize("lengths", [None, np.array([5, 0, 2])], ids=["all", "lengths"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_strict_arrays(activation, lengths, rng, strict_namespace):
    layer = block(causal=True, activation=activation, dropout=0.3)
    moved = layer.to(strict_namespace)
    x, dy = normal(T, B, E), normal(T, B, E, seed=1)
    y, pullback = layer.vjp(x, None, lengths, rng=rng)
    strict_y, strict_pullback = moved.vjp(strict(x), None, strict(lengths), rng=rng)
    assert_same(plain(strict_y), y)
    assert_same(plain(moved(strict(x), None, strict(lengths))), layer(x, None, lengths))
    for given in ((dy, None), (None, None)):
        assert_same(plain(strict_pullback(strict(given))), pullback(given))
    assert_same(plain(moved.params), layer.params)


def test_positions_on_strict_arrays(strict_namespace):
    layer = gpurnn.PositionalEncoding()
    for dtype in ("float32", "float64"):
        x = normal(T, B, 3, dtype=dtype)
        y, pullback = layer.vjp(strict(x))
        assert_same(plain(y), layer(x))
        assert_same(plain(pullback(None)[0]), np.zeros_like(x))


X = np.zeros((T, B, E))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), TypeError, "x is None, expected an array"),
        ((X.tolist(),), TypeError, "x is a list, expected a numpy.ndarray"),
        ((X.astype("float32"),), TypeError, "x has dtype float32 but params has float64, expected one dtype"),
        ((X[0],), ValueError, r"x has shape \(3, 4\), expected 3 axes \(T, B, features\)"),
        ((X[:, :, :3],), ValueError, r"x has shape \(5, 3, 3\), expected features = 4 at its end"),
        (
            (X, X),
            TypeError,
            "state is an array of shape .*, expected None: a block has no state, it attends to the steps of one",
        ),
        (
            (X, None, None, np.zeros((T, B), bool)),
            TypeError,
            "resets is an array of shape .*, expected None: a block has no",
        ),
        ((X, None, np.zeros(B)), TypeError, "lengths has dtype float64, expected an integer dtype"),
        ((X, None, np.zeros(B + 1, int)), ValueError, r"lengths has shape \(4,\), expected \(B,\) = \(3,\)"),
        ((X, None, np.array([0, 6, 1])), ValueError, r"lengths holds 0 ... 6, expected 0 ... T = 5"),
        ((X, None, np.array([0, -1, 1])), ValueError, r"lengths holds -1 ... 1, expected 0 ... T = 5"),
    ],
)
def test_refusals(arguments, error, message):
    layer = block()
    for call in (layer, layer.vjp):
        with pytest.raises(error, match=f"TransformerBlock: {message}"):
            call(*arguments)


@pytest.mark.parametrize(
    ("cotangents", "error", "message"),
    [
        (X, TypeError, r"the pullback was given an array of shape .*, expected a pair \(dy, dstate\)"),
        ((X[0], None), ValueError, r"dy has shape \(3, 4\), expected the shape of y = \(5, 3, 4\)"),
        ((X, X), TypeError, "dstate is an array of shape .*, expected None: a block has no state"),
    ],
)
def test_what_the_pullback_refuses(cotangents, error, message):
    _, pullback = block().vjp(X)
    with pytest.raises(error, match=f"TransformerBlock: {message}"):
        pullback(cotangents)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": 0}, ValueError, "features is 0, expected at least 1"),
        ({"num_heads": 3}, ValueError, "num_heads is 3, expected a divisor of features = 4"),
        ({"hidden_size": 0}, ValueError, "hidden_size is 0, expected at least 1"),
        ({"hidden_size": 1.5}, TypeError, "hidden_size is 1.5, expected a whole number"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh', expected one of 'relu', 'gelu'"),
        ({"dropout": 1.0}, ValueError, r"dropout is 1.0, expected a probability in \[0, 1\)"),
        ({"dtype": None}, TypeError, "dtype is None, expected float32 or float64"),
        ({"rng": 0.5}, TypeError, "rng is 0.5, expected an int seed or a numpy.random.Generator"),
    ],
)
def test_what_the_constructor_refuses(options, error, message):
    with pytest.raises(error, match=f"TransformerBlock: {message}"):
        gpurnn.TransformerBlock(**{"features": E, "num_heads": HEADS, **options})


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x is None, expected an array"),
        (X.astype(int), TypeError, "x has dtype int64, expected float32 or float64"),
        (X[0], ValueError, r"x has shape \(3, 4\), expected 3 axes \(T, B, E\)"),
    ],
)
def test_what_positions_refuse(x, error, message):
    with pytest.raises(error, match=f"PositionalEncoding: {message}"):
        gpurnn.PositionalEncoding()(x)


@pytest.mark.parametrize("task", transformer.TASKS)
def test_the_contenders_of_the_benchmark_have_as_many_parameters_each(task):
    counts = [transformer.contender(body, task, 100, 50_000).num_parameters for body in transformer.BODIES]
    assert max(abs(count - 50_000) for count in counts) < 0.05 * 50_000


@pytest.mark.slow
def test_the_benchmark_finds_the_memory_of_attention_quadratic_and_that_of_recurrences_linear():
    ratios = {}
    for body in ("LSTM", "self-attention"):
        short, long = (transformer.measured_apart(1, body, "adding", length, 3000, 1).peak for length in (400, 800))
        ratios[body] = long / short
    assert 1.7 < ratios["LSTM"] < 2.2
    assert 3.3 < ratios["self-attention"] < 4.2


def test_the_benchmark_prints_a_table_and_draws_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "POSITIONS", 32)
    monkeypatch.setattr(transformer, "measured_apart", lambda threads, *arguments: transformer.measure(*arguments))
    path = tmp_path / "picture.png"
    arguments = "transformer --length 8 --length 16 --parameters 1500 --text-steps 4 --adding-steps 5 --threads 1"
    done = CliRunner().invoke(main, [*arguments.split(), "--plot", str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "4 steps (text) and 5 steps (adding) of 32 positions" in done.output
    rows = [line.strip("| ").split(" | ") for line in done.output.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 2 * 3 * 4
    assert [row[1] for row in rows[:4]] == list(transformer.BODIES)
    assert all(float(entry) > 0 for row in rows for entry in row[2:])
    assert all(2 < float(entry) < 8 for row in rows[:4] for entry in row[2:])  # bits per character
    assert path.read_bytes().startswith(b"\x89PNG")
    result = transformer.Result(1.0, 0.1, 10**6, 1500)
    wanted = [(task, body, length) for task in transformer.TASKS for body in transformer.BODIES for length in (8, 16)]
    figure = transformer.picture(dict.fromkeys(wanted, result), steps={"text": 4, "adding": 5})
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "bits per character", "milliseconds", "peak MB", "mean squared error", "milliseconds", "peak MB",
    ]  # fmt: skip
    assert [axes.get_title() for axes in figure.axes[::3]] == [
        "Python text: loss after 4 steps", "adding problem: loss after 5 steps",
    ]  # fmt: skip
    assert {axes.get_xlabel() for axes in figure.axes} == {"T, steps of a sequence"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(transformer.BODIES)


@pytest.mark.parametrize(("task", "unit"), [("text", math.log(2)), ("adding", 1)])
def test_the_benchmark_descends_its_losses(task, unit):
    """The derivative along the gradient equals its norm."""
    problem = transformer.TASKS[task]()
    model = transformer.contender("GRU", task, problem.symbols, 1500)
    batch = problem.batch(0, 8, 16)
    _, gradients = problem.loss(model, *batch)
    _, norm = gpurnn.clip_by_global_norm(gradients, 1.0)
    initial, losses = model.state_dict(), []
    for step in (1e-2, -1e-2):
        assign(model, {name: p + np.float32(step / norm) * gradients[name] for name, p in initial.items()})
        losses.append(unit * problem.loss(model, *batch)[0])
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(float(norm), rel=0.02)


def test_the_text_of_the_benchmark_is_read_once_and_shifted_by_one():
    problem = transformer.Text()
    seen = set()
    for step in range(3):
        inputs, targets = problem.batch(step, 128, 32)
        assert inputs.shape == targets.shape == (128, 32)
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        seen |= {window.tobytes() for window in inputs.T}
    assert len(seen) == 3 * 32
    last, _ = problem.batch(transformer.MOST_TEXT_STEPS - 1, 4096, 1)
    assert last.shape == (4096, 1)
    assert 4 < problem.baseline < 6
