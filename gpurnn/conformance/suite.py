"""The checks of a kernel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import resources
from io import BytesIO
from typing import Any, Literal, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from .. import _dispatch, functional
from ..cells import Activation
from .kernels import KINDS, Case, Function, Kernel, Outputs
from .report import Report, Result, Status

Array = NDArray[Any]

STEP = float(np.finfo("float64").eps) ** 0.2
"""The step of a central difference of fourth order that balances its two errors."""

DIFFERENCE = 100 * float(np.finfo("float64").eps) ** 0.8
"""The bound of the difference's error, relative to the terms of the function."""


class Failed(Exception):
    """A result of a kernel is wrong; the message says which."""


def run(
    kernel: Kernel | Callable[..., Any],
    cell: str | None = None,
    *,
    library: str = "numpy",
    form: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Report:
    """Run every check on a kernel.

    Parameters
    ----------
    kernel : callable or Kernel
        A function of the form that `gpurnn.conformance` describes, or a kernel that `find` returned.
    cell : {"rnn", "lstm", "gru", "indrnn", "mingru", "minlstm"}
        The cell, if the kernel is a function.
    library : {"numpy", "torch", "jax", "cupy"}
        The library of the arrays that a function takes.
    form : dict, optional
        The options of the cell that a function always has, such as ``{"reset_after": True}``.
    seed : int
        The seed of the random numbers.

    Returns
    -------
    report : Report

    Examples
    --------
    >>> from gpurnn import conformance
    >>> (kernel,) = conformance.find("gpurnn", cell="gru")
    >>> report = conformance.run(kernel)
    >>> report.passed
    True
    """
    if not isinstance(kernel, Kernel):
        if cell not in KINDS:
            raise ValueError(f"conformance.run: cell is {cell!r}, expected one of {', '.join(map(repr, KINDS))}")
        kernel = Function(kernel, cell, library, dict(form or {}))
    return Report(kernel.name, kernel.cell, tuple(_Suite(kernel, seed).results()))


def _bound(case: Case) -> float:
    """The rounding error of a recurrence relative to its magnitude: epsilon for each term of its longest sum.

    A gate's relative error is the absolute error of its argument, which grows with the input.
    """
    (T, B, I), H = case.x.shape, case.hidden_size
    size = max(1.0, float(np.abs(case.x).max(initial=0)) / 4)
    return (2 * T * (I + H) + T * B) * float(np.finfo(case.x.dtype).eps) * size


def _close(name: str, actual: Array, expected: Array, relative: float, absolute: float = 0.0) -> None:
    if actual.shape != expected.shape:
        raise Failed(f"{name} has shape {actual.shape}, expected {expected.shape}")
    if not expected.size:
        return
    scale = float(np.abs(expected).max())
    error = float(np.abs(actual.astype("float64") - expected).max())
    limit = relative * scale + relative * float(np.finfo(actual.dtype).eps) + absolute
    if not error <= limit:
        raise Failed(f"{name} is off by {error:.2g}, at most {limit:.2g} is rounding; its magnitude is {scale:.2g}")


def _same(name: str, actual: Array, expected: Array, what: str) -> None:
    if actual.shape != expected.shape or not np.array_equal(actual, expected, equal_nan=True):
        raise Failed(f"{name} differs {what}")


class _Suite:
    def __init__(self, kernel: Kernel, seed: int) -> None:
        self.kernel, self.seed = kernel, seed
        self.dtypes: tuple[str, ...] = kernel.dtypes

    # ---- the definition

    def definition(self, case: Case) -> Outputs:
        op: Any = getattr(functional, self.kernel.cell)
        y, state = op(**self.arguments(case))
        return {"y": y, **dict(zip(("h", "c"), state if isinstance(state, tuple) else (state,), strict=False))}

    def definition_gradients(self, case: Case) -> dict[str, Array]:
        op: Any = getattr(functional, self.kernel.cell)
        _, pullback = op.vjp(**self.arguments(case))
        dstate: Any = case.dstate if self.kernel.cell == "lstm" else case.dstate[0]
        (dx, dstate0), grads = pullback((case.dy, dstate))
        states = dict(zip(("h", "c"), dstate0 if isinstance(dstate0, tuple) else (dstate0,), strict=False))
        found = {"x": dx, **grads, **states}
        return {name: found[name] for name in case.arrays()}

    def arguments(self, case: Case) -> dict[str, Any]:
        state: Any = case.state
        if state is not None and self.kernel.cell != "lstm":
            state = state[0]
        given = {"x": case.x, **case.weights, "state": state, **self.kernel.form, **case.keywords()}
        # The definition has no arguments for options that a parameter implies, or that act only in training.
        kind = KINDS[self.kernel.cell]
        return {n: a for n, a in given.items() if n not in kind.options() or n in kind.function_options()}

    # ---- cases

    def case(
        self, dtype: str, *, T: int = 5, B: int = 3, I: int = 3, H: int = 4, scale: float = 1.0,
        lengths: Array | None = None, resets: bool = False, bias: bool = True, state: bool = True, **options: Any,
    ) -> Case:  # fmt: skip
        rng = np.random.default_rng(self.seed)
        description = KINDS[self.kernel.cell](**{**self.kernel.form, **options})

        def normal(*shape: int, scale: float = 1.0) -> Array:
            return (scale * rng.standard_normal(shape)).astype(dtype)

        shapes = description.shapes(input_size=I, hidden_size=H)
        names = [n for n in shapes if n in description.needed or bias]
        widths = description.state_sizes(H)
        return Case(
            x=normal(T, B, I, scale=scale),
            weights={n: normal(*shapes[n], scale=0.5) for n in names},
            state=tuple(normal(B, width) for width in widths) if state else None,
            dy=normal(T, B, widths[0]),
            dstate=tuple(normal(B, width) for width in widths),
            lengths=lengths,
            resets=rng.random((T, B)) < 0.4 if resets else None,
            options=options,
        )

    def rows(self) -> Iterator[tuple[str, Callable[[str], Case]]]:
        """The options, each with a function from a dtype to its case."""
        yield "plain", self.case
        yield "without biases", lambda dtype: self.case(dtype, bias=False)
        yield "without a state", lambda dtype: self.case(dtype, state=False)
        yield "lengths", lambda dtype: self.case(dtype, lengths=np.array([5, 2, 4]))
        yield "lengths of 0", lambda dtype: self.case(dtype, lengths=np.array([5, 0, 4]))
        yield "resets", lambda dtype: self.case(dtype, resets=True)
        yield "resets, lengths", lambda dtype: self.case(dtype, resets=True, lengths=np.array([5, 2, 4]))
        description = KINDS[self.kernel.cell]
        usual = description(**self.kernel.form)
        for option, kind in description.options().items():
            for value in _other_values(option, kind, getattr(usual, option)):
                yield f"{option}={value!r}", partial(self.case, **{option: value})
        yield "one step", lambda dtype: self.case(dtype, T=1)
        yield "one row", lambda dtype: self.case(dtype, B=1)
        yield "one unit", lambda dtype: self.case(dtype, H=1, I=1)
        yield "odd sizes", lambda dtype: self.case(dtype, T=7, B=5, I=13, H=37)
        yield "many steps", lambda dtype: self.case(dtype, T=65, B=2)
        yield "large inputs", lambda dtype: self.case(dtype, scale=1e3)

    # ---- checks

    def results(self) -> Iterator[Result]:
        yield from self.of_dtypes()
        for option, make in self.rows():
            for dtype in self.dtypes:
                yield from self.of_row(option, make(dtype), dtype)
        yield from self.of_golden_cases()
        yield from self.of_bad_input()

    def attempt(self, option: str, check: str, dtype: str, call: Callable[[], None]) -> Result:
        """Run a check, and turn whatever the kernel raises into a result."""
        status: Status = "ok"
        detail = ""
        try:
            with np.errstate(all="ignore"):
                call()
        except Failed as failure:
            status, detail = "fail", str(failure)
        except Exception as error:
            status = "unsupported" if _is_unsupported(error) else "error"
            detail = f"{type(error).__name__}: {error}" if status == "error" else str(error)
        return Result(option, check, dtype, status, detail.strip().partition("\n")[0])

    def of_dtypes(self) -> Iterator[Result]:
        supported = []
        for dtype in self.dtypes:
            case = self.case(dtype)

            def forward(case: Case = case, dtype: str = dtype) -> None:
                for name, array in self.kernel.forward(case).items():
                    if array.dtype.name != dtype:
                        raise Failed(f"{name} has dtype {array.dtype.name}, expected {dtype}")

            result = self.attempt(dtype, "output", dtype, forward)
            yield result
            if result.status in ("ok", "fail"):
                supported.append(dtype)
        self.dtypes = tuple(supported)

    def of_row(self, option: str, case: Case, dtype: str) -> Iterator[Result]:
        wide = _wide(case)
        relative = _bound(case)
        with _dispatch.use("reference"):
            expected = self.definition(wide)
        found: Outputs = {}

        def output() -> None:
            found.update(self.kernel.forward(case))
            for name, array in expected.items():
                _close(name, found[name], array, relative)

        first = self.attempt(option, "output", dtype, output)
        yield first
        if first.status == "unsupported" or not found:
            return
        yield self.attempt(option, "same bits", dtype, lambda: self.reruns(case, found))
        gradient = self.attempt(option, "gradient", dtype, lambda: self.gradient(case, wide, relative))
        yield gradient
        if dtype == "float64" and gradient.status != "unsupported":
            yield self.attempt(option, "differences", dtype, lambda: self.differences(case))
        if case.x.shape[1] > 1:
            yield self.attempt(option, "rows", dtype, lambda: self.permuted(case, found, relative))
        if case.lengths is None and case.x.shape[0] < 10:
            yield self.attempt(option, "steps", dtype, lambda: self.steps(case, found, relative))
        if case.lengths is not None:
            yield self.attempt(option, "padding", dtype, lambda: self.padding(case, found, relative, gradient.status))

    def reruns(self, case: Case, found: Outputs) -> None:
        before = {name: array.copy() for name, array in case.arrays().items()}
        for name, array in self.kernel.forward(case).items():
            _same(name, array, found[name], "from run to run")
        for name, array in case.arrays().items():
            _same(name, array, before[name], "after a call: the kernel changed its argument")

    def gradient(self, case: Case, wide: Case, relative: float) -> None:
        found = self.kernel.gradients(case)
        with _dispatch.use("reference"):
            expected = self.definition_gradients(wide)
        # The slope of a saturated gate is a small difference of numbers near 1, with their rounding as its error.
        (T, B, _), most = case.x.shape, max(float(np.abs(a).max(initial=1)) for a in (case.x, case.dy, *case.dstate))
        absolute = T * B * float(np.finfo(case.x.dtype).eps) * most
        for name, array in expected.items():
            if name not in found:
                raise Failed(f"there is no gradient of {name}")
            _close(f"the gradient of {name}", found[name], array, relative, absolute)
        for name, array in self.kernel.gradients(case).items():
            if name in found:
                _same(f"the gradient of {name}", array, found[name], "from run to run")

    def differences(self, case: Case) -> None:
        """Check gradients against differences of the kernel's own outputs; a kink of a relu shows as two slopes."""
        found, rng = self.kernel.gradients(case), np.random.default_rng(self.seed + 1)
        cotangents = {"y": case.dy, **dict(zip(("h", "c"), case.dstate, strict=False))}
        terms = sum(float(np.abs(cotangents[n] * a).sum()) for n, a in self.kernel.forward(case).items())
        for name, value in case.arrays().items():
            if not value.size:
                continue
            direction = rng.standard_normal(value.shape)
            direction /= max(float(np.linalg.norm(direction)) * max(1.0, 1e-3 * float(np.abs(value).max())), 1e-30)
            direction *= float(np.abs(value).max()) if np.abs(value).max() > 1 else 1.0

            def along(step: float, name: str = name, value: Array = value, direction: Array = direction) -> float:
                moved = case.with_arrays({**case.arrays(), name: value + step * direction})
                return sum(float((cotangents[n] * a).sum()) for n, a in self.kernel.forward(moved).items())

            analytic = float((found[name] * direction).sum())
            limit = DIFFERENCE * (terms + float(np.abs(found[name] * direction).sum()) + 1)
            numeric = [_directional(along, step) for step in (STEP, STEP / 4)]
            if abs(numeric[0] - numeric[1]) > limit:
                continue  # there is no derivative, or differences cannot resolve it
            if not abs(numeric[0] - analytic) <= limit:
                said = f"is {analytic:.9g} along a direction, by differences {numeric[0]:.9g}"
                raise Failed(f"the gradient of {name} {said}")

    def permuted(self, case: Case, found: Outputs, relative: float) -> None:
        order = np.roll(np.arange(case.x.shape[1]), 1)
        moved = replace(
            case, x=np.ascontiguousarray(case.x[:, order]),
            state=None if case.state is None else tuple(s[order] for s in case.state),
            lengths=None if case.lengths is None else case.lengths[order],
            resets=None if case.resets is None else np.ascontiguousarray(case.resets[:, order]),
        )  # fmt: skip
        for name, array in self.kernel.forward(moved).items():
            _close(f"{name} of rows in another order", array, found[name].take(order, axis=-2), relative)

    def steps(self, case: Case, found: Outputs, relative: float) -> None:
        state, ys = case.state, []
        for t in range(case.x.shape[0]):
            resets = None if case.resets is None else case.resets[t : t + 1]
            outputs = self.kernel.forward(replace(case, x=case.x[t : t + 1], state=state, resets=resets))
            ys.append(outputs.pop("y"))
            state = tuple(outputs.values())
        _close("y of single steps", np.concatenate(ys), found["y"], relative)
        for name, array in zip(("h", "c"), state or (), strict=False):
            _close(f"{name} of single steps", array, found[name], relative)

    def padding(self, case: Case, found: Outputs, relative: float, of_gradient: str) -> None:
        lengths = [] if case.lengths is None else case.lengths.tolist()
        past = np.arange(case.x.shape[0])[:, None] >= np.array(lengths)
        if found["y"][past].any():
            raise Failed("y is not zero past a length")
        for b, length in enumerate(lengths):
            row = slice(b, b + 1)
            alone = replace(
                case, x=np.ascontiguousarray(case.x[:length, row]), lengths=None,
                state=None if case.state is None else tuple(s[row] for s in case.state),
                resets=None if case.resets is None else np.ascontiguousarray(case.resets[:length, row]),
            )  # fmt: skip
            if not length:
                continue
            outputs = self.kernel.forward(alone)
            _close(f"y of row {b} alone", found["y"][:length, row], outputs.pop("y"), relative)
            for name, array in outputs.items():
                _close(f"{name} of row {b} alone", found[name][row], array, relative)
        x = case.x.copy()
        x[past] = np.nan
        unread = replace(case, x=x)
        for name, array in self.kernel.forward(unread).items():
            _same(name, array, found[name], "where the padding holds NaN: it is read")
        if of_gradient != "unsupported":
            whole, of_unread = self.kernel.gradients(case), self.kernel.gradients(unread)
            if whole["x"][past].any():
                raise Failed("the gradient of x is not zero past a length")
            for name, array in whole.items():
                _same(f"the gradient of {name}", of_unread[name], array, "where the padding holds NaN: it is read")

    def of_golden_cases(self) -> Iterator[Result]:
        for dtype in self.dtypes:
            outcomes = []
            for case, expected, grads in _golden_cases(self.kernel, dtype):
                option = "plain" if case.lengths is None else "lengths"
                check = partial(self.golden, case, expected, grads)
                outcomes.append(self.attempt(option, "golden", dtype, check))
            for option in ("plain", "lengths"):
                ran = [r for r in outcomes if r.option == option and r.status != "unsupported"]
                if ran:
                    yield next((r for r in ran if r.status != "ok"), ran[0])

    def golden(self, case: Case, expected: Outputs, gradients: dict[str, Array]) -> None:
        relative = max(_bound(case), 1e-9 if case.x.dtype == "float64" else 0.0)
        found = self.kernel.forward(case)
        for name, array in expected.items():
            _close(name, found[name], array, relative)
        try:
            grads = self.kernel.gradients(case)
        except Exception as error:
            if _is_unsupported(error):
                return
            raise
        for name, array in gradients.items():
            _close(f"the gradient of {name}", grads[name], array, relative)

    def of_bad_input(self) -> Iterator[Result]:
        for dtype in self.dtypes[:1]:
            case = self.case(dtype)
            name = "weight_hh" if "weight_hh" in case.weights else "bias_ih"
            weight = case.weights[name]
            other = "float32" if dtype == "float64" else "float64"
            bad = {
                "x of another width": replace(case, x=case.x[:, :, :-1].copy()),
                f"{name} of another shape": replace(case, weights={**case.weights, name: weight[..., :-1].copy()}),
                "weight_ih with rows missing": replace(
                    case, weights={**case.weights, "weight_ih": case.weights["weight_ih"][:-1].copy()}
                ),
                "a state of another batch": replace(case, state=tuple(s[:-1].copy() for s in case.state or ())),
                "a weight of another dtype": replace(case, weights={**case.weights, name: weight.astype(other)}),
                "a length beyond T": replace(case, lengths=np.array([9, 1, 2])),
                "lengths of another batch": replace(case, lengths=np.array([1, 2])),
            }
            for name, wrong in bad.items():
                yield self.attempt(name, "rejected", dtype, partial(self.rejected, wrong, name))

    def rejected(self, case: Case, name: str) -> None:
        if case.lengths is not None:
            self.kernel.forward(replace(case, lengths=np.array([5, 2, 4])))  # raises here if lengths are not supported
        try:
            self.kernel.forward(case)
        except Exception:
            return
        raise Failed(f"{name} is computed with")


def _other_values(option: str, kind: Any, usual: Any) -> list[Any]:
    """Values of an option that differ from the usual one."""
    if kind is bool:
        return [not usual]
    if kind == Activation:
        return [value for value in ("tanh", "relu", "sigmoid", "identity", "hard_sigmoid") if value != usual]
    if get_origin(kind) is Literal:
        return [value for value in get_args(kind) if value != usual]
    return {"leak": [0.3], "clip": [0.5], "cell_clip": [0.5], "zoneout": _zoneout(usual), "proj_size": [2]}.get(
        option, []
    )


def _zoneout(usual: Any) -> list[Any]:
    """A rate, or a pair of rates for two states."""
    return [(0.2, 0.3) if isinstance(usual, tuple) else 0.2]


def _is_unsupported(error: Exception) -> bool:
    """Whether an error means that a kernel does not support an option."""
    if isinstance(error, NotImplementedError):
        return True
    return isinstance(error, TypeError) and "unexpected keyword argument" in str(error)


def _wide(case: Case) -> Case:
    """Convert a case to float64."""
    arrays = {name: array.astype("float64") for name, array in case.arrays().items()}
    wide = case.with_arrays(arrays)
    return replace(wide, dy=case.dy.astype("float64"), dstate=tuple(d.astype("float64") for d in case.dstate))


def _directional(function: Callable[[float], float], step: float) -> float:
    """The derivative at 0, by a central difference of fourth order."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def _golden_cases(kernel: Kernel, dtype: str) -> Iterator[tuple[Case, Outputs, dict[str, Array]]]:
    """PyTorch's results in float64 for the cell of a kernel."""
    folder = resources.files(__package__ or "gpurnn.conformance")
    records = json.loads((folder / "golden.json").read_text())
    description = KINDS[kernel.cell]
    with np.load(BytesIO((folder / "golden.npz").read_bytes())) as archive:
        for record in records:
            if record["cell"] != kernel.cell:
                continue
            prefix = f"{record['name']}/"
            arrays = {key.removeprefix(prefix): archive[key] for key in archive.files if key.startswith(prefix)}
            floats = {name: a.astype(dtype) for name, a in arrays.items() if a.dtype.kind == "f"}
            usual = description(**kernel.form)
            options = {n: v for n, v in record["options"].items() if getattr(usual, n) != v}
            # Pass zeros for a missing state, because some kernels require one.
            zeros = [np.zeros(floats[n].shape, dtype) for n in ("ch", "cc") if n in floats]
            initial = tuple(floats.get(n, zero)[0] for n, zero in zip(("h0", "c0"), zeros, strict=False))
            case = Case(
                x=floats["x"], weights={n: floats[n] for n in description().parameters if n in floats},
                state=initial, dy=floats["cy"],
                dstate=tuple(floats[n][0] for n in ("ch", "cc") if n in floats), lengths=arrays.get("lengths"),
                options=options,
            )  # fmt: skip
            expected = {"y": arrays["y"], **{n: arrays[f"{n}n"][0] for n in ("h", "c") if f"{n}n" in arrays}}
            names = {"h": "h0", "c": "c0"}
            named = {n: f"g_{names.get(n, n)}" for n in case.arrays()}
            gradients = {n: arrays[of] for n, of in named.items() if of in arrays}
            yield case, expected, {n: g[0] if n in names else g for n, g in gradients.items()}
