"""Multi-head attention, the function and the layer: PyTorch's numbers, the definition, central differences, masks."""

from __future__ import annotations

import math

import golden
import numpy as np
import pytest
from strict_wing import plain, strict
from tolerance import assert_all_close, assert_close, assert_golden, assert_same, check_gradients

import gpurnn
from gpurnn import reference

CASES = [record for record in golden.records("misc") if record["kind"] == "mha"]
T, S, B, E, HEADS = 3, 5, 2, 6, 2
PARAMETERS = {
    "in_proj_weight": (3 * E, E), "in_proj_bias": (3 * E,), "out_proj_weight": (E, E), "out_proj_bias": (E,),
}  # fmt: skip
SEPARATE = {"q_proj_weight": (E, E), "k_proj_weight": (E, 4), "v_proj_weight": (E, 5)}
FORMS = {"self": (), "keys": ("keys",), "keys-values": ("keys", "values")}
"""The arguments besides the query."""


def problem(form="keys-values", bias=True, causal=False, padded=False, seed=0, separate=False):
    """Arrays and options of a small problem."""
    rng = np.random.default_rng(seed)
    shapes = {"query": (T, B, E), **dict.fromkeys(FORMS[form], (S, B, E))}
    parameters = PARAMETERS
    if separate:
        parameters = {**SEPARATE, **{name: shape for name, shape in PARAMETERS.items() if name != "in_proj_weight"}}
        shapes |= {"keys": (S, B, 4), "values": (S, B, 5)}
    shapes |= {name: shape for name, shape in parameters.items() if bias or "weight" in name}
    arrays = {name: 0.7 * rng.standard_normal(shape) for name, shape in shapes.items()}
    options = {"num_heads": HEADS, "causal": causal}
    if padded:
        sources = S if FORMS[form] else T
        options["key_padding_mask"] = np.arange(sources) >= np.array([[sources - 1], [2]])
    return arrays, options


def test_all_cases_are_there():
    assert len(CASES) == 25


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("record", CASES, ids=lambda record: record["name"])
def test_it_gives_what_torch_gives(record, dtype):
    a = golden.arrays("misc", record["name"], dtype)
    query, keys, values, dy = (a[name].swapaxes(0, 1) for name in ("q", "k", "v", "cy"))
    if record["causal"]:
        t, s = len(query), len(keys)
        assert_same(a["attn_mask"], np.arange(s)[None, :] > np.arange(s - t, s)[:, None])
    parameters = {name.replace(".", "_"): a[name] for name in a if "proj" in name and not name.startswith("g_")}
    (y, weights), pullback = gpurnn.multi_head_attention.vjp(
        query, keys, values, **parameters,
        num_heads=record["heads"], causal=record["causal"], key_padding_mask=a["key_padding_mask"],
    )  # fmt: skip
    (dquery, dkeys, dvalues), gradients = pullback((dy, None))
    assert gradients.keys() == parameters.keys()
    assert not weights[np.broadcast_to(a["key_padding_mask"][:, None, None, :], weights.shape)].any()
    # Three products of E terms and one over the keys; for the parameters also a sum over the steps and rows.
    terms = 4 * (3 * record["E"] + len(keys)) + y.shape[0] * y.shape[1] + 20
    found = {"q": dquery, "k": dkeys, "v": dvalues}
    found = {name: g.swapaxes(0, 1) for name, g in found.items()}
    found |= {name.replace("out_proj_", "out_proj."): g for name, g in gradients.items()}
    # A gradient through a softmax is a difference of products that may be much larger than the gradient.
    size = max(float(abs(a[f"g_{name}"]).max()) for name in found)
    for name, g in found.items():
        assert_close(g, a[f"g_{name}"], terms, name, magnitude=size)
    assert_golden(y.swapaxes(0, 1), a["y"], terms, "y")
    assert_golden(weights, a["attn"], terms, "weights")


