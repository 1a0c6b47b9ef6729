"""The table of ratios: gpurnn's time compared with other libraries', case by case and turn by turn."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .cases import AnyCase, Array, Case
from .contenders import CONTENDERS, MultiplyAdds, NotInstalled
from .processes import Worker

TURN = 0.05
"""The least seconds of a turn; a single call may take longer."""

ROUNDS = (5, 15)
"""Fewest and most turns that each contender gets."""

BUDGET = 5.0
"""Seconds to spend on a case, as long as that leaves each contender the fewest turns."""


class Disagreement(Exception):
    """Two contenders compute different things, so their times cannot be compared."""


@dataclass(frozen=True)
class Ratio:
    """gpurnn's time over another's: the median of the rounds, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True)
class Measurement:
    """The result of one case: gpurnn's median seconds, and their ratio to each other contender's."""

    seconds: float
    ratios: dict[str, Ratio]
    rounds: dict[str, list[float]]
    """The seconds of each contender in each round."""


def disagreement(one: dict[str, Array], other: dict[str, Array], tolerance: float) -> str | None:
    """A description of an array in which two results of the same case differ; None if none does."""
    for name in one.keys() & other.keys():
        a, b = one[name].astype(np.float64), other[name].astype(np.float64)
        if a.shape != b.shape:
            return f"{name} has the shapes {a.shape} and {b.shape}"
        error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        if not error <= tolerance:
            return f"{name} differs by {error:.1e} of its norm, expected at most {tolerance:.1e}"
    return None


def measure(case: AnyCase, workers: Sequence[Worker], repeats: int | None) -> Measurement:
    """Time one case; the workers take turns. Each round gives the ratio of the first worker's time to each other's.

    Raises
    ------
    Disagreement
        Two workers do not compute the same.
    """
    first, *others = workers
    expected = first.prepare(case)
    for other in others:
        difference = disagreement(expected, other.prepare(case), case.tolerance())
        if difference is not None:
            raise Disagreement(f"{case}: {first.name} and {other.name} disagree: {difference}")
    once = {worker: worker.time(1) for worker in workers}
    calls = {worker: math.ceil(TURN / seconds) for worker, seconds in once.items()}
    if repeats is None:
        fewest, most = ROUNDS
        repeats = min(max(round(BUDGET / sum(calls[w] * once[w] for w in workers)), fewest), most)
    seconds: dict[Worker, list[float]] = {worker: [] for worker in workers}
    for _ in range(repeats):
        for worker in workers:
            seconds[worker].append(worker.time(calls[worker]))
    ratios = {w.name: Ratio.of([a / b for a, b in zip(seconds[first], seconds[w], strict=True)]) for w in others}
    return Measurement(statistics.median(seconds[first]), ratios, {w.name: s for w, s in seconds.items()})


def run(
    cases: Sequence[AnyCase], *, repeats: int | None, threads: int, peer_python: str, raw: Path | None = None
) -> Iterator[str]:
    """Measure all cases; the lines of the report, in Markdown. The seconds are added to the file ``raw``, as JSON."""
    with ExitStack() as stack:
        workers, missing = [], []
        for contender in CONTENDERS:
            if not any(map(contender.takes, cases)):
                continue
            python = peer_python if contender.is_peer else sys.executable
            try:
                workers.append((contender, stack.enter_context(Worker(contender.name, threads, python))))
            except NotInstalled as error:
                missing.append(f"{error}.")
        versions = [worker.versions for _, worker in workers]
        measured: dict[AnyCase, Measurement] = {}
        for case in tqdm(cases, unit="case", leave=False):
            measured[case] = measure(case, [w for contender, w in workers if contender.takes(case)], repeats)
            if raw:
                line = {"case": type(case).__name__, **asdict(case), "threads": threads, "machine": machine()}
                with open(raw, "a", encoding="utf-8") as file:
                    print(json.dumps(line | {"versions": versions, "seconds": measured[case].rounds}), file=file)
        yield f"{machine()}, {threads} threads, float32."
        yield "; ".join(versions) + "."
        yield from missing
    yield ""
    of_cells = {case: found for case, found in measured.items() if isinstance(case, Case)}
    if of_cells:
        modes = list(dict.fromkeys(case.mode for case in of_cells))
        peers = [
            (mode, contender.name)
            for mode in modes
            for contender, _ in workers[1:]
            if any(contender.takes(case) for case in of_cells if case.mode == mode)
        ]
        yield from _table(of_cells, modes, peers)
        if peers:
            yield ""
            yield from _summary(of_cells, peers)
        return
    names = [worker.name for _, worker in workers[1:]]
    yield row(["case", "ms", *(f"/ {name}" for name in names)])
    yield row(["---", *["--:"] * (1 + len(names))])
    for case, found in measured.items():
        yield row([case, f"{1000 * found.seconds:.3g}", *(found.ratios.get(name, "–") for name in names)])


def row(entries: Sequence[object]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(map(str, entries))} |"


def _table(measured: dict[Case, Measurement], modes: Sequence[str], peers: Sequence[tuple[str, str]]) -> Iterator[str]:
    head: list[object] = ["cell", "T, B, I, H"]
    for mode in modes:
        head += [f"{mode}, ms", *(f"/ {name}" for m, name in peers if m == mode)]
    yield row(head)
    yield row(["---", *["--:"] * (len(head) - 1)])
    for cell, size in dict.fromkeys((case.cell, case.size) for case in measured):
        entries: list[object] = [cell.upper(), ", ".join(map(str, size))]
        for mode in modes:
            found = measured[Case(cell, size, mode)]
            entries.append(f"{1000 * found.seconds:.3g}")
            entries += [_entry(found.ratios.get(name), name) for m, name in peers if m == mode]
        yield row(entries)


def _entry(ratio: Ratio | None, name: str) -> object:
    """A ratio with its quartiles; for the multiply-adds the median alone."""
    if ratio is None:
        return "–"
    return f"{ratio.median:.2f}" if name == MultiplyAdds.name else ratio


def _summary(measured: dict[Case, Measurement], peers: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield row(["over the sizes: median, worst", *(f"{mode} / {name}" for mode, name in peers)])
    yield row(["---", *["--:"] * len(peers)])
    for cell in dict.fromkeys(case.cell for case in measured):
        entries = [cell.upper()]
        for mode, name in peers:
            ratios = [
                found.ratios[name].median
                for case, found in measured.items()
                if (case.cell, case.mode) == (cell, mode) and name in found.ratios
            ]
            entries.append(f"{statistics.median(ratios):.2f}, {max(ratios):.2f}" if ratios else "–")
        yield row(entries)


def machine() -> str:
    """The processor, the number of usable CPUs, the system and the Python."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            processor = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), processor)
    except FileNotFoundError:  # no Linux
        pass
    return f"{processor}, {cpus()} CPUs, {platform.system()}, Python {platform.python_version()}"


def cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
