"""Damaged and hostile weight files: each is read or rejected with a documented error, in bounded memory and time."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import resource
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import gpurnn
from gpurnn import interop

os.environ.setdefault("KERAS_BACKEND", "torch")

I, H = 3, 4
DOCUMENTED = (ValueError, TypeError, KeyError, NotImplementedError, OSError)
EXTREMES = (0, 1, -1, 127, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))


@pytest.fixture
def bounded():
    """Allows one gigabyte of memory more than is in use, and ten minutes for thousands of small files."""
    for library in ("torch", "onnx", "h5py", "safetensors.numpy"):  # importing these takes more
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (own + 2**30, hard))
    faulthandler.dump_traceback_later(600, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file in which a few bytes or pieces are changed, lost, doubled or moved."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at, other = (int(rng.integers(len(damaged) + 1)) for _ in range(2))
        size, kind = int(rng.integers(1, 33)), int(rng.integers(8))
        if kind == 0:
            del damaged[at:]
        elif kind == 1:
            del damaged[at : at + size]
        elif kind == 2:
            damaged[at:at] = damaged[other : other + size]
        elif kind == 3:
            damaged[at : at + 8] = struct.pack("<q", EXTREMES[int(rng.integers(len(EXTREMES)))])
        elif kind == 4:
            damaged[at : at + size] = bytes(size)
        elif kind == 5 and at < len(damaged):
            damaged[at] ^= 1 << int(rng.integers(8))
        else:
            damaged[at : at + size] = rng.bytes(size)
    return bytes(damaged)


def outcomes(read, files) -> dict[str, int]:
    """Count each error, and none, over the files; an error that is not documented is raised."""
    found: dict[str, int] = {}
    longest = 0
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(file)
                name = "read"
            except DOCUMENTED as error:
                name = type(error).__name__
                longest = max(longest, len(str(error)))
            except MemoryError:
                name = "MemoryError"
        found[name] = found.get(name, 0) + 1
    assert longest < 5000
    assert "MemoryError" not in found
    return found


def layers():
    return [
        gpurnn.LSTM(I, H, bidirectional=True, peephole=True, clip=2.0),
        gpurnn.GRU(I, H, gate_activation=("hard_sigmoid", 0.3, 0.5), update="state"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(2))
def test_onnx_models(index, bounded, tmp_path):
    pytest.importorskip("onnx")
    rng, good = np.random.default_rng(index), interop.to_onnx(layers()[index]).SerializeToString()
    path = tmp_path / "damaged.onnx"

    def read(data):
        path.write_bytes(data)
        interop.from_onnx(path)

    found = outcomes(read, (mutated(good, rng) for _ in range(3000)))
    assert {"FileFormatError", "ValueError", "read"} <= found.keys(), found


@pytest.mark.slow
@pytest.mark.parametrize("index", range(2))
def test_onnx_models_that_are_whole_and_wrong(index, bounded):
    """Protobuf reads these files: only the meaning of a field is wrong."""
    onnx = pytest.importorskip("onnx")
    rng, good = np.random.default_rng(index), interop.to_onnx(layers()[index])

    def wrong():
        model = onnx.ModelProto.FromString(good.SerializeToString())
        node = next(n for n in model.graph.node if n.op_type in ("LSTM", "GRU"))
        for _ in range(int(rng.integers(1, 4))):
            tensor = model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]
            attribute = node.attribute[int(rng.integers(len(node.attribute)))]
            extreme, kind = EXTREMES[int(rng.integers(len(EXTREMES)))], int(rng.integers(9))
            if kind == 0 and tensor.dims:
                tensor.dims[int(rng.integers(len(tensor.dims)))] = extreme
            elif kind == 1:
                tensor.dims.append(min(abs(extreme), 2**63 - 1))
            elif kind == 2:
                tensor.data_type = int(rng.integers(30))
            elif kind == 3:
                tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
            elif kind == 4:
                attribute.type = int(rng.integers(1, 15))
            elif kind == 5:
                attribute.i, attribute.f = extreme, float(rng.choice([np.nan, np.inf, -1, 1e38]))
            elif kind == 6:
                attribute.name = str(rng.choice(["direction", "activations", "activation_alpha", "clip", "layout"]))
            elif kind == 7:
                node.input[int(rng.integers(len(node.input)))] = str(rng.choice(["", "x", "W_0", "B_0", "none"]))
            else:
                node.op_type = str(rng.choice(["RNN", "LSTM", "GRU"]))
        return model

    found = outcomes(interop.from_onnx, (wrong() for _ in range(3000)))
    assert {"ValueError", "TypeError", "read"} <= found.keys(), found


@pytest.mark.slow
def test_safetensors_files(bounded, tmp_path):
    layers()[1].save(tmp_path / "good.safetensors")
    rng, path = np.random.default_rng(0), tmp_path / "damaged.safetensors"

    def read(data):
        path.write_bytes(data)
        interop.from_torch(path)

    good = (tmp_path / "good.safetensors").read_bytes()
    assert "FileFormatError" in outcomes(read, (mutated(good, rng) for _ in range(3000)))


@pytest.mark.slow
@pytest.mark.parametrize("form", [True, False])
def test_files_of_pytorch(form, bounded, tmp_path):
    torch = pytest.importorskip("torch")
    path, rng = tmp_path / "file.pt", np.random.default_rng(0)
    torch.save(torch.nn.GRU(I, H).state_dict(), path, _use_new_zipfile_serialization=form)
    good = path.read_bytes()

    def read(data):
        path.write_bytes(data)
        interop.from_torch(path)

    found = outcomes(read, (mutated(good, rng) for _ in range(3000)))
    assert {"FileFormatError", "read"} <= found.keys(), found


@pytest.mark.slow
def test_files_of_keras(bounded, tmp_path):
    h5py = pytest.importorskip("h5py")
    path, rng = tmp_path / "file.weights.h5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for number, shape in enumerate([(I, 3 * H), (H, 3 * H), (2, 3 * H)]):
            file[f"layers/gru/cell/vars/{number}"] = rng.normal(size=shape).astype(np.float32)
    good = path.read_bytes()

    def read(data):
        path.write_bytes(data)
        interop.from_keras(path)

    found = outcomes(read, (mutated(good, rng) for _ in range(3000)))
    assert {"FileFormatError", "read"} <= found.keys(), found


def test_a_small_file_of_pytorch_may_not_stand_for_a_large_array(bounded, tmp_path):
    torch = pytest.importorskip("torch")
    path, one = tmp_path / "small.pt", torch.zeros(1)
    repeated = {"weight_ih_l0": one.expand(40_000, 100_000), "weight_hh_l0": one.expand(40_000, 10_000)}
    torch.save(repeated, path)
    with pytest.raises(gpurnn.FileFormatError, match="its weights have more bytes than the file"):
        interop.from_torch(path)
    shared, names = torch.zeros(4 * 256, 256), [f"weight_{kind}_l{n}" for n in range(500) for kind in ("ih", "hh")]
    torch.save(dict.fromkeys(names, shared), path)
    with pytest.raises(gpurnn.FileFormatError, match="its weights have more bytes than the file"):
        interop.from_torch(path)
    torch.save({"weight_ih_l0": torch.zeros(1000, 1000), "weight_hh_l0": torch.zeros(1000, 250)}, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(gpurnn.FileFormatError, match=r"is compressed, expected what torch\.save writes"):
        interop.from_torch(tmp_path / "bomb.pt")


def test_layers_that_a_file_does_not_hold_take_no_memory(bounded):
    tiny = np.zeros((1, 1), np.float32)
    weights = {f"weight_{kind}_l{n}": tiny for n in range(1, 2000) for kind in ("ih", "hh")}
    weights |= {f"weight_{kind}_l0": np.zeros((4 * 500, 500), np.float32) for kind in ("ih", "hh")}
    with pytest.raises(ValueError, match=r"from_torch: weight_ih_l1 has shape \(1, 1\)"):
        interop.from_torch(weights)


def test_groups_of_a_file_of_keras_are_read_once(bounded, tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "groups.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers")
        for _ in range(60):  # 2**60 paths lead to the last one
            group["a"] = inner = group.create_group("b")
            group = inner
        file["layers/c"] = file["layers"]
    with pytest.raises(ValueError, match="holds no recurrent layer"):
        interop.from_keras(path)
    with h5py.File(path, "w") as file:
        file["weights"] = np.zeros((1000, 3000), np.float32)
        for number in range(2000):
            file[f"layers/{number}/cell/vars/0"] = file[f"layers/{number}/cell/vars/1"] = file["weights"]
    with pytest.raises(gpurnn.FileFormatError, match="has more bytes than the file"):
        interop.from_keras(path)


def test_what_is_no_file_is_rejected_at_once(bounded, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for library, read in (("onnx", interop.from_onnx), ("h5py", interop.from_keras), ("torch", interop.from_torch)):
        pytest.importorskip(library)
        for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
            with pytest.raises(gpurnn.FileFormatError, match=r"is a (pipe|device|directory), expected a file"):
                read(path)
