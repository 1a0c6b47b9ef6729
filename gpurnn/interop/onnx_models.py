"""Layers and models as ONNX models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .. import _checks, _dispatch, _files, layers
from ..layers.base import Layer
from . import onnx_cells
from .onnx_graph import Graph, Value, xp
from .onnx_layers import (
    applied,
    decoder_states,
    decoder_step,
    dense,
    embedding,
    multi_head,
    param,
    product,
    recurrent_layers,
    softmax_where,
    unknown,
)  # fmt: skip
from .onnx_recurrent import Lengths, merged_state, recurrent
from .weights import installed


def to_onnx(layer: Layer, path: str | os.PathLike[str] | None = None) -> Any:
    """Convert a layer or a model of sequences to an ONNX model that runs in ONNX Runtime.

    Each recurrent layer of a stack is one operator, RNN, LSTM or GRU. If these lack its cell or one of its options, it
    is a Scan, whose body is a step of the cell. There is no dropout.

    Parameters
    ----------
    layer : Layer
        Any layer of `gpurnn.layers`, or a Sequential of them; or a SequenceClassifier, SequenceTagger,
        SequenceRegressor, LanguageModel, EncoderDecoder, Translator, SequenceGenerator or Forecaster.
    path : path, optional
        Where to write the model too.

    Returns
    -------
    model : onnx.ModelProto
        A model of opset 17, for batches of any size and any number of steps. Its inputs are ``x``, shaped as in a call,
        int64 for tokens; for a layer that knows lengths ``lengths`` (B,) int32; and the initial states of layers and
        language models. Its outputs are ``y`` and the final states. States have the names and shapes of a call: ``h``,
        with an LSTM also ``c``, (num_layers*D, B, hidden_size); for a complex state-space layer ``h_real`` and
        ``h_imag``. A final state's name ends with ``_n``. In a `Sequential` the names begin with the layer's number:
        ``1.h``.

    Notes
    -----
    A sequence model starts from a zero state, and computes what `predict` does: from features in the units of the
    examples, in the time-major order of a call, and for a regressor to values in the units of the targets. For a
    classifier or tagger ``y`` are the logits, followed by ``probabilities``; the model's metadata have its ``classes``
    as JSON, if `fit` has seen labels. Those of a language model have the ``symbols`` of its vocabulary.

    A `MultiHeadAttention` has the inputs ``query``, ``keys``, ``values`` and ``lengths``, the number of keys of each
    row, and the outputs ``y`` and ``weights``. A `Decoder` has the inputs ``x``, ``memory``, ``lengths``, the initial
    state, and with input feeding ``fed`` (B, output_size), the output of the step before, zero at first. So one file
    runs whole targets as well as single steps.

    An `EncoderDecoder` or `Translator` becomes its greedy decoding. Besides ``x``, the source tokens, and ``lengths``
    it takes ``max_length`` (B,) int64, the largest number of tokens of each target: `predict` takes twice the length
    of the source and ten more. ``y`` (T, B) int64 are the tokens, 0 past the end symbol, and ``y_lengths`` (B,) their
    number, including that symbol. A translator's metadata have ``source_symbols`` and ``target_symbols``: symbol n is
    token n + 3.

    A `SequenceGenerator` takes ``x`` (B, input_size) and the number ``steps``, and gives what a call returns. A
    `Forecaster` takes ``x`` (T, B, features + past_features), series of float64 in their own units without gaps;
    ``steps``; and its covariates ``known`` (T + steps, B, known_features) and ``static`` (B, static_features). ``y``
    (steps, B, features) is what `predict` returns.

    Raises
    ------
    ValueError
        It has no form in ONNX: the message names what. That is a layer of another library, a pooling alone, or a
        `Forecaster` with a trend or seasons, which are fitted to each series before a forecast. Or a model has no
        parameters because it was not fitted.
    TypeError
        ``layer`` is not a layer.
    ImportError
        onnx is not installed.

    Examples
    --------
    >>> import gpurnn
    >>> from gpurnn import interop
    >>> interop.to_onnx(gpurnn.LSTM(3, 4, num_layers=2), "lstm.onnx")  # doctest: +SKIP
    """
    where = "to_onnx"
    if not isinstance(layer, Layer):
        raise TypeError(f"{where}: layer is {_checks.described(layer)}, expected a Layer")
    onnx = installed(where, "onnx", "onnx")
    dtypes = layer._dtypes()
    graph = Graph(where, onnx, dtypes[0] if dtypes else "float32")
    _write(graph, layer)
    model = graph.model()
    if path is not None:
        _checks.path(where, "path", path)
        _files.write_atomically(path, model.SerializeToString())
    return model


def _write(graph: Graph, layer: Layer) -> None:
    from ..models import EncoderDecoder, Forecaster, LanguageModel, SequenceGenerator, Translator
    from ..models.sequence import SequenceModel

    if isinstance(layer, Forecaster):
        _forecaster(graph, layer)
    elif isinstance(layer, SequenceModel):
        _sequence_model(graph, layer)
    elif isinstance(layer, LanguageModel):
        _language_model(graph, layer)
    elif isinstance(layer, EncoderDecoder):
        _encoder_decoder(graph, layer)
        if isinstance(layer, Translator):
            for name in ("source", "target"):
                symbols = getattr(layer, f"{name}_vocabulary").symbols
                graph.metadata[f"{name}_symbols"] = json.dumps(list(symbols))
    elif isinstance(layer, SequenceGenerator):
        _generator(graph, layer)
    elif isinstance(layer, layers.Decoder):
        _decoder(graph, layer)
    elif isinstance(layer, layers.MultiHeadAttention):
        _attention(graph, layer)
    else:
        _alone(graph, layer)


def _lengths(graph: Graph, x: Value, axis: int = 0) -> Lengths:
    """The input with the lengths of x, whose steps lie along an axis."""
    return Lengths(graph.input("lengths", np.int32, ["B"]), x, axis)


def _outputs(graph: Graph, y: Value, shape: list[Any], states: list[Any]) -> None:
    for value, name, of_value in [(y, "y", shape), *states]:
        graph.output(value, name, of_value)


# ---- Layers ----------------------------------------------------------------------------------------------------------


def _alone(graph: Graph, layer: Layer) -> None:
    """Convert a layer, or layers one after another."""
    parts = list(_parts(layer))
    stateful = [part for part in parts if part.stateful]
    first = parts[0] if parts else None
    tokens = isinstance(first, layers.Embedding)
    width, out = layer._widths(None)
    batch_first = bool(stateful and stateful[0].batch_first)
    steps: list[Any] = ["B", "T"] if batch_first else ["T", "B"]
    x = graph.input("x", np.int64 if tokens else graph.dtype, steps if tokens else [*steps, width])
    lengths = None
    if stateful:
        lengths = _lengths(graph, x, int(batch_first))
        if first is not None and not first.stateful:
            x = lengths.zero_past(x, tokens=tokens, batch_first=batch_first)
    y, states = applied(graph, layer, x, lengths, "")
    _outputs(graph, y, [*steps, out], states)


def _parts(layer: Layer) -> Iterator[Layer]:
    """The layers that a `Sequential` runs, including nested ones; any other layer is its own part."""
    for part in layer.layers if isinstance(layer, layers.Sequential) else ():
        yield from _parts(part)
    if not isinstance(layer, layers.Sequential):
        yield layer


def _attention(graph: Graph, layer: layers.MultiHeadAttention) -> None:
    sizes = {"query": layer.features, "keys": layer.key_size, "values": layer.value_size}
    sources = []
    for name, size in sizes.items():
        steps = "T" if name == "query" else "S"
        source = graph.input(name, graph.dtype, ["B", steps, size] if layer.batch_first else [steps, "B", size])
        sources.append(source.transposed(1, 0, 2) if layer.batch_first else source)
    lengths = _lengths(graph, sources[1])
    query, *others = sources
    y, weights = multi_head(graph, layer, [query, *map(lengths.zero_past, others)], lengths, "")
    y = y.transposed(1, 0, 2) if layer.batch_first else y
    shape = ["B", "T", layer.features] if layer.batch_first else ["T", "B", layer.features]
    _outputs(graph, y, shape, [(weights, "weights", ["B", layer.num_heads, "T", "S"])])


def _decoder(graph: Graph, layer: layers.Decoder) -> None:
    """Convert a decoder of any number of steps."""
    stack = layer.recurrent
    x = graph.input("x", graph.dtype, ["T", "B", layer.input_size])
    memory = lengths = fed = None
    if layer.attention is not None:
        memory = graph.input("memory", graph.dtype, ["S", "B", layer.memory_size])
        lengths = _lengths(graph, memory)
    of_state = [stack.num_layers, "B", stack.hidden_size]
    state = [graph.input(name, graph.dtype, of_state) for name in stack.cell.state_names]
    if layer.input_feeding:
        fed = graph.input("fed", graph.dtype, ["B", layer.output_size])
    decode = decoder_step(graph, layer, memory, lengths, "")

    def step(states: list[Value], rows: list[Value]) -> tuple[list[Value], list[Value]]:
        output, weights, new = decode(rows[0], states)
        return new, [output] if weights is None else [output, weights]

    finals, (y, *weights) = graph.scan(step, decoder_states(graph, layer, state, fed), [x])
    others: list[Any] = [(value, "weights", ["T", "B", "S"]) for value in weights]
    count = stack.cell.states
    for place, name in enumerate(stack.cell.state_names):
        of_layers = finals[place : stack.num_layers * count : count]
        others.append((graph.concat([h.unsqueezed(0) for h in of_layers], 0), f"{name}_n", of_state))
    others += [(finals[-1], "fed_n", ["B", layer.output_size])] if layer.input_feeding else []
    _outputs(graph, y, ["T", "B", layer.output_size], others)


# ---- Models ----------------------------------------------------------------------------------------------------------


def _sequence_model(graph: Graph, model: Any) -> None:
    learnt: Mapping[str, Any] = getattr(model, "_learnt", {})
    tokens, outputs = model.embedding is not None, model.output.out_features
    shape: list[Any] = ["T", "B"] if tokens else ["T", "B", model.recurrent.input_size]
    x = graph.input("x", np.int64 if tokens else graph.dtype, shape)
    lengths = _lengths(graph, x)
    if tokens:
        x = embedding(graph, model.embedding, lengths.zero_past(x, tokens=True), "embedding.")
    elif "input_mean" in learnt:
        x = _scaled(graph, x.cast(np.float64), *_scale(graph, "input_", learnt["input_mean"], learnt["input_std"]))
    y, dtype = _head(graph, model, x, lengths), np.dtype(graph.dtype)
    if "mean" in learnt:
        dtype = np.dtype(learnt.get("target_dtype", dtype))
        mean, std = _scale(graph, "target_", learnt["mean"], learnt["std"])
        y = (y.cast(np.float64) * std + mean).cast(dtype)
    shape = ["T", "B", outputs] if model.pooling is None else ["B", outputs]
    graph.output(y, "y", shape, dtype)
    if model._loss == "cross_entropy":
        graph.output(graph.node("Softmax", y, axis=-1), "probabilities", shape)
        if "labels" in learnt:
            graph.metadata["classes"] = json.dumps(learnt["labels"].saved(graph.where))


def _scaled(graph: Graph, x: Value, mean: Value, std: Value) -> Value:
    """(x - mean) / std of float64, in which large values keep their digits, in the dtype of the parameters."""
    return ((x - mean) / std).cast(graph.dtype)


def _scale(graph: Graph, name: str, mean: Any, std: Any) -> tuple[Value, Value]:
    """A mean and a standard deviation as constants of float64."""
    values = (("mean", mean), ("std", std))
    first, second = (graph.constant(f"{name}{of}", np.asarray(value, np.float64)) for of, value in values)
    return first, second


def _require_known(graph: Graph, layer: Any, prefix: str) -> None:
    """Reject layers of a cell that is not gpurnn's own."""
    if not onnx_cells.is_known(layer.cell):
        raise unknown(graph, layer, prefix)


