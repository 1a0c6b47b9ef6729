"""Linear state-space models, as a function and as layers: PyTorch's, SciPy's and the definition's results."""

from __future__ import annotations

import itertools

import golden
import numpy as np
import pytest
import scipy.signal
from allocations import most_bytes
from problems import pairwise, pattern_of_lengths, pattern_of_resets
from strict_wing import DEVICE, Array, plain, strict
from tolerance import arrays_of, assert_all_close, assert_close, assert_golden, assert_same, check_gradients

import gpurnn
from benchmarks import scan
from benchmarks.compare import Disagreement
from gpurnn import functional


def normal(*shape: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else values).astype(dtype)


def draw(kind: str, T: int = 5, B: int = 4, I: int = 2, N: int = 3, O: int = 2, real: str = "float64", radius=0.97):
    """The arrays of `gpurnn.ssm` by name; the largest eigenvalue of A is of modulus ``radius``."""
    seed = 0
    dtype = {"float32": "complex64", "float64": "complex128"}[real] if kind == "complex" else real
    A = normal(*((N, N) if kind == "dense" else (N,)), seed=seed, dtype=dtype)
    A *= radius / (np.abs(np.linalg.eigvals(A)).max() if kind == "dense" else np.abs(A).max())
    return {
        "x": normal(T, B, I, seed=seed + 1, dtype=real),
        "A": A.astype(dtype),
        "B": normal(N, I, seed=seed + 2, dtype=dtype),
        "C": normal(O, N, seed=seed + 3, dtype=dtype),
        "D": normal(O, I, seed=seed + 4, dtype=real),
        "state": normal(B, N, seed=seed + 5, dtype=dtype),
    }


def by_the_loop(p, output_state="after", lengths=None, resets=None):
    """y and the final state by the definition, row by row and step by step."""
    A = np.diag(p["A"]) if p["A"].ndim == 1 else p["A"]
    T, rows = p["x"].shape[:2]
    y = np.zeros((T, rows, len(p["C"])), p["x"].dtype)
    final = p["state"].copy()
    for b in range(rows):
        h = p["state"][b]
        for t in range(T if lengths is None else lengths[b]):
            if resets is not None and resets[t, b]:
                h = np.zeros_like(h)
            after = A @ h + p["B"] @ p["x"][t, b]
            y[t, b] = (p["C"] @ (h if output_state == "before" else after)).real + p["D"] @ p["x"][t, b]
            h = after
        final[b] = h
    return y, final


KINDS = ("dense", "real", "complex")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_output_state = pytest.mark.parametrize("output_state", ["after", "before"])
OPTIONS = list(itertools.product((False, True), (False, True)))
each_options = pytest.mark.parametrize(("with_lengths", "with_resets"), OPTIONS)


def options_of(T: int, B: int, with_lengths: bool, with_resets: bool) -> dict[str, np.ndarray | None]:
    return {
        "lengths": pattern_of_lengths(T, B) if with_lengths else None,
        "resets": pattern_of_resets(T, B) if with_resets else None,
    }


@each_options
@each_output_state
@each_kind
@pytest.mark.parametrize(("T", "real"), [(1, "float64"), (5, "float32"), (150, "float64")])
def test_the_definition(each_wing, kind, output_state, with_lengths, with_resets, T, real):
    p, options = draw(kind, T, real=real), options_of(T, 4, with_lengths, with_resets)
    expected = by_the_loop(p, output_state, **options)
    if with_lengths:
        p["x"][np.arange(T)[:, None] >= options["lengths"]] = np.nan
    result = gpurnn.ssm(*p.values(), output_state=output_state, **options)
    assert_all_close(result, expected, 20 * T)
    assert_same(gpurnn.ssm.vjp(*p.values(), output_state=output_state, **options)[0], result)
    if with_lengths:
        assert not result[0][np.arange(T)[:, None] >= options["lengths"]].any()


def parts(arrays):
    """Complex arrays split into real and imaginary parts, each under its own name."""
    found = {}
    for name, a in arrays.items():
        found |= {f"{name}.re": a.real.copy(), f"{name}.im": a.imag.copy()} if np.iscomplexobj(a) else {name: a}
    return found


def joined(found):
    return {
        name.removesuffix(".re"): a + 1j * found[name.replace(".re", ".im")] if name.endswith(".re") else a
        for name, a in found.items()
        if not name.endswith(".im")
    }


