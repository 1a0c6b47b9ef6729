"""Peak memory and time of backpropagation through all steps, plain and with gradient checkpointing in time."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
from gpurnn.reference import recurrence_chunk

from gpurnn import LSTM

from .compare import row
from .processes import ROOT, thread_limits

LENGTHS = (1_000, 10_000, 100_000)
EVERY = ("sqrt", "1024", "4096", "16384")
"""The values of K. Only those below T are measured."""

BATCH, INPUT, HIDDEN, LAYERS = 4, 32, 64, 2


def measure(length: int, every: str, hidden: int = HIDDEN) -> tuple[float, int]:
    """The seconds of a forward and a backward pass or, with ``--trace``, the most bytes that one holds at a time.

    The bytes of x, y and their gradients do not count.
    """
    layer = LSTM(INPUT, hidden, LAYERS)
    x = np.random.default_rng(0).standard_normal((length, BATCH, INPUT), np.float32)
    dy = np.ones((length, BATCH, hidden), np.float32)
    checkpoint_every = None if every == "none" else every if every == "sqrt" else int(every)

    def step() -> int:
        (y, _), pullback = layer.vjp(x, checkpoint_every=checkpoint_every)
        (dx, _), _ = pullback((dy, None))
        return int(y.nbytes + dx.nbytes)

    layer.vjp(x[:1])[1]((dy[:1], None))  # does the imports of a first use
    began = time.perf_counter()
    # Tracing slows it down, and the first pass keeps memory for reuse: so each has a process of its own.
    if "--trace" in sys.argv:
        tracemalloc.start()
        own = step()
        return 0.0, tracemalloc.get_traced_memory()[1] - own
    step()
    return time.perf_counter() - began, 0


def steps_of(length: int, every: str) -> int:
    """The K that is used: a whole number of chunks."""
    wanted = math.isqrt(length - 1) + 1 if every == "sqrt" else int(every)
    chunk: int = recurrence_chunk(BATCH)
    return min(-(-wanted // chunk) * chunk, length)


def report(
    lengths: Sequence[int] = LENGTHS, every: Sequence[str] = EVERY, hidden: int = HIDDEN, threads: int = 1
) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield (
        f"Peak memory, in MB, and time of a forward and a backward pass through T steps of {LAYERS} LSTM layers (input "
        f"{INPUT}, hidden {hidden}, batch {BATCH}, float32), besides x, y and their gradients. K is "
        "`checkpoint_every`, in whole chunks. The model is the memory of K steps without checkpoints, plus T/K "
        "states; a shorter last segment has scratch memory of its own."
    )
    yield ""
    yield row(["T", "checkpoint_every", "K", "memory", "model", "time", "to plain"])
    yield row(["--:"] * 7)
    for length in lengths:
        plain_seconds, plain_bytes = _measured(length, "none", hidden, threads)
        yield row([f"{length:,}", "None", "", f"{plain_bytes / 1e6:.1f}", "", f"{plain_seconds:.2f} s", ""])
        for choice in every:
            if choice != "sqrt" and int(choice) >= length:
                continue
            seconds, held = _measured(length, choice, hidden, threads)
            K = steps_of(length, choice)
            states = -(-length // K) * LAYERS * 2 * BATCH * hidden * 4
            model = plain_bytes * K / length + states
            entries = [f"{length:,}", choice, f"{K:,}", f"{held / 1e6:.1f}", f"{model / 1e6:.1f}", f"{seconds:.2f} s"]
            yield row([*entries, f"{seconds / plain_seconds:.2f}"])


def _measured(length: int, every: str, hidden: int, threads: int) -> tuple[float, int]:
    command = [sys.executable, "-m", "benchmarks.checkpointing", str(length), every, str(hidden)]
    found = []
    for further in ([], ["--trace"]):
        done = subprocess.run(
            [*command, *further], cwd=ROOT, env=thread_limits(threads), stdout=subprocess.PIPE, check=True, text=True
        )
        found.append(done.stdout.split())
    return float(found[0][0]), int(found[1][1])


if __name__ == "__main__":
    print(*measure(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
