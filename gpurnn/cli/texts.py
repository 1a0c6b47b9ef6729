"""Texts as files hold them."""

from __future__ import annotations

from pathlib import Path

from .terminal import Refusal


def to_be_read_again(file: str) -> str:
    """The absolute path of a text that --resume reads once more; refuse what can be read only once."""
    path = Path(file)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Refusal(f"{file}: no regular file, which --resume could not read again; write the text to one first")
    return str(path.resolve())


def read(file: str) -> str:
    """The text in a file; refuse one that is missing, empty, binary or not UTF-8."""
    parts = []
    try:
        with open(file, "rb") as stream:
            while part := stream.read(2**20):
                if b"\0" in part:  # before the next part is read, as some devices never end
                    raise Refusal(f"{file}: a binary file, expected text in UTF-8")
                parts.append(part)
    except OSError as error:
        raise Refusal(f"{file}: {(error.strerror or str(error)).lower()}") from error
    data = b"".join(parts)
    if not data:
        raise Refusal(f"{file}: the file is empty")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{file}: not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_all(files: list[str]) -> str:
    """The texts in files as one, each from a new line on."""
    texts = [read(file) for file in files]
    ended = [text if text.endswith("\n") else f"{text}\n" for text in texts[:-1]]
    return "".join([*ended, texts[-1]])
