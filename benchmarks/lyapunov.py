"""The largest Lyapunov exponent of random networks, compared with the theory of infinite networks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

import gpurnn
from gpurnn.analysis import lyapunov_spectrum

from .compare import row

GAINS = (1.5, 2.0, 3.0)
SIZES = (250, 500, 1000, 2000)
NETWORKS = 6
ROWS, STEPS, TRANSIENT, INTERVAL = 8, 400, 100, 20


def mean_field(gain: float) -> float:
    """ln(g^2 <tanh'(sqrt(q) z)^2>) / 2 with q = g^2 <tanh(sqrt(q) z)^2>, z normal: the exponent for N to infinity."""
    # The trapezoidal rule is exact to rounding; Gauss-Hermite quadrature suffers from tanh's poles near the real axis.
    z = np.linspace(-12, 12, 961)
    weight = np.exp(-(z**2) / 2)
    weight /= weight.sum()
    q = 1.0
    for _ in range(1000):
        q = gain**2 * weight @ np.tanh(math.sqrt(q) * z) ** 2
    return math.log(gain**2 * weight @ (1 - np.tanh(math.sqrt(q) * z) ** 2) ** 2) / 2


def measured(gain: float, size: int, seed: int) -> tuple[float, float]:
    """The exponent of one network h_t = tanh(W h_{t-1}), W ~ N(0, g^2/N), and its standard error."""
    rng = np.random.default_rng(seed)
    network = gpurnn.RNN(1, size, bias=False, init="xavier", dtype="float64")
    network.params["weight_hh_l0"][...] = rng.normal(0, gain / math.sqrt(size), (size, size))
    found = lyapunov_spectrum(
        network, state=rng.normal(size=(1, ROWS, size)), steps=STEPS, exponents=1, transient=TRANSIENT,
        interval=INTERVAL,
    )  # fmt: skip
    return float(found.exponents[0]), float(found.standard_error[0])


def report(sizes: Sequence[int] = SIZES, gains: Sequence[float] = GAINS, networks: int = NETWORKS) -> Iterator[str]:
    """The lines of the table, in Markdown."""
    yield (
        f"Largest Lyapunov exponent of h_t = tanh(W h_{{t-1}}), W ~ N(0, g^2/N), in nats per step: the median, least "
        f"and most of {networks} networks, and how far the median is from mean-field theory. Each is measured over "
        f"{STEPS} steps from {ROWS} states; the last column is the median standard error of that. A finite network is "
        "below the theory, by less the larger it is. The row after the last two sizes is where the line through them, "
        "in 1/N, meets 0."
    )
    yield ""
    yield row(["g", "mean field", "N", "median", "least ... most", "from mean field", "standard error"])
    yield row(["--:"] * 7)
    for gain in gains:
        expected = mean_field(gain)
        medians: list[float] = []
        for size in sizes:
            found = np.array([measured(gain, size, seed) for seed in range(networks)])
            middle, error = np.median(found, axis=0)
            medians.append(middle)
            spread = f"{found[:, 0].min():.4f} ... {found[:, 0].max():.4f}"
            off = f"{middle / expected - 1:+.1%}"
            yield row([gain, f"{expected:.4f}", size, f"{middle:.4f}", spread, off, f"{error:.4f}"])
        if len(sizes) > 1:
            (n, m), (at_n, at_m) = sizes[-2:], medians[-2:]
            limit = (m * at_m - n * at_n) / (m - n)
            off = f"{limit / expected - 1:+.1%}"
            yield row([gain, f"{expected:.4f}", "∞, by the line", f"{limit:.4f}", "", off, ""])
