"""Files of layers, models and checkpoints: the saved values are loaded, or the reason for the failure is given."""

import contextlib
import io
import multiprocessing
import os
import pickle
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy

import gpurnn
from gpurnn import CharVocabulary, FileFormatError, WordVocabulary, _files
from gpurnn.layers import Decoder
from gpurnn.models import Model, load
from gpurnn.models import files as model_files
from gpurnn.models.kalman import ar, level
from gpurnn.training.checkpoint import CheckpointError, latest_checkpoint, read_checkpoint, write_checkpoint

LAYERS = {
    "RNN": lambda seed: gpurnn.RNN(2, 3, rng=seed),
    "LSTM": lambda seed: gpurnn.LSTM(2, 2, 2, bidirectional=True, rng=seed),
    "GRU": lambda seed: gpurnn.GRU(2, 3, dtype="float64", rng=seed),
    "Dense": lambda seed: gpurnn.Dense(3, 2, rng=seed),
    "Embedding": lambda seed: gpurnn.Embedding(4, 3, rng=seed),
    "LayerNorm": lambda seed: scaled(gpurnn.LayerNorm(3), seed),
    "StateSpace": lambda seed: gpurnn.StateSpace(2, 3, 1, rng=seed),
    "DiagonalStateSpace": lambda seed: gpurnn.DiagonalStateSpace(2, 3, 1, rng=seed),
    "MultiHeadAttention": lambda seed: gpurnn.MultiHeadAttention(4, 2, rng=seed),
    "TransformerBlock": lambda seed: gpurnn.TransformerBlock(4, 2, 3, rng=seed),
    "Decoder": lambda seed: Decoder(gpurnn.GRU(6, 3, rng=seed), "additive", memory_size=4, rng=seed),
    "Sequential": lambda seed: gpurnn.Sequential(gpurnn.GRU(2, 3, rng=seed), gpurnn.Dense(3, 2, rng=seed)),
}


def scaled(layer, seed):
    for p in layer.params.values():
        p += seed
    return layer


def forecaster(seed):
    model = gpurnn.Forecaster(3, 2, rng=seed)
    model.mean, model.std = np.array([0.5 + seed]), np.array([2.0])
    model.residuals = np.full((4, 1), 0.25, np.float32)
    return model


def structural(seed):
    model = level() + ar(2, variance=0.5)
    model.load_state_dict({name: np.full_like(p, 0.25 + seed / 100) for name, p in model.params.items()})
    return model


def linear_gaussian(seed):
    F = np.array([[0.5, 0.1], [0.0, 0.25]]) + seed / 100
    return gpurnn.LinearGaussian(F, np.array([[1.0, 0.0]]), np.eye(2), np.eye(1))


MODELS = {
    "SequenceClassifier": lambda seed: gpurnn.SequenceClassifier(2, 3, 2, pooling="attention", rng=seed),
    "SequenceTagger": lambda seed: gpurnn.SequenceTagger(2, 3, 2, num_embeddings=4, bidirectional=True, rng=seed),
    "SequenceRegressor": lambda seed: gpurnn.SequenceRegressor(2, 3, 1, cell="rnn", leak=0.3, rng=seed),
    "SequenceGenerator": lambda seed: gpurnn.SequenceGenerator(2, 3, 4, rng=seed),
    "EncoderDecoder": lambda seed: gpurnn.EncoderDecoder(4, 5, 2, 3, attention="general", rng=seed),
    "Translator": lambda seed: gpurnn.Translator.from_texts(["a b", "ü"], ["x\ny", "z 😀"], 2, 3, rng=seed),
    "LanguageModel of characters": lambda seed: gpurnn.LanguageModel(CharVocabulary("?aé😀\ud800"), 2, 3, rng=seed),
    "LanguageModel of words": lambda seed: gpurnn.LanguageModel(
        WordVocabulary(["<unk>", 'the "', "naïve"]), 3, 3, tied=True, rng=seed
    ),
    "Forecaster": forecaster,
    "LinearGaussian": linear_gaussian,
    "StructuralModel": structural,
}


def checkpoint_state(seed):
    rng = np.random.default_rng(seed)
    return {
        "step": 3 + seed,
        "params": {"w": rng.normal(size=(2, 3)), "b": rng.normal(size=3).astype(np.float32)},
        "recurrent_state": (rng.normal(size=(1, 1, 2)), None),
        "rng": rng.bit_generator.state,
        "numbers": [1, 2.5, 0.1 + 0.2, True, "text", float("inf")],
    }


class Kind:
    """A kind of file: how to write one, and how to read its contents as bytes."""

    def __init__(self, name):
        self.name = name

    def write(self, path, seed):
        if self.name == "checkpoint":
            write_checkpoint(path, checkpoint_state(seed))
        else:
            (LAYERS | MODELS)[self.name](seed).save(path)

    def read(self, path):
        if self.name == "checkpoint":
            return pickle.dumps(read_checkpoint(path))
        if self.name in MODELS:
            model = load(path)
            config = model.config() if isinstance(model, Model) else {}
            return repr((config, model, {n: (a.dtype, a.tolist()) for n, a in model.state_dict().items()}))
        layer = LAYERS[self.name](7)
        before = {name: p.tobytes() for name, p in layer.params.items()}
        try:
            layer.load(path)
        except FileFormatError:
            assert {name: p.tobytes() for name, p in layer.params.items()} == before
            raise
        return repr({name: (p.dtype, p.tolist()) for name, p in layer.params.items()})


KINDS = [*LAYERS, *MODELS, "checkpoint"]
each_kind = pytest.mark.parametrize("kind", [Kind(name) for name in KINDS], ids=KINDS)
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX's")


