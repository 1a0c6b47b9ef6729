"""The planner: limits, choices and the output of `explain`, for devices that are not present."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gpurnn.kernels import devices, dtypes
from gpurnn.kernels.recurrence import plan

import gpurnn
from gpurnn.cells import GRU, LSTM, Vanilla

CELLS = [Vanilla(), LSTM(), GRU(False), GRU(True)]


def consider(cell=LSTM(), T=100, B=32, H=256, D=1, dtype="float32", device="H100", backward=False):  # noqa: B008
    return plan.consider(plan.Problem(cell, T, B, H, D, dtypes.TABLE[dtype], backward), devices.lookup(device))


@pytest.mark.parametrize("device", devices.DEVICES)
@pytest.mark.parametrize("dtype", dtypes.TABLE)
@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_every_plan_fits_its_device(backward, cell, dtype, device):
    gpu = devices.lookup(device)
    for B in (1, 3, 32, 200, 3_000_000):
        for H in (1, 60, 128, 500, 1024, 3000, 24_000):
            for D in (1, 2):
                choice = consider(cell, 100, B, H, D, dtype, device, backward)
                assert choice.plans.keys() | choice.refusals.keys() == set(plan.SCHEDULES)
                assert choice.best in choice.plans
                for name, (chosen, prediction) in choice.plans.items():
                    assert 0 < prediction.seconds < (1 if B * H <= 200 * 3000 else np.inf)
                    if name == "stepwise":
                        continue
                    launch = chosen.launch
                    assert launch.shared_bytes <= gpu.shared_memory_per_block
                    assert launch.units * launch.rows <= launch.block[0] * launch.variant.owned
                    assert launch.block == (plan.THREADS,)
                    assert launch.grid[0] * launch.units >= H
                    assert (launch.grid[0] - 1) * launch.units < H
                    assert launch.grid[1] * launch.rows >= B
                    assert launch.grid[1] <= 65535
                    assert launch.grid[2] == D
                    assert cell.gates * H * H < 2**31
                    if name in ("persistent", "cluster", "scatter"):
                        assert np.prod(launch.grid) <= gpu.multiprocessors
                    assert launch.grid[0] % launch.variant.blocks == 0
                assert "cluster" in choice.refusals or gpu.compute_capability >= (9, 0)


def longest(schedule: str, cell, dtype: str = "float32", device: str = "H100") -> int:
    """The largest number of hidden units that a schedule takes."""

    def takes(H):
        try:
            plan.make(schedule, plan.Problem(cell, 100, 8, H, 1, dtypes.TABLE[dtype]), devices.lookup(device))
        except plan.DoesNotFit:
            return False
        return True

    return max(H for H in range(1, 300) if takes(H))


def test_the_limit_of_one_block():
    """The memory: tiles of 8 x 32 weights, except those in registers; an operand and sums of four rows; biases."""
    H = longest("block", LSTM())
    assert H >= 128

    def needed(H):
        tiles, widths = -(-4 * H // 8), -(-H // 32)
        return 4 * (256 * (tiles * widths - 32 * 3) + 4 * 32 * widths + 4 * 8 * tiles + 8 * H)

    assert needed(H) <= 227 * 1024 < needed(H + 1)


def test_a_smaller_shared_memory_takes_smaller_layers():
    limits = [longest("block", LSTM(), device=device) for device in ("T4", "RTX 4090", "A100", "H100")]
    assert limits == sorted(limits)
    assert limits[0] < limits[-1]
    assert longest("block", LSTM(), "float64") < longest("block", LSTM(), "float32")


def test_small_layers_stay_in_a_block_and_wide_batches_go_to_the_matrix_product():
    assert consider(B=32, H=64).best == "block"
    assert consider(B=32, H=512).best == "persistent"
    assert consider(B=1024, H=2048).best == "stepwise"


def test_a_refusal_says_why():
    choice = consider(B=1, H=4096)
    assert choice.refusals["block"] == "4096 hidden units are more than the 256 threads of a block"
    assert "bytes of shared memory in a block, H100 has 232,448" in choice.refusals["persistent"]


def test_a_schedule_can_be_asked_for():
    float32, gpu = dtypes.TABLE["float32"], devices.lookup("H100")
    for name in plan.SCHEDULES:
        with plan.schedule(name):
            assert plan.choose(plan.Problem(LSTM(), 10, 4, 64, 1, float32), gpu).schedule == name
    with plan.schedule("block"), pytest.raises(plan.DoesNotFit, match="4096 hidden units"):
        plan.choose(plan.Problem(LSTM(), 10, 4, 4096, 1, float32), gpu)
    with pytest.raises(ValueError, match="schedule: name is 'graph', expected one of stepwise, step-fused"), \
            plan.schedule("graph"):  # fmt: skip
        pass


def test_blocks_of_a_cluster_load_an_operand_once():
    """Each block of a cluster loads an eighth of the gate gradients. Devices before the H100 have no clusters."""
    found = {name: consider(B=16, H=768, backward=True, device=name) for name in ("A100", "H100", "B200")}
    assert [choice.best for choice in found.values()] == ["scatter", "cluster", "cluster"]
    assert found["A100"].refusals["cluster"] == "A100 has no clusters of blocks"
    launch = found["H100"].plans["cluster"][0].launch
    assert (launch.grid, launch.chunk) == ((32, 4, 1), 4 * 768 // 8)
    assert plan.predict.kernel_bytes(found["H100"].problem, launch) <= 1.3e6
    assert gpurnn.explain(gpurnn.LSTM(4, 768), (100, 16, 4)).backward.schedule == "cluster"
    assert "20 hidden units do not make clusters of 8 blocks" in consider(H=20).refusals["cluster"]
    few = dataclasses.replace(devices.lookup("H100"), multiprocessors=15)
    problem = plan.Problem(LSTM(), 100, 16, 768, 2, dtypes.TABLE["float32"])
    assert "not hold a cluster of 8 blocks for each of 2" in plan.consider(problem, few).refusals["cluster"]


@pytest.mark.parametrize(
    ("device", "schedule", "backward", "most"),
    [
        ("A100", "persistent", False, 2.6e6),
        ("A100", "persistent", True, 10.3e6),
        ("A100", "scatter", True, 5.2e6),
        ("H100", "persistent", False, 1.6e6),
        ("H100", "persistent", True, 6.3e6),
    ],
)
def test_operands_go_to_as_few_blocks_as_can_hold_the_weights(device, schedule, backward, most):
    """The bytes per step that blocks read of each other's data, and that they write only for each other."""
    problem = plan.Problem(LSTM(), 100, 16, 768, 1, dtypes.TABLE["float32"], backward)
    launch = plan.make(schedule, problem, devices.lookup(device)).launch
    assert plan.predict.exchanged_bytes(problem, launch) <= most


