"""Files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path

_PARTIAL = re.compile(r"\.(.*)\.[0-9a-f]{16}\.partial", re.DOTALL)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash at any moment leaves the old file or the new one, never a part.

    The bytes go to a temporary file in the same directory, which is flushed to the disk and renamed over ``path``; then
    the directory is flushed, so that the new name outlives a power cut. Whatever fails before the rename leaves the old
    file, and no temporary file. Any number of threads and processes may write to one path: the last rename wins.

    A symbolic link stays: the file that it points to is replaced. A file that is overwritten keeps its mode, a new one
    gets the mode that the umask allows.

    Raises
    ------
    OSError
        The file cannot be written: ``path`` is read-only, a directory, or a device, pipe or socket, which a rename
        would destroy; the directory is missing or read-only; the disk is full.
    """
    target = Path(os.path.realpath(path))
    mode = _mode(path, target)
    # A part of the name tells a reader of the directory whose it is; the whole name might exceed the system's limit.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.partial")

    def opener(name: str, flags: int) -> int:
        # The old mode from the start, so that at no moment more people can read the new contents than the old.
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666 if mode is None else mode & 0o700)

    try:
        with open(temporary, "xb", opener=opener) as file:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except FileExistsError:
        raise  # what has the temporary name is another's
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush_directory(target.parent)


def _mode(path: str | os.PathLike[str], target: Path) -> int | None:
    """The permissions of the file to overwrite, None if there is none; raise OSError if it must not be overwritten."""
    try:
        found = os.lstat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found):  # the resolved path is a link only where links form a loop
        code = errno.ELOOP
    elif stat.S_ISDIR(found):
        code = errno.EISDIR
    elif not stat.S_ISREG(found):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    elif not os.access(target, os.W_OK):
        code = errno.EACCES
    else:
        return stat.S_IMODE(found)
    raise OSError(code, os.strerror(code), os.fspath(path))


def partial_files(directory: str | os.PathLike[str], name: re.Pattern[str]) -> list[Path]:
    """The temporary files that killed writers of files called ``name`` left in ``directory``.

    Those of live writers are among them: delete them only where nobody else can be writing.
    """
    found = []
    for path in Path(directory).iterdir():
        match = _PARTIAL.fullmatch(path.name)
        if match and name.fullmatch(match[1]):
            found.append(path)
    return found


def flush_directory(directory: str | os.PathLike[str]) -> None:
    """Have the names in ``directory`` on the disk."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a directory, and needs no such flush
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            return  # the directory can be written to, but not be opened: its names reach the disk when the system will
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
