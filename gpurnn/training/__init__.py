"""Training: the loop and its checkpoints, the data it reads, curricula, truncated backpropagation, and REINFORCE."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
