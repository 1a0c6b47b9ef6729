"""
Singular values
===============

How much one step can stretch a direction of the state. Orthogonal weights stretch none, Gaussian ones up to twice their
gain.
"""

import numpy as np

from gpurnn.analysis import plots, spectrum

rng = np.random.default_rng(0)
N = 64
orthogonal = np.linalg.qr(rng.normal(size=(N, N)))[0]
gaussian = rng.normal(size=(N, N)) / np.sqrt(N)

axes = plots.singular_values({"orthogonal": spectrum(orthogonal), "Gaussian": spectrum(gaussian)})
