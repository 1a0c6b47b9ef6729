"""Launches of genuine CuPy, over the driver of `cupy_on_host`. Run this in a process of its own."""

from __future__ import annotations

import itertools
import types
from typing import Any

import cupy_on_host
import numpy as np
import pytest
from cupy_on_host import (
    BLOCKS_PER_MULTIPROCESSOR,
    H100,
    MAX_DYNAMIC_SHARED_SIZE_BYTES,
    STATIC_SHARED_BYTES,
    Launch,
)
from gpurnn.kernels import (
    attention,
    dropout,
    embedding,
    host,
    launch,
    linear_scan,
    losses,
    optim,
    recent,
    residency,
    streams,
)
from gpurnn.kernels.recurrence import cost, plan
from gpurnn.kernels.recurrence.run import Run, run_backward, run_forward
from test_host_executor import CORRECT

import gpurnn
from benchmarks import gpu as gpu_benchmark
from benchmarks.cases import Case, Size
from gpurnn import cells
from gpurnn.optimizers import SGD

import cupy  # isort: skip  its tables are in place by now


@pytest.fixture
def gpu():
    """The driver, with its records cleared."""
    cupy_on_host.DRIVER.launches.clear()
    cupy_on_host.DRIVER.attributes.clear()
    cupy_on_host.DRIVER.order.clear()
    before = vars(cupy_on_host.DRIVER).copy()
    yield cupy_on_host.DRIVER
    vars(cupy_on_host.DRIVER).update(before)
    residency.AT_ONCE.clear()
    residency._watched.clear()


def numbers(*shape, dtype=np.float32):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def test_a_launch_gets_its_arguments_grid_and_stream(gpu):
    x, y = numbers(100), numbers(100)
    out = cupy.empty(100, np.float32)
    arguments = (cupy.asarray(x), cupy.asarray(y), out, np.int32(100))
    CORRECT["add<float>"]((2,), (64,), arguments)
    np.testing.assert_array_equal(cupy.asnumpy(out), x + y)
    stream = types.SimpleNamespace(__cuda_stream__=lambda: (0, 1234))
    with cupy.cuda.Stream.from_external(stream):
        CORRECT["add<float>"]((2, 1), (64, 1, 1), arguments)
    first, second = gpu.launches
    assert first == Launch("add<float>", (2, 1, 1), (64, 1, 1), 0, 0, False)
    assert second == first._replace(stream=1234)
    assert not gpu.attributes


def test_layers_and_models_move_by_the_name_of_the_device(gpu):
    for layer in (gpurnn.LSTM(2, 3), gpurnn.SequenceClassifier(2, 3, 2), gpurnn.EncoderDecoder(4, 5, 2, 3)):
        for name in ("cuda", "cuda:0"):
            there = layer.to(name)
            assert all(isinstance(p, cupy.ndarray) for p in there.params.values())
            back = there.to("cpu")
            for parameter, p in layer.params.items():
                np.testing.assert_array_equal(back.params[parameter], p, strict=True)
    with pytest.raises(RuntimeError, match="to: device is 'cuda:1', expected 'cuda:0' to 'cuda:0', as there are 1"):
        layer.to("cuda:1")
    with gpurnn.use("cuda"):
        optimizer, p = SGD(lr=1.0), cupy.asarray(numbers(3))
        before = cupy.asnumpy(p)
        optimizer.step({"weight": p}, {"weight": cupy.asarray(np.ones(3, np.float32))})
        np.testing.assert_array_equal(cupy.asnumpy(p), before - 1)
        with pytest.raises(TypeError, match=r"x is a numpy array, expected a cupy array .* cupy.asarray\(x\)"):
            gpurnn.LSTM(2, 3)(numbers(4, 1, 2))


def test_arguments_are_checked(gpu):
    x = cupy.asarray(numbers(8))
    add, length = CORRECT["add<float>"], np.int32(8)
    with pytest.raises(TypeError, match="hold NumPy and CuPy arrays"):
        add((1,), (32,), (x, numbers(8), x, length))
    with pytest.raises(TypeError, match="argument n is a int, expected an array or None"):
        add((1,), (32,), (x, x, x, 8))
    with pytest.raises(TypeError, match="3 arguments, expected 4"):
        add((1,), (32,), (x, x, x))
    with pytest.raises(ValueError, match="argument x has strides \\(8,\\), expected a C-contiguous array"):
        add((1,), (32,), (x[::2], x, x, np.int32(4)))
    assert not gpu.launches


