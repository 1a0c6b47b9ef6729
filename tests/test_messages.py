"""The advice in messages about arrays fits the argument, names it as the caller does, and is valid Python."""

from __future__ import annotations

import re

import numpy as np
import pytest

import gpurnn
from gpurnn import losses

T, B, I, H = 4, 3, 2, 5
X = np.random.default_rng(0).standard_normal((T, B, I))


def message(call, error=TypeError) -> str:
    with pytest.raises(error) as rejection:
        call()
    return str(rejection.value)


def advised(text: str) -> list[str]:
    """The Python expressions in the advice at the end of a message."""
    advice = re.search(r"; .*?(?:cast (?:it )?with|convert it with|and pass|pass|take) (.*)$", text)
    parts = re.split(r",? (?:and|or|for|if) (?:.* pass )?", advice[1]) if advice else []
    return [part for part in parts if re.search(r"[.(=\[]", part)]


def followed(text: str, **names: object) -> object:
    """The value of the first expression of the advice, for arguments with these names."""
    return eval(advised(text)[0], {"numpy": np, **names})


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "longdouble", "float32", "object"])
def test_a_cast_is_to_the_dtype_of_the_layer(dtype):
    x, layer = np.zeros((T, B, I), dtype), gpurnn.GRU(I, H, dtype="float64")
    text = message(lambda: layer(x))
    assert "GRU: x has dtype" in text
    assert followed(text, x=x).dtype == np.float64
    layer(followed(text, x=x))


LAYERS = {
    "Dense": lambda dtype: gpurnn.Dense(I, H, dtype=dtype),
    "LayerNorm": lambda dtype: gpurnn.LayerNorm(I, dtype=dtype),
    "LSTM": lambda dtype: gpurnn.LSTM(I, H, dtype=dtype),
    "Sequential": lambda dtype: gpurnn.Sequential(gpurnn.LayerNorm(I, dtype=dtype), gpurnn.GRU(I, H, dtype=dtype)),
    "MultiHeadAttention": lambda dtype: gpurnn.MultiHeadAttention(I, 2, dtype=dtype),
    "TransformerBlock": lambda dtype: gpurnn.TransformerBlock(I, 2, dtype=dtype),
    "StateSpace": lambda dtype: gpurnn.StateSpace(I, H, I, dtype=dtype),
    "DiagonalStateSpace": lambda dtype: gpurnn.DiagonalStateSpace(I, H, I, dtype=dtype),
    "Decoder": lambda dtype: gpurnn.layers.Decoder(gpurnn.GRU(I, H, dtype=dtype)),
    "SequenceRegressor": lambda dtype: gpurnn.SequenceRegressor(I, H, 1, dtype=dtype),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("dtype", "other"), [("float32", "float64"), ("float64", "float32"), ("float64", "int64")])
def test_what_a_layer_is_given_is_to_be_cast_and_not_its_parameters(kind, dtype, other):
    layer, x = LAYERS[kind](dtype), X.astype(other)
    text = message(lambda: layer(x))
    layer(followed(text, x=x, query=x, inputs=x))


def test_what_a_function_is_given_is_to_be_cast_to_the_dtype_of_its_weights():
    weights = [np.ones((H, I), "f4"), np.ones((H, H), "f4")]
    for call in (
        lambda x: gpurnn.dense(x, weights[0]),
        lambda x: gpurnn.rnn(x, *weights),
        lambda x: gpurnn.layer_norm(x, np.ones(I, "f4")),
    ):
        call(followed(message(lambda call=call: call(X)), x=X))


def test_what_is_loaded_is_to_be_cast_under_the_name_that_the_caller_has():
    layer = gpurnn.Sequential(gpurnn.Dense(I, H), gpurnn.GRU(H, H))
    state = {name: value.astype("float64") for name, value in layer.state_dict().items()}
    for name in state:
        state[name] = followed(message(lambda: layer.load_state_dict(state)), state=state)
    layer.load_state_dict(state)
    state["0.weight"] = state["0.weight"].tolist()
    assert followed(message(lambda: layer.load_state_dict(state)), state=state).shape == (H, I)