@each_options
@each_output_state
@pytest.mark.parametrize(("kind", "T"), [("dense", 4), ("real", 4), ("complex", 4), ("dense", 70)])
def test_gradients_against_central_differences(each_wing, kind, output_state, with_lengths, with_resets, T):
    # A difference errs by the fifth derivative of a^70, which must not exceed a^70 itself.
    p, options = draw(kind, T, radius=0.6), options_of(T, 4, with_lengths, with_resets)
    if with_lengths:
        p["x"][np.arange(T)[:, None] >= options["lengths"]] = np.nan
    (y, final), pullback = gpurnn.ssm.vjp(*p.values(), output_state=output_state, **options)
    dy, dstate = normal(*y.shape, seed=8), normal(*final.shape, seed=9, dtype=final.dtype.name)
    (dx, dstate0), grads = pullback((dy, dstate))
    assert_same(pullback((dy, dstate)), ((dx, dstate0), grads))

    def outputs(inputs):
        y, final = gpurnn.ssm(**joined(inputs), output_state=output_state, **options)
        return [y, final.real, final.imag] if kind == "complex" else [y, final]

    cotangents = [dy, dstate.real, dstate.imag] if kind == "complex" else [dy, dstate]
    found = {"x": dx, "state": dstate0, **grads}
    check_gradients(outputs, parts(p), cotangents, parts({name: found[name] for name in p}), seed=1)
    # Either cotangent may be absent.
    for pair in ((dy, None), (None, dstate)):
        zeros = tuple(np.zeros_like(like) if c is None else c for c, like in zip(pair, (dy, dstate), strict=True))
        assert_same(pullback(pair), pullback(zeros))


RECORDS = [r for family in ("ssm", "ssm_pre") for r in golden.family("ssm", family)] + golden.family(
    "custom", "ssm_diag"
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["name"])
def test_the_models_of_torch(each_wing, record, dtype):
    """Outputs, states and all gradients. The states are obtained as further outputs, through C."""
    c = golden.arrays("custom" if record["family"] == "ssm_diag" else "ssm", record["name"], dtype)
    A, N, O = c["a" if record["family"] == "ssm_diag" else "A"], record["H"], len(c["C"])
    output_state = "before" if record["family"] == "ssm_pre" else "after"
    C, D = np.vstack([c["C"], np.eye(N, dtype=dtype)]), np.vstack([c["D"], np.zeros((N, record["I"]), dtype)])
    kinds = [lambda *p: gpurnn.ssm.vjp(*p, output_state=output_state)]
    if A.ndim == 2:

        def layer(x, A, B, C, D, state):
            made = gpurnn.StateSpace(record["I"], N, O + N, output_state=output_state, dtype=dtype)
            made.load_state_dict({"A": A, "B": B, "C": C, "D": D})
            (y, _), pullback = made.vjp(x, state[None])

            def pull(cotangents):
                (dx, dstate), grads = pullback(cotangents)
                return (dx, dstate[0]), grads

            return (y, None), pull

        kinds.append(layer)
    for kind in kinds:
        (y, _), pullback = kind(c["x"], A, c["B"], C, D, c["s0"])
        (dx, ds0), grads = pullback((np.concatenate([c["ct_y"], c["ct_states"]], axis=2), None))
        found = {
            "y": y[..., :O], "states": y[..., O:], "g_x": dx, "g_s0": ds0, "g_A": grads["A"], "g_B": grads["B"],
            "g_C": grads["C"][:O], "g_D": grads["D"][:O],
        }  # fmt: skip
        for name, value in found.items():
            expected = c["g_a" if name == "g_A" and A.ndim == 1 else name]
            assert_golden(value, expected, 2 * record["T"] * record["N"] * (N + record["I"]), name)


@pytest.mark.parametrize("T", [7, 200])
def test_before_is_what_dlsim_computes(T):
    p = draw("dense", T, B=1)
    _, y, states = scipy.signal.dlsim((p["A"], p["B"], p["C"], p["D"], 1), p["x"][:, 0], x0=p["state"][0])
    found, final = gpurnn.ssm(*p.values(), output_state="before")
    assert_close(found[:, 0], y, 10 * T)
    assert_close(final[0], p["A"] @ states[-1] + p["B"] @ p["x"][-1, 0], 10 * T)


def layer_of(kind: str, dtype: str = "float64", **options):
    if kind == "dense":
        return gpurnn.StateSpace(2, 3, 2, dtype=dtype, **options)
    return gpurnn.DiagonalStateSpace(2, 3, 2, complex=kind == "complex", dtype=dtype, **options)


def state_like(kind: str, B: int, seed: int):
    real, imag = normal(1, B, 3, seed=seed), normal(1, B, 3, seed=seed + 1)
    return (real, imag) if kind == "complex" else real


def as_parts(state):
    return list(state) if isinstance(state, tuple) else [state]


