"""Weights of PyTorch, Keras and ONNX: they are read as the matching layer, and written back bit for bit."""

from __future__ import annotations

import os
import pickle
import warnings

import numpy as np
import pytest

import gpurnn
from gpurnn import interop

os.environ.setdefault("KERAS_BACKEND", "torch")

# Keras converts tensors to NumPy arrays in a way that NumPy warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

RNG = np.random.default_rng(0)
T, B, I, H = 5, 3, 2, 4
LAYERS = {"rnn": gpurnn.RNN, "lstm": gpurnn.LSTM, "gru": gpurnn.GRU}
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def filled(layer):
    """Fill the layer with random parameters, biases too."""
    for p in layer.params.values():
        p[...] = RNG.normal(scale=0.5, size=p.shape)
    return layer


def same_weights(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def normal(*shape, dtype="float32"):
    return RNG.normal(size=shape).astype(dtype)


# ---- PyTorch


def torch_modules():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    return [
        nn.RNN(I, H, nonlinearity="relu"), nn.RNN(I, H, 2, bias=False, bidirectional=True),
        nn.LSTM(I, H, 2, batch_first=True, dropout=0.5), nn.LSTM(I, H, bidirectional=True, dtype=torch.float64),
        nn.GRU(I, H, 3), nn.GRU(I, H, bias=False, batch_first=True, bidirectional=True),
    ]  # fmt: skip


@pytest.mark.parametrize("index", range(6))
def test_a_module_of_pytorch_becomes_a_layer_and_comes_back(index):
    torch = pytest.importorskip("torch")
    module = torch_modules()[index].eval()
    layer = interop.from_torch(module)
    back = interop.to_torch(layer)
    assert repr(back) == repr(module)
    same_weights(
        {n: t.numpy() for n, t in back.state_dict().items()}, {n: t.numpy() for n, t in module.state_dict().items()}
    )
    same_weights(interop.from_torch(back).params, layer.params)
    x = torch.randn(T, B, I, dtype=next(module.parameters()).dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], module(x)[0])


def test_what_belongs_to_a_recurrent_network_of_pytorch_comes_too():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    for module, x in (
        (nn.Linear(I, H), torch.randn(T, I)), (nn.Linear(I, H, bias=False), torch.randn(T, I)),
        (nn.Embedding(7, H, padding_idx=1), torch.tensor([[1, 6]])), (nn.LayerNorm(H, eps=1e-3), torch.randn(T, H)),
    ):  # fmt: skip
        layer = interop.from_torch(module)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), module(x))
        assert repr(interop.to_torch(layer)) == repr(module)
    for cell in (nn.RNNCell(I, H, nonlinearity="relu"), nn.LSTMCell(I, H), nn.GRUCell(I, H, bias=False)):
        x = torch.randn(B, I)
        expected = cell(x)
        with torch.no_grad():
            torch.testing.assert_close(
                interop.from_torch(cell).step(x)[0], expected[0] if isinstance(expected, tuple) else expected.detach()
            )


def test_parts_of_a_model_and_files_of_it(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(5, I), "encoder": torch.nn.GRU(I, H), "head": torch.nn.Linear(H, 2)}
    )
    torch.save(model.state_dict(), tmp_path / "model.pt")
    for source in (model, model.state_dict(), tmp_path / "model.pt", str(tmp_path / "model.pt")):
        gru, head = interop.from_torch(source, "encoder."), interop.from_torch(source, prefix="head.")
        same_weights(gru.params, {n: t.numpy() for n, t in model["encoder"].state_dict().items()})
        assert gru.config()["reset_after"]
        assert isinstance(head, gpurnn.Dense)
    with pytest.raises(ValueError, match="weight is of a Linear without bias or of an Embedding"):
        interop.from_torch(model.state_dict(), "embed.")
    with pytest.raises(ValueError, match="say which by prefix"):
        interop.from_torch(model.state_dict())
    with pytest.raises(KeyError, match=r"no weight begins with 'decoder\.'"):
        interop.from_torch(model.state_dict(), "decoder.")
    with pytest.raises(TypeError, match="source is a ModuleDict"):
        interop.from_torch(model)
    with pytest.raises(TypeError, match="weight_ih_l0 is not an array of numbers: Cannot copy out of meta tensor"):
        interop.from_torch(torch.nn.LSTM(I, H, device="meta"))


