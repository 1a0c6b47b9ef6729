"""Small random recurrences with every option, and their definition: each row alone, step by step."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from gpurnn.kernels.recurrence import plan
from gpurnn.reference.cells.normalisation import Normalised

from gpurnn import cells, reference
from gpurnn.cells import GRU, LSTM, Cell, Vanilla

SCHEDULES = tuple(name for name in plan.SCHEDULES if name not in ("cluster", "scatter"))
"""The schedules that tests run with every cell and option. The others differ from persistent only in the product."""

OPTIONED: dict[str, Cell] = {
    "rnn-elu": Vanilla(("elu", 0.7), 0.3),
    "rnn-clip": Vanilla("softsign", clip=0.6),
    "rnn-zoneout": Vanilla("tanh", 0.3, zoneout=0.2),
    "rnn-zoneout-mask": Vanilla(step_masks=("zoneout_h",)),
    "lstm-activations": LSTM("softplus", ("hard_sigmoid", 0.3), ("scaled_tanh", 1.2, 0.8)),
    "lstm-clip": LSTM(clip=0.8),
    "lstm-cell-clip": LSTM(cell_clip=0.4),
    "lstm-peephole": LSTM(peephole=True),
    "lstm-coupled": LSTM(coupled=True),
    "lstm-coupled-peephole": LSTM(coupled=True, peephole=True, cell_clip=0.7),
    "lstm-zoneout": LSTM(zoneout=(0.3, 0.1)),
    "lstm-dropped-candidate": LSTM(step_masks=("dropout_g",)),
    "lstm-all": LSTM(
        "elu", "softsign", "softplus", clip=1.5, cell_clip=0.9, peephole=True, zoneout=(0.2, 0.0),
        step_masks=("dropout_g", "zoneout_c"),
    ),
    "lstm-norm": LSTM(layer_norm=True, coupled=True, peephole=True, zoneout=(0.1, 0.2)),
    "lstm-projection": LSTM(proj_size=2, zoneout=(0.1, 0.2), cell_clip=0.8),
    "lstm-projection-norm": LSTM(proj_size=2, layer_norm=True, step_masks=("dropout_g", "zoneout_c")),
    "gru-norm-before": GRU(layer_norm=True),
    "gru-norm-after": GRU(True, layer_norm=True, clip=1.5),
    "rnn-norm": Vanilla(layer_norm=True),
    "gru-activations": GRU(True, "state", ("scaled_tanh", 1.2, 0.8), "hard_sigmoid"),
    "gru-clip-before": GRU(activation="softsign", clip=0.7),
    "gru-zoneout": GRU(zoneout=0.3),
    "gru-zoneout-mask": GRU(True, step_masks=("zoneout_h",)),
}  # fmt: skip
"""Cells with options. The kernel of each is compiled when a call asks for it."""

CELLS: dict[str, Cell] = {
    **{f"rnn-{a}": Vanilla(a) for a in ("tanh", "relu", "sigmoid", "identity")},
    **{f"rnn-{a}-leak": Vanilla(a, 0.3) for a in ("tanh", "relu", "sigmoid", "identity")},
    "lstm": LSTM(),
    **{
        f"gru-reset-{'after' if after else 'before'}-{update}": GRU(after, update)
        for after in (False, True)
        for update in ("candidate", "state")
    },
    **{name: kind() for name, kind in cells.CELLS.items() if name not in ("rnn", "lstm", "gru")},
}


@dataclass(frozen=True)
class Options:
    """The optional parts of a recurrence, apart from its cell and its sizes."""

    bias: bool = True
    state: bool = True
    lengths: bool = False
    resets: bool = False
    mask: bool = False
    bidirectional: bool = False
    holes: bool = False
    repeats: bool = False

    def __str__(self) -> str:
        return "-".join(name for name, on in vars(self).items() if on) or "none"


ALL = Options(lengths=True, resets=True, mask=True, bidirectional=True, holes=True)
OPTIONS = {
    "plain": Options(),
    "bare": Options(bias=False, state=False),
    "lengths": Options(lengths=True),
    "resets": Options(resets=True, bidirectional=True),
    "lengths-resets": Options(lengths=True, resets=True, bidirectional=True),
    "mask": Options(mask=True, bidirectional=True),
    "holes": Options(holes=True, lengths=True, resets=True, bidirectional=True),
    "repeats": Options(holes=True, repeats=True, lengths=True, resets=True, bidirectional=True),
    "all": ALL,
}

# A cell of each kind of product.
KINDS = ["rnn-tanh-leak", "lstm", "gru-reset-before-candidate", "gru-reset-after-state"]


@dataclass
class Problem:
    """The arguments of `recurrence_forward`, and cotangents for its outputs."""

    cell: Cell
    x: np.ndarray
    weights: tuple[dict[str, np.ndarray], ...]
    state: tuple[np.ndarray, ...]
    lengths: np.ndarray | None
    resets: np.ndarray | None
    mask: np.ndarray | None
    dy: np.ndarray
    dstate: tuple[np.ndarray, ...]
    step_masks: np.ndarray | None = None
    exists: np.ndarray | None = None
    repeats: bool = False

    @property
    def hidden_size(self) -> int:
        return self.weights[0]["weight_ih"].shape[0] // self.cell.gates

    @property
    def width(self) -> int:
        """The width of h and of a direction's output."""
        return self.state[0].shape[2]

    @property
    def options(self) -> dict[str, Any]:
        options = {
            "lengths": self.lengths,
            "resets": self.resets,
            "exists": self.exists,
            "repeats": self.repeats,
            "mask": self.mask,
        }
        return options if self.step_masks is None else {**options, "step_masks": self.step_masks}

    def there(self) -> np.ndarray:
        """(T, B): the steps that exist."""
        T, B, _ = self.x.shape
        there = np.ones((T, B), bool) if self.exists is None else self.exists.copy()
        return there if self.lengths is None else there & (np.arange(T)[:, None] < self.lengths)


