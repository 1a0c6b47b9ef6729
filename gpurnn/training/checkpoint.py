"""Checkpoints: files with the whole state of a training run, and the choice of the one to read in a directory.

In a file, arrays are tensors named by their path in the state, and the rest of the state is JSON; see `_files`.
"""

from __future__ import annotations

import itertools
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .. import _dispatch, _files

KEPT = 2
"""The number of checkpoints that a directory keeps: the newest, and one to fall back on if the newest is damaged."""

_NAME = re.compile(r"step-(\d{9,})\.safetensors")


def file_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"step-{step:09d}.safetensors"


class CheckpointError(_files.FileFormatError):
    """A checkpoint that is missing, is damaged, was not written by gpurnn or belongs to another training run."""


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


_ARRAY, _TUPLE = "<array>", "<tuple>"
"""The only keys of the dicts that stand for an array and for a tuple."""


def _pack(value: Any, path: str, tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    """A JSON-compatible copy of ``value``: arrays move to ``tensors`` under their path and leave a reference."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        packed = {}
        for key, item in value.items():
            if not isinstance(key, str) or key in (_ARRAY, _TUPLE):
                raise TypeError(f"write_checkpoint: {path or 'state'} has the key {key!r}, expected a name")
            # A slash in a key is escaped, so that two paths are never equal.
            name = key.replace("~", "~0").replace("/", "~1")
            packed[key] = _pack(item, f"{path}/{name}" if path else name, tensors)
        return packed
    if isinstance(value, (tuple, list)):
        items = [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    if _is_array(value):
        tensors[path] = np.asarray(_dispatch.to_numpy(value))
        return {_ARRAY: path}
    raise TypeError(f"write_checkpoint: {path} is a {type(value).__name__}, expected arrays, numbers, strings or None")


def _unpack(value: Any, tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return tensors[value[_ARRAY]]
    if _TUPLE in value:
        return tuple(_unpack(item, tensors) for item in value[_TUPLE])
    return {key: _unpack(item, tensors) for key, item in value.items()}


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``, atomically.

    Parameters
    ----------
    path : path
    state : dict
        Dicts, tuples and lists, arbitrarily nested, of arrays, numbers, strings and None.

    Raises
    ------
    TypeError
        ``state`` holds something else.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    content = _pack(state, "", tensors)
    _files.write_tensors(path, "write_checkpoint", "checkpoint", content, tensors)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content that `write_checkpoint` wrote to ``path``; its arrays are NumPy's.

    Raises
    ------
    CheckpointError
        The file is not a checkpoint, is damaged, or is of a version that this one cannot read; the message says which.
    OSError
        The file does not exist or cannot be read.
    """
    try:
        content, tensors = _files.read_tensors(path, "checkpoint")
    except _files.FileFormatError as error:
        raise CheckpointError(*error.args) from error
    try:
        state = _unpack(content, tensors)
    except (KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: its arrays are not those that it names") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: damaged: it holds a {type(state).__name__}, expected a dict")
    return state


def checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """The checkpoint files in ``directory``, oldest first; none if there is no such directory."""
    found = []
    directory = Path(directory)
    if directory.is_dir():
        for path in directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def save_checkpoint(directory: str | os.PathLike[str], step: int, state: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step`` into ``directory``; of the earlier ones of its run, keep only the newest.

    A checkpoint is of the same run if it has the same ``state["run"]``. Any other file with the name of a checkpoint
    stays; one with the name of this checkpoint is renamed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        directory.mkdir(parents=True)
        _files.flush_directory(directory.parent)
    path = directory / file_name(step)
    run = state.get("run")
    if os.path.lexists(path) and not is_of_run(path, run):
        _set_aside(path)
    write_checkpoint(path, state)
    own = [found for found in checkpoints(directory) if found == path or is_of_run(found, run)]
    outdated = own[: max(0, own.index(path) + 1 - KEPT)]
    for stale in [*outdated, *_files.partial_files(directory, _NAME)]:  # killed writes left the latter
        stale.unlink()
    return path


def is_of_run(path: Path, run: str | None) -> bool:
    """Whether a file is a checkpoint of a run, according to its header."""
    try:
        content = _files.read_content(path, "checkpoint")
    except (_files.FileFormatError, OSError):
        return False
    return isinstance(content, dict) and content.get("run") == run


def _set_aside(path: Path) -> None:
    """Rename a file to NAME.1, or the next number that is free, so that another can have its name."""
    free = next(name for i in itertools.count(1) if not os.path.lexists(name := path.with_name(f"{path.name}.{i}")))
    os.rename(path, free)


def latest_checkpoint(directory: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The path and the state of the newest sound checkpoint in ``directory``.

    A newer one that is damaged or foreign is skipped, with a warning that names it and gives the reason.

    Raises
    ------
    CheckpointError
        There is no checkpoint, or none that is sound.
    """
    refused: list[str] = []
    for path in reversed(checkpoints(directory)):
        try:
            state = read_checkpoint(path)
            step = state.get("step")
            if isinstance(step, bool) or not isinstance(step, int) or path.name != file_name(step):
                raise CheckpointError(f"{path}: its step is {step!r}, expected that of its name")
        except (CheckpointError, OSError) as error:
            refused.append(str(error))
            continue
        for reason in refused:
            warnings.warn(f"{reason}; using the one before it, {path}", stacklevel=2)
        return path, state
    if refused:
        raise CheckpointError("; ".join(refused))
    raise CheckpointError(f"{directory}: no checkpoint in there")
