"""LSTM, GRU, linear state-space model and causal self-attention compared, at equal numbers of parameters.

Each learns to predict a text and to solve the adding problem, at lengths T from 64 to 4096. For recurrences the time of
a step is O(T) and its memory O(T n_h); for self-attention both are O(T^2).
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import gpurnn
from gpurnn.models import CharVocabulary

from .compare import machine, row
from .contenders import NotInstalled
from .end_to_end import CHARACTERS, text
from .processes import ROOT, thread_limits
from .task_data import adding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
PARAMETERS, POSITIONS = 50_000, 4096
"""The number of parameters of a model, and T times the batch size in a step of its training."""

STEPS = {"text": 100, "adding": 400}
"""The number of training steps."""

MOST_TEXT_STEPS = CHARACTERS // POSITIONS
"""The steps for which there is new text."""

LR, CLIP, HEADS = 0.01, 1.0, 2

BODIES: dict[str, Callable[[int], list[gpurnn.Layer]]] = {
    "LSTM": lambda n: [gpurnn.LSTM(n, n, rng=1)],
    "GRU": lambda n: [gpurnn.GRU(n, n, rng=1)],
    "linear SSM": lambda n: [
        layer
        for seed in (1, 2)
        for layer in (
            gpurnn.DiagonalStateSpace(n, n, n, rng=seed),
            gpurnn.Dense(n, n, activation="relu", rng=seed),
        )
    ],
    "self-attention": lambda n: [
        gpurnn.PositionalEncoding(),
        *(gpurnn.TransformerBlock(n, HEADS, causal=True, rng=seed) for seed in (1, 2)),
        gpurnn.LayerNorm(n),
    ],
}
"""The layers between the input and the output layer, each of width n, a multiple of 2."""


def network(body: str, width: int, task: str, symbols: int) -> gpurnn.Sequential:
    """A contender of one width, for one task."""
    first: gpurnn.Layer = (
        gpurnn.Embedding(symbols, width) if task == "text" else gpurnn.Dense(2, width, activation="relu")
    )
    return gpurnn.Sequential(first, *BODIES[body](width), gpurnn.Dense(width, symbols if task == "text" else 1, rng=3))


def contender(body: str, task: str, symbols: int, parameters: int) -> gpurnn.Sequential:
    """The contender whose number of parameters is nearest to ``parameters``."""
    smaller, width = network(body, HEADS, task, symbols), 2 * HEADS
    while (larger := network(body, width, task, symbols)).num_parameters < parameters:
        smaller, width = larger, width + HEADS
    return min(smaller, larger, key=lambda model: abs(model.num_parameters - parameters))


class Text:
    """Windows of a text, in random order, each read once; the loss is in bits per character."""

    unit, baseline_name = "bits per character", "frequencies of characters"

    def __init__(self) -> None:
        whole = text()[: CHARACTERS + 1]
        vocabulary = CharVocabulary.from_text(whole)
        self.tokens, self.symbols = vocabulary.encode(whole), len(vocabulary)
        self.baseline = -sum(n * math.log2(n / len(whole)) for n in Counter(whole).values()) / len(whole)

    def batch(self, step: int, length: int, batch: int) -> tuple[Array, Array]:
        """(T, B) tokens, and the token after each."""
        order = np.random.default_rng(0).permutation(CHARACTERS // length)
        starts = length * order[step * batch : (step + 1) * batch]
        windows = self.tokens[starts[None, :] + np.arange(length + 1)[:, None]]
        return windows[:-1], windows[1:]

    def loss(self, model: gpurnn.Sequential, inputs: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """The loss in bits, and the gradients of the loss in nats."""
        (logits, _), pullback = model.vjp(inputs)
        nats, pull_loss = gpurnn.cross_entropy.vjp(logits, targets)
        _, gradients = pullback((pull_loss(1.0)[0], None))
        return float(nats) / math.log(2), gradients


class Adding:
    """The adding problem, with new data at each step; the loss is the mean squared error at the last step."""

    unit, baseline_name, symbols = "mean squared error", "always saying 1", 0
    baseline = 1 / 6
    """The variance of the sum of two numbers that are uniform in (0, 1)."""

    def batch(self, step: int, length: int, batch: int) -> tuple[Array, Array]:
        """(T, B, 2) numbers and marks, and (B, 1) sums."""
        return adding(np.random.default_rng((length, step)), length, batch)

    def loss(self, model: gpurnn.Sequential, inputs: Array, targets: Array) -> tuple[float, dict[str, Array]]:
        """The loss, and its gradients."""
        (y, _), pullback = model.vjp(inputs)
        error, pull_loss = gpurnn.mse.vjp(y[-1], targets)
        dy = np.zeros_like(y)
        dy[-1] = pull_loss(1.0)[0]
        _, gradients = pullback((dy, None))
        return float(error), gradients


TASKS: dict[str, type[Text] | type[Adding]] = {"text": Text, "adding": Adding}


@dataclass(frozen=True)
class Result:
    """One contender at one length.

    Attributes
    ----------
    loss : float
        The mean over the last quarter of the steps, each on new data.
    seconds : float
        The median time of the loss of one sequence and its gradients.
    peak : int
        The most bytes that these hold at a time, besides the parameters and the data.
    parameters : int
    """

    loss: float
    seconds: float
    peak: int
    parameters: int


def measure(body: str, task: str, length: int, parameters: int, steps: int) -> Result:
    """Measure a contender in this process, which should be new: the memory of a step is kept for reuse."""
    problem = TASKS[task]()
    model = contender(body, task, problem.symbols, parameters)
    optimizer = gpurnn.Adam(LR)

    def step(inputs: Array, targets: Array) -> float:
        loss, gradients = problem.loss(model, inputs, targets)
        gradients, _ = gpurnn.clip_by_global_norm(gradients, CLIP)
        optimizer.step(model.params, gradients)
        return loss

    problem.loss(model, *problem.batch(0, 8, 1))  # does the imports of a first use
    one = problem.batch(0, length, 1)
    tracemalloc.start()
    problem.loss(model, *one)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < 0.5 and len(seconds) < 20):
        began = time.perf_counter()
        problem.loss(model, *one)
        seconds.append(time.perf_counter() - began)

    batch = max(1, POSITIONS // length)
    losses = [step(*problem.batch(k, length, batch)) for k in range(steps)]
    return Result(
        statistics.mean(losses[-max(1, steps // 4) :]), statistics.median(seconds), peak, model.num_parameters
    )


def measured_apart(threads: int, *arguments: Any) -> Result:
    """The result of `measure` in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.transformer", *map(str, arguments)],
        cwd=ROOT, env=thread_limits(threads), check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return Result(**json.loads(found.stdout))