def test_sums_are_exchanged_where_they_are_fewer_than_gate_gradients():
    """The sums of H units are written and read once for each block. These units have G gate gradients."""
    problem, gpu = consider(B=16, H=768, backward=True, device="A100").problem, devices.lookup("A100")
    launch = plan.make("scatter", problem, gpu).launch
    assert (launch.grid, launch.units, launch.rows, str(launch.variant)) == ((52, 2, 1), 15, 8, "8, 3, 8")
    written, read = 52 * 16 * 768 * 4, 2 * 52 * (51 * 15 + 3) * 8 * 4
    assert plan.predict.exchanged_bytes(problem, launch) == written + read
    # Each of a scheduler's two warps issues 96 multiply-adds of two clocks per packet, and they wait for shared memory.
    found = plan.predict.one_launch(problem, gpu, launch, 1)
    assert found.product * gpu.clock_hz == pytest.approx(15 * (2 * 96 * 2 + plan.predict._SHARED_CLOCKS * 3 / 2))
    assert found.load * gpu.clock_hz == pytest.approx(52 * 15 * 8 * 4 / plan.predict._L2_BYTES_PER_CLOCK)
    of_sums = 8 * 768 * 4 / plan.predict._L2_BYTES_PER_CLOCK
    assert (found.exchange - plan.predict._BARRIER) * gpu.clock_hz == pytest.approx(of_sums)
    assert plan.make("scatter", dataclasses.replace(problem, backward=False), gpu).launch.variant.exchange == "grid"
    refusals = consider(Vanilla(), device="A100", backward=True).refusals, consider(dtype="float64").refusals
    assert refusals[0]["scatter"] == f"{Vanilla()} has no kernel in float32 whose blocks exchange sums"
    assert "no kernel in float64" in refusals[1]["scatter"]
    of_sizes = [
        consider(H=1025, device="A100", backward=True),
        consider(B=300, H=1024, device="A100", backward=True),
        consider(B=8, H=1024, device="T4", backward=True),
    ]
    for choice, message in zip(
        of_sizes, ["more than the 1024 whose sums", "300 rows are more", "T4 has 65,536"], strict=True
    ):
        assert message in choice.refusals["scatter"]


