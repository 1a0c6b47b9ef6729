"""Models: language models and their vocabularies, and what every model can do."""

from .base import Model, load
from .language_model import LanguageModel
from .vocabulary import CharVocabulary, Vocabulary, WordVocabulary

__all__ = ["CharVocabulary", "LanguageModel", "Model", "Vocabulary", "WordVocabulary", "load"]
