"""Peak memory of truncated backpropagation through time, by the window and the length of the stream."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np

from gpurnn.models import CharVocabulary, LanguageModel
from gpurnn.optimizers import Adam
from gpurnn.training import TokenStream, Trainer

from .compare import row
from .processes import ROOT

WINDOWS = (25, 50, 100, 200, 400)
LENGTHS = (800, 3200)
"""Steps in each lane of the stream, whole multiples of every window."""

BATCH, EMBEDDING, HIDDEN, SYMBOLS = 32, 64, 256, 100


def peak(window: int, length: int, hidden: int = HIDDEN) -> int:
    """The most bytes that training an LSTM language model for one epoch holds at a time, besides the stream itself.

    A second call in one process gives another figure, because memory is kept for reuse.
    """
    tracemalloc.start()
    model = LanguageModel(CharVocabulary([chr(32 + k) for k in range(SYMBOLS)]), EMBEDDING, hidden)
    tokens = np.random.default_rng(0).integers(0, SYMBOLS, BATCH * (length + 1), np.int32)
    data = TokenStream(tokens, BATCH, window)
    Trainer(model, data, Adam(), epochs=1, clip_norm=1.0, log_interval=len(data), progress=False).train()
    return tracemalloc.get_traced_memory()[1] - tokens.nbytes


def report(windows: Sequence[int] = WINDOWS, lengths: Sequence[int] = LENGTHS, hidden: int = HIDDEN) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield (
        f"Peak memory, in MB, of training a language model (embedding {EMBEDDING}, LSTM {hidden}, batch {BATCH}, Adam, "
        "float32) with gradients through k steps, over streams of n steps:"
    )
    yield ""
    yield row(["k", *(f"n = {length:,}" for length in lengths)])
    yield row(["--:"] * (1 + len(lengths)))
    for window in windows:
        yield row([window, *(f"{_peak_of_process(window, length, hidden) / 1e6:.1f}" for length in lengths)])


def _peak_of_process(*sizes: int) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", *map(str, sizes)]
    return int(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout)


if __name__ == "__main__":
    print(peak(*map(int, sys.argv[1:])))