def test_a_file_of_another_dtype_asks_for_a_layer_of_it(tmp_path):
    gpurnn.Dense(I, H, dtype="float64").save(tmp_path / "m")
    text = message(lambda: gpurnn.Dense(I, H).load(tmp_path / "m"), gpurnn.FileFormatError)
    assert text.endswith("m: weight has dtype float64, expected float32 as the layer has; make it with dtype='float64'")
    gpurnn.Dense(I, H, dtype="float64").load(tmp_path / "m")


def test_a_state_of_an_optimizer_of_another_dtype():
    params = {"0.w": np.ones(3)}
    optimizer = gpurnn.Adam()
    optimizer.step(params, params)
    state = optimizer.state_dict()
    other = {"0.w": np.ones(3, "float32")}
    assert followed(message(lambda: optimizer.step(other, other)), params=other).dtype == np.float64
    for value, dtype in ((np.ones(3, int), "float32"), ([1.0] * 3, "float64")):
        state["mean.0.w"] = value
        assert followed(message(lambda: optimizer.load_state_dict(state)), state=state).dtype == dtype


def test_a_cast_of_both_precisions_is_to_that_of_the_other_argument():
    x, state = X.astype("float32"), np.zeros((1, B, H))
    text = message(lambda: gpurnn.GRU(I, H)(x, state))
    assert text.endswith("cast with state.astype('float32')")
    text = message(lambda: gpurnn.LSTM(I, H)(x, (state.astype("float32"), state)))
    assert text.endswith("cast with state[1].astype('float32')")


@pytest.mark.parametrize(("dtype", "advice"), [("complex128", "; take x.real if"), ("<U3", ""), ("M8[s]", "")])
def test_no_cast_is_advised_that_makes_no_sense(dtype, advice):
    text = message(lambda: gpurnn.GRU(I, H)(np.zeros((T, B, I), dtype)))
    assert "astype" not in text
    assert advice in text


def test_labels_that_are_no_integers():
    text = message(lambda: losses.cross_entropy(X, np.zeros((T, B))))
    assert "cross_entropy: labels has dtype float64, expected an integer dtype" in text
    assert followed(text, labels=np.zeros((T, B))).dtype == np.int64


@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_masked_observations_are_missing_ones(dtype):
    one = np.ones((1, 1))
    model = gpurnn.LinearGaussian(one, one, one, one, P0=one)
    y = np.ma.masked_array([[1], [99], [2]], mask=[[0], [1], [0]], dtype=dtype)
    text = message(lambda: model(y))
    assert "LinearGaussian: y is a numpy.MaskedArray" in text
    assert "its mask would be lost" in text
    right = model(np.array([[1.0], [np.nan], [2.0]]))
    assert model(followed(text, y=y)) == right


def test_masked_labels_are_left_out_by_a_mask():
    labels = np.ma.masked_array(np.zeros((T, B), int), mask=np.eye(T, B))
    text = message(lambda: losses.cross_entropy(X, labels))
    assert text.endswith("pass labels.filled(0), and mask=~numpy.ma.getmaskarray(labels)")
    losses.cross_entropy(X, labels.filled(0), mask=~np.ma.getmaskarray(labels))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: gpurnn.GRU(I, H, dtype="float64")(x),
        lambda x: gpurnn.dense(x, np.zeros((H, I))),
        lambda x: gpurnn.layer_norm(x),
        lambda x: gpurnn.gradients.global_norm({"x": x}),
    ],
)
def test_a_mask_is_never_lost(call):
    text = message(lambda: call(np.ma.masked_array(X, mask=X > 0)))
    assert "its mask would be lost" in text
    assert "asarray" not in text
    assert ".filled(0)" in text