def test_registers_hold_what_shared_memory_has_no_room_for():
    """Each block of an H100 has 48 rows of 1536 weights, 294,912 bytes."""
    choice = consider(B=16, H=1536)
    launch = choice.plans["persistent"][0].launch
    assert launch.units * 4 * 1536 * 4 > devices.lookup("H100").shared_memory_per_block
    assert launch.variant.held


def test_batches_of_more_units_than_threads_are_persistent():
    launch = consider(B=128, H=1024).plans["persistent"][0].launch
    assert launch.units * launch.rows == 4 * plan.THREADS


def test_more_work_is_predicted_to_take_longer():
    for name in plan.SCHEDULES:
        small, large = (consider(B=B, H=64).plans[name][1].seconds for B in (8, 1000))
        assert small <= large
    slow = dataclasses.replace(devices.lookup("H100"), clock_hz=1e8)
    problem = plan.Problem(LSTM(), 100, 256, 1024, 1, dtypes.TABLE["float32"])
    fast, slowed = (plan.consider(problem, d).plans["stepwise"][1] for d in (devices.lookup("H100"), slow))
    assert slowed.seconds > fast.seconds


def test_what_a_block_does_adds_up():
    """A step of a persistent LSTM with H 768, in 32 groups of blocks of 24 units and 4 rows, worked out by hand.

    Each warp has a tile of 12 of the 96 weight rows in 4 of 32 groups of 8 lanes. Each group has 6 widths of 32
    columns, two of them in registers. Eight warps load 16 packets a lane per width from shared memory, or 4 if the
    weights are in registers. A load takes 4 clocks, and the two warps of a scheduler issue 213 instructions each.
    """
    problem, gpu = plan.Problem(LSTM(), 1000, 16, 768, 1, dtypes.TABLE["float32"]), devices.lookup("H100")
    variant = plan.Variant("grid", 4, tile_rows=12, held=2)
    launch = plan.Launch((32, 4, 1), (256,), 0, 24, 4, 768, 4, 1, variant)
    found = plan.predict.fused(problem, gpu, launch, 1)
    wait = plan.predict._SHARED_CLOCKS * 3 / 2
    of_stored, of_held = max(2 * 213, 8 * 16 * 4) + wait, max(2 * 213, 8 * 4 * 4) + wait
    assert found.product * gpu.clock_hz == pytest.approx(4 * of_stored + 2 * of_held)
    assert found.exchange == plan.predict._BARRIER
    assert found.seconds == pytest.approx(found.load + found.product + found.reduction + found.gates + found.exchange)
    assert found.bound_by == "product"
    twice = dataclasses.replace(launch, rows=8, at_once=1, grid=(32, 2, 1))  # two tiles of rows, one after the other
    assert plan.predict.fused(problem, gpu, twice, 1).product == pytest.approx(2 * found.product)


