"""The C++ compiler, and the cache of the files that it makes.

The compiler is ``$CXX``, else g++, else clang++, else the one in the ``ziglang`` wheel, so that pip is enough. A
compiler command that runs longer than ``$GPURNN_COMPILER_TIMEOUT`` seconds (600 by default) is ended.

The cache is ``$GPURNN_CACHE_DIR``, else the user's cache directory of the system: ``$XDG_CACHE_HOME/gpurnn`` or
``~/.cache/gpurnn`` on Linux. A relative path counts from the directory that the process is in when it first uses the
cache. The name of a file holds a digest of everything that went into it, and its SHA-256 is stored next to it. Files of
the cache run in this process, so

- nobody but the user and root may be able to write to the directory or to rename one above it;
- a file is used if only the user or root can have written it and its checksum is right; otherwise it is made again.

A default directory that others can write to, or that the user cannot, is replaced by a temporary one for this process,
with a warning. Such a ``$GPURNN_CACHE_DIR`` is an error. On Windows access lists keep the user's directories private,
and only the checksum is verified.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import math
import os
import platform
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

KERNELS = Path(__file__).resolve().parent

_POSIX = os.name == "posix"
_TIMEOUT = "GPURNN_COMPILER_TIMEOUT"
_CACHE = "GPURNN_CACHE_DIR"


class CompilerError(RuntimeError):
    """No compiler was found, it rejected the source or did not end, or its output cannot be stored safely."""


# ---- The compiler ---------------------------------------------------------------------------------------------------


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler's command, searched for at each call.

    Raises
    ------
    CompilerError
        There is no compiler, or ``$CXX`` is not a command.
    """
    named = os.environ.get("CXX")
    if named and not named.isspace():
        try:
            return (named,) if shutil.which(named) else tuple(shlex.split(named, posix=_POSIX))
        except ValueError as error:
            raise CompilerError(f"CXX is {named!r}, expected a command: {error}") from error
    for name in ("g++", "clang++"):
        path = shutil.which(name)
        if path:
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise CompilerError("no C++ compiler: set CXX, install g++ or clang++, or `pip install ziglang`")


@functools.cache
def compiler_version(compiler: tuple[str, ...]) -> str:
    """The output of ``compiler --version``."""
    return run((*compiler, "--version"))


def is_clang(compiler: tuple[str, ...]) -> bool:
    """Whether the compiler is clang++, as the one in the ``ziglang`` wheel is, and not g++."""
    return "ziglang" in compiler or "clang" in compiler_version(compiler)