def by_definition(
    query, keys=None, values=None, *, num_heads, causal=False, key_padding_mask=None, attn_mask=None, **p
):
    """Attention by its definition, one query and one head at a time."""
    keys = query if keys is None else keys
    values = keys if values is None else values
    T, B, E = query.shape
    S, d = len(keys), E // num_heads
    added = np.zeros((B, num_heads, T, S))
    if attn_mask is not None:
        m = np.where(attn_mask, -np.inf, 0.0) if attn_mask.dtype == bool else attn_mask
        added = added + (m.reshape(added.shape) if m.ndim == 3 else m)
    w_q, w_k, w_v = np.split(p["in_proj_weight"], 3) if "in_proj_weight" in p else (p[name] for name in SEPARATE)
    b_q, b_k, b_v = np.split(p.get("in_proj_bias", np.zeros(3 * E)), 3)
    y, weights = np.zeros((T, B, E)), np.zeros((B, num_heads, T, S))
    for b in range(B):
        for t in range(T):
            heads = []
            for i in range(num_heads):
                own = slice(i * d, (i + 1) * d)
                q = (w_q @ query[t, b] + b_q)[own]
                seen = [
                    s
                    for s in range(S)
                    if not (causal and s > t + S - T) and not (key_padding_mask is not None and key_padding_mask[b, s])
                ]
                scores = [math.exp(q @ (w_k @ keys[s, b] + b_k)[own] / math.sqrt(d) + added[b, i, t, s]) for s in seen]
                head = np.zeros(d)
                for s, score in zip(seen, scores, strict=True):
                    weights[b, i, t, s] = score / (sum(scores) or 1.0)
                    head += weights[b, i, t, s] * (w_v @ values[s, b] + b_v)[own]
                heads.append(head)
            y[t, b] = p["out_proj_weight"] @ np.concatenate(heads) + p.get("out_proj_bias", 0)
    return y, weights


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_it_is_its_definition(form, bias, causal, padded):
    arrays, options = problem(form, bias, causal, padded)
    y, weights = gpurnn.multi_head_attention(**arrays, **options)
    if padded and form == "self":
        # A padded position also counts as zero as a query.
        exists = ~options["key_padding_mask"].T[:, :, None]
        arrays["query"] = arrays["query"] * exists
    assert_all_close((y, weights), by_definition(**arrays, **options), 8 * E)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradients(form, bias, causal, padded):
    arrays, options = problem(form, bias, causal, padded)
    outputs, pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    rng = np.random.default_rng(1)
    cotangents = tuple(rng.standard_normal(output.shape) for output in outputs)
    (*inputs,), gradients = pullback(cotangents)
    names = ("query", *FORMS[form])
    assert inputs[len(names) :] == [None] * (3 - len(names))
    found = {**dict(zip(names, inputs, strict=False)), **gradients}
    check_gradients(lambda a: list(gpurnn.multi_head_attention(**a, **options)), arrays, cotangents, found, seed=2)
    first = {name: g.copy() for name, g in found.items()}
    again, parameters = pullback(cotangents)
    assert_same({**dict(zip(names, again, strict=False)), **parameters}, first)
    zeros = tuple(np.zeros_like(output) for output in outputs)
    for given, filled in (((cotangents[0], None), (cotangents[0], zeros[1])), ((None, None), zeros)):
        assert_all_close(pullback(given), pullback(filled), terms=1)
    assert_all_close(pullback((None, cotangents[1])), pullback((zeros[0], cotangents[1])), terms=1)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_padding_is_not_read(form):
    arrays, options = problem(form, padded=True)
    padded = options["key_padding_mask"].T
    cotangents = tuple(np.ones_like(output) for output in gpurnn.multi_head_attention(**arrays, **options))
    outputs, pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    for name in FORMS[form] or ("query",):
        arrays[name] = np.where(padded[:, :, None], np.nan, arrays[name])
    changed, changed_pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    assert_same(changed, outputs)
    assert_same(changed_pullback(cotangents), pullback(cotangents))
    found = pullback(cotangents)[0]
    for gradient in found[:1] if form == "self" else [g for g in found[1:] if g is not None]:
        assert not gradient[padded].any()
        assert gradient[~padded].all()
    assert not outputs[1][np.broadcast_to(options["key_padding_mask"][:, None, None, :], outputs[1].shape)].any()