def test_arrays_of_another_device_are_refused(gpu):
    x = cupy.zeros(8, np.float32)
    memory = cupy.cuda.UnownedMemory(x.data.ptr, x.nbytes, x, 3)
    there = cupy.ndarray(8, np.float32, cupy.cuda.MemoryPointer(memory, 0))
    with pytest.raises(ValueError, match=r"arrays are on device 3 but the current one is 0; use `with cupy.cuda.Dev"):
        CORRECT["add<float>"]((1,), (32,), (x, there, x, np.int32(8)))
    assert not gpu.launches


def test_an_error_of_the_executor_is_raised(gpu):
    x = cupy.zeros(8, np.int32)
    with pytest.raises(host.ExecutionError):
        CORRECT["votes"]((1,), (8,), (x, None))


def test_a_cooperative_grid_is_one_that_the_gpu_holds(gpu):
    n, steps = 64, 2
    w, x, h = numbers(n, n) / np.float32(8), numbers(steps, n), numbers(2, n)
    arrays = tuple(map(cupy.asarray, (w, x, h)))
    arguments = (*arrays, cupy.zeros(1, np.uint32), np.int32(n), np.int32(steps))
    rnn = CORRECT["persistent_rnn"]
    most = BLOCKS_PER_MULTIPROCESSOR * H100.multiprocessors
    with pytest.raises(ValueError, match=f"a cooperative grid of {most + 1} blocks, expected at most the {most}"):
        rnn((most + 1,), (16,), arguments, shared_mem=16 * n * 4, cooperative=True)
    assert not gpu.launches
    rnn((4,), (16,), arguments, shared_mem=16 * n * 4, cooperative=True)
    assert gpu.launches == [Launch("persistent_rnn", (4, 1, 1), (16, 1, 1), 16 * n * 4, 0, True)]
    on_host = (w, x, h, np.zeros(1, np.uint32), np.int32(n), np.int32(steps))
    CORRECT["persistent_rnn"]((4,), (16,), on_host, shared_mem=16 * n * 4, cooperative=True)
    np.testing.assert_array_equal(cupy.asnumpy(arrays[2]), h)


def test_more_shared_memory_than_48_kib_is_asked_for_once(gpu):
    """All shared memory is requested, as host threads with other layer sizes launch the same function."""
    n, sizes = 64, [48 * 1024 + 256 * k for k in (0, 3, 1, 2, 5)]
    w, x, h = map(cupy.asarray, (numbers(n, n), numbers(1, n), numbers(2, n)))
    rnn = launch.Module(CORRECT.source, CORRECT.names)["persistent_rnn"]
    for size in sizes:
        arguments = (w, x, h, cupy.zeros(1, np.uint32), np.int32(n), np.int32(1))
        rnn((4,), (16,), arguments, shared_mem=size, cooperative=True)
        assert len(gpu.attributes) == (size > sizes[0])
    (_, attribute, most), *_ = gpu.attributes
    assert attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert most == H100.shared_memory_per_block - STATIC_SHARED_BYTES
    assert [launched.shared_bytes for launched in gpu.launches] == sizes


def test_where_a_grid_is_not_resident_another_schedule_runs(gpu):
    """A kernel that needs more of a multiprocessor than the driver leaves for it."""
    cell, (T, B, H) = cells.LSTM(), (5, 16, 512)
    w = cupy.zeros((1, 4 * H, H), np.float32)
    assert Run.begin(cell, T, B, H, w, training=False).plan.schedule == "persistent"
    gpu.blocks_per_multiprocessor = 0
    run = Run.begin(cell, T, B, H, w, training=True)
    assert run.plan.schedule != "persistent"
    explained = gpurnn.explain(gpurnn.LSTM(4, H), cupy.zeros((T, B, 4), np.float32))
    assert (
        "blocks of its forward pass have to run at once, and the device runs 0" in explained.passed_over["persistent"]
    )
    with plan.schedule("persistent"):
        run = Run.begin(cell, T, B, H, w, training=False)
    with pytest.raises(ValueError, match="expected at most the 0 that the device holds at once"):
        run_forward(run, cupy.zeros((1, T * B, 4 * H), np.float32), (None, None), (w[:, :B], w[:, :B]))


