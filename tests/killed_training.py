"""Training runs that are killed with SIGKILL, for test_resume.py: ``python killed_training.py MODE DIRECTORY``.

The killed runs are processes forked from this one. MODE "events" kills runs at each of the moments at which something
is written; "random" kills one run repeatedly at random times. The results are printed as JSON.
"""

import hashlib
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import time

import numpy as np

from gpurnn import _files
from gpurnn.models import CharVocabulary, LanguageModel
from gpurnn.optimizers import Adam
from gpurnn.schedules import CosineWithWarmup
from gpurnn.training import PaddedBatches, TokenStream, Trainer
from gpurnn.training import directory as directory_module
from gpurnn.training.checkpoint import checkpoints


def build(directory, steps, checkpoint_interval):
    model = LanguageModel(CharVocabulary("?abcdefg"), 6, 12, num_layers=2, dropout=0.2, rng=1)
    rng = np.random.default_rng(0)
    data = TokenStream(rng.integers(0, 8, 400, dtype=np.int32), 4, 9, gradient_steps=13)
    validation = PaddedBatches([rng.integers(0, 8, n, dtype=np.int32) for n in (3, 9, 5)], 2)
    run = Trainer(
        model, data, Adam(lr=0.01), steps=steps, schedule=CosineWithWarmup(0.01, 100, 5), clip_norm=0.5, l2=1e-3,
        validation=validation, validation_interval=4, patience=100, directory=directory,
        checkpoint_interval=checkpoint_interval, log_interval=3, metric="perplexity", rng=7, progress=False,
    )  # fmt: skip
    return model, run


def train(directory, steps, checkpoint_interval):
    model, run = build(directory, steps, checkpoint_interval)
    if checkpoints(directory / "checkpoints"):
        run.resume()
    run.train()
    digest = hashlib.sha256(b"".join(p.tobytes() for p in model.params.values())).hexdigest()
    (directory / "digest").write_text(digest)


class Killer:
    """Counts the moments at which something is written, and kills this process at number ``at``."""

    def __init__(self, at):
        self.left = at

    def event(self):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function):
        def killable(*arguments, **options):
            self.event()
            result = function(*arguments, **options)
            self.event()
            return result

        return killable

    def arm(self):
        os.fsync = self.around(os.fsync)  # wraps the no-op set below
        os.replace = self.around(os.replace)
        pathlib.Path.unlink = self.around(pathlib.Path.unlink)
        Adam.step = self.around(Adam.step)
        for module in (_files, directory_module):
            module.open = self.half_written

    def half_written(self, *arguments, **options):
        return HalfWriter(open(*arguments, **options), self)


class HalfWriter:
    """A file whose writes may be killed halfway, after the first half has reached it."""

    def __init__(self, file, killer):
        self.file, self.killer = file, killer

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        self.killer.event()
        self.file.write(data[len(data) // 2 :])

    def truncate(self, size):
        self.killer.event()
        self.file.truncate(size)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __iter__(self):
        return iter(self.file)

    def __getattr__(self, name):
        return getattr(self.file, name)


def forked(work, *arguments):
    """Call ``work`` in a new process; return its id."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


def was_killed(child):
    """Wait for a process; return whether it was killed. It must not have failed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "a training run failed"
    return False


def outcome(directory):
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        record.pop("tokens_per_second", None)
    return {"digest": (directory / "digest").read_text(), "metrics": metrics}


def train_until(at, *arguments):
    Killer(at).arm()
    train(*arguments)


def events(directory):
    """Kill a run at the first event of its life, another at the second, and so on. Each is then resumed to its end."""
    sizes = 5, 2
    train(directory / "whole", *sizes)
    found = []
    for at in itertools.count(1):
        here = directory / str(at)
        killed = was_killed(forked(train_until, at, here, *sizes))
        if killed:
            was_killed(forked(train, here, *sizes))
        found.append(outcome(here))
        if not killed:
            return {"whole": outcome(directory / "whole"), "killed": found}


def at_random(directory):
    """Kill one run at random times, nine times if it lasts that long, and let it finish."""
    sizes = 100, 2
    train(directory / "warm", 1, 1)
    began = time.perf_counter()
    train(directory / "whole", *sizes)
    lasted = time.perf_counter() - began
    here, kills, rng = directory / "killed", 0, random.Random(0)
    for _ in range(9):
        child = forked(train, here, *sizes)
        time.sleep(rng.uniform(0.01, 0.1) * lasted)
        os.kill(child, signal.SIGKILL)  # harmless to a process that has ended but was not waited for
        kills += was_killed(child)
    was_killed(forked(train, here, *sizes))
    return {"whole": outcome(directory / "whole"), "killed": [outcome(here)], "kills": kills}


if __name__ == "__main__":
    mode, folder = sys.argv[1:]
    os.fsync = lambda descriptor: None  # slow, and it protects against a power cut, not a kill
    print(json.dumps({"events": events, "random": at_random}[mode](pathlib.Path(folder))))
