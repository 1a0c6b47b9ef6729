"""The terminal that a run is started from: its progress bar, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


def progress_bar(*, total: int, initial: int) -> AbstractContextManager[Any]:
    """A bar of steps on stderr; a context of None if there is no stderr."""
    if sys.stderr is None:
        return nullcontext()
    from tqdm import tqdm

    bar: AbstractContextManager[Any] = tqdm(
        total=total, initial=initial, unit="step", dynamic_ncols=True, file=_Terminal(sys.stderr)
    )
    return bar


class _Terminal:
    """A stream for the progress bar that writes nothing more once nobody reads it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._try("write", text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *arguments: Any) -> None:
        if self._stream is not None:
            try:
                getattr(self._stream, method)(*arguments)
            except (OSError, ValueError):  # the reader is gone, or the stream was closed
                self._stream = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def interrupt_deferred() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no update is interrupted; the second acts at once."""
    interrupt = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield interrupt
        return

    def remember(*_: Any) -> None:
        interrupt.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, remember)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
