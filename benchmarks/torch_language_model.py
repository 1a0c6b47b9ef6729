"""The language model of `gpurnn train` in PyTorch: `python -m benchmarks.torch_language_model PROBLEM.npz`.

The problem, from `end_to_end`, holds tokens, sizes and initial parameters; the answer is JSON on standard output.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import numpy as np


def lanes(tokens: Any, batch: int) -> Any:
    """(steps, batch): the stream cut into contiguous lanes."""
    length = len(tokens) // batch
    return np.ascontiguousarray(tokens[: batch * length].astype(np.int64).reshape(batch, length).T)


def main() -> None:
    """Train, and print the loss of each step and of the held-out text, in bits, and the seconds of all steps."""
    import torch

    with np.load(sys.argv[1]) as archive:
        arrays = dict(archive)
    parameters = {k.removeprefix("parameter "): arrays.pop(k) for k in list(arrays) if k.startswith("parameter ")}
    train, held_out = arrays.pop("train"), arrays.pop("held_out")
    problem = {name: value.item() for name, value in arrays.items()}
    symbols, embedding, hidden = (problem[name] for name in ("symbols", "embedding", "hidden"))
    batch, window = problem["batch"], problem["window"]
    torch.set_num_threads(problem["threads"])
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(symbols, embedding),
            "recurrent": torch.nn.LSTM(embedding, hidden),
            "output": torch.nn.Linear(hidden, symbols),
        }
    )
    model.load_state_dict({name: torch.from_numpy(array) for name, array in parameters.items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=problem["lr"])

    def cross_entropy(stream: Any, start: int, state: Any) -> tuple[Any, Any]:
        """The mean loss of the tokens start + 1 .. start + window of each lane, and the final state."""
        h, state = model["recurrent"](model["embedding"](stream[start : start + window]), state)
        targets = stream[start + 1 : start + window + 1]
        return torch.nn.functional.cross_entropy(model["output"](h).flatten(0, 1), targets.flatten()), state

    stream = torch.from_numpy(lanes(train, batch))
    windows = (len(stream) - 1) // window
    losses = []
    state: Any = None
    started = time.perf_counter()
    for step in range(problem["steps"]):
        index = step % windows
        state = None if index == 0 else tuple(s.detach() for s in state)
        loss, state = cross_entropy(stream, index * window, state)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), problem["clip"])
        optimizer.step()
        losses.append(loss.item() / math.log(2))
    seconds = time.perf_counter() - started

    stream = torch.from_numpy(lanes(held_out, min(batch, len(held_out) // (window + 1))))
    starts = range(0, len(stream) - window, window)
    total, state = 0.0, None
    with torch.inference_mode():
        for start in starts:
            loss, state = cross_entropy(stream, start, state)
            total += loss.item() / math.log(2)
    print(json.dumps({"losses": losses, "held_out": total / len(starts), "seconds": seconds}))


if __name__ == "__main__":
    main()