@contextlib.contextmanager
def work_in_proportion(path):
    """Limit the calls of functions by the size of a file. A limit of time would depend on the machine."""
    calls, before = 0, sys.getprofile()

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert calls < path.stat().st_size + 20_000


def rejected(kind, path, sound=()):
    """Read a damaged file. With little work it must give an error that names it, or one of ``sound``."""
    found = said = None
    with work_in_proportion(path):
        try:
            found = kind.read(path)
        except FileFormatError as error:
            said = error
    if said is None:
        assert found in sound
        return False
    assert str(said).startswith(f"{path}: ")
    assert kind.name != "checkpoint" or type(said) is CheckpointError
    return True


# ---- Values ----------------------------------------------------------------------------------------------------------


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    out = raw.view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "moved axes": lambda a: np.moveaxis(np.moveaxis(a, 0, 1).copy(), 0, 1),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian Fortran": lambda a: np.asfortranarray(a.astype(a.dtype.newbyteorder(">"))),
    "unaligned": unaligned,
    "read-only": read_only,
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


@each_layout
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_layers_file_holds_the_values_of_any_memory(tmp_path, layout, dtype):
    weight = layout(np.random.default_rng(0).normal(size=(4, 3)).astype(dtype))
    layer, other = gpurnn.Dense(3, 4, dtype=dtype), gpurnn.Dense(3, 4, dtype=dtype)
    layer.params["weight"] = weight
    layer.save(tmp_path / "a")
    other.load(tmp_path / "a")
    safetensors.numpy.save_file(layer.state_dict(), tmp_path / "b")
    for found in (
        other.params["weight"],
        safetensors.numpy.load_file(tmp_path / "a")["weight"],
        safetensors.numpy.load_file(tmp_path / "b")["weight"],
    ):
        np.testing.assert_array_equal(found, weight)
    state = layer.state_dict()["weight"]
    assert state.flags.c_contiguous
    assert state.dtype.isnative


@each_layout
def test_models_checkpoints_and_optimizers_files_hold_the_values_of_any_memory(tmp_path, layout):
    A = layout(np.random.default_rng(0).normal(size=(3, 3)))
    model = gpurnn.SequenceClassifier(3, 1, 2, cell="rnn", dtype="float64")
    model.recurrent.params["weight_ih_l0"] = A[:1]
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(load(tmp_path / "m").params["recurrent.weight_ih_l0"], A[:1])
    kalman = gpurnn.LinearGaussian(np.eye(3), np.eye(3), np.eye(3), np.eye(3))
    kalman.params["F"] = A
    kalman.save(tmp_path / "k")
    np.testing.assert_array_equal(load(tmp_path / "k").params["F"], A)
    write_checkpoint(tmp_path / "c", {"a": A, "v": A[0], "scalar": A[0, 0], "empty": A[:0]})
    back = read_checkpoint(tmp_path / "c")
    for name, expected in {"a": A, "v": A[0], "scalar": A[0, 0], "empty": A[:0]}.items():
        np.testing.assert_array_equal(back[name], expected)
        assert np.shape(back[name]) == np.shape(expected)
    forecaster = gpurnn.Forecaster(2, 2, 3)
    forecaster.residuals = A.astype(np.float32, order="K")
    forecaster.save(tmp_path / "f")
    np.testing.assert_array_equal(load(tmp_path / "f").residuals, forecaster.residuals)
    adam, p = gpurnn.Adam(), {"w": np.asfortranarray(np.ones((3, 3)))}
    adam.step(p, {"w": np.asfortranarray(np.array(A, "f8"))})
    for name, array in adam.state_dict().items():
        assert array.flags.c_contiguous, name


def test_arrays_of_every_dtype_and_of_no_size_or_axes_come_back(tmp_path):
    arrays = {
        dtype: np.array([[1, 0], [3, 1]]).astype(dtype) for dtype in _files._DTYPES.values()
    } | {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.int8), "no axes": np.array(True)}  # fmt: skip
    _files.write_tensors(tmp_path / "f", "f", "layer", None, arrays)
    _, back = _files.read_tensors(tmp_path / "f")
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()
        assert back[name].flags.writeable
    with pytest.raises(TypeError, match="f: x has dtype complex128, expected one of bool, uint8"):
        _files.write_tensors(tmp_path / "g", "f", "layer", None, {"x": np.zeros(2, complex)})
    assert os.listdir(tmp_path) == ["f"]


