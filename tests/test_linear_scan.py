"""The linear recurrence h_t = a_t h_{t-1} + b_t on both wings, real and complex."""

from __future__ import annotations

import functools

import golden
import numpy as np
import parity
import pytest
from gpurnn.kernels import host
from gpurnn.kernels import linear_scan as kernels
from gpurnn.reference import linear_scan
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tolerance import GOLDEN_FLOAT64, assert_all_close, assert_close, assert_golden, assert_same, check_gradients

import gpurnn
from gpurnn import reference

pytestmark = pytest.mark.usefixtures("each_wing")

DTYPES = ("float32", "float64", "complex64", "complex128")
SIZES = [1, 2, 31, 32, 33, 63, 64, 65, 200, 1500]


@pytest.fixture
def chunks_of(monkeypatch):
    """Call it to make both wings cut time into chunks of the given number of steps."""

    def cut(steps: int) -> None:
        for wing in (kernels, linear_scan):
            monkeypatch.setattr(wing, "_length", lambda T, columns: min(T, steps))

    return cut


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
    """States and gradients by the definition, in the widest type available."""
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


def roundings(a, b, h0, dh):
    """The total effect on each result if every intermediate value is rounded by epsilon times its size.

    The sizes are those without cancellation: of the same problem in absolute values.
    """
    sizes = [np.abs(x).astype("float64") for x in (a, b, h0, dh)]
    h, _, db, dh0 = by_the_loop(*sizes)
    none = np.zeros_like(sizes[2])
    dh_, _, ddb, ddh0 = by_the_loop(sizes[0], h, none, db)  # errors are scanned as values are
    before = np.concatenate([sizes[2][None], h[:-1]])
    dbefore = np.concatenate([none[None], dh_[:-1]])
    T, B, _ = b.shape
    if a.ndim == 1:
        dda = (ddb * before + db * dbefore + T * B * db * before).sum(axis=(0, 1))
    else:
        dda = ddb * before + db * dbefore + db * before
    return dh_, dda, ddb, ddh0 + dh0


def run(a, b, h0, dh):
    h, pullback = gpurnn.linear_scan.vjp(a, b, h0)
    (da, db, dh0), parameters = pullback(dh)
    assert parameters == {}
    np.testing.assert_array_equal(gpurnn.linear_scan(a, b, h0), h)
    return h, da, db, dh0


def hold(*arguments) -> None:
    """Check every number of the states and gradients to within its own roundings, however large the others are."""
    hold_to(by_the_loop(*arguments), roundings(*arguments), *arguments)