@pytest.fixture(params=[()])
def persistent_first(monkeypatch, request):
    """Prefer the schedules of ``param``, then persistent, then step-fused, whatever is predicted."""
    order = [*request.param, "persistent", "step-fused"]
    monkeypatch.setattr(plan.Choice, "best", property(lambda choice: next(n for n in order if n in choice.plans)))
    yield
    plan._choose.cache_clear()


def a_sequence(cell: Any = cells.Vanilla("tanh"), T: int = 2, B: int = 1, H: int = 40) -> tuple[Run, tuple[Any, ...]]:  # noqa: B008
    """A run in 40 blocks, and the arguments of its forward pass."""
    rows = cell.gates * H
    run = Run.begin(cell, T, B, H, cupy.asarray(numbers(1, rows, H) / np.float32(6)), training=True)
    state = tuple(cupy.asarray(numbers(1, B, H)) for _ in range(cell.states))
    return run, (cupy.asarray(numbers(1, T * B, rows)), (None, None), state)


def test_where_the_driver_does_not_run_all_blocks_at_once_another_schedule_runs(gpu, persistent_first):
    """Only the launch reports it, as in a context with a part of the device. `explain` knows it afterwards."""
    layer, x = gpurnn.RNN(4, 40), cupy.zeros((2, 1, 4), np.float32)
    assert gpurnn.explain(layer, x).schedule == "persistent"
    with plan.schedule("step-fused"):
        run, arguments = a_sequence()
        expected = run_forward(run, *arguments)
    gpu.blocks_at_once = 30
    with plan.schedule("persistent"):
        run, arguments = a_sequence()
        with pytest.raises(
            residency.NotResident, match="the driver does not run a cooperative grid of 40 blocks at once"
        ):
            run_forward(run, *arguments)
    residency.AT_ONCE.clear()
    run, arguments = a_sequence()
    assert run.plan.schedule == "persistent"
    np.testing.assert_array_equal(cupy.asnumpy(run_forward(run, *arguments)), cupy.asnumpy(expected))
    assert a_sequence()[0].plan.schedule == "step-fused"
    explained = gpurnn.explain(layer, x)
    assert explained.schedule == "step-fused"
    assert explained.passed_over["persistent"] == (
        "40 blocks of its forward pass have to run at once, and the device runs 39"
    )
    assert gpurnn.explain(layer, x.shape).schedule == "persistent"


@pytest.mark.parametrize("persistent_first", [("cluster",)], indirect=True)
@pytest.mark.parametrize(("limit", "at_once"), [({"has_clusters": False}, 0), ({"blocks_at_once": 30}, 32)])
def test_where_the_driver_does_not_run_clusters_another_schedule_runs(gpu, persistent_first, limit, at_once):
    """Only the launch shows whether the driver can run clusters. If it cannot, the next schedule is tried."""
    layer, x = gpurnn.LSTM(4, 40), cupy.zeros((2, 1, 4), np.float32)
    assert gpurnn.explain(layer, x).schedule == "cluster"
    with plan.schedule("step-fused"):
        run, arguments = a_sequence(cells.LSTM())
        expected = cupy.asnumpy(run_forward(run, *arguments))
    vars(gpu).update(limit)
    run, arguments = a_sequence(cells.LSTM())
    assert run.plan.schedule == "cluster"
    np.testing.assert_allclose(cupy.asnumpy(run_forward(run, *arguments)), expected, rtol=0, atol=1e-5)
    explained = gpurnn.explain(layer, x)
    assert explained.schedule == ("step-fused" if at_once else "persistent")
    assert explained.passed_over["cluster"] == (
        f"40 blocks in clusters of 8 of its forward pass have to run at once, and the device runs {at_once}"
    )
    residency.AT_ONCE.clear()
    with (
        plan.schedule("cluster"),
        pytest.raises(residency.NotResident, match="a cooperative grid of 40 blocks in clu"),
    ):
        run_forward(*a_sequence(cells.LSTM())[:1], *arguments)


def test_a_launch_whose_blocks_did_not_meet_is_reported_by_a_later_one(gpu, persistent_first):
    gpu.side_by_side = False
    run, arguments = a_sequence()
    with host.execution(most_polls=20):
        run_forward(run, *arguments)
    w = cupy.asarray(numbers(1, 40, 40))
    with pytest.raises(RuntimeError, match="a launch of 40 blocks has ended early, because they did not all run at on"):
        optim.scaled([w], w)
    optim.scaled([w], cupy.zeros((), np.float64))
    assert a_sequence()[0].plan.schedule == "step-fused"