Results = dict[tuple[str, str, int], Result]
"""The results by task, contender and T."""


_MEASURES: tuple[tuple[str, str | None, Callable[[Result], float]], ...] = (
    ("loss after {steps} steps", None, lambda r: r.loss),
    ("time of a gradient, B = 1", "milliseconds", lambda r: 1e3 * r.seconds),
    ("memory of a gradient, B = 1", "peak MB", lambda r: r.peak / 1e6),
)
"""The title, the unit (None for the task's) and the value of each measure."""

_TITLES = {"text": "Python text", "adding": "adding problem"}

_STYLES = {
    "LSTM": ("tab:blue", "o"),
    "GRU": ("tab:green", "s"),
    "linear SSM": ("tab:purple", "^"),
    "self-attention": ("tab:red", "D"),
}


def report(
    lengths: Sequence[int] = LENGTHS,
    *,
    parameters: int = PARAMETERS,
    steps: Mapping[str, int] = STEPS,
    threads: int,
    plot: Path | None = None,
) -> Iterator[str]:
    """Measure all contenders; the lines of the table, in Markdown. With ``plot`` the picture is written there.

    Raises
    ------
    NotInstalled
        ``plot`` needs matplotlib, which is not installed.
    """
    if plot is not None:
        try:
            import matplotlib  # noqa: F401 - before the measuring, not after it
        except ImportError as error:
            raise NotInstalled("--plot needs matplotlib; pip install matplotlib") from error
    wanted = [(task, body, length) for task in TASKS for body in BODIES for length in lengths]
    results: Results = {}
    for task, body, length in tqdm(wanted, disable=None, leave=False):
        results[task, body, length] = measured_apart(threads, body, task, length, parameters, steps[task])
    counts = sorted(result.parameters for result in results.values())
    yield (
        f"{machine()}, {threads} threads, float32. {counts[0]:,} to {counts[-1]:,} parameters each; "
        f"{' and '.join(f'{steps[task]} steps ({task})' for task in TASKS)} of {POSITIONS} positions, "
        f"B = {POSITIONS}/T, Adam at {LR}, clip {CLIP:g}. The loss is that of the last quarter "
        "of the steps, on new data; milliseconds and peak MB are those of the loss of one sequence and its gradients."
    )
    yield ""
    yield row(["task", "", *(f"T = {length}" for length in lengths)])
    yield row(["---", "---", *(["--:"] * len(lengths))])
    for task, problem in TASKS.items():
        for _, unit, value in _MEASURES:
            for body in BODIES:
                values = [value(results[task, body, length]) for length in lengths]
                entries = [f"{x:.3g}" if x < 999.5 else f"{x:,.0f}" for x in values]
                yield row([f"{task}: {unit or problem.unit}", body, *entries])
    if plot is not None:
        picture(results, steps).savefig(plot)
        yield ""
        yield f"Picture: {plot}"