def test_a_file_of_gpurnns_says_the_form_of_its_gru(tmp_path):
    for reset_after in (False, True):
        layer = filled(gpurnn.GRU(I, H, reset_after=reset_after))
        layer.save(tmp_path / "gru.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = interop.from_torch(tmp_path / "gru.safetensors")
        assert loaded.config() == layer.config()
        same_weights(loaded.params, layer.params)


def test_both_gates_of_the_gru_go_to_pytorch_and_the_reset_before_does_not():
    torch = pytest.importorskip("torch")
    layer, x = filled(gpurnn.GRU(I, H, 2, reset_after=True)), normal(T, B, I)
    module = interop.to_torch(layer)
    with torch.no_grad():
        torch.testing.assert_close(module(torch.from_numpy(x))[0], torch.from_numpy(layer(x)[0]))
    with pytest.raises(ValueError, match=r"to_torch: reset_after is False, expected True: PyTorch's has no other form"):
        interop.to_torch(gpurnn.GRU(I, H))
    for other in (
        gpurnn.RNN(I, H, leak=0.5),
        gpurnn.LSTM(I, I, residual=True),
        gpurnn.RNN(I, H, activation="identity"),
    ):
        with pytest.raises(ValueError, match=r"to_torch: (leak|residual|activation) is "):
            interop.to_torch(other)


def test_nothing_in_a_file_of_pytorch_is_run(tmp_path):
    torch = pytest.importorskip("torch")
    path, witness = tmp_path / "bad.pt", tmp_path / "witness"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(witness),)

    torch.save({"weight_ih_l0": Evil()}, path)
    with pytest.raises(gpurnn.FileFormatError, match=r"bad\.pt: no file of weights that PyTorch reads"):
        interop.from_torch(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(gpurnn.FileFormatError):
        interop.from_torch(path)
    assert not witness.exists()
    with pytest.raises(FileNotFoundError):
        interop.from_torch(tmp_path / "none.pt")


def test_damaged_files_of_pytorch_are_rejected(tmp_path):
    torch = pytest.importorskip("torch")
    good, path = tmp_path / "good.pt", tmp_path / "damaged.pt"
    torch.save(torch.nn.GRU(I, H).state_dict(), good)
    data, outcomes = good.read_bytes(), set()
    for _ in range(60):
        damaged = bytearray(data)
        if RNG.random() < 0.3:
            damaged = damaged[: RNG.integers(len(data))]
        for _ in range(int(RNG.integers(1, 8))):
            if damaged:
                damaged[RNG.integers(len(damaged))] = RNG.integers(256)
        path.write_bytes(damaged)
        try:
            layer = interop.from_torch(path)
            outcomes.add(type(layer))
        except (gpurnn.FileFormatError, ValueError, TypeError, KeyError) as error:
            outcomes.add(type(error))
    assert gpurnn.FileFormatError in outcomes


@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_that_does_not_fit_is_named(kind):
    layer = LAYERS[kind](I, H, 2, bidirectional=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = interop.from_torch(layer.state_dict())
    same_weights(loaded.params, layer.params)
    for name in ("weight_hh_l1_reverse", "bias_ih_l1"):
        wrong = {**layer.state_dict(), name: np.zeros((7, 3), np.float32)}
        with pytest.raises(ValueError, match=rf"from_torch: {name} has shape \(7, 3\), expected that of"):
            interop.from_torch(wrong)
        del wrong[name]
        with pytest.raises(ValueError, match=rf"from_torch: {name} is missing"):
            interop.from_torch(wrong)
    with pytest.raises(ValueError, match=r"weight_hh_l9 is not a parameter|weight_ih_l2 is missing"):
        interop.from_torch({**layer.state_dict(), "weight_hh_l9": np.zeros((4, 4), np.float32)})
    with pytest.raises(TypeError, match="the weights have the dtypes"):
        interop.from_torch({**layer.state_dict(), "bias_ih_l0": np.zeros(GATES[kind] * H)})
    with pytest.raises(TypeError, match="bias_ih_l0 is a list of 2, expected an array"):
        interop.from_torch({**layer.state_dict(), "bias_ih_l0": [1, 2]})


# ---- Keras


def keras_layers(keras):
    layers = keras.layers
    return [
        layers.SimpleRNN(H, activation="relu", return_sequences=True), layers.LSTM(H, return_sequences=True),
        layers.LSTM(H, use_bias=False, return_sequences=True), layers.GRU(H, return_sequences=True),
        layers.GRU(H, reset_after=False, return_sequences=True), layers.GRU(H, use_bias=False, return_sequences=True),
        layers.Bidirectional(layers.GRU(H, return_sequences=True)),
        layers.Bidirectional(layers.LSTM(H, return_sequences=True)),
        layers.Bidirectional(layers.SimpleRNN(H, activation="leaky_relu", return_sequences=True), merge_mode="ave"),
        layers.LSTM(H, activation="elu", recurrent_activation="hard_sigmoid", return_sequences=True),
    ]  # fmt: skip


@pytest.mark.parametrize("index", range(10))
def test_a_layer_of_keras_and_its_file_become_a_layer_and_come_back(index, tmp_path):
    keras = pytest.importorskip("keras")
    layer = keras_layers(keras)[index]
    model = keras.Sequential([keras.Input((T, I)), layer, keras.layers.Dense(2)])
    layer.set_weights([normal(*w.shape) for w in layer.weights])
    x = normal(B, T, I)
    expected = keras.ops.convert_to_numpy(layer(x))
    ours = interop.from_keras(layer)
    np.testing.assert_allclose(ours(x)[0], expected, rtol=2e-5, atol=1e-6)
    same_weights(interop.from_keras(model).params, ours.params)
    back = interop.to_keras(ours)
    assert type(back) is type(layer)
    for one, other in zip(back.weights, layer.weights, strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    model.save_weights(tmp_path / "model.weights.h5")
    form = ("activation", "gate_activation", "output_activation", "merge", "reset_after")
    options = {n: v for n, v in ours.config().items() if n in form} if index in (0, 5, 8, 9) else {}
    loaded = interop.from_keras(tmp_path / "model.weights.h5", **options)
    assert loaded.config() == ours.config()
    same_weights(loaded.params, ours.params)
    if index == 5:
        with pytest.warns(
            UserWarning, match=r"reset_after=True, Keras's default, which is taken, or reset_after=False"
        ):
            interop.from_keras(tmp_path / "model.weights.h5")


@pytest.mark.parametrize("merge", [None, "concat", "ave"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", ["SimpleRNN", "GRU"])
def test_masked_steps_are_those_of_keras(kind, zero, merge, tmp_path):
    keras = pytest.importorskip("keras")
    layer = getattr(keras.layers, kind)(H, return_sequences=True, zero_output_for_mask=zero)
    layer = layer if merge is None else keras.layers.Bidirectional(layer, merge_mode=merge)
    model = keras.Sequential([keras.Input((T, I)), layer])
    layer.set_weights([normal(*w.shape) for w in layer.weights])
    x, mask = normal(B, T, I), RNG.random((B, T)) < 0.5
    mask[:, 1] = [True, False, True][:B]
    expected = keras.ops.convert_to_numpy(layer(x, mask=keras.ops.convert_to_tensor(mask)))
    ours = interop.from_keras(layer)
    back = interop.to_keras(ours)
    model.save_weights(tmp_path / "model.weights.h5")
    of_file = {} if merge is None else {"merge": "average" if merge == "ave" else merge}
    loaded = interop.from_keras(
        tmp_path / "model.weights.h5", **of_file, **({"zero_masked_output": zero} if merge is None else {})
    )
    assert interop.from_keras(back).config() == loaded.config() == ours.config()
    for found in (ours(x, mask=mask)[0], keras.ops.convert_to_numpy(back(x, mask=keras.ops.convert_to_tensor(mask)))):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_stacks_go_to_keras_and_models_have_names_of_layers():
    keras = pytest.importorskip("keras")
    layer, x = filled(gpurnn.LSTM(I, H, 2, batch_first=True, bidirectional=True)), normal(B, T, I)
    model = interop.to_keras(layer)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), layer(x)[0], rtol=2e-5, atol=1e-6)
    with pytest.raises(ValueError, match="source has the recurrent layers"):
        interop.from_keras(model)
    name = model.layers[1].name
    assert interop.from_keras(model, name).input_size == 2 * H
    with pytest.raises(KeyError, match="no recurrent layer 'other'"):
        interop.from_keras(model, "other")
    with pytest.raises(ValueError, match="holds no recurrent layer"):
        interop.from_keras(keras.layers.Dense(3))
    with pytest.raises(ValueError, match="to_keras: update is 'candidate'"):
        interop.to_keras(gpurnn.GRU(I, H))
    with pytest.raises(ValueError, match=r"to_keras: leak is 0\.5"):
        interop.to_keras(gpurnn.RNN(I, H, leak=0.5))
    with pytest.raises(NotImplementedError, match="merge_mode is None"):
        interop.from_keras(keras.layers.Bidirectional(keras.layers.GRU(H), merge_mode=None))
    with pytest.raises(ValueError, match=r"to_keras: gate_activation is 'hard_sigmoid', expected one of"):
        interop.to_keras(gpurnn.LSTM(I, H, gate_activation="hard_sigmoid"))  # ONNX uses another slope
    with pytest.raises(NotImplementedError, match="go_backwards"):
        interop.from_keras(keras.layers.GRU(H, go_backwards=True))


def h5_file(path, weights, **more):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/gru/cell/vars")
        for number, array in enumerate(weights):
            group.create_dataset(str(number), data=array)
        for key, link in more.items():
            file["layers/gru/cell/vars"][key] = link


def test_files_of_keras_that_reach_outside_of_themselves_are_rejected(tmp_path):
    h5py = pytest.importorskip("h5py")
    path, weights = tmp_path / "w.weights.h5", [normal(I, 3 * H), normal(H, 3 * H)]
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = normal(2, 3 * H)
    with h5py.File(path, "w") as file:
        file["layers/gru/cell/vars/0"], file["layers/gru/cell/vars/1"] = weights
        file["layers/other"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/secret")
    with pytest.raises(gpurnn.FileFormatError, match="layers/other is a link"):
        interop.from_keras(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/gru/cell/vars/0", shape=(10**6, 10**6), dtype="f4", chunks=(100, 100))
        file["layers/gru/cell/vars/1"] = weights[1]
    with pytest.raises(gpurnn.FileFormatError, match="more bytes than the file"):
        interop.from_keras(path)
    with h5py.File(path, "w") as file:
        file["layers/gru/cell/vars/0"] = weights[0]
    with pytest.raises(gpurnn.FileFormatError, match="has 1 arrays"):
        interop.from_keras(path)
    path.write_bytes(b"no file of weights")
    with pytest.raises(gpurnn.FileFormatError, match="no HDF5 file"):
        interop.from_keras(path)
    h5_file(path, [weights[0], normal(H, 5)])
    with pytest.raises(ValueError, match="expected 1, 3 or 4 times as many columns as rows"):
        interop.from_keras(path)


# ---- ONNX


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}]
)
def test_a_layer_runs_in_onnx_runtime_and_comes_back(kind, options, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    form = {"reset_after": bool(options), "update": "candidate" if options else "state"} if kind == "gru" else {}
    layer = filled(LAYERS[kind](I, H, **options, **form))
    model = interop.to_onnx(layer, tmp_path / "layer.onnx")
    session = runtime.InferenceSession(str(tmp_path / "layer.onnx"))
    rows = layer.num_layers * layer.num_directions
    x = normal(B, T, I) if layer.batch_first else normal(T, B, I)
    lengths, h, c = np.array([5, 2, 4], np.int32), normal(rows, B, H), normal(rows, B, H)
    state = (h, c) if kind == "lstm" else h
    feeds = {"x": x, "lengths": lengths, "h": h} | ({"c": c} if kind == "lstm" else {})
    y, *final = session.run(None, feeds)
    expected, of_state = layer(x, state, lengths=lengths)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(final, of_state if kind == "lstm" else (of_state,), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    if layer.num_layers == 1 and form.get("update") != "candidate":
        loaded = interop.from_onnx(tmp_path / "layer.onnx")
        same_weights(loaded.params, layer.params)
        again = interop.to_onnx(loaded)
        assert [i.raw_data for i in again.graph.initializer] == [i.raw_data for i in model.graph.initializer]
    else:
        with (
            pytest.raises(ValueError, match="expected one, or its name")
            if layer.num_layers > 1
            else warnings.catch_warnings()
        ):
            interop.from_onnx(model)
        assert interop.from_onnx(model, "layer_0").input_size == I


def test_models_that_onnx_does_not_have_or_gpurnn_does_not_are_rejected(tmp_path):
    onnx = pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=r"source has the recurrent operators \[\], expected one"):
        interop.from_onnx(interop.to_onnx(gpurnn.RNN(I, H, leak=0.5)))  # a loop
    model = interop.to_onnx(gpurnn.GRU(I, H))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08no model")
    with pytest.raises(gpurnn.FileFormatError, match=r"model\.onnx: no ONNX model"):
        interop.from_onnx(path)
    with pytest.raises(KeyError, match="no recurrent operator 'other'"):
        interop.from_onnx(model, "other")
    for tensor in model.graph.initializer:
        if tensor.name == "W_0":
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ValueError, match="W_0 is in a file of its own"):
        interop.from_onnx(model.SerializeToString())


def test_loading_weights_that_say_no_form_into_a_gru_warns_once_with_both():
    weights = {str(n): p for n, p in gpurnn.GRU(I, H).state_dict().items()}
    layer = gpurnn.GRU(I, H)
    with pytest.warns(UserWarning, match="reset_after=True, update='state'") as caught:
        layer.load_state_dict(weights)
    assert len(caught) == 1
    assert "reset_after=False, update='candidate'" in str(caught[0].message)


@pytest.mark.parametrize("peephole", [False, True])
def test_coupled_gates_come_back_from_onnx(peephole):
    """ONNX stores rows for the forget gate and does not read them."""
    pytest.importorskip("onnx")
    layer = gpurnn.LSTM(3, 4, coupled=True, peephole=peephole, bidirectional=True, rng=0)
    again = interop.from_onnx(interop.to_onnx(layer))
    assert again.cell == layer.cell
    assert again.params.keys() == layer.params.keys()
    for name, array in layer.params.items():
        np.testing.assert_array_equal(again.params[name], array)
