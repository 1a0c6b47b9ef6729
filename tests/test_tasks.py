"""A quick form of each task of `benchmarks.tasks`: the models learn, though not as well as they can."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import gpurnn_tasks, task_data, tasks
from benchmarks.task_data import TASKS, Task


def quick(name, data=None, **training):
    task = TASKS[name]
    return replace(task, data={**task.data, **(data or {})}, training={**task.training, **training})


def learnt(task):
    measures, seconds = gpurnn_tasks.solve(task, 0)
    assert seconds > 0
    assert len(measures) == len(task.measures) == len(task.thresholds)
    return measures


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_adding(cell):
    (error,) = learnt(quick(f"adding-50-{cell}", {"steps": 10}, steps=400, lr=0.01))
    assert error < 0.167 / 4  # a quarter of the error of guessing the mean


def test_copying():
    (nats,) = learnt(quick("copying-gru", {"delay": 3}, steps=500, lr=0.01))
    assert nats < 5 * np.log(8) / 13 / 2  # half the loss of the best answer without memory


@pytest.mark.parametrize("name", ["digits-rows-rnn", "digits-rows-lstm", "digits-rows-gru"])
def test_digits(name):
    (accuracy,) = learnt(quick(name, epochs=6))
    assert accuracy > 0.8


def test_digits_by_pixels():
    (accuracy,) = learnt(quick("digits-pixels-gru", epochs=2))
    assert accuracy > 0.25  # one in ten by chance


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_sunspots(cell):
    near, far = learnt(quick(f"sunspots-{cell}", epochs=40))
    assert near < 0.2
    assert far < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "limit"), [("reversal", 0.9), ("numbers", 0.9), ("pronunciations", 0.8)])
def test_transduction(name, limit, monkeypatch, tmp_path):
    data, source_symbols, target_symbols = task_data.transduction(name)
    short = [i for i, x in enumerate(data.inputs) if len(x) <= 5][:3000]
    kept = [i for i, x in enumerate(data.test_inputs) if len(x) <= 5][:100]
    ways = data.test_alternatives
    data = task_data.Examples(
        [data.inputs[i] for i in short], [data.targets[i] for i in short],
        [data.test_inputs[i] for i in kept], [data.test_targets[i] for i in kept],
        None if ways is None else [ways[i] for i in kept],
    )  # fmt: skip
    monkeypatch.setattr(gpurnn_tasks, "transduction", lambda _: (data, source_symbols, target_symbols))
    task = replace(quick(name, steps=180, lr=0.005), hidden=48)
    assert learnt(task)[0] < limit
    if name == "reversal":
        gpurnn_tasks.solve_transduction(replace(task, training={**task.training, "steps": 1}), 0, tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 5_000


def test_the_data_are_what_they_are_called():
    rng = np.random.default_rng(0)
    x, y = task_data.adding(rng, 10, 50)
    np.testing.assert_allclose((x[:, :, 0] * x[:, :, 1]).sum(axis=0), y[:, 0], rtol=1e-6)
    assert (x[:5, :, 1].sum(axis=0) == 1).all()
    assert (x[5:, :, 1].sum(axis=0) == 1).all()
    x, y = task_data.copying(rng, 4, 50)
    assert x.shape == y.shape == (14, 50)
    np.testing.assert_array_equal(y[-5:], x[:5])
    assert (x[8] == 9).all()
    assert not x[5:8].any()
    assert not y[:-5].any()
    examples = task_data.reversal(30, 10)
    assert (len(examples.inputs), len(examples.test_inputs)) == (20, 10)
    for a, b in zip(examples.inputs, examples.targets, strict=True):
        assert a.tolist() == b[::-1].tolist()
    assert task_data.edits("kitten", "sitting") == 3
    assert task_data.edits("", "abc") == task_data.edits("abc", "") == 3


def test_the_measures_of_a_reversal():
    source = [np.array([4, 5, 6])]
    data = task_data.Examples([], [], source, [np.array([6, 5, 4])])
    weights = np.eye(4)[:, 2::-1]
    measure = task_data.measure_transduction
    assert measure(TASKS["reversal"], [np.array([6, 5, 4])], [weights], data) == [0.0, 0.0]
    assert measure(TASKS["reversal"], [np.array([6, 5])], [weights[[0, 2, 1]]], data) == [1.0, 2 / 3]
    assert measure(TASKS["pronunciations"], [np.array([6, 4])], [], data) == [1 / 3, 1.0]
    data = replace(data, test_alternatives=[[np.array([6, 5, 4]), np.array([6, 4, 4, 4])]])
    assert measure(TASKS["pronunciations"], [np.array([6, 4, 4])], [], data) == [1 / 3, 1.0]
    assert measure(TASKS["pronunciations"], [np.array([6, 4, 4, 4])], [], data) == [0.0, 0.0]


@pytest.fixture
def solved(monkeypatch):
    """Replaces training by predefined answers, and records who was asked for what."""
    asked = []

    def solve(solver, task, seed, threads, python, *picture):
        asked.append((solver, task.name, seed, *picture))
        return tasks.Result([0.95], 2.0) if solver == "gpurnn_tasks" else tasks.Result([0.9], 4.0)

    monkeypatch.setattr(tasks, "solve", solve)
    return asked


def workers(peer):
    """A stand-in for the processes that report their versions."""

    class Worker:
        versions = "some versions"

        def __init__(self, name, *_):
            if name == "PyTorch" and not peer:
                raise tasks.NotInstalled("PyTorch")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    return Worker


@pytest.mark.parametrize("peer", [True, False])
def test_the_table(solved, peer, monkeypatch):
    monkeypatch.setattr(tasks, "Worker", workers(peer))
    result = CliRunner().invoke(tasks.main, ["digits-rows-rnn", "digits-pixels-gru", "--seeds", "2"])
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("| digits")]
    expected = "| digits-rows-rnn | RNN 64 | accuracy | 0.950 | 0.947 | 2.0 |"
    assert rows[0] == expected + (" 0.900 | 4.0 | 0.50 |" if peer else "")
    assert len(rows) == 2
    solvers = ["gpurnn_tasks", "torch_tasks"] if peer else ["gpurnn_tasks"]
    names = ["digits-rows-rnn", "digits-pixels-gru"]
    assert solved == [(solver, name, seed) for name in names for seed in range(2) for solver in solvers]


def test_only_the_reversal_is_drawn(solved, monkeypatch):
    monkeypatch.setattr(tasks, "Worker", workers(peer=True))
    list(tasks.report(("reversal", "numbers"), seeds=2, threads=1, peer_python="", plot="picture.png"))
    ours = [request for request in solved if request[0] == "gpurnn_tasks"]
    assert ours == [
        ("gpurnn_tasks", "reversal", 0, "picture.png"), ("gpurnn_tasks", "reversal", 1),
        ("gpurnn_tasks", "numbers", 0), ("gpurnn_tasks", "numbers", 1),
    ]  # fmt: skip


def test_a_solver_is_a_process_of_its_own(monkeypatch):
    quickest = quick("digits-rows-rnn", epochs=1)
    result = tasks.solve("gpurnn_tasks", replace(quickest, name="sunspots-rnn"), 0, 1, tasks.sys.executable)
    assert len(result.measures) == 2
    assert result.seconds > 0


def test_what_misses_its_threshold_is_marked():
    task = Task("t", "digits", "", "rnn", 1, {}, {}, ("accuracy",), (0.947,), True)
    assert tasks._reached(task, [0.95], [0.947])
    assert not tasks._reached(task, [0.94], [0.947])
    lower = replace(task, higher=False, measures=("a", "b"), thresholds=(0.1, 0.2))
    assert tasks._reached(lower, [0.1, 0.2], [0.1, 0.2])
    assert not tasks._reached(lower, [0.05, 0.21], [0.1, 0.2])