def picture(results: Results, steps: Mapping[str, int]) -> Figure:
    """Loss, time and peak memory against T, a row of panels for each task."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(12.5, 7.6), dpi=130, layout="constrained")
    panels = figure.subplots(len(TASKS), 3)
    lengths = sorted({length for _, _, length in results})
    for axes_of_task, (task, problem) in zip(panels, TASKS.items(), strict=True):
        for column, (axes, (title, unit, value)) in enumerate(zip(axes_of_task, _MEASURES, strict=True)):
            curves = {body: [value(results[task, body, length]) for length in lengths] for body in BODIES}
            lines = []
            for body, values in curves.items():
                color, marker = _STYLES[body]
                lines += axes.plot(lengths, values, color=color, marker=marker, markersize=5, linewidth=1.5, label=body)
            guides = []
            if column == 0:
                baseline = problem().baseline
                told = f"{problem.baseline_name}: {baseline:.3g}"
                guides.append(axes.axhline(baseline, color="0.4", linestyle=":", linewidth=1.2, label=told))
                axes.margins(y=0.15)
            else:
                for body, power, style in (("LSTM", 1, (0, (1, 2))), ("self-attention", 2, (0, (5, 3)))):
                    heights = [1.5 * curves[body][-1] * (length / lengths[-1]) ** power for length in lengths]
                    shown = [k for k, height in enumerate(heights) if height >= min(curves[body])]
                    guides += axes.plot(
                        [lengths[k] for k in shown], [heights[k] for k in shown], color="0.4", linestyle=style,
                        linewidth=1.2, label="proportional to T" if power == 1 else "proportional to T²",
                    )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [str(length) for length in lengths])
            if column > 0 or task == "adding":
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: np.format_float_positional(y, trim="-")))
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{_TITLES[task]}: {title.format(steps=steps[task])}", fontsize=10.5)
            axes.set_xlabel("T, steps of a sequence")
            axes.set_ylabel(unit or problem.unit)
            axes.grid(alpha=0.3)
            axes.legend(handles=guides, edgecolor="none", fontsize=9)
    counts = sorted(result.parameters for result in results.values())
    figure.legend(
        handles=lines, loc="outside upper center", ncols=len(lines), frameon=False,
        title=f"{counts[0]:,} to {counts[-1]:,} parameters each; steps of B = {POSITIONS}/T sequences",
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    name, task, *sizes = sys.argv[1:]
    print(json.dumps(asdict(measure(name, task, *map(int, sizes)))))
