"""The pool of scratch memory: nothing is lent twice, the limit holds, memory is freed on request or for other sizes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from gpurnn.reference import buffers

import gpurnn
from gpurnn import scratch

MIB = 2**20

pytestmark = pytest.mark.skipif(not buffers.ENABLED, reason="there is no pool here")


@pytest.fixture(autouse=True)
def empty_pool():
    """An empty pool with its default limit."""
    scratch.free_all_blocks()
    assert scratch.total_bytes() == scratch.used_bytes()
    yield
    scratch.set_limit(buffers.LIMIT)
    scratch.free_all_blocks()


def step(T: int, hidden: int = 64, **options) -> tuple[np.ndarray, ...]:
    """A step of training of an LSTM."""
    layer = gpurnn.LSTM(16, hidden, rng=0, **options)
    x = np.random.default_rng(T).normal(size=(T, 4, 16)).astype(np.float32)
    (y, _), pullback = layer.vjp(x)
    (dx, _), grads = pullback((y, None))
    return (y, dx, *grads.values())


@pytest.mark.slow
def test_growing_shapes_do_not_keep_the_memory_of_all():
    """Each shape is too large for the memory of the one before."""
    sizes = range(8, 400)
    for T in sizes:
        step(T)
    total = scratch.total_bytes()
    scratch.free_all_blocks()
    step(sizes[-1])
    assert total < 2 * scratch.total_bytes()


def test_a_loop_of_the_same_steps_allocates_nothing_after_the_first():
    for _ in range(2):
        for T in (40, 100, 70):
            step(T)
    before = [id(buffer) for buffer in buffers._pool]
    for _ in range(100):
        for T in (40, 100, 70):
            step(T)
    assert [id(buffer) for buffer in buffers._pool] == before


@pytest.mark.parametrize("limit", [0, 100_000, 1 * MIB, 3 * MIB])
def test_the_limit_changes_no_result(limit):
    expected = step(200)
    scratch.set_limit(limit)
    assert scratch.get_limit() == limit
    assert scratch.total_bytes() <= limit
    for _ in range(3):
        for a, b in zip(step(200), expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert scratch.total_bytes() <= limit


def test_what_is_in_use_is_not_given_back():
    layer = gpurnn.LSTM(16, 64, rng=0)
    x = np.random.default_rng(0).normal(size=(200, 4, 16)).astype(np.float32)
    (y, _), pullback = layer.vjp(x)
    expected = [np.copy(g) for g in pullback((y, None))[1].values()]
    used = scratch.used_bytes()
    assert used > MIB
    scratch.free_all_blocks()
    scratch.set_limit(0)
    assert used == scratch.used_bytes() == scratch.total_bytes()
    step(200)
    for a, b in zip(pullback((y, None))[1].values(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    del pullback
    assert scratch.used_bytes() == 0
    scratch.set_limit(0)
    assert scratch.total_bytes() == 0


def sizes() -> list[int]:
    """The sizes of the pool's buffers, in MiB."""
    return sorted(buffer.size // MIB for buffer in buffers._pool)


def lend(size: int) -> np.ndarray:
    return buffers.empty((size * MIB,), np.uint8)


def test_the_oldest_free_buffers_make_room():
    scratch.set_limit(40 * MIB)
    kept = lend(3)
    for size in (7, 1, 18):
        lend(size)
    lend(7)
    assert sizes() == [1, 3, 7, 18]
    large = lend(30)  # replaces the 18 MiB and one more, but not the 7 MiB, which were used last
    assert sizes() == [3, 7, 30]
    kept[...] = large[...] = 1
    assert scratch.used_bytes() == 33 * MIB


def test_a_free_buffer_that_is_just_too_small_is_replaced():
    kept = lend(5)
    for size in (1, 5, 6):
        lend(size)
    assert sizes() == [1, 5, 6]  # 5 MiB are in use; the free 6 MiB serve for 5 MiB too
    lend(5)
    assert sizes() == [1, 5, 6]
    assert kept.nbytes == 5 * MIB


def test_sizes_that_are_long_not_asked_for_are_given_back():
    lend(20)
    for _ in range(buffers._LENDS_KEPT + 1):
        lend(1)
    lend(3)
    assert sizes() == [1, 3]


def test_threads_never_get_the_same_memory():
    """A thread's array keeps its contents as long as the thread has the array or a view of it."""
    wrong, busy = [], True

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        held: list[np.ndarray] = []
        while busy:
            array = buffers.empty((int(rng.integers(70_000, 200_000)),), np.uint8)
            array[...] = number
            held.append(array[100:-100].reshape(-1))
            if len(held) > 4:
                first = held.pop(int(rng.integers(5)))
                if not (first == number).all():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        scratch.set_limit(int(np.random.default_rng(0).integers(0, 3 * MIB)))
        scratch.free_all_blocks()
        scratch.total_bytes(), scratch.used_bytes()
    busy = False
    for thread in threads:
        thread.join()
    assert not wrong


def test_who_holds_the_lock_still_gets_memory():
    """A signal handler or a finaliser may compute during a call of the pool."""
    with buffers._lock.current:
        array = buffers.empty((MIB,), np.uint8)
    assert array.nbytes == MIB
    assert scratch.total_bytes() == 0


def test_who_holds_the_lock_can_give_back_the_pool_and_set_its_limit():
    """A signal handler or a finaliser during a call of the pool does not wait; its request is carried out next."""
    code = (
        "import numpy as np; from gpurnn import scratch; from gpurnn.reference import buffers\n"
        "buffers.empty((2**20,), np.uint8)\n"
        "with buffers._lock.current:\n"
        "    scratch.free_all_blocks()\n"
        "    scratch.set_limit(2**18)\n"
        "assert (scratch.get_limit(), scratch.total_bytes()) == (2**18, 2**20)\n"
        "buffers.empty((2**17,), np.uint8)\n"
        "assert scratch.total_bytes() == 2**17"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_child_of_a_fork_begins_with_an_empty_pool():
    code = (
        "import os, numpy as np; from gpurnn import scratch; from gpurnn.reference import buffers\n"
        "kept = buffers.empty((2**20,), np.uint8); kept[...] = 7\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    other = buffers.empty((2**20,), np.uint8); other[...] = 1\n"
        "    os._exit(int(scratch.total_bytes() != 2**20 or not (kept == 7).all()))\n"
        "assert os.waitpid(pid, 0)[1] == 0 and scratch.used_bytes() == 2**20"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "interpreter",
    [
        "sys.implementation.name = 'pypy'; del sys.getrefcount",
        "import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1",
    ],
)
def test_where_references_are_not_counted_there_is_no_pool(interpreter):
    code = (
        f"import sys, numpy as np\n{interpreter}\n"
        "import gpurnn; from gpurnn import scratch\n"
        "(y, _), pullback = gpurnn.LSTM(64, 64).vjp(np.zeros((100, 8, 64), 'f'))\n"
        "pullback((y, None))\n"
        "scratch.set_limit(5)\n"
        "scratch.free_all_blocks()\n"
        "assert scratch.total_bytes() == scratch.used_bytes() == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("size", [-1, 0.5, "1 GiB", True, None])
def test_a_limit_is_a_number_of_bytes(size):
    with pytest.raises((ValueError, TypeError), match=r"^scratch\.set_limit: size is .*, expected "):
        scratch.set_limit(size)