@pytest.mark.parametrize("keys", [0, S])
def test_a_query_that_sees_no_key_gets_the_bias(keys):
    arrays, options = problem()
    arrays |= {name: arrays[name][:keys] for name in ("keys", "values")}
    options["key_padding_mask"] = np.ones((B, keys), bool)
    (y, weights), pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    np.testing.assert_array_equal(y, np.broadcast_to(arrays["out_proj_bias"], y.shape))
    assert not weights.any()
    inputs, _ = pullback((np.ones_like(y), np.ones_like(weights)))
    assert not any(gradient.any() for gradient in inputs)


def test_causal_queries_are_the_last_of_the_positions():
    """Each query alone, after the keys so far, gives the same as all at once."""
    arrays, options = problem("self", causal=True)
    x = arrays.pop("query")
    whole, weights = gpurnn.multi_head_attention(x, **arrays, **options)
    for t in range(T):
        y, w = gpurnn.multi_head_attention(x[t : t + 1], x[: t + 1], **arrays, **options)
        assert_close(y[0], whole[t], 8 * E)
        assert_close(w[:, :, 0], weights[:, :, t, : t + 1], 8 * E)
    assert not np.triu(weights, 1).any()


def test_large_scores_do_not_overflow():
    arrays, options = problem("self")
    arrays["in_proj_weight"] *= 1e3
    y, weights = gpurnn.multi_head_attention(**{name: a.astype("float32") for name, a in arrays.items()}, **options)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_the_function(bias):
    layer = gpurnn.MultiHeadAttention(E, HEADS, bias, causal=True, dtype="float64", rng=3)
    arrays, options = problem(padded=True, causal=True)
    x = [arrays[name] for name in ("query", "keys", "values")]
    mask = options["key_padding_mask"]
    parameters = {name.replace(".", "_"): p for name, p in layer.params.items()}
    expected, expected_pullback = gpurnn.multi_head_attention.vjp(*x, **parameters, **options)
    outputs, pullback = layer.vjp(*x, rng=0, key_padding_mask=mask)
    assert_same(outputs, expected)
    assert_same(layer(*x, key_padding_mask=mask), expected)
    inputs, gradients = pullback(expected)
    expected_inputs, expected_gradients = expected_pullback(expected)
    assert_same(inputs, expected_inputs)
    assert gradients.keys() == layer.params.keys()
    assert_same({name.replace(".", "_"): g for name, g in gradients.items()}, expected_gradients)
    biases = 4 * E if bias else 0
    expected = f"MultiHeadAttention(6, 2{'' if bias else ', bias=False'}, causal=True, dtype='float64')"
    assert repr(layer) == f"{expected}  # {4 * E * E + biases} parameters"


def test_initial_weights():
    layer = gpurnn.MultiHeadAttention(64, 4, init="orthogonal", rng=1)
    for w in (*np.split(layer.params["in_proj_weight"], 3), layer.params["out_proj.weight"]):
        np.testing.assert_allclose(w @ w.T, np.eye(64), atol=1e-5)
    assert not layer.params["in_proj_bias"].any()
    again = gpurnn.MultiHeadAttention(64, 4, init="orthogonal", rng=1)
    assert_same(again.params, layer.params)
    assert (gpurnn.MultiHeadAttention(64, 4, rng=2).params["in_proj_weight"] != layer.params["in_proj_weight"]).any()


def attention_mask(*axes, additive, blind=True):
    """A mask of these axes; with ``blind``, the first query sees nothing."""
    rng = np.random.default_rng(5)
    excluded = rng.random(axes) < 0.4
    excluded[..., 0, :] |= blind
    excluded[..., 1:, 0] = False
    return np.where(excluded, -np.inf, rng.standard_normal(axes)) if additive else excluded