def _head(graph: Graph, model: Any, x: Value, lengths: Lengths) -> Value:
    """The output of a sequence model's layers after the embedding."""
    layer, pooling = model.recurrent, model.pooling
    _require_known(graph, layer, "recurrent.")
    y, finals = recurrent(graph, layer, x, lengths, "recurrent.")
    if model._pools_states:
        y = merged_state(graph, layer, finals[0][-1])
    elif pooling is not None:
        y = _pooled(graph, pooling, y, lengths)
    return dense(graph, model.output, y, "output.")


def _pooled(graph: Graph, pooling: Any, y: Value, lengths: Lengths) -> Value:
    if pooling.name == "last":
        return _last(graph, pooling, y, lengths)
    if pooling.name == "mean":
        count = xp.maximum(lengths.long, graph.whole(1)).cast(graph.dtype)
        return y.summed(0) / count.unsqueezed(1)
    keys = product(y, *(param(graph, "pooling.", pooling, name) for name in ("weight", "bias")))
    scores = xp.tanh(keys) @ param(graph, "pooling.", pooling, "query").unsqueezed(1)
    return (softmax_where(lengths.exists_by_feature, scores, 0) * y).summed(0)


def _last(graph: Graph, pooling: Any, y: Value, lengths: Lengths) -> Value:
    """The forward direction at the last step, and the backward direction at the first; y is zero past a length."""
    first = graph.scalar(0)
    if pooling.reverse:
        return graph.node("Gather", y, first)
    forward, *backward = y.blocks(2) if pooling.bidirectional else [y]
    step = xp.maximum(lengths.long - graph.whole(1), graph.whole(0)).unsqueezed(1)
    last = graph.node("GatherND", forward.transposed(1, 0, 2), step, batch_dims=1)
    return graph.concat([last, *(graph.node("Gather", b, first) for b in backward)], 1)


