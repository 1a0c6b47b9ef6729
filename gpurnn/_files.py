"""Files that are whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash at any moment leaves the old file or the new one, never a part.

    The bytes go to a temporary file in the same directory, which is flushed to the disk and renamed over ``path``; then
    the directory is flushed, so that the new name outlives a power cut.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    flush_directory(path.parent)


def flush_directory(directory: str | os.PathLike[str]) -> None:
    """Have the names in ``directory`` on the disk."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a directory, and needs no such flush
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