@each_kind
def test_equal_contents_make_equal_files_and_others_do_not(tmp_path, kind):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        kind.write(tmp_path / name, seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    assert kind.read(tmp_path / "a") == kind.read(tmp_path / "b") != kind.read(tmp_path / "c")


NUMPY_SCALARS = {
    "np.float32": (np.float32(0.1), float(np.float32(0.1))),
    "np.float16": (np.float16(0.1), float(np.float16(0.1))),
    "np.float64": (np.float64(0.1), 0.1),
    "np.bool": (np.bool_(True), True),
    "np.int8": (np.int8(-3), -3),
    "np.uint64": (np.uint64(2**64 - 1), 2**64 - 1),
    "np.str": (np.str_("text"), "text"),
    "nested": ({"a": (np.int64(1), [np.float32(0.5)])}, {"a": [1, [0.5]]}),
}


@pytest.mark.parametrize("name", NUMPY_SCALARS)
def test_numpy_scalars_in_a_configuration_are_written_as_numbers(tmp_path, name):
    value, expected = NUMPY_SCALARS[name]
    _files.write_tensors(tmp_path / "f", "f", "model", {"x": value}, {})
    found = _files.read_tensors(tmp_path / "f")[0]["x"]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"M.save: config\['x'\] is a set, expected None, a boolean, a number"),
        ([0, object()], r"M.save: config\['x'\]\[1\] is an object, expected"),
        ({"a": np.zeros(2)}, r"M.save: config\['x'\]\['a'\] is an array of shape .*, expected"),
        (np.complex64(1), r"M.save: config\['x'\] is a numpy.complex64, expected"),
        (np.longdouble(1), r"M.save: config\['x'\] is a numpy.longdouble, expected"),
        (np.datetime64(1, "s"), r"M.save: config\['x'\] is a numpy.datetime64, expected"),
        ({1: 2}, r"M.save: config\['x'\] has the key 1, expected keys that are str"),
        (b"bytes", r"M.save: config\['x'\] is a bytes, expected"),
        ("\ud83d\ude00", r"M.save: config\['x'\] is '\\ud83d\\ude00', expected Unicode text"),
    ],
)
def test_what_json_cannot_hold_is_rejected_by_its_place_and_writes_nothing(tmp_path, value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        _files.write_tensors(tmp_path / "f", "M.save", "model", {"x": value}, {})
    assert os.listdir(tmp_path) == []


def test_models_with_numpy_scalars_as_options_can_be_saved(tmp_path):
    options = {"recurrent_dropout": np.float32(0.1), "variational_dropout": np.float32(0.2), "residual": np.bool_(True)}
    for model in (
        gpurnn.SequenceClassifier(2, 2, 3, **options),
        gpurnn.SequenceClassifier(2, 2, 3, cell="rnn", leak=np.float32(0.5)),
        gpurnn.SequenceClassifier(2, 2, 3, reset_after=np.bool_(True)),
        gpurnn.EncoderDecoder(5, 5, 2, 2, attention="additive", attention_size=np.int64(3)),
    ):
        model.save(tmp_path / "m")
        back = load(tmp_path / "m")
        assert back.config() == model.config()
        assert {n: p.tobytes() for n, p in back.params.items()} == {n: p.tobytes() for n, p in model.params.items()}


def test_checkpoints_keep_keys_apart_and_reject_those_that_they_use_themselves(tmp_path):
    state = {"a": {"b": np.ones(1)}, "a/b": np.zeros(1), "a~1b": np.full(1, 2.0)}
    write_checkpoint(tmp_path / "c", state)
    back = read_checkpoint(tmp_path / "c")
    assert (back["a"]["b"], back["a/b"], back["a~1b"]) == (1, 0, 2)
    for key in ("<array>", "<tuple>", 3):
        with pytest.raises(TypeError, match=re.escape(f"write_checkpoint: a has the key {key!r}")):
            write_checkpoint(tmp_path / "d", {"a": {key: 1}})


@pytest.mark.parametrize("step", [-1, 2.0, True, None, "3", 4, [3]])
def test_a_forged_step_is_rejected(tmp_path, step):
    write_checkpoint(tmp_path / "step-000000003.safetensors", {"step": step})
    write_checkpoint(tmp_path / "step-000000001.safetensors", {"step": 1})
    with pytest.warns(UserWarning, match=r"step-000000003.safetensors: its step is .*, expected that of its name"):
        path, state = latest_checkpoint(tmp_path)
    assert (path.name, state) == ("step-000000001.safetensors", {"step": 1})


# ---- Loading into a layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: {**s, "bias": [1.0, 2.0]}, TypeError, r"bias'\] is a list, expected a numpy.ndarray"),
        (lambda s: {**s, "bias": None}, TypeError, r"bias'\] is a NoneType|at least one array"),
        (lambda s: {**s, "bias": "text"}, TypeError, r"bias'\] is a str, expected a numpy.ndarray"),
        (lambda s: list(s.items()), TypeError, "state is a list of 2, expected a dict of arrays by name"),
        (lambda s: None, TypeError, "state is None, expected a dict of arrays by name"),
        (lambda s: {**s, "bias": np.zeros(3, "f4")}, ValueError, r"bias'\] has shape \(3,\), expected the parameter's"),
        (lambda s: {**s, "bias": np.zeros(2, "f8")}, TypeError, r"bias'\] has dtype float64 but the parameter has"),
        (lambda s: {**s, 3: 1, "x": 2}, KeyError, r"unknown \[3, 'x'\]"),
    ],
)
def test_a_state_that_does_not_fit_leaves_the_layer_as_it_was(change, error, message):
    layer = gpurnn.Dense(3, 2)
    before = layer.state_dict()
    with pytest.raises(error, match=rf"Dense.load_state_dict: .*({message})"):
        layer.load_state_dict(change(gpurnn.Dense(3, 2, rng=1).state_dict()))
    np.testing.assert_equal(layer.state_dict(), before)


def test_a_read_only_parameter_is_named_before_any_is_changed():
    layer = gpurnn.Dense(3, 2)
    layer.params["bias"].flags.writeable = False
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"Dense\.load_state_dict: the parameter bias is read-only"):
        layer.load_state_dict(gpurnn.Dense(3, 2, rng=1).state_dict())
    np.testing.assert_equal(layer.state_dict(), before)


def test_values_may_be_the_layers_own_parameters():
    layer = gpurnn.RNN(3, 3, rng=0)
    before, own = layer.state_dict(), dict(layer.params)
    own["weight_ih_l0"], own["weight_hh_l0"] = own["weight_hh_l0"], own["weight_ih_l0"]
    layer.load_state_dict(own)
    np.testing.assert_array_equal(layer.params["weight_ih_l0"], before["weight_hh_l0"])
    np.testing.assert_array_equal(layer.params["weight_hh_l0"], before["weight_ih_l0"])


