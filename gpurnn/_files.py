"""Read and write files: writes are atomic, and checksums detect damage.

Layers, models and checkpoints are safetensors files. Their metadata have one entry, ``gpurnn``: JSON that says what the
file holds, with a SHA-256 checksum over that and over every array. There is only one entry because safetensors writes
several in no fixed order, and equal models must give equal files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import _checks

KEY = "gpurnn"
"""The name of our entry in a file's metadata."""

VERSION = 1

_DIGITS = 64
_DAMAGED = "damaged: its contents do not match their checksum"
_BEFORE_DIGEST = '{"sha256": "'
_LONGEST_HEADER = 100_000_000  # what safetensors allows

_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""The dtypes that safetensors and NumPy share, by their safetensors names."""

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

_PARTIAL = re.compile(r"\.(.*)\.[0-9a-f]{16}\.partial", re.DOTALL)


class FileFormatError(ValueError):
    """A file cannot be read: it is damaged, of another kind, of another program, or not a regular file.

    The message begins with the path of the file. A file that does not exist or must not be read is an `OSError`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import gpurnn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "weights.safetensors")
    ...     gpurnn.Dense(2, 3).save(path)
    ...     _ = path.write_bytes(path.read_bytes()[:-1])
    ...     try:
    ...         gpurnn.Dense(2, 3).load(path)
    ...     except gpurnn.FileFormatError as error:
    ...         print(str(error).replace(str(path), path.name).partition(" (")[0])
    weights.safetensors: damaged, or not a safetensors file
    """


def reason(error: Exception) -> str:
    """The text of an error, shortened, because it may list everything in a file."""
    said = str(error.args[0]) if error.args else type(error).__name__
    return said if len(said) < 600 else f"{said[:500]} ... {said[-50:]}"


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash at any moment leaves the old file or the new one, never a part.

    The bytes go to a temporary file in the same directory, which is flushed to the disk and renamed over ``path``; then
    the directory is flushed, so that the new name outlives a power cut. A failure before the rename leaves the old file
    and no temporary file. Any number of threads and processes may write to one path: the last rename wins.

    A symbolic link stays: the file that it points to is replaced. A file that is overwritten keeps its mode, and, as
    far as the system allows, its owner and group. A new file gets the mode that the umask allows.

    Raises
    ------
    OSError
        The file cannot be written: ``path`` is read-only, a directory, or a device, pipe or socket, which a rename
        would destroy; the directory is missing or read-only; the disk is full.
    """
    with _replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file to write to; it replaces ``path`` in the way of `write_atomically`."""
    with blamed_on(path), _temporary(path) as file:
        yield file


@contextlib.contextmanager
def _temporary(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    target = Path(os.path.realpath(path))
    old = _replaceable(path, target)
    # A part of the name shows whose file it is; the whole name might exceed the system's limit.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.partial")

    def opener(name: str, flags: int) -> int:
        # Readable by its owner only, so that nobody can read the new contents who could not read the old.
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666 if old is None else old.st_mode & 0o700)

    try:
        with open(temporary, "xb", opener=opener) as file:
            if old is not None and hasattr(os, "fchmod"):
                _adopt(file.fileno(), old)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except FileExistsError:
        raise  # the file of the temporary name belongs to another writer
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    flush_directory(target.parent)


@contextlib.contextmanager
def blamed_on(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make an `OSError` name the caller's file: a full disk names no file, other errors name the temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = os.fspath(path)
            del error.filename2
        raise


def _replaceable(path: str | os.PathLike[str], target: Path) -> os.stat_result | None:
    """The status of the file to overwrite, None if there is none; raise OSError if it must not be overwritten."""
    try:
        existing = os.lstat(target)
    except FileNotFoundError:
        if os.fspath(path).endswith(os.sep):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path)) from None
        return None
    if stat.S_ISLNK(existing.st_mode):  # the resolved path is a link only where links form a loop
        code = errno.ELOOP
    elif stat.S_ISDIR(existing.st_mode):
        code = errno.EISDIR
    elif not stat.S_ISREG(existing.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
    elif not os.access(target, os.W_OK):
        code = errno.EACCES
    else:
        return existing
    raise OSError(code, os.strerror(code), os.fspath(path))


def _adopt(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the mode of an old one, and its owner and group where that is permitted."""
    new, mode = os.fstat(descriptor), stat.S_IMODE(old.st_mode)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except PermissionError:
            try:
                os.fchown(descriptor, -1, old.st_gid)
            except PermissionError:
                mode &= ~0o070  # another group must not get the old group's permissions
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)


