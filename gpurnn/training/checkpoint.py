"""Checkpoints: whole or not there at all, and known to be what was written.

A checkpoint is a safetensors file. Its metadata hold a format tag, a version, everything of the training state that is
no array, as JSON, and a SHA-256 checksum over that and over every array.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from .. import _dispatch, _files

FORMAT = "gpurnn checkpoint"
VERSION = "1"
KEPT = 2
"""How many checkpoints a directory keeps: the newest, and the one to fall back on should that be damaged."""

_NAME = re.compile(r"step-(\d{9,})\.safetensors")


class CheckpointError(ValueError):
    """A checkpoint that is missing, is damaged, was not written by gpurnn or belongs to another training run."""


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _pack(value: Any, path: str, tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    """``value`` as JSON can hold it: arrays move to ``tensors`` under their path and leave a reference."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {key: _pack(item, f"{path}/{key}" if path else key, tensors) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"<tuple>": items} if isinstance(value, tuple) else items
    if _is_array(value):
        # Contiguous, because safetensors writes nbytes from the first element on and never looks at strides; and in the
        # byte order of the file, so that the checksum is over what is read back.
        array = np.asarray(_dispatch.to_numpy(value), order="C")
        tensors[path] = array.astype(array.dtype.newbyteorder("<"), copy=False)
        return {"<array>": path}
    raise TypeError(f"write_checkpoint: {path} is a {type(value).__name__}, expected arrays, numbers, strings or None")


def _unpack(value: Any, tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "<array>" in value:
        return tensors[value["<array>"]]
    if "<tuple>" in value:
        return tuple(_unpack(item, tensors) for item in value["<tuple>"])
    return {key: _unpack(item, tensors) for key, item in value.items()}


def _checksum(tensors: dict[str, np.ndarray[Any, Any]], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype.str}\0{tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write ``state`` to ``path``, atomically.

    Parameters
    ----------
    path : path
    state : dict
        Dicts, tuples and lists, nested as one likes, of arrays, numbers, strings and None.

    Raises
    ------
    TypeError
        ``state`` holds something else.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    text = json.dumps(_pack(state, "", tensors))
    metadata = {"format": FORMAT, "version": VERSION, "state": text, "sha256": _checksum(tensors, text)}
    _files.write_atomically(path, safetensors.numpy.save(tensors, metadata))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_checkpoint` wrote to ``path``; its arrays are NumPy's.

    Raises
    ------
    CheckpointError
        The file is not a checkpoint, is damaged, or is of a version that this one cannot read; the message says which.
    OSError
        The file cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint that gpurnn wrote")
            if metadata.get("version") != VERSION:
                raise CheckpointError(
                    f"{path}: a checkpoint of version {metadata.get('version')}, expected version {VERSION}; "
                    "it was written by another version of gpurnn"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error})") from error
    text = metadata.get("state", "")
    if _checksum(tensors, text) != metadata.get("sha256"):
        raise CheckpointError(f"{path}: damaged: its contents do not match their checksum")
    state: dict[str, Any] = _unpack(json.loads(text), tensors)
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
    """Write the checkpoint of ``step`` into ``directory`` and remove all but the newest two up to it."""
    directory = Path(directory)
    if not directory.is_dir():
        directory.mkdir(parents=True)
        _files.flush_directory(directory.parent)
    path = directory / f"step-{step:09d}.safetensors"
    write_checkpoint(path, state)
    found = checkpoints(directory)
    outdated = found[: max(0, found.index(path) + 1 - KEPT)]
    for stale in [*outdated, *_files.partial_files(directory, _NAME)]:  # the latter of writes that were killed
        stale.unlink()
    return path


def latest_checkpoint(directory: str | os.PathLike[str]) -> tuple[Path, dict[str, Any]]:
    """The path and the state of the newest sound checkpoint in ``directory``.

    A newer one that is damaged or foreign is passed over with a warning that names it and says why.

    Raises
    ------
    CheckpointError
        There is no checkpoint, or none that is sound.
    """
    refused: list[str] = []
    for path in reversed(checkpoints(directory)):
        try:
            state = read_checkpoint(path)
        except (CheckpointError, OSError) as error:
            refused.append(str(error))
            continue
        for reason in refused:
            warnings.warn(f"{reason}; using the one before it, {path}", stacklevel=2)
        return path, state
    if refused:
        raise CheckpointError("; ".join(refused))
    raise CheckpointError(f"{directory}: no checkpoint in there")
