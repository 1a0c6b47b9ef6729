"""Initial weights: functions ``f(rng, shape, dtype)`` that return a NumPy array. A layer takes one, or its name.

The shape is that of one gate's matrix, (n_h, n) for a layer of n_h units. A weight whose rows stack several gates is
initialised gate by gate, so each gate has the variance and the spectrum of its own matrix. The same generator state
gives the same numbers in every dtype, up to rounding.

Layers initialise their biases themselves: to zero, except the LSTM's forget gate, whose bias is one, after R.
Jozefowicz, W. Zaremba, I. Sutskever, "An empirical exploration of recurrent network architectures", ICML 2015.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _checks

_LONGEST_FACTORED = 512
"""The longer side of the largest matrix that `orthogonal` factors."""

Initializer = Callable[[np.random.Generator, tuple[int, int], DTypeLike], NDArray[Any]]
"""A function of the random generator, the shape (rows, columns) and the dtype."""


def normal(std: float | None = None) -> Initializer:
    """Gaussian weights, N(0, 1/n), where n is the number of columns: the inputs of each row's unit.

    Parameters
    ----------
    std : float, optional
        The standard deviation, instead of 1/sqrt(n).

    Returns
    -------
    initializer : function of (rng, shape, dtype)

    References
    ----------
    Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998, section 4.6.

    Examples
    --------
    >>> import numpy as np
    >>> w = normal()(np.random.default_rng(0), (400, 100), "float32")
    >>> w.dtype, round(float(w.std()), 3)
    (dtype('float32'), 0.1)
    """

    std = None if std is None else _checks.non_negative("normal", "std", std)

    def initialise(rng: np.random.Generator, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        scale = 1 / math.sqrt(shape[1]) if std is None else std
        return (scale * rng.standard_normal(shape)).astype(dtype)

    return initialise


def xavier_uniform(gain: float = 1.0) -> Initializer:
    """Glorot's weights, uniform in (-a, a) with a = gain sqrt(6 / (rows + columns)).

    Parameters
    ----------
    gain : float
        Factor of the weights.

    Returns
    -------
    initializer : function of (rng, shape, dtype)

    References
    ----------
    X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
    equation 16.

    Examples
    --------
    >>> import numpy as np
    >>> w = xavier_uniform()(np.random.default_rng(0), (300, 300), "float64")
    >>> bool(abs(w).max() < 0.1 < abs(w).max() + 1e-4)
    True
    """

    gain = _checks.non_negative("xavier_uniform", "gain", gain)

    def initialise(rng: np.random.Generator, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        bound = gain * math.sqrt(6 / (shape[0] + shape[1]))
        return rng.uniform(-bound, bound, shape).astype(dtype)

    return initialise


def xavier_normal(gain: float = 1.0) -> Initializer:
    """Glorot's variance, gain^2 2 / (rows + columns), with Gaussian weights.

    Parameters
    ----------
    gain : float
        Factor of the weights.

    Returns
    -------
    initializer : function of (rng, shape, dtype)

    References
    ----------
    X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
    equation 12.

    Examples
    --------
    >>> import numpy as np
    >>> w = xavier_normal()(np.random.default_rng(0), (300, 100), "float64")
    >>> round(float(w.std()), 3), round((2 / 400) ** 0.5, 3)
    (0.071, 0.071)
    """

    gain = _checks.non_negative("xavier_normal", "gain", gain)

    def initialise(rng: np.random.Generator, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        return (gain * math.sqrt(2 / (shape[0] + shape[1])) * rng.standard_normal(shape)).astype(dtype)

    return initialise


def orthogonal(gain: float = 1.0) -> Initializer:
    """A random matrix with orthonormal rows or columns, whichever are fewer, times ``gain``.

    All singular values are ``gain``. The eigenvalues of a square matrix, such as W_hh, have the modulus ``gain`` too,
    so it is the spectral radius. The distribution is uniform over such matrices if neither side is longer than 512. A
    longer matrix would take seconds, because the time grows with the cube. It is D_2 C D_1 C D_0 instead, where C is
    the orthonormal discrete cosine transform and D_i are diagonal matrices of random signs. That is as orthogonal and
    as dense, and its time grows with the square.

    Parameters
    ----------
    gain : float
        The spectral radius.

    Returns
    -------
    initializer : function of (rng, shape, dtype)

    References
    ----------
    A. M. Saxe, J. L. McClelland, S. Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks", ICLR 2014; F. X. Yu et al., "Orthogonal random features", NeurIPS 2016, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> w = orthogonal(gain=0.9)(np.random.default_rng(0), (5, 5), "float64")
    >>> abs(np.linalg.eigvals(w)).round(12)
    array([0.9, 0.9, 0.9, 0.9, 0.9])
    """

    gain = _checks.finite("orthogonal", "gain", gain)

    def initialise(rng: np.random.Generator, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        long, short = max(shape), min(shape)
        if long <= _LONGEST_FACTORED:
            q, r = np.linalg.qr(rng.standard_normal((long, short)))
            # Q is uniform if the diagonal of R is positive. LAPACK's choice of signs is not random.
            q *= np.where(np.diagonal(r) < 0, -gain, gain)
        else:
            from scipy.fft import dct

            first, *others = rng.choice((-1.0, 1.0), (3, long))
            q = np.zeros((long, short))
            np.fill_diagonal(q, gain * first)
            for signs in others:
                q = signs[:, None] * dct(q, axis=0, norm="ortho", overwrite_x=True)
        return np.array(q if shape[0] >= shape[1] else q.T, dtype, order="C")

    return initialise


def identity(scale: float = 1.0) -> Initializer:
    """``scale`` times the identity matrix, for W_hh of an IRNN, a vanilla layer of rectified linear units.

    Parameters
    ----------
    scale : float
        The diagonal. Below 1 the state decays; 0.01 keeps little memory.

    Returns
    -------
    initializer : function of (rng, shape, dtype)
        A matrix that is not square is padded with zeros.

    References
    ----------
    Q. V. Le, N. Jaitly, G. E. Hinton, "A simple way to initialize recurrent networks of rectified linear units",
    arXiv:1504.00941 (2015), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> identity()(np.random.default_rng(0), (2, 2), "float32")
    array([[1., 0.],
           [0., 1.]], dtype=float32)
    """

    scale = _checks.finite("identity", "scale", scale)

    def initialise(rng: np.random.Generator, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        return (scale * np.eye(*shape)).astype(dtype)

    return initialise


def uniform(bound: float | None = None) -> Initializer:
    """Uniform weights in (-a, a) with a = 1/sqrt(n_h), where n_h is the number of rows, as in PyTorch's layers.

    Parameters
    ----------
    bound : float, optional
        a, instead of 1/sqrt(n_h).

    Returns
    -------
    initializer : function of (rng, shape, dtype)

    Examples
    --------
    >>> import numpy as np
    >>> w = uniform()(np.random.default_rng(0), (4, 1000), "float64")
    >>> bool(0.499 < abs(w).max() < 0.5)
    True
    """

    bound = None if bound is None else _checks.non_negative("uniform", "bound", bound)

    def initialise(rng: np.random.Generator, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        a = 1 / math.sqrt(shape[0]) if bound is None else bound
        return rng.uniform(-a, a, shape).astype(dtype)

    return initialise


def zeros() -> Initializer:
    """Zeros.

    Returns
    -------
    initializer : function of (rng, shape, dtype)

    Examples
    --------
    >>> import numpy as np
    >>> zeros()(np.random.default_rng(0), (1, 3), "float64")
    array([[0., 0., 0.]])
    """

    def initialise(rng: np.random.Generator, shape: tuple[int, int], dtype: DTypeLike) -> NDArray[Any]:
        return np.zeros(shape, dtype)

    return initialise


_BY_NAME: dict[str, Callable[[], Initializer]] = {
    "identity": identity,
    "normal": normal,
    "orthogonal": orthogonal,
    "uniform": uniform,
    "xavier": xavier_uniform,
    "xavier_normal": xavier_normal,
    "zeros": zeros,
}


def get(init: str | Initializer) -> Initializer:
    """The initializer with a name, with its defaults. A function is returned as it is.

    Parameters
    ----------
    init : {"identity", "normal", "orthogonal", "uniform", "xavier", "xavier_normal", "zeros"} or function

    Returns
    -------
    initializer : function of (rng, shape, dtype)

    Raises
    ------
    ValueError
        ``init`` is another name.
    TypeError
        ``init`` is neither a name nor a function.

    Examples
    --------
    >>> import numpy as np
    >>> get("zeros")(np.random.default_rng(0), (2, 1), "float32").tolist()
    [[0.0], [0.0]]
    """
    if isinstance(init, str):
        if init not in _BY_NAME:
            raise ValueError(f"initializers: init is {init!r}, expected one of {', '.join(map(repr, _BY_NAME))}")
        return _BY_NAME[init]()
    if not callable(init):
        raise TypeError(f"initializers: init is {init!r}, expected a name or a function of (rng, shape, dtype)")
    return init