@pytest.mark.parametrize("missing", ["0", "no attribute"])
def test_a_device_that_reports_no_figures(gpu, monkeypatch, missing):
    there = cupy.cuda.Device(0).attributes
    names = ("MemoryClockRate", "GlobalMemoryBusWidth", "ClockRate", "L2CacheSize", "MaxSharedMemoryPerBlockOptin")
    figures = {name: value for name, value in there.items() if name not in names}
    figures |= dict.fromkeys(names, 0) if missing == "0" else {}
    monkeypatch.setattr(cupy.cuda, "Device", lambda index=0: types.SimpleNamespace(attributes=figures, id=0))
    found = plan.devices.of_index.__wrapped__(0)
    for what in ("clock_hz", "l2_bytes", "bandwidth", "shared_memory_per_block"):
        assert getattr(found, what) == getattr(H100, what)


@pytest.mark.parametrize("attribute", [0, 1, None])
def test_whether_a_watchdog_ends_what_lasts(gpu, monkeypatch, attribute):
    figures = dict(cupy.cuda.Device(0).attributes)
    figures.pop("KernelExecTimeout", None)
    figures |= {} if attribute is None else {"KernelExecTimeout": attribute}
    monkeypatch.setattr(cupy.cuda, "Device", lambda index=0: types.SimpleNamespace(attributes=figures, id=0))
    assert plan.devices.of_index.__wrapped__(0).has_watchdog is bool(attribute)


def test_the_current_device_is_what_cupy_says_of_it():
    found = plan.device_of(cupy.zeros(1))
    assert found.name == "NVIDIA H100"
    assert found.bandwidth == pytest.approx(H100.bandwidth, rel=0.001)
    for what in ("compute_capability", "multiprocessors", "clock_hz", "l2_bytes", "shared_memory_per_block"):
        assert getattr(found, what) == getattr(H100, what)


def same(found: Any, expected: Any) -> None:
    """Check that genuine CuPy arrays have exactly these bits."""
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(a), b)


CELLS = [cells.LSTM(), cells.GRU(reset_after=True), cells.GRU(reset_after=False), cells.Vanilla("tanh")]


@pytest.mark.parametrize(
    ("cell", "schedule"),
    [*itertools.product(CELLS, ["step-fused", "block", "persistent"]), (cells.LSTM(), "cluster")],
    ids=lambda value: (
        value if isinstance(value, str) else type(value).__name__ + str(getattr(value, "reset_after", ""))
    ),
)
def test_a_recurrence_on_cupy_arrays(gpu, cell, schedule):
    """All launches of a forward pass; cuBLAS computes the products before and after them."""
    T, B, H, D = 7, 5, 40, 2
    G = cell.gates
    w, xw, biases = numbers(D, G * H, H) / np.float32(6), numbers(D, T * B, G * H), numbers(2, D, G * H)
    lengths = np.array([7, 3, 0, 7, 5], np.int32)
    results = []
    for to in (cupy.asarray, np.copy):
        state = tuple(to(numbers(D, B, H)) for _ in range(2 if isinstance(cell, cells.LSTM) else 1))
        with plan.schedule(schedule):
            run = Run.begin(cell, T, B, H, to(w), to(lengths), training=True)
        y = run_forward(run, to(xw), (to(biases[0]), to(biases[1])), state)
        results.append((y, *state))
    same(*results)
    forward = [launched for launched in gpu.launches if launched.kernel.startswith("forward<")]
    assert len(forward) == (T * len(cell.phases) if schedule == "step-fused" else 1)
    assert {launched.cooperative for launched in forward} == {schedule in ("persistent", "cluster")}


def test_a_bound_kernel_is_launched_with_what_changes(gpu):
    x, y, out = cupy.asarray(numbers(8)), cupy.asarray(numbers(8)), cupy.zeros(8, np.float32)
    add = CORRECT["add<float>"].bind((1,), (32,), (x, y, out, np.int32(0)), changing=("n",))
    assert not gpu.launches
    for n in (3, 5):
        add(np.int32(n))
        np.testing.assert_array_equal(cupy.asnumpy(out), np.where(np.arange(8) < n, 2 * numbers(8), 0))
    assert gpu.launches == [Launch("add<float>", (1, 1, 1), (32, 1, 1), 0, 0, False)] * 2
    with pytest.raises(TypeError, match=r"add<float>: argument n is a int64, expected a int32"):
        add(np.int64(3))


