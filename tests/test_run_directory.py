"""A directory belongs to one run: the run locks it, and files that the run did not write stay unchanged."""

import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from test_training import language_model, stream, trainer
from tolerance import assert_same

import gpurnn
from gpurnn import FileFormatError, _dispatch
from gpurnn.optimizers import Adam
from gpurnn.training import CheckpointError, RunDirectoryError
from gpurnn.training.checkpoint import checkpoints, read_checkpoint, write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.* has no effect:UserWarning")


def contents(directory):
    """Every file below a directory, with its bytes."""
    found = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def run_in(directory, **options):
    model = language_model(dropout=0.3)
    options = {"steps": 6, "checkpoint_interval": 2, "log_interval": 2, "optimizer": Adam(lr=0.05), **options}
    return trainer(model, stream(), directory=directory, rng=3, **options)


@pytest.mark.parametrize("pickled", [False, True], ids=["itself", "unpickled elsewhere"])
def test_a_run_stays_in_its_directory_when_the_process_goes_to_another(tmp_path, monkeypatch, pickled):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run = run_in("run")
    if pickled:
        data = pickle.dumps(run)
        monkeypatch.chdir(tmp_path / "elsewhere")
        run = pickle.loads(data)
    else:
        run.on_gradients = lambda step, params, grads: os.chdir(tmp_path / "elsewhere") if step == 3 else None
    run.train()
    assert contents(tmp_path / "elsewhere") == {}
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum("loss" in record for record in map(json.loads, lines)) == 3
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")][-1] == "step-000000006.safetensors"


# --- files of others ---


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "checkpoints/important.bin", "checkpoints"])
def test_files_in_the_way_of_a_run_are_named_and_stay(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(RunDirectoryError, match=rf"holds {name.partition('/')[0]}, which no training run wrote there"):
        run_in(tmp_path).train()
    assert contents(tmp_path) == before


def test_all_files_in_the_way_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "run.json").write_text('{"format": "something else"}')
    with pytest.raises(RunDirectoryError, match=r"holds run.json and metrics.jsonl, which .* or move them away"):
        run_in(tmp_path).train()


