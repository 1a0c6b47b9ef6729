"""One process per contender: the thread pools of two BLAS or OpenMP libraries in one process disturb each other."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from .cases import AnyCase, Array

ROOT = Path(__file__).resolve().parent.parent


def thread_limits(threads: int) -> dict[str, str]:
    """The environment of a process whose BLAS and OpenMP libraries use so many threads."""
    return {**os.environ, **{f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}}


class Worker:
    """A contender in a process of its own, which is idle except during a call.

    Parameters
    ----------
    name : str
        The name of the contender.
    threads : int
        The number of threads that it may use.
    python : str
        The interpreter that has its library.

    Raises
    ------
    NotInstalled
        The interpreter does not have the library.
    """

    def __init__(self, name: str, threads: int, python: str = sys.executable) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", name, str(threads)],
            cwd=ROOT, env=thread_limits(threads), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            self.versions: str = self._answer()
        except BaseException:
            self.close()
            raise

    def prepare(self, case: AnyCase) -> dict[str, Array]:
        """Get ready to repeat a case, and return the results of a first step, which warms up."""
        outputs: dict[str, Array] = self._ask("prepare", case)
        return outputs

    def time(self, calls: int) -> float:
        """The median seconds of some calls of the step, one after another."""
        return float(self._ask("time", calls))

    def _ask(self, *question: Any) -> Any:
        assert self._process.stdin is not None
        pickle.dump(question, self._process.stdin)
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        try:
            answer = pickle.load(self._process.stdout)
        except EOFError:
            raise RuntimeError(f"the process of {self.name} ended with code {self._process.wait()}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
