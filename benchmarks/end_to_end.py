"""`gpurnn train` compared with the same model in PyTorch: the loss after equally many steps, and the time."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from gpurnn.models import CharVocabulary
from gpurnn.training.checkpoint import checkpoints, read_checkpoint

from .compare import Disagreement, machine, row
from .processes import ROOT, Worker, thread_limits

CHARACTERS, HELD_OUT = 1_000_000, 50_000
EMBEDDING, HIDDEN, BATCH, WINDOW, LR, CLIP = 64, 256, 32, 100, 0.002, 1.0


@dataclass(frozen=True)
class Result:
    """The loss of each step and, at the end, of the held-out text, in bits per character; the seconds of all steps."""

    losses: list[float]
    held_out: float
    seconds: float


def text() -> str:
    """English and Python that come with every Python: its language reference, then the sources of its library."""
    parts = [topics[name].strip() for name in sorted(topics)]
    size = sum(map(len, parts))
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if size > CHARACTERS + HELD_OUT:
            break
        parts.append(path.read_text(encoding="utf-8"))
        size += len(parts[-1])
    return "\n\n".join(parts)[: CHARACTERS + HELD_OUT]


def train_gpurnn(directory: Path, steps: int, threads: int) -> Result:
    """Run `gpurnn train` on the two texts in ``directory`` and read its metrics."""
    arguments = (
        f"train train.txt --out run --validation held-out.txt --steps {steps} --validate-every {steps} "
        f"--checkpoint-every {steps} --log-every 1 --level char --cell lstm --embedding {EMBEDDING} --hidden {HIDDEN} "
        f"--batch {BATCH} --window {WINDOW} --optimizer adam --lr {LR} --schedule constant --clip {CLIP}"
    ).split()
    subprocess.run(
        [sys.executable, "-m", "gpurnn", *arguments], cwd=directory, env=thread_limits(threads), check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    with open(directory / "run" / "metrics.jsonl", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    logged = [record for record in records if "loss" in record]
    return Result(
        [record["bits_per_character"] for record in logged],
        records[-1]["validation_bits_per_character"],
        sum(BATCH * WINDOW / record["tokens_per_second"] for record in logged),
    )


def write_problem(directory: Path, steps: int, threads: int) -> None:
    """Write the problem of `train_gpurnn` as problem.npz: tokens, and the parameters of its checkpoint of step 0."""
    initial = read_checkpoint(checkpoints(directory / "run" / "checkpoints")[0])
    if initial["step"] != 0:
        raise RuntimeError(f"the oldest checkpoint is that of step {initial['step']}, expected 0")
    train, held_out = ((directory / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "held-out"))
    vocabulary = CharVocabulary.from_text(train)
    np.savez(
        directory / "problem.npz",
        train=vocabulary.encode(train), held_out=vocabulary.encode(held_out), symbols=len(vocabulary),
        embedding=EMBEDDING, hidden=HIDDEN, batch=BATCH, window=WINDOW, lr=LR, clip=CLIP, steps=steps, threads=threads,
        **{f"parameter {name}": array for name, array in initial["params"].items()},
    )  # fmt: skip


def train_pytorch(directory: Path, threads: int, python: str) -> Result:
    """Solve problem.npz in PyTorch."""
    command = [python, "-m", "benchmarks.torch_language_model", str(directory / "problem.npz")]
    environment = thread_limits(threads)
    found = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return Result(**json.loads(found.stdout))


def report(*, steps: int, repeats: int, threads: int, peer_python: str) -> Iterator[str]:
    """Train both in turns; the lines of the report, in Markdown.

    Raises
    ------
    NotInstalled
        ``peer_python`` has no PyTorch.
    Disagreement
        The first loss differs, so the two did not start from the same model and data.
    """
    with Worker("gpurnn", threads) as gpurnn, Worker("PyTorch", threads, peer_python) as pytorch:
        versions = f"{gpurnn.versions}; {pytorch.versions}"
    both: list[tuple[Result, Result]] = []
    whole = text()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            for file, part in (("train", whole[:CHARACTERS]), ("held-out", whole[CHARACTERS:])):
                (directory / f"{file}.txt").write_text(part, encoding="utf-8", newline="")
            ours = train_gpurnn(directory, steps, threads)
            write_problem(directory, steps, threads)
            both.append((ours, train_pytorch(directory, threads, peer_python)))
    ours, theirs = both[0]
    if abs(ours.losses[0] - theirs.losses[0]) > 1e-5 * theirs.losses[0]:
        raise Disagreement(f"the first loss is {ours.losses[0]} in gpurnn and {theirs.losses[0]} in PyTorch")

    yield (
        f"{machine()}, {threads} threads. {CHARACTERS:,} characters; embedding {EMBEDDING}, LSTM {HIDDEN}, "
        f"batch {BATCH}, T = {WINDOW}, Adam at {LR}, clip {CLIP:g}; {steps} steps. {versions}."
    )
    yield ""
    yield row(["", "gpurnn", "PyTorch", "ratio"])
    yield row(["---", "--:", "--:", "--:"])
    last = max(1, steps // 10)
    for what, values in (
        ("bits per character, first step", [result.losses[0] for result in both[0]]),
        (f"bits per character, mean of the last {last} steps", [statistics.mean(r.losses[-last:]) for r in both[0]]),
        (f"bits per character of {HELD_OUT:,} others at the end", [result.held_out for result in both[0]]),
    ):
        yield row([what, *(f"{value:.4f}" for value in values), f"{values[0] / values[1]:.4f}"])
    seconds = [statistics.median(result.seconds for result in results) for results in zip(*both, strict=True)]
    ratios = sorted(ours.seconds / theirs.seconds for ours, theirs in both)
    yield row(
        [
            f"seconds (median of {repeats} runs each, in turns)",
            *(f"{value:.1f}" for value in seconds),
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
        ]
    )
