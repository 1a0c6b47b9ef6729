"""The wings, layers and models have the types of ``gpurnn/_contract.py``: mypy reads this file, nothing runs it."""

from __future__ import annotations

import gpurnn
import kernels
import reference
from gpurnn import models, training
from gpurnn._contract import Remembers, SequenceLayer, StatelessLayer, Trainable, Wing

WINGS: tuple[Wing, ...] = (reference, kernels)

STATELESS_LAYERS: tuple[type[StatelessLayer], ...] = (
    gpurnn.Dense,
    gpurnn.Dropout,
    gpurnn.Embedding,
    gpurnn.LayerNorm,
    gpurnn.PositionalEncoding,
)

SEQUENCE_LAYERS: tuple[type[SequenceLayer], ...] = (
    gpurnn.RNN,
    gpurnn.LSTM,
    gpurnn.GRU,
    gpurnn.IndRNN,
    gpurnn.MinGRU,
    gpurnn.MinLSTM,
    gpurnn.StateSpace,
    gpurnn.DiagonalStateSpace,
    gpurnn.TransformerBlock,
    gpurnn.Sequential,
)

MODELS: tuple[type[Trainable], ...] = (
    models.EncoderDecoder,
    models.LanguageModel,
    models.SequenceClassifier,
    models.SequenceGenerator,
    models.SequenceRegressor,
    models.SequenceTagger,
    training.Reinforce,
)

REMEMBERS: type[Remembers] = training.Reinforce
