"""Layers as ONNX's operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import _checks, _dispatch, layers
from ..layers.base import Layer
from ..layers.recurrent import Stacked
from . import onnx_cells
from .onnx_graph import Graph, Value, xp
from .onnx_recurrent import Lengths, recurrent

_DENSE = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid", "softmax": "Softmax"}


def applied(graph: Graph, layer: Layer, x: Value, lengths: Lengths | None, prefix: str) -> tuple[Value, list[Any]]:
    """Return the output of a layer that takes one array, and its final states.

    The initial states become inputs of the graph. The lengths are needed by layers that have a state.

    Returns
    -------
    y : Value
    states : list
        The value, the name and the shape of each final state.
    """
    states: list[Any] = []
    if isinstance(layer, layers.Sequential):
        for index, part in enumerate(layer.layers):
            x, of_part = applied(graph, part, x, lengths, f"{prefix}{index}.")
            states += of_part
        return x, states
    if lengths is not None:
        if isinstance(layer, Stacked) and onnx_cells.is_known(layer.cell):
            return recurrent_layers(graph, layer, x, lengths, prefix, prefix)
        if isinstance(layer, (layers.StateSpace, layers.DiagonalStateSpace)):
            return _state_space(graph, layer, x, lengths, prefix)
        if isinstance(layer, layers.TransformerBlock):
            return transformer_block(graph, layer, x, lengths, prefix), []
    if isinstance(layer, layers.Dense):
        return dense(graph, layer, x, prefix), []
    if isinstance(layer, layers.Embedding):
        return embedding(graph, layer, x, prefix), []
    if isinstance(layer, layers.LayerNorm):
        return layer_norm(graph, layer, x, prefix), []
    if isinstance(layer, layers.PositionalEncoding):
        return _positions(graph, x), []
    if isinstance(layer, layers.Dropout):
        return x, []
    raise unknown(graph, layer, prefix)


def unknown(graph: Graph, layer: Any, prefix: str) -> ValueError:
    """The error for a layer that has no form in ONNX."""
    named = f"layer {prefix.removesuffix('.')}" if prefix else "layer"
    return ValueError(
        f"{graph.where}: {named} is {_checks.described(layer)}, which cannot be written as ONNX, expected a layer of "
        "gpurnn.layers, a Sequential of them, or a model of sequences"
    )


def param(graph: Graph, prefix: str, layer: Any, name: str) -> Value:
    """A parameter, as a constant under its full name."""
    return graph.constant(prefix + name, _dispatch.to_numpy(layer.params[name]))


def product(x: Value, weight: Value, bias: Value | None = None) -> Value:
    """W x + b."""
    y = x @ weight.transposed(1, 0)
    return y if bias is None else y + bias


def embedding(graph: Graph, layer: layers.Embedding, tokens: Value, prefix: str) -> Value:
    """The rows of a table of embeddings."""
    return graph.node("Gather", param(graph, prefix, layer, "weight"), tokens)


def dense(graph: Graph, layer: layers.Dense, x: Value, prefix: str) -> Value:
    """The activation of W x + b."""
    bias = param(graph, prefix, layer, "bias") if layer.bias else None
    y = product(x, param(graph, prefix, layer, "weight"), bias)
    attributes: dict[str, Any] = {"axis": -1} if layer.activation == "softmax" else {}
    return y if layer.activation == "identity" else graph.node(_DENSE[layer.activation], y, **attributes)


def layer_norm(graph: Graph, layer: layers.LayerNorm, x: Value, prefix: str) -> Value:
    """Layer norm over the last axis."""
    bias = param(graph, prefix, layer, "bias") if layer.bias else None
    return x.normalised(layer.eps, param(graph, prefix, layer, "weight"), bias)


def _positions(graph: Graph, x: Value) -> Value:
    """Add sinusoidal positions; their angles are of float64, in which late ones keep their digits."""
    features, two = x.size(2), graph.scalar(2)
    steps = graph.counted(x.size(0)).cast(np.float64).unsqueezed(1)
    evens = graph.node("Range", graph.scalar(0), features, two).cast(np.float64)
    scale = graph.constant("log_10000", np.array(-math.log(10000)))
    angles = steps * graph.node("Exp", evens * (scale / features.cast(np.float64)))
    pairs = graph.concat([graph.node(kind, angles).unsqueezed(2) for kind in ("Sin", "Cos")], 2)
    p = graph.node("Reshape", pairs, graph.whole(0, -1)).part(0, features.unsqueezed(0), 1)
    return x + p.cast(graph.dtype).unsqueezed(1)


# ---- Layers with a state ---------------------------------------------------------------------------------------------


def recurrent_layers(
    graph: Graph, layer: Stacked, x: Value, lengths: Lengths, prefix: str, of_states: str
) -> tuple[Value, list[Any]]:
    """`applied` to recurrent layers; the names of the states begin with ``of_states``."""
    widths = layer.cell.state_sizes(layer.hidden_size)
    shapes = [[layer.num_layers * layer.num_directions, "B", width] for width in widths]
    names = [of_states + name for name in layer.cell.state_names]
    initial = [graph.input(name, graph.dtype, shape) for name, shape in zip(names, shapes, strict=True)]
    y, finals = recurrent(graph, layer, x, lengths, prefix, initial)
    joined = [graph.concat(of_layers, 0) for of_layers in finals]
    return y, [(value, f"{name}_n", shape) for value, name, shape in zip(joined, names, shapes, strict=True)]


def _state_space(graph: Graph, layer: Any, x: Value, lengths: Lengths, prefix: str) -> tuple[Value, list[Any]]:
    """h_t = A h_{t-1} + B x_t; a complex number is two columns, its real and its imaginary part."""
    own = {name: _dispatch.to_numpy(p) for name, p in layer.params.items()}
    A, _ = layer._transition(np, own)
    names = [prefix + name for name in (("h_real", "h_imag") if layer.complex else ("h",))]
    shape = [1, "B", layer.state_size]
    initial = [graph.input(name, graph.dtype, shape).squeezed(0) for name in names]
    x = lengths.zero_past(x)
    parts = ("_real", "_imag") if layer.complex else ("",)
    added = [product(x, param(graph, prefix, layer, f"B{part}")) for part in parts]
    # The transpose of a diagonal is itself.
    real, *imag = [graph.constant(f"{prefix}A{n}", part.T) for n, part in zip(parts, (A.real, A.imag), strict=False)]

    def step(h: list[Value], rows: list[Value]) -> tuple[list[Value], Value]:
        if layer.complex:
            moved = [real * h[0] - imag[0] * h[1], imag[0] * h[0] + real * h[1]]
        else:
            moved = [h[0] @ real if A.ndim == 2 else real * h[0]]
        new = [m + b for m, b in zip(moved, rows, strict=True)]
        return new, graph.concat(h if layer.output_state == "before" else new, -1)

    finals, read = lengths.scan(step, initial, added)
    of_output = own["C"] if not layer.complex else np.concatenate([own["C_real"], -own["C_imag"]], axis=1)
    y = product(read, graph.constant(f"{prefix}C", of_output))
    if layer.feedthrough:
        y = y + product(x, param(graph, prefix, layer, "D"))
    return y, [(h.unsqueezed(0), f"{name}_n", shape) for h, name in zip(finals, names, strict=True)]


# ---- Attention -------------------------------------------------------------------------------------------------------


def softmax_where(sees: Value | None, scores: Value, axis: int) -> Value:
    """The softmax of scores over the places that are seen, zero elsewhere; all zero if none is seen."""
    if sees is None:
        return scores.graph.node("Softmax", scores, axis=axis)
    lowest = float(np.finfo(scores.graph.dtype).min)
    weights = scores.graph.node("Softmax", xp.where(sees, scores, lowest), axis=axis)
    return xp.where(sees, weights, 0.0)


def multi_head(
    graph: Graph, layer: layers.MultiHeadAttention, sources: Sequence[Value], lengths: Lengths, prefix: str
) -> tuple[Value, Value]:
    """y (T, B, E) and the weights (B, heads, T, S) of multi-head attention.

    Parameters
    ----------
    graph : Graph
    layer : MultiHeadAttention
    sources : one or three Values
        x of self-attention, or query, keys and values, time-major; zero past the lengths, except a query of its own.
    lengths : Lengths
        Those of the keys.
    prefix : str
    """
    params, n, E = {name: _dispatch.to_numpy(p) for name, p in layer.params.items()}, layer.num_heads, layer.features
    bias = params.get("in_proj_bias")
    if len(sources) == 1:
        in_bias = None if bias is None else graph.constant(f"{prefix}in_proj_bias", bias)
        projected = product(sources[0], graph.constant(f"{prefix}in_proj_weight", params["in_proj_weight"]), in_bias)
        of_heads = projected.blocks(3)
    else:
        of_heads = []
        for place, (source, name) in enumerate(zip(sources, "qkv", strict=True)):
            rows = slice(place * E, (place + 1) * E)
            weight = (
                params[f"{name}_proj_weight"] if f"{name}_proj_weight" in params else params["in_proj_weight"][rows]
            )
            in_bias = None if bias is None else graph.constant(f"{prefix}{name}_proj_bias", bias[rows])
            of_heads.append(product(source, graph.constant(f"{prefix}{name}_proj_weight", weight), in_bias))
    q, k, v = (graph.node("Reshape", a, graph.whole(0, 0, n, E // n)).transposed(1, 2, 0, 3) for a in of_heads)
    scores = q * (1 / math.sqrt(E // n)) @ k.transposed(0, 1, 3, 2)
    sees = lengths.exists.transposed(1, 0).unsqueezed(1).unsqueezed(1)  # (B, 1, 1, S)
    if layer.causal:
        T, S = sources[0].size(0), sources[-1].size(0)
        last = graph.counted(T) + (S - T)
        later = graph.node("Greater", graph.counted(S), last.unsqueezed(1))
        sees = graph.node("And", sees, graph.node("Not", later))
    weights = softmax_where(sees, scores, -1)
    context = graph.node("Reshape", (weights @ v).transposed(2, 0, 1, 3), graph.whole(0, 0, E))
    out_bias = param(graph, prefix, layer, "out_proj.bias") if layer.bias else None
    return product(context, param(graph, prefix, layer, "out_proj.weight"), out_bias), weights


def transformer_block(graph: Graph, layer: layers.TransformerBlock, x: Value, lengths: Lengths, prefix: str) -> Value:
    """y (T, B, E), zero past the lengths."""
    x = lengths.zero_past(x)
    a = layer_norm(graph, layer.norm1, x, f"{prefix}norm1.")
    z = x + multi_head(graph, layer.self_attn, [a], lengths, f"{prefix}self_attn.")[0]
    a = layer_norm(graph, layer.norm2, z, f"{prefix}norm2.")
    a = dense(graph, layer.linear1, a, f"{prefix}linear1.")
    if layer.activation == "gelu":
        near = xp.clip(a, -30.0, 30.0)  # the share is 0 or 1 beyond
        twice = 2 * math.sqrt(2 / math.pi) * near * (1.0 + 0.044715 * (near * near))
        a = a * graph.node("Sigmoid", twice)
    return lengths.zero_past(z + dense(graph, layer.linear2, a, f"{prefix}linear2."))


# ---- The decoder -----------------------------------------------------------------------------------------------------

DecoderStep = Callable[[Value, list[Value]], tuple[Value, Value | None, list[Value]]]
"""Maps x (B, I) and the states to the output (B, O), the attention weights (B, S) or None, and the new states."""


def decoder_step(
    graph: Graph, decoder: layers.Decoder, memory: Value | None, lengths: Lengths | None, prefix: str
) -> DecoderStep:
    """A decoder's step, with the operators before the first step that prepare the memory (S, B, K).

    The states are those of `decoder_states`.
    """
    stack, kind = decoder.recurrent, decoder.attention
    weights = [onnx_cells.weights_of(graph, stack, f"_l{number}", prefix) for number in range(stack.num_layers)]
    own = {name: graph.constant(prefix + name, _dispatch.to_numpy(p)) for name, p in decoder._own.items()}
    own = {name: p.transposed(1, 0) if name != "v" else p.unsqueezed(1) for name, p in own.items()}
    if memory is not None and lengths is not None:
        values = lengths.zero_past(memory).transposed(1, 0, 2)
        keys = values @ own["weight_keys"] if kind == "additive" else values.transposed(0, 2, 1)
        sees = lengths.exists.transposed(1, 0)

    def look(h: Value) -> tuple[Value, Value]:
        """The context and the attention weights for the state h."""
        if kind == "additive":
            scores = (xp.tanh((h @ own["weight_query"]).unsqueezed(1) + keys) @ own["v"]).squeezed(2)
        else:
            query = product(h, own["weight"]) if kind == "general" else h
            scores = (query.unsqueezed(1) @ keys).squeezed(1)
        alpha = softmax_where(sees, scores, 1)
        return (alpha.unsqueezed(1) @ values).squeezed(1), alpha

    def step(x: Value, states: list[Value]) -> tuple[Value, Value | None, list[Value]]:
        count = stack.cell.states
        before = [states[i : i + count] for i in range(0, stack.num_layers * count, count)]
        alpha, entering, new = None, x, []
        if kind == "additive":
            context, alpha = look(before[-1][0])
            entering = graph.concat([x, context], 1)
        elif decoder.input_feeding:
            entering = graph.concat([x, states[-1]], 1)
        for of_layer, w in zip(before, weights, strict=True):
            of_layer = onnx_cells.step(stack, onnx_cells.arguments(stack, entering, w), of_layer, w)
            entering = of_layer[0]
            new += of_layer
        output = entering
        if kind == "additive":
            output = graph.concat([entering, context, x], 1)
        elif kind is not None:
            context, alpha = look(entering)
            output = xp.tanh(graph.concat([context, entering], 1) @ own["weight_combine"])
            new += [output] if decoder.input_feeding else []
        return output, alpha, new

    return step


def decoder_states(graph: Graph, decoder: layers.Decoder, state: Sequence[Value], fed: Value | None) -> list[Value]:
    """The states of `decoder_step`: layer by layer, from arrays (L, B, H); then the vector that is fed, if any."""
    L = decoder.recurrent.num_layers
    found = [graph.node("Gather", array, graph.scalar(number)) for number in range(L) for array in state]
    return found if fed is None else [*found, fed]
