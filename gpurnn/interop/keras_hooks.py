"""gpurnn as the fast kernels that a Keras backend may have for LSTM and GRU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from .. import _checks, functional
from ..layers.recurrent import LAYERS
from .keras import ACTIVATIONS, GATES
from .weights import installed

_BACKENDS = ("torch", "jax", "numpy")


@contextlib.contextmanager
def keras_hooks() -> Iterator[None]:
    """Make Keras's LSTM and GRU layers compute with gpurnn, within a ``with`` block, in training too.

    Such a layer asks Keras's backend for a fast implementation, and runs the steps one by one if there is none. Within
    the block gpurnn is that implementation: `gpurnn.torch`, `gpurnn.jax`, or gpurnn on NumPy arrays, depending on the
    backend. The layers stay Keras's own, with all their features: input dropout, state, `Bidirectional`.

    Keras still computes what gpurnn does not support: other activations, float16, and sequences with a mask, because
    Keras does not tell its backend what a layer outputs at masked steps. The block applies to the whole process: other
    threads compute with gpurnn too.

    Raises
    ------
    NotImplementedError
        Keras computes with another library.
    ImportError
        Keras is not installed.

    Examples
    --------
    >>> from gpurnn import interop
    >>> with interop.keras_hooks():  # doctest: +SKIP
    ...     model.fit(x, y)
    """
    where = "keras_hooks"
    keras = installed(where, "keras", "keras")
    library = keras.backend.backend()
    if library not in _BACKENDS:
        raise NotImplementedError(f"{where}: Keras computes with {library}, expected {', '.join(_BACKENDS)}")
    compute = importlib.import_module("gpurnn.torch") if library == "torch" else None
    functions: Any = importlib.import_module("gpurnn.jax") if library == "jax" else functional
    backend: Any = importlib.import_module("keras.src.backend")

    def recurrence(
        cell: str, inputs: Any, states: tuple[Any, ...], mask: Any, kernel: Any, recurrent_kernel: Any, bias: Any,
        activations: dict[str, Any], return_sequences: bool, go_backwards: bool, form: dict[str, Any],
    ) -> tuple[Any, Any, list[Any]]:  # fmt: skip
        ops = keras.ops
        if mask is not None:
            raise NotImplementedError
        options = {option: _activation(keras, function) for option, function in activations.items()}
        kernel, recurrent_kernel = ops.convert_to_tensor(kernel), ops.convert_to_tensor(recurrent_kernel)
        dtype = keras.backend.standardize_dtype(kernel.dtype)
        if dtype not in _checks.FLOATS:
            raise NotImplementedError
        theirs, ours = GATES[cell]

        def reordered(array: Any) -> Any:
            blocks = dict(zip(theirs, ops.split(array, len(theirs), axis=-1), strict=True))
            return ops.concatenate([blocks[gate] for gate in ours], axis=-1)

        weights = {
            "weight_ih": ops.transpose(reordered(kernel)), "weight_hh": ops.transpose(reordered(recurrent_kernel)),
        }  # fmt: skip
        if bias is not None:
            bias = reordered(ops.convert_to_tensor(bias))
            of_input, of_state = (bias[0], bias[1]) if len(bias.shape) == 2 else (bias, ops.zeros_like(bias))
            weights |= {"bias_ih": of_input, "bias_hh": of_state}
        x = ops.transpose(ops.cast(ops.convert_to_tensor(inputs), dtype), (1, 0, 2))
        x = ops.flip(x, axis=0) if go_backwards else x
        initial = tuple(ops.cast(ops.convert_to_tensor(state), dtype) for state in states)
        if compute is not None:
            kind: Any = LAYERS[cell]
            layer = kind(x.shape[2], recurrent_kernel.shape[0], bias=bias is not None, **options, **form, init="zeros")
            y, final = compute.recurrence(layer, x, initial, list(weights.values()))
        else:
            state = initial if len(initial) == 2 else initial[0]
            y, final = getattr(functions, cell)(x, **weights, state=state, **options, **form)
            final = final if len(initial) == 2 else (final,)
        last, outputs = y[-1], ops.transpose(y, (1, 0, 2))
        return last, outputs if return_sequences else ops.expand_dims(last, axis=1), list(final)

    def lstm(
        inputs: Any, initial_state_h: Any, initial_state_c: Any, mask: Any, kernel: Any, recurrent_kernel: Any,
        bias: Any, activation: Any, recurrent_activation: Any, return_sequences: bool = False,
        go_backwards: bool = False, unroll: bool = False,
    ) -> tuple[Any, Any, list[Any]]:  # fmt: skip
        activations = {
            "activation": activation, "gate_activation": recurrent_activation, "output_activation": activation,
        }  # fmt: skip
        return recurrence(
            "lstm", inputs, (initial_state_h, initial_state_c), mask, kernel, recurrent_kernel, bias, activations,
            return_sequences, go_backwards, {},
        )  # fmt: skip

    def gru(
        inputs: Any, initial_state: Any, mask: Any, kernel: Any, recurrent_kernel: Any, bias: Any, activation: Any,
        recurrent_activation: Any, return_sequences: bool = False, go_backwards: bool = False, unroll: bool = False,
        reset_after: bool = True,
    ) -> tuple[Any, Any, list[Any]]:  # fmt: skip
        activations = {"activation": activation, "gate_activation": recurrent_activation}
        return recurrence(
            "gru", inputs, (initial_state,), mask, kernel, recurrent_kernel, bias, activations, return_sequences,
            go_backwards, {"reset_after": reset_after, "update": "state"},
        )  # fmt: skip

    before = backend.lstm, backend.gru
    backend.lstm, backend.gru = lstm, gru
    try:
        yield
    finally:
        backend.lstm, backend.gru = before


def _activation(keras: Any, function: Any) -> Any:
    """gpurnn's name for a Keras activation; raise the error that makes Keras compute itself if gpurnn has none."""
    name = keras.activations.serialize(function)
    if not isinstance(name, str) or name not in ACTIVATIONS or keras.activations.get(name) is not function:
        raise NotImplementedError
    return ACTIVATIONS[name]
