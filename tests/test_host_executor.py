"""The host executor: kernels give the right results in any order, and each planted bug is reported by its check."""

import contextvars
import ctypes
import itertools
import mmap
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gpurnn.kernels import compiler as cpp
from gpurnn.kernels import host, launch, residency
from gpurnn.kernels.host import build

pytestmark = pytest.mark.kernels

PLANTED = Path(__file__).parent / "planted_bugs"
UNDER_SANITIZERS = host.current_execution().build == "sanitize"
BUILDS = ("sanitize",) if UNDER_SANITIZERS else ("plain", "conflicts")
F32 = np.float32


def module(name, *kernels):
    """The module of ``planted_bugs/name.cu``, each kernel in its correct form and with its bug."""
    instances = [f"{k}<{p}>" for k in kernels for p in ("false", "true")]
    return launch.Module(PLANTED / f"{name}.cu", instances, cluster=4 if name == "clusters" else 1)


CORRECT = launch.Module(
    PLANTED / "correct.cu",
    [
        "add<float>",
        "block_sums<float>",
        "block_sums<double>",
        "transpose",
        "persistent_rnn",
        "histogram",
        "votes",
        "warps_alone",
        "hold",
    ],
)
# Another library, with its own executor.
HOLD = launch.Module(PLANTED / "correct.cu", ["hold"])
BUGS = {
    name: module(name, *kernels)
    for name, kernels in {
        "dropped_barrier": ("reversed_sum",),
        "block_barrier_for_grid": ("shift",),
        "dropped_bounds_check": ("twice",),
        "shared_off_by_one": ("differences", "dynamic_differences"),
        "divergent_shuffle": ("sum_of_halves", "sum_of_first_half"),
        "absent_lane": ("sum_of_20",),
        "read_before_write": ("mean_recurrence",),
        "divergent_syncthreads": ("rotate", "two_barriers"),
        "half_membermask": ("rotate_in_warp", "rotate_by_halves"),
        "missing_fence": ("hand_over",),
        "plain_load": ("hand_over", "read_only_load"),
        "spin_on_plain_flag": ("meet", "wait_for_two"),
        "endless_waiting": ("double_by_steps", "double_by_warps", "count_to"),
        "wrong_gate_index": ("cell_state",),
        "two_writers": ("last_of_block", "count"),
        "unset_shared": ("pair_sums",),
        "integer_errors": ("mean", "through_null", "checked"),
        "clusters": ("unmet", "absent", "overwritten", "left"),
    }.items()
}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Compile all libraries of this file side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: job[0].library(job[1]), itertools.product([CORRECT, HOLD, *BUGS.values()], BUILDS)))


@pytest.fixture(params=BUILDS)
def any_build(request):
    with host.execution(build=request.param):
        yield request.param


def fresh(shape, dtype=F32):
    return host.empty(shape, dtype)


def numbers(*shape, dtype=F32):
    return np.random.default_rng(7).standard_normal(shape).astype(dtype)


def zeroed_word():
    return np.zeros(1, np.uint32)


# ---- Kernels without bugs -------------------------------------------------------------------------------------------


def run_add():
    x, y, out = numbers(1000), numbers(1000)[::-1].copy(), fresh(1000)
    CORRECT["add<float>"]((3,), (96,), (x, y, out, np.int32(1000)))
    np.testing.assert_array_equal(out, x + y)
    return out


def run_block_sums(dtype=np.float64, name="double"):
    x, out = numbers(5000, dtype=dtype), fresh(4, dtype)
    CORRECT[f"block_sums<{name}>"]((4,), (128,), (x, out, np.int32(5000)))
    np.testing.assert_allclose(out.sum(), x.sum(), rtol=0, atol=np.abs(x).sum() * 64 * np.finfo(dtype).eps)
    return out


def run_transpose():
    x, out = numbers(37, 50, dtype=np.float64), fresh((50, 37), np.float64)
    CORRECT["transpose"]((4, 3), (16, 16), (x, out, np.int32(37), np.int32(50)))
    np.testing.assert_array_equal(out, x.T)
    return out


def run_persistent_rnn():
    n, steps = 64, 21
    w, x, h = numbers(n, n) / F32(8), numbers(steps, n), fresh((2, n))
    h[0] = numbers(n)
    state = h[0].astype(np.float64)
    kernel = CORRECT["persistent_rnn"]
    kernel((4,), (16,), (w, x, h, zeroed_word(), np.int32(n), np.int32(steps)), shared_mem=16 * n * 4, cooperative=True)
    for x_t in x:
        state = np.tanh(w.astype(np.float64) @ state + x_t)
    # Each step adds the rounding of n products; the map is nearly a contraction or better (|W| is about 1).
    np.testing.assert_allclose(h[steps % 2], state, rtol=0, atol=steps * n * np.finfo(F32).eps)
    return h


