"""The process of one contender: `python -m benchmarks.worker CONTENDER THREADS`.

It takes questions and gives answers as pickles over standard input and output, until the input ends.
"""

from __future__ import annotations

import os
import pickle
import statistics
import sys
import time
from typing import Any

import numpy as np

from .contenders import CONTENDERS, NotInstalled, Step


def _come_to_rest() -> None:
    """Wait until the threads of this process, which spin for a while after their work, have slept for 0.15 s.

    The threads of some libraries wake up once more after a shorter time.
    """
    while True:
        spent = time.process_time()
        time.sleep(0.15)
        if time.process_time() - spent < 0.001:
            return


def _time(step: Step, calls: int) -> float:
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Serve the parent until it closes the pipe."""
    name, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of a library must not get between the answers

    def answer(value: Any) -> None:
        _come_to_rest()
        pickle.dump(value, answers, protocol=5)
        answers.flush()

    try:
        contender = next(c for c in CONTENDERS if c.name == name)(threads)
    except ImportError as error:
        answer(NotInstalled(f"{name} cannot take part: {error} in {sys.executable}"))
        return
    answer(contender.versions)
    step: Step
    while True:
        try:
            what, argument = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if what == "prepare":
            step = contender.prepare(argument)
            answer({key: np.asarray(array) for key, array in step().items()})
        else:
            answer(_time(step, argument))


if __name__ == "__main__":
    main()