def partial_files(directory: str | os.PathLike[str], name: re.Pattern[str]) -> list[Path]:
    """The temporary files that killed writers of files called ``name`` left in ``directory``.

    They include files of live writers: delete them only if nobody else can be writing.
    """
    paths = []
    for path in Path(directory).iterdir():
        match = _PARTIAL.fullmatch(path.name)
        if match and name.fullmatch(match[1]):
            paths.append(path)
    return paths


def flush_directory(directory: str | os.PathLike[str]) -> None:
    """Flush the names in ``directory`` to the disk."""
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a directory, and needs no such flush
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            return  # the directory is writable but cannot be opened: the system flushes its names when it chooses
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading.

    Raises
    ------
    FileFormatError
        ``path`` is a directory, pipe, socket or device.
    OSError
        The file does not exist or cannot be read.
    """
    _require_regular(path, os.stat(os.fspath(path)))

    def opener(name: str, flags: int) -> int:
        # If a pipe has replaced the file meanwhile, opening it must not wait for a writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)  # noqa: SIM115 - the caller closes it
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except FileFormatError:
        file.close()
        raise
    return file


def _require_regular(path: str | os.PathLike[str], found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise FileFormatError(f"{os.fspath(path)}: is {kind}, expected a file")


# ---- Containers ------------------------------------------------------------------------------------------------------


def write_tensors(
    path: str | os.PathLike[str], where: str, kind: str, content: Any, tensors: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Write arrays and JSON-compatible content to a safetensors file, atomically.

    Parameters
    ----------
    path : path
    where : str
        The caller's public name, for the messages.
    kind : str
        The kind of the file: ``"layer"``, ``"model"`` or ``"checkpoint"``.
    content
        None, booleans, numbers (NumPy's too), strings, lists and dicts of these.
    tensors : dict of str to NumPy array
        The arrays, of any memory order, byte order and alignment.

    Raises
    ------
    TypeError, ValueError
        ``path`` is not a path, or ``content`` or a dtype cannot be written; the message names the place.
    OSError
        The file cannot be written.
    """
    import safetensors.numpy

    _checks.path(where, "path", path)
    arrays = {name: little_endian(array) for name, array in tensors.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES.values():
            raise TypeError(f"{where}: {name} has dtype {array.dtype}, expected one of {', '.join(_DTYPES.values())}")
    text = json.dumps({KEY: kind, "version": VERSION, "content": plain(where, "config", content)})
    text = f'{_BEFORE_DIGEST}{_digest(text, arrays)}", {text[1:]}'
    write_atomically(path, safetensors.numpy.save(arrays, {KEY: text}))


def write_long_tensor(
    path: str | os.PathLike[str], where: str, kind: str, content: Any, name: str, dtype: Any, size: int,
    pieces: Iterable[np.ndarray[Any, Any]],
) -> None:  # fmt: skip
    """Write the file that `write_tensors` would write for one array (size,), piece by piece, in the memory of a piece.

    Raises
    ------
    TypeError, ValueError, OSError
        As `write_tensors`; or the pieces do not have ``size`` entries in all.
    """
    _checks.path(where, "path", path)
    dtype = np.dtype(dtype)
    text = json.dumps({KEY: kind, "version": VERSION, "content": plain(where, "config", content)})
    digest = _digest_of_header(text, [[name, dtype.name, [size]]])
    stored = next(theirs for theirs, ours in _DTYPES.items() if ours == dtype.name)
    entry = {"dtype": stored, "shape": [size], "data_offsets": [0, size * dtype.itemsize]}

    def header(checksum: str) -> bytes:
        metadata = {KEY: f'{_BEFORE_DIGEST}{checksum}", {text[1:]}'}
        data = json.dumps({"__metadata__": metadata, name: entry}).encode()
        data += b" " * (-len(data) % 8)
        return len(data).to_bytes(8, "little") + data

    with _replacing(path) as file:
        file.write(header("0" * _DIGITS))
        written = 0
        for piece in pieces:
            part = little_endian(piece.astype(dtype)).data
            file.write(part)
            digest.update(part)
            written += len(piece)
        if written != size:
            raise ValueError(f"{where}: the pieces have {written} entries, expected {size}")
        file.seek(0)
        file.write(header(digest.hexdigest()))


def mapped_tensor(path: str | os.PathLike[str], kind: str, name: str) -> tuple[Any, np.ndarray[Any, Any], str]:
    """The content of a file of `write_long_tensor`, its array mapped into memory, and the checksum in the file.

    The array is not read, so it may be damaged.

    Raises
    ------
    FileFormatError, OSError
        As `read_tensors`.
    """
    with open_regular(path) as file, _named(path):
        header = file.read(_header_size(file))
        content, digest, _ = _entry(_ours(_metadata(header), (kind,)) or "", (kind,))
        try:
            entry = json.loads(header)[name]
            dtype = np.dtype(_DTYPES[entry["dtype"]]).newbyteorder("<")
            (size,), (first, end) = entry["shape"], entry["data_offsets"]
            begin, held = 8 + len(header), os.fstat(file.fileno()).st_size
            fits = size >= 1 and first == 0 and end == size * dtype.itemsize == held - begin
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _Rejected(_DAMAGED) from error
        if not fits:
            raise _Rejected("damaged: its size is not what its header says")
        return content, np.memmap(file, dtype, "r", begin, (size,)).view(np.ndarray), digest


def read_tensors(path: str | os.PathLike[str], *kinds: str) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """The content and the arrays that `write_tensors` wrote to ``path`` as one of ``kinds``.

    Without ``kinds``, return the arrays of any safetensors file, and the content if gpurnn wrote it.

    Raises
    ------
    FileFormatError
        The file is damaged, is not a safetensors file, or holds something else; the message names it.
    OSError
        The file does not exist or cannot be read.
    """
    with open_regular(path) as file, _named(path):
        header = _header_size(file)
        file.seek(0)
        return _parsed(file.read(os.fstat(file.fileno()).st_size), header, kinds)


def read_content(path: str | os.PathLike[str], *kinds: str) -> Any:
    """The content that `read_tensors` would return, read from the header alone: the file may be damaged."""
    with open_regular(path) as file, _named(path):
        metadata = _metadata(file.read(_header_size(file)))
        return _entry(_ours(metadata, kinds) or "", kinds)[0]


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the errors of reading it."""
    try:
        yield
    except _Rejected as error:
        raise FileFormatError(f"{os.fspath(path)}: {error}") from error.__cause__
    except MemoryError as error:
        raise FileFormatError(f"{os.fspath(path)}: its contents do not fit into memory") from error


def _header_size(file: BinaryIO) -> int:
    """Read the size of the header that follows. These eight bytes expose most foreign files, however large they are."""
    size, header = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= header <= min(size - 8, _LONGEST_HEADER):
        raise _Rejected("damaged, or not a safetensors file (it has no header)")
    return header


class _Rejected(Exception):
    """The reason why a file cannot be read, without the file's name."""


def _parsed(data: bytes, header: int, kinds: tuple[str, ...]) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    import safetensors

    try:
        entries = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise _Rejected(f"damaged, or not a safetensors file ({error})") from error
    text = _ours(_metadata(data[8 : 8 + header]), kinds)
    tensors = {}
    entries.reverse()
    while entries:  # each entry is freed once it is copied
        name, entry = entries.pop()
        if entry["dtype"] not in _DTYPES:
            raise _Rejected(
                f"{name} has dtype {entry['dtype']}, which NumPy does not have, expected one of {', '.join(_DTYPES)}"
            )
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        try:
            array = np.frombuffer(entry["data"], dtype.newbyteorder("<")).reshape(entry["shape"])
        except ValueError as error:
            raise _Rejected(f"{name} has a shape of {len(entry['shape'])} axes that NumPy cannot hold") from error
        tensors[name] = array.astype(dtype)
    if text is None:
        return None, tensors
    content, digest, written = _entry(text, kinds)
    if digest != _digest(written, tensors):
        raise _Rejected(_DAMAGED)
    return content, tensors


def _metadata(header: bytes) -> dict[str, str]:
    """The metadata of a header.

    The rest of the header is not parsed, because safetensors ignores parts of it that may hold anything, at any depth.
    """
    text = header.decode(errors="replace")
    match = re.search(r'"__metadata__"\s*:\s*', text)
    if match is None:
        return {}
    try:
        content, _ = json.JSONDecoder().raw_decode(text, match.end())
    except (ValueError, RecursionError) as error:
        raise _Rejected(f"damaged: its metadata are not JSON ({error})") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise _Rejected("damaged: its metadata are not strings by name")
    return content


def _ours(metadata: dict[str, str], kinds: tuple[str, ...]) -> str | None:
    """Our entry of the metadata; None if another program wrote the file."""
    # Any trace of us, in a key or a value, makes the checksum count: a damaged key must not switch it off.
    if any(KEY in text for pair in metadata.items() for text in pair):
        if KEY not in metadata:
            raise _Rejected("damaged, or written by another version of gpurnn")
        return metadata[KEY]
    if kinds:
        raise _Rejected(f"a safetensors file, but not a {kinds[0]} that gpurnn wrote")
    return None


def _entry(text: str, kinds: tuple[str, ...]) -> tuple[Any, str, str]:
    """The content in our entry of the metadata, the checksum in it, and the text that it covers besides the arrays."""
    end = len(_BEFORE_DIGEST) + _DIGITS
    digest, rest = text[len(_BEFORE_DIGEST) : end], text[end:]
    if not text.startswith(_BEFORE_DIGEST) or not rest.startswith('", '):
        raise _Rejected(_DAMAGED)
    written = "{" + rest[3:]
    try:
        document = json.loads(written)
        kind, version, content = document[KEY], document["version"], document["content"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Rejected(_DAMAGED) from error
    if version != VERSION:
        raise _Rejected(f"a {kind} of version {version}, expected version {VERSION}; another gpurnn wrote it")
    if kinds and kind not in kinds:
        raise _Rejected(f"holds a {kind}, expected a {' or '.join(kinds)}")
    return content, digest, written


def _digest(text: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    described = [[name, tensors[name].dtype.name, tensors[name].shape] for name in sorted(tensors)]
    digest = _digest_of_header(text, described)
    for name in sorted(tensors):
        digest.update(little_endian(tensors[name]).data)
    return digest.hexdigest()


def _digest_of_header(text: str, described: list[list[Any]]) -> Any:
    """A checksum of the header; add the arrays to it in the order in which they are described."""
    return hashlib.sha256(json.dumps([text, described]).encode())


def little_endian(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return ``array``, or a copy of it, in the form of a file: C-contiguous and little-endian."""
    # safetensors writes memory from the first element on and never looks at strides.
    return np.asarray(array, array.dtype.newbyteorder("<"), order="C")


def plain(where: str, name: str, value: Any) -> Any:
    """Return a JSON-compatible copy of ``value``: NumPy's booleans and numbers become Python's, exactly.

    Raises
    ------
    TypeError, ValueError
        ``value``, or something in it, is not None, a boolean, a number, a string, a list, a tuple or a dict with string
        keys; or it would be read back as something else.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        if _SURROGATE_PAIR.search(value):
            raise ValueError(f"{where}: {name} is {value!r}, expected Unicode text: JSON joins surrogate pairs")
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        number = value.item()
        # Python has no number type equal to a long double.
        if isinstance(number, (bool, int, float)):
            return number
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: {name} has the key {key!r}, expected keys that are str")
        return {plain(where, name, key): plain(where, f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(where, f"{name}[{i}]", item) for i, item in enumerate(value)]
    raise TypeError(
        f"{where}: {name} is {_checks.described(value)}, expected None, a boolean, a number, a string, or a list or "
        "a dict of these"
    )
