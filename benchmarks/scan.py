"""The parallel scan of linear state-space models compared with the sequential loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import gpurnn
from gpurnn import _dispatch

from . import gpu
from .compare import Disagreement, row

LENGTHS = (1_000, 10_000, 100_000)
ROWS, STATES = 1, 16
DTYPES = {"diagonal": ("float32", "float64", "complex64", "complex128"), "dense": ("float32", "float64")}

Call = Callable[[], Sequence[Any]]


def problem(kind: str, dtype: str, T: int, states: int, xp: Any) -> tuple[Any, ...]:
    """a (N,) or A (N, N), b (T, B, N), and a cotangent of the states; eigenvalues of modulus 0.9 to 0.999."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        values = rng.standard_normal(shape)
        return values + 1j * rng.standard_normal(shape) if dtype.startswith("complex") else values

    if kind == "dense":
        A = 0.999 * np.linalg.qr(normal(states, states))[0]
    else:
        A = normal(states)
        A *= rng.uniform(0.9, 0.999, states) / np.abs(A)
    return tuple(xp.asarray(x.astype(dtype)) for x in (A, normal(T, ROWS, states), normal(T, ROWS, states)))


def loop(xp: Any, A: Any, b: Any, dh: Any) -> Sequence[Any]:
    """The states, and the gradients of A and b, step by step in calls of the array library."""
    dense = A.ndim == 2
    h, db = xp.empty_like(b), xp.empty_like(b)
    state = carried = xp.zeros_like(b[0])
    transposed, back = (A.T, A) if dense else (A, A.conj())
    for t in range(len(b)):
        state = (state @ transposed if dense else transposed * state) + b[t]
        h[t] = state
    for t in reversed(range(len(b))):
        db[t] = dh[t] + carried
        carried = db[t] @ back if dense else back * db[t]
    before = h[:-1].reshape(-1, h.shape[-1])
    after = db[1:].reshape(before.shape)
    return h, after.T @ before if dense else (after * before.conj()).sum(axis=0), db


def scan(xp: Any, A: Any, b: Any, dh: Any) -> Sequence[Any]:
    """The same with gpurnn: `linear_scan`, or `ssm` with an input and an output as wide as the state."""
    if A.ndim == 1:
        h, pullback = gpurnn.linear_scan.vjp(A, b)
        (da, db, _), _ = pullback(dh)
        return h, da, db
    unit = xp.eye(len(A), dtype=A.dtype)
    (h, _), pullback = gpurnn.ssm.vjp(b, A, unit, unit)
    (db, _), grads = pullback((dh, None))
    return h, grads["A"], db


def contenders(kind: str, dtype: str, T: int, states: int, xp: Any) -> dict[str, Call]:
    """Calls, by name, that compute states and gradients once."""
    arrays = problem(kind, dtype, T, states, xp)
    found: dict[str, Call] = {"loop": lambda: loop(xp, *arrays), "scan": lambda: scan(xp, *arrays)}
    if xp is np and kind == "diagonal":

        def on_host() -> Sequence[Any]:
            with gpurnn.use("host"):
                return scan(xp, *arrays)

        found["host executor"] = on_host
    return found


def seconds(call: Call, repeats: int, wait: Callable[[], Any]) -> float:
    """The median time of a call, after one that is not counted."""
    times = []
    for _ in range(1 + repeats):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def agree(calls: dict[str, Call], dtype: str) -> None:
    """Raise an error if the calls do not compute the same."""
    expected = calls["loop"]()
    for name, call in calls.items():
        for value, right in zip(call(), expected, strict=True):
            # Rounding errors of a thousand steps add up: the slowest states remember that far.
            if not float(abs(value - right).max()) <= 1000 * float(np.finfo(dtype).eps) * float(abs(right).max()):
                raise Disagreement(f"{name} and the loop disagree in {dtype}")


def report(lengths: Sequence[int] = LENGTHS, states: int = STATES, repeats: int = 3) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    if gpu.has_gpu():
        import cupy as xp
        from gpurnn.kernels import devices

        where, wait = f"{devices.current().name}, CuPy {xp.__version__}", xp.cuda.Device().synchronize
    else:
        wing = _dispatch.numpy_wing()
        xp, where, wait = np, f"no GPU, NumPy {np.__version__}, the {wing} wing", lambda: None
    yield (
        f"{where}: milliseconds for the states of a linear recurrence and its gradients, {ROWS} row of {states} "
        f"states, medians of {repeats}. The loop takes a step at a time, in calls of the array library. The scan is "
        "gpurnn's, parallel over chunks of time: in calls of the array library; of a diagonal A, on a GPU by a CUDA "
        "kernel, and on the native wing a step at a time in registers. The host executor runs that kernel on one core "
        "of the CPU, one thread after another."
    )
    yield ""
    yield row(["A", "dtype", "T", "loop", "scan", "loop / scan", "host executor"])
    yield row(["---", "---", *["--:"] * 5])
    for kind, dtypes in DTYPES.items():
        for dtype in dtypes:
            for T in lengths:
                calls = contenders(kind, dtype, T, states, xp)
                agree(calls, dtype)
                times = {name: 1e3 * seconds(call, repeats, wait) for name, call in calls.items()}
                told = [f"{times[name]:.3g}" if name in times else "–" for name in ("loop", "scan", "host executor")]
                ratio = f"{times['loop'] / times['scan']:.1f}"
                yield row([kind, dtype, f"{T:,}", *told[:2], ratio, told[2]])