def test_a_forecaster_takes_all_of_a_state_or_nothing():
    model, other = forecaster(0), forecaster(1)
    before = model.state_dict()
    for name, value in (("residuals", [[1.0]]), ("mean", np.zeros(2)), ("output.bias", np.zeros(7, "f4"))):
        with pytest.raises((TypeError, ValueError), match=rf"load_state_dict: state\['{name}'\] "):
            model.load_state_dict({**other.state_dict(), name: value})
        np.testing.assert_equal(model.state_dict(), before)


def test_a_file_of_another_layer_is_rejected_by_its_path(tmp_path):
    gpurnn.Dense(3, 2).save(tmp_path / "m")
    for layer in (
        gpurnn.Dense(2, 2),
        gpurnn.Dense(3, 2, False),
        gpurnn.Dense(3, 2, dtype="float64"),
        gpurnn.LSTM(3, 2),
    ):
        before = layer.state_dict()
        with pytest.raises(FileFormatError, match=rf"m: ({type(layer).__name__}.load_state_dict: |weight has dtype)"):
            layer.load(tmp_path / "m")
        np.testing.assert_equal(layer.state_dict(), before)


def test_a_layer_loads_the_plain_files_of_other_programs(tmp_path):
    first, second, third = (gpurnn.LSTM(2, 3, rng=seed) for seed in (1, 2, 3))
    safetensors.numpy.save_file(first.state_dict(), tmp_path / "plain")
    safetensors.numpy.save_file(first.state_dict(), tmp_path / "torch", {"format": "pt"})
    second.load(tmp_path / "plain")
    third.load(tmp_path / "torch")
    np.testing.assert_equal(second.state_dict(), first.state_dict())
    np.testing.assert_equal(third.state_dict(), first.state_dict())


# ---- Damage ----------------------------------------------------------------------------------------------------------


def damaged(rng, whole, other):
    """The bytes of a damaged file, made from two sound ones."""
    size = len(whole)
    way = rng.choice(["cut", "flip", "flips", "byte", "zeros", "noise", "delete", "insert", "splice", "append", "swap"])
    at, many = rng.randrange(size), rng.randint(1, 24)
    if way == "cut":
        return whole[:at]
    if way in ("flip", "flips"):
        data = bytearray(whole)
        for _ in range(1 if way == "flip" else rng.randint(2, 6)):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(data)
    if way == "byte":
        return whole[:at] + rng.randbytes(1) + whole[at + 1 :]
    if way == "zeros":
        return whole[:at] + bytes(many) + whole[at + many :]
    if way == "noise":
        return whole[:at] + rng.randbytes(many) + whole[at + many :]
    if way == "delete":
        return whole[:at] + whole[at + many :]
    if way == "insert":
        return whole[:at] + rng.randbytes(many) + whole[at:]
    if way == "splice":
        return whole[:at] + other[at:]
    if way == "append":
        return whole + rng.randbytes(many)
    there = rng.randrange(size)
    return whole[:at] + whole[there : there + many] + whole[at + many :]


@each_kind
def test_each_of_300_damaged_files_of_each_kind_is_rejected_within_a_second(tmp_path, kind):
    """300 cuts, flips, noise, insertions, deletions and splices of each of 23 kinds of files: 6,900 in all."""
    rng, paths = random.Random(kind.name), [tmp_path / "a", tmp_path / "b"]
    for path, seed in zip(paths, (1, 2), strict=True):
        kind.write(path, seed)
    sound, (whole, other) = [kind.read(path) for path in paths], [path.read_bytes() for path in paths]
    count = 0
    for _ in range(300):
        data = damaged(rng, whole, other)
        paths[0].write_bytes(data)
        # Some files are still sound (white space in a header, a byte of another file): they load what was written.
        if rejected(kind, paths[0], sound):
            count += 1
        else:
            assert data in (whole, other) or len(data) == len(whole)
    assert count > 270


@pytest.mark.parametrize("name", ["Dense", "LinearGaussian", "checkpoint"])
def test_every_cut_and_every_flipped_byte_is_rejected(tmp_path, name):
    """Every cut and two flips of every byte of three files: about 5,800 damaged files."""
    kind, path = Kind(name), tmp_path / "a"
    kind.write(path, 1)
    whole = path.read_bytes()
    assert len(whole) > {"Dense": 300, "LinearGaussian": 700, "checkpoint": 850}[name]
    for position in range(len(whole)):
        path.write_bytes(whole[:position])
        assert rejected(kind, path)
        for bit in (position % 8, 5):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            assert rejected(kind, path)


def test_the_content_can_be_read_without_the_arrays(tmp_path):
    path = tmp_path / "c"
    write_checkpoint(path, {"run": "abc", "a": np.zeros(1000)})
    assert _files.read_content(path, "checkpoint")["run"] == "abc"
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")  # in an array
    assert _files.read_content(path, "checkpoint")["run"] == "abc"
    with pytest.raises(FileFormatError, match="c: holds a checkpoint, expected a model"):
        _files.read_content(path, "model")
    gpurnn.Dense(1, 1).save(path)
    assert _files.read_content(path) is None
    path.unlink()
    path.mkdir()
    with pytest.raises(FileFormatError, match="c: is a directory"):
        _files.read_content(path, "model")


def test_damage_to_the_mark_of_a_layers_file_does_not_switch_its_checksum_off(tmp_path):
    path, kind = tmp_path / "m", Kind("Dense")
    kind.write(path, 1)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    at = whole.index(b'"gpurnn"') + 1
    for position in range(at, at + 6):
        data = whole.copy()
        data[position] ^= 1
        path.write_bytes(data)
        assert rejected(kind, path)