def time_limit() -> float:
    """Seconds that a command of the compiler may take: ``$GPURNN_COMPILER_TIMEOUT``, or 600.

    Raises
    ------
    ValueError
        The variable is not a positive number.
    """
    text = os.environ.get(_TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{_TIMEOUT} is {text!r}, expected a positive number of seconds")
    return seconds


def run(command: Sequence[str]) -> str:
    """Run a compiler command to its end and return its output.

    Raises
    ------
    CompilerError
        The command does not start, fails, or takes longer than `time_limit`.
    """
    seconds = time_limit()
    # The kernels need AddressSanitizer in this process. The compiler does not, and would take over half as long again.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    # The output goes to a file, because a pipe stays open until every process that the compiler started has ended.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
                start_new_session=_POSIX,
            )  # fmt: skip
        except OSError as error:
            raise CompilerError(f"the C++ compiler {command[0]} does not run: {error}") from error
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise CompilerError(
                f"the C++ compiler did not end within {seconds:g} seconds, which the environment variable {_TIMEOUT} "
                f"can change:\n{shlex.join(command)}"
            ) from None
        finally:
            _end(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status != 0:
        raise CompilerError(f"{shlex.join(command)}\n{text}")
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, with all processes that it started."""
    if process.poll() is None:
        if _POSIX:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def included(text: str) -> list[str]:
    """The names that a source includes in quotes."""
    return re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, re.MULTILINE)


def source_closure(source: Path, include: str | None = None) -> dict[Path, str]:
    """The texts of ``source`` and of every file that it includes in quotes, directly or indirectly.

    Includes that the preprocessor would skip count too. ``include`` is a header in ``kernels/`` that comes first.
    """
    texts: dict[Path, str] = {}
    waiting = [source.resolve(), *([(KERNELS / include).resolve()] if include else [])]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_text(encoding="utf-8")
        for name in included(texts[path]):
            places = [directory / name for directory in (path.parent, KERNELS)]
            waiting.extend(place.resolve() for place in places if place.is_file())
    return texts


def translation_unit(source: str, include: str | None, proofs: Sequence[str]) -> str:
    """``source`` with the header ``include`` before it and the declarations ``proofs``, which check it, after it."""
    return "\n".join([*([f'#include "{include}"'] if include else []), source, *proofs, ""])


def digest_of(*parts: str | bytes) -> str:
    """One hash of all parts and of their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode() if isinstance(part, str) else part
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()[:32]


# ---- The cache ------------------------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """The cache directory. It exists, and only the user and root can write to it.

    Raises
    ------
    CompilerError
        ``$GPURNN_CACHE_DIR`` is not such a directory, or cannot be made.
    """
    named = os.environ.get(_CACHE)
    if named:
        directory = Path(_first_place(named))
    else:
        import platformdirs

        directory = Path(_first_place(platformdirs.user_cache_dir("gpurnn", appauthor=False)))
    try:
        directory = _made(Path(os.path.realpath(directory)))
    except OSError as error:
        fault: str | None = f"{directory} cannot be made: {error.strerror}"
    else:
        fault = _fault(directory)
        if not fault and not named and not os.access(directory, os.W_OK):
            fault = f"{directory} is not writable"
    if not fault:
        return directory
    if named:
        raise CompilerError(
            f"{_CACHE} is {named!r}, expected a directory that only you can write to, as its libraries run in this "
            f"process: {fault}"
        )
    return _of_this_process(os.getpid(), fault)


@functools.cache
def _first_place(directory: str) -> str:
    """The absolute path of a directory at its first use: the process may change its working directory later."""
    return os.path.abspath(directory)


def _made(directory: Path) -> Path:
    """Make a directory and its parents where they do not exist, with access for the user alone. Return it."""
    if not directory.exists():
        _made(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _fault(directory: Path) -> str | None:
    """Why others could put a file into a directory; None if they cannot. Its path has no symbolic links."""
    if not directory.is_dir():
        return f"{directory} is not a directory"
    for path in (directory, *directory.parents):
        status = path.stat()
        # In a sticky directory, such as /tmp, others can make files, but not rename those of this user.
        if _is_private(status) or (path != directory and _is_owned(status) and status.st_mode & stat.S_ISVTX):
            continue
        if not _is_owned(status):
            return f"{path} belongs to another user"
        return f"others can write to {path}; `chmod go-w {shlex.quote(str(path))}` ends that"
    return None


def _is_owned(status: os.stat_result) -> bool:
    return not _POSIX or status.st_uid in (0, os.geteuid())


def _is_private(status: os.stat_result) -> bool:
    """Whether only the user and root can write."""
    if not _POSIX:
        return True
    shared = status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid))
    return _is_owned(status) and not shared


def _is_own_group(gid: int) -> bool:
    """Whether a group belongs to the user alone: many systems make such a group for each user."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


@functools.cache
def _of_this_process(pid: int, fault: str) -> Path:
    """A temporary directory instead of the default one, removed when the process ``pid`` ends."""
    warnings.warn(
        f"compiled kernels are kept for this process only, because {fault}; set {_CACHE} to a directory that only you "
        "can write to",
        RuntimeWarning,
        stacklevel=2,
    )
    directory = tempfile.mkdtemp(prefix="gpurnn-")

    def remove() -> None:
        if os.getpid() == pid:  # a forked child runs this too
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return Path(directory)


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """The path of the cached file ``name``. If there is no valid one, ``make`` writes it to the path it is given.

    Raises
    ------
    CompilerError
        The cache cannot be used, another process does not finish the file within `time_limit`, or ``make`` raises it.
    """
    import filelock

    directory = cache_directory()
    target, checksum = directory / name, directory / f"{name}.sha256"
    if _is_sound(target, checksum):
        return target
    seconds = time_limit()
    try:
        with filelock.FileLock(directory / f"{name}.lock", timeout=seconds, mode=0o600):
            if _is_sound(target, checksum):  # another process may have made it while this one waited
                return target
            with tempfile.TemporaryDirectory(dir=directory) as temporary:
                part, part_checksum = Path(temporary) / name, Path(temporary) / checksum.name
                make(part)
                part.chmod(0o600)
                part_checksum.write_text(_checksum(name, part.read_bytes()), encoding="utf-8")
                part_checksum.chmod(0o600)
                os.replace(part, target)
                os.replace(part_checksum, checksum)
    except filelock.Timeout:
        raise CompilerError(
            f"another process has not finished {target} within {seconds:g} seconds, which the environment variable "
            f"{_TIMEOUT} can change"
        ) from None
    except OSError as error:
        raise CompilerError(
            f"{target} cannot be written: {error}; set {_CACHE} to a directory that only you can write to"
        ) from error
    return target


def _is_sound(path: Path, checksum: Path) -> bool:
    content, expected = _own_content(path), _own_content(checksum)
    return content is not None and expected == _checksum(path.name, content).encode()


def _checksum(name: str, content: bytes) -> str:
    """The text of a checksum file, in the format of ``sha256sum --check``."""
    return f"{hashlib.sha256(content).hexdigest()}  {name}\n"


def _own_content(path: Path) -> bytes | None:
    """The bytes of a regular file that only the user or root can have written, None for anything else."""
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):  # do not follow a link, nor wait for a FIFO
        flags |= getattr(os, flag, 0)
    try:
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            return file.read() if stat.S_ISREG(status.st_mode) and _is_private(status) else None
    except OSError:
        return None


def machine() -> str:
    """The system and the kind of processor of this machine: several machines may share a cache directory."""
    return f"{sys.platform} {platform.machine()}"
