"""`python -m benchmarks.tasks`: a table of how well gpurnn's models learn, compared with the same models in PyTorch."""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click

from .__main__ import peer_python_option, threads_option
from .compare import machine, row
from .contenders import NotInstalled
from .processes import ROOT, Worker, thread_limits
from .task_data import TASKS, Task


@dataclass(frozen=True)
class Result:
    """The task's measures, and the seconds that training took."""

    measures: list[float]
    seconds: float


def solve(solver: str, task: Task, seed: int, threads: int, python: str, *picture: str) -> Result:
    """Run a solver, ``gpurnn_tasks`` or ``torch_tasks``, in a process of its own."""
    command = [python, "-m", f"benchmarks.{solver}", task.name, str(seed), str(threads), *picture]
    found = subprocess.run(command, cwd=ROOT, env=thread_limits(threads), check=True, stdout=subprocess.PIPE, text=True)
    return Result(**json.loads(found.stdout))


def _shown(task: Task, values: list[float]) -> str:
    return ", ".join(f"{value:.{4 if value < 0.01 else 3}f}" if value else "0" for value in values)


def _medians(results: list[Result]) -> list[float]:
    return [statistics.median(values) for values in zip(*(result.measures for result in results), strict=True)]


def _reached(task: Task, measures: list[float], limits: list[float]) -> bool:
    pairs = zip(measures, limits, strict=True)
    return all(m >= limit if task.higher else m <= limit for m, limit in pairs)


def report(
    names: tuple[str, ...], *, seeds: int, threads: int, peer_python: str, plot: str | None = None
) -> Iterator[str]:
    """Train each task from each seed; the lines of the table, in Markdown. ``plot`` shows the reversal's alignment.

    A measure that is worse than its threshold is marked with ``(!)``.
    """
    try:
        with Worker("PyTorch", threads, peer_python) as worker:
            peer = worker.versions
    except NotInstalled:
        peer = ""
    with Worker("gpurnn", threads) as worker:
        versions = worker.versions
    told = "one seed" if seeds == 1 else f"medians of {seeds} seeds"
    yield f"{machine()}, {threads} threads, {told}. {'; '.join(filter(None, [versions, peer]))}."
    yield ""
    head = ["task", "network", "measured", "gpurnn", "threshold", "seconds"]
    yield row(head + (["PyTorch", "seconds", "ratio of times"] if peer else []))
    yield row(["---", "---", "---", "--:", "--:", "--:"] + (["--:", "--:", "--:"] if peer else []))
    for name in names:
        task = TASKS[name]
        ours, theirs = [], []
        for seed in range(seeds):
            picture = [plot] if plot is not None and (name, seed) == ("reversal", 0) else []
            ours.append(solve("gpurnn_tasks", task, seed, threads, sys.executable, *picture))
            if peer:
                theirs.append(solve("torch_tasks", task, seed, threads, peer_python))
        measures = _medians(ours)
        mark = "" if _reached(task, measures, list(task.thresholds)) else " (!)"
        seconds = statistics.median(result.seconds for result in ours)
        cells = [
            name, task.model, ", ".join(task.measures), _shown(task, measures) + mark,
            _shown(task, list(task.thresholds)), f"{seconds:.1f}",
        ]  # fmt: skip
        if peer:
            ratio = statistics.median(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))
            cells += [
                _shown(task, _medians(theirs)), f"{statistics.median(r.seconds for r in theirs):.1f}", f"{ratio:.2f}",
            ]  # fmt: skip
        yield row(cells)


@click.command(context_settings={"max_content_width": 100})
@click.argument("names", nargs=-1, type=click.Choice(list(TASKS)), metavar="[TASK]...")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each task.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Where to draw the alignment of the task `reversal`.")
@threads_option
@peer_python_option
def main(names: tuple[str, ...], seeds: int, plot: str | None, threads: int, peer_python: str) -> None:
    """Train gpurnn's models, and the same in PyTorch if it is installed, and print how well they learnt, in Markdown.

    Without a TASK it takes all of them. The threshold is the value that PyTorch 2.13 reached with plain settings.
    """
    click.echo(f"`{shlex.join(['python', '-m', 'benchmarks.tasks', *sys.argv[1:]])}`\n")
    for line in report(names or tuple(TASKS), seeds=seeds, threads=threads, peer_python=peer_python, plot=plot):
        click.echo(line)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.tasks")