# ---- Foreign and hostile files ---------------------------------------------------------------------------------------


def container(header, data=b""):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + data


def tensor(dtype="F32", shape="[2]", offsets="[0,8]", name="weight"):
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


ZEROS = bytes(8)
HOSTILE = {
    "empty": b"",
    "one byte": b"x",
    "seven bytes": bytes(7),
    "zeros": bytes(100),
    "text": b"just some text that is long enough to look like something",
    "pickle": pickle.dumps({"weight": np.zeros(2)}),
    "old zip": b"PK\x03\x04" + bytes(range(256)) * 4,
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "largest header": struct.pack("<Q", 2**64 - 1) + b"{}",
    "header past the end": struct.pack("<Q", 1000) + b"{}",
    "no header": container(""),
    "empty header": container("{}"),
    "blank header": container(" " * 1000),
    "a list": container("[]"),
    "a number": container("12"),
    "no UTF-8": container(b'{"\xff":1}'),
    "deep lists": container("[" * 100_000),
    "deep dicts": container('{"a":' * 100_000),
    "deep tensor": container('{"weight":{"dtype":"F32","shape":' + "[" * 100_000),
    "deep ignored": container(
        '{"weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":' + "[" * 100_000 + "]" * 100_000 + "}}", ZEROS
    ),
    "deep metadata": container('{"__metadata__":' + '{"a":' * 100_000 + "1" + "}" * 100_001),
    "metadata of numbers": container('{"__metadata__":{"gpurnn":1}}'),
    "metadata a list": container('{"__metadata__":[]}'),
    "metadata in a tensor": container(
        '{"weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"__metadata__":[1,2]}}', ZEROS
    ),
    "the same name twice": container("{" + tensor() + "," + tensor(offsets="[8,16]") + "}", bytes(16)),
    "overlapping": container("{" + tensor() + "," + tensor(offsets="[4,12]", name="bias") + "}", bytes(12)),
    "the same bytes": container("{" + tensor() + "," + tensor(name="bias") + "}", ZEROS),
    "a hole": container("{" + tensor(offsets="[8,16]") + "}", bytes(16)),
    "too much data": container("{" + tensor() + "}", bytes(16)),
    "too little data": container("{" + tensor() + "}", bytes(4)),
    "offsets backwards": container("{" + tensor(offsets="[8,0]") + "}", ZEROS),
    "negative offset": container("{" + tensor(offsets="[-8,0]") + "}", ZEROS),
    "negative shape": container("{" + tensor(shape="[-2]") + "}", ZEROS),
    "shape of NaN": container("{" + tensor(shape="[NaN]") + "}", ZEROS),
    "shape of floats": container("{" + tensor(shape="[2.0]") + "}", ZEROS),
    "huge shape": container("{" + tensor(shape="[4294967296,4294967296]") + "}", ZEROS),
    "huge shape of no size": container("{" + tensor(shape="[18446744073709551615,0,3]", offsets="[0,0]") + "}"),
    "many axes": container("{" + tensor(shape="[" + "1," * 100 + "2]") + "}", ZEROS),
    "100,000 axes": container("{" + tensor(shape="[" + "1," * 100_000 + "2]") + "}", ZEROS),
    "shape too small": container("{" + tensor(shape="[1]") + "}", ZEROS),
    "bfloat16": container("{" + tensor(dtype="BF16", shape="[4]") + "}", ZEROS),
    "float8": container("{" + tensor(dtype="F8_E4M3", shape="[8]") + "}", ZEROS),
    "float4": container("{" + tensor(dtype="F4", shape="[16]") + "}", ZEROS),
    "unknown dtype": container("{" + tensor(dtype="Q7") + "}", ZEROS),
    "no dtype": container('{"weight":{"shape":[2],"data_offsets":[0,8]}}', ZEROS),
    "foreign tensors": safetensors.numpy.save({"w": np.zeros(3)}),
    "a mark without contents": safetensors.numpy.save({"w": np.zeros(3)}, {"gpurnn": ""}),
    "a mark that is no JSON": safetensors.numpy.save(
        {"w": np.zeros(3)}, {"gpurnn": '{"sha256": "' + "0" * 64 + '", x'}
    ),
    "a mark of a version before": safetensors.numpy.save({"w": np.zeros(3)}, {"gpurnn model, version 1": "{}"}),
    "surrogates": container('{"__metadata__":{"\\ud800":"x"}}'),
    "many tensors": safetensors.numpy.save({str(i): np.zeros(0, np.int8) for i in range(5_000)}),
}

READERS = {
    "Layer.load": lambda path: gpurnn.LSTM(3, 4).load(path),
    "load": load,
    "Model.from_file": Model.from_file,
    "LanguageModel.from_file": gpurnn.LanguageModel.from_file,
    "LinearGaussian.from_file": gpurnn.LinearGaussian.from_file,
    "read_checkpoint": read_checkpoint,
    "read_content": lambda path: _files.read_content(path, "model"),
}
each_reader = pytest.mark.parametrize("reader", READERS.values(), ids=READERS)


@each_reader
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_rejected_with_work_and_memory_in_proportion_to_their_size(tmp_path, reader, name):
    path = tmp_path / "m"
    path.write_bytes(HOSTILE[name])

    def rejected():
        with pytest.raises(FileFormatError, match=re.escape(f"{path}: ")) as caught:
            reader(path)
        return caught

    with work_in_proportion(path):
        rejected()
    tracemalloc.start()
    try:
        caught, (_, most) = rejected(), tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A tensor without numbers takes 60 bytes in a file, and several Python objects in memory.
    assert most < (20 if name == "many tensors" else 10) * len(HOSTILE[name]) + 500_000
    assert len(str(caught.value)) < 2000


