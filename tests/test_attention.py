"""Attention on both wings: known equations, PyTorch's decoders, gradients, lengths."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from gpurnn.kernels import attention as kernel
from gpurnn.kernels import host
from gpurnn.kernels.self_attention import Tiles
from parity import beside_a_packet
from tolerance import assert_all_close, assert_golden, assert_same, check_gradients, recurrence_terms

import gpurnn
from gpurnn import kernels, reference

pytestmark = pytest.mark.usefixtures("each_wing")

KERNELS = [pytest.param(name, marks=pytest.mark.kernels) for name in ("host", "tiles")]


@pytest.fixture(params=["reference", "native", *KERNELS])
def each_wing(request, monkeypatch):
    """Lets each wing in turn compute for NumPy arrays. "tiles" uses the kernels for many steps for any number."""
    if request.param == "tiles":
        monkeypatch.setattr(kernel, "_LEAST_STEPS", 0)
    with gpurnn.use("host" if request.param == "tiles" else request.param):
        yield request.param


on_kernels = pytest.mark.parametrize("each_wing", KERNELS, indirect=True)

SCORES = ("dot", "general", "additive")


def draw(score, T=5, B=3, S=6, Q=4, K=5, E=7, A=6, dtype="float64", seed=0, values=True):
    """The arguments of `gpurnn.attention`, as arrays by name."""
    rng = np.random.default_rng(seed)
    K = Q if score == "dot" else K
    shapes = {"query": (T, B, Q), "keys": (S, B, K), **({"values": (S, B, E)} if values else {})}
    shapes |= {"general": {"weight": (Q, K)}, "dot": {}}.get(
        score, {"weight_query": (A, Q), "weight_keys": (A, K), "v": (A,)}
    )
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def cotangents(arrays, seed=1):
    rng = np.random.default_rng(seed)
    T, B, _ = arrays["query"].shape
    source = arrays.get("values", arrays["keys"])
    return tuple(rng.standard_normal((T, B, n)).astype(source.dtype) for n in (source.shape[2], source.shape[0]))


def by_definition(arrays, score, lengths, scale=1.0):
    """Attention by its definition, for each row and step alone."""
    query, keys = arrays["query"], arrays["keys"]
    values = arrays.get("values", keys)
    (T, B, _), S = query.shape, len(keys)
    context, weights = np.zeros((T, B, values.shape[2]), query.dtype), np.zeros((T, B, S), query.dtype)
    for t, b in np.ndindex(T, B):
        n = S if lengths is None else lengths[b]
        q, k = query[t, b], keys[:n, b]
        if score == "dot":
            e = scale * (k @ q)
        elif score == "general":
            e = scale * (k @ (q @ arrays["weight"]))
        else:
            e = np.tanh(arrays["weight_query"] @ q + k @ arrays["weight_keys"].T) @ arrays["v"]
        if n:
            exps = np.exp(e - e.max())
            weights[t, b, :n] = exps / exps.sum()
            context[t, b] = weights[t, b, :n] @ values[:n, b]
    return context, weights


@pytest.mark.parametrize("lengths", [None, [6, 1, 3], [0, 6, 5]], ids=str)
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("score", SCORES)
def test_context_and_weights(score, dtype, values, lengths):
    arrays = draw(score, dtype=dtype, values=values)
    lengths = None if lengths is None else np.array(lengths)
    found = gpurnn.attention(**arrays, score=score, lengths=lengths)
    assert_all_close(found, by_definition(arrays, score, lengths), 100)
    assert_all_close(gpurnn.attention.vjp(**arrays, score=score, lengths=lengths)[0], found, 0)


@pytest.mark.parametrize("score", ["dot", "general"])
def test_scale(score):
    arrays = draw(score)
    assert_all_close(gpurnn.attention(**arrays, score=score, scale=0.3), by_definition(arrays, score, None, 0.3), 100)


SIZES = [
    {"T": 1}, {"B": 1}, {"S": 1}, {"Q": 1, "K": 1}, {"E": 1}, {"A": 1}, {"T": 9, "S": 40, "Q": 33, "K": 35, "E": 65},
    {"T": 3, "B": 2, "S": 7, "E": 300, "A": 70}, {"T": 2, "B": 1, "S": 3000, "Q": 2, "K": 2, "E": 2, "A": 2},
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
@pytest.mark.parametrize("score", SCORES)
def test_awkward_sizes(score, sizes):
    arrays = draw(score, **sizes)
    assert_all_close(gpurnn.attention(**arrays, score=score), by_definition(arrays, score, None), 3500)


@pytest.mark.parametrize("empty", ["T", "B", "E", "S"])
@pytest.mark.parametrize("score", SCORES)
def test_empty(score, empty):
    arrays = draw(score, **{empty: 0})
    (context, weights), pullback = gpurnn.attention.vjp(**arrays, score=score)
    assert not context.any()
    assert not weights.any() or empty == "E"
    inputs, parameters = pullback(cotangents(arrays))
    for name, gradient in {**dict(zip(("query", "keys", "values"), inputs, strict=True)), **parameters}.items():
        assert gradient.shape == arrays[name].shape


@pytest.mark.parametrize("lengths", [None, [6, 0, 3]], ids=str)
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("values", [True, False])
@pytest.mark.parametrize("score", SCORES)
def test_gradients(score, values, given, lengths):
    arrays = draw(score, values=values)
    lengths = None if lengths is None else np.array(lengths)
    if lengths is not None:
        # Values past a length are not read and get no gradient.
        for name in {"keys", "values"} & arrays.keys():
            arrays[name][np.arange(6)[:, None] >= lengths] = np.nan
    d = [c if g else None for c, g in zip(cotangents(arrays), given, strict=True)]
    _, pullback = gpurnn.attention.vjp(**arrays, score=score, lengths=lengths)
    inputs, parameters = pullback(d)
    gradients = {**dict(zip(("query", "keys", "values"), inputs, strict=True)), **parameters}
    assert gradients.pop("values") is None if not values else True
    kept = [c for c in d if c is not None]

    def outputs(inputs):
        found = gpurnn.attention(**inputs, score=score, lengths=lengths)
        return [y for y, c in zip(found, d, strict=True) if c is not None]

    check_gradients(outputs, arrays, kept, gradients, seed=2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("bad", ["query", "dcontext", "dweights"])
@pytest.mark.parametrize("score", SCORES)
def test_what_is_not_finite_does_not_reach_past_a_length(score, bad, each_wing):
    arrays, lengths = draw(score), np.array([4, 0, 6])
    d = dict(zip(("dcontext", "dweights"), cotangents(arrays), strict=True))
    (arrays if bad == "query" else d)[bad][:] = np.nan
    (_, weights), pullback = gpurnn.attention.vjp(**arrays, score=score, lengths=lengths)
    (_, dkeys, dvalues), _ = pullback(tuple(d.values()))
    past = np.arange(6)[:, None] >= lengths
    assert (weights[:, past.T] == 0).all()
    assert (dkeys[past] == 0).all()
    assert (dvalues[past] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("score", SCORES)
def test_the_query_of_a_row_without_keys_is_not_read(score, bad):
    arrays, lengths = draw(score), np.array([4, 0, 6])
    d = cotangents(arrays)
    arrays["query"][:, 1] = 0
    expected, pull_expected = gpurnn.attention.vjp(**arrays, score=score, lengths=lengths)
    arrays["query"][:, 1] = bad
    found, pull = gpurnn.attention.vjp(**arrays, score=score, lengths=lengths)
    assert_all_close(found, expected, 0)
    (of_arrays, of_weights), (expected_arrays, expected_weights) = pull(d), pull_expected(d)
    assert_all_close(of_arrays, expected_arrays, 0)
    assert_all_close(list(of_weights.values()), list(expected_weights.values()), 0)


def run(wing, arguments, lengths, d, scale=1.0):
    context, weights, saved = wing.attention_forward(*arguments, lengths=lengths, scale=scale, training=True)
    return context, weights, wing.attention_backward(saved, *d)


# Sizes below, at and above a block's four steps or positions, its 32 lanes and its 256 threads.
BLOCK_SIZES = [
    {"T": 1, "B": 1, "S": 1, "Q": 1, "E": 1}, {"T": 1, "S": 50, "Q": 37, "E": 70}, {"T": 7, "S": 50, "Q": 37, "E": 70},
    {"T": 4, "S": 3, "Q": 32, "E": 31}, {"T": 5, "S": 5, "Q": 33, "E": 64},
    {"T": 8, "B": 1, "S": 9, "Q": 257, "E": 300}, {"T": 3, "B": 1, "S": 6, "Q": 300, "E": 256},
    {"T": 2, "B": 2, "S": 521, "Q": 3, "E": 129},
]  # fmt: skip


@on_kernels
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "options", [(), ("lengths", "shared"), ("additive", "shared"), ("additive", "lengths")], ids=str
)
@pytest.mark.parametrize("sizes", BLOCK_SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
def test_the_kernels_agree_with_the_definition(kernel_wing, sizes, options, dtype, monkeypatch):
    """With the scores in shared memory and without; values past the lengths are NaN."""
    if "shared" not in options:
        monkeypatch.setattr(kernel, "SHARED", 0)
    arrays = draw("dot", dtype=dtype, **sizes)
    _, B, A = arrays["query"].shape
    S = len(arrays["keys"])
    v = np.random.default_rng(5).standard_normal(A).astype(dtype) if "additive" in options else None
    exist = np.array([S - 1, 0, S])[:B] if "lengths" in options else None
    if exist is not None:
        for name in ("keys", "values"):
            arrays[name][np.arange(S)[:, None] >= exist] = np.nan
    arguments, d = (*arrays.values(), v), cotangents(arrays)
    scale = A**-0.5 if v is None else 1.0
    found = kernel_wing.back(run(kernel_wing.module, *kernel_wing.to((arguments, exist, d)), scale))
    assert (found[2][3] is None) == (v is None)
    assert_all_close(found, run(reference, arguments, exist, d, scale), 1000)


# Sizes below, at and above a tile's 64 steps, positions and columns, and the columns that a block sums in registers.
TILE_SIZES = [
    {"T": 63, "S": 64, "Q": 31, "E": 32}, {"T": 64, "S": 65, "Q": 64, "E": 64}, {"T": 65, "S": 63, "Q": 17, "E": 65},
    {"T": 130, "B": 1, "S": 129, "Q": 65, "E": 3}, {"T": 16, "B": 2, "S": 3, "Q": 260, "E": 300},
    {"T": 17, "B": 1, "S": 200, "Q": 128, "E": 128},
]  # fmt: skip


@pytest.mark.parametrize("each_wing", [pytest.param("host", marks=pytest.mark.kernels)], indirect=True)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("with_lengths", [False, True])
@pytest.mark.parametrize("sizes", TILE_SIZES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()))
def test_tiles_agree_with_the_definition(kernel_wing, sizes, with_lengths, dtype):
    """Values past the lengths are NaN."""
    arrays = draw("dot", dtype=dtype, **sizes)
    (_, B, A), S = arrays["query"].shape, len(arrays["keys"])
    exist = np.array([S - 1, 0, S])[:B] if with_lengths else None
    if exist is not None:
        for name in ("keys", "values"):
            arrays[name][np.arange(S)[:, None] >= exist] = np.nan
    arguments, d = (*arrays.values(), None), cotangents(arrays)
    found = kernel_wing.back(run(kernel_wing.module, *kernel_wing.to((arguments, exist, d)), A**-0.5))
    assert_all_close(found, run(reference, arguments, exist, d, A**-0.5), 1000)


def heads_by_definition(query, keys, values, dcontext, dweights, excluded, heads, causal, scale):
    """Context, weights (B, T, S) and all gradients in the widest type; the heads of a row share ``excluded``."""
    q, k, v, dc = (x.transpose(1, 0, 2).astype(np.longdouble) for x in (query, keys, values, dcontext))
    T, S = q.shape[1], k.shape[1]
    unseen = np.zeros((len(q), T, S), bool) if excluded is None else excluded.repeat(heads, axis=0)[:, None, :] | False
    unseen = np.broadcast_to(unseen, (len(q), T, S)) | (causal & (np.arange(S) > np.arange(S - T, S)[:, None]))
    scores = np.where(unseen, -np.inf, scale * q @ k.transpose(0, 2, 1))
    peak = scores.max(axis=2, keepdims=True)
    exps = np.exp(scores - np.where(peak == -np.inf, 0, peak))
    total = exps.sum(axis=2, keepdims=True)
    alpha = exps / np.where(total == 0, 1, total)
    dalpha = dc @ v.transpose(0, 2, 1) + dweights
    de = scale * alpha * (dalpha - (alpha * dalpha).sum(axis=2, keepdims=True))
    back = de @ k, de.transpose(0, 2, 1) @ q, alpha.transpose(0, 2, 1) @ dc
    return (alpha @ v).transpose(1, 0, 2), alpha, *(x.transpose(1, 0, 2) for x in back)


@pytest.mark.parametrize("each_wing", [pytest.param("host", marks=pytest.mark.kernels)], indirect=True)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("T", "S", "masked"),
    [
        (5, 7, False),
        (5, 7, True),
        pytest.param(70, 70, False, marks=pytest.mark.unrepeated),
        (70, 70, True),
        pytest.param(66, 140, False, marks=pytest.mark.unrepeated),
        (66, 140, True),
        (1, 65, False),
        (1, 65, True),
    ],
)
def test_tiles_of_heads(T, S, causal, masked, dtype):
    """Steps that see no later position, positions excluded for all heads of a row, and a row without any position."""
    rng, heads, rows, A, E = np.random.default_rng(0), 2, 2, 9, 5
    B = heads * rows
    shapes = (T, B, A), (S, B, A), (S, B, E), (T, B, E), (B, T, S)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    excluded = None
    if masked:
        excluded = rng.random((rows, S)) < 0.3
        excluded[1] = True
    query, keys, values, dcontext, dweights = arrays
    call = Tiles(query, keys, values, 0.4, excluded=excluded, heads=heads, causal=causal, batch_first=True)
    found = call.forward(), call.weights(), *call.backward(dcontext, dweights)
    expected = heads_by_definition(*arrays, excluded, heads, causal, np.dtype(dtype).type(0.4))
    assert_all_close(found, [x.astype(dtype) for x in expected], 1000)
    for gradient, same in zip(call.backward(dcontext, None), call.backward(dcontext, 0 * dweights), strict=True):
        np.testing.assert_array_equal(gradient, same)


@pytest.mark.parametrize("each_wing", [pytest.param("host", marks=pytest.mark.kernels)], indirect=True)
def test_tiles_have_the_same_bits_wherever_an_array_begins():
    arrays = draw("dot", T=70, B=2, S=66, Q=8, E=12, dtype="float32")
    d = cotangents(arrays)
    results = [
        run(kernels, (*map(to, arrays.values()), None), None, tuple(map(to, d))) for to in (np.copy, beside_a_packet)
    ]
    assert_all_close(*results, 0)


@on_kernels
@pytest.mark.parametrize("additive", [False, True])
def test_the_kernels_take_any_layout_and_keep_what_they_need(additive):
    """The arrays are strided. Changing any array afterwards changes no gradient."""
    arrays = draw("dot")
    d = cotangents(arrays)
    v = np.arange(8.0)[::2] / 8 if additive else None
    arguments = (*(np.asfortranarray(x) for x in arrays.values()), v)
    lengths = np.array([2, 0, 6, 0, 1, 0])[::2]
    expected = run(kernels, (*arrays.values(), None if v is None else v.copy()), lengths.copy(), d)
    context, weights, saved = kernels.attention_forward(*arguments, lengths=lengths, training=True)
    assert_all_close((context, weights), expected[:2], 0)
    for x in (*arguments, lengths, context, weights):
        if x is not None:
            x[...] = 3
    for _ in range(2):
        assert_all_close(kernels.attention_backward(saved, *map(np.asfortranarray, d)), expected[2], 0)


@on_kernels
def test_gradients_where_one_weight_is_all_but_one():
    """The remaining gradients are smaller than the rounding of the terms that cancel in them."""
    for seed in range(30):
        arrays = {
            name: 10 * x for name, x in draw("dot", T=1, B=1, S=12, Q=12, E=23, dtype="float32", seed=seed).items()
        }
        d = cotangents(arrays)
        found, expected = (run(m, (*arrays.values(), None), None, d, 12**-0.5) for m in (kernels, reference))
        assert_all_close(found, expected, 1000)


@on_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("place", [0, 3, 40])
@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_scores_that_are_not_finite(value, place):
    """A score of -inf gives the weight 0, wherever it stands. Any other gives NaN, as in the reference."""
    arrays = draw("dot", S=41, Q=1)
    arrays["query"][...] = 1
    arrays["keys"][place, 0] = arrays["keys"][:, 2] = value
    results = [module.attention_forward(*arrays.values(), None)[:2] for module in (kernels, reference)]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-13)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-13)
    assert np.isnan(results[0][1][:, 2]).all()
    assert np.isnan(results[0][1][:, 0]).any() == (value != -np.inf)


@on_kernels
def test_lengths_are_cut_off_before_they_are_narrowed():
    arrays = draw("dot", S=6)
    found = kernels.attention_forward(*arrays.values(), None, lengths=np.array([2**32 + 2, -(2**32) + 2, 6]))
    expected = kernels.attention_forward(*arrays.values(), None, lengths=np.array([6, 0, 6]))
    assert_all_close(found[:2], expected[:2], 0)


@on_kernels
def test_a_batch_may_exceed_the_smaller_dimensions_of_a_grid(monkeypatch, each_wing):
    launched = []
    monkeypatch.setattr(host.Library, "launch", lambda self, name, grid, *args, **options: launched.append(name))
    x = np.zeros((1, 70_000, 1), np.float32)
    *_, saved = kernels.attention_forward(x, x, x, training=True)
    kernels.attention_backward(saved, x, None)
    assert len(launched) == (5 if each_wing == "tiles" else 3)


def test_a_position_without_weight_has_no_gradient():
    """A position may exist and have a weight of exactly zero. Then its cotangent does not matter."""
    arrays = draw("dot")
    arrays["query"][2, 1], arrays["keys"][:, 1] = 1, 0
    arrays["keys"][3, 1] = -1e4
    dcontext, dweights = cotangents(arrays)
    outputs, pullback = gpurnn.attention.vjp(**arrays)
    assert outputs[1][2, 1, 3] == 0
    expected = pullback((dcontext, dweights))
    dweights[2, 1, 3] = np.nan
    assert_same(pullback((dcontext, dweights)), expected)


@pytest.mark.parametrize("score", [np.inf, -np.inf, np.nan])
def test_scores_without_a_softmax_are_not_hidden(score):
    """Infinite scores of either sign and NaN give NaN in their row and step, and nowhere else."""
    arrays = draw("dot", B=3, T=5)
    arrays["query"][2, 0] = 1
    arrays["keys"][:, 0] = score
    with np.errstate(invalid="ignore"):
        context, weights = gpurnn.attention(**arrays)
    assert np.isnan(weights[2, 0]).all()
    assert np.isnan(context[2, 0]).all()
    assert np.isfinite(weights[:, 1:]).all()
    assert np.isfinite(context[:, 1:]).all()


@on_kernels
@pytest.mark.parametrize("lengths", [None, [39, 0, 5]], ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_any_order_of_threads_gives_the_same_bits(score, lengths):
    arrays = draw(score, T=9, S=40, dtype="float32")
    results = []
    for seed in (1, 2):
        with host.execution(seed=seed):
            outputs, pullback = gpurnn.attention.vjp(
                **arrays, score=score, lengths=None if lengths is None else np.array(lengths)
            )
            inputs, parameters = pullback(cotangents(arrays))
            results.append((*outputs, *inputs, *parameters.values()))
    assert_all_close(*results, 0)


@pytest.mark.parametrize(
    ("score", "changes", "message"),
    [
        ("dot", {"v": np.zeros(3)}, "v is an array, expected None for the dot score"),
        ("general", {"weight": None}, "weight is None, expected an array for the general score"),
        ("additive", {"scale": 0.5}, "scale is 0.5, expected 1 for the additive score"),
        ("cosine", {}, "score is 'cosine', expected one of 'dot', 'general', 'additive'"),
        ("dot", {"lengths": np.zeros(2, int)}, r"lengths has shape \(2,\), expected \(B,\) = \(3,\)"),
    ],
)
def test_refusals(score, changes, message):
    arrays = draw(score if score in SCORES else "dot")
    with pytest.raises((TypeError, ValueError), match=f"attention: {message}"):
        gpurnn.attention(**{**arrays, "score": score, **changes})


# ---- Decoders of PyTorch: recurrent steps and attention, composed of the functions here -----------------------------


def hold(record, arrays, found):
    inputs = {name for name in found if name.startswith("g_")}
    assert inputs == {name for name in arrays if name.startswith("g_")}
    for name, value in found.items():
        terms = recurrence_terms(record["T"], record["N"], record["I"] + 12, record["H"] + 12, 4)
        assert_golden(value, arrays[name], terms, name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("family", ["luong_general", "luong_dot"])
@pytest.mark.parametrize("number", range(10))
def test_luong_decoder(family, number, dtype):
    record = golden.family("custom", family)[number]
    a = golden.arrays("custom", record["name"], dtype)
    enc = np.ascontiguousarray(a["enc"].transpose(1, 0, 2))
    options = {"score": "general", "weight": a["Wa"]} if "Wa" in a else {}
    (s, (s_T, _)), lstm = gpurnn.lstm.vjp(a["y_in"], a["Wx"], a["Wh"], a["b"], state=(a["s0"], a["c0"]))
    (context, align), attend = gpurnn.attention.vjp(s, enc, lengths=a["src_len"], **options)
    joint = np.concatenate([context, s], axis=2)
    attentional, dense = gpurnn.dense.vjp(joint, a["Wc"], activation="tanh")
    logits, head = gpurnn.dense.vjp(attentional, a["Ws"])

    dattentional, g_head = head(a["ct_logits"])
    djoint, g_dense = dense(dattentional)
    H = s.shape[2]
    (ds, denc, _), g_attention = attend((np.ascontiguousarray(djoint[..., : enc.shape[2]]), a["ct_align"]))
    (dx, (dh0, dc0)), g = lstm((ds + djoint[..., -H:], (a["ct_sT"], None)))
    found = {
        "logits": logits, "align": align, "sT": s_T, "g_enc": denc.transpose(1, 0, 2), "g_y_in": dx, "g_s0": dh0,
        "g_c0": dc0, "g_Wx": g["weight_ih"], "g_Wh": g["weight_hh"], "g_b": g["bias_ih"], "g_Wc": g_dense["weight"],
        "g_Ws": g_head["weight"],
    }  # fmt: skip
    hold(record, a, found | ({"g_Wa": g_attention["weight"]} if "Wa" in a else {}))


def add(sums, **gradients):
    for name, gradient in gradients.items():
        sums[name] = sums.get(name, 0) + gradient


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("number", range(10))
def test_luong_decoder_with_input_feeding(number, dtype):
    """Step by step, since the input of each step holds the attentional vector of the step before."""
    record = golden.family("custom", "luong_general_feed")[number]
    a = golden.arrays("custom", record["name"], dtype)
    enc = np.ascontiguousarray(a["enc"].transpose(1, 0, 2))
    I, E, H = a["y_in"].shape[2], enc.shape[2], a["s0"].shape[1]
    fed = np.zeros((1, len(a["s0"]), len(a["Wc"])), dtype)
    state, tape, logits, align = (a["s0"], a["c0"]), [], [], []
    for y in a["y_in"]:
        x = np.concatenate([y[None], fed], axis=2)
        (s, state), lstm = gpurnn.lstm.vjp(x, a["Wx"], a["Wh"], a["b"], state=state)
        (context, alpha), attend = gpurnn.attention.vjp(s, enc, score="general", weight=a["Wa"], lengths=a["src_len"])
        fed, dense = gpurnn.dense.vjp(np.concatenate([context, s], axis=2), a["Wc"], activation="tanh")
        out, head = gpurnn.dense.vjp(fed, a["Ws"])
        logits.append(out[0])
        align.append(alpha[0])
        tape.append((lstm, attend, dense, head))
    sums: dict[str, np.ndarray] = {}
    found = {"logits": np.stack(logits), "align": np.stack(align), "sT": state[0]}
    dstate, dfed, dy_in = (a["ct_sT"], None), np.zeros_like(fed), np.zeros_like(a["y_in"])
    for t in reversed(range(len(tape))):
        lstm, attend, dense, head = tape[t]
        dattentional, g = head(np.ascontiguousarray(a["ct_logits"][t : t + 1]))
        add(sums, g_Ws=g["weight"])
        djoint, g = dense(dattentional + dfed)
        add(sums, g_Wc=g["weight"])
        (ds, denc, _), g = attend(
            (np.ascontiguousarray(djoint[..., :E]), np.ascontiguousarray(a["ct_align"][t : t + 1]))
        )
        add(sums, g_enc=denc.transpose(1, 0, 2), g_Wa=g["weight"])
        (dx, dstate), g = lstm((ds + djoint[..., -H:], dstate))
        add(sums, g_Wx=g["weight_ih"], g_Wh=g["weight_hh"], g_b=g["bias_ih"])
        dy_in[t], dfed = dx[0, :, :I], np.ascontiguousarray(dx[..., I:])
    hold(record, a, found | sums | {"g_s0": dstate[0], "g_c0": dstate[1], "g_y_in": dy_in})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("number", range(10))
def test_bahdanau_decoder(number, dtype):
    """Step by step, since the context of each step depends on the state before it."""
    record = golden.family("custom", "bahdanau")[number]
    a = golden.arrays("custom", record["name"], dtype)
    enc = np.ascontiguousarray(a["enc"].transpose(1, 0, 2))
    E, H = enc.shape[2], a["s0"].shape[1]
    weights = {"weight_query": a["Wa"], "weight_keys": a["Ua"], "v": a["v"]}
    s, tape, logits, align = a["s0"], [], [], []
    for y in a["y_in"]:
        (context, alpha), attend = gpurnn.attention.vjp(
            s[None], enc, score="additive", lengths=a["src_len"], **weights
        )  # fmt: skip
        x = np.concatenate([y[None], context], axis=2)
        (h, s), gru = gpurnn.gru.vjp(
            x, a["Wx"], a["Wh"], a["bx"], a["bh"], s, reset_after=True, update="state"
        )  # fmt: skip
        out, head = gpurnn.dense.vjp(np.concatenate([h, context, y[None]], axis=2), a["Wo"], a["bo"])
        logits.append(out[0])
        align.append(alpha[0])
        tape.append((attend, gru, head))
    sums: dict[str, np.ndarray] = {}
    found = {"logits": np.stack(logits), "align": np.stack(align), "sT": s}
    ds, dy_in = a["ct_sT"], np.zeros_like(a["y_in"])
    for t in reversed(range(len(tape))):
        attend, gru, head = tape[t]
        djoint, g = head(np.ascontiguousarray(a["ct_logits"][t : t + 1]))
        add(sums, g_Wo=g["weight"], g_bo=g["bias"])
        (dx, ds), g = gru((np.ascontiguousarray(djoint[..., :H]), ds))
        add(sums, g_Wx=g["weight_ih"], g_Wh=g["weight_hh"], g_bx=g["bias_ih"], g_bh=g["bias_hh"])
        dy_in[t] = djoint[0, :, H + E :] + dx[0, :, :-E]
        dcontext = djoint[..., H : H + E] + dx[..., -E:]
        (dquery, denc, _), g = attend((dcontext, np.ascontiguousarray(a["ct_align"][t : t + 1])))
        add(sums, g_enc=denc.transpose(1, 0, 2), g_Wa=g["weight_query"], g_Ua=g["weight_keys"], g_v=g["v"])
        ds = ds + dquery[0]
    hold(record, a, found | sums | {"g_s0": ds, "g_y_in": dy_in})