MASKS = {
    "for-all": attention_mask(T, S, additive=False),
    "as-torch": attention_mask(B * HEADS, T, S, additive=True),
    "of-rows": attention_mask(B, 1, T, S, additive=True),
    "of-heads": attention_mask(1, HEADS, T, S, additive=False),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_queries_and_keys(name):
    """The definition and central differences; with a padding mask, causal, and keys and values of other sizes."""
    arrays, options = problem(causal=name == "as-torch", padded=name != "of-rows", separate=name != "for-all")
    options["attn_mask"] = MASKS[name]
    outputs, pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    assert_all_close(outputs, by_definition(**arrays, **options), 8 * E)
    assert not outputs[1][:, :, 0].any()
    rng = np.random.default_rng(1)
    cotangents = tuple(rng.standard_normal(output.shape) for output in outputs)
    inputs, gradients = pullback(cotangents)
    found = {**dict(zip(("query", "keys", "values"), inputs, strict=True)), **gradients}
    assert found.keys() == arrays.keys()
    check_gradients(lambda a: list(gpurnn.multi_head_attention(**a, **options)), arrays, cotangents, found, seed=2)


def test_weights_on_their_own_are_rows_of_the_common_ones():
    """All three forms are tested, as the gradients of shared arrays are added up."""
    for form in FORMS:
        arrays, options = problem(form)
        expected, expected_pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
        parts = dict(zip(SEPARATE, np.split(arrays.pop("in_proj_weight"), 3), strict=True))
        outputs, pullback = gpurnn.multi_head_attention.vjp(**arrays, **parts, **options)
        assert_all_close(outputs, expected, 4 * E)
        inputs, gradients = pullback(expected)
        gradients = {"in_proj_weight": np.concatenate([gradients.pop(name) for name in SEPARATE]), **gradients}
        expected_inputs, expected_gradients = expected_pullback(expected)
        assert_all_close(inputs, expected_inputs, 30 * E)
        assert_all_close(gradients, expected_gradients, 30 * E)


def test_batch_first_exchanges_the_first_two_axes():
    arrays, options = problem(padded=True, causal=True)
    options["attn_mask"] = MASKS["of-rows"]
    (y, weights), pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    inputs, gradients = pullback((y, weights))
    turned = {name: a.swapaxes(0, 1) if a.ndim == 3 else a for name, a in arrays.items()}
    (found, same_weights), turned_pullback = gpurnn.multi_head_attention.vjp(**turned, **options, batch_first=True)
    assert_same((found.swapaxes(0, 1), same_weights), (y, weights))
    found_inputs, found_gradients = turned_pullback((found, weights))
    assert_same(tuple(g.swapaxes(0, 1) for g in found_inputs), inputs)
    assert_same(found_gradients, gradients)
    with pytest.raises(ValueError, match=r"keys has shape \(5, 2, 6\), expected \(B, S, E\) = \(3, 2, 6\)"):
        gpurnn.multi_head_attention(**arrays, **{**options, "attn_mask": None}, batch_first=True)


def test_a_layer_of_keys_and_values_of_other_sizes():
    options = {"key_size": 4, "value_size": 5, "batch_first": True, "dtype": "float64"}
    layer = gpurnn.MultiHeadAttention(E, HEADS, **options, rng=3)
    assert {name: p.shape for name, p in layer.params.items()} == {
        **SEPARATE, "in_proj_bias": (3 * E,), "out_proj.weight": (E, E), "out_proj.bias": (E,),
    }  # fmt: skip
    assert repr(layer).startswith("MultiHeadAttention(6, 2, key_size=4, value_size=5, batch_first=True, dtype=")
    arrays, _ = problem(separate=True)
    x = [arrays[name].swapaxes(0, 1) for name in ("query", "keys", "values")]
    parameters = {name.replace(".", "_"): p for name, p in layer.params.items()}
    expected = gpurnn.multi_head_attention(
        *x, **parameters, num_heads=HEADS, batch_first=True, attn_mask=MASKS["for-all"]
    )
    outputs, pullback = layer.vjp(*x, attn_mask=MASKS["for-all"])
    assert_same(outputs, expected)
    assert_same(layer(*x, attn_mask=MASKS["for-all"]), expected)
    assert pullback(outputs)[1].keys() == layer.params.keys()
    plain_layer = gpurnn.MultiHeadAttention(E, HEADS, key_size=E, value_size=E)
    assert repr(plain_layer) == repr(gpurnn.MultiHeadAttention(E, HEADS))


@pytest.mark.parametrize("options", [{}, {"causal": True, "padded": True}], ids=["plain", "all"])
@pytest.mark.parametrize("form", FORMS)
def test_strict_arrays(form, options, strict_namespace):
    arrays, options = problem(form, **options)
    if options["causal"] and FORMS[form]:
        options |= {"attn_mask": MASKS["for-all"], "batch_first": True}
        arrays |= {name: np.ascontiguousarray(arrays[name].swapaxes(0, 1)) for name in ("query", *FORMS[form])}
    outputs, pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    strict_outputs, strict_pullback = gpurnn.multi_head_attention.vjp(**strict(arrays), **strict(options))
    assert_same(plain(strict_outputs), outputs)
    assert_same(plain(gpurnn.multi_head_attention(**strict(arrays), **strict(options))), outputs)
    for cotangents in (outputs, (outputs[0], None), (None, outputs[1]), (None, None)):
        assert_same(plain(strict_pullback(strict(cotangents))), pullback(cotangents))


def test_the_layer_on_strict_arrays(strict_namespace):
    layer = gpurnn.MultiHeadAttention(E, HEADS, causal=True, dtype="float64")
    x = problem("self")[0]["query"]
    outputs, pullback = layer.vjp(x)
    strict_outputs, strict_pullback = layer.to(strict_namespace).vjp(strict(x))
    assert_same(plain(strict_outputs), outputs)
    assert_same(plain(strict_pullback(strict(outputs))), pullback(outputs))


def mask(*shape):
    return {"key_padding_mask": np.zeros(shape, bool)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": None}, TypeError, "query is None, expected an array"),
        ({"query": [[[1.0]]]}, TypeError, "query is a list, expected a numpy.ndarray"),
        ({"query": np.zeros((T, E))}, ValueError, r"query has shape \(3, 6\), expected 3 axes \(T, B, E\)"),
        ({"query": np.zeros((T, B, 5))}, ValueError, r"query has shape .* expected \(T, B, E\) with E a multiple of 2"),
        ({"keys": np.zeros((S, B, E + 1))}, ValueError, r"keys has shape .*expected \(S, B, E\) = \(5, 2, 6\)"),
        ({"keys": np.zeros((S, 1, E))}, ValueError, r"keys has shape .*expected \(S, B, E\) = \(5, 2, 6\)"),
        ({"keys": np.zeros((S, B))}, ValueError, r"keys has shape \(5, 2\), expected 3 axes \(S, B, E\)"),
        ({"keys": None}, TypeError, "values is an array, expected None where keys is"),
        ({"values": np.zeros((S + 1, B, E))}, ValueError, r"values has shape .*expected \(S, B, E\) = \(5, 2, 6\)"),
        ({"values": np.zeros((S, B, E), "float32")}, TypeError, "values has dtype float32 but in_proj_weight has"),
        ({"in_proj_weight": None}, TypeError, "in_proj_weight is None, expected an array"),
        ({"in_proj_weight": np.zeros((E, E))}, ValueError, r"in_proj_weight has .* expected \(3\*E, E\) = \(18, 6\)"),
        ({"in_proj_bias": np.zeros(E)}, ValueError, r"in_proj_bias has shape \(6,\), expected \(3\*E,\) = \(18,\)"),
        ({"out_proj_weight": np.zeros((E, 1))}, ValueError, r"out_proj_weight has .* expected \(E, E\) = \(6, 6\)"),
        ({"out_proj_bias": np.zeros((1, E))}, ValueError, r"out_proj_bias has .* expected \(E,\) = \(6,\)"),
        ({"num_heads": 4}, ValueError, r"query has shape \(3, 2, 6\), expected \(T, B, E\) with E a multiple of 4"),
        ({"num_heads": 0}, ValueError, "num_heads is 0, expected at least 1"),
        ({"num_heads": 2.0}, TypeError, "num_heads is 2.0, expected a whole number"),
        (mask(B, S + 1), ValueError, r"key_padding_mask has shape \(2, 6\), expected \(B, S\) = \(2, 5\)"),
        (mask(S, B), ValueError, r"key_padding_mask has shape \(5, 2\), expected \(B, S\) = \(2, 5\)"),
        ({"key_padding_mask": np.zeros((B, S))}, TypeError, "key_padding_mask has dtype float64, expected bool"),
        (
            {"attn_mask": np.zeros((S, T), bool)}, ValueError,
            r"attn_mask has shape \(5, 3\), expected \(T, S\) = \(3, 5\), \(B\*num_heads, T, S\) = \(4, 3, 5\), or",
        ),
        ({"attn_mask": np.zeros((3, 1, T, S), bool)}, ValueError, r"attn_mask has shape \(3, 1, 3, 5\), expected"),
        ({"attn_mask": np.zeros((T, S), "float32")}, TypeError, "attn_mask has dtype float32, expected bool.*float64"),
        (
            {"v_proj_weight": np.zeros((E, E))}, TypeError,
            "in_proj_weight and v_proj_weight are given, expected None for one of the two",
        ),
        (
            {"in_proj_weight": None, "v_proj_weight": np.zeros((E, E))}, TypeError,
            "q_proj_weight is None, expected an array",
        ),
        (
            {"in_proj_weight": None, **{name: np.zeros(shape) for name, shape in SEPARATE.items()}}, ValueError,
            r"k_proj_weight has shape \(6, 4\), expected \(E, key_size\) = \(6, 6\)",
        ),
        (
            {"causal": True, "keys": np.zeros((2, B, E)), "values": None}, ValueError,
            r"keys has shape \(2, 2, 6\), expected S >= T = 3, as causal is true",
        ),
    ],
)  # fmt: skip
def test_refusals(changes, error, message):
    arrays, options = problem()
    for call in (gpurnn.multi_head_attention, gpurnn.multi_head_attention.vjp):
        with pytest.raises(error, match=f"multi_head_attention: {message}"):
            call(**{**arrays, **options, **changes})