@each_options
@each_output_state
@each_kind
def test_gradients_of_layers(each_wing, kind, output_state, with_lengths, with_resets):
    T, B, feedthrough = 5, 4, with_lengths
    layer = layer_of(
        kind, output_state=output_state, feedthrough=feedthrough, radius=0.9 if kind == "dense" else (0.3, 0.9)
    )
    assert ("D" in layer.params) == feedthrough
    x, state, options = normal(T, B, 2), state_like(kind, B, 3), options_of(T, B, with_lengths, with_resets)
    (y, final), pullback = layer.vjp(x, state, **options)
    assert_same(layer(x, state, **options), (y, final))
    dy, dfinal = normal(T, B, 2, seed=8), state_like(kind, B, 9)
    (dx, dstate), grads = pullback((dy, dfinal))
    assert list(grads) == list(layer.params)
    names = [f"state{k}" for k in range(len(as_parts(state)))]
    inputs = {"x": x, **dict(zip(names, as_parts(state), strict=True)), **layer.state_dict()}

    def outputs(inputs):
        layer.load_state_dict({name: inputs[name] for name in layer.params})
        given = [inputs[name] for name in names]
        y, final = layer(inputs["x"], tuple(given) if kind == "complex" else given[0], **options)
        return [y, *as_parts(final)]

    found = {"x": dx, **dict(zip(names, as_parts(dstate), strict=True)), **grads}
    check_gradients(outputs, inputs, [dy, *as_parts(dfinal)], found, seed=2)


@each_kind
def test_steps_one_by_one_are_the_sequence(each_wing, kind):
    layer, x, state = layer_of(kind), normal(70, 2, 2), state_like(kind, 2, 5)
    y, final = layer(x, state)
    steps = []
    for t in range(len(x)):
        step, state = layer(x[t : t + 1], state)
        steps.append(step)
    assert_close(np.concatenate(steps), y, 700)
    assert_all_close(state, final, 700)


@each_kind
def test_a_reset_is_a_new_sequence_and_a_length_its_end(kind):
    layer, x, state = layer_of(kind), normal(90, 1, 2), state_like(kind, 1, 5)
    resets = np.zeros((90, 1), bool)
    resets[40] = True
    y, final = layer(x, state, resets=resets)
    first, _ = layer(x[:40], state)
    second, expected = layer(x[40:])
    assert_close(y, np.concatenate([first, second]), 900)
    assert_all_close(final, expected, 900)
    y, final = layer(x, state, np.array([40]))
    assert_close(y[:40], first, 900)
    assert_all_close(final, layer(x[:40], state)[1], 900)


@pytest.mark.parametrize("kind", ["dense", "real", "complex"])
def test_an_unstable_state_ends_with_its_sequence(each_wing, kind):
    """Past a length the state would grow beyond the range of its dtype."""
    x, one = normal(2000, 2, 1), np.ones((1, 1), complex if kind == "complex" else float)
    A = 2 * one if kind == "dense" else 2 * one[0]
    arguments, cotangents = (A, one, one, one.real, one.repeat(2, 0)), (normal(2000, 2, 1, seed=1), one.repeat(2, 0))
    result, pullback = gpurnn.ssm.vjp(x, *arguments, lengths=np.array([3, 5]))
    trimmed, expected = gpurnn.ssm.vjp(x[:5], *arguments, lengths=np.array([3, 5]))
    assert_all_close(result[0][:5], trimmed[0], 20)
    assert_close(result[1], trimmed[1], 20)
    (dx, dstate), grads = pullback(cotangents)
    (short, *rest), others = expected((cotangents[0][:5], cotangents[1]))
    assert_close(dx[:5], short, 20)
    assert_all_close([dstate, *grads.values()], [*rest, *others.values()], 20)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("complex", [False, True])
def test_a_diagonal_layer_is_stable_whatever_it_is_trained_to(complex, dtype):
    layer = gpurnn.DiagonalStateSpace(1, 50, 1, complex=complex, radius=(0.5, 0.9), dtype=dtype, rng=3)
    xp = gpurnn._dispatch.namespace("test", x=layer.params["nu"])
    a, _ = layer._transition(xp, layer.params)
    assert (np.abs(a) >= 0.5).all()
    assert (np.abs(a) <= 0.9).all()
    assert np.ptp(np.abs(a)) > 0.2
    if complex:
        assert (a.imag != 0).all()
    x = normal(20, 1, 1).astype(dtype)
    for nu in (-1e6, -30.0, -17.0, -5.0, 0.0, 5.0, 90.0, 1e6):
        layer.params["nu"][...] = nu
        a, _ = layer._transition(xp, layer.params)
        assert (np.abs(a) < 1).all()
        if nu <= 0:
            np.testing.assert_allclose(np.abs(a), np.exp(-np.exp(nu)), rtol=8 * np.finfo(dtype).eps)
        (y, _), pullback = layer.vjp(x)
        _, grads = pullback((y, None))
        assert all(np.isfinite(g).all() for g in grads.values())
        if -30 <= nu <= 0:
            assert (grads["nu"] != 0).all()