@posix
@each_reader
@pytest.mark.parametrize("kind", ["directory", "pipe", "socket", "device", "endless device", "terminal"])
def test_what_is_no_file_is_rejected_and_not_waited_for(tmp_path, reader, kind):
    path, sock = tmp_path / "m", None
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        sock = socket.socket(socket.AF_UNIX)
        here = os.getcwd()
        os.chdir(tmp_path)
        try:
            sock.bind("m")  # a whole path may be too long
        finally:
            os.chdir(here)
    else:
        path.symlink_to({"device": "/dev/null", "endless device": "/dev/zero", "terminal": "/dev/ptmx"}[kind])
    what = {"directory": "a directory", "pipe": "a pipe", "socket": "a socket"}.get(kind, "a device")
    with pytest.raises(FileFormatError, match=re.escape(f"{path}: is {what}, expected a file")):
        reader(path)
    if sock is not None:
        sock.close()


@posix
def test_a_pipe_that_takes_the_files_place_is_not_waited_for(tmp_path, monkeypatch):
    path, regular = tmp_path / "m", os.stat(__file__)
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *_: regular)
    with pytest.raises(FileFormatError, match="m: is a pipe"):
        load(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "path is None, expected a str or a path-like object"),
        (3, "path is an int, expected a str or a path-like object"),
        (io.BytesIO(), "path is a _io.BytesIO, expected a str or a path-like object"),
        (b"m", r"path is a bytes, expected a str .*; decode it with os.fsdecode\(path\)"),
        ("", "path is '', expected the path of a file"),
        ("a\0b", r"path is 'a\\x00b', expected the path of a file"),
        ("\ud800", r"path is '\\ud800', expected the path of a file"),
    ],
)
def test_what_is_no_path_is_named(path, message):
    forecaster, filter_ = gpurnn.Forecaster(3, 4), gpurnn.LinearGaussian(*[np.ones((1, 1))] * 4)
    calls = {
        "Dense.save": gpurnn.Dense(2, 3).save,
        "Dense.load": gpurnn.Dense(2, 3).load,
        "Forecaster.save": forecaster.save,
        "Forecaster.from_file": gpurnn.Forecaster.from_file,
        "LinearGaussian.save": filter_.save,
        "LinearGaussian.from_file": gpurnn.LinearGaussian.from_file,
        "load": load,
    }
    for where, call in calls.items():
        with pytest.raises((TypeError, ValueError), match=f"^{where}: {message}"):
            call(path)


@each_reader
def test_a_file_that_is_not_there_or_may_not_be_read_is_an_os_error(tmp_path, monkeypatch, reader):
    with pytest.raises(FileNotFoundError):
        reader(tmp_path / "none")
    gpurnn.Dense(2, 3).save(tmp_path / "m")
    with pytest.raises(NotADirectoryError):
        reader(tmp_path / "m" / "m")

    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError):
        reader(tmp_path / "m")


@each_reader
def test_large_files_of_other_programs_are_rejected_by_their_first_bytes(tmp_path, reader):
    """Files of 100 GB, which take no space on the disk."""
    for name, start in (("zeros", b""), ("zip", b"PK\x03\x04\x14\x00\x08\x08")):
        path = tmp_path / name
        with open(path, "wb") as file:
            file.write(start)
            file.truncate(10**11)
        with pytest.raises(FileFormatError, match="not a safetensors file"):
            reader(path)
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("data", b"x" * 1000)
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        reader(tmp_path / "archive")


# ---- Configurations that do not fit ----------------------------------------------------------------------------------


def forge(path, name, change, **tensors):
    """Write a sound file with the tensors of a small model and another configuration."""
    model = MODELS[name](1)
    config = model.config() if isinstance(model, Model) else {}
    change = change if callable(change) else {**config, **change}.copy
    content = {"model": type(model).__name__, "config": change() if change.__name__ == "copy" else change(config)}
    _files.write_tensors(path, "forge", "model", content, {**model.state_dict(), **tensors})


def deep():
    """A list nested so deeply that a file can hold it, but a message cannot show it."""
    value = 1
    for _ in range(400):
        value = [value]
    return value


