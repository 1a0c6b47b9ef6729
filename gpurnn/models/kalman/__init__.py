"""The linear-Gaussian state-space model: Kalman filter, smoother, likelihood, its gradient, and fits by both."""

from .model import LinearGaussian as LinearGaussian
