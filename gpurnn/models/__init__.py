"""Models: of language, of sequences and of their steps; vocabularies; and what every model can do."""

from .base import Model, load
from .generator import SequenceGenerator
from .language_model import LanguageModel
from .sequence import SequenceClassifier, SequenceRegressor, SequenceTagger
from .vocabulary import CharVocabulary, Vocabulary, WordVocabulary

__all__ = [
    "CharVocabulary",
    "LanguageModel",
    "Model",
    "SequenceClassifier",
    "SequenceGenerator",
    "SequenceRegressor",
    "SequenceTagger",
    "Vocabulary",
    "WordVocabulary",
    "load",
]