FORGED = [
    ("SequenceClassifier", {"hidden_size": 4000}),
    ("SequenceClassifier", {"hidden_size": 10**12}),
    ("SequenceClassifier", {"hidden_size": 10**400}),
    ("SequenceClassifier", {"hidden_size": -1}),
    ("SequenceClassifier", {"hidden_size": 0}),
    ("SequenceClassifier", {"hidden_size": 3.0}),
    ("SequenceClassifier", {"hidden_size": True}),
    ("SequenceClassifier", {"hidden_size": None}),
    ("SequenceClassifier", {"hidden_size": "3"}),
    ("SequenceClassifier", {"hidden_size": float("nan")}),
    ("SequenceClassifier", {"num_layers": 10**6}),
    ("SequenceClassifier", {"num_layers": 10**30}),
    ("SequenceClassifier", {"num_layers": 2}),
    ("SequenceClassifier", {"input_size": 10**7}),
    ("SequenceClassifier", {"num_embeddings": 10**9}),
    ("SequenceClassifier", {"dropout": float("nan")}),
    ("SequenceClassifier", {"dropout": 2}),
    ("SequenceClassifier", {"dropout": "x" * 1000}),
    ("SequenceClassifier", {"dtype": "float16"}),
    ("SequenceClassifier", {"dtype": "float64"}),
    ("SequenceClassifier", {"dtype": deep()}),
    ("SequenceClassifier", {"cell": "lstm"}),
    ("SequenceClassifier", {"cell": ["gru"]}),
    ("SequenceClassifier", {"pooling": {}}),
    ("SequenceClassifier", {"rng": 1}),
    ("SequenceClassifier", {"no_such_option": 1}),
    ("SequenceClassifier", lambda config: [config]),
    ("SequenceClassifier", lambda config: None),
    ("SequenceClassifier", lambda config: {}),
    ("SequenceClassifier", lambda config: deep()),
    ("SequenceTagger", {"outputs": 10**8}),
    ("SequenceTagger", {"bidirectional": False}),
    ("SequenceGenerator", {"hidden_size": 10**6}),
    ("EncoderDecoder", {"encoder_layers": 10**9}),
    ("EncoderDecoder", {"source_symbols": 10**9}),
    ("EncoderDecoder", {"begin": -1}),
    ("Translator", {"source_vocabulary": None}),
    ("Translator", {"source_vocabulary": {"kind": "word"}}),
    ("Translator", {"source_vocabulary": {"kind": "word", "symbols": 3}}),
    ("Translator", {"source_vocabulary": {"kind": "word", "symbols": [["a"]]}}),
    ("LanguageModel of words", {"vocabulary": {"kind": "word", "symbols": [1, 2, 3]}}),
    ("LanguageModel of words", {"vocabulary": {"kind": ["word"], "symbols": ["a"]}}),
    ("LanguageModel of words", {"vocabulary": "text"}),
    ("LanguageModel of words", {"vocabulary": {"kind": "word", "symbols": []}}),
    ("LanguageModel of characters", {"vocabulary": {"kind": "character", "symbols": ["ab"]}}),
    ("Forecaster", {"features": 10**7}),
    ("Forecaster", {"window": 0}),
    ("LinearGaussian", {"F": 1}),
    ("StructuralModel", {"components": []}),
    ("StructuralModel", {"components": [{"component": "wave"}]}),
    ("StructuralModel", {"components": [{"component": "level"}, {"component": "ar", "order": 10**9}]}),
    ("StructuralModel", {"dtype": "float16"}),
    ("LinearGaussian", lambda config: ["F"]),
]


@pytest.mark.parametrize(("name", "change"), FORGED, ids=[f"{i}-{name}" for i, (name, _) in enumerate(FORGED)])
def test_a_configuration_that_does_not_fit_the_tensors_is_rejected_with_little_work(tmp_path, name, change):
    path = tmp_path / "m"
    forge(path, name, change)

    def rejected():
        with pytest.raises(FileFormatError, match=re.escape(f"{path}: its contents do not make a ")):
            load(path)

    with work_in_proportion(path):
        rejected()
    tracemalloc.start()
    try:
        rejected()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10 * path.stat().st_size + 500_000


@pytest.mark.parametrize("content", [None, [], {}, {"model": "Dense"}, {"model": ["x"], "config": {}}, {"model": 3}, 7])
def test_a_file_that_names_no_model_is_rejected(tmp_path, content):
    _files.write_tensors(tmp_path / "m", "forge", "model", content, {})
    with pytest.raises(FileFormatError, match=r"m: (damaged: it does not name its model|holds a )"):
        load(tmp_path / "m")


def test_a_model_whose_class_is_not_defined_is_named(tmp_path):
    _files.write_tensors(tmp_path / "m", "forge", "model", {"model": "MyModel", "config": {}}, {})
    with pytest.raises(FileFormatError, match="m: holds a MyModel, which is not defined; import the module"):
        load(tmp_path / "m")


def test_a_process_that_has_loaded_no_model_reads_them_all(tmp_path):
    """The modules of gpurnn.models are loaded on first use, and a file names a class in one of them."""
    gpurnn.SequenceTagger(3, 4, 2).save(tmp_path / "SequenceTagger")
    gpurnn.LinearGaussian(*[np.eye(1)] * 4).save(tmp_path / "LinearGaussian")
    for path in sorted(tmp_path.iterdir()):
        code = f"from gpurnn.models import load; print(type(load({str(path)!r})).__name__)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert run.stdout.strip() == path.name


def defined(name, base, module, **members):
    """A class as a caller's module would define it."""
    return type(name, (base,), {"__module__": module, **members})


@pytest.fixture
def forget(monkeypatch):
    """A function that removes a class from the known ones, as if another process had defined it."""
    return lambda name: monkeypatch.delitem(model_files._KINDS, name)


def of_class(kind):
    return kind(3, 4)


def test_a_class_of_the_same_name_does_not_take_the_place_of_gpurnns(tmp_path):
    of_class(gpurnn.Forecaster).save(tmp_path / "m")
    mine = defined("Forecaster", gpurnn.Forecaster, "__main__")
    of_class(mine).save(tmp_path / "mine")
    assert type(load(tmp_path / "m")) is type(gpurnn.Forecaster.from_file(tmp_path / "m")) is gpurnn.Forecaster
    assert type(load(tmp_path / "mine")) is type(mine.from_file(tmp_path / "mine")) is mine
    with pytest.raises(FileFormatError, match=r"m: holds a Forecaster, expected a __main__.Forecaster"):
        mine.from_file(tmp_path / "m")
    kalman = defined("LinearGaussian", gpurnn.LinearGaussian, "__main__")
    for kind, name in ((gpurnn.LinearGaussian, "k"), (kalman, "kalman")):
        kind(*[np.eye(1)] * 4).save(tmp_path / name)
        assert type(load(tmp_path / name)) is type(kind.from_file(tmp_path / name)) is kind