@pytest.mark.parametrize(("units", "rounds"), [(15, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_tiles_are_whole(units, rounds):
    """A tile has 8 weight rows, and 8 tiles are multiplied at a time. A unit has 4 rows."""
    problem, gpu = plan.Problem(LSTM(), 100, 4, 768, 1, dtypes.TABLE["float32"]), devices.lookup("H100")
    one, some = (plan.Launch((1, 1, 1), (256,), 0, n, 4, 768, 4, 1, plan.Variant("grid", 4)) for n in (16, units))
    of_one, found = (plan.predict.fused(problem, gpu, launch, 1).product for launch in (one, some))
    assert found == pytest.approx(rounds * of_one)


def test_the_host_is_a_bound_of_many_launches():
    assert consider(B=16, H=512).plans["stepwise"][1].bound_by == "host"
    found = {T: consider(T=T, B=16, H=512).plans["step-fused"][1] for T in (100, 10_000)}
    assert found[100].host == 0  # the launches are a graph
    assert found[10_000].host == pytest.approx(1e-6 * devices.LAUNCH_MICROSECONDS, rel=1e-3)
    assert found[10_000].bound_by == "host"


def test_plans_count_with_the_cost_of_a_launch_that_the_environment_says(monkeypatch):
    monkeypatch.setenv("GPURNN_LAUNCH_MICROSECONDS", "20.5")
    assert consider(B=16, H=512).plans["stepwise"][1].host == pytest.approx(2 * 20.5e-6)
    for text in ("", "fast", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("GPURNN_LAUNCH_MICROSECONDS", text)
        with pytest.raises(ValueError, match=f"GPURNN_LAUNCH_MICROSECONDS is '{text}', expected a number of microse"):
            gpurnn.explain(gpurnn.LSTM(2, 3), (2, 2, 2))


def test_each_pass_has_a_schedule_of_its_own():
    forward, backward = (consider(B=256, H=448, backward=back) for back in (False, True))
    assert (forward.best, backward.best) == ("persistent", "stepwise")
    found = gpurnn.explain(gpurnn.LSTM(4, 448), (100, 256, 4))
    assert (found.schedule, found.backward.schedule) == ("persistent", "stepwise")
    assert found.backward.backward is None
    assert found.bytes_per_step != found.backward.bytes_per_step
    assert "\nbackward: stepwise\n" in str(found)


@pytest.mark.parametrize(
    ("threads", "registers", "shared_bytes", "device", "blocks"),
    [
        (256, 32, 0, "A100", 8),  # threads: 2048 / 256
        (256, 64, 0, "A100", 4),  # registers: 65536 / (64 * 256)
        (256, 65, 0, "A100", 3),  # each thread is given 72 registers
        (512, 128, 0, "H100", 1),
        (32, 144, 0, "A100", 12),  # 3 warps per quarter of the registers, though the whole could hold 14
        (448, 144, 0, "H100", 0),  # so its 14 warps never fit
        (128, 32, 40 * 1024, "A100", 4),  # 164 / (40 + 1) KiB
        (128, 32, 64 * 1024, "T4", 1),  # nothing is reserved
        (32, 16, 7372, "A100", 19),  # 164 KiB / (66 * 128 bytes), as 7372 + 1024 is not a multiple of 128
        (32, 16, 5041, "T4", 12),  # 64 KiB / (20 * 256 bytes)
        (32, 16, 0, "RTX 3090", 16),  # limit: blocks
        (1024, 32, 0, "RTX 4090", 1),  # threads: 1536 / 1024
    ],
)
def test_occupancy(threads, registers, shared_bytes, device, blocks):
    assert devices.occupancy(devices.lookup(device), threads, registers, shared_bytes) == blocks


@pytest.mark.parametrize(
    ("device", "tflops"),  # float32, without tensor cores, as the whitepapers state them
    [
        ("T4", 8.1),
        ("A100", 19.5),
        ("RTX 3090", 35.6),
        ("L4", 30.3),
        ("RTX 4090", 82.6),
        ("H100", 66.9),
        ("RTX 5090", 104.8),
    ],
)
def test_peak_arithmetic(device, tflops):
    assert devices.lookup(device).peak_flops("float32") == pytest.approx(1e12 * tflops, rel=0.01)


@pytest.mark.parametrize(
    ("capability", "like"),
    [
        ((7, 5), "T4"),
        ((8, 0), "A100"),
        ((8, 7), "RTX 3090"),
        ((9, 0), "H100"),
        ((10, 3), "B200"),
        ((12, 0), "RTX 5090"),
    ],
)
def test_a_figure_that_a_device_does_not_report_is_that_of_its_like(capability, like):
    """For example, a virtual GPU or an integrated one may not report its memory clock."""
    silent = devices.Device("silent", capability, 20, 0, 0, 0, 0)
    for figure in ("clock_hz", "l2_bytes", "bandwidth"):
        assert getattr(silent, figure) == getattr(devices.lookup(like), figure)
    assert silent.shared_memory_per_block == silent.limits.shared_memory_per_block
    for shape in ((100, 16, 64), (10, 1, 700), (3, 300, 2000)):
        assert plan.consider(plan.Problem(LSTM(), *shape, 1, dtypes.TABLE["float32"]), silent).best in plan.SCHEDULES


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((0, 1e9, 1, 1e9, 1), "multiprocessors is 0, expected at least 1"),
        ((1, -1.0, 1, 1e9, 1), "clock_hz is -1.0, expected at least 0"),
        ((1, 1e9, 1, float("nan"), 1), "bandwidth is nan, expected at least 0"),
        ((1, 1e9, float("inf"), 1e9, 1), "l2_bytes is inf, expected at least 0"),
    ],
)
def test_figures_that_no_device_has(figures, message):
    with pytest.raises(ValueError, match=f"Device: {message}"):
        devices.Device("impossible", (9, 0), *figures)


def test_devices_that_are_not_known():
    for name in ("A1000", "RTX 4090 Ti", "H20", "RTX 409", "sm_91", "", "a"):
        with pytest.raises(ValueError, match=f"devices.lookup: device is '{name}', expected one of T4, A100"):
            devices.lookup(name)
    with pytest.raises(TypeError, match="explain: device is 90, expected a str or a gpurnn"):
        gpurnn.explain(gpurnn.LSTM(2, 3), (2, 2, 2), device=90)
    unknown = dataclasses.replace(devices.lookup("H100"), compute_capability=(10, 3))
    assert unknown.limits == devices.LIMITS[10, 0]


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("A100", ["a100", "A100", "NVIDIA A100-SXM4-80GB", "sm_80", "8.0", "compute_80", "SM80"]),
        ("RTX 4090", ["rtx4090", "RTX-4090", "NVIDIA GeForce RTX 4090", "geforce rtx_4090"]),
        ("H100", ["h100", "sm_90", "NVIDIA H100 80GB HBM3"]),
        ("T4", ["Tesla T4", "sm_75"]),
        ("B200", ["b200", "NVIDIA B200", "sm_100", "10.0"]),
        ("RTX 5090", ["rtx 5090", "sm_120"]),
    ],
)
def test_devices_by_any_spelling(name, spellings):
    for spelling in spellings:
        assert devices.lookup(spelling) is devices.DEVICES[name]
        assert gpurnn.explain(gpurnn.GRU(2, 3), (2, 2, 2), device=spelling).device == name