def run_histogram():
    values = np.random.default_rng(1).integers(0, 10, 500, dtype=np.int32)
    counts, largest, claimed = np.zeros(10, np.uint32), np.zeros(1, np.int32), np.zeros(2, np.uint32)
    CORRECT["histogram"]((4,), (128,), (values, counts, largest, claimed, np.int32(500)))
    np.testing.assert_array_equal(counts, np.bincount(values, minlength=10))
    assert largest[0] == values.max()
    np.testing.assert_array_equal(claimed, [1, 7])
    return counts


def run_votes():
    x, out = np.random.default_rng(2).integers(0, 4, 64, dtype=np.int32), fresh((64, 8), np.uint32)
    CORRECT["votes"]((1,), (64,), (x, out))
    weights = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for i, row in enumerate(out):
        warp = x[i // 32 * 32 :][:32]
        assert row[0] == weights[warp > 1].sum()
        assert row[1] == (warp == 3).any()
        assert row[2] == 1
        assert row[3] == weights[warp == x[i]].sum()
        assert row[4] == (x == 2).sum()
        assert (row[5], row[6]) == (1, 0)
        assert row[7] == (x[i - 3] if i % 8 >= 3 else x[i])
    return out


def run_warps_alone():
    x, out = numbers(64), fresh(64)
    CORRECT["warps_alone"]((1,), (64,), (x, out))
    np.testing.assert_array_equal(out.reshape(2, 32), np.roll(x.reshape(2, 32), -2, axis=1))
    return out


RUNS = [run_add, run_block_sums, run_transpose, run_persistent_rnn, run_histogram, run_votes, run_warps_alone]


@pytest.mark.parametrize("run", RUNS)
def test_correct_kernels_give_the_same_bits_in_every_order(run, any_build):
    results = []
    for seed in range(6):
        with host.execution(seed=seed):
            results.append(run().tobytes())
    assert len(set(results)) == 1


def test_float_sums_of_a_block():
    run_block_sums(np.float32, "float")


def test_the_seed_decides_the_order():
    """A race in a build that does not look for races: the order decides the result, and only the seed the order."""
    if UNDER_SANITIZERS:
        pytest.skip("one build is enough")

    def last_writer(seed):
        x, out = np.arange(50, dtype=F32), fresh(50)
        with host.execution(build="plain", seed=seed):
            BUGS["two_writers"]["last_of_block<true>"]((50,), (1,), (x, out))
        return out[0]

    writers = [last_writer(seed) for seed in range(10)]
    assert writers == [last_writer(seed) for seed in range(10)]
    assert len(set(writers)) > 3


# ---- Planted bugs ---------------------------------------------------------------------------------------------------
# Each case runs a kernel of a file in planted_bugs. The test runs the correct form first, in every build.


def reversed_sum(kernel):
    x, out = numbers(3, 64), fresh(64)
    kernel((1,), (64,), (x, out, np.int32(3)))
    np.testing.assert_allclose(out, x.sum(0)[::-1], rtol=0, atol=1e-5)


def shift(kernel):
    h = fresh((2, 96))
    h[0] = numbers(96)
    start = h[0].copy()
    kernel((6,), (16,), (h, zeroed_word(), np.int32(96), np.int32(9)), cooperative=True)
    np.testing.assert_array_equal(h[1], np.roll(start, -9) / 512)


def twice(kernel):
    # x is part of a longer array: fresh memory behind it could be NaN, and writing NaN would not show.
    x, out = numbers(128)[:100], fresh(100)
    kernel((2,), (64,), (x, out, np.int32(100)))
    np.testing.assert_array_equal(out, 2 * x)


def differences(kernel, shared_mem=0):
    x, out = numbers(32), fresh(32)
    kernel((1,), (32,), (x, out), shared_mem=shared_mem)
    np.testing.assert_array_equal(out, np.append(x, F32(0))[1:] - x)


def dynamic_differences(kernel):
    differences(kernel, 33 * 4)


def sum_of_halves(kernel):
    x, out = numbers(32), fresh(32)
    kernel((1,), (32,), (x, out))
    np.testing.assert_allclose(out, np.repeat(x.reshape(2, 16).sum(1), 16), rtol=0, atol=1e-5)


def sum_of_first_half(kernel):
    x, out = numbers(32), fresh(1)
    kernel((1,), (32,), (x, out))
    np.testing.assert_allclose(out, x[:16].sum(), rtol=0, atol=1e-5)


def sum_of_20(kernel):
    x, out = numbers(20), fresh(1)
    kernel((1,), (20,), (x, out))
    np.testing.assert_allclose(out, x.sum(), rtol=0, atol=1e-5)


def mean_recurrence(kernel):
    n, steps = 32, 5
    x, h = numbers(steps, n), fresh((steps + 1, n))
    h[0] = numbers(n)
    kernel((4,), (8,), (x, h, zeroed_word(), np.int32(n), np.int32(steps)), cooperative=True)
    for t in range(steps):
        np.testing.assert_allclose(h[t + 1], (h[t].mean() + x[t]) / 2, rtol=0, atol=1e-5)


def rotate(kernel):
    x, out = numbers(40), fresh(40)
    kernel((1,), (64,), (x, out, np.int32(40)))
    np.testing.assert_array_equal(out, np.roll(x, -1))


def two_barriers(kernel):
    x, out = numbers(64), fresh(64)
    kernel((1,), (64,), (x, out))
    np.testing.assert_array_equal(out, x[::-1])


def rotate_warp(kernel):
    x, out = numbers(32), fresh(32)
    kernel((1,), (32,), (x, out))
    np.testing.assert_array_equal(out, np.roll(x, -1))


def hand_over(kernel):
    x, row, out = numbers(32), fresh(32), fresh(32)
    kernel((2,), (32,), (x, row, out, zeroed_word()), cooperative=True)
    np.testing.assert_array_equal(out, 2 * x)


def read_only_load(kernel):
    x, row, out = numbers(32), fresh(32), fresh(32)
    kernel((1,), (32,), (x, row, out))
    np.testing.assert_array_equal(out, 2 * x)


def meet(kernel):
    out = fresh(2)
    with host.execution(stall_seconds=0.3):
        kernel((2,), (1,), (zeroed_word(), out), cooperative=True)
    assert (out == 1).all()


def wait_for_two(kernel):
    out = fresh(1)
    kernel((2,), (1,), (zeroed_word(), out), cooperative=True)
    assert out[0] == 1


def double_by_steps(kernel):
    x = numbers(64)
    expected = x * F32(2**20)
    with host.execution(most_waits=20):
        kernel((1,), (64,), (x, np.int32(20)))
    np.testing.assert_array_equal(x, expected)


def count_to(kernel):
    counter = zeroed_word()
    with host.execution(most_waits=21):
        kernel((1,), (1,), (counter, np.uint32(21)))
    assert counter[0] == 22


def cell_state(kernel):
    gates, c = numbers(3, 4, 10), numbers(3, 10)
    i, f, g, _ = gates.transpose(1, 0, 2)
    expected = f * c + i * g
    kernel((3,), (10,), (gates, c, np.int32(10)))
    np.testing.assert_array_equal(c, expected)


def last_of_block(kernel):
    x, out = numbers(8), fresh(8)
    kernel((8,), (32,), (x, out))
    np.testing.assert_array_equal(out, x)


def count(kernel):
    counter = zeroed_word()
    kernel((2,), (32,), (counter,))
    assert counter[0] == 64


def pair_sums(kernel):
    x, out = numbers(50), fresh((63, 2))
    kernel((1,), (64,), (x, out, np.int32(50)), shared_mem=64 * 4)
    padded = np.append(x, np.zeros(14, F32))
    np.testing.assert_array_equal(out, np.stack([padded[:-1] + padded[1:]] * 2, axis=1))


def integer_mean(kernel):
    x, out = np.arange(5, dtype=np.int32), fresh(1, np.int32)
    kernel((1,), (1,), (x, out, np.int32(5)))
    assert out[0] == 2


def through_null(kernel):
    out = fresh(1)
    kernel((1,), (1,), (None, out))
    assert out[0] == 1


def asserted(kernel):
    x, out = np.full(1, -1, F32), fresh(1)
    kernel((1,), (1,), (x, out))
    assert out[0] == -1


def sums_of_clusters(kernel):
    x, out = numbers(2, 3, 4, 40), fresh((2, 3, 4, 40))  # steps, clusters, their blocks and threads
    kernel((12,), (40,), (x, out, np.int32(2)), shared_mem=40 * 4)
    np.testing.assert_array_equal(out, np.broadcast_to(x.cumsum(axis=2)[:, :, -1:], x.shape))


def bug(file, kernel, case, everywhere=None, *, plain=None, conflicts=None, sanitize=None):
    """The report of each build on a bug: "check: words of the message", or "value" where only the result is wrong.

    A build with None cannot be relied on to see the bug.
    """
    reports = (plain, conflicts, sanitize)
    return (
        file,
        kernel,
        case,
        {b: r or everywhere for b, r in zip(("plain", "conflicts", "sanitize"), reports, strict=True)},
    )


CASES = [
    bug(
        "dropped_barrier",
        "reversed_sum",
        reversed_sum,
        plain="value",
        conflicts="conflict: static shared memory.*no barrier",
    ),
    bug("block_barrier_for_grid", "shift", shift, plain="value", conflicts="conflict: `h`.*no barrier"),
    bug(
        "dropped_bounds_check",
        "twice",
        twice,
        plain="bounds: wrote 0 bytes behind the end of `out`",
        conflicts="bounds: bytes behind the end of `(x|out)`",
        sanitize="bounds: heap-buffer-overflow",
    ),
    bug(
        "shared_off_by_one",
        "differences",
        differences,
        conflicts="bounds: index 32 is out",
        sanitize="bounds: index 32 is out",
    ),
    bug(
        "shared_off_by_one",
        "dynamic_differences",
        dynamic_differences,
        plain="bounds: wrote 0 bytes behind its 132 bytes of dynamic",
        conflicts="bounds: behind the end of `dynamic shared memory`",
        sanitize="bounds: heap-buffer-overflow",
    ),
    bug(
        "divergent_shuffle",
        "sum_of_halves",
        sum_of_halves,
        r"collective: __shfl_xor_sync with mask 0xffffffff .* cannot complete: lane \d+ ended",
    ),
    bug(
        "divergent_shuffle",
        "sum_of_first_half",
        sum_of_first_half,
        "deadlock: waits at __shfl_xor_sync with mask 0xffffffff.*waits at __syncthreads",
    ),
    bug("absent_lane", "sum_of_20", sum_of_20, r"lane: __shfl_sync reads lane \d+, which takes no part"),
    bug("read_before_write", "mean_recurrence", mean_recurrence, "value", conflicts="conflict: `h`.*no barrier"),
    bug("divergent_syncthreads", "rotate", rotate, "barrier: some threads of the block ended"),
    bug("divergent_syncthreads", "two_barriers", two_barriers, "barrier: different barriers"),
    bug(
        "half_membermask", "rotate_in_warp", rotate_warp, "collective: 0x0000ffff, which does not name the calling lane"
    ),
    bug("half_membermask", "rotate_by_halves", rotate_warp, conflicts="conflict: static shared memory.*no barrier"),
    bug("missing_fence", "hand_over", hand_over, conflicts="conflict: `row`.*no barrier"),
    bug("plain_load", "hand_over", hand_over, conflicts=r"conflict: `row`.*read_published\(\)"),
    bug("plain_load", "read_only_load", read_only_load, conflicts="conflict: `row`.*__ldg is for"),
    bug("spin_on_plain_flag", "meet", meet, "endless: a spin without spin_pause"),
    bug("spin_on_plain_flag", "wait_for_two", wait_for_two, r"livelock: spins \("),
    bug(
        "endless_waiting",
        "double_by_steps",
        double_by_steps,
        r"endless: waited 20 times .* waits at __syncthreads \(.*endless_waiting\.cu:8\)",
    ),
    bug(
        "endless_waiting",
        "double_by_warps",
        double_by_steps,
        r"endless: waited 20 times .* waits at __syncwarp with mask 0xffffffff \(.*endless_waiting\.cu:18\)",
    ),
    bug(
        "endless_waiting",
        "count_to",
        count_to,
        r"endless: waited 21 times .* spins \(.*endless_waiting\.cu:26\)",
    ),
    bug("wrong_gate_index", "cell_state", cell_state, "value"),
    bug("two_writers", "last_of_block", last_of_block, plain="value", conflicts="conflict: writes `out`.*writes"),
    bug("two_writers", "count", count, conflicts="conflict: `counter`.*no barrier"),
    bug("unset_shared", "pair_sums", pair_sums, "value"),
    bug("integer_errors", "mean", integer_mean, "undefined: division by zero"),
    bug(
        "integer_errors", "through_null", through_null, "undefined: a null pointer", plain="bounds: an invalid address"
    ),
    bug("integer_errors", "checked", asserted, r"assert: assert\(\*x > 0\) failed"),
    bug("clusters", "unmet", sums_of_clusters, "value", conflicts="conflict: shared memory"),
    bug("clusters", "absent", sums_of_clusters, r"barrier: .*waits at cluster_sync .*clusters\.cu:.*ended without"),
    bug(
        "clusters",
        "overwritten",
        sums_of_clusters,
        conflicts="conflict: dynamic shared memory.*(reads .by its rank.|writes).*no barrier",
    ),
    bug("clusters", "left", sums_of_clusters, conflicts="conflict: (ends, and its shared memory|which has ended)"),
]
CASE_IDS = [f"{file}-{kernel}" for file, kernel, _, _ in CASES]


@pytest.mark.parametrize(("file", "kernel", "case", "expected"), CASES, ids=CASE_IDS)
def test_the_kernel_without_the_bug_is_right_and_not_reported(file, kernel, case, expected, any_build):
    for seed in range(3):
        with host.execution(seed=seed):
            case(BUGS[file][f"{kernel}<false>"])


@pytest.mark.parametrize(("file", "kernel", "case", "expected"), CASES, ids=CASE_IDS)
def test_the_bug_is_reported_by_its_check(file, kernel, case, expected, any_build):
    report = expected[any_build]
    if report is None:
        pytest.skip(f"the {any_build} build can't be relied on to see this one")
    for seed in range(3):
        with host.execution(seed=seed):
            assert_reported(BUGS[file][f"{kernel}<true>"], case, report)


def assert_reported(kernel, case, report):
    check, _, words = report.partition(": ")
    if check == "value":
        with pytest.raises(AssertionError):
            case(kernel)
        return
    with pytest.raises(host.ExecutionError) as error:
        case(kernel)
    message = str(error.value)
    assert error.value.check == check
    assert f"kernel {kernel.name}" in message
    assert re.search(words, message, re.DOTALL)
    if "wrote 0 bytes behind the end" not in message:  # this is seen only after the launch
        assert re.search(r"block \(\d+, 0, 0\) thread \(\d+, 0, 0\)", message)


def test_every_bug_has_a_build_that_sees_it():
    assert all(any(expected.values()) for *_, expected in CASES)
    assert {path.stem for path in PLANTED.glob("*.cu")} == {file for file, *_ in CASES} | {"correct"}


def test_a_conflict_names_both_threads_and_both_lines():
    if UNDER_SANITIZERS:
        pytest.skip("only for the conflicts build")
    with host.execution(build="conflicts"), pytest.raises(host.ExecutionError) as error:
        reversed_sum(BUGS["dropped_barrier"]["reversed_sum<true>"])
    assert len(re.findall(r"block \(0, 0, 0\) thread \(\d+, 0, 0\)", str(error.value))) == 2
    source = (PLANTED / "dropped_barrier.cu").read_text().splitlines()
    lines = {int(line) for line in re.findall(r"dropped_barrier\.cu:(\d+)", str(error.value))}
    assert {source[line - 1].split()[0] for line in lines} == {"tile[threadIdx.x]", "sum"}


def test_a_kernel_runs_after_one_that_failed(any_build):
    with pytest.raises(host.ExecutionError):
        two_barriers(BUGS["divergent_syncthreads"]["two_barriers<true>"])
    two_barriers(BUGS["divergent_syncthreads"]["two_barriers<false>"])


def test_memory_that_stacks_lay_in_can_be_used_again():
    """AddressSanitizer marks memory around the variables of fibers. These marks must not pass to its next owner."""
    if not UNDER_SANITIZERS:
        pytest.skip("only for the sanitize build")
    n = 1280  # the stacks of so many fibers are returned to the system
    h = np.ones((2, n), F32)
    kernel = BUGS["block_barrier_for_grid"]["shift<false>"]
    kernel((n // 16,), (16,), (h, zeroed_word(), np.int32(n), np.int32(1)), cooperative=True)
    size = n * 256 * 1024
    memory = mmap.mmap(-1, size)  # the system puts it into the same gap
    first_poisoned = ctypes.CDLL(None)["__asan_region_is_poisoned"]
    first_poisoned.restype = ctypes.c_void_p
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert first_poisoned(ctypes.c_void_p(start), ctypes.c_size_t(size)) is None


def test_a_kernel_whose_blocks_do_not_meet_ends():
    """The waiting blocks give up, as on a GPU where not all blocks run at once; the barrier's word says so."""
    n, steps, polls = 32, 3, 20
    w, x, h, arrived = numbers(n, n), numbers(steps, n), fresh((2, n)), zeroed_word()
    h[0] = 0
    arguments = w, x, h, arrived, np.int32(n), np.int32(steps)
    with host.execution(build=BUILDS[0], most_polls=polls):
        CORRECT["persistent_rnn"]((2,), (16,), arguments, shared_mem=16 * n * 4)
    assert arrived[0] == residency.GIVEN_UP + 2
    np.testing.assert_allclose(h[1], np.tanh(x[0]), rtol=0, atol=np.finfo(F32).eps)


def test_a_grid_barrier_in_a_plain_launch_is_a_livelock(any_build):
    h = fresh((2, 96))
    with pytest.raises(host.ExecutionError, match="livelock: kernel shift<false>, block"):
        BUGS["block_barrier_for_grid"]["shift<false>"]((6,), (16,), (h, zeroed_word(), np.int32(96), np.int32(9)))


def test_fresh_memory_is_nan():
    for dtype in (np.float16, np.float32, np.float64):
        array = host.empty((3, 5), dtype)
        assert array.shape == (3, 5)
        assert array.dtype == dtype
        assert np.isnan(array).all()
        array[:] = 0  # writable
    assert host.empty(0, F32).shape == (0,)
    assert host.empty((), F32).shape == ()
    assert (host.empty(4, np.int32) == -1).all()


def test_arrays_beside_each_other_in_one_allocation_are_kept_apart():
    """The end of a view is a bound even where the allocation continues."""
    if UNDER_SANITIZERS:
        pytest.skip("AddressSanitizer knows allocations only")
    x, rest = numbers(100), np.zeros(400, F32)
    with (
        host.execution(build="conflicts"),
        pytest.raises(host.ExecutionError, match="behind the end of `out` \\(of 400 bytes\\)"),
    ):
        BUGS["dropped_bounds_check"]["twice<true>"]((2,), (64,), (np.tile(x, 2), rest[:100], np.int32(100)))


@pytest.mark.slow
def test_blocks_that_run_one_after_another_leave_nothing_in_the_memory_of_the_recorder():
    if UNDER_SANITIZERS:
        pytest.skip("only for the conflicts build")
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from gpurnn.kernels import launch
kernel = launch.Module(sys.argv[1], sys.argv[2:])["block_sums<float>"]
def run(blocks):
    x, out = np.ones(5000, np.float32), np.zeros(blocks, np.float32)
    kernel((blocks,), (64,), (x, out, np.int32(5000)))
    assert out.sum() == 5000
run(3)
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**27,) * 2)
run(20_000)
"""
    command = [sys.executable, "-c", script, str(CORRECT.source), *CORRECT.names]
    subprocess.run(command, env={**os.environ, "GPURNN_HOST_BUILD": "conflicts"}, check=True)


def test_blocks_that_run_one_after_another_are_not_ordered():
    if UNDER_SANITIZERS:
        pytest.skip("only for the conflicts build")
    message = r"conflict: .* block \((\d), 0, 0\) thread .* writes `out`.*block \((?!\1)\d, 0, 0\).*no barrier"
    x, out = numbers(8), fresh(8)
    with host.execution(build="conflicts"), pytest.raises(host.ExecutionError, match=message):
        BUGS["two_writers"]["last_of_block<true>"]((8,), (1,), (x, out))


def test_threads_may_launch_at_the_same_time():
    failures = []

    def work():
        try:
            for _ in range(20):
                run_block_sums()
                run_persistent_rnn()
        except Exception as error:  # whatever it is, the test must see it
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def signal_handlers():
    """The address that the system calls for each catchable signal, the first member of struct sigaction."""
    handlers = {}
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        action = ctypes.create_string_buffer(256)
        assert ctypes.CDLL(None).sigaction(int(number), None, action) == 0
        handlers[number] = ctypes.c_void_p.from_buffer(action).value
    return handlers


def test_launches_of_two_libraries_at_the_same_time_leave_the_signal_handlers_as_they_were(any_build):
    before = signal_handlers()

    def start(module):
        running, told = np.zeros((2, 1), np.int32)
        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(module["hold"], (1,), (1,), (running, told))
        )
        thread.start()
        return thread, running, told

    first, first_running, first_told = start(CORRECT)
    while not first_running[0] and first.is_alive():
        time.sleep(0.01)
    second, second_running, second_told = start(HOLD)
    time.sleep(0.3)  # so that it begins before the first one ends, unless something prevents that
    for thread, told in ((first, first_told), (second, second_told)):
        told[0] = 1
        thread.join()
    assert first_running[0]
    assert second_running[0]
    assert signal_handlers() == before


# ---- Arguments ------------------------------------------------------------------------------------------------------


def launch_add(**changes):
    arguments = {"x": numbers(8), "y": numbers(8), "out": fresh(8), "n": np.int32(8)}
    arguments.update(changes)
    CORRECT["add<float>"]((1,), (32,), tuple(arguments.values()))


def misaligned(n):
    return np.zeros(4 * n + 4, np.uint8)[1 : 4 * n + 1].view(F32)


def read_only(n):
    array = np.zeros(n, F32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n": 8}, TypeError, "add<float>: argument n is a int, expected a NumPy scalar int32"),
        ({"n": 8.0}, TypeError, "argument n is a float, expected a NumPy scalar int32"),
        ({"n": np.int64(8)}, TypeError, "argument n is a int64 scalar, expected int32"),
        ({"n": np.zeros(1, np.int32)}, TypeError, "argument n is a ndarray, expected a NumPy scalar int32"),
        ({"x": np.float32(1)}, TypeError, "argument x is a float32, expected an array or None"),
        ({"x": [1.0]}, TypeError, "argument x is a list, expected an array or None"),
        ({"y": np.zeros(8)}, TypeError, "argument y has dtype float64, expected float32"),
        ({"y": np.zeros(8, ">f4")}, TypeError, "argument y has dtype >f4, expected float32"),
        ({"y": np.zeros(16, F32)[::2]}, ValueError, r"argument y has strides \(8,\), expected a C-contiguous array"),
        ({"y": misaligned(8)}, ValueError, "argument y is at address 0x[0-9a-f]+, expected a multiple of 4 bytes"),
        ({"out": read_only(8)}, ValueError, "argument out is read-only, expected a writable array"),
        ({"more": np.int32(1)}, TypeError, r"5 arguments, expected 4 \(x, y, out, n\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        launch_add(**changes)


def test_read_only_arrays_may_be_passed_where_the_kernel_only_reads():
    launch_add(x=read_only(8))


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        ((0,), (32,), r"grid is \(0,\), expected sizes from 1"),
        ((1, 65536), (32,), r"grid is \(1, 65536\), expected sizes from 1 to"),
        ((1,), (), r"block is \(\), expected one to three sizes"),
        ((1,), (1, 1, 65), r"block is \(1, 1, 65\), expected sizes from 1 to"),
        ((1,), (64, 32), "2048 threads, expected at most 1024"),
    ],
)
def test_grids_that_no_gpu_takes_are_refused(grid, block, message):
    with pytest.raises(ValueError, match=message):
        CORRECT["add<float>"](grid, block, (numbers(8), numbers(8), fresh(8), np.int32(8)))


def test_names_that_were_not_asked_for():
    with pytest.raises(KeyError, match="not add<double>"):
        CORRECT["add<double>"]
    with pytest.raises(ValueError, match=r"no `__global__` function nothing in .*correct\.cu"):
        launch.parameter_names(CORRECT.texts, "nothing<float>")


# ---- During a call ----


class Hangs(Exception):
    pass


@pytest.fixture
def soon():
    """Raise an error in the main thread after half a minute, in case it waits for a lock."""

    def alarm(*_):
        raise Hangs

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def on_signal():
    """Sets the function that runs on the signal sent by `signal.raise_signal`."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda function: signal.signal(signal.SIGUSR1, lambda *_: function())
    signal.signal(signal.SIGUSR1, before)


def added():
    out = fresh(8)
    launch_add(out=out)
    return out


needs_signals = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signals")


@needs_signals
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_handler_computes_amid_a_launch(on_signal, monkeypatch, moment):
    """The handler runs between two steps of the interpreter: before the executor begins or after it has ended."""
    library, outs = CORRECT.library(os.environ.get("GPURNN_HOST_BUILD", "plain"))._library, []
    execute = library.gpurnn_host_launch

    def amid(*arguments):
        monkeypatch.setattr(library, "gpurnn_host_launch", execute)
        failed = execute(*arguments) if moment == "after" else None
        signal.raise_signal(signal.SIGUSR1)
        return execute(*arguments) if failed is None else failed

    monkeypatch.setattr(library, "gpurnn_host_launch", amid)
    on_signal(lambda: outs.append(added()))
    outs.append(added())
    assert len(outs) == 2
    for out in outs:
        np.testing.assert_array_equal(out, 2 * numbers(8))


@needs_signals
@pytest.mark.usefixtures("soon")
def test_a_signal_handler_amid_a_compilation_of_what_it_needs_is_an_error(on_signal, cache, tmp_path, monkeypatch):
    source = tmp_path / "one.cu"
    source.write_text(TINY)
    module = launch.Module(source, ["one"], {"VALUE": "3"})
    run, raised = cpp.run, []

    def compute():
        x = np.zeros(1, np.float32)
        module["one"]((1,), (1,), (x,))
        return x[0]

    def handler():
        with pytest.raises(RuntimeError, match=r"^one\.cu: a signal handler or a finaliser asks for kernels whose"):
            compute()
        raised.append(True)

    def amid(command):
        monkeypatch.setattr(cpp, "run", run)
        signal.raise_signal(signal.SIGUSR1)
        return run(command)

    cpp.compiler_version(build.find_compiler())
    monkeypatch.setattr(cpp, "run", amid)
    on_signal(handler)
    assert compute() == 3
    assert raised == [True]
    assert compute() == 3


# ---- Builds ---------------------------------------------------------------------------------------------------------

TINY = "__global__ void one(float* x) { *x = VALUE; }\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPURNN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_libraries_are_cached_by_all_that_goes_into_them(cache, tmp_path, monkeypatch):
    commands = []

    def compile_nothing(command):
        commands.append(command)
        Path(command[-1]).write_bytes(b"")

    cpp.compiler_version(build.find_compiler())  # its result is cached
    monkeypatch.setattr(cpp, "run", compile_nothing)
    source, header = tmp_path / "one.cu", tmp_path / "value.h"
    source.write_text('#include "value.h"\n' + TINY)
    header.write_text("#define VALUE 1\n")

    def compiles(**changes):
        commands.clear()
        arguments = {"source": source, "kernels": ("one",), "defines": {}, "build": "plain"} | changes
        path = build.build_library(**arguments)
        assert path.parent == cache
        return len(commands)

    assert compiles() == 5  # three parts of the executor, the kernels, the link
    assert compiles() == 0
    assert compiles(defines={"VALUE": "2"}) == 2
    assert (
        compiles(build="conflicts") == 5 - 2
    )  # other flags for the kernels; executor and undefined have those of plain
    header.write_text("#define VALUE 3\n")
    assert compiles() == 2
    source.write_text(source.read_text() + "// another text\n")
    assert compiles() == 2
    monkeypatch.setattr(cpp, "compiler_version", lambda command: "another version")
    assert compiles() == 5


@pytest.mark.slow
def test_processes_that_build_at_the_same_time_get_one_library(cache, tmp_path):
    source = tmp_path / "one.cu"
    source.write_text(TINY)
    script = (
        "import sys, numpy as np; from gpurnn.kernels.launch import Module\n"
        "x = np.zeros(1, np.float32)\n"
        "Module(sys.argv[1], ['one'], {'VALUE': '5'})['one']((1,), (1,), (x,)); assert x[0] == 5"
    )
    environment = {**os.environ, "GPURNN_HOST_BUILD": "plain"}
    environment.pop("LD_PRELOAD", None)
    command = [sys.executable, "-c", script, str(source)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [(b"", 0)] * 3
    assert len(list(cache.glob("one-*.so"))) == 1
    assert not [path for path in cache.iterdir() if path.suffix not in (".so", ".o", ".lock", ".sha256")]


def test_a_compiler_error_names_the_kernels_own_line(cache, tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text("\n\n__global__ void one(float* x) { *x = undeclared; }\n")
    with pytest.raises(host.CompilerError, match=r"broken\.cu:3:\d+: error: .*undeclared"):
        build.build_library(source, ("one",), {}, "plain")


def test_the_compiler_is_cxx_or_the_first_that_is_there(monkeypatch):
    there = {"g++", "clang++"}
    monkeypatch.setattr(cpp.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(cpp.importlib.util, "find_spec", lambda name: object() if name in there else None)
    monkeypatch.setenv("CXX", "ccache clang++-17")
    assert build.find_compiler() == ("ccache", "clang++-17")
    monkeypatch.delenv("CXX")
    assert build.find_compiler() == ("/bin/g++",)
    there.remove("g++")
    assert build.find_compiler() == ("/bin/clang++",)
    there.clear()
    with pytest.raises(host.CompilerError, match="no C\\+\\+ compiler: set CXX, install"):
        build.find_compiler()
    there.add("ziglang")
    assert build.find_compiler() == (sys.executable, "-m", "ziglang", "c++")


@pytest.fixture(params=["ucontext", "ziglang"])
def compiler(request, monkeypatch):
    """The installed compiler with the fibers of machines other than x86-64, and that of the ``ziglang`` wheel."""
    if request.param == "ucontext":
        command = (*build.find_compiler(), "-DHOST_UCONTEXT")
    else:
        pytest.importorskip("ziglang", reason="ziglang isn't installed")
        if UNDER_SANITIZERS:
            pytest.skip("the ziglang wheel has no AddressSanitizer")
        command = (sys.executable, "-m", "ziglang", "c++")
    monkeypatch.setenv("CXX", shlex.join(command))
    return request.param


@pytest.mark.slow
def test_other_compilers_and_other_ways_to_switch_fibers_run_the_same(compiler, any_build, monkeypatch):
    correct = launch.Module(CORRECT.source, CORRECT.names)
    monkeypatch.setattr(sys.modules[__name__], "CORRECT", correct)
    for run in RUNS:
        run()
    if compiler == "ucontext":
        assert b"swapcontext" in correct.library(any_build).path.read_bytes()
    # Fibers suspended at a barrier, in a signal handler, and in the recorder.
    for file, kernel, case, expected in CASES:
        if kernel in ("two_barriers", "mean", "reversed_sum") and expected[any_build]:
            planted = module(file, kernel)
            assert_reported(planted[f"{kernel}<true>"], case, expected[any_build])
            case(planted[f"{kernel}<false>"])


def test_a_compiler_that_does_not_run_is_named(cache, tmp_path, monkeypatch):
    source = tmp_path / "one.cu"
    source.write_text(TINY)
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(host.CompilerError, match="no-such-compiler does not run"):
        build.build_library(source, ("one",), {}, "plain")


def test_builds_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="build is 'fast', expected one of plain, sanitize, conflicts"):
        build.build_library(PLANTED / "correct.cu", ("transpose",), {}, "fast")


def test_the_sanitize_build_wants_a_compiler_that_has_it(monkeypatch):
    monkeypatch.setenv("CXX", "python -m ziglang c++")
    with pytest.raises(host.CompilerError, match="the ziglang wheel has no AddressSanitizer"):
        build.build_library(PLANTED / "correct.cu", ("transpose",), {}, "sanitize")


def test_the_sanitize_build_wants_its_environment():
    if UNDER_SANITIZERS:
        pytest.skip("this process has it")
    with host.execution(build="sanitize"), pytest.raises(RuntimeError, match="start Python with sanitizer_environment"):
        run_add()
