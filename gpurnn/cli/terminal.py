"""What the command says, and how it ends: one line on stderr and an exit code, whatever goes wrong."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click


class Refusal(click.ClickException):
    """One line on stderr and exit code 2: what was asked for cannot be done."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        with suppress(OSError, ValueError):  # where nobody reads it, the exit code says it
            click.echo(f"gpurnn: {self.format_message()}", file=file, err=file is None)


class Failure(Refusal):
    """One line on stderr and exit code 1: what was begun went wrong."""

    exit_code = 1


class Interrupted(Refusal):
    """One line on stderr and exit code 130, as a shell has it after Ctrl-C."""

    exit_code = 130


class Commands(click.Group):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with failing():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, context: click.Context, /) -> Any:
        with failing():
            return super().invoke(context)


@contextmanager
def failing() -> Iterator[None]:
    """Turn what no option can be blamed for into one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    except BrokenPipeError:
        raise  # click ends quietly when nobody reads on
    except UnicodeEncodeError as error:
        raise Failure(
            f"the output cannot hold {error.object[error.start]!r} in its encoding, {sys.stdout.encoding}; set the "
            "environment variable PYTHONIOENCODING to utf-8"
        ) from error
    except MemoryError as error:
        raise Failure(f"out of memory: {error}" if str(error) else "out of memory") from error
    except (OSError, FloatingPointError) as error:
        raise Failure(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """What an error says, and the file first where it names one."""
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror.lower()
        return what if error.filename is None else f"{error.filename}: {what}"
    return str(error)


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turn errors that say what is wrong with the user's files and options into refusals."""
    try:
        yield
    except errors as error:
        raise Refusal(sentence(error)) from error


@contextmanager
def warnings_said() -> Iterator[None]:
    """Print warnings as lines on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: say(f"gpurnn: warning: {message}", err=True)
        yield


def say(text: str = "", err: bool = False) -> None:
    """Print a line. Training goes on where nobody reads it any more."""
    with suppress(OSError, ValueError):
        click.echo(_printable(text, err), err=err)


def tell(text: str = "") -> None:
    """Print a line of what was asked for."""
    click.echo(_printable(text))


def _printable(text: str, err: bool = False) -> str:
    """``text`` with escapes for what the encoding of the stream lacks: a path, for example, can be any bytes."""
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
