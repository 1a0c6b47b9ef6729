"""Texts in files and on stdin."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .terminal import Refusal, say, sentence

if TYPE_CHECKING:
    from ..training import TokenFile

STDIN = "-"
"""The name of the standard input among files."""

_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins like the mark of UTF-16, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
"""Byte order marks, and the encodings that they announce."""

_PART = 2**20


def to_be_read_again(file: str) -> str:
    """The absolute path of a text that --resume reads once more; reject a file that can be read only once."""
    path = Path(file)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Refusal(
            f"{file}: no regular file, which --resume could not read again; pipe the text in and give - as the file"
        )
    return str(path.resolve())


def token_file(file: str) -> TokenFile | None:
    """The tokens in a file that `gpurnn tokenize` wrote; None for any other file."""
    from .. import _files
    from ..training import TokenFile

    try:
        return TokenFile(file)
    except (OSError, _files.FileFormatError):
        return None  # reading it as a text will report what is wrong with it


def name_of(file: str) -> str:
    """The name of a file in messages."""
    return "stdin" if file == STDIN else file


def read_bytes(file: str, encoding: str | None = None) -> bytes:
    """The bytes of a file or of stdin; reject one that cannot be read or is empty, and a device that never ends."""
    try:
        if file == STDIN:
            if sys.stdin is None:
                raise Refusal("stdin: it is closed")
            if sys.stdin.isatty():
                say("reading from the terminal; end with Ctrl-D on a line of its own", err=True)
            data = sys.stdin.buffer.read()
        else:
            with open(file, "rb") as stream:
                data = _first_part(file, stream, encoding)
                data += stream.read()
    except OSError as error:
        raise Refusal(f"{name_of(file)}: {sentence(error).removeprefix(f'{file}: ')}") from error
    if not data:
        raise Refusal(f"{name_of(file)}: {'nothing came' if file == STDIN else 'the file is empty'}")
    return data


def _first_part(file: str, stream: Any, encoding: str | None) -> bytes:
    """The beginning of a file; reject one that holds no text."""
    first: bytes = stream.read(_PART)
    binary = b"\0" in first and encoding is None and _announced(first) is None
    if binary or (len(first) == _PART and not any(first)):
        raise Refusal(_binary(file))
    return first


def _announced(data: bytes) -> str | None:
    """The encoding that a byte order mark announces; None without one."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)


def _binary(file: str) -> str:
    if file != STDIN and token_file(file) is not None:
        return f"{file}: a token file, expected text; gpurnn train reads the tokens"
    return f"{name_of(file)}: a binary file, expected text; if it is text in UTF-16, add --encoding utf-16"


def read(file: str, encoding: str | None = None) -> str:
    """The text in a file, or on stdin; reject one that is missing, empty or binary."""
    return decoded(file, read_bytes(file, encoding), encoding)


def decoded(file: str, data: bytes, encoding: str | None = None) -> str:
    """The text in the bytes of a file, with line ends as ``\\n``.

    Without ``encoding``, a byte order mark gives the encoding; without either, it is UTF-8.
    """
    used = encoding or _announced(data) or "utf-8"
    try:
        text = data.decode(used)
    except UnicodeDecodeError as error:
        raise _undecodable(file, used, error, 0) from error
    if "\0" in text:
        raise Refusal(_binary(file))
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _undecodable(file: str, used: str, error: UnicodeDecodeError, before: int) -> Refusal:
    """The `Refusal` of bytes that cannot be decoded; ``before`` bytes of the file precede those of ``error``."""
    data, place = error.object, error.start
    byte = f"byte 0x{data[place]:02x} at position {before + place}" if place < len(data) else error.reason
    cure = "give its encoding with --encoding, for example --encoding latin-1"
    return Refusal(f"{name_of(file)}: not {used.upper()}: {byte}; {cure}")


def pieces_of_all(files: Sequence[str], encoding: str | None, whole_words: bool) -> Iterator[str]:
    """The text of `read_all`, about a megabyte at a time; with ``whole_words`` no word is cut, however long."""
    for file in files:
        last = rest = ""
        for text in _pieces(file, encoding):
            last = text[-1]
            cut = 1 + max(text.rfind(" "), text.rfind("\n")) if whole_words else len(text)
            if cut:
                yield rest + text[:cut]
                rest = text[cut:]
            else:
                rest += text
        if rest:
            yield rest
        if file is not files[-1] and last != "\n":
            yield "\n"


def _pieces(file: str, encoding: str | None) -> Iterator[str]:
    """The text that `read` returns, in pieces."""
    try:
        with open(file, "rb") as stream:
            data = _first_part(file, stream, encoding)
            if not data:
                raise Refusal(f"{file}: the file is empty")
            used = encoding or _announced(data) or "utf-8"
            decoder = codecs.getincrementaldecoder(used)()
            lines = io.IncrementalNewlineDecoder(None, translate=True)
            first, position = True, 0
            while True:
                pending = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise _undecodable(file, used, error, position - pending) from error
                text = lines.decode(text.removeprefix("\ufeff") if first else text, final=not data)
                if "\0" in text:
                    raise Refusal(_binary(file))
                if text:
                    yield text
                if not data:
                    return
                first, position = first and not text, position + len(data)
                data = stream.read(_PART)
    except OSError as error:
        raise Refusal(f"{file}: {sentence(error).removeprefix(f'{file}: ')}") from error


def read_all(files: Sequence[str], encoding: str | None = None) -> str:
    """The texts in files as one text, in which each begins on a new line."""
    return joined([read(file, encoding) for file in files])


def joined(texts: Sequence[str]) -> str:
    """Several texts as one, in which each begins on a new line."""
    ended = [text if text.endswith("\n") else f"{text}\n" for text in texts[:-1]]
    return "".join([*ended, texts[-1]])