def pattern_of_lengths(T: int, B: int) -> np.ndarray:
    """Unsorted lengths, with a row of no steps if there are several rows, and a row of all steps."""
    return np.array([max(T - 1, 1), 0, T, 1][:B] + [T] * max(B - 4, 0), np.int32)


def pattern_of_resets(T: int, B: int) -> np.ndarray:
    """Resets at the start, in the middle, in two consecutive steps, at the first step past a length and beyond it."""
    resets = np.zeros((T, B), bool)
    resets[:1, :1] = True
    resets[1:3, -1:] = True
    resets[-1:, : B - 1] = True
    return resets


def pattern_of_holes(T: int, B: int) -> np.ndarray:
    """True at the steps that exist: holes at the start, in the middle, at the end, at a reset, and two in a row."""
    exists = np.ones((T, B), bool)
    exists[2:3, -1:] = False
    exists[1:3, ::2] = False
    exists[:1, 1:2] = False
    exists[-1:, -1:] = False
    return exists


def draw(
    cell: Cell, options: Options, T: int = 4, B: int = 3, I: int = 2, H: int = 3, seed: int = 0, dtype: str = "float64"
) -> Problem:
    """A random problem. x is NaN where there is no step, and a relu's inputs stay away from its kink."""
    for trial in itertools.count(seed):
        problem = _draw(cell, options, T, B, I, H, trial, dtype)
        if not (isinstance(cell, Vanilla) and cell.activation == "relu") or _distance_from_kink(problem) > 0.01:
            return problem
    raise AssertionError


def _draw(cell: Cell, options: Options, T: int, B: int, I: int, H: int, seed: int, dtype: str) -> Problem:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    D = 1 + options.bidirectional
    weights = tuple(
        {
            name: 0.4 * normal(*shape) if name in cell.needed else normal(*shape)
            for name, shape in cell.shapes(input_size=I, hidden_size=H).items()
            if name in cell.needed or options.bias
        }
        for _ in range(D)
    )
    x = normal(T, B, I)
    lengths = pattern_of_lengths(T, B) if options.lengths else None
    exists = pattern_of_holes(T, B) if options.holes else None
    widths = cell.state_sizes(H)
    state = tuple(normal(D, B, W) if options.state else np.zeros((D, B, W), dtype) for W in widths)
    resets = pattern_of_resets(T, B) if options.resets else None
    mask = (rng.integers(0, 2, (D, B, widths[0])) * 1.5).astype(dtype) if options.mask else None
    cotangents = normal(T, B, D * widths[0]), tuple(normal(D, B, W) for W in widths)
    step_masks = None
    if cell.step_masks:
        step_masks = rng.integers(0, 2, (len(cell.step_masks), D, T, B, H)).astype(dtype)
    problem = Problem(cell, x, weights, state, lengths, resets, mask, *cotangents, step_masks, exists, options.repeats)
    x[~problem.there()] = np.nan
    return problem


def _walk(problem: Problem):
    """Yield for each row and direction its indices, its steps in order, and the steps at which the state is reset.

    The steps include holes, as a state passes through them.
    """
    T, B, _ = problem.x.shape
    for d, b in itertools.product(range(len(problem.weights)), range(B)):
        steps = list(range(T if problem.lengths is None else problem.lengths[b]))
        if d == 1:
            steps.reverse()
        cut = set()
        if problem.resets is not None:
            # A reset at t separates step t - 1 from step t.
            shift = 1 if d == 1 else 0
            cut = {t - shift for t in range(T) if problem.resets[t, b] and t in steps and t - shift in steps}
        yield d, b, steps, cut


def _row_weights(problem: Problem, d: int, b: int) -> dict[str, Any]:
    """The row's weights. A mask on the input of W_hh scales the columns of W_hh."""
    weights = problem.weights[d]
    return weights if problem.mask is None else {**weights, "weight_hh": weights["weight_hh"] * problem.mask[d, b]}


