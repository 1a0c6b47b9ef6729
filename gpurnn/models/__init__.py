"""Models: of language, of sequences and of their steps; vocabularies; and what every model can do."""

from .base import Model
from .decoding import Hypothesis
from .encoder_decoder import EncoderDecoder
from .files import load
from .forecaster import Backtest, Forecast, Forecaster
from .generator import SequenceGenerator
from .kalman import LinearGaussian
from .language_model import LanguageModel
from .sequence import SequenceClassifier, SequenceRegressor, SequenceTagger
from .translator import Translator
from .vocabulary import CharVocabulary, Vocabulary, WordVocabulary

__all__ = [
    "Backtest",
    "CharVocabulary",
    "EncoderDecoder",
    "Forecast",
    "Forecaster",
    "Hypothesis",
    "LanguageModel",
    "LinearGaussian",
    "Model",
    "SequenceClassifier",
    "SequenceGenerator",
    "SequenceRegressor",
    "SequenceTagger",
    "Translator",
    "Vocabulary",
    "WordVocabulary",
    "load",
]