def test_explain_says_what_runs_and_why_the_rest_does_not():
    layer = gpurnn.LSTM(64, 512, num_layers=2, bidirectional=True)
    found = gpurnn.explain(layer, np.zeros((100, 32, 64), "float32"), device="H100")
    choice = consider(B=32, H=512, D=2)
    chosen = choice.plans[choice.best][0]
    assert (found.schedule, found.grid, found.layers) == (choice.best, chosen.launch.grid, 2)
    assert found.passed_over.keys() == set(plan.SCHEDULES) - {choice.best}
    assert found.flops_per_step == 2 * 2 * 32 * 4 * 512 * 512
    text = str(found)
    assert "predicted" in text
    assert "H100" in text
    for name in found.passed_over:
        assert f"not {name}: " in text
    assert "at least 1 block on a multiprocessor\n  1 launch;" in text


@pytest.mark.parametrize("schedule", ["block", "persistent"])
def test_a_launch_is_short_where_a_watchdog_ends_what_lasts(schedule):
    """A tenth of a second as predicted, since the prediction may be too short. A shorter sequence is one launch."""
    free = devices.lookup("H100")
    watched = dataclasses.replace(free, has_watchdog=True)
    for T in (100, 1_000_000):
        problem = plan.Problem(GRU(reset_after=False), T, 4, 64, 1, dtypes.TABLE["float32"])
        (whole, _), (cut, prediction) = (plan.consider(problem, gpu).plans[schedule] for gpu in (free, watched))
        assert len(whole.launches(2 * T, 2)) == 1
        launches = cut.launches(2 * T, 2)
        assert prediction.launches == len(launches)
        assert [int(first) for first, _ in launches] == [0, *(int(last) for _, last in launches[:-1])]
        assert launches[-1][1] == 2 * T
        assert all(first % 2 == 0 for first, _ in launches)
        assert max(int(last - first) / 2 * prediction.seconds for first, last in launches) <= 0.1
        assert (len(launches) > 1) == (T * prediction.seconds > 0.1)


