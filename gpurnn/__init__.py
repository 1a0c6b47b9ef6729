"""Recurrent networks for array programmers: NumPy in, NumPy out; CuPy in, fused CUDA kernels, CuPy out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import analysis as analysis
    from . import explanation as explanation
    from . import functional as functional
    from . import gradients as gradients
    from . import initializers as initializers
    from . import layers as layers
    from . import losses as losses
    from . import models as models
    from . import optimizers as optimizers
    from . import plots as plots
    from . import schedules as schedules
    from . import scratch as scratch
    from . import training as training
    from ._dispatch import use as use
    from ._files import FileFormatError as FileFormatError
    from .explanation import explain as explain
    from .functional import attention as attention
    from .functional import dense as dense
    from .functional import dropout as dropout
    from .functional import embedding as embedding
    from .functional import gru as gru
    from .functional import layer_norm as layer_norm
    from .functional import linear_scan as linear_scan
    from .functional import lstm as lstm
    from .functional import multi_head_attention as multi_head_attention
    from .functional import rnn as rnn
    from .functional import ssm as ssm
    from .gradients import add_l2 as add_l2
    from .gradients import clip_by_global_norm as clip_by_global_norm
    from .gradients import clip_by_value as clip_by_value
    from .gradients import global_norm as global_norm
    from .layers import GRU as GRU
    from .layers import LSTM as LSTM
    from .layers import RNN as RNN
    from .layers import Dense as Dense
    from .layers import DiagonalStateSpace as DiagonalStateSpace
    from .layers import Dropout as Dropout
    from .layers import Embedding as Embedding
    from .layers import Layer as Layer
    from .layers import LayerNorm as LayerNorm
    from .layers import MultiHeadAttention as MultiHeadAttention
    from .layers import PositionalEncoding as PositionalEncoding
    from .layers import Sequential as Sequential
    from .layers import StateSpace as StateSpace
    from .layers import TransformerBlock as TransformerBlock
    from .losses import binary_cross_entropy as binary_cross_entropy
    from .losses import cross_entropy as cross_entropy
    from .losses import huber as huber
    from .losses import l1 as l1
    from .losses import mse as mse
    from .losses import smooth_l1 as smooth_l1
    from .models import CharVocabulary as CharVocabulary
    from .models import EncoderDecoder as EncoderDecoder
    from .models import Forecaster as Forecaster
    from .models import LanguageModel as LanguageModel
    from .models import LinearGaussian as LinearGaussian
    from .models import SequenceClassifier as SequenceClassifier
    from .models import SequenceGenerator as SequenceGenerator
    from .models import SequenceRegressor as SequenceRegressor
    from .models import SequenceTagger as SequenceTagger
    from .models import Translator as Translator
    from .models import WordVocabulary as WordVocabulary
    from .optimizers import SGD as SGD
    from .optimizers import Adadelta as Adadelta
    from .optimizers import Adagrad as Adagrad
    from .optimizers import Adam as Adam
    from .optimizers import Adamax as Adamax
    from .optimizers import AdamW as AdamW
    from .optimizers import NAdam as NAdam
    from .optimizers import RMSprop as RMSprop
    from .optimizers import Rprop as Rprop
    from .training import PaddedBatches as PaddedBatches
    from .training import TokenStream as TokenStream
    from .training import Trainer as Trainer

__version__ = "0.1.0"

# Module -> the names it gives to this one. Both are loaded on first use: `import gpurnn` costs what NumPy costs.
_EXPORTS: dict[str, tuple[str, ...]] = {
    "_dispatch": ("use",),
    "_files": ("FileFormatError",),
    "analysis": (),
    "explanation": ("explain",),
    "functional": (
        "attention",
        "dense",
        "dropout",
        "embedding",
        "gru",
        "layer_norm",
        "linear_scan",
        "lstm",
        "multi_head_attention",
        "rnn",
        "ssm",
    ),
    "gradients": ("add_l2", "clip_by_global_norm", "clip_by_value", "global_norm"),
    "initializers": (),
    "layers": (
        "GRU",
        "LSTM",
        "RNN",
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
    ),
    "losses": ("binary_cross_entropy", "cross_entropy", "huber", "l1", "mse", "smooth_l1"),
    "models": (
        "CharVocabulary",
        "EncoderDecoder",
        "Forecaster",
        "LanguageModel",
        "LinearGaussian",
        "SequenceClassifier",
        "SequenceGenerator",
        "SequenceRegressor",
        "SequenceTagger",
        "Translator",
        "WordVocabulary",
    ),
    "optimizers": ("SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RMSprop", "Rprop"),
    "plots": (),
    "schedules": (),
    "scratch": (),
    "training": ("PaddedBatches", "TokenStream", "Trainer"),
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module 'gpurnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_EXPORTS})
