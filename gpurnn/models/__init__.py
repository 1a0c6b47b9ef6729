"""Models: language models and their vocabularies."""

from .language_model import LanguageModel
from .vocabulary import CharVocabulary, Vocabulary, WordVocabulary

__all__ = ["CharVocabulary", "LanguageModel", "Vocabulary", "WordVocabulary"]