def test_masked_examples_are_rejected():
    x = np.ma.masked_array(X[:, 0], mask=X[:, 0] > 0)
    text = message(lambda: gpurnn.SequenceRegressor(I, H, 1, dtype="float64").fit([x], np.ones(1)), ValueError)
    assert "fit: X[0] has masked entries, expected numbers only; choose" in text
    np.testing.assert_array_equal(followed(text, X=[x]), x.filled(0))


class Quantity(np.ndarray):
    """An array whose numbers have a unit."""


@pytest.mark.parametrize(
    "x",
    [X[0].view(np.matrix), X[0].view(Quantity), X[0].tolist(), X[0].view(np.recarray), 3, 2.5],
    ids=["matrix", "subclass", "list", "recarray", "int", "float"],
)
def test_other_containers_of_numbers(x):
    text = message(lambda: gpurnn.layer_norm(x))
    assert type(followed(text, x=x)) is np.ndarray


@pytest.mark.parametrize(
    "x", ["text", {}, {1.0}, b"bytes", gpurnn, abs], ids=["str", "dict", "set", "bytes", "module", "function"]
)
def test_no_conversion_of_what_holds_no_numbers(x):
    assert message(lambda: gpurnn.layer_norm(x)).endswith("expected a numpy.ndarray or a cupy.ndarray")


def test_packed_sequences():
    packed = type("PackedSequence", (tuple,), {"__module__": "torch.nn.utils.rnn"})()
    text = message(lambda: gpurnn.GRU(I, H)(packed))
    assert "x, lengths = torch.nn.utils.rnn.pad_packed_sequence(x)" in text


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("scipy.sparse._csr", "x.toarray()"), ("polars.dataframe", "x.to_numpy()"), ("xarray.core", "x.to_numpy()"),
        ("pint.quantity", "x.magnitude"), ("h5py._hl.dataset", "numpy.asarray(x)"),
    ],
)  # fmt: skip
def test_arrays_of_other_libraries(module, advice):
    x = type("Other", (), {"__module__": module, "dtype": np.dtype("f8")})()
    assert message(lambda: gpurnn.layer_norm(x)).endswith(f"convert it with {advice}")


def test_a_mapped_file_is_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "x", "float64", "w+", shape=X.shape)
    mapped[...] = X
    assert type(gpurnn.layer_norm(mapped)) is np.ndarray
    assert gpurnn.layer_norm(mapped).tobytes() == gpurnn.layer_norm(X).tobytes()


def test_a_numpy_scalar_is_an_array_of_no_axes():
    logits = np.zeros(4, np.float32)
    _, pullback = losses.cross_entropy.vjp(logits, np.int8(2))
    np.testing.assert_array_equal(pullback(np.float32(2))[0], pullback(2.0)[0])


def test_an_example_alone_is_to_be_passed_as_a_list():
    model = gpurnn.SequenceRegressor(hidden_size=H, verbose=False).fit(X, X[:, 0, 0], epochs=1)
    text = message(lambda: model.predict(X[:, 0]), ValueError)
    assert text.endswith(f"X has shape {(T, I)}, expected (N, T, {I}); pass [X] if it is one example")
    assert model.predict(followed(text, X=X[:, 0])).shape == (1,)
    assert "pass" not in message(lambda: model.predict(X[0].T), ValueError)


def test_weights_in_the_layout_of_keras():
    weights = np.zeros((I, 4 * H)), np.zeros((H, 4 * H))
    text = message(lambda: gpurnn.lstm(X, *weights), ValueError)
    assert "weight_hh has shape (5, 20), expected (4*hidden_size, hidden_size)" in text
    assert "gpurnn.interop.from_keras" in text


def test_an_array_where_a_number_is_expected_is_not_printed():
    text = message(lambda: gpurnn.clip_by_global_norm({"w": X}, np.ones(100)))
    assert text.endswith("max_norm is an array of shape (100,), expected a number of at least 0")


def test_a_length_of_training_is_given_once():
    text = message(lambda: gpurnn.SequenceRegressor(I, H, 1).fit(X, X[:, 0, 0], epochs=1, steps=1))
    assert text == "SequenceRegressor.fit: epochs and steps are both given, expected at most one of the two"