def test_states_start_with_the_variance_of_their_input():
    x = np.random.default_rng(0).standard_normal((4000, 1, 6))
    for layer in (
        gpurnn.StateSpace(6, 40, 40, feedthrough=False, dtype="float64"),
        gpurnn.DiagonalStateSpace(6, 40, 40, complex=False, radius=(0.5, 0.9), feedthrough=False, dtype="float64"),
    ):
        layer.params["C"][...] = np.eye(40)
        variance = layer(x)[0][200:].var()
        # B is random too: the mean square of 240 normal numbers is within four standard deviations of 1.
        assert abs(variance - 1) < 4 * (2 / 240) ** 0.5


def test_in_a_sequence_of_layers_it_is_trained_saved_and_read(tmp_path):
    """A running mean with a delay of three steps, which a linear model can learn to any accuracy."""
    rng = np.random.default_rng(0)
    model = gpurnn.Sequential(
        gpurnn.Dense(1, 4), gpurnn.DiagonalStateSpace(4, 8, 4, radius=(0.3, 0.9)), gpurnn.StateSpace(4, 6, 1)
    )
    optimizer = gpurnn.Adam(0.01)
    losses = []
    for _ in range(150):
        x = rng.standard_normal((40, 16, 1)).astype("float32")
        target = gpurnn.linear_scan(np.full(1, 0.8, "float32"), x)
        (y, _), pullback = model.vjp(x, rng=1)
        loss, pull = gpurnn.mse.vjp(y, target)
        optimizer.step(model.params, pullback((pull(1.0)[0], None))[1])
        losses.append(float(loss))
    assert losses[-1] < 0.02 * losses[0]
    model.save(tmp_path / "model.safetensors")
    again = gpurnn.Sequential(
        gpurnn.Dense(1, 4), gpurnn.DiagonalStateSpace(4, 8, 4, rng=5), gpurnn.StateSpace(4, 6, 1, rng=5)
    )
    again.load(tmp_path / "model.safetensors")
    assert_same(again(x), model(x))
    y, state = model(x[:20])
    assert_close(model(x[20:], state)[0], model(x)[0][20:], 500)


def assert_strict(nested):
    for entry in nested.values() if isinstance(nested, dict) else nested:
        if isinstance(entry, (tuple, list, dict)):
            assert_strict(entry)
        elif entry is not None:
            assert isinstance(entry, Array)
            assert entry.device == DEVICE


@each_options
@each_output_state
@each_kind
def test_on_arrays_that_are_not_numpys(strict_namespace, kind, output_state, with_lengths, with_resets):
    T, B = 66, 4
    layer = layer_of(kind, output_state=output_state)
    moved = layer.to(strict_namespace)
    x, state, options = normal(T, B, 2), state_like(kind, B, 3), options_of(T, B, with_lengths, with_resets)
    for given in (state, None):
        expected, pullback = layer.vjp(x, given, **options)
        result, strict_pullback = moved.vjp(strict(x), strict(given), **strict(options))
        cotangents = (normal(T, B, 2, seed=8), given)
        gradients = strict_pullback(strict(cotangents))
        assert_strict(result)
        assert_strict(gradients)
        assert_same(plain(result), expected)
        assert_same(plain(gradients), pullback(cotangents))
        assert_same(plain(moved(strict(x), strict(given), **strict(options))), expected)


# A hundred thousand steps, compared with a loop over Python's own numbers.

LONG = 100_000


