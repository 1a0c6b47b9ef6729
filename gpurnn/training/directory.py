"""The directory of a training run: it belongs to one run, and is locked while that run trains."""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _checks, _files, _metrics
from .checkpoint import checkpoints

RUN, METRICS_FILE, CHECKPOINTS, LOCK = "run.json", "metrics.jsonl", "checkpoints", ".gpurnn.lock"
FORMAT, VERSION = "gpurnn training run", 1


class RunDirectoryError(ValueError):
    """A directory in which another process trains, or that holds another run or files that no run wrote."""


class RunDirectory:
    """A directory that one run writes to.

    The file ``run.json`` marks a directory as a run's, and names the run and the wing that computes it. A new run takes
    a directory that holds none of the names that it writes. From then on these names belong to the run; every other
    file in the directory is left alone.

    Parameters
    ----------
    path : path
    names : sequence of str
        The files that the run writes there besides ``run.json``, ``metrics.jsonl`` and ``checkpoints``.
    details : dict, optional
        Further entries of ``run.json``, JSON-compatible.
    """

    def __init__(
        self, path: str | os.PathLike[str], names: Sequence[str] = (), details: dict[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        self.names, self.details = tuple(names), dict(details or {})
        self._lock: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}  # a lock belongs to the process, and to the object that took it

    @contextmanager
    def locked(self, *, new: bool) -> Iterator[None]:
        """Make the directory if it is missing, and hold its lock, which this object may take several times.

        Parameters
        ----------
        new : bool
            Whether a new run is to begin. If it must not begin there, nothing in the directory changes.

        Raises
        ------
        RunDirectoryError
            Another process or another trainer holds the lock, or a new run cannot begin there.
        """
        import filelock

        if new and not self.belongs_to_a_run():
            self.check_new()
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            _files.flush_directory(self.path.parent)
        if self._lock is None:
            self._lock = filelock.FileLock(self.path / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunDirectoryError(
                f"Trainer: directory {self.path} is in use by another training run{self._holder()}; wait until it has "
                "ended, or choose another directory"
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def belongs_to_a_run(self) -> bool:
        """Whether ``run.json`` is there and sound."""
        try:
            return self.read() is not None
        except RunDirectoryError:
            return False

    def _holder(self) -> str:
        held = self.read() if self.belongs_to_a_run() else None
        if held is None or "pid" not in held:
            return ""
        host = "" if held.get("host") == socket.gethostname() else f" on {held.get('host')}"
        return f" (process {held['pid']}{host})"

    def read(self) -> dict[str, Any] | None:
        """The contents of ``run.json``; None if there is no such file.

        Raises
        ------
        RunDirectoryError
            The file is damaged, or is not one that this version of gpurnn wrote.
        """
        path = self.path / RUN
        try:
            with _files.open_regular(path) as file:
                held = json.loads(file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except _files.FileFormatError as error:
            raise RunDirectoryError(*error.args) from error
        except (ValueError, RecursionError) as error:
            raise RunDirectoryError(f"{path}: damaged: {error}") from error
        if (
            not isinstance(held, dict)
            or (held.get("format"), held.get("version")) != (FORMAT, VERSION)
            or not isinstance(held.get("run"), str)
        ):
            raise RunDirectoryError(f"{path}: not a training run that this version of gpurnn can resume")
        return held

    def check_new(self) -> dict[str, Any] | None:
        """Reject a directory that a new run cannot take; return the ``run.json`` of a run without steps, or None."""
        held = checkpoints(self.path / CHECKPOINTS)
        if held:
            raise RunDirectoryError(
                f"Trainer: directory {self.path} already holds a training run ({held[-1].name}); "
                "call resume() first, or choose another directory"
            )
        self._reject_foreign((METRICS_FILE, CHECKPOINTS, *self.names))
        run = self.read()
        if run is not None and _size(self.path / METRICS_FILE):
            raise RunDirectoryError(
                f"Trainer: directory {self.path} holds the {METRICS_FILE} of a run whose checkpoints are gone; "
                "choose another directory"
            )
        return run

    def begin(self, wing: str | None = None, *, anew: bool = False) -> str:
        """Take the directory for a new run, under the lock, and return the identity of the run.

        Parameters
        ----------
        wing : str, optional
            The wing that computes, for ``run.json``; see `gpurnn.use`.
        anew : bool
            Whether to drop the entries of an earlier run from ``run.json``, except its identity.

        Raises
        ------
        RunDirectoryError
            The directory holds a run, or files that no run wrote.
        """
        held = self.check_new()
        run = uuid.uuid4().hex if held is None else held["run"]
        self._write({} if anew else held or {}, run, wing)
        return str(run)

    def go_on(self, run: str, known: set[str], wing: str) -> None:
        """Take the directory again, under the lock, for the run that its checkpoints belong to.

        Warn if another wing computed before.

        Raises
        ------
        RunDirectoryError
            The directory belongs to another run, or holds a checkpoint that is not among the ``known`` ones.
        """
        held = self.read()
        if held is None:
            self._reject_foreign((METRICS_FILE, *self.names))
        elif held["run"] != run:
            raise RunDirectoryError(
                f"Trainer: directory {self.path} belongs to another run since; choose another directory"
            )
        later = [path.name for path in checkpoints(self.path / CHECKPOINTS) if path.name not in known]
        if later:
            raise RunDirectoryError(
                f"Trainer: directory {self.path} holds {later[-1]}, which another trainer wrote since this one read or "
                "wrote its last checkpoint; call resume() first"
            )
        before = str((held or {}).get("wing", wing))
        if before != wing:
            _checks.warn(
                "Trainer",
                f"{self.path / RUN} says that {before} computed the run, which {wing} resumes, so it will not have the "
                f"bits of a run without a break; to keep them, {_cure(before)}",
            )
        self._write(held or {}, run, wing)

    def _reject_foreign(self, names: Sequence[str]) -> None:
        """Reject files in the way of a run, unless ``run.json`` says that they belong to a run."""
        if self.belongs_to_a_run():
            return
        found = [name for name in (RUN, *names) if os.path.lexists(self.path / name)]
        if CHECKPOINTS in found and _is_empty(self.path / CHECKPOINTS):
            found.remove(CHECKPOINTS)
        if found:
            raise RunDirectoryError(
                f"Trainer: directory {self.path} holds {_listed(found)}, which no training run wrote there and which "
                f"a run would overwrite; choose another directory, or move {'it' if len(found) == 1 else 'them'} away"
            )

    def _write(self, held: dict[str, Any], run: str, wing: str | None) -> None:
        """Write ``run.json``, with this process as the one that trains."""
        own = {"format": FORMAT, "version": VERSION, "run": run, "pid": os.getpid(), "host": socket.gethostname()}
        if wing is not None:
            own["wing"] = wing
        _files.write_atomically(self.path / RUN, json.dumps({**held, **self.details, **own}, indent=1).encode())

    def append_metrics(self, records: Sequence[dict[str, Any]]) -> int:
        """Append lines to the metrics, and return their number of bytes."""
        data = _metrics.encoded(records)
        path = self.path / METRICS_FILE
        with _files.blamed_on(path), open(path, "ab") as file:
            file.write(data)
        return len(data)

    def trim_metrics(self, size: int) -> int:
        """Cut the metrics after ``size`` bytes, and return their new size, which may be smaller."""
        path = self.path / METRICS_FILE
        if path.exists():
            _files.open_regular(path).close()  # a pipe is rejected, and not waited for
        with open(path, "ab") as file:
            held = file.seek(0, os.SEEK_END)
            if held > size:
                file.truncate(size)
        return min(held, size)

    def flush_metrics(self) -> None:
        """Flush the metrics to the disk."""
        path = self.path / METRICS_FILE
        with _files.blamed_on(path), open(path, "ab") as file:
            os.fsync(file.fileno())


class FollowedDirectory(RunDirectory):
    """The directory of a run in which another process of the run writes: this one only reads, and does not lock."""

    @contextmanager
    def locked(self, *, new: bool) -> Iterator[None]:
        yield

    def begin(self, wing: str | None = None, *, anew: bool = False) -> str:
        return "followed"

    def go_on(self, run: str, known: set[str], wing: str) -> None: ...

    def append_metrics(self, records: Sequence[dict[str, Any]]) -> int:
        return len(_metrics.encoded(records))

    def trim_metrics(self, size: int) -> int:
        return size

    def flush_metrics(self) -> None: ...


def _cure(wing: str) -> str:
    """The advice how to compute with a wing, which ``run.json`` names."""
    if wing == "cuda":
        return "resume it on a GPU"
    name, _, instructions = wing.rstrip(")").partition(" (")
    return f"set GPURNN_WING={name}" + (f" and GPURNN_CPU={instructions}" if instructions else "")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())