def unrolled_forward(problem: Problem) -> tuple[np.ndarray, tuple[np.ndarray, ...], list[Any]]:
    """`recurrence_forward` by its definition, from `cell_forward` alone, with the pre-activations of a vanilla cell."""
    H = problem.width
    y = np.zeros_like(problem.dy)
    final = tuple(s.copy() for s in problem.state)
    saved = []
    for d, b, steps, cut in _walk(problem):
        weights = _row_weights(problem, d, b)
        b_ih, b_hh = weights.get("bias_ih"), weights.get("bias_hh")
        state = tuple(s[d, b : b + 1] for s in problem.state)
        kept = []
        for t in steps:
            if t in cut:
                state = tuple(np.zeros_like(s) for s in state)
            if problem.exists is not None and not problem.exists[t, b]:
                y[t, b, d * H : (d + 1) * H] = state[0][0] if problem.repeats else 0
                continue
            xw = problem.x[t, b : b + 1] @ weights["weight_ih"].T
            if "norm_ih" in weights:
                xw = _normalised(problem.cell, xw).value * weights["norm_ih"]
            if b_ih is not None:
                xw = xw + b_ih
            pre = xw + state[0] @ weights["weight_hh"].T + (0 if b_hh is None else b_hh)
            of_step = (
                {}
                if problem.step_masks is None
                else {
                    name: mask[d, t, b : b + 1]
                    for name, mask in zip(problem.cell.step_masks, problem.step_masks, strict=True)
                }
            )
            state, step = reference.cell_forward(problem.cell, xw, state, weights | of_step)
            kept.append((t, step, pre))
            y[t, b, d * H : (d + 1) * H] = state[0][0]
        for into, s in zip(final, state, strict=True):
            into[d, b] = s[0]
        saved.append(kept)
    return y, final, saved


def _normalised(cell: Cell, product: np.ndarray) -> Normalised:
    return Normalised.of(product, tuple(gates * product.shape[1] // cell.gates for gates in cell.norm_groups))


def unrolled_backward(problem: Problem, saved: list[Any]):
    """`recurrence_backward` by its definition, from `cell_backward` alone."""
    H = problem.width
    dx = np.zeros_like(problem.x)
    dstate0 = tuple(np.zeros_like(s) for s in problem.state)
    sizes = {"input_size": problem.x.shape[2], "hidden_size": problem.hidden_size}
    dweights = tuple(
        {name: np.zeros(shape, dx.dtype) for name, shape in problem.cell.shapes(**sizes).items()}
        for _ in problem.weights
    )
    for (d, b, steps, cut), kept in zip(_walk(problem), saved, strict=True):
        total = dweights[d]
        carried = tuple(s[d, b : b + 1] for s in problem.dstate)
        by_step = {t: step for t, step, _ in kept}
        for t in reversed(steps):
            if t not in by_step:
                if problem.repeats:
                    carried = (carried[0] + problem.dy[t, b : b + 1, d * H : (d + 1) * H], *carried[1:])
                if t in cut:
                    carried = tuple(np.zeros_like(s) for s in carried)
                continue
            step = by_step[t]
            carried = (carried[0] + problem.dy[t, b : b + 1, d * H : (d + 1) * H], *carried[1:])
            dxw, carried, gradients = reference.cell_backward(step, carried)
            if problem.mask is not None:
                gradients["weight_hh"] = gradients["weight_hh"] * problem.mask[d, b]
            gradients["bias_ih"] = dxw[0]
            if "norm_ih" in problem.weights[d]:
                normal = _normalised(problem.cell, problem.x[t, b : b + 1] @ problem.weights[d]["weight_ih"].T)
                gradients["norm_ih"] = (dxw * normal.value)[0]
                dxw = normal.back(dxw * problem.weights[d]["norm_ih"])
            dx[t, b] += dxw[0] @ problem.weights[d]["weight_ih"]
            gradients["weight_ih"] = dxw.T @ problem.x[t, b : b + 1]
            for name, gradient in gradients.items():
                total[name] += gradient
            if t in cut:
                carried = tuple(np.zeros_like(s) for s in carried)
        for into, s in zip(dstate0, carried, strict=True):
            into[d, b] = s[0]
    return dx, dweights, dstate0


def _distance_from_kink(problem: Problem) -> float:
    kept = unrolled_forward(problem)[2]
    return min((float(np.abs(pre).min()) for row in kept for _, _, pre in row), default=1.0)


def pairwise(factors: dict[str, list[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Choose values for the factors such that any two values of any two factors occur together in some choice."""
    rng = random.Random(seed)
    names = list(factors)

    def pairs(row: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(names)), 2)}

    missing = {
        (i, a, j, b)
        for i, j in itertools.combinations(range(len(names)), 2)
        for a in range(len(factors[names[i]]))
        for b in range(len(factors[names[j]]))
    }
    rows = []
    while missing:
        i, a, j, b = min(missing)
        candidates = []
        for _ in range(40):
            row = [rng.randrange(len(factors[name])) for name in names]
            row[i], row[j] = a, b
            candidates.append(tuple(row))
        best = max(candidates, key=lambda row: len(pairs(row) & missing))
        missing -= pairs(best)
        rows.append({name: factors[name][k] for name, k in zip(names, best, strict=True)})
    return rows
