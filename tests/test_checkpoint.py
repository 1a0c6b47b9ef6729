"""Checkpoints are read as they were written, or rejected with the reason; a crash leaves the old one or the new one."""

import json
import os
import warnings

import numpy as np
import pytest
import safetensors.numpy

import gpurnn
from gpurnn.training.checkpoint import (
    CheckpointError,
    checkpoints,
    latest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_checkpoint,
)


def state(step=3):
    rng = np.random.default_rng(step)
    return {
        "step": step,
        "params": {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=5).astype(np.float32)},
        "recurrent_state": (rng.normal(size=(1, 2, 3)), rng.normal(size=(1, 2, 3))),
        "rng": np.random.default_rng(7).bit_generator.state,
        "nothing": None,
        "numbers": [1, 2.5, 0.1 + 0.2, True, "text"],
        "scalar": np.float64(0.1),
    }


def assert_same(a, b):
    assert type(a) is type(b) or np.isscalar(a)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b


def test_what_was_written_comes_back(tmp_path):
    write_checkpoint(tmp_path / "c", state())
    assert_same(state(), read_checkpoint(tmp_path / "c"))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.arange(6.0).astype(">f8"),
        np.zeros((0, 3)),
        np.array(2.5),
        np.arange(6).reshape(2, 3)[:, :1],
        np.array([True, False]),
        np.arange(3, dtype=np.uint64),
        np.arange(3, dtype=np.float16),
    ],
    ids=["transposed", "reversed", "big endian", "empty", "scalar", "slice", "bool", "uint64", "float16"],
)
def test_arrays_of_any_layout_keep_their_values(tmp_path, array):
    write_checkpoint(tmp_path / "c", {"a": array})
    back = read_checkpoint(tmp_path / "c")["a"]
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back, array)


def test_what_json_and_safetensors_cannot_hold_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"optimizer/0/when is a set, expected arrays, numbers"):
        write_checkpoint(tmp_path / "c", {"optimizer": [{"when": {1}}]})
    assert list(tmp_path.iterdir()) == []


def test_every_single_damaged_byte_is_noticed(tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, {"step": 1, "a": np.arange(4.0), "b": np.ones(3, np.float32)})
    whole = path.read_bytes()
    for position in range(len(whole)):
        for flip in (0x01, 0x20, 0x80):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            with pytest.raises(CheckpointError, match="c: "):
                read_checkpoint(path)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, {"step": 1, "a": np.arange(4.0)})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="c: damaged, or not a safetensors file"):
            read_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="c: damaged"):
        read_checkpoint(path)


def test_foreign_files_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "c"
    path.write_text("not a checkpoint at all, only text that is long enough to look like something")
    with pytest.raises(CheckpointError, match="c: damaged, or not a safetensors file"):
        read_checkpoint(path)
    safetensors.numpy.save_file({"w": np.ones(3)}, path)
    with pytest.raises(CheckpointError, match="c: a safetensors file, but not a checkpoint that gpurnn wrote"):
        read_checkpoint(path)
    gpurnn.Dense(2, 3).save(path)
    with pytest.raises(CheckpointError, match="c: holds a layer, expected a checkpoint"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none")


def test_the_last_two_are_kept(tmp_path):
    for step in (0, 5, 10, 15):
        save_checkpoint(tmp_path / "checkpoints", step, state(step))
        kept = [path.name for path in checkpoints(tmp_path / "checkpoints")]
        assert kept == [f"step-{s:09d}.safetensors" for s in (step - 5, step) if s >= 0]
    path, found = latest_checkpoint(tmp_path / "checkpoints")
    assert path.name == "step-000000015.safetensors"
    assert_same(state(15), found)


def test_what_a_killed_write_left_is_cleared_away(tmp_path):
    (tmp_path / ".step-000000003.safetensors.0123456789abcdef.partial").write_bytes(b"half")
    path = save_checkpoint(tmp_path, 5, state())
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_else_is_cleared_away(tmp_path):
    others = [".step-notes.txt.partial", ".step-000000003.safetensors.partial", "step-1.safetensors", ".partial",
              ".model.safetensors.0123456789abcdef.partial", "step-000000001.safetensors.bak"]  # fmt: skip
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    for step in (5, 6, 7):
        save_checkpoint(tmp_path, step, state())
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "step-000000006.safetensors", "step-000000007.safetensors"])


def test_the_one_before_a_damaged_one_is_used_and_not_pruned(tmp_path):
    for step in (5, 10):
        save_checkpoint(tmp_path, step, state(step))
    newest = checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-000000010.safetensors: damaged.*using the one before it, .*000005"):
        path, found = latest_checkpoint(tmp_path)
    assert found["step"] == 5
    save_checkpoint(tmp_path, 7, state(7))
    assert path in checkpoints(tmp_path)


def test_no_sound_checkpoint_is_an_error_that_names_each_file(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in there"):
        latest_checkpoint(tmp_path / "nowhere")
    for step in (5, 10):
        save_checkpoint(tmp_path, step, state(step)).write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"000010.safetensors: damaged.*000005.safetensors: damaged"):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_is_a_safetensors_file_that_others_can_open(tmp_path):
    write_checkpoint(tmp_path / "c", state())
    tensors = safetensors.numpy.load_file(tmp_path / "c")
    np.testing.assert_array_equal(tensors["params/w"], state()["params"]["w"])
    with safetensors.safe_open(tmp_path / "c", framework="numpy") as file:
        assert json.loads(file.metadata()["gpurnn"])["content"]["step"] == 3


def test_a_sound_newest_checkpoint_warns_of_nothing(tmp_path):
    save_checkpoint(tmp_path, 1, state(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latest_checkpoint(tmp_path)
