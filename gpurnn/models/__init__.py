"""Models of language, of sequences and of their steps; vocabularies; and the methods that all models share."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
