"""Calls for a type checker: mypy reads this file, nothing runs it.

mypy reports each `type: ignore` that hides no error, so the check fails if a call below is no longer an error.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import gpurnn
from gpurnn import interop


def a_pullback_has_the_arguments_of_its_function(x: NDArray[np.float32], w: NDArray[np.float32]) -> None:
    (y, (h, c)), pullback = gpurnn.lstm.vjp(x, w, w, lengths=None)
    (_, _), grads = pullback((y, (h, c)))
    grads["weight_ih"].sum()

    gpurnn.lstm.vjp(x, w, w, lengthz=3)  # type: ignore[call-arg]
    gpurnn.lstm.vjp(x, w)  # type: ignore[call-arg]
    gpurnn.rnn.vjp(x, w, w, activation="swish")  # type: ignore[arg-type]
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
    gpurnn.LSTM(3, 4, peephole=True, cell_clip=3.0, zoneout=(0.1, 0.2), merge="sum", reverse=True)
    gpurnn.LSTM(3, 4, peephol=True)  # type: ignore[call-arg]
    gpurnn.GRU(3, 4, proj_size=2)  # type: ignore[call-arg]
    gpurnn.RNN(3, 4, zoneout=(0.1, 0.2))  # type: ignore[arg-type]


def weights_of_others_take_options_of_the_layers() -> None:
    interop.from_torch("model.pt", "encoder.", batch_first=True, dropout=0.1, activation="relu")
    interop.from_torch("model.pt", batch_frist=True)  # type: ignore[call-arg]
    interop.from_keras("model.weights.h5", activation="relu", cell_clip=3.0)
    interop.from_keras("model.weights.h5", layer_norm="no")  # type: ignore[arg-type]


def a_layer_takes_arrays(x: NDArray[np.float32]) -> None:
    lstm = gpurnn.LSTM(3, 4)
    y, _ = lstm(x)
    y.sum()
    lstm([[[1.0]]])  # type: ignore[arg-type]
    lstm.vjp(x, seed=1)  # type: ignore[call-arg]


def a_models_constructor_checks_its_arguments() -> None:
    gpurnn.SequenceClassifier(3, 4, 2, bidirectional=True, activation="relu", cell="rnn")
    gpurnn.SequenceClassifier(hidden_size=8, epochs=3, lr=0.1).set_params(lr=0.2).fit([], []).get_params()
    gpurnn.SequenceClassifier(3, 4, 2, cell="lstm", cell_options={"peephole": True, "zoneout": (0.1, 0.2)}, merge="sum")
    gpurnn.SequenceClassifier(3, 4, 2, cell_options={"peephol": True})  # type: ignore[arg-type]
    gpurnn.SequenceTagger(3, 4, 2, cell_options={"clip": "no"})  # type: ignore[arg-type]
    gpurnn.Forecaster(3, 4, merge="max")  # type: ignore[arg-type]
    gpurnn.SequenceClassifier(hidden_size=8, lr="fast")  # type: ignore[arg-type]
    gpurnn.SequenceTagger().nope()  # type: ignore[attr-defined]
    gpurnn.SequenceClassifier(3, 4, 2, bidirectional="no")  # type: ignore[arg-type]
    gpurnn.SequenceTagger(3, 4, 2, poling="mean")  # type: ignore[call-arg]
    gpurnn.SequenceRegressor(3, 4, 2, reset_after=1.5)  # type: ignore[arg-type]
    gpurnn.EncoderDecoder(3, 4, 2, 2, atention="dot")  # type: ignore[call-arg]
    gpurnn.Forecaster(3, 4, leak="no")  # type: ignore[arg-type]
    gpurnn.Forecaster(3, 4, trend="no", season_length="12")  # type: ignore[arg-type]
    gpurnn.Forecaster(3, 4).fit([1.0], epoch=3)  # type: ignore[call-arg]
    gpurnn.Forecaster(3, 4).fit([1.0], group=3)  # type: ignore[arg-type]
    gpurnn.Nope()  # type: ignore[attr-defined]


def fit_checks_its_options(x: NDArray[np.float32]) -> None:
    model = gpurnn.SequenceClassifier(3, 4, 2)
    model.fit(x, [0, 1], schedule="cosine", callbacks=print, class_weight="balanced", epochs=3).predict(x)
    model.fit(x, [0, 1], opt=3)  # type: ignore[call-arg]
    model.fit(x, [0, 1], epochs="many")  # type: ignore[arg-type]
    model.fit(x, [0, 1], verbose="no")  # type: ignore[arg-type]
    gpurnn.SequenceRegressor(3, 4, 1).fit(x, x, resume="yes")  # type: ignore[arg-type]
    gpurnn.EncoderDecoder(5, 5, 4, 4).fit([x], [x], lr="fast")  # type: ignore[arg-type]
    gpurnn.EncoderDecoder(5, 5, 4, 4).predict([x], beam=3)  # type: ignore[call-arg]
    gpurnn.Translator.from_texts(["a"], ["b"], 4, 4, attention=3)  # type: ignore[arg-type]
    gpurnn.Adam(learning_rate=0.1)  # type: ignore[call-arg]
    text = gpurnn.LanguageModel(gpurnn.CharVocabulary("ab"), 4, 4)
    text.fit("abab", window=2, patience=3).sample(3)
    text.fit("abab", windows=2)  # type: ignore[call-arg]
    text.trainer_.epoch_history[0].keys()


def a_trainer_checks_its_options(x: NDArray[np.int64]) -> None:
    model = gpurnn.LanguageModel(gpurnn.CharVocabulary("ab"), 4, 4)
    data = gpurnn.TokenStream(x, 2, 3)
    gpurnn.Trainer(model, data, "sgd", epochs=3, lr=0.1, callbacks=[lambda trainer: trainer.stop()]).train()
    gpurnn.Trainer(model, data, steps=3, opt=3)  # type: ignore[call-arg]
    gpurnn.Trainer(model, data, steps=3, resume="yes")  # type: ignore[arg-type]
