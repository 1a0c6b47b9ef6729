"""The tasks of `benchmarks.tasks` in PyTorch: `python -m benchmarks.torch_tasks TASK SEED THREADS`.

Print a JSON object: ``measures``, in the order of the task's, and ``seconds`` of training.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from .task_data import (
    BEGIN,
    END,
    TASKS,
    Array,
    Task,
    adding,
    copying,
    digits,
    measure_transduction,
    padded,
    sunspots,
    transduction,
)

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class Recurrent(nn.Module):
    """A recurrent layer and a dense one, at each step or after the last."""

    def __init__(self, cell: str, inputs: int, hidden: int, outputs: int, per_step: bool) -> None:
        super().__init__()
        self.recurrent = CELLS[cell](inputs, hidden)
        self.output = nn.Linear(hidden, outputs)
        self.per_step = per_step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.recurrent(x)
        return self.output(y if self.per_step else y[-1])


def train(model: nn.Module, loss: Any, batches: Any, lr: float, falls: float = 0.0) -> float:
    """Take an Adam step per batch; the learning rate falls by ``falls`` each time. Return the seconds."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    started = time.perf_counter()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr - falls * step
        optimizer.zero_grad()
        loss(*batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return time.perf_counter() - started


def generators(seed: int, steps: int) -> Iterator[np.random.Generator]:
    """The random generators that draw the batch of each step."""
    return (np.random.default_rng([seed, step]) for step in range(steps))


def shuffled(count: int, batch: int, epochs: int, seed: int) -> Iterator[Array]:
    """The indices of each batch of each epoch."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for start in range(0, count, batch):
            yield order[start : start + batch]


def solve_adding(task: Task, seed: int) -> tuple[list[float], float]:
    """Mean squared error over 1,000 new examples."""
    model = Recurrent(task.cell, 2, task.hidden, 1, per_step=False)
    T, batch = task.data["steps"], task.training["batch"]
    batches = (map(torch.from_numpy, adding(rng, T, batch)) for rng in generators(seed, task.training["steps"]))
    seconds = train(model, lambda x, y: nn.functional.mse_loss(model(x), y), batches, task.training["lr"])
    x, y = map(torch.from_numpy, adding(np.random.default_rng(10_000), T, 1_000))
    with torch.inference_mode():
        return [nn.functional.mse_loss(model(x), y).item()], seconds


def solve_copying(task: Task, seed: int) -> tuple[list[float], float]:
    """Mean cross-entropy over 1,000 new examples."""
    model = Recurrent(task.cell, 10, task.hidden, 9, per_step=True)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = model(nn.functional.one_hot(x.long(), 10).float())
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.long().flatten())

    delay, batch = task.data["delay"], task.training["batch"]
    batches = (map(torch.from_numpy, copying(rng, delay, batch)) for rng in generators(seed, task.training["steps"]))
    seconds = train(model, loss, batches, task.training["lr"])
    with torch.inference_mode():
        test = copying(np.random.default_rng(10_000), delay, 1_000)
        return [loss(*map(torch.from_numpy, test)).item()], seconds


def solve_digits(task: Task, seed: int) -> tuple[list[float], float]:
    """Accuracy on the last 450."""
    data = digits(task.data["pixels"])
    x, test_x = (torch.from_numpy(np.stack(part, axis=1)) for part in (data.inputs, data.test_inputs))
    y, test_y = (torch.from_numpy(np.array(part)) for part in (data.targets, data.test_targets))
    model = Recurrent(task.cell, x.shape[2], task.hidden, 10, per_step=False)
    batches = (
        (x[:, chosen], y[chosen]) for chosen in shuffled(len(y), task.training["batch"], task.training["epochs"], seed)
    )
    lr, steps = task.training["lr"], task.training["epochs"] * -(-len(y) // task.training["batch"])
    seconds = train(model, lambda x, y: nn.functional.cross_entropy(model(x), y), batches, lr, lr / steps)
    with torch.inference_mode():
        return [(model(test_x).argmax(dim=1) == test_y).float().mean().item()], seconds


def solve_sunspots(task: Task, seed: int) -> tuple[list[float], float]:
    """The mean squared errors of one-step forecasts from the twelve values before, for two periods, over 1535."""
    series = sunspots()
    mean, std = series[:221].mean(), series[:221].std()
    scaled = ((series - mean) / std).astype(np.float32)
    windows = torch.from_numpy(np.stack([scaled[t - 12 : t] for t in range(12, 280)], axis=1)[:, :, None])
    targets = torch.from_numpy(scaled[12:280, None])
    model = Recurrent(task.cell, 1, task.hidden, 1, per_step=False)
    batches = (
        (windows[:, chosen], targets[chosen])
        for chosen in shuffled(209, task.training["batch"], task.training["epochs"], seed)
    )
    seconds = train(model, lambda x, y: nn.functional.mse_loss(model(x), y), batches, task.training["lr"])
    with torch.inference_mode():
        errors = ((model(windows) - targets) * std).square()[:, 0] / 1535
    # Years 1921-55 and 1956-79; entry t is the year 1712 + t.
    return [errors[209:244].mean().item(), errors[244:268].mean().item()], seconds


class Transducer(nn.Module):
    """A bidirectional GRU, and a GRU decoder with additive attention (Bahdanau et al. 2015)."""

    def __init__(self, source_symbols: int, target_symbols: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.source = nn.Embedding(source_symbols, embedding)
        self.target = nn.Embedding(target_symbols, embedding)
        self.encoder = nn.GRU(embedding, hidden, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.decoder = nn.GRUCell(embedding + 2 * hidden, hidden)
        self.query, self.keys = nn.Linear(hidden, hidden, bias=False), nn.Linear(2 * hidden, hidden, bias=False)
        self.v = nn.Linear(hidden, 1, bias=False)
        self.output = nn.Linear(3 * hidden + embedding, target_symbols)

    def encode(self, source: torch.Tensor, lengths: torch.Tensor) -> tuple[Any, ...]:
        packed = nn.utils.rnn.pack_padded_sequence(self.source(source), lengths, enforce_sorted=False)
        y, h = self.encoder(packed)
        y, _ = nn.utils.rnn.pad_packed_sequence(y)
        absent = torch.arange(source.shape[0])[:, None] >= lengths[None]
        return torch.tanh(self.bridge(torch.cat([h[0], h[1]], dim=1))), y, self.keys(y), absent

    def step(self, h: torch.Tensor, x: torch.Tensor, y: Any, keys: Any, absent: Any) -> tuple[Any, ...]:
        scores = self.v(torch.tanh(self.query(h) + keys))[:, :, 0].masked_fill(absent, -torch.inf)
        weights = torch.softmax(scores, dim=0)
        context = (weights[:, :, None] * y).sum(dim=0)
        h = self.decoder(torch.cat([x, context], dim=1), h)
        return h, torch.cat([h, context, x], dim=1), weights

    def forward(self, source: torch.Tensor, lengths: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        h, *memory = self.encode(source, lengths)
        read = []
        for x in self.target(previous):
            h, out, _ = self.step(h, x, *memory)
            read.append(out)
        return self.output(torch.stack(read))

    def greedy(self, source: torch.Tensor, lengths: torch.Tensor, longest: int) -> tuple[Array, Array]:
        h, *memory = self.encode(source, lengths)
        token = torch.full((source.shape[1],), BEGIN)
        tokens, alignment = [], []
        for _ in range(longest):
            h, out, weights = self.step(h, self.target(token), *memory)
            token = self.output(out).argmax(dim=1)
            tokens.append(token)
            alignment.append(weights)
        return torch.stack(tokens).numpy(), torch.stack(alignment).numpy()


def solve_transduction(task: Task, seed: int) -> tuple[list[float], float]:
    """The errors of greedy decoding."""
    data, source_symbols, target_symbols = transduction(task.data["name"])
    model = Transducer(source_symbols, target_symbols, task.training["embedding"], task.hidden)

    def loss(chosen: Array) -> torch.Tensor:
        source, lengths = padded([data.inputs[i] for i in chosen])
        target, target_lengths = padded([np.append(data.targets[i], END) for i in chosen])
        previous = np.concatenate([np.full((1, len(chosen)), BEGIN, np.int32), target[:-1]])
        logits = model(*(torch.from_numpy(a).long() for a in (source, lengths, previous)))
        exists = torch.from_numpy(np.arange(len(target))[:, None] < target_lengths)
        return nn.functional.cross_entropy(logits[exists], torch.from_numpy(target).long()[exists])

    steps, batch = task.training["steps"], task.training["batch"]
    epochs = -(-steps * batch // len(data.inputs)) + 1
    batches = (
        (chosen,) for _, chosen in zip(range(steps), shuffled(len(data.inputs), batch, epochs, seed), strict=False)
    )
    lr = task.training["lr"]
    seconds = train(model, loss, batches, lr, lr / steps)
    found, alignments = [], []
    longest = max(map(len, data.test_targets)) + 5
    with torch.inference_mode():
        for start in range(0, len(data.test_inputs), 500):
            source, lengths = padded(data.test_inputs[start : start + 500])
            tokens, alignment = model.greedy(torch.from_numpy(source).long(), torch.from_numpy(lengths).long(), longest)
            for lane in range(tokens.shape[1]):
                ends = np.flatnonzero(tokens[:, lane] == END)
                length = ends[0] if ends.size else longest
                found.append(tokens[:length, lane])
                alignments.append(alignment[:length, :, lane])
    return measure_transduction(task, found, alignments, data), seconds


def main() -> None:
    name, seed, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    task = TASKS[name]
    solve = {
        "adding": solve_adding,
        "copying": solve_copying,
        "digits": solve_digits,
        "sunspots": solve_sunspots,
        "transduction": solve_transduction,
    }[task.kind]
    measures, seconds = solve(task, seed)
    print(json.dumps({"measures": measures, "seconds": seconds}))


if __name__ == "__main__":
    main()
