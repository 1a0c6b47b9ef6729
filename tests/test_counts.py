"""The counts build of the host executor, for kernels whose counts can be worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gpurnn.kernels import attention, devices, dropout, dtypes, embedding, host, launch, linear_scan, losses, optim
from gpurnn.kernels.recurrence import plan, predict, struct
from problems import CELLS, OPTIONED, Options, draw

from benchmarks import counts as benchmark
from benchmarks.__main__ import main
from gpurnn import kernels
from gpurnn.cells import GRU, LSTM

pytestmark = pytest.mark.kernels

if host.current_execution().build == "sanitize":
    pytest.skip("the counts build runs without AddressSanitizer", allow_module_level=True)

KERNELS = launch.Module(
    Path(__file__).parent / "counted.cu",
    [
        "strided<float>", "strided<double>", "broadcast", "packets", "shared_strided<float>", "shared_strided<double>",
        "shared_packets", "branches", "loops", "arithmetic<float>", "arithmetic<double>", "collectives", "exchange",
        "read_only",
    ],
)  # fmt: skip


def floats(count, dtype=np.float32):
    array = host.empty(count, dtype)
    array[:] = np.arange(count)
    return array


def counted(name, grid, block, *args, **options):
    with host.counts() as launches:
        KERNELS[name](grid, block, args, **options)
    (only,) = launches
    assert (only.kernel, only.grid, only.block) == (name, grid, block)
    return only


def of_launch(counts):
    """The totals that are not zero."""
    return {name: int(values.sum()) for name, values in counts.by_warp.items() if values.any()}


def i32(n):
    return np.int32(n)


# ---- Global memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (100, 32)])
def test_a_strided_load_reads_more_sectors_than_bytes(stride, sectors):
    x, y = floats(32 * stride), floats(32)
    assert of_launch(counted("strided<float>", (1,), (32,), x, y, i32(stride))) == {
        "loads": 1, "load_bytes": 128, "load_sectors": sectors, "stores": 1, "store_bytes": 128, "store_sectors": 4,
    }  # fmt: skip
    np.testing.assert_array_equal(y, x[::stride])


def test_sectors_of_doubles_and_of_addresses_amid_a_sector():
    x, y = floats(33, np.float64), floats(32, np.float64)
    counts = counted("strided<double>", (1,), (32,), x[1:], y, i32(1))
    assert (counts["load_bytes"], counts["load_sectors"], counts["store_sectors"]) == (256, 9, 8)


def test_a_broadcast_reads_one_number():
    counts = counted("broadcast", (1,), (32,), floats(32), floats(32))
    assert (counts["loads"], counts["load_bytes"], counts["load_sectors"]) == (1, 4, 1)


def test_a_packet_is_one_access():
    x, y = floats(128), floats(128)
    assert of_launch(counted("packets", (1,), (32,), x, y)) == {
        "loads": 1, "load_bytes": 512, "load_sectors": 16, "stores": 1, "store_bytes": 512, "store_sectors": 16,
    }  # fmt: skip


def test_read_only_and_atomic_accesses():
    counts = of_launch(counted("read_only", (1,), (32,), floats(2), np.zeros(1, np.uint32), floats(32)))
    assert counts == {
        "read_only_loads": 1, "read_only_load_bytes": 8, "read_only_load_sectors": 1,
        "atomics": 1, "atomic_bytes": 4, "atomic_sectors": 1,
        "stores": 1, "store_bytes": 128, "store_sectors": 4,
    }  # fmt: skip


# ---- Shared memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stride", "wavefronts"),
    # Neighbours in neighbouring banks; two lanes in each bank; an odd number of words; all in one bank; a broadcast.
    [(1, 1), (2, 2), (3, 1), (32, 32), (0, 1)],
)
def test_lanes_that_meet_in_a_bank_are_served_one_after_another(stride, wavefronts):
    bytes_ = 4 * 32 * max(stride, 1)
    counts = counted("shared_strided<float>", (1,), (32,), floats(32), i32(stride), shared_mem=bytes_)
    assert (counts["shared_loads"], counts["shared_load_bytes"]) == (1, 128)
    assert (counts["shared_load_wavefronts"], counts["bank_conflicts"]) == (wavefronts, wavefronts - 1)
    assert counts["shared_stores"] == counts["shared_store_wavefronts"] == max(stride, 1)


@pytest.mark.parametrize(("stride", "wavefronts"), [(1, 2), (2, 4), (0, 2)])
def test_doubles_are_served_by_halves_of_a_warp(stride, wavefronts):
    bytes_ = 8 * 32 * max(stride, 1)
    counts = counted("shared_strided<double>", (1,), (32,), floats(32, np.float64), i32(stride), shared_mem=bytes_)
    assert (counts["shared_load_wavefronts"], counts["bank_conflicts"]) == (wavefronts, wavefronts - 2)


@pytest.mark.parametrize(("stride", "wavefronts"), [(4, 4), (8, 8), (32, 32), (36, 4)])
def test_packets_are_served_by_quarters_of_a_warp(stride, wavefronts):
    counts = counted("shared_packets", (1,), (32,), floats(32), i32(stride), shared_mem=4 * 32 * stride)
    assert counts["shared_loads"] == counts["shared_stores"] == 1
    assert counts["shared_load_wavefronts"] == counts["shared_store_wavefronts"] == wavefronts
    assert counts["bank_conflicts"] == 2 * (wavefronts - 4)


# ---- Warps ----------------------------------------------------------------------------------------------------------


def test_a_divergent_branch_is_executed_twice():
    a, b = np.float32(2), np.float32(3)
    diverged = counted("branches", (1,), (64,), floats(64), a, b, i32(32))
    np.testing.assert_array_equal(diverged["multiply_adds"], [[2, 2]])
    np.testing.assert_array_equal(diverged["special_functions"], [[1, 1]])
    uniform = counted("branches", (1,), (64,), floats(64), a, b, i32(64))
    np.testing.assert_array_equal(uniform["multiply_adds"], [[1, 1]])
    np.testing.assert_array_equal(uniform["special_functions"], [[0, 1]])


def test_a_loop_lasts_as_long_as_for_the_slowest_lane():
    assert counted("loops", (1,), (32,), floats(32), np.float32(1))["multiply_adds"] == 64


@pytest.mark.parametrize(("name", "dtype"), [("float", np.dtype("f4")), ("double", np.dtype("f8"))])
def test_kinds_of_arithmetic(name, dtype):
    y = floats(32, dtype)
    counts = counted(f"arithmetic<{name}>", (1,), (32,), y, dtype.type(0.5), dtype.type(0.25))
    assert of_launch(counts) == {
        "multiply_adds": 1, "arithmetic": 4, "divisions": 1, "special_functions": 2,
        "loads": 1, "load_bytes": 32 * dtype.itemsize, "load_sectors": dtype.itemsize,
        "stores": 1, "store_bytes": 32 * dtype.itemsize, "store_sectors": dtype.itemsize,
    }  # fmt: skip
    assert counts.instructions.sum() == 10


def test_collectives_and_barriers():
    counts = counted("collectives", (2,), (64,), host.empty(64, np.uint32), i32(32))
    for name, each in {"shuffles": 3, "votes": 1, "syncwarps": 1, "barriers": 2, "stores": 1}.items():
        np.testing.assert_array_equal(counts[name], np.full((2, 2), each), err_msg=name)
    assert counted("collectives", (1,), (32,), host.empty(32, np.uint32), i32(16))["shuffles"] == 2


@pytest.mark.parametrize("seed", range(3))
def test_an_exchange_between_blocks(seed):
    with host.execution(seed=seed):
        counts = counted("exchange", (3,), (64,), np.zeros(1, np.uint32), floats(192), floats(192), cooperative=True)
    for name in ("published_stores", "published_loads", "stores"):
        np.testing.assert_array_equal(counts[name], np.ones((3, 2)), err_msg=name)
    np.testing.assert_array_equal(counts["published_load_bytes"], np.full((3, 2), 128))
    np.testing.assert_array_equal(counts["barriers"], np.full((3, 2), 2))
    # The first thread arrives, and polls the word until all have arrived.
    np.testing.assert_array_equal(counts["atomics"], [[2, 0]] * 3)
    assert not counts["spins"][:, 1].any()
    assert counts["spins"][:, 0].min() == 0  # the last to arrive never spins


def test_launches_are_counted_only_where_it_was_asked_for():
    with host.counts() as launches:
        for _ in range(2):
            KERNELS["broadcast"]((1,), (32,), (floats(1), floats(32)))
    with host.execution(build="counts"):
        KERNELS["broadcast"]((1,), (32,), (floats(1), floats(32)))
    KERNELS["broadcast"]((1,), (32,), (floats(1), floats(32)))
    assert [counts.kernel for counts in launches] == ["broadcast"] * 2


# ---- The package's kernels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["step-fused", "block", "persistent"])
def test_counting_changes_no_bits(schedule):
    def results():
        with plan.schedule(schedule):
            y, final, saved = kernels.recurrence_forward(GRU(True), x, (weights,), (h,), training=True)
            dx, dweights, dstate = kernels.recurrence_backward(saved, np.ones_like(y), (None,))
        return y, *final, dx, *dweights[0].values(), *dstate

    rng = np.random.default_rng(3)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"weight_ih": (15, 4), "weight_hh": (15, 5), "bias_ih": (15,), "bias_hh": (15,)}.items()
    }
    x, h = rng.standard_normal((3, 2, 4)).astype(np.float32), rng.standard_normal((1, 2, 5)).astype(np.float32)
    expected = results()
    with host.counts() as launches:
        found = results()
    assert {counts.kernel.split("<")[0] for counts in launches} >= {"forward", "backward"}
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_which_warps_multiply():
    """The block schedule, H 64, one row of the batch: 8 warps have four each of the 32 tiles of 8 weight rows.

    Eight lanes share a tile of four rows of the batch, and two widths of 32 columns, whose weights are in registers.
    """
    weights = {name: np.ones((256, 64), np.float32) for name in ("weight_ih", "weight_hh")}
    state = np.zeros((1, 1, 64), np.float32), np.zeros((1, 1, 64), np.float32)
    with host.counts() as launches, plan.schedule("block"):
        kernels.recurrence_forward(LSTM(), np.ones((1, 1, 64), np.float32), (weights,), state, training=False)
    (only,) = (counts for counts in launches if counts.kernel.startswith("forward"))
    of_product = 8 * 4 * 4 * 2  # rows of weights and of the batch, numbers of a packet, widths
    assert only["multiply_adds"][0, 2:].tolist() == [of_product] * 6
    of_gates = 2  # f c + i g is one, as is 1 - sigma in a divergent branch at most; in two warps each lane has a unit
    assert all(of_product < n <= of_product + of_gates for n in only["multiply_adds"][0, :2])
    # Each lane reads one packet of the operand for every row and width.
    assert only["shared_loads"][0, 7] == 4 * 2


def _translation_units():
    """One unit for each source, struct and dtype: variants differ only in arguments that change no types."""
    wings = attention, dropout, embedding, linear_scan, losses, optim, struct
    found = {}
    for unit in (unit for part in wings for unit in part.modules()):
        known = unit.source.name, unit.include, "double" in unit.names[0], unit.names[0].split("<")[1][:4]
        found.setdefault(known, unit)
    return list(found.values())


@pytest.mark.slow
def test_every_source_compiles():
    for unit in _translation_units():
        assert unit.library("counts").path.exists()


# ---- python -m benchmarks counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["step-fused", "block", "persistent"])
def test_a_step_is_what_one_step_more_adds(schedule):
    step = benchmark.of_step(LSTM(), 2, 8, schedule=schedule)
    assert list(step) == ["forward", "backward"]
    launches = benchmark.of_steps(LSTM(), 5, 2, 8, schedule=schedule)
    for name, per_step in step.items():
        first = benchmark.by_pass(benchmark.of_steps(LSTM(), 4, 2, 8, schedule=schedule))[name]
        total = benchmark.by_pass(launches)[name]
        for kind in host.INSTRUCTIONS:
            np.testing.assert_array_equal(total[kind] - first[kind], per_step[kind], err_msg=kind)
        assert (per_step.instructions.sum(axis=1) > 0).all()


BYTES = ("load_bytes", "read_only_load_bytes", "published_load_bytes", "store_bytes", "published_store_bytes")

PREDICTED = [  # cell, schedule, sizes and other properties of the device
    pytest.param("lstm", "step-fused", {"B": 2, "H": 8}),
    pytest.param("lstm", "block", {"B": 2, "H": 8}),
    pytest.param("lstm", "persistent", {"B": 2, "H": 8}),
    pytest.param("lstm", "cluster", {"B": 6, "H": 31, "multiprocessors": 33}),
    pytest.param("lstm", "scatter", {"B": 9, "H": 31, "multiprocessors": 8}),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("lstm", "stepwise", {"B": 3, "H": 5}),
        ("lstm", "step-fused", {"B": 37, "H": 33}),  # more rows and columns than a tile, partly filled blocks
        ("lstm", "persistent", {"B": 5, "H": 70}),
        ("lstm", "persistent", {"B": 3, "H": 130, "multiprocessors": 4, "shared_memory_per_block": 78_000}),  # pieces
        ("rnn-tanh", "stepwise", {"B": 7, "H": 40}),
        ("gru-reset-after-state", "step-fused", {"B": 5, "H": 12}),
        ("gru-reset-before-state", "stepwise", {"B": 5, "H": 11}),
        ("gru-reset-before-state", "step-fused", {"B": 9, "H": 20}),  # lanes that load the same weights
        ("gru-reset-before-state", "persistent", {"B": 9, "H": 20, "dtype": "float64"}),
        ("lstm", "cluster", {"B": 2, "H": 300, "multiprocessors": 40}),
        ("gru-reset-before-state", "cluster", {"B": 9, "H": 40, "dtype": "float64", "multiprocessors": 33}),
        ("gru-reset-after-state", "scatter", {"B": 20, "H": 30, "multiprocessors": 16}),
        ("lstm-peephole", "stepwise", {"B": 3, "H": 5}),
        ("lstm-peephole", "step-fused", {"B": 3, "H": 5}),
        ("gru-zoneout-mask", "step-fused", {"B": 3, "H": 5}),
        ("gru-zoneout-mask", "block", {"B": 3, "H": 5}),
        ("lstm-norm", "step-fused", {"B": 3, "H": 37}),
        ("lstm-projection", "persistent", {"B": 3, "H": 8}),
        ("gru-norm-before", "block", {"B": 3, "H": 5}),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "schedule", "sizes"), PREDICTED)
def test_bytes_are_predicted_as_they_are_counted(name, schedule, sizes, monkeypatch):
    """For all blocks in a step, in two directions."""
    sizes = {"multiprocessors": 6, "dtype": "float32", **sizes}
    B, H, dtype = (sizes.pop(size) for size in ("B", "H", "dtype"))
    device, cell = dataclasses.replace(devices.lookup("H100"), **sizes), (CELLS | OPTIONED)[name]
    monkeypatch.setattr(plan, "device_of", lambda array: device)
    totals = []
    for T in (2, 3):
        problem = draw(cell, Options(bidirectional=True), T=T, B=B, I=1, H=H, dtype=dtype)
        masks = {} if problem.step_masks is None else {"step_masks": problem.step_masks}
        with host.counts() as launches, plan.schedule(schedule):
            *_, saved = kernels.recurrence_forward(
                cell, problem.x, problem.weights, problem.state, training=True, **masks
            )
            kernels.recurrence_backward(saved, problem.dy, problem.dstate)
        totals.append({
            pass_: np.array([counts[kind].sum() for kind in (*BYTES, "cluster_load_bytes")])
            for pass_, counts in benchmark.by_pass(launches).items()
        })  # fmt: skip
    for backward, pass_ in enumerate(("forward", "backward")):
        sizes = plan.Problem(cell, 3, B, H, 2, dtypes.TABLE[dtype], bool(backward))
        launch = getattr(plan.make(schedule, sizes, device), "launch", None)
        *of_memory, of_clusters = totals[1][pass_] - totals[0][pass_]
        assert predict.kernel_bytes(sizes, launch) == sum(of_memory), (pass_, launch)
        assert of_clusters == (predict.cluster_bytes(sizes, launch) if schedule == "cluster" else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "device", "schedule", "most"),
    [
        (LSTM(), "H100", "persistent", (11_000, 11_200)),
        (GRU(True), "H100", "persistent", (9_200, 8_600)),
        (LSTM(), "A100", "scatter", (14_400, 13_500)),  # its 104 blocks do the work of 128
    ],
    ids=str,
)
def test_a_step_of_a_wide_layer(cell, device, schedule, most):
    """All warps multiply equally, with little other work: multiply-adds alone are 9,216, for a GRU 6,912."""
    step = benchmark.of_step(cell, 16, 768, schedule=schedule, device=device)
    for counts, instructions in zip((step["forward"], step["backward"]), most, strict=True):
        assert counts.instructions.sum(axis=1).max() <= instructions
        by_warp = counts["multiply_adds"][0]
        assert by_warp.min() >= 0.75 * by_warp.max()
        published = counts["published_load_bytes"] + (schedule == "scatter") * counts["published_store_bytes"]
        assert published.sum() <= 6.5e6


@pytest.mark.slow
@pytest.mark.parametrize(("B", "H"), [(1, 256), (32, 128)])
def test_every_warp_multiplies_in_a_small_layer(B, H):
    """They have equal parts of the weights, besides the gates that some lanes compute."""
    for name, counts in benchmark.of_step(LSTM(), B, H, schedule="persistent").items():
        by_warp = counts["multiply_adds"]
        assert by_warp.shape[1] == plan.THREADS // 32
        assert 0 < by_warp.max() - 5 <= by_warp.min(), name


def test_counts_do_not_depend_on_where_numpy_copies(monkeypatch):
    """NumPy aligns its arrays to 16 bytes, so that lanes may reach into one more sector of 32."""
    copy, sectors = np.ascontiguousarray, []
    for offset in (0, 16):

        def copied(array, dtype=None, offset=offset):
            made = copy(array, dtype)
            memory = np.empty(made.nbytes + 64, np.uint8)
            begin = -memory.ctypes.data % 32 + offset
            moved = memory[begin : begin + made.nbytes].view(made.dtype).reshape(made.shape)
            moved[...] = made
            return moved

        monkeypatch.setattr(np, "ascontiguousarray", copied)
        launches = benchmark.of_steps(LSTM(), 2, 2, 16, schedule="persistent")
        sectors.append(benchmark.by_pass(launches)["backward"]["read_only_load_sectors"].sum())
    assert sectors[0] == sectors[1]


def test_the_report_has_a_row_for_each_pass():
    options = ["--shape", "2,8", "--schedule", "persistent", "--device", "A100"]
    done = CliRunner().invoke(main, ["counts", "--cell", "gru", *options])
    assert done.exit_code == 0, done.output
    assert "planned for an A100" in done.output
    assert "nothing was measured" in done.output
    head, _, *rows = (line.split(" | ") for line in done.output.splitlines() if line.startswith("|"))
    assert [row[:3] for row in rows] == [["| GRU", "2, 8", pass_] for pass_ in ("forward", "backward")]
    assert {len(row) for row in rows} == {len(head)}


@pytest.mark.slow
def test_the_report_of_options_says_what_each_adds():
    done = CliRunner().invoke(main, ["counts", "--options", "--cell", "rnn", "--shape", "2,8"])
    assert done.exit_code == 0, done.output
    _, _, *rows = (line.split(" | ") for line in done.output.splitlines() if line.startswith("|"))
    assert [row[2] for row in rows[:3]] == ["none", "`activation='relu'`", "`clip=5.0`"]
    assert not [cell for cell in rows[0] if "(" in cell]
    assert "(+" in rows[2][3]
    assert "(+" in rows[-1][5]  # zoneout reads its masks


def test_every_option_is_counted():
    for cells in benchmark.OPTIONS.values():
        plain, *others = cells
        shown = {name for cell in others for name in cell.options() if getattr(cell, name) != getattr(plain, name)}
        assert {*plain.options()} - shown <= {"leak", *plain.form}


@pytest.mark.parametrize("shape", ["2", "2,x", "0,8"])
def test_a_shape_is_two_numbers(shape):
    done = CliRunner().invoke(main, ["counts", "--shape", shape])
    assert done.exit_code == 2
    assert repr(shape) in done.output