def hold_to(exact, units, *arguments) -> None:
    # A step rounds a product and a sum by half an epsilon each, both in the map of a chunk and in its loop. Each part
    # of a complex product is two products and a sum.
    terms = 4 if np.iscomplexobj(arguments[0]) else 2
    results = zip(("h", "da", "db", "dh0"), run(*arguments), exact, units, strict=True)
    for name, found, expected, unit in results:
        assert found.dtype == arguments[0].dtype
        assert_close(
            found / unit.astype(found.real.dtype), (expected / unit).astype(found.dtype), terms, name, magnitude=1
        )


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("T", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_states_and_gradients(dtype, T, constant):
    hold(*draw(dtype, T, constant=constant))


@pytest.mark.parametrize("each_wing", [pytest.param("host", marks=pytest.mark.kernels)], indirect=True)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_agree_with_the_definition(kernel_wing, dtype, constant):
    *arguments, dh = draw(dtype, 200, constant=constant)
    results = []
    for wing, to in ((kernel_wing.module, kernel_wing.to), (reference, lambda arrays: arrays)):
        h, saved = wing.linear_scan_forward(*to(arguments), training=True)
        results.append((h, wing.linear_scan_backward(saved, to(dh))))
    assert_all_close(kernel_wing.back(results[0]), results[1], 400)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("T", [1, 2, 4, 5, 6, 9, 10, 11, 23, 51])
@pytest.mark.parametrize(("steps", "dtype"), [(5, "float32"), (5, "complex128"), (1, "complex64")])
def test_any_number_of_chunks(chunks_of, steps, dtype, T, constant):
    chunks_of(steps)
    hold(*draw(dtype, T, B=3, N=5, constant=constant))


@pytest.mark.parametrize("constant", [False, True])
def test_more_columns_than_a_block_has_threads(chunks_of, constant):
    chunks_of(3)
    hold(*draw("float32", 8, B=7, N=41, constant=constant))


def test_numpy_cuts_time_where_there_are_few_columns():
    for T, columns, length in ((255, 1, 255), (256, 128, 16), (256, 129, 256), (100_000, 16, 316), (0, 1, 0)):
        assert linear_scan._length(T, columns) == length


def test_the_cut_of_time():
    """Chunks just fill a GPU, are few enough to be processed in sequence, and cover all steps."""
    for T in (1, 31, 63, 64, 1000, 100_000, 10**7):
        for columns in (1, 100, 10_000, 70_000, 10**6):
            length = kernels._length(T, columns)
            chunks = -(-T // length)
            assert 1 <= length <= T
            assert (chunks - 1) * columns < kernels._THREADS
            assert chunks <= T**0.5 + 2
    assert kernels._length(100_000, 1) == 316
    assert kernels._length(1000, 70_000) == 1000


@functools.cache
def long_problem(dtype, constant):
    """Arguments of 20,000 steps and their exact results, which take much longer to compute than with any wing."""
    a, b, h0, dh = draw(dtype, 20_000, B=1, N=4, constant=constant)
    radius = np.array([0.99, 0.99, 1, 1])
    a *= (radius / np.abs(a)).astype(a.real.dtype)
    arguments = a, b, h0, dh
    return by_the_loop(*arguments), roundings(*arguments), arguments


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_thousand_steps(dtype, constant):
    exact, units, arguments = long_problem(dtype, constant)
    hold_to(exact, units, *(a.copy() for a in arguments))


@pytest.mark.parametrize("T", [3, 40, 100])
def test_growing_states(T):
    a, b, h0, dh = draw("float64", T)
    hold(1.5 * np.sign(a), b, h0, dh)


def as_the_loop(a, b, h0) -> np.ndarray:
    """Check that the states, infinities and NaN included, equal those of a loop in the arrays' own dtype."""
    with np.errstate(all="ignore"):
        h, expected = gpurnn.linear_scan(a, b, h0), [h0]
        for t in range(len(b)):
            expected.append((a if a.ndim == 1 else a[t]) * expected[-1] + b[t])
    np.testing.assert_array_equal(h, np.stack(expected[1:]))
    return h


# Powers of two, so that nothing is rounded. Their products over a chunk, 2^200 or more, overflow float32.


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_states_that_start_small_grow_and_shrink_where_products_overflow(chunks_of, dtype):
    chunks_of(50)
    a = np.repeat(np.array([16, 16, 1 / 16, 16, 1 / 16, 1], dtype), 25)[:, None, None]
    h = as_the_loop(a, np.zeros_like(a), np.full((1, 1), 2.0**-110, dtype))
    assert h[49, 0, 0] == h[99, 0, 0] == 2.0**90
    assert h[149, 0, 0] == 2.0**-10


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_state_of_zero_stays_zero_where_products_overflow(chunks_of, dtype):
    chunks_of(50)
    b = np.zeros((220, 1, 1), dtype)
    b[-1] = 1
    as_the_loop(np.full((1,), 16, dtype), b, np.zeros((1, 1), dtype))


@pytest.mark.parametrize(("dtype", "unit"), [("float32", 1), ("complex64", 1), ("complex64", 1j)])
def test_states_that_cancel_where_the_sum_of_a_chunk_overflows(chunks_of, dtype, unit):
    """This includes overflow in only one part of a complex number."""
    chunks_of(2)
    b = np.tile(np.array([1, 1, -1, -1], dtype) * np.array(unit * 2.0**127, dtype), 5)[:, None, None]
    h = as_the_loop(np.ones((1,), dtype), b, -b[0])
    np.testing.assert_array_equal(h[:4, 0, 0], [0, b[0, 0, 0], 0, b[2, 0, 0]])


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_gradient_that_starts_small_where_products_overflow(chunks_of, dtype):
    chunks_of(50)
    t = np.arange(170)
    a = np.where((t >= 70) & (t < 120), 16, 1)[:, None, None].astype(dtype)
    dh = np.zeros_like(a)
    dh[160] = 2.0**-120
    (da, db, dh0), _ = gpurnn.linear_scan.vjp(a, 0 * dh, np.full((1, 1), 2.0**-110, dtype))[1](dh)
    after = np.where(t > 160, 0, 2.0 ** (4.0 * np.clip(119 - t, 0, 50) - 120))
    before = 2.0 ** (4.0 * np.clip(t - 70, 0, 50) - 110)
    np.testing.assert_array_equal(db[:, 0, 0], after.astype(dtype))
    np.testing.assert_array_equal(da[:, 0, 0], (after * before).astype(dtype))
    assert dh0[0, 0] == after[0]


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
@pytest.mark.parametrize(("dtype", "large"), [("float32", 1e30), ("complex64", 1e30), ("float64", 1e300)])
def test_a_state_survives_where_products_underflow(chunks_of, dtype, large, steps):
    """The states fall from 1e30 to 1e-18 and grow to 1e30 again; the product of the first four factors is 1e-48."""
    chunks_of(steps)
    factor = large**-0.4
    a = np.array([factor] * 4 + [1 / factor] * 4 + [1] * 8, dtype)[:, None, None]
    b, h0 = np.zeros_like(a), np.full((1, 1), large, dtype)
    exact = h0.astype(np.clongdouble) * np.cumprod(a.astype(np.clongdouble), axis=0)
    bound = 32 * np.finfo(dtype).eps
    assert (np.abs(gpurnn.linear_scan(a, b, h0) - exact) <= bound * np.abs(exact)).all()
    # The same backward in time: db_7 is 1e30, and the factors of the eight steps are in reverse order.
    dh, exact = np.zeros_like(a), exact[:8]
    dh[7] = large
    reverse = np.concatenate([a[7::-1], a[8:]])
    (_, db, dh0), _ = gpurnn.linear_scan.vjp(reverse, b)[1](dh)
    assert (np.abs(db[6::-1] - exact[:7]) <= bound * np.abs(exact[:7])).all()
    assert abs(dh0[0, 0] - exact[7, 0, 0]) <= bound * abs(exact[7, 0, 0])


@pytest.mark.parametrize("each_wing", ["reference", pytest.param("host", marks=pytest.mark.kernels)], indirect=True)
@pytest.mark.parametrize("unit", [np.float32(1), np.complex64(1), np.complex64(1j)], ids=str)
@pytest.mark.parametrize("falling", [False, True])
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_powers_of_two_are_those_of_the_loop(falling, unit, seed, steps):
    """Nothing is rounded, so that every state is exact if none underflows, infinities included."""
    rng = np.random.default_rng(seed)
    aims = rng.integers(-125, 128, rng.integers(2, 30))
    first, *_ = aims = -np.sort(-aims) if falling else aims
    exponents = np.clip(np.diff(aims), -120, 120).astype(float)
    exponents += rng.choice([0, 5], p=[0.95, 0.05], size=exponents.shape)  # some states overflow
    assume((first + np.cumsum(exponents) > -126).all())
    with pytest.MonkeyPatch.context() as patch:
        for wing in (kernels, linear_scan):
            patch.setattr(wing, "_length", lambda T, columns: min(T, steps))
        a = (unit * np.exp2(exponents))[:, None, None].astype(unit.dtype)
        as_the_loop(a, np.zeros_like(a), np.full((1, 1), np.exp2(float(first)), unit.dtype))


@pytest.mark.parametrize("steps", [7, 50])
def test_infinities_and_nan_stand_where_the_loop_has_them(chunks_of, steps):
    chunks_of(steps)
    a, b, h0 = np.full((60, 1, 6), 0.25, "float32"), np.zeros((60, 1, 6), "float32"), np.ones((1, 6), "float32")
    b[20, 0, 0] = np.inf
    b[20, 0, 1], a[33, 0, 1] = np.inf, 0  # infinity times zero is NaN
    b[20, 0, 2], b[52, 0, 2] = np.inf, -np.inf
    b[20, 0, 3] = np.nan
    a[20, 0, 4] = np.inf
    h = as_the_loop(a, b, h0)[-1, 0]
    assert np.isinf(h[[0, 4]]).all()
    assert np.isnan(h[1:4]).all()
    assert np.isfinite(h[5])


@pytest.mark.parametrize("bad", [np.inf, 1e308, -1e300])
@pytest.mark.parametrize("constant", [False, True])
def test_a_row_has_the_same_bits_whatever_the_others_hold(constant, bad):
    """Only the rows that need it have the steps of a chunk taken one by one."""
    a, b, h0, dh = draw("float64", 300, B=3, constant=constant)
    results = []
    for value in (0.0, bad):
        b[40, 1] = value
        with np.errstate(all="ignore"):
            h, pull = gpurnn.linear_scan.vjp(a, b, h0)
            (_, db, dh0), _ = pull(dh)
        results.append((h[:, ::2], db, dh0, gpurnn.linear_scan(a, b, h0)[:, ::2]))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_at_any_address(dtype):
    arguments = draw(dtype, 5)
    shifted = []
    for array in arguments:
        numbers = np.zeros(2 * array.size + 1, array.real.dtype)[1:]
        shifted.append(numbers.view(dtype).reshape(array.shape))
        shifted[-1][...] = array
    assert_all_close(run(*shifted), run(*arguments), terms=0)


@pytest.mark.parametrize("each_wing", [pytest.param("host", marks=pytest.mark.kernels)], indirect=True)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_give_the_same_bits_by_packets_and_one_by_one(dtype, constant, monkeypatch):
    """Both four steps at once and the remaining steps, in several chunks."""
    widths = []
    launch = kernels._Chunks.launch
    monkeypatch.setattr(kernels._Chunks, "launch", lambda chunks, *args, **options: (
        widths.append(chunks.width), launch(chunks, *args, **options)))  # fmt: skip
    arguments = draw(dtype, 135, N=4, constant=constant)
    packets = run(*arguments)
    assert set(widths) == {16 // np.dtype(dtype).itemsize}
    widths.clear()
    for k in range(4):
        alone = run(*(parity.beside_a_packet(x) if k == i else x for i, x in enumerate(arguments)))
        assert_all_close(alone, packets, terms=0)
    assert 1 in widths
    hold(*arguments)


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


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_any_order_of_threads_gives_the_same_bits(dtype, constant):
    arguments = draw(dtype, 100, constant=constant)
    results = []
    for seed in (1, 2):
        with host.execution(seed=seed):
            results.append(run(*arguments))
    assert_all_close(*results, terms=0)


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


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("record", golden.family("ssm", "scan_complex"), ids=lambda record: record["name"])
def test_complex_gradients_are_those_of_torch(record, dtype):
    c = {name: x.astype(dtype) for name, x in golden.arrays("ssm", record["name"]).items()}
    expected = golden.arrays("ssm", record["name"])
    found = run(c["a"], c["b"], c["h0"], c["ct_h"])
    for name, value in zip(("h", "g_a", "g_b", "g_h0"), found, strict=True):
        for part in ("real", "imag"):
            assert_golden(getattr(value, part), getattr(expected[name], part), 8 * record["T"] * record["N"], name)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize(
    "record", golden.family("ssm", "ssm") + golden.family("ssm", "ssm_pre"), ids=lambda record: record["name"]
)
def test_a_state_space_model_in_the_basis_of_its_eigenvectors(record, dtype):
    """s' = A s + B x with A = V diag(a) V^-1: z = V^-1 s is a scan. y = C s + D x, s before or after the step."""
    c = golden.arrays("ssm", record["name"])
    a, V = np.linalg.eig(c["A"].astype("complex128"))
    W = np.linalg.inv(V)
    b, z0 = c["x"] @ c["B"].T @ W.T, c["s0"] @ W.T
    z, pullback = gpurnn.linear_scan.vjp(*(x.astype(dtype) for x in (a, b, z0)))
    after = (z @ V.T).real
    before = np.concatenate([c["s0"][None], after[:-1]])
    states = before if record["family"] == "ssm_pre" else after
    dstates, dfirst = c["ct_states"] + c["ct_y"] @ c["C"], 0.0
    if record["family"] == "ssm_pre":  # the state before a step is the one after the previous step
        dfirst, dstates = dstates[0], np.concatenate([dstates[1:], 0 * dstates[:1]])
    (da, db, dz0), _ = pullback((dstates @ V.conj()).astype(dtype))
    dbx = (db @ W.conj()).real
    found = {
        "states": states, "y": states @ c["C"].T + c["x"] @ c["D"].T,
        "g_s0": (dz0 @ W.conj()).real + dfirst, "g_x": dbx @ c["B"] + c["ct_y"] @ c["D"],
        "g_A": np.einsum("tbi,tbj->ij", dbx, before), "g_B": np.einsum("tbi,tbj->ij", dbx, c["x"]),
        "g_C": np.einsum("tbi,tbj->ij", c["ct_y"], states), "g_D": np.einsum("tbi,tbj->ij", c["ct_y"], c["x"]),
    }  # fmt: skip
    # On the way in and out, a small change of z changes s by up to the condition number of V.
    terms = 8 * record["T"] * record["N"] * record["H"] * int(np.ceil(np.linalg.cond(V)))
    assert found.keys() == c.keys() - {"x", "s0", "A", "B", "C", "D", "ct_y", "ct_states"}
    for name, value in found.items():
        assert_golden(value.astype(da.real.dtype), c[name], terms, name)
    size = float(np.abs(da).max())
    expected = np.diag(V.conj().T @ c["g_A"] @ W.conj().T).astype(dtype)
    assert_close(da, expected, terms, "da", at_least=GOLDEN_FLOAT64 if dtype == "complex128" else 0.0, magnitude=size)
