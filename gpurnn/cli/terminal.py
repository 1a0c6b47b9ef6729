"""The messages of the command, and its end: one line on stderr and an exit code, whatever goes wrong."""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ..distributed import Communicator

F = TypeVar("F", bound=Callable[..., Any])

LINE_SECONDS = 10.0
"""The shortest time between two lines about the progress of a training, if there is no terminal."""

_QUIET = "gpurnn.quiet"


class Refusal(click.ClickException):
    """One line on stderr and exit code 2: the request cannot be carried out."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        with suppress(OSError, ValueError):  # if nobody reads it, the exit code still tells
            click.echo(f"gpurnn: {self.format_message()}", file=file, err=file is None)


class Failure(Refusal):
    """One line on stderr and exit code 1: the command began, but failed."""

    exit_code = 1


class Interrupted(Refusal):
    """One line on stderr and exit code 130, which shells use for Ctrl-C."""

    exit_code = 130


class Terminated(Refusal):
    """One line on stderr and exit code 143, which shells use for SIGTERM."""

    exit_code = 143


class Commands(click.Group):
    """The group of the commands; it lists them in the order in which they were added."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with failing():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, context: click.Context, /) -> Any:
        with failing():
            return super().invoke(context)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@contextmanager
def failing() -> Iterator[None]:
    """Turn an exception that no option caused into one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise interruption("interrupted") from None
    except BrokenPipeError:
        raise  # click exits quietly when nobody reads the output
    except UnicodeEncodeError as error:
        raise Failure(
            f"the output cannot hold {error.object[error.start]!r} in its encoding, {sys.stdout.encoding}; set the "
            "environment variable PYTHONIOENCODING to utf-8"
        ) from error
    except MemoryError as error:
        raise Failure(out_of_memory(error)) from error
    except (OSError, FloatingPointError) as error:
        raise Failure(sentence(error)) from error


def interruption(message: str) -> Refusal:
    """The exception to raise after Ctrl-C or SIGTERM."""
    return Terminated(message) if _terminated else Interrupted(message)


def out_of_memory(error: MemoryError) -> str:
    """A message that memory ran out."""
    return f"out of memory: {error}" if str(error) else "out of memory"


_follows = False


@contextmanager
def one_of_several(processes: Communicator) -> Iterator[None]:
    """Let process 0 alone print; an error ends all processes, with one message."""
    global _follows
    _follows = processes.rank > 0
    try:
        yield
    except BaseException as error:
        if processes.size == 1:
            raise
        if not processes.agreed:  # the others wait for this one
            shown = _as_shown(error)
            with suppress(KeyboardInterrupt):  # the launcher ends this process, and says why
                if _follows:
                    time.sleep(2)  # process 0 reports the error and ends this process, if it met the same error
                shown.show()
            processes.abort(shown.exit_code)
        if _follows:
            raise click.exceptions.Exit(0) from None  # the exit code is that of process 0
        if isinstance(error, RuntimeError):  # the error of another process
            raise Failure(sentence(error)) from error
        raise
    finally:
        _follows = False


def _as_shown(error: BaseException) -> click.ClickException:
    """An exception as one of click's, which has a message and an exit code."""
    if isinstance(error, click.ClickException):
        return error
    return interruption("interrupted") if isinstance(error, KeyboardInterrupt) else Failure(sentence(error))


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turn errors that say what is wrong with the user's files and options into refusals."""
    try:
        yield
    except errors as error:
        raise Refusal(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """The text of an error, with the file first if it names one."""
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror.lower()
        return what if error.filename is None else f"{error.filename}: {what}"
    return str(error)


@contextmanager
def warnings_said() -> Iterator[None]:
    """Print warnings as lines on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: warn(str(message))
        yield


def quiet_option(command: F) -> F:
    """Give a command the option --quiet, which silences `say`."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_QUIET] = value

    return click.option(
        "--quiet", "-q", is_flag=True, expose_value=False, callback=remember,
        help="Print nothing but warnings and errors.",
    )(command)  # fmt: skip


def is_quiet() -> bool:
    """Whether the running command was given --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def say(text: str = "", err: bool = False) -> None:
    """Print a line, unless --quiet is given. Training continues when nobody reads it any more."""
    if not is_quiet() and not _follows:
        _print(text, err)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    if not _follows:
        _print(f"gpurnn: warning: {text}", err=True)


def _print(text: str, err: bool) -> None:
    with suppress(OSError, ValueError):
        click.echo(_printable(text, err), err=err)


def tell(text: str = "") -> None:
    """Print a line of the result."""
    click.echo(_printable(text))


def tell_json(value: Any) -> None:
    """Print the result as JSON."""
    click.echo(as_json_text(value))


def as_json_text(value: Any) -> str:
    """``value`` as JSON; a number that is not finite, which JSON cannot write, becomes null."""
    return json.dumps(_finite(value), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def _printable(text: str, err: bool = False) -> str:
    """``text`` with escapes for characters that the stream cannot encode: a path, for example, can be any bytes."""
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def is_terminal() -> bool:
    """Whether stderr is a terminal, on which a bar can move."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def progress_of(total: Callable[[], int], bar: str = "progress") -> dict[str, Any]:
    """The options that show the progress of a training: as a bar, as lines, or not at all.

    ``bar`` is the option that shows a bar: ``"progress"`` of a `Trainer`, ``"verbose"`` of a model's ``fit``.
    """
    shown = not is_quiet()
    if not shown or is_terminal():
        return {bar: shown}
    return {bar: False, "on_log": _Lines(total)}


def say_how_training_ended(trainer: Any) -> None:
    """Print to stderr how many steps a training took, and whether it stopped early."""
    why = f": {trainer.patience} evaluations did not lower the validation loss" if trainer.stopped_early else ""
    say(f"trained for {trainer.step:,} of {trainer.total:,} steps{why}", err=True)


class _Lines:
    """Prints a line of the metrics to stderr now and then."""

    def __init__(self, total: Callable[[], int]) -> None:
        self._total = total
        self._printed: dict[str, float] = {}
        """When the last line of training, and that of validation, was printed."""

    def __call__(self, record: dict[str, Any]) -> None:
        prefix, now = "validation_" if "validation_loss" in record else "", time.monotonic()
        if now < self._printed.get(prefix, -LINE_SECONDS) + LINE_SECONDS:
            return
        self._printed[prefix] = now
        shown = [f"{prefix.replace('_', ' ')}loss {record[f'{prefix}loss']:.3f}"]
        for metric in ("bits_per_character", "perplexity"):
            if f"{prefix}{metric}" in record:
                shown.append(f"{metric.replace('_', ' ')} {record[f'{prefix}{metric}']:.3f}")
        if "tokens_per_second" in record:
            shown.append(f"{record['tokens_per_second'] / 1000:.1f}k tokens/s")
        say(f"step {record['step']:,} of {self._total():,}: {', '.join(shown)}", err=True)


_terminated = False


def end_on_sigterm() -> None:
    """Make SIGTERM act like Ctrl-C: finish the work under way and keep it."""
    if hasattr(signal, "pthread_sigmask") and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background jobs with SIGINT ignored. Keep Ctrl-C blocked, but install a handler: with it a
        # Trainer can still defer a SIGTERM.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end(_: int, frame: Any) -> None:
        global _terminated
        _terminated = True
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    if hasattr(signal, "SIGTERM") and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