@pytest.mark.parametrize(
    ("cotangents", "error", "message"),
    [
        (None, TypeError, r"the pullback was given None, expected a pair \(dy, dweights\)"),
        ((None,), TypeError, r"the pullback was given a tuple of 1, expected a pair \(dy, dweights\)"),
        ((np.zeros((T, B)), None), ValueError, r"dy has shape \(3, 2\), expected the shape of y = \(3, 2, 6\)"),
        ((None, np.zeros((B, T, S))), ValueError, r"dweights has .* expected the shape of weights = \(2, 2, 3, 5\)"),
        ((np.zeros((T, B, E), "float32"), None), TypeError, "dy has dtype float32 but y has float64"),
    ],
)  # fmt: skip
def test_what_the_pullback_refuses(cotangents, error, message):
    arrays, options = problem()
    _, pullback = gpurnn.multi_head_attention.vjp(**arrays, **options)
    with pytest.raises(error, match=f"multi_head_attention: {message}"):
        pullback(cotangents)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"features": 0}, ValueError, "features is 0, expected at least 1"),
        ({"num_heads": 5}, ValueError, "num_heads is 5, expected a divisor of features = 6"),
        ({"num_heads": "2"}, TypeError, "num_heads is '2', expected a whole number"),
        ({"value_size": 0}, ValueError, "value_size is 0, expected at least 1"),
        ({"batch_first": 1}, TypeError, "batch_first is 1, expected True or False"),
        ({"dtype": "float16"}, TypeError, "dtype is 'float16', expected float32 or float64"),
        ({"rng": None}, TypeError, "rng is None, expected an int seed or a numpy.random.Generator"),
    ],
)
def test_what_the_layer_refuses(options, error, message):
    with pytest.raises(error, match=f"MultiHeadAttention: {message}"):
        gpurnn.MultiHeadAttention(**{"features": E, "num_heads": HEADS, **options})


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "training", [pytest.param(False, marks=pytest.mark.unrepeated), True], ids=["inference", "training"]
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("T", "S"), [(3, 5), (65, 65), (1, 70), (4, 4)])
def test_the_kernels_agree_with_the_definition(kernel_wing, T, S, causal, masked, training, dtype):
    """The arrays are views, as the projections are. One row has no position."""
    rng, B, heads = np.random.default_rng(0), 3, 2
    query, keys, values, dcontext = (
        rng.standard_normal((steps, B, 2 * E)).astype(dtype)[:, :, E:] for steps in (T, S, S, T)
    )
    dweights = rng.standard_normal((B, heads, T, S)).astype(dtype)
    excluded = np.arange(S) >= np.array([[S - 1], [S], [0]]) if masked else None
    options = {"causal": causal, "scale": 0.7, "training": training}

    def run(wing, query, keys, values, dcontext, dweights, excluded):
        arrays = query, keys, values, heads
        context, weights, saved = wing.multi_head_forward(*arrays, excluded=excluded, **options)
        alone, nothing, _ = wing.multi_head_forward(*arrays, excluded=excluded, with_weights=False, **options)
        assert nothing is None
        if not training:
            assert saved is None
            return context, weights, alone
        back = [wing.multi_head_backward(saved, dcontext, d) for d in (dweights, None)]
        return context, weights, alone, *back

    arguments = query, keys, values, np.ascontiguousarray(dcontext), dweights, excluded
    found = kernel_wing.back(run(kernel_wing.module, *kernel_wing.to(arguments)))
    assert_all_close(found, run(reference, *arguments), 1000)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 1), "float64"),
        pytest.param((3, 1), "float32", marks=pytest.mark.unrepeated),
        pytest.param((1, 2), "float64", marks=pytest.mark.unrepeated),
        ((1, 2), "float32"),
    ],
)
def test_the_kernels_add_a_mask(kernel_wing, shape, dtype):
    """More than a tile of steps and positions, heads wider than a tile, and a step that sees nothing."""
    rng, B, heads, T, S, width = np.random.default_rng(0), 3, 2, 66, 70, 2 * 68
    query, keys, values, dcontext = (rng.standard_normal((steps, B, width)).astype(dtype) for steps in (T, S, S, T))
    dweights = rng.standard_normal((B, heads, T, S)).astype(dtype)
    excluded = np.arange(S) >= np.array([[S - 1], [S], [1]])
    added = attention_mask(*shape, T, S, additive=True).astype(dtype)

    def run(wing, query, keys, values, dcontext, dweights, excluded, added):
        context, weights, saved = wing.multi_head_forward(
            query, keys, values, heads, causal=True, excluded=excluded, mask=added, scale=0.1, training=True
        )
        return context, weights, *(wing.multi_head_backward(saved, dcontext, d) for d in (dweights, None))

    arguments = query, keys, values, dcontext, dweights, excluded, added
    found = kernel_wing.back(run(kernel_wing.module, *kernel_wing.to(arguments)))
    assert_all_close(found, run(reference, *arguments), 1000)
    assert not found[1][:, :, 0].any()


def test_a_query_without_steps():
    arrays, options = problem(causal=True)
    (y, weights), pullback = gpurnn.multi_head_attention.vjp(arrays.pop("query")[:0], **arrays, **options)
    assert y.shape == (0, B, E)
    assert weights.shape == (B, HEADS, 0, S)
    assert all(not g.any() for g in pullback((None, None))[0])