def long_scan(a, b, h0, dh):
    """h, da, db and dh0 of one column by the definition, in double precision."""
    a, b, dh = (x.tolist() for x in (a, b, dh))
    h, carried = h0, 0.0
    states, db = [], [0.0] * len(b)
    for t in range(len(b)):
        h = a[t] * h + b[t]
        states.append(h)
    for t in reversed(range(len(b))):
        db[t] = carried = dh[t] + carried
        carried = a[t].conjugate() * carried
    states, db = np.array(states), np.array(db)
    return states, db * np.conj(np.concatenate([[h0], states[:-1]])), db, carried


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_a_hundred_thousand_steps_are_those_of_a_loop(each_wing, dtype):
    rng = np.random.default_rng(0)
    a, b, h0, dh = (
        normal(*shape, seed=k, dtype=dtype)
        for k, shape in enumerate([(LONG, 1, 1), (LONG, 1, 1), (1, 1), (LONG, 1, 1)])
    )
    a *= (rng.uniform(0.9, 1, a.shape) / np.abs(a)).astype(a.real.dtype)
    h, pullback = gpurnn.linear_scan.vjp(a, b, h0)
    (da, db, dh0), _ = pullback(dh)
    expected = long_scan(a[:, 0, 0], b[:, 0, 0], h0[0, 0].item(), dh[:, 0, 0])
    # Errors are damped like states, over about 20 steps. A step rounds up to four times, forward and backward.
    terms = 4 * 20 * 2
    for name, found, exact in zip(("h", "da", "db"), (h, da, db), expected, strict=False):
        assert_close(found[:, 0, 0], exact.astype(dtype), terms, name)
    assert_close(dh0[0], np.array([expected[3]], dtype), terms, "dh0", magnitude=float(np.abs(expected[2]).max()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_kind
def test_layers_over_a_hundred_thousand_steps(each_wing, kind, dtype):
    """Forward pass and all gradients, against the loop in double precision."""
    layer = layer_of(kind, dtype)
    x, dy = normal(LONG, 1, 2, dtype=dtype), normal(LONG, 1, 2, seed=1, dtype=dtype)
    (y, _), pullback = layer.vjp(x)
    (dx, _), grads = pullback((dy, None))
    wide = layer_of(kind)
    wide.load_state_dict({name: p.astype("float64") for name, p in layer.params.items()})
    expected, dexpected, gradients, sizes = looped(wide, x[:, 0].astype("float64"), dy[:, 0].astype("float64"))
    terms = 4000
    assert_close(y[:, 0], expected.astype(dtype), terms, "y")
    assert_close(dx[:, 0], dexpected.astype(dtype), terms, "dx")
    assert grads.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # Rounding errors partly cancel, most of all in these sums: the bound is a fiftieth, relative to the sizes of
        # the terms.
        assert_close(grads[name], gradient.astype(dtype), terms / 50, name, magnitude=sizes[name])


def looped(layer, x, dy):
    """y, dx, the gradients by name and the sizes of their terms, from a loop of products."""
    xp = gpurnn._dispatch.namespace("test", x=x)
    a, _ = layer._transition(xp, layer.params)
    p = layer.params
    B, C = (p[n] if n in p else p[f"{n}_real"] + 1j * p[f"{n}_imag"] for n in "BC")
    A = np.diag(a) if a.ndim == 1 else a
    b = x @ B.T
    h = np.empty_like(b)
    state = np.zeros_like(b[0])
    for t in range(len(b)):
        h[t] = state = A @ state + b[t]
    read = (h @ C.T).real
    adjoint, carried, back = dy @ C.conj(), np.zeros_like(b[0]), A.conj().T
    for t in reversed(range(len(b))):
        adjoint[t] = carried = adjoint[t] + back @ carried if t + 1 < len(b) else adjoint[t]
    dx = (adjoint @ B.conj()).real + dy @ p["D"]
    before = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
    pairs = {"A": (adjoint, before), "B": (adjoint, x), "C": (dy, h), "D": (dy, x)}
    found = {name: (left.T @ right.conj(), np.abs(left).T @ np.abs(right)) for name, (left, right) in pairs.items()}
    if a.ndim == 1:  # a = exp(-exp(nu) + i theta)
        da, size = (np.diag(of) for of in found.pop("A"))
        rate = np.exp(p["nu"])
        found["nu"] = (-rate * (da * a.conj()).real, rate * size)
        if "theta" in p:
            found["theta"] = ((da.conj() * 1j * a).real, size)
    if np.iscomplexobj(C):
        for name in "BC":
            gradient, size = found.pop(name)
            found |= {f"{name}_real": (gradient.real, size), f"{name}_imag": (gradient.imag, size)}
    gradients = {name: gradient for name, (gradient, _) in found.items()}
    return read + x @ p["D"].T, dx, gradients, {name: float(size.max()) for name, (_, size) in found.items()}


def test_refusals():
    p = draw("complex")
    with pytest.raises(TypeError, match=r"ssm: A has dtype complex128 but x has float32, expected the precision of x"):
        gpurnn.ssm(p["x"].astype("float32"), *[p[name] for name in "ABC"])
    with pytest.raises(
        TypeError, match=r"ssm: A has dtype complex128, expected float64; only a diagonal may be complex"
    ):
        gpurnn.ssm(p["x"], np.diag(p["A"]), p["B"], p["C"])
    with pytest.raises(TypeError, match=r"ssm: B has dtype float64 but A has complex128, expected one dtype"):
        gpurnn.ssm(p["x"], p["A"], p["B"].real.copy(), p["C"])
    with pytest.raises(ValueError, match=r"ssm: A has shape \(3, 2\), expected \(N, N\), or \(N,\) for a diagonal"):
        gpurnn.ssm(p["x"], normal(3, 2), normal(3, 2), normal(1, 3))
    with pytest.raises(ValueError, match=r"ssm: output_state is 'now', expected one of 'after', 'before'"):
        gpurnn.ssm(*p.values(), output_state="now")
    layer = layer_of("complex")
    with pytest.raises(
        TypeError, match=r"DiagonalStateSpace: state is an array of shape .*, expected a pair \(real, imaginary\)"
    ):
        layer(p["x"], normal(1, 4, 3))
    with pytest.raises(
        ValueError, match=r"DiagonalStateSpace: state\[1\] has shape \(4, 3\), expected \(1, B, state_size\)"
    ):
        layer(p["x"], (normal(1, 4, 3), normal(4, 3)))
    for radius in ((0.9, 0.5), (0.0, 0.5)):
        with pytest.raises(ValueError, match=r"DiagonalStateSpace: radius is .*, expected 0 < least <= largest < 1"):
            gpurnn.DiagonalStateSpace(1, 1, 1, radius=radius)
    with pytest.raises(TypeError, match=r"DiagonalStateSpace: radius is 0.5, expected a pair"):
        gpurnn.DiagonalStateSpace(1, 1, 1, radius=0.5)


def test_no_part_of_a_state_may_hide_the_other():
    layer, x = layer_of("complex"), normal(3, 4, 2)
    real, imag = state_like("complex", 4, 1)
    assert_same(layer(x, (real, None)), layer(x, (real, 0 * imag)))
    assert_same(layer(x, (None, imag)), layer(x, (0 * real, imag)))
    assert any((a != b).any() for a, b in zip(arrays_of(layer(x, (real, None))), arrays_of(layer(x)), strict=True))


def test_the_benchmark_has_a_row_for_each_kind_dtype_and_length(monkeypatch):
    _, _, _, _, *rows = scan.report(lengths=(3, 70), states=3, repeats=1)
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [c[:3] for c in cells] == [
        [kind, dtype, T] for kind, dtypes in scan.DTYPES.items() for dtype in dtypes for T in ("3", "70")
    ]
    assert all(float(c[3]) > 0 and float(c[4]) > 0 for c in cells)
    right = scan.scan

    def wrong(xp, *arrays):
        h, *gradients = right(xp, *arrays)
        return 1.001 * h, *gradients

    monkeypatch.setattr(scan, "scan", wrong)
    with pytest.raises(Disagreement, match="scan and the loop disagree in float32"):
        list(scan.report(lengths=(3,), states=3, repeats=1))


@pytest.mark.parametrize("kind", ["dense", "real"])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_resets_of_an_unstable_state(each_wing, kind, real):
    """The powers over a chunk of time are infinite, but the states between two resets are finite."""
    T, every = 4200, 20
    growth = 6.0 if real == "float32" else 1e7
    p = draw(kind, T, B=2, real=real)
    p["A"] = (growth * np.eye(p["A"].shape[0])).astype(real) if kind == "dense" else np.full_like(p["A"], growth)
    resets = np.zeros((T, 2), bool)
    resets[::every] = True
    expected, pull = gpurnn.ssm.vjp(*p.values(), resets=resets)
    assert np.isfinite(expected[0]).all()
    (dx, dstate), grads = pull((np.ones_like(expected[0]), None))
    assert all(np.isfinite(g).all() for g in (dx, dstate, *grads.values()))
    # Each stretch between two resets is a sequence of its own.
    whole = {name: p[name] for name in "ABCD"}
    for start in (0, every, T - every):
        y, _ = gpurnn.ssm(p["x"][start : start + every], **whole)
        assert_close(expected[0][start : start + every], y, 20 * every, magnitude=float(np.abs(y).max()))


@pytest.mark.parametrize("kind", ["dense", "real", "complex"])
def test_a_state_survives_where_powers_underflow(each_wing, kind):
    dtype = "complex64" if kind == "complex" else "float32"
    A = np.array([0.5**8], dtype) if kind != "dense" else np.array([[0.5**8]], dtype)
    one, x = np.ones((1, 1), dtype), np.zeros((100, 1, 1), "float32")
    y, _ = gpurnn.ssm(x, A, one, one, state=one * 2.0**120)
    expected = 2.0 ** (120 - 8 * np.arange(1.0, 101))
    assert_same(y[:30, 0, 0], expected[:30].astype("float32"))


LAYERS = {
    "dense": lambda **options: gpurnn.StateSpace(2, 3, 4, **options),
    "real": lambda **options: gpurnn.DiagonalStateSpace(2, 3, 4, complex=False, **options),
    "complex": lambda **options: gpurnn.DiagonalStateSpace(2, 3, 4, **options),
}


@pytest.fixture
def short_chunks(monkeypatch):
    """Chunks of few steps, so that short sequences have several."""
    monkeypatch.setattr(functional._ssm, "CHUNK_ROWS", 5)


def assert_bits(actual, expected) -> None:
    """Check equality to the last bit, including the sign of a zero."""
    assert_same(actual, expected)
    for a, e in zip(arrays_of(actual), arrays_of(expected), strict=True):
        assert a.tobytes() == e.tobytes()


CHECKPOINTED = pairwise(
    {
        "kind": list(KINDS),
        "output_state": ["after", "before"],
        "lengths": [False, True],
        "resets": [False, True],
        "initial": [False, True],
        "given": ["both", "dy", "dstate"],
        "state_after": [None, 0, 3, 13],
        "every": [1, 3, 4, "sqrt", 12, 100],
        "T": [13, 12, 1],
        "B": [3, 1],
        "dtype": ["float32", "float64"],
    }
)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("choice", CHECKPOINTED, ids=lambda choice: "-".join(map(str, choice.values())))
def test_checkpoints_give_the_plain_gradients_to_the_last_bit(each_wing, choice):
    T, B, dtype = choice["T"], choice["B"], choice["dtype"]
    layer = LAYERS[choice["kind"]](output_state=choice["output_state"], dtype=dtype, rng=1)
    lengths, resets = options_of(T, B, choice["lengths"], choice["resets"]).values()
    x = normal(T, B, 2, dtype=dtype)
    if lengths is not None:
        x[np.arange(T)[:, None] >= lengths] = np.nan
    parts = tuple(normal(1, B, 3, seed=seed, dtype=dtype) for seed in (1, 2))
    state = parts if choice["kind"] == "complex" else parts[0]
    options = {} if choice["state_after"] is None else {"state_after": min(T, choice["state_after"])}
    arguments = (x, state if choice["initial"] else None, lengths, resets)
    outputs, pullback = layer.vjp(*arguments, **options)
    assert_bits(layer.vjp(*arguments, checkpoint_every=choice["every"], **options)[0], outputs)
    if not options:
        assert_bits(layer(*arguments), outputs)
    (y, final) = outputs
    cotangents = (np.cos(y) if choice["given"] != "dstate" else None, final if choice["given"] != "dy" else None)
    _, again = layer.vjp(*arguments, checkpoint_every=choice["every"], **options)
    expected = pullback(cotangents)
    assert_bits(again(cotangents), expected)
    assert_bits(again(cotangents), expected)


@each_kind
def test_the_chunks_of_a_sequence_are_the_sequence(kind, monkeypatch):
    layer, x = LAYERS[kind](dtype="float64"), normal(40, 3, 2)
    (y, final), pullback = layer.vjp(x)
    whole = y, final, pullback((np.cos(y), final))
    monkeypatch.setattr(functional._ssm, "CHUNK_ROWS", 5)
    (y, final), pullback = layer.vjp(x)
    assert_all_close((y, final, pullback((whole[0] * 0 + np.cos(whole[0]), whole[1]))), whole, 40 * 3 * 5)


def real_parts(arrays):
    """Each array, or the real and the imaginary part of a complex one."""
    return [part for a in arrays for part in ((a.real, a.imag) if np.iscomplexobj(a) else (a,))]


@pytest.mark.usefixtures("short_chunks")
@each_output_state
@each_kind
def test_all_states(each_wing, kind, output_state):
    """Over several chunks: the states equal the definition's, and central differences agree with their gradients."""
    T = 7
    p, options = draw(kind, T, radius=0.6), options_of(T, 4, True, True)
    outputs, pullback = gpurnn.ssm.vjp(*p.values(), output_state=output_state, return_states=True, **options)
    assert_same(outputs[:2], gpurnn.ssm(*p.values(), output_state=output_state, **options))
    for t in range(T):
        lengths = np.minimum(options["lengths"], t + 1)
        _, states = by_the_loop({**p, "x": p["x"][: t + 1]}, lengths=lengths, resets=options["resets"][: t + 1])
        assert_close(outputs[2][t], np.where(options["lengths"][:, None] > t, states, 0), 140)
    cotangents = [normal(*o.shape, seed=8 + k, dtype=o.dtype.name) for k, o in enumerate(outputs)]
    (dx, dstate0), grads = pullback(cotangents)

    def call(inputs):
        return real_parts(gpurnn.ssm(**joined(inputs), output_state=output_state, return_states=True, **options))

    found = parts({name: {"x": dx, "state": dstate0, **grads}[name] for name in p})
    check_gradients(call, parts(p), real_parts(cotangents), found, seed=1)
    zeros = [np.zeros_like(c) for c in cotangents]
    for k in range(3):
        alone = [c if k == j else None for j, c in enumerate(cotangents)]
        assert_same(
            pullback(alone),
            pullback([c if k == j else z for j, (c, z) in enumerate(zip(cotangents, zeros, strict=True))]),
        )
    with pytest.raises(TypeError, match=r"a pair|a tuple of 2, expected a tuple of 3 \(dy, dstate, dstates\)"):
        pullback((None, None))


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("kind", ["dense", "complex"])
def test_all_states_of_a_layer(kind):
    """The last states are the final state, and checkpoints change no bit."""
    layer, x, state = layer_of(kind), normal(7, 4, 2), state_like(kind, 4, 3)
    (y, final, states), pullback = layer.vjp(x, state, return_states=True)
    assert_same(layer(x, state, return_states=True), (y, final, states))
    assert_same(layer(x, state), (y, final))
    assert_same([s[-1:] for s in as_parts(states)], as_parts(final))
    cotangents = np.cos(y), final, states
    kept, again = layer.vjp(x, state, return_states=True, checkpoint_every=2)
    assert_bits(kept, (y, final, states))
    assert_bits(again(cotangents), pullback(cotangents))
    # A gradient of the last states is a gradient of the final state.
    at_the_end = tuple(np.concatenate([np.zeros((6, 4, 3)), s]) for s in as_parts(final))
    of_states = pullback((None, None, at_the_end if kind == "complex" else at_the_end[0]))
    assert_same(of_states, pullback((None, final, None)))
    with pytest.raises(
        ValueError, match=r"dstates.* has shape \(1, 4, 3\), expected \(T, B, state_size\) = \(7, 4, 3\)"
    ):
        pullback((None, None, final))


@pytest.mark.usefixtures("short_chunks")
@each_kind
def test_the_state_after_some_steps_is_that_of_the_steps_alone(kind):
    layer, x = LAYERS[kind](dtype="float64"), normal(12, 3, 2)
    for n in (0, 2, 5, 12):
        alone, pull_alone = layer.vjp(x[:n])
        (_, state), pull = layer.vjp(x, state_after=n)
        assert_bits(state, alone[1])
        (dx, dstate), grads = pull((None, state))
        (dx_alone, dstate_alone), grads_alone = pull_alone((None, state))
        assert not dx[n:].any()
        assert_all_close((dx[:n], dstate, grads), (dx_alone, dstate_alone, grads_alone), 12 * 3 * 5)


@pytest.mark.usefixtures("short_chunks")
def test_checkpoints_of_state_space_layers_between_others():
    model = gpurnn.Sequential(gpurnn.Dense(2, 2), LAYERS["dense"](), gpurnn.GRU(4, 2), LAYERS["complex"]())
    x, lengths = normal(13, 3, 2, dtype="float32"), pattern_of_lengths(13, 3)
    for options in ({}, {"state_after": 5}):
        outputs, pullback = model.vjp(x, None, lengths, **options)
        kept, again = model.vjp(x, None, lengths, checkpoint_every=4, **options)
        assert_bits(kept, outputs)
        assert_bits(again(outputs), pullback(outputs))


def peak(kind: str, T: int, checkpoint_every) -> int:
    """The peak number of bytes, not counting x, y and their gradients."""
    layer = {"dense": gpurnn.StateSpace, "complex": gpurnn.DiagonalStateSpace}[kind](1, 64, 1)
    x, dy = np.zeros((T, 4, 1), np.float32), np.ones((T, 4, 1), np.float32)
    most = most_bytes(lambda: layer.vjp(x, checkpoint_every=checkpoint_every)[1]((dy, None)))
    return most - dy.nbytes - x.nbytes


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("kind", ["dense", "complex"])
def test_memory_of_checkpoints_grows_like_the_root_of_the_steps(kind):
    long = peak(kind, 900, "sqrt")
    assert long < 4 * peak(kind, 100, "sqrt")
    assert long < peak(kind, 900, None) / 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"checkpoint_every": 0}, ValueError, "StateSpace: checkpoint_every is 0, expected at least 1"),
        (
            {"checkpoint_every": "root"},
            ValueError,
            "StateSpace: checkpoint_every is 'root', expected a number of steps, 'sqrt' or None",
        ),
        ({"state_after": 10}, ValueError, "StateSpace: state_after is 10, expected at most T = 9"),
    ],
    ids=str,
)
def test_options_of_checkpoints_out_of_their_range_are_rejected(options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        gpurnn.StateSpace(2, 3, 4).vjp(np.zeros((9, 2, 2), np.float32), **options)
