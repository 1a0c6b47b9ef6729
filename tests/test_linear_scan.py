"""The linear recurrence h_t = a_t h_{t-1} + b_t on both wings, real and complex."""

from __future__ import annotations

import golden
import numpy as np
import pytest
from gpurnn.kernels import host
from tolerance import assert_close, assert_golden, check_gradients

import gpurnn

pytestmark = pytest.mark.usefixtures("each_wing")

DTYPES = ("float32", "float64", "complex64", "complex128")
SIZES = [1, 2, 31, 32, 33, 64, 65, 200, 1500]


def draw(dtype: str, T: int, B: int = 2, N: int = 3, constant: bool = False, seed: int = 0, radius: float = 1.0):
    """a (of modulus up to ``radius``), b, h0 and a cotangent."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        x = rng.standard_normal(shape)
        return (x + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else x).astype(dtype)

    a = normal(*((N,) if constant else (T, B, N)))
    a *= (radius * rng.random(a.shape) / np.abs(a)).astype(a.real.dtype)
    return a, normal(T, B, N), normal(B, N), normal(T, B, N)


def by_the_loop(a, b, h0, dh):
    """States and gradients by the definition, in the widest type there is."""
    wide = np.clongdouble if np.iscomplexobj(b) else np.longdouble
    T, B, N = b.shape
    full = np.broadcast_to(a, b.shape).astype(wide)
    h = np.empty((T + 1, B, N), wide)
    h[0] = h0
    for t in range(T):
        h[t + 1] = full[t] * h[t] + b[t]
    db, carried = np.empty((T, B, N), wide), np.zeros((B, N), wide)
    for t in reversed(range(T)):
        db[t] = dh[t] + carried
        carried = np.conj(full[t]) * db[t]
    da = db * np.conj(h[:-1])
    return h[1:], da.sum(axis=(0, 1)) if a.ndim == 1 else da, db, carried


def run(a, b, h0, dh):
    h, pullback = gpurnn.linear_scan.vjp(a, b, h0)
    (da, db, dh0), parameters = pullback(dh)
    assert parameters == {}
    np.testing.assert_array_equal(gpurnn.linear_scan(a, b, h0), h)
    return h, da, db, dh0


def hold(arguments, terms: int) -> None:
    for name, found, expected in zip(("h", "da", "db", "dh0"), run(*arguments), by_the_loop(*arguments), strict=True):
        assert_close(found, expected.astype(found.dtype), terms, name)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("T", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_states_and_gradients(dtype, T, constant):
    # A modulus below one: a sum of at most 40 terms that matter, of which a constant a adds up T times B.
    hold(draw(dtype, T, constant=constant, radius=0.9), 40 + (2 * T if constant else 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_thousand_steps_of_a_modulus_of_one(dtype):
    a, b, h0, dh = draw(dtype, 20_000, B=1, N=2)
    a /= np.abs(a).astype(a.real.dtype)
    hold((a, b, h0, dh), 20_000)


@pytest.mark.parametrize("T", [3, 40])
def test_growing_states(T):
    a, b, h0, dh = draw("float64", T)
    hold((1.5 * np.sign(a), b, h0, dh), T)


def test_a_state_of_zero_stays_zero_where_products_overflow():
    T = 3000
    a, b = np.full((1,), 10.0), np.zeros((T, 1, 1))
    b[-1] = 1
    np.testing.assert_array_equal(gpurnn.linear_scan(a, b), b)


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
def test_empty(shape):
    T, B, N = shape
    a, b, h0, dh = draw("float64", T, B, N)
    h, da, db, dh0 = run(a, b, h0, dh)
    assert h.shape == da.shape == db.shape == shape
    np.testing.assert_array_equal(dh0, np.zeros((B, N)))


@pytest.mark.parametrize("constant", [False, True])
def test_gradients_against_central_differences(constant):
    a, b, h0, dh = draw("float64", 70, constant=constant, radius=0.9)
    _, da, db, dh0 = run(a, b, h0, dh)
    check_gradients(
        lambda inputs: [gpurnn.linear_scan(**inputs)], {"a": a, "b": b, "h0": h0}, [dh],
        {"a": da, "b": db, "h0": dh0}, seed=3,
    )  # fmt: skip


def test_complex_gradients_are_those_of_the_real_and_imaginary_parts():
    a, b, h0, dh = draw("complex128", 40, radius=0.9)
    gradients = run(a, b, h0, dh)[1:]
    names = ("a", "b", "h0")

    def outputs(parts):
        h = gpurnn.linear_scan(*(parts[f"{name}.re"] + 1j * parts[f"{name}.im"] for name in names))
        return [h.real, h.imag]

    def parts(arrays):
        return {f"{name}.{p}": getattr(x, q).copy() for name, x in zip(names, arrays, strict=True)
                for p, q in (("re", "real"), ("im", "imag"))}  # fmt: skip

    check_gradients(outputs, parts((a, b, h0)), [dh.real, dh.imag], parts(gradients), seed=4)


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_any_order_of_threads_gives_the_same_bits(dtype):
    arguments = draw(dtype, 100, constant=True)
    results = []
    for seed in (1, 2):
        with host.execution(seed=seed):
            results.append(run(*arguments))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_pullback_gives_the_same_twice_whatever_became_of_the_arguments():
    a, b, h0, dh = draw("float64", 40)
    h, pullback = gpurnn.linear_scan.vjp(a, b, h0)
    first = pullback(dh)[0]
    for array in (a, b, h0, h):
        array[...] = np.nan
    for again, before in zip(pullback(dh)[0], first, strict=True):
        np.testing.assert_array_equal(again, before)
    assert not any(g.any() for g in pullback(None)[0][1:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("record", golden.family("custom", "ssm_diag"), ids=lambda record: record["name"])
def test_a_diagonal_state_space_model(record, dtype):
    """s' = a s + B x, y = C s' + D x, with all gradients."""
    c = golden.arrays("custom", record["name"], dtype)
    states, pullback = gpurnn.linear_scan.vjp(c["a"], c["x"] @ c["B"].T, c["s0"])
    dstates = c["ct_states"] + c["ct_y"] @ c["C"]
    (da, db, ds0), _ = pullback(dstates)
    rows = {name: array.reshape(-1, array.shape[-1]) for name, array in c.items()}
    flat = db.reshape(-1, db.shape[-1])
    found = {
        "states": states, "y": states @ c["C"].T + c["x"] @ c["D"].T, "g_a": da, "g_s0": ds0,
        "g_x": db @ c["B"] + c["ct_y"] @ c["D"], "g_B": flat.T @ rows["x"],
        "g_C": rows["ct_y"].T @ states.reshape(flat.shape), "g_D": rows["ct_y"].T @ rows["x"],
    }  # fmt: skip
    for name, value in found.items():
        assert_golden(value, c[name], 2 * record["T"] * record["N"] * (record["H"] + record["I"]), name)