def sequence(w: Any, xw: Any, h: Any) -> tuple[Any, ...]:
    """A forward pass of a GRU, with two phases a step."""
    (T, B), cell = (xw.shape[1] // h.shape[1], h.shape[1]), cells.GRU(reset_after=False)
    with plan.schedule("step-fused"):
        run = Run.begin(cell, T, B, w.shape[2], w, training=False)
    return run_forward(run, xw, (None, None), (h,)), h


def test_what_a_launch_costs_is_measured(gpu):
    gpu.is_idle = True
    assert 0 < cost.launch_seconds() < 1e-3


def test_launches_that_come_again_are_a_graph(gpu):
    """In a loop the pool returns the same memory. Other memory or another length is not a repetition."""
    T, B, H = 6, 3, 24
    w = numbers(1, 3 * H, H) / np.float32(5)
    there = cupy.asarray(w)
    for turn, steps in enumerate((T, T, T, T - 1, T, T)):
        xw, h = np.float32(turn) * numbers(1, steps * B, 3 * H), numbers(1, B, H)
        expected = sequence(w, xw, np.copy(h))
        gpu.order.clear()
        with cupy.cuda.Stream(non_blocking=True) if turn == 5 else cupy.cuda.Stream.null as stream:
            same(sequence(there, cupy.asarray(xw), cupy.asarray(h)), expected)
        launches = [step for step in gpu.order if step[0] in ("launch", "graph") and step[1] == stream.ptr]
        begin, each, graph = ("launch", stream.ptr), ("launch", stream.ptr), ("graph", stream.ptr)
        assert launches == [begin, *([graph] if turn in (1, 2, 4) else [each] * (2 * steps))]


@pytest.mark.parametrize("schedule", ["step-fused", "block", "persistent"])
def test_a_caller_captures_a_sequence(schedule):
    """All launches are captured without running, and replayed with one launch, in a pool of the graph's own."""
    T, B, H = 6, 3, 24
    cell = cells.GRU(reset_after=False)
    w, xw, h = numbers(1, 3 * H, H) / np.float32(5), numbers(1, T * B, 3 * H), numbers(1, B, H)

    def begin(to: Any) -> tuple[Any, ...]:
        return Run.begin(cell, T, B, H, to(w), training=False), to(xw), (None, None), (to(h),)

    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    with stream, plan.schedule(schedule):
        *_, expected = on_host = begin(np.copy)
        expected = run_forward(*on_host), *expected
        run_forward(*begin(cupy.asarray))  # compiles the kernels
        *_, state = there = begin(cupy.asarray)
        stream.begin_capture()
        with cupy.cuda.using_allocator(pool.malloc):
            y = run_forward(*there)
        graph = stream.end_capture()
        np.testing.assert_array_equal(cupy.asnumpy(state[0]), h)
        others = [cupy.zeros(n, np.uint8) for n in (512, 1024, 4096) for _ in range(20)]
        graph.launch(stream)
    same((y, *state), expected)
    assert not any(cupy.asnumpy(array).any() for array in others)


def test_a_capture_in_the_default_pool_is_rejected():
    """The pool would give the graph's memory to others while the graph still writes to it."""
    T, B, H = 2, 3, 24
    w, xw = cupy.zeros((1, H, H), np.float32), cupy.zeros((1, T * B, H), np.float32)
    state, stream = (cupy.zeros((1, B, H), np.float32),), cupy.cuda.Stream(non_blocking=True)
    calls = [
        lambda run: run_forward(run, xw, (None, None), state),
        lambda run: run_backward(run, None, state),
        lambda run: losses.mse_forward(xw, xw),
        lambda run: optim.scaled([w], w),
    ]
    for schedule in ("step-fused", "block", "persistent"):
        with stream, plan.schedule(schedule):
            run = Run.begin(cells.Vanilla("tanh"), T, B, H, w, training=True)
            for call in calls:
                stream.begin_capture()
                try:
                    with pytest.raises(RuntimeError, match="the current stream is being captured, and the graph would"):
                        call(run)
                finally:
                    stream.end_capture()


def updated(params: list[Any], grads: list[Any]) -> None:
    optim.optimizer_update("sgd", params, grads, {"momentum": None}, [1.0, 0.5], 0.0, SGD().scalars(1, 0.25))


def test_an_update_is_captured(gpu, monkeypatch):
    """With its table of arrays made before the capture or during it, and other updates between two replays."""
    monkeypatch.setattr(optim, "_TABLES", recent.Recent(2))
    params, grads = [numbers(3, 5), numbers(3000)], [numbers(3, 5), -numbers(3000)]
    for known in (True, False):
        expected, there = [p.copy() for p in params], [cupy.asarray(p) for p in params]
        there_grads = [cupy.asarray(g) for g in grads]
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            for _ in range(known):
                updated(there, there_grads)
                updated(expected, grads)
            stream.begin_capture()
            updated(there, there_grads)
            graph = stream.end_capture()
        same(there, expected)
        for _ in range(2):
            graph.launch(stream)
            updated(expected, grads)
            same(there, expected)
            for others in [[cupy.zeros(p.shape, np.float32) for p in params] for _ in range(3)]:
                updated(others, others)
            cupy.get_default_memory_pool().free_all_blocks()


def test_arrays_that_come_again_need_no_copy(gpu, monkeypatch):
    copies = []
    monkeypatch.setattr(optim, "_TABLES", recent.Recent(2))
    monkeypatch.setattr(
        optim,
        "namespace",
        lambda array: types.SimpleNamespace(asarray=lambda table: copies.append(1) or cupy.asarray(table)),
    )
    params, others = ([cupy.zeros(n, np.float32) for n in (3, 4)] for _ in range(2))
    for lists in (
        (params, params),
        (params, params),
        (params, others),
        (params, params),
        (others, params),
        (params, others),
    ):
        updated(*lists)
    assert len(copies) == 4
    with cupy.cuda.Stream(non_blocking=True):  # does not wait for the copy on the other
        updated(params, others)
    assert len(copies) == 5


def backward_of(name: str) -> Any:
    """Run an operation's forward pass; return its backward pass."""
    a, x = cupy.asarray(numbers(4, 2, 3)), cupy.asarray(numbers(6, 5))
    if name == "linear_scan":
        _, saved = linear_scan.linear_scan_forward(a, a, a[0], training=True)
        return lambda: linear_scan.linear_scan_backward(saved, a)
    if name == "attention":
        _, _, saved = attention.attention_forward(a, a, a, training=True)
        return lambda: attention.attention_backward(saved, a, None)
    if name == "cross_entropy":
        labels, weights = cupy.zeros(6, np.int64), cupy.zeros(6, np.float32)
        _, saved = losses.cross_entropy_forward(x, labels, training=True)
        return lambda: losses.cross_entropy_backward(saved, weights)
    _, saved = losses.mse_forward(x, x, training=True)
    return lambda: losses.mse_backward(saved, x)


@pytest.mark.parametrize("name", ["linear_scan", "attention", "cross_entropy", "mse"])
def test_a_backward_pass_on_another_stream_is_ordered(gpu, monkeypatch, name):
    """It waits for the forward pass, and the next user of the first stream's memory waits for it."""
    for function in ("copy", "astype"):
        monkeypatch.setattr(cupy.ndarray, function, lambda array, *args, **kwargs: array, raising=False)
    monkeypatch.setattr(cupy, "array", lambda array, **kwargs: array)
    first, second = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    with first:
        backward = backward_of(name)
        gpu.order.clear()
        backward()
        assert {step[0] for step in gpu.order} == {"launch"}
    gpu.order.clear()
    with second:
        backward()
    begin, wait, *launches, end, last = gpu.order
    assert begin == ("record", wait[2], first.ptr)
    assert wait[:2] == ("wait", second.ptr)
    assert set(launches) == {("launch", second.ptr)}
    assert end == ("record", last[2], second.ptr)
    assert last[:2] == ("wait", first.ptr)


def test_recurrences_side_by_side_have_a_stream_each(gpu, persistent_first):
    """The current stream has the first. The others wait for its earlier work, and it waits for them."""
    run, arguments = a_sequence()
    expected = [cupy.asnumpy(run_forward(run, *arguments))] * 3
    gpu.is_late = True

    def steps() -> list[tuple[Any, ...]]:
        gpu.order.clear()
        with streams.side_by_side(run.w):
            found = [run_forward(own, *given) for own, given in (a_sequence() for _ in range(3))]
            assert not any(step[0] == "launch" for step in gpu.order)
        same(found, expected)
        awaited = {step[2] for step in gpu.order if step[0] == "wait"}
        return [step for step in gpu.order if step[0] != "record" or step[1] in awaited]

    with cupy.cuda.Stream(non_blocking=True) as stream:
        here, used = stream.ptr, []
        for _ in range(2):
            order = steps()
            begin, second, third = order[0][1], order[2][1], order[5][1]
            ends = order[4][1], order[7][1]
            assert order == [
                ("record", begin, here), ("launch", here),
                ("wait", second, begin), ("launch", second), ("record", ends[0], second),
                ("wait", third, begin), ("launch", third), ("record", ends[1], third),
                ("wait", here, ends[0]), ("wait", here, ends[1]),
            ]  # fmt: skip
            used.append((here, second, third))
        assert len(set(used)) == 1
        assert len(set(used[0])) == 3
        gpu.blocks_at_once = 39
        order = steps()
        joined = max(k for k, step in enumerate(order) if step[0] == "wait")
        assert {step[0] for step in order[:joined]} == {"record", "wait"}
        assert set(order[joined + 1 :]) == {("launch", here)}


def test_a_backward_pass_beside_others_is_ordered_too(gpu):
    """The stream of the forward pass waits for the launches at the end of the block."""
    x = cupy.asarray(numbers(8))
    first, second = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)

    @streams.of_stream
    def backward(saved: Any) -> None:
        streams.beside(lambda: CORRECT["add<float>"]((1,), (32,), (x, x, x, np.int32(8))))

    gpu.order.clear()
    with second, streams.side_by_side(x):
        backward(streams._OfStream(first, None))
    begin, end = gpu.order[0][1], gpu.order[3][1]
    assert gpu.order == [
        ("record", begin, first.ptr), ("wait", second.ptr, begin), ("launch", second.ptr), ("record", end, second.ptr),
        ("wait", first.ptr, end),
    ]  # fmt: skip


