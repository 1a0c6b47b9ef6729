"""
Eigenvalues on the unit circle
==============================

The eigenvalues of the recurrent weights for three initialisations. Those of orthogonal weights lie on the circle,
those of small ones inside it, those of large ones outside.
"""

import numpy as np

from gpurnn.analysis import plots, spectrum

rng = np.random.default_rng(0)
N = 64
orthogonal = np.linalg.qr(rng.normal(size=(N, N)))[0]
gaussian = rng.normal(size=(N, N)) / np.sqrt(N)

axes = plots.eigenvalues(
    {"orthogonal": spectrum(orthogonal), "gain 0.5": spectrum(0.5 * gaussian), "gain 1.5": spectrum(1.5 * gaussian)}
)