def _language_model(graph: Graph, model: Any) -> None:
    x = graph.input("x", np.int64, ["T", "B"])
    lengths = _lengths(graph, x)
    x = embedding(graph, model.embedding, lengths.zero_past(x, tokens=True), "embedding.")
    _require_known(graph, model.recurrent, "recurrent.")
    y, states = recurrent_layers(graph, model.recurrent, x, lengths, "recurrent.", "")
    weight = ("embedding.", model.embedding) if model.tied else ("output.", model.output)
    y = product(y, param(graph, *weight, "weight"), param(graph, "output.", model.output, "bias"))
    _outputs(graph, y, ["T", "B", model.output.out_features], states)
    graph.metadata["symbols"] = json.dumps(list(model.vocabulary.symbols))


def _generator(graph: Graph, model: Any) -> None:
    x = graph.input("x", graph.dtype, ["B", model.input_size])
    steps = graph.input("steps", np.int64, [])
    stack = model.recurrent
    weights = onnx_cells.weights_of(graph, stack, "_l0", "recurrent.")
    bias = graph.constant("recurrent.bias_ih_l0", _dispatch.to_numpy(stack.params["bias_ih_l0"]))
    start = product(x, param(graph, "input.", model.input, "weight"), bias)

    def step(states: list[Value], rows: list[Value]) -> tuple[list[Value], list[Value]]:
        y = dense(graph, model.output, states[0], "output.")
        return onnx_cells.step(stack, onnx_cells.arguments(stack, y, weights), states, weights), [y]

    h = onnx_cells.activated(model.input.activation, start)
    _, (y,) = graph.scan(step, [h], [graph.counted(steps)])
    graph.output(y, "y", ["T", "B", model.output.out_features])


