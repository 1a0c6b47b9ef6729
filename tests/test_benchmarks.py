"""The benchmarks measure what they claim, tried on sizes too small for real figures. No test depends on timing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare, distributed, end_to_end, gpu, launches, memory, nvrtc, torch_language_model
from benchmarks.cases import CELLS, GATES, MODES, STEP, Case, Size, Smoothing, Update
from benchmarks.contenders import Gpurnn, Memory, MultiplyAdds, NotInstalled, Statsmodels
from benchmarks.processes import Worker
from gpurnn.models import CharVocabulary
from gpurnn.training import TokenStream

ROOT = Path(__file__).parent.parent
SIZE = Size(3, 2, 4, 5)


@pytest.fixture
def no_peers(tmp_path, monkeypatch):
    """Hide PyTorch and ONNX Runtime from the processes that are started, whatever is installed."""
    directory = tmp_path / "modules"
    directory.mkdir()
    for module in ("torch", "onnx", "onnxruntime"):
        (directory / f"{module}.py").write_text("raise ImportError('not there')\n")
    monkeypatch.setenv("PYTHONPATH", str(directory))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments), "--peer-python", sys.executable],
        cwd=ROOT, env=os.environ, capture_output=True, encoding="utf-8",
    )  # fmt: skip


@pytest.mark.slow
def test_the_table_has_a_row_for_each_cell_and_size(no_peers):
    done = command("--size", "3,2,4,5", "--size", "1,1,1,1", "--repeats", 1)
    assert done.returncode == 0, done.stderr
    number, of_limit = r"(\d[\d.e+-]*)", r"\d[\d.]*"
    pattern = rf"^\| ([\w-]+) \| ([\d, ]+) \| {number} \| {of_limit} \| {number} \| {of_limit} \|$"
    rows = re.findall(pattern, done.stdout, re.MULTILINE)
    assert [row[:2] for row in rows] == [
        (cell, s) for cell in ("RNN", "LSTM", "GRU", "GRU-BEFORE") for s in ("3, 2, 4, 5", "1, 1, 1, 1")
    ]
    assert all(float(milliseconds) > 0 for row in rows for milliseconds in row[2:])
    assert "PyTorch cannot take part: not there" in done.stdout
    assert "ONNX Runtime cannot take part: not there" in done.stdout


@pytest.mark.skipif(gpu.has_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_kernels_are_predicted_and_called_that():
    done = command("--gpu", "--cell", "lstm", "--size", "100,32,64,64", "--size", "10,4,64,4096")
    assert done.returncode == 0, done.stderr
    assert "nothing was measured. Predicted from the figures of an H100" in done.stdout
    small, large, *backward = re.findall(r"^\| LSTM .*$", done.stdout, re.MULTILINE)
    assert "| block |" in small
    assert "–" in large
    assert len(backward) == 2


@pytest.mark.skipif(nvrtc.missing(), reason=str(nvrtc.missing()))
def test_the_time_of_nvrtc_has_a_row_for_each_source(monkeypatch):
    wanted = [module for module in nvrtc.modules() if module.source.name in ("dropout.cu", "embedding.cu")]
    monkeypatch.setattr(nvrtc, "modules", lambda: wanted)
    rows = list(nvrtc.report())[-3:]
    assert [row.split(" | ")[:2] for row in rows] == [["| dropout.cu", "2"], ["| embedding.cu", "2"], ["| all", "4"]]
    assert all(0 < float(seconds) < 100 for row in rows for seconds in re.findall(r"\d+\.\d+", row))


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing(), reason=str(nvrtc.missing()))
def test_the_cost_of_a_launch_has_a_line_for_each_way():
    pytest.importorskip("cupy", reason="CuPy isn't installed")
    lines = [json.loads(line) for line in launches.report()]
    assert [line["way"] for line in lines] == [
        "CuPy's own call",
        "Kernel.__call__",
        "Kernel.bind",
        "Kernel.bind, as a graph",
    ]
    assert all(line["cpu_microseconds"] >= 0 and line["what"] == "launch" for line in lines)


@pytest.mark.kernels
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", GATES)
def test_the_contenders_on_a_gpu_compute_the_same(cell, mode):
    """Runs on NumPy arrays and the host executor the code that would be timed on a GPU."""
    case = Case(cell, Size(3, 4, 5, 6), mode)
    calls = gpu.contenders(case, np)
    scatter = {"scatter"} if mode == "training" and cell != "rnn" else set()
    assert calls.keys() == {"stepwise", "step-fused", "block", "persistent", "plain loop"} | scatter
    results = {name: call() for name, call in calls.items()}
    for arrays in results.values():
        assert len(arrays) == (5 if mode == "training" else 1)
        for found, expected in zip(arrays, results["plain loop"], strict=True):
            assert found.shape == expected.shape
            assert np.linalg.norm(found - expected) <= case.tolerance() * np.linalg.norm(expected)


@pytest.mark.parametrize("size", ["3,2,4", "3,2,4,x", "3,2,4,0"])
def test_a_bad_size_is_refused(size):
    done = command("--size", size)
    assert done.returncode == 2
    assert repr(size) in done.stderr


def test_end_to_end_without_pytorch_says_so_at_once(no_peers):
    done = command("end-to-end")
    assert done.returncode == 1
    assert "PyTorch cannot take part: not there" in done.stderr


def test_a_worker_without_its_library_or_that_ends_is_an_error(no_peers, capfd):
    with pytest.raises(NotInstalled, match="PyTorch cannot take part"):
        Worker("PyTorch", 1)
    with pytest.raises(RuntimeError, match="process of nobody ended with code 1"):
        Worker("nobody", 1)
    assert "StopIteration" in capfd.readouterr().err


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_worker_computes_the_case(cell, mode):
    T, B, I, H = SIZE
    with Worker("gpurnn", 1) as worker:
        assert worker.versions.startswith("gpurnn ")
        results = worker.prepare(Case(cell, SIZE, mode))
        assert worker.time(2) > 0
    shapes = {name: array.shape for name, array in results.items()}
    weights = {"weight_ih_l0": (CELLS[cell] * H, I), "weight_hh_l0": (CELLS[cell] * H, H)}
    biases = {"bias_ih_l0": (CELLS[cell] * H,), "bias_hh_l0": (CELLS[cell] * H,)}
    gradients = {"dx": (T, B, I), **weights, **biases} if mode == "training" else {}
    assert shapes == {"y": (T, B, H), **gradients}
    assert all(np.linalg.norm(array) > 0 for array in results.values())


@pytest.mark.parametrize("cell", GATES)
def test_a_step_begins_with_the_state(cell):
    case = Case(cell, Size(1, 2, 4, 5), STEP)
    step = Gpurnn(1).prepare(case)
    zero = Gpurnn(1).prepare(Case(cell, case.size, "inference"))
    assert step()["y"].shape == zero()["y"].shape == (1, 2, 5)
    assert (step()["y"] != zero()["y"]).all()


@pytest.mark.parametrize(("case", "other"), [(Smoothing(40), Statsmodels), (Update(1000), None)])
def test_further_cases_compute_the_same(case, other):
    found = Gpurnn(1).prepare(case)()
    if other is not None:
        assert other.takes(case)
        assert found.keys() == {"mean", "covariance"}
        assert compare.disagreement(found, other(1).prepare(case)(), case.tolerance()) is None
    else:
        expected, gradient = case.arrays()
        np.testing.assert_allclose(found["parameter"], expected - 1e-3 * np.sign(gradient), atol=1e-6)
        assert Memory(1).prepare(case)() == {}


def test_the_multiply_adds_of_a_case_are_those_of_its_products():
    inference, training = (Case("lstm", SIZE, mode) for mode in ("inference", "training"))
    T, B, I, H = SIZE
    of_inputs, of_states = (T * B * width * 4 * H for width in (I, H))
    assert inference.multiply_adds() == of_inputs + of_states
    # each matrix once more for the gradient of what it is multiplied with, and once for its own
    assert training.multiply_adds() == 3 * of_inputs + 3 * of_states
    assert MultiplyAdds.takes(training)
    assert not MultiplyAdds.takes(Case("lstm", Size(1, 1, 4, 5), STEP))
    assert MultiplyAdds(1).prepare(training)() == {}


@pytest.mark.slow
def test_the_seconds_of_each_turn_are_written(tmp_path, no_peers):
    raw = tmp_path / "raw.jsonl"
    lines = list(compare.run([Update(100)], repeats=2, threads=1, peer_python=sys.executable, raw=raw))
    assert lines[-1].startswith("| Update(parameters=100) | ")
    (line,) = map(json.loads, raw.read_text().splitlines())
    assert (line["case"], line["parameters"], line["threads"]) == ("Update", 100, 1)
    assert line["seconds"].keys() == {"gpurnn", "one pass over memory"}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in line["seconds"].values())


class Fake:
    """A worker with predefined results and times."""

    def __init__(self, name, results, seconds):
        self.name, self.results, self.seconds = name, results, iter(seconds)
        self.calls = []

    def prepare(self, case):
        return self.results

    def time(self, calls):
        self.calls.append(calls)
        return next(self.seconds)


def test_a_ratio_is_the_median_over_the_rounds():
    results = {"y": np.ones(3, np.float32)}
    once = 0.01
    first = Fake("gpurnn", results, [once, 2.0, 3.0, 4.0, 2.0, 9.0])
    second = Fake("PyTorch", results, [once, 1.0, 2.0, 1.0, 2.0, 3.0])
    measured = compare.measure(Case("lstm", SIZE, "inference"), [first, second], 5)  # the ratios are 2, 1.5, 4, 1 and 3
    assert measured.seconds == 3.0
    assert measured.ratios == {"PyTorch": compare.Ratio(2.0, 1.5, 3.0)}
    assert first.calls == second.calls == [1, 5, 5, 5, 5, 5]


def test_results_that_differ_are_not_timed():
    case = Case("lstm", SIZE, "inference")
    first, second = (Fake(name, {"y": np.full(3, value)}, []) for name, value in (("gpurnn", 1.0), ("PyTorch", 1.1)))
    with pytest.raises(compare.Disagreement, match="gpurnn and PyTorch disagree: y differs by"):
        compare.measure(case, [first, second], 1)


@pytest.mark.parametrize("wrong", [np.ones((2, 3)), np.full(3, np.nan), np.array([1, 1, 1.001])])
def test_disagreement_names_the_array(wrong):
    right = {"y": np.zeros(2), "dx": np.ones(3)}
    right["y"][0] = 1
    assert compare.disagreement(right, right, 1e-6) is None
    assert compare.disagreement(right, {**right, "dx": np.array([1, 1, 1 + 1e-7])}, 1e-6) is None
    assert compare.disagreement(right, {**right, "dx": wrong}, 1e-6).startswith("dx ")


@pytest.mark.slow
def test_memory_grows_with_the_window_and_not_with_the_stream():
    # At least two windows: the second one begins while the pool holds the buffers of the first.
    header, _, _, _, *rows = memory.report(windows=(80, 160, 240), lengths=(480, 960), hidden=32)
    assert "LSTM 32" in header
    short, long = np.array([[float(entry) for entry in row.strip("| ").split("|")[1:]] for row in rows]).T
    assert long == pytest.approx(short, rel=0.02)
    assert short[2] - short[1] == pytest.approx(short[1] - short[0], rel=0.1)
    assert short[1] > 1.2 * short[0]


def test_the_text_is_a_megabyte_and_the_same_every_time():
    text = end_to_end.text()
    assert len(text) == end_to_end.CHARACTERS + end_to_end.HELD_OUT
    assert text == end_to_end.text()


@pytest.mark.slow
def test_gpurnn_train_leaves_what_pytorch_starts_from(tmp_path):
    text = end_to_end.text()
    (tmp_path / "train.txt").write_text(text[:4000], encoding="utf-8", newline="")
    (tmp_path / "held-out.txt").write_text(text[4000:4300], encoding="utf-8", newline="")
    result = end_to_end.train_gpurnn(tmp_path, steps=2, threads=1)
    assert len(result.losses) == 2
    assert result.seconds > 0
    symbols = len(CharVocabulary.from_text(text[:4000]))
    assert result.losses[0] == pytest.approx(np.log2(symbols), rel=0.2)
    assert result.losses[1] < result.losses[0]
    end_to_end.write_problem(tmp_path, steps=2, threads=1)
    with np.load(tmp_path / "problem.npz") as problem:
        assert problem["symbols"] == symbols
        assert problem["parameter recurrent.weight_ih_l0"].shape == (4 * end_to_end.HIDDEN, end_to_end.EMBEDDING)
        assert not problem["parameter output.bias"].any()  # still its initial value
        assert (len(problem["train"]), len(problem["held_out"])) == (4000, 300)


def test_pytorch_reads_the_batches_that_gpurnn_reads():
    tokens = np.arange(103, dtype=np.int32)
    stream, lanes = TokenStream(tokens, 4, 7), torch_language_model.lanes(tokens, 4)
    assert (len(lanes) - 1) // 7 == len(stream) == 3
    for index in range(len(stream)):
        batch = stream.batch(0, index)
        np.testing.assert_array_equal(lanes[7 * index : 7 * index + 7], batch.inputs)
        np.testing.assert_array_equal(lanes[7 * index + 1 : 7 * index + 8], batch.targets)


@pytest.mark.slow
def test_processes_are_measured_with_shards_and_without():
    pytest.importorskip("mpi4py")
    *_, first, second, third, fourth = distributed.report((1, 2), turns=1, steps=2, gpus=False)
    for line, name, processes in ((first, "strong", "1"), (second, "strong", "2"), (third, "weak", "1")):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [name, processes]
        assert all(float(cells[i]) > 0 for i in (2, 6, 8))
        assert (cells[4] == "") == (processes == "1")
    assert fourth.startswith("| weak | 2 |")


def test_model_of_many_gpus_sums_as_a_ring_in_a_node_does():
    assert distributed.all_reduce(800, 8) == pytest.approx((1400, 1400 / 450e9, 2 * 3 * 5e-6))
    # Two nodes: each GPU sums an eighth with its partner in the other node.
    assert distributed.all_reduce(800, 16)[:2] == pytest.approx((1500, 1400 / 450e9 + 100 / 50e9))
    *_, last = distributed.on_paper()
    assert last.startswith("| 1024 |")
