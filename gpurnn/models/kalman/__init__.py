"""Linear-Gaussian state-space models: Kalman filter, smoother, likelihood, its gradient, and fits; their components."""

from .components import ar as ar
from .components import level as level
from .components import regression as regression
from .components import seasonal as seasonal
from .components import trend as trend
from .model import LinearGaussian as LinearGaussian
from .structural import StructuralModel as StructuralModel