def test_in_a_capture_nothing_waits_for_others(gpu):
    x, done = cupy.asarray(numbers(8)), []
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with streams.side_by_side(x):
            streams.beside(lambda: done.append(1))
            assert done
        stream.end_capture()
    with streams.side_by_side(x):
        streams.beside(lambda: done.append(2))
        assert done == [1]
    assert done == [1, 2]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_graph_that_is_timed_computes_the_same(cell, monkeypatch):
    """NumPy replaces cuBLAS and CuPy's own copy kernel."""
    case = Case(cell, Size(3, 4, 5, 6), "inference")
    monkeypatch.setattr(cupy, "matmul", lambda a, b, out: out.set(cupy.asnumpy(a) @ cupy.asnumpy(b.T).T))
    monkeypatch.setattr(cupy, "copyto", lambda to, a: to.set(cupy.asnumpy(a)))
    graph, plain = gpu_benchmark.contenders(case, cupy)[gpu_benchmark.GRAPH], gpu_benchmark.contenders(case, np)
    expected = plain["step-fused"]()
    for _ in range(2):
        same(graph(), expected)


def test_losses_on_cupy_arrays():
    logits, labels, weights = numbers(9, 130, dtype=np.float64), np.arange(9) * 14, np.arange(9.0)
    y, target = numbers(3, 50), numbers(3, 50)[::-1].copy()
    results = []
    for to in (cupy.asarray, np.copy):
        entropies, kept = losses.cross_entropy_forward(
            to(logits), to(labels), to(weights), label_smoothing=0.1, training=True
        )
        dlogits = losses.cross_entropy_backward(kept, to(weights))
        errors, difference = losses.mse_forward(to(y), to(target), training=True)
        results.append((entropies, dlogits, errors, losses.mse_backward(difference, to(y))))
    same(*results)


def test_dropout_and_embedding_on_cupy_arrays():
    weight, indices = numbers(11, 6), np.array([[3, 10, 0], [3, 3, 7]])
    same([embedding.embedding_gather(cupy.asarray(weight), cupy.asarray(indices))], [weight[indices]])
    masks = [dropout.dropout_mask(like(1, np.float32), (5, 7), 0.4, 3, 9) for like in (cupy.empty, np.empty)]
    same(masks[:1], masks[1:])
