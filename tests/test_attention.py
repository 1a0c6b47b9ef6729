"""Attention on both wings: known equations, PyTorch's decoders, gradients, lengths."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from gpurnn.kernels import attention as kernel
from gpurnn.kernels import host
from tolerance import assert_all_close, assert_golden, check_gradients, recurrence_terms

import gpurnn
from gpurnn import kernels, reference

pytestmark = pytest.mark.usefixtures("each_wing")

SCORES = ("dot", "general", "additive")
PARAMETERS = ("weight", "weight_query", "weight_keys", "v")


def draw(score, T=5, B=3, S=6, Q=4, K=5, E=7, A=6, dtype="float64", seed=0, values=True):
    """Arguments of `gpurnn.attention`, the arrays among them by name."""
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
    """Each row and step alone."""
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
        # What lies past a length is neither read nor given a gradient.
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


@pytest.mark.parametrize("shared_memory", [0, 40_000])
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("T", [1, 7])
def test_the_kernels_agree_with_the_definition(T, additive, shared_memory, monkeypatch):
    """With the scores in shared memory and without."""
    monkeypatch.setattr(kernel, "_SHARED", shared_memory)
    arrays = draw("dot", T=T, S=50, Q=37, E=70)
    arguments = (*arrays.values(), np.random.default_rng(5).standard_normal(37) if additive else None)
    results = []
    for wing in (kernels, reference):
        context, weights, saved = wing.attention_forward(*arguments, lengths=np.array([50, 7, 0]), training=True)
        results.append((context, weights, wing.attention_backward(saved, *cotangents(arrays))))
    assert_all_close(*results, 500)


@pytest.mark.parametrize("score", SCORES)
def test_any_order_of_threads_gives_the_same_bits(score):
    arrays = draw(score, S=40, dtype="float32")
    results = []
    for seed in (1, 2):
        with host.execution(seed=seed):
            outputs, pullback = gpurnn.attention.vjp(**arrays, score=score)
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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("number", range(10))
def test_bahdanau_decoder(number, dtype):
    """Step by step, since each step's context comes from the state before it."""
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

    def add(**gradients):
        for name, gradient in gradients.items():
            sums[name] = sums.get(name, 0) + gradient

    found = {"logits": np.stack(logits), "align": np.stack(align), "sT": s}
    ds, dy_in = a["ct_sT"], np.zeros_like(a["y_in"])
    for t in reversed(range(len(tape))):
        attend, gru, head = tape[t]
        djoint, g = head(np.ascontiguousarray(a["ct_logits"][t : t + 1]))
        add(g_Wo=g["weight"], g_bo=g["bias"])
        (dx, ds), g = gru((np.ascontiguousarray(djoint[..., :H]), ds))
        add(g_Wx=g["weight_ih"], g_Wh=g["weight_hh"], g_bx=g["bias_ih"], g_bh=g["bias_hh"])
        dy_in[t] = djoint[0, :, H + E :] + dx[0, :, :-E]
        dcontext = djoint[..., H : H + E] + dx[..., -E:]
        (dquery, denc, _), g = attend((dcontext, np.ascontiguousarray(a["ct_align"][t : t + 1])))
        add(g_enc=denc.transpose(1, 0, 2), g_Wa=g["weight_query"], g_Ua=g["weight_keys"], g_v=g["v"])
        ds = ds + dquery[0]
    hold(record, a, found | sums | {"g_s0": ds, "g_y_in": dy_in})
