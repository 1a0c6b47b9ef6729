"""Every family of kernels compared with the reference, which computes the same in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpurnn.kernels import dtypes
from gpurnn.kernels.recurrence import plan

from gpurnn import cells, kernels, reference
from gpurnn.optimizers import KINDS

from .cases import Size

Compute = Callable[[Any, Callable[[Any], Any]], Any]
"""Computes arrays with a wing's functions, and with a function that takes NumPy arrays to the wing's device."""

SIZES = (Size(9, 5, 3, 24), Size(6, 33, 8, 96))
"""The sizes of recurrences. The first has lengths, resets and a mask. Both have two directions."""


@dataclass(frozen=True)
class Check:
    """A check of a function of the wings, or of a forward pass with its backward pass."""

    family: str
    case: str
    dtype: str
    terms: int
    """Terms of the longest sum behind a number."""
    compute: Compute
    schedule: str | None = None

    @property
    def what(self) -> dict[str, str | None]:
        """A description of the check."""
        return {"family": self.family, "case": self.case, "schedule": self.schedule, "dtype": self.dtype}

    def run(self, xp: Any) -> dict[str, float | bool]:
        """The largest error and its bound, and whether the results agree.

        An error is relative to the largest number of its array, and counted in epsilons of the dtype.
        """
        with plan.schedule(self.schedule) if self.schedule else contextlib.nullcontext():
            found = _flat(self.compute(kernels, xp.asarray))
        expected = _flat(self.compute(reference, _wide))
        back = getattr(xp, "asnumpy", np.asarray)
        error = max(_error(back(f), e, self.dtype) for f, e in zip(found, expected, strict=True))
        return {"largest": round(error, 2), "bound": self.terms, "agrees": error <= self.terms}


def _wide(array: np.ndarray) -> np.ndarray:
    """The array in double precision, if it has fractions."""
    return array.astype(np.result_type(array.dtype, np.float64)) if array.dtype.kind in "fc" else array.copy()


def _flat(nested: Any) -> list[Any]:
    if isinstance(nested, dict):
        nested = list(nested.values())
    if isinstance(nested, (tuple, list)):
        return [array for entry in nested for array in _flat(entry)]
    return [] if nested is None else [nested]


def _error(found: np.ndarray, expected: np.ndarray, dtype: str) -> float:
    difference = np.abs(found - expected).max()
    return float(difference / (np.finfo(dtype).eps * max(np.abs(expected).max(), np.finfo(dtype).tiny)))


def checks(*, small: bool = False, clusters: bool = True) -> Iterator[Check]:
    """All checks; or those of a few cells in one dtype, for a tool under which they take many times as long.

    The cluster and scatter schedules are left out where a device or a cell does not have them.
    """
    for cell in _cells(small):
        lacks = set() if clusters and not cell.sums_over_units else {"cluster"}
        if not plan.exchanges_sums(cell, dtypes.TABLE["float32"]):
            lacks.add("scatter")
        for schedule in (s for s in plan.SCHEDULES if s not in lacks):
            for size in SIZES[:1] if small else SIZES:
                yield _recurrence(cell, schedule, size, "float32")
        if not small:
            yield _recurrence(cell, "persistent", SIZES[0], "float64")
        yield _step(cell)
    for dtype in ("float32",) if small else ("float32", "float64"):
        yield from _others(dtype)


def _cells(small: bool) -> list[cells.Cell]:
    sums = cells.LSTM(layer_norm=True, proj_size=7)
    if small:
        return [cells.LSTM(), cells.GRU(reset_after=False), sums]
    brought = [variant for kind in cells.CELLS.values() for variant in kind.variants()]
    return [*brought, sums, cells.LSTM(proj_size=7), cells.GRU(layer_norm=True)]


def _drawn(dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def _weights(cell: cells.Cell, I: int, H: int, dtype: str) -> dict[str, np.ndarray]:
    shapes = cell.shapes(input_size=I, hidden_size=H)
    return {name: _drawn(dtype, *shape) / np.dtype(dtype).type(H**0.5) for name, shape in shapes.items()}


def _recurrence(cell: cells.Cell, schedule: str, size: Size, dtype: str) -> Check:
    T, B, I, H = size
    widths, options = cell.state_sizes(H), {}
    if size == SIZES[0]:
        lengths, resets = np.arange(B) * 7 % (T + 1), np.zeros((T, B), bool)
        resets[T // 2, ::2] = True
        options = {"lengths": lengths, "resets": resets, "mask": np.abs(_drawn(dtype, 2, B, widths[0]))}

    def compute(wing: Any, to: Any) -> Any:
        weights = tuple({name: to(w) for name, w in _weights(cell, I, H, dtype).items()} for _ in range(2))
        state = tuple(to(_drawn(dtype, 2, B, width)) for width in widths)
        given = {name: to(value) for name, value in options.items()}
        x, dy = to(_drawn(dtype, T, B, I)), to(_drawn(dtype, T, B, 2 * widths[0]))
        y, final, saved = wing.recurrence_forward(cell, x, weights, state, **given, training=True)
        return y, final, wing.recurrence_backward(saved, dy, state)

    return Check("recurrence", f"{cell} {tuple(size)}", dtype, 2 * T * (I + H) + T * B, compute, schedule)


def _step(cell: cells.Cell) -> Check:
    B, H = 5, 20
    dtype = "float32"

    def compute(wing: Any, to: Any) -> Any:
        weights = {n: to(w) for n, w in _weights(cell, 1, H, dtype).items() if not n.endswith("_ih")}
        state = tuple(to(_drawn(dtype, B, width)) for width in cell.state_sizes(H))
        new, saved = wing.cell_forward(cell, to(_drawn(dtype, B, cell.gates * H)), state, weights)
        gradients = tuple(to(_drawn(dtype, B, width)) for width in cell.state_sizes(H))
        return new, wing.cell_backward(saved, gradients), wing.cell_gates(saved)

    return Check("single step", str(cell), dtype, 4 * H + B, compute)


def _others(dtype: str) -> Iterator[Check]:
    B, S, A = 3, 21, 40

    def attention(T: int, additive: bool) -> Compute:
        def compute(wing: Any, to: Any) -> Any:
            arrays = (to(_drawn(dtype, n, B, A)) for n in (T, S, S))
            v = to(_drawn(dtype, A)) if additive else None
            lengths = to(np.array([21, 1, 13]))
            context, alpha, saved = wing.attention_forward(*arrays, v, lengths=lengths, scale=0.2, training=True)
            cotangents = to(_drawn(dtype, T, B, A)), to(_drawn(dtype, T, B, S))
            return context, alpha, wing.attention_backward(saved, *cotangents)

        return compute

    def scan(kind: str) -> Compute:
        def compute(wing: Any, to: Any) -> Any:
            def drawn(*shape: int) -> Any:
                values = _drawn(dtype, *shape)
                return to(values if kind == "real" else values + np.dtype(dtype).type(0.5) * 1j * values[..., ::-1])

            a = drawn(7) / 4
            h, saved = wing.linear_scan_forward(a, drawn(300, 2, 7), drawn(2, 7), training=True)
            return h, wing.linear_scan_backward(saved, drawn(300, 2, 7))

        return compute

    def independent(wing: Any, to: Any) -> Any:
        steps = np.arange(120).reshape(60, 2)
        marks = {"exists": to(steps % 7 != 0), "resets": to(steps % 11 == 0)}
        arrays = to(_drawn(dtype, 60, 2, 7)), to(_drawn(dtype, 2, 7)), to(_drawn(dtype, 2, 7))
        h, saved = wing.independent_forward(cells.IndRNN("tanh"), *arrays, **marks, training=True)
        return h, wing.independent_backward(saved, to(_drawn(dtype, 60, 2, 7)))

    def dense(wing: Any, to: Any) -> Any:
        x, weight, bias = to(_drawn(dtype, 30, 17)), to(_drawn(dtype, 9, 17)), to(_drawn(dtype, 9))
        return wing.dense_forward(x, weight, bias), wing.dense_backward(x, weight, to(_drawn(dtype, 30, 9)))

    def cross_entropy(V: int) -> Compute:
        def compute(wing: Any, to: Any) -> Any:
            labels, row_weights = to(np.arange(7) * 97 % V), to(np.arange(7.0).astype(dtype))
            losses, saved = wing.cross_entropy_forward(
                to(_drawn(dtype, 7, V)), labels, row_weights, label_smoothing=0.1, training=True
            )
            return losses, wing.cross_entropy_backward(saved, to(_drawn(dtype, 7)))

        return compute

    def mse(wing: Any, to: Any) -> Any:
        errors, saved = wing.mse_forward(to(_drawn(dtype, 3, 50)), to(_drawn(dtype, 50, 3).T.copy()), training=True)
        return errors, wing.mse_backward(saved, to(_drawn(dtype, 3, 50)))

    def dropout(wing: Any, to: Any) -> Any:
        return wing.dropout_mask(to(np.zeros(1, dtype)), (5, 7), 0.4, 3, 9)

    def embedding(wing: Any, to: Any) -> Any:
        indices = to(np.arange(40) ** 2 % 11)
        gathered = wing.embedding_gather(to(_drawn(dtype, 11, 6)), indices)
        return gathered, wing.embedding_scatter(indices, to(_drawn(dtype, 40, 6)), 11)

    def norms(wing: Any, to: Any) -> Any:
        arrays = [to(_drawn(dtype, *shape)) for shape in ((3,), (50, 100), (7, 1))]
        norm = wing.global_norm(arrays)
        return norm, wing.scaled(arrays, norm)

    def update(kind: str) -> Compute:
        def compute(wing: Any, to: Any) -> Any:
            made: Any = KINDS[kind]
            optimizer, shapes = made(), ((3,), (50, 100), (7, 1))
            params, grads = ([to(_drawn(dtype, n, *shape)[0]) for shape in shapes] for n in (1, 2))
            slots = {
                name: None if value is None else [to(np.abs(_drawn(dtype, 3, *shape)[0])) for shape in shapes]
                for name, value in optimizer.slots(optimizer.lr).items()
            }
            scalars = optimizer.scalars(3, optimizer.lr)
            wing.optimizer_update(kind, params, grads, slots, [1.0, 0.5, 1.0], 0.01, scalars)
            return params, slots

        return compute

    for T, score, additive in ((6, "dot product", False), (70, "dot product", False), (6, "additive", True)):
        yield Check("attention", f"{score}, {T} steps", dtype, 4 * (A + S + T), attention(T, additive))
    for kind in ("real", "complex"):
        yield Check("linear scan", kind, dtype, 4 * 300 * 2, scan(kind))
    yield Check("independent units", "", dtype, 4 * 60, independent)
    yield Check("dense", "", dtype, 2 * 30, dense)
    for V in (130, 3000):
        yield Check("cross-entropy", f"{V} classes", dtype, 2 * V, cross_entropy(V))
    yield Check("mean squared error", "", dtype, 4, mse)
    yield Check("dropout", "", dtype, 1, dropout)
    yield Check("embedding", "", dtype, 40, embedding)
    yield Check("norms", "", dtype, 64, norms)
    for kind in KINDS:
        yield Check("optimizer", kind, dtype, 64, update(kind))
