"""Layers: configuration and named parameters, called for inference, differentiated by `vjp`."""

from .attention import MultiHeadAttention, PositionalEncoding, TransformerBlock
from .base import Layer
from .decoder import Decoder
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding
from .layer_norm import LayerNorm
from .recurrent import GRU, LSTM, RNN
from .sequential import Sequential
from .state_space import DiagonalStateSpace, StateSpace

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Decoder",
    "Dense",
    "DiagonalStateSpace",
    "Dropout",
    "Embedding",
    "Layer",
    "LayerNorm",
    "MultiHeadAttention",
    "PositionalEncoding",
    "Sequential",
    "StateSpace",
    "TransformerBlock",
]
