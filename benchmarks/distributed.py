"""Training on several processes: measured on this machine's cores, and a model on paper of many GPUs."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from gpurnn.kernels import devices

from gpurnn import distributed
from gpurnn.models import CharVocabulary, LanguageModel
from gpurnn.optimizers import Adam
from gpurnn.training import TokenStream, Trainer

from .cases import Case, Size
from .compare import cpus, row
from .contenders import NotInstalled
from .gpu import PREDICTED_FOR, predictions
from .processes import ROOT, thread_limits

PROCESSES = (1, 2, 4)
ROWS, WINDOW, EMBEDDING, HIDDEN, SYMBOLS = 32, 50, 64, 256, 100
SHARDS = 4
WARM_UPS, STEPS, TURNS = 3, 30, 3


def measure(rows: int, shards: int | None, steps: int = STEPS) -> tuple[float, float]:
    """Seconds of a step of training a language model on all processes, and of the sum of its gradients alone.

    The first is the mean of some steps after a warm-up. The second is the median of as many sums, which all processes
    begin together: the most that an exchange during the backward pass could hide.
    """
    communicator = distributed.communicator()
    model = LanguageModel(CharVocabulary([chr(32 + k) for k in range(SYMBOLS)]), EMBEDDING, HIDDEN)
    tokens = np.random.default_rng(0).integers(0, SYMBOLS, rows * ((WARM_UPS + steps) * WINDOW + 1), np.int32)
    trainer = Trainer(
        model, TokenStream(tokens, rows, WINDOW), Adam(), steps=WARM_UPS, clip_norm=1.0, progress=False,
        communicator=communicator, shards=shards,
    )  # fmt: skip
    trainer.train()
    trainer.total += steps
    communicator.barrier()
    began = time.perf_counter()
    trainer.train()
    step, sums = (time.perf_counter() - began) / steps, []
    for _ in range(steps):
        communicator.barrier()
        began = time.perf_counter()
        communicator.all_reduce(list(model.params.values()))
        sums.append(time.perf_counter() - began)
    return step, statistics.median(sums)


def report(
    processes: Sequence[int] = PROCESSES, turns: int = TURNS, steps: int = STEPS, gpus: bool = True
) -> Iterator[str]:
    """The lines of the tables, in Markdown."""
    launcher = Path(sysconfig.get_path("scripts")) / "mpiexec"
    if not launcher.exists():
        raise NotInstalled("mpiexec is not installed beside this Python; pip install mpi4py mpich")
    cases = {
        (P, name, shards): ROWS * (P if name == "weak" else 1)
        for P in processes for name in ("strong", "weak") for shards in (None, SHARDS)
    }  # fmt: skip
    times: dict[tuple[int, str, int | None], list[tuple[float, float]]] = {case: [] for case in cases}
    for _ in range(turns):
        for case, rows in cases.items():
            P, _, shards = case
            command = [str(launcher), "-n", str(P), sys.executable, "-m", "benchmarks.distributed"]
            command += [str(rows), str(shards or 0), str(steps)]
            ended = subprocess.run(
                command, cwd=ROOT, env=thread_limits(1), stdout=subprocess.PIPE, check=True, text=True
            )
            times[case].append(tuple(json.loads(ended.stdout)))
    yield (
        f"Milliseconds of a step of training a language model (embedding {EMBEDDING}, LSTM {HIDDEN}, {WINDOW} steps, "
        f"Adam, float32) on {cpus()} cores, one thread a process, by MPI: medians of {turns} runs of {steps} steps. "
        f"Strong: {ROWS} rows in all. Weak: {ROWS} rows a process. Efficiency is the time of one process divided by "
        f'that of P; for strong it is also divided by P. With shards={SHARDS} the bits do not depend on P. "Sum" is '
        "the time to sum only the gradients, if all processes begin together: the share of a plain step that an "
        "exchange during the backward pass could hide."
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    yield f"The machine's load in the last minute was {load:.1f}."
    yield ""
    names = ("rows", "P", "plain", "efficiency", "sum", "of a step", f"shards={SHARDS}", "efficiency", "shards / plain")
    yield row(names)
    yield row(["---", *["--:"] * (len(names) - 1)])
    for name in ("strong", "weak"):
        for P in processes:
            plain, sharded = (_milliseconds(times[P, name, shards], 0) for shards in (None, SHARDS))
            summed = _milliseconds(times[P, name, None], 1)
            shares = []
            for shards, own in ((None, plain), (SHARDS, sharded)):
                first = _milliseconds(times[processes[0], name, shards], 0)
                shares.append(f"{first / own / (P / processes[0] if name == 'strong' else 1):.0%}")
            many = f"{P} (on {cpus()} cores)" if cpus() < P else f"{P}"
            of_sum = [f"{summed:.2f}", f"{summed / plain:.1%}"] if P > 1 else ["", ""]
            of_shards = [f"{sharded:.1f}", shares[1], f"{sharded / plain:.2f}"]
            yield row([name, many, f"{plain:.1f}", shares[0], *of_sum, *of_shards])
    if gpus:
        yield ""
        yield from on_paper()


def _milliseconds(runs: Sequence[tuple[float, float]], which: int) -> float:
    return 1e3 * statistics.median(run[which] for run in runs)


# ---- On paper -------------------------------------------------------------------------------------------------------

GPUS = (8, 16, 64, 256, 1024)
GPUS_OF_A_NODE = 8
BYTES_A_SECOND = {"within a node": 450e9, "between nodes": 50e9}
"""Bandwidth of a GPU, one way: NVLink of an H100, and one network adapter of 400 Gbit/s per GPU."""
LATENCY = {"within a node": 5e-6, "between nodes": 10e-6}
"""Assumed seconds of a hop. A sum has twice as many hops as the binary logarithm of the number of GPUs or nodes."""
ROWS_OF_A_GPU, ROWS_IN_ALL, LAYERS, WIDTH, STEPS_OF_A_WINDOW, WORDS = 64, 8192, 2, 1024, 100, 10_000


def all_reduce(size: int, gpus: int) -> tuple[float, float, float]:
    """The bytes that a GPU sends to sum ``size`` bytes over all GPUs, the seconds for them, and those of the hops.

    The GPUs of a node divide the sum, each sums its part over the nodes, and the node gathers the parts.
    """
    local = min(gpus, GPUS_OF_A_NODE)
    nodes = gpus // local
    within, between = 2 * (local - 1) / local * size, 2 * (nodes - 1) / nodes * size / local
    seconds = within / BYTES_A_SECOND["within a node"] + between / BYTES_A_SECOND["between nodes"]
    hops = LATENCY["within a node"] * math.log2(local) + LATENCY["between nodes"] * math.log2(nodes)
    return within + between, seconds, 2 * hops


def step_of_a_gpu(rows: int) -> float:
    """Predicted seconds of a step's gradients on one GPU: the layers, and the output head at the device's peak.

    The backward pass of the head counts as two forward passes, because it has twice the multiplications.
    """
    device = devices.lookup(PREDICTED_FOR)
    case = Case("lstm", Size(STEPS_OF_A_WINDOW, rows, WIDTH, WIDTH), "training")
    layer = min(predictions(case, device).values()) / 1e6
    head = 3 * 2 * rows * WIDTH * WORDS / device.peak_flops("float32")
    return STEPS_OF_A_WINDOW * (LAYERS * layer + head)


def on_paper() -> Iterator[str]:
    """The table of the model."""
    parameters = 2 * WORDS * WIDTH + WORDS + LAYERS * (8 * WIDTH**2 + 8 * WIDTH)
    size = 4 * parameters
    yield (
        f"A model on paper, in which nothing was measured: {parameters / 1e6:.0f} million parameters ({LAYERS} LSTM "
        f"layers of {WIDTH}, {WORDS:,} words, {STEPS_OF_A_WINDOW} steps) on {PREDICTED_FOR}s, {GPUS_OF_A_NODE} per "
        "node, whose time for gradients is the planner's prediction. Each step has one buffer of float32 gradients, "
        f"and nothing overlaps. Efficiency is the gradients' share of a step, for {ROWS_OF_A_GPU} rows per GPU. For "
        f"{ROWS_IN_ALL:,} rows in all, it is the time that {GPUS[0]} GPUs would take, divided among the GPUs, over "
        "that of a step."
    )
    yield ""
    yield row(
        ["GPUs", "MB sent by a GPU", "hops, µs", "sum, ms", f"rows at {ROWS_OF_A_GPU} a GPU", "step, ms", "efficiency",
         f"rows a GPU of {ROWS_IN_ALL:,}", "step, ms", "efficiency"]
    )  # fmt: skip
    yield row(["--:"] * 10)
    weak = step_of_a_gpu(ROWS_OF_A_GPU)
    first = step_of_a_gpu(ROWS_IN_ALL // GPUS[0]) + sum(all_reduce(size, GPUS[0])[1:])
    for gpus in GPUS:
        sent, seconds, hops = all_reduce(size, gpus)
        total = seconds + hops
        strong = step_of_a_gpu(ROWS_IN_ALL // gpus) + total
        yield row(
            [gpus, f"{sent / 1e6:.0f}", f"{1e6 * hops:.0f}", f"{1e3 * total:.2f}", f"{gpus * ROWS_OF_A_GPU:,}",
             f"{1e3 * (weak + total):.2f}", f"{weak / (weak + total):.0%}", ROWS_IN_ALL // gpus, f"{1e3 * strong:.2f}",
             f"{first * GPUS[0] / gpus / strong:.0%}"]
        )  # fmt: skip


if __name__ == "__main__":
    measured = measure(int(sys.argv[1]), int(sys.argv[2]) or None, int(sys.argv[3]))
    if distributed.communicator().rank == 0:
        print(json.dumps(measured))