def _encoder_decoder(graph: Graph, model: Any) -> None:
    """Greedy decoding."""
    source = graph.input("x", np.int64, ["S", "B"])
    lengths = _lengths(graph, source)
    limits = graph.input("max_length", np.int64, ["B"])
    x = embedding(graph, model.source, lengths.zero_past(source, tokens=True), "source.")
    memory, finals = recurrent(graph, model.encoder, x, lengths, "encoder.")
    state = [graph.concat(of_layers, 0) for of_layers in finals]
    if model.bridge is not None:
        L, H = model.num_layers, model.encoder.hidden_size
        width = model.encoder.num_layers * model.encoder.num_directions * H
        rows = [graph.node("Reshape", s.transposed(1, 0, 2), graph.whole(0, width)) for s in state]
        made = dense(graph, model.bridge, graph.concat(rows, 1), "bridge.").blocks(len(state))
        state = [graph.node("Reshape", s, graph.whole(0, L, H)).transposed(1, 0, 2) for s in made]
    batch = lengths.value.size(0)
    fed = graph.zeros(batch, model.decoder.output_size) if model.input_feeding else None
    looks = memory if model._looks else None
    decode = decoder_step(graph, model.decoder, looks, lengths if model._looks else None, "decoder.")

    def step(number: Value, states: list[Value]) -> tuple[Value, list[Value]]:
        last, going, counts, tokens, *own = states
        output, _, own = decode(embedding(graph, model.target, last, "target."), own)
        likeliest = graph.node("ArgMax", dense(graph, model.output, output, "output."), axis=1, keepdims=0)
        token = xp.where(going, likeliest, graph.scalar(0))
        counts = counts + going.cast(np.int64)
        further = graph.node(
            "And", counts < limits, graph.node("Not", graph.node("Equal", token, graph.scalar(model.end)))
        )
        going = graph.node("And", going, further)
        left = graph.node("ReduceMax", going.cast(np.int64), keepdims=0).cast(np.bool_)
        return left, [token, going, counts, graph.concat([tokens, token.unsqueezed(0)], 0), *own]

    def full(value: Value, *sizes: int | Value) -> Value:
        return graph.node("Expand", value, graph.shape(*sizes))

    counts = full(graph.scalar(0), batch)
    starts = [
        full(graph.scalar(model.begin), batch), full(graph.constant("true", np.array(True)), batch), counts,
        full(graph.scalar(0), 0, batch), *decoder_states(graph, model.decoder, state, fed),
    ]  # fmt: skip
    most = graph.node("ReduceMax", limits, keepdims=0)
    _, _, counts, tokens, *_ = graph.loop(most, starts, step)
    graph.output(tokens, "y", ["T", "B"], np.int64)
    graph.output(counts, "y_lengths", ["B"], np.int64)


