"""What a type checker says of calls: mypy reads this file, nothing runs it.

mypy reports each `type: ignore` that hides no error, so a call below that is no longer an error fails the check.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import gpurnn


def a_pullback_has_the_arguments_of_its_function(x: NDArray[np.float32], w: NDArray[np.float32]) -> None:
    (y, (h, c)), pullback = gpurnn.lstm.vjp(x, w, w, lengths=None)
    (_, _), grads = pullback((y, (h, c)))
    grads["weight_ih"].sum()

    gpurnn.lstm.vjp(x, w, w, lengthz=3)  # type: ignore[call-arg]
    gpurnn.lstm.vjp(x, w)  # type: ignore[call-arg]
    gpurnn.rnn.vjp(x, w, w, activation="softplus")  # type: ignore[arg-type]
    gpurnn.mse.vjp(x, x, reduction="median")  # type: ignore[arg-type]


def a_function_checks_its_arguments(x: NDArray[np.float32], w: NDArray[np.float32]) -> None:
    gpurnn.lstm(x, w, w, lengthz=3)  # type: ignore[call-arg]
    gpurnn.lstm([[[1.0]]], w, w)  # type: ignore[arg-type]
    gpurnn.dense(None, w)  # type: ignore[arg-type]
    gpurnn.dense(x, w).get()  # type: ignore[attr-defined]


def a_constructor_checks_its_arguments() -> None:
    gpurnn.LSTM(3, 4, bidirectional=True)
    gpurnn.LSTM(3, 4, bidirectional="no")  # type: ignore[arg-type]
    gpurnn.LSTM(3, 4, hidden=4)  # type: ignore[call-arg]


def a_layer_takes_arrays(x: NDArray[np.float32]) -> None:
    lstm = gpurnn.LSTM(3, 4)
    y, _ = lstm(x)
    y.sum()
    lstm([[[1.0]]])  # type: ignore[arg-type]
    lstm.vjp(x, seed=1)  # type: ignore[call-arg]


def a_models_constructor_checks_its_arguments() -> None:
    gpurnn.SequenceClassifier(3, 4, 2, bidirectional=True, activation="relu", cell="rnn")
    gpurnn.SequenceClassifier(3, 4, 2, bidirectional="no")  # type: ignore[arg-type]
    gpurnn.SequenceTagger(3, 4, 2, poling="mean")  # type: ignore[call-arg]
    gpurnn.SequenceRegressor(3, 4, 2, reset_after=1.5)  # type: ignore[arg-type]
    gpurnn.EncoderDecoder(3, 4, 2, 2, atention="dot")  # type: ignore[call-arg]
    gpurnn.Forecaster(3, 4, leak="no")  # type: ignore[arg-type]
    gpurnn.Nope()  # type: ignore[attr-defined]
