"""Layers: configuration and named parameters, called for inference, differentiated by `vjp`."""

from .base import Layer
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding
from .recurrent import GRU, LSTM, RNN
from .sequential import Sequential

__all__ = ["GRU", "LSTM", "RNN", "Dense", "Dropout", "Embedding", "Layer", "Sequential"]