def _forecaster(graph: Graph, model: Any) -> None:
    """The values that follow series, each fed back."""
    for name, fitted in {"trend": model.trend, "season_length": model._transforms.season_length}.items():
        if fitted:
            raise ValueError(
                f"{graph.where}: {name} is {getattr(model, name)!r}, expected none: it is fitted to each series before "
                "a forecast, which a graph cannot do"
            )
    F, lags, end = model.features + model.past_features, model._transforms.differences, np.iinfo(np.int64).max
    series = graph.input("x", np.float64, ["T", "B", F])
    known = static = None
    if model.known_features:
        known = graph.input("known", np.float64, ["T_and_steps", "B", model.known_features])
    if model.static_features:
        static = graph.input("static", np.float64, ["B", model.static_features]).unsqueezed(0)
    steps = graph.input("steps", np.int64, [])
    covariate_scale = _scale(graph, "covariate_", model.covariate_mean, model.covariate_std)

    def differences(x: Value) -> list[Value]:
        """The values, and those after each difference."""
        found = [x]
        for lag in lags:
            x = x.part(lag, end, 0) - x.part(0, -lag, 0)
            found.append(x)
        return found

    def covariates(count: Value, length: Value) -> list[Value]:
        """Those of the steps after each step of a window of this length, whose last step is number count - 1."""
        found = []
        if known is not None:
            stop = (count + graph.scalar(1)).unsqueezed(0)
            found.append(known.part(0, stop, 0).part((graph.scalar(0) - length).unsqueezed(0), end, 0))
        if static is not None:
            found.append(graph.node("Expand", static, graph.shape(length, 1, 1)))
        if not found:
            return []
        return [_scaled(graph, graph.concat(found, 2), *covariate_scale)]

    values = _with_logarithms(graph, model, series, "Log")
    if model.mean.ndim == 1:
        mean, std = _scale(graph, "", model.mean, model.std)
    else:  # after a fit to several series each has its own scale
        mean, std = _scale_of(graph, differences(values)[-1])

    def step(number: Value, states: list[Value]) -> tuple[None, list[Value]]:
        (values,) = states
        stages = differences(values.part(-(model.window + model._transforms.lost), end, 0))
        # A loop inside this one needs the number of axes, which ONNX Runtime does not infer for the state of a loop.
        window = graph.node("Reshape", stages.pop(), graph.whole(0, 0, F))
        length = window.size(0)
        inputs = [_scaled(graph, window, mean, std), *covariates(values.size(0), length)]
        batch = graph.node("Expand", length.cast(np.int32), graph.shape(window.size(1)))
        y = _head(graph, model, graph.concat(inputs, 2), Lengths(batch, window)).cast(np.float64) * std + mean
        for stage, lag in zip(reversed(stages), reversed(lags), strict=True):
            y = y + graph.node("Gather", stage, graph.scalar(-lag))
        return None, [graph.concat([values, y.unsqueezed(0)], 0)]

    (values,) = graph.loop(steps, [values], step)
    found = _with_logarithms(graph, model, values.part(series.size(0).unsqueezed(0), end, 0), "Exp")
    graph.output(found.part(0, model.features, 2), "y", ["steps", "B", model.features], np.float64)


def _with_logarithms(graph: Graph, model: Any, x: Value, kind: str) -> Value:
    """x (T, B, F) with the logarithms, or the exponentials, of the values to forecast, if the model takes them."""
    if not model.log:
        return x
    own = graph.node(kind, x.part(0, model.features, 2))
    return graph.concat([own, x.part(model.features, np.iinfo(np.int64).max, 2)], 2)


def _scale_of(graph: Graph, x: Value) -> tuple[Value, Value]:
    """The mean and the standard deviation (B, F) over the steps of x (T, B, F); the latter is 1 for a constant."""
    mean = graph.node("ReduceMean", x, axes=[0], keepdims=0)
    centred = x - mean
    variance = graph.node("ReduceMean", centred * centred, axes=[0], keepdims=0)
    # A deviation that may be the rounding error of the mean is that of a constant.
    bound = x.size(0).cast(np.float64) * graph.constant("epsilon", np.array(np.finfo(np.float64).eps)) * mean
    one = graph.constant("one", np.array(1.0))
    return mean, xp.where(variance > bound * bound, graph.node("Sqrt", variance), one)
