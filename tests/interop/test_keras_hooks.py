"""Keras's own tests of its recurrent layers, and its training, with gpurnn computing LSTM and GRU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpurnn import interop

os.environ.setdefault("KERAS_BACKEND", "torch")

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
def test_keras_own_tests_pass(backend, tmp_path):
    keras = importlib.util.find_spec("keras")
    if keras is None or importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs keras and {backend}")
    folder = Path(keras.origin).parent / "src/layers/rnn"
    files = [str(folder / f"{name}_test.py") for name in ("lstm", "gru", "bidirectional")]
    counts = tmp_path / "computed.json"
    environment = {
        **os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path), "GPURNN_COMPUTED": str(counts),
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    options = ["-q", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider", "-p", "keras_with_gpurnn"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
    computed = json.loads(counts.read_text())
    assert min(computed.values()) >= 10, computed


@pytest.mark.parametrize(
    "arguments",
    [
        {"activation": "softsign", "go_backwards": True},
        {"use_bias": False, "return_sequences": True},
        {"activation": "gelu"},  # gpurnn does not have it
        {"dtype": "float64", "return_state": True},
    ],
)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_outputs_and_gradients_are_those_of_keras(kind, arguments):
    torch = pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras computes with another library")
    from keras.src import backend

    layer = getattr(keras.layers, kind)(4, **arguments)
    x = torch.randn(3, 5, 2, dtype=getattr(torch, arguments.get("dtype", "float32")), requires_grad=True)

    def computed():
        outputs = layer(x)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        values = [variable.value for variable in layer.trainable_weights]
        return outputs, torch.autograd.grad(sum(output.square().sum() for output in outputs), [x, *values])

    expected, before = computed(), backend.lstm
    with interop.keras_hooks():
        assert backend.lstm is not before
        found = computed()
    assert backend.lstm is before
    of_gpurnn = any("gpurnn" in name for name in graph_of(found[0][0]))
    assert of_gpurnn == (arguments.get("activation") != "gelu")
    for ours, theirs in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def graph_of(tensor):
    """Collect the names of all operations behind a tensor."""
    names, left, seen = [], [tensor.grad_fn], set()
    while left:
        function = left.pop()
        if function is not None and function not in seen:
            seen.add(function)
            names.append(function.name())
            left += [before for before, _ in function.next_functions]
    return names


def test_a_masked_sequence_is_left_to_keras():
    torch = pytest.importorskip("torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras computes with another library")
    layer, x = keras.layers.LSTM(4, return_sequences=True, zero_output_for_mask=True), torch.randn(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = layer(x, mask=mask)
    with interop.keras_hooks():
        torch.testing.assert_close(layer(x, mask=mask), expected)