def test_other_files_and_an_empty_folder_of_checkpoints_are_not_in_the_way(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.jsonl").write_bytes(b"mine too")
    run_in(tmp_path).train()
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"
    assert (tmp_path / "notes" / "metrics.jsonl").read_bytes() == b"mine too"


def test_pruning_deletes_only_checkpoints_of_the_run(tmp_path):
    others = {}
    run_in(tmp_path / "other", steps=1).train()
    run_in(tmp_path, steps=1).train()
    folder = tmp_path / "checkpoints"
    others["step-000000000.safetensors.bak"] = b"a copy"
    others["important.bin"] = b"important"
    for name, data in others.items():
        (folder / name).write_bytes(data)
    # A checkpoint of another run under a name that this run would prune, and rubbish under one that it will write.
    foreign = checkpoints(tmp_path / "other" / "checkpoints")[0].read_bytes()
    checkpoints(folder)[0].write_bytes(foreign)
    (folder / "step-000000004.safetensors").write_bytes(b"rubbish")
    resumed = run_in(tmp_path)
    with pytest.warns(UserWarning, match=r"step-000000004.safetensors: damaged"):
        assert resumed.resume() == 1
    resumed.train()
    for name, data in {
        **others,
        "step-000000000.safetensors": foreign,
        "step-000000004.safetensors.1": b"rubbish",
    }.items():
        assert (folder / name).read_bytes() == data
    assert [path.name for path in checkpoints(folder)] == [f"step-00000000{step}.safetensors" for step in (0, 4, 6)]


def test_a_run_says_which_wing_computes_it_and_warns_if_another_one_resumes_it(tmp_path, monkeypatch):
    def wing():
        return json.loads((tmp_path / "run.json").read_text())["wing"]

    run_in(tmp_path, steps=2).train()
    assert wing() == "reference"
    resumed = run_in(tmp_path, steps=4)
    resumed.resume()
    for now, before, cure in (
        ("native (avx2)", "reference", "set GPURNN_WING=reference"),
        ("cuda", r"native \(avx2\)", "set GPURNN_WING=native and GPURNN_CPU=avx2"),
        ("reference", "cuda", "resume it on a GPU"),
    ):
        monkeypatch.setattr(_dispatch, "computing", lambda array, now=now: now)
        said = (
            f"run.json says that {before} computed the run, which {re.escape(now)} resumes, so it will not have the "
            f"bits of a run without a break; to keep them, {cure}$"
        )
        with pytest.warns(UserWarning, match=said):
            resumed.train()
        assert wing() == now
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.train()


def test_wings_by_name(monkeypatch):
    monkeypatch.setattr("gpurnn.kernels.native.processor.instruction_sets", lambda: ("avx2",))
    for name, computing in {"reference": "reference", "host": "host", "native": "native (avx2)"}.items():
        with gpurnn.use(name):
            assert _dispatch.computing(np.zeros(1)) == computing


def test_metrics_of_a_run_whose_checkpoints_are_gone_are_kept(tmp_path):
    run_in(tmp_path).train()
    for path in checkpoints(tmp_path / "checkpoints"):
        path.unlink()
    before = contents(tmp_path)
    with pytest.raises(RunDirectoryError, match=r"holds the metrics.jsonl of a run whose checkpoints are gone"):
        run_in(tmp_path).train()
    assert contents(tmp_path) == before


def test_checkpoints_alone_are_resumed_and_make_the_directory_the_runs(tmp_path):
    run_in(tmp_path, steps=4).train()
    whole = run_in(tmp_path / "whole")
    whole.train()
    (tmp_path / "run.json").unlink()
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    resumed = run_in(tmp_path)
    with pytest.warns(UserWarning, match=r"metrics.jsonl: is missing, so the history begins at step 4$"):
        assert resumed.resume() == 4
    resumed.train()
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    saved = read_checkpoint(checkpoints(tmp_path / "checkpoints")[-1])
    assert json.loads((tmp_path / "run.json").read_text())["run"] == saved["run"]
    # Metrics of unknown origin block training again.
    (tmp_path / "run.json").unlink()
    before = contents(tmp_path)
    resumed = run_in(tmp_path, steps=8)
    resumed.resume()
    with pytest.raises(RunDirectoryError, match=r"holds metrics.jsonl, which no training run wrote there"):
        resumed.train()
    assert contents(tmp_path) == before


def test_a_checkpoint_of_another_run_in_the_directory_is_rejected(tmp_path):
    run_in(tmp_path / "one").train()
    run_in(tmp_path / "other", steps=4).train()
    newest = checkpoints(tmp_path / "one" / "checkpoints")[-1]
    (tmp_path / "other" / "checkpoints" / newest.name).write_bytes(newest.read_bytes())
    with pytest.raises(CheckpointError, match=r"000006.safetensors: belongs to another run than its directory"):
        run_in(tmp_path / "other").resume()


def test_a_pipe_in_the_place_of_the_metrics_does_not_hang(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs os.mkfifo")
    run_in(tmp_path, steps=2).train()
    (tmp_path / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(FileFormatError, match=r"metrics.jsonl: is a pipe, expected a file"):
        run_in(tmp_path).resume()


def test_resuming_changes_no_file(tmp_path):
    run_in(tmp_path, steps=4).train()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "loss": 1.0}\n{"st')
    before = contents(tmp_path)
    assert run_in(tmp_path).resume() == 4
    assert contents(tmp_path) == before


# --- two at a time ---


def train_here(directory, begun, done):
    run_in(directory, on_gradients=lambda step, *_: (begun.set(), done.wait(60)) if step == 3 else None).train()


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_second_trainer_in_the_directory_is_rejected_at_once(tmp_path, kind):
    if kind == "process":
        context = multiprocessing.get_context("spawn")
        begun, done = context.Event(), context.Event()
        first = context.Process(target=train_here, args=(tmp_path, begun, done))
    else:
        begun, done = threading.Event(), threading.Event()
        first = threading.Thread(target=train_here, args=(tmp_path, begun, done))
    first.start()
    try:
        assert begun.wait(60)
        pid = first.pid if kind == "process" else os.getpid()
        before = contents(tmp_path)
        message = rf"directory {tmp_path} is in use by another training run \(process {pid}\)"
        with pytest.raises(RunDirectoryError, match=message):
            run_in(tmp_path).train()
        resumed = run_in(tmp_path)
        resumed.resume()
        with pytest.raises(RunDirectoryError, match=message):
            resumed.train()
        assert contents(tmp_path) == before
    finally:
        done.set()
        first.join()
    # The state read in the meantime is out of date.
    with pytest.raises(RunDirectoryError, match=r"holds step-000000006.safetensors, which another trainer wrote since"):
        resumed.train()
    assert resumed.resume() == 6
    resumed.train()


def test_a_finished_trainer_does_not_go_on_behind_another(tmp_path):
    first = run_in(tmp_path, steps=4)
    first.train()
    second = run_in(tmp_path)
    second.resume()
    second.train()
    before = contents(tmp_path)
    first.total = 6
    with pytest.raises(RunDirectoryError, match=r"which another trainer wrote since this one read or wrote its last"):
        first.train()
    assert contents(tmp_path) == before


def test_a_directory_is_free_again_after_an_exception(tmp_path):
    def fail(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_in(tmp_path, on_gradients=fail).train()
    resumed = run_in(tmp_path)
    assert resumed.resume() == 0
    resumed.train()


# --- damaged metrics ---


def damage(path, what):
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    damaged = {
        "first": [b"\0\xff\n", *lines[1:]],
        "half of a line and the next": [lines[0][:20], *lines[1:]],
        "no record": [b"[]\n", b'{"loss": 1}\n', b"null\n", b'{"step": "2"}\n', b'{"step": 3, "loss": "x"}\n', *lines],
        "past the checkpoint": [*lines, b'{"step": 7, "lo\n', b'{"step": 8, "loss": 1.0}\n', b'{"step": 9, "l'],
        "no line end": [*lines[:2], lines[2][:-1]],
        "deep": [b"[" * 100_000 + b"\n", *lines],
        "empty": [],
    }[what]
    path.write_bytes(b"".join(damaged))
    steps = {"first": [4, 6], "half of a line and the next": [6], "empty": []}.get(what, [2, 4, 6])
    kept = {"first": [b"\0\xff"], "no record": [b"[]", b'{"step": "2"}']}
    return steps, kept.get(what, [])


@pytest.mark.parametrize(
    "what",
    ["first", "half of a line and the next", "no record", "past the checkpoint", "no line end", "deep", "empty"],
)
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_damaged_line_of_the_metrics_does_not_block_a_sound_checkpoint(tmp_path, what):
    whole = run_in(tmp_path / "whole", steps=10)
    whole.train()
    run_in(tmp_path / "part").train()
    metrics = tmp_path / "part" / "metrics.jsonl"
    steps, kept = damage(metrics, what)
    resumed = run_in(tmp_path / "part", steps=10)
    if what in ("no line end", "empty"):
        assert resumed.resume() == 6
    else:
        with pytest.warns(UserWarning, match=r"metrics.jsonl: lines? \d.* damaged and left out of the metrics"):
            assert resumed.resume() == 6
    assert [record["step"] for record in resumed.history] == steps
    resumed.train()
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    assert [record["step"] for record in resumed.history] == [*steps, 8, 10]
    lines = metrics.read_bytes().split(b"\n")
    assert set(kept) <= set(lines)
    whole_lines = [line for line in lines if line.count(b'"step": ') == 1 and b'"tokens_per_second"' in line]
    assert [json.loads(line) for line in whole_lines] == resumed.history


def test_lines_that_could_not_be_written_are_written_when_training_goes_on(tmp_path, monkeypatch):
    whole = run_in(tmp_path / "whole")
    whole.train()
    run = run_in(tmp_path / "part")
    folder = type(run._folder)
    append, calls = folder.append_metrics, []

    def full(self, records):
        calls.append(1)
        if len(calls) == 3:
            with open(self.path / "metrics.jsonl", "ab") as file:
                file.write(b'{"step": 4, "lo')
            raise OSError(28, "No space left on device")
        return append(self, records)

    monkeypatch.setattr(folder, "append_metrics", full)
    with pytest.raises(OSError, match="No space left"):
        run.train()
    run.train()
    assert_same(run.model.state_dict(), whole.model.state_dict())
    metrics = [json.loads(line) for line in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines()]
    assert metrics == run.history
    assert [record["step"] for record in metrics] == [2, 4, 6]


# --- forged checkpoints ---


def forged(change):
    changes = {
        "no parameters": lambda saved: saved.pop("params"),
        "parameters are a list": lambda saved: saved.update(params=[1, 2]),
        "a parameter is missing": lambda saved: saved["params"].pop("output.bias"),
        "a parameter has another shape": lambda saved: saved["params"].update({"output.bias": np.zeros(3)}),
        "a parameter has another dtype": lambda saved: saved["params"].update({"output.bias": np.zeros(6, "f4")}),
        "a parameter is text": lambda saved: saved["params"].update({"output.bias": "x"}),
        "rng": lambda saved: saved.update(rng={"bit_generator": "PCG64"}),
        "rng is a number": lambda saved: saved.update(rng=3),
        "optimizer": lambda saved: saved.update(optimizer={"step": 1}),
        "optimizer's step": lambda saved: saved["optimizer"].update(step=np.array(-3)),
        "optimizer's steps": lambda saved: saved["optimizer"].update(step=np.array([1, 2])),
        "optimizer's shape": lambda saved: saved["optimizer"].update({"mean.output.bias": np.zeros(2)}),
        "optimizer is None": lambda saved: saved.update(optimizer=None),
        "unlogged": lambda saved: saved["unlogged"].update(count=-1),
        "unlogged is None": lambda saved: saved.update(unlogged=None),
        "unlogged's loss": lambda saved: saved["unlogged"].update(loss="1"),
        "best": lambda saved: saved.update(best={"loss": 1.0}),
        "best's loss": lambda saved: saved["best"].update(loss=None),
        "best's failures": lambda saved: saved["best"].update(failures=-1),
        "best's parameters": lambda saved: saved["best"]["params"].update({"output.bias": np.zeros(2)}),
        "state": lambda saved: saved.update(recurrent_state="x"),
        "state of numbers": lambda saved: saved.update(recurrent_state=(1, 2)),
        "config": lambda saved: saved.update(config=None),
        "final": lambda saved: saved.update(final=7),
        "final's records": lambda saved: saved.update(final={"records": 3, "improved": False}),
        "run": lambda saved: saved.update(run=None),
        "schedule": lambda saved: saved.update(schedule={"rate": -1.0, "best": None, "failures": 0, "cooling": 0}),
        "schedule's best": lambda saved: saved["schedule"].update(best="low"),
        "schedule is None": lambda saved: saved.update(schedule=None),
    }
    return changes if change is None else changes[change]


@pytest.mark.parametrize("change", list(forged(None)))
def test_a_forged_checkpoint_is_rejected_before_anything_changes(tmp_path, change):
    from gpurnn.schedules import ReduceOnPlateau

    def plateau(steps=6):
        return run_in(
            tmp_path, steps=steps, validation=stream(seed=1), validation_interval=2, patience=5,
            schedule=ReduceOnPlateau(0.05, patience=1),
        )  # fmt: skip

    plateau().train()
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    saved = read_checkpoint(newest)
    forged(change)(saved)
    write_checkpoint(newest, saved)
    run = plateau(9)
    run.optimizer.step(run.model.params, {name: np.ones_like(p) for name, p in run.model.params.items()})

    def state():
        return (
            {**run.model.state_dict()},
            {**run.optimizer.state_dict()},
            run._rng.bit_generator.state,
            run.schedule.state_dict(),
            (run.step, run.saved_step, run.history, run._state),
        )

    before, files = state(), contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"step-000000006.safetensors: "):
        run.resume()
    after = state()
    for one, other in zip(before[:2], after[:2], strict=True):
        assert_same(one, other)
    assert before[2:] == after[2:]
    assert contents(tmp_path) == files


# --- the terminal ---

TERMINAL = """
import sys, os, hashlib
sys.path.insert(0, {tests!r})
from test_run_directory import run_in
run = run_in({directory!r}, progress=True, steps=9)
{before}
run.train()
digest = hashlib.sha256(b"".join(p.tobytes() for p in run.model.params.values())).hexdigest()
open({directory!r} + "/digest", "w").write(digest)
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "sys.stderr.close()",
        "os.close(2)",
        "sys.stderr = None",
        "r, w = os.pipe(); os.close(r); os.dup2(w, 2)",
        "sys.stderr = open('/dev/full', 'w')",
        "run.on_gradients = lambda step, *_: sys.stderr.close() if step == 3 else None",
        "r, w = os.pipe(); os.dup2(w, 2)\nrun.on_gradients = lambda step, *_: os.close(r) if step == 3 else None",
    ],
)
def test_a_dead_terminal_does_not_end_training(tmp_path, before):
    if "/dev/full" in before and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    tests = os.path.dirname(os.path.abspath(__file__))
    script = TERMINAL.format(tests=tests, directory=str(tmp_path / "run"), before=before)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    # If stderr's buffer cannot be written, Python ends with 120.
    assert done.returncode == (120 if "/dev/full" in before else 0), done.stderr
    whole = run_in(None, steps=9)
    whole.train()
    import hashlib

    expected = hashlib.sha256(b"".join(p.tobytes() for p in whole.model.params.values())).hexdigest()
    assert (tmp_path / "run" / "digest").read_text() == expected


@pytest.mark.parametrize("step", [-1, 5, "6", None, True])
def test_a_forged_step_gives_way_to_the_checkpoint_before(tmp_path, step):
    run_in(tmp_path).train()
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    write_checkpoint(newest, {**read_checkpoint(newest), "step": step})
    run = run_in(tmp_path)
    with pytest.warns(UserWarning, match=rf"its step is {step!r}, expected that of its name; using the one before it"):
        assert run.resume() == 4