def test_a_class_of_the_same_name_does_not_change_the_options_that_a_message_lists():
    defined("LanguageModel", gpurnn.LanguageModel, "__main__", __init__=lambda self, *, colour: None)
    with pytest.raises(TypeError, match=r"LanguageModel: colour is not an option, expected one of activation, bidirec"):
        gpurnn.LanguageModel(CharVocabulary(["a", "b"]), 3, 4, colour=3)


def test_classes_of_one_name_are_told_apart_by_their_modules(tmp_path, forget):
    one, other = (defined("Net", gpurnn.Forecaster, module) for module in ("one", "other"))
    for kind in (one, other):
        of_class(kind).save(tmp_path / kind.__module__)
    for kind in (one, other):
        assert type(load(tmp_path / kind.__module__)) is type(kind.from_file(tmp_path / kind.__module__)) is kind
        # The class's module had another name when the file was written.
        of_class(defined("Net", gpurnn.Forecaster, "gone")).save(tmp_path / "gone")
        forget("gone.Net")
        assert type(kind.from_file(tmp_path / "gone")) is kind
    with pytest.raises(FileFormatError, match=r"gone: holds a gone.Net, which is not defined; import the module"):
        load(tmp_path / "gone")


def test_a_class_that_was_defined_anew_still_reads_its_files(tmp_path):
    first = defined("Again", gpurnn.Forecaster, "notebook")
    of_class(first).save(tmp_path / "m")
    second = defined("Again", gpurnn.Forecaster, "notebook")
    assert type(first.from_file(tmp_path / "m")) is first
    assert type(load(tmp_path / "m")) is type(second.from_file(tmp_path / "m")) is second


def test_a_file_of_a_script_is_read_where_the_script_is_imported(tmp_path, forget):
    of_class(defined("Lonely", gpurnn.Forecaster, "__main__")).save(tmp_path / "m")
    forget("__main__.Lonely")
    imported = defined("Lonely", gpurnn.Forecaster, "script")
    assert type(load(tmp_path / "m")) is imported


def test_a_kalman_filter_of_arrays_that_are_no_model_is_rejected(tmp_path):
    arrays = linear_gaussian(0).state_dict()
    for change in ({"Q": -np.eye(2)}, {"F": np.full((2, 2), np.nan)}, {"H": np.zeros((1, 3))}, {"x": np.eye(2)}):
        content = {"model": "LinearGaussian", "config": {}}
        _files.write_tensors(tmp_path / "m", "forge", "model", content, {**arrays, **change})
        with pytest.raises(FileFormatError, match="m: its contents do not make a LinearGaussian"):
            load(tmp_path / "m")


@pytest.mark.parametrize("content", [None, 3, [1], {"<array>": "none"}, {"a": {"<array>": []}}, {"<tuple>": 3}])
def test_a_checkpoint_that_names_no_arrays_of_its_own_is_rejected(tmp_path, content):
    _files.write_tensors(tmp_path / "c", "forge", "checkpoint", content, {"w": np.zeros(2)})
    with pytest.raises(CheckpointError, match="c: damaged"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "LinearGaussian"])
def test_nothing_is_initialised_that_a_file_overwrites(tmp_path, monkeypatch, name):
    MODELS[name](1).save(tmp_path / "m")
    expected = Kind(name).read(tmp_path / "m")

    class NoNumbers(np.random.Generator):
        def __getattribute__(self, attribute):
            raise AssertionError("random numbers are drawn")

    monkeypatch.setattr(np.random, "default_rng", lambda *_: NoNumbers(np.random.PCG64(0)))
    monkeypatch.setattr(np.linalg, "qr", None)
    assert Kind(name).read(tmp_path / "m") == expected


def test_layers_are_initialised_again_once_a_file_is_read_or_rejected(tmp_path):
    expected = gpurnn.Dense(3, 2).state_dict()
    forge(tmp_path / "m", "SequenceClassifier", {"hidden_size": 4000})
    with pytest.raises(FileFormatError):
        load(tmp_path / "m")
    np.testing.assert_equal(gpurnn.Dense(3, 2).state_dict(), expected)


# ---- Several at once -------------------------------------------------------------------------------------------------


def _save_many(path, seed, count):
    model = MODELS["LanguageModel of words"](seed)
    for _ in range(count):
        model.save(path)


@posix
def test_two_processes_and_two_threads_save_a_model_while_two_threads_load_it(tmp_path):
    """None of at least 200 saves fails, and each load gives a model that one of them wrote."""
    path, kind, failed, over, loads = tmp_path / "m", Kind("LanguageModel of words"), [], threading.Event(), []
    sound = []
    for seed in range(4):
        kind.write(path, seed)
        sound.append(kind.read(path))

    def guarded(task, *arguments):
        try:
            task(*arguments)
        except BaseException as error:
            failed.append(error)

    def reads():
        while not over.is_set():
            loads.append(kind.read(path) in sound)

    readers = [threading.Thread(target=guarded, args=(reads,)) for _ in range(2)]
    writers = [threading.Thread(target=guarded, args=(_save_many, path, seed, 50)) for seed in (0, 1)]
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_save_many, args=(path, seed, 50)) for seed in (2, 3)]
    for task in [*others, *readers, *writers]:
        task.start()
    for task in [*others, *writers]:
        task.join()
    over.set()
    for task in readers:
        task.join()
    assert [other.exitcode for other in others] == [0, 0]
    assert failed == []
    assert len(loads) > 20
    assert all(loads)
    assert os.listdir(tmp_path) == ["m"]
