"""CuPy's streams: values that one saves and another reads, and concurrent work. Importing it imports no CuPy."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
from array_api_compat import is_cupy_array

from . import host
from .arrays import is_captured, stream_key
from .recent import Recent
from .residency import NotResident

F = TypeVar("F", bound=Callable[..., Any])

_STREAMS_BESIDE = Recent(8)


@dataclasses.dataclass(frozen=True)
class _OfStream:
    """The values that a forward function saves for its backward function, and the stream that allocated them."""

    stream: Any
    saved: Any


def remembers_stream(forward: F) -> F:
    """Decorate a forward function whose last result holds its saved values. For CuPy arrays the stream is saved too."""

    @functools.wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        *results, saved = forward(*args, **kwargs)
        array = results[0][0] if isinstance(results[0], tuple) else results[0]
        if saved is not None and is_cupy_array(array):
            import cupy

            saved = _OfStream(cupy.cuda.get_current_stream(), saved)
        return (*results, saved)

    return cast("F", call)


def of_stream(backward: F) -> F:
    """Decorate a backward function whose first argument was saved by a function with `remembers_stream`.

    If the current stream is not the forward function's, it first waits for the work queued on that one, and afterwards
    that one waits for it. Freed memory, such as the saved values, goes to the next call on the stream that allocated
    it, although another stream may still read it.
    """

    @functools.wraps(backward)
    def call(saved: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(saved, _OfStream):
            return backward(saved, *args, **kwargs)
        import cupy

        here, there = cupy.cuda.get_current_stream(), saved.stream
        if here == there:
            return backward(saved.saved, *args, **kwargs)
        here.wait_event(there.record(cupy.cuda.Event(disable_timing=True)))
        try:
            return backward(saved.saved, *args, **kwargs)
        finally:
            afterwards(lambda: there.wait_event(here.record(cupy.cuda.Event(disable_timing=True))), always=True)

    return cast("F", call)


class _SideBySide:
    """The work that waits for the end of `side_by_side`."""

    def __init__(self) -> None:
        self.works: list[tuple[Callable[[], None], Callable[[], None] | None]] = []
        self.after: list[tuple[Callable[[], None], bool]] = []


_beside: contextvars.ContextVar[_SideBySide | None] = contextvars.ContextVar("beside", default=None)


def is_beside() -> bool:
    """Whether `beside` and `afterwards` postpone their work until `side_by_side` ends."""
    return _beside.get() is not None


def beside(work: Callable[[], None], instead: Callable[[], None] | None = None) -> None:
    """Call ``work``, which launches kernels; within `side_by_side`, at its end and concurrently with the others.

    If it raises `NotResident`, call ``instead`` if there is one.
    """
    waiting = _beside.get()
    if waiting is not None:
        waiting.works.append((work, instead))
        return
    try:
        work()
    except NotResident:
        if instead is None:
            raise
        instead()


def afterwards(work: Callable[[], None], *, always: bool = False) -> None:
    """Call ``work``; within `side_by_side`, after all work of `beside`, and after a failure only if ``always``."""
    waiting = _beside.get()
    if waiting is None:
        work()
    else:
        waiting.after.append((work, always))


@contextlib.contextmanager
def side_by_side(like: Any) -> Iterator[None]:
    """Run the work given to `beside` in this context at its end; on a GPU, on several streams at once.

    No work may read what another one writes. On a GPU the first is launched on the current stream. Each other one is
    launched on a stream that waits for everything queued on the current stream, which then waits for them all.
    So all their memory may come from the current stream, and may be freed from then on. On the host executor they run
    one after another, in an order that the seed decides. In a capture nothing is postponed.
    """
    if is_cupy_array(like) and is_captured():
        yield
        return
    waiting, succeeded = _SideBySide(), False
    token = _beside.set(waiting)
    try:
        try:
            yield
        finally:
            _beside.reset(token)
        _run_at_once(waiting.works, like)
        succeeded = True
    finally:
        for work, always in waiting.after:
            if succeeded or always:
                work()


def _run_at_once(works: list[tuple[Callable[[], None], Callable[[], None] | None]], like: Any) -> None:
    if not is_cupy_array(like):
        for k in np.random.default_rng(host.current_execution().seed).permutation(len(works)):
            beside(*works[k])
        return
    import cupy

    here, failed, ends = cupy.cuda.get_current_stream(), [], []
    begin = here.record(cupy.cuda.Event(disable_timing=True)) if len(works) > 1 else None
    try:
        for stream, (work, instead) in zip([here, *_streams_beside(len(works) - 1)], works, strict=True):
            if stream is not here:
                stream.wait_event(begin)
            try:
                with stream:
                    work()
            except NotResident:
                if instead is None:
                    raise
                failed.append(instead)
            finally:
                if stream is not here:
                    ends.append(stream.record(cupy.cuda.Event(disable_timing=True)))
    finally:
        for end in ends:
            here.wait_event(end)
    for instead in failed:
        instead()


def _streams_beside(count: int) -> list[Any]:
    """Streams to use besides the current one, the same at each call."""
    import cupy

    key = stream_key()
    streams = _STREAMS_BESIDE.get(key) or []
    if len(streams) < count:
        streams = [*streams, *(cupy.cuda.Stream(non_blocking=True) for _ in range(count - len(streams)))]
        _STREAMS_BESIDE.put(key, streams)
    return streams[:count]