def test_explain_reads_batch_first_and_the_dtype():
    shape = (7, 100, 64)
    layer = gpurnn.GRU(64, 96, batch_first=True, dtype="float64")
    assert gpurnn.explain(layer, shape) == gpurnn.explain(gpurnn.GRU(64, 96, dtype="float64"), (100, 7, 64))
    assert gpurnn.explain(layer, shape).shared_bytes != gpurnn.explain(gpurnn.GRU(64, 96), (100, 7, 64)).shared_bytes


def test_explain_takes_a_device_by_its_properties():
    layer, shape = gpurnn.LSTM(64, 512), (100, 32, 64)
    small = dataclasses.replace(devices.lookup("H100"), name="half an H100", multiprocessors=66)
    found = gpurnn.explain(layer, shape, device=small)
    assert found.device == "half an H100"
    assert found.grid != gpurnn.explain(layer, shape, device="H100").grid


def test_explain_takes_models_and_what_holds_recurrent_layers():
    classifier = gpurnn.SequenceClassifier(64, 96, 3, num_layers=2, bidirectional=True)
    found = gpurnn.explain(classifier, (100, 7, 64), device="A100")
    alone = gpurnn.explain(classifier.recurrent, (100, 7, 64), device="A100")
    assert found == {"recurrent": alone}
    assert str(found) == f"recurrent: {alone}"
    stack = gpurnn.Sequential(
        gpurnn.LSTM(8, 16, batch_first=True), gpurnn.Dense(16, 8), gpurnn.GRU(8, 32, batch_first=True)
    )
    found = gpurnn.explain(stack, (7, 100, 8))
    assert found == {
        "0": gpurnn.explain(gpurnn.LSTM(8, 16), (100, 7, 8)), "2": gpurnn.explain(gpurnn.GRU(8, 32), (100, 7, 8))
    }  # fmt: skip
    for attention, parts in (("additive", {"encoder"}), ("dot", {"encoder", "decoder"})):
        translator = gpurnn.EncoderDecoder(5, 6, 4, 8, attention=attention)
        assert gpurnn.explain(translator, (10, 3)).keys() == parts
    for held in (gpurnn.Dense(2, 3), gpurnn.TransformerBlock(2, 1), 3):
        with pytest.raises(
            TypeError, match=r"explain: layer is an? \w+, expected an RNN, LSTM or GRU, or a model of one"
        ):
            gpurnn.explain(held, (4, 2, 2))
    with pytest.raises(TypeError, match=r"explain: x is \(4, 2\), expected an array of three axes"):
        gpurnn.explain(gpurnn.LSTM(2, 3), (4, 2))


def test_explain_needs_no_initial_parameters(monkeypatch):
    def made(rng, shape, dtype):
        raise AssertionError("initial weights were made")

    small = gpurnn.explain(gpurnn.LSTM(8, 16, dtype="float64"), (100, 7, 8))
    assert gpurnn.explain(lambda: gpurnn.LSTM(8, 16, init=made, dtype="float64"), (100, 7, 8)) == small
    wide = gpurnn.explain(lambda: gpurnn.SequenceTagger(64, 8192, 2, cell="lstm", init=made), (10, 4, 64))
    assert wide["recurrent"].flops_per_step == 2 * 4 * 4 * 8192**2
    with pytest.raises(AssertionError, match="initial weights were made"):
        gpurnn.LSTM(8, 16, init=made)
