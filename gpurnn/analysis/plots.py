"""Pictures of a diagnosis. They need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..layers.recurrent import Recurrent
from ..plots import COLOURS, PathLike, line, new_figure, panel, whole_numbers, write
from .activity import GateActivity
from .complexity import complexity
from .jacobians import GradientNorms
from .lyapunov import LyapunovSpectrum
from .spectrum import FixedPoints, Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LARGEST = 1e200
"""The largest value that is drawn: above it, ticks of a logarithmic axis, which reach beyond its ends, overflow."""

_PLURAL = {"step": "steps", "unit of time": "units of time"}


def gradient_flow(norms: Mapping[str, NDArray[Any]], path: PathLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw how large gradients are at each step back in time, on a logarithmic axis.

    The line is the geometric mean over the batch, the band goes from the smallest to the largest norm. Zeros are left
    out, and so are steps at which a norm is above 1e200, infinite or NaN. The legend counts these steps.

    Parameters
    ----------
    norms : dict of str to (T + 1,) or (T + 1, B) arrays
        `product_norms`, or norms of `state_gradients`, for t = 0 ... T, by their names in the legend.
    path : path, optional
        Where to write the picture; its suffix says the format.
    ax : matplotlib.axes.Axes, optional
        Where to draw, instead of in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        ``norms`` is empty, or one has another number of axes.

    Examples
    --------
    >>> import numpy as np
    >>> axes = gradient_flow({"$||ds_T / ds_t||$": 0.9 ** np.arange(50.0)[::-1]})
    >>> axes.get_xlabel()
    'time step t'
    """
    where = "gradient_flow"
    if not norms:
        raise ValueError(f"{where}: norms is empty, expected at least one entry")
    axes = panel(where, 7.0, 4.2, ax)
    for k, (name, values) in enumerate(norms.items()):
        if values.ndim not in (1, 2):
            raise ValueError(f"{where}: norms[{name!r}] has shape {values.shape}, expected (T + 1,) or (T + 1, B)")
        rows = np.where(values > 0, values, np.nan).astype(float).reshape(len(values), -1)
        beyond = ~(values <= _LARGEST).reshape(rows.shape).all(axis=1)
        if beyond.any():
            name = f"{name}, above {_LARGEST:g} at {beyond.sum()} steps"
        steps = np.flatnonzero(np.isfinite(rows).any(axis=1) & ~beyond)
        rows = rows[steps]
        axes.semilogy(steps, np.exp(np.nanmean(np.log(rows), axis=1)), **line(k), linewidth=1.6, label=name)
        if rows.shape[1] > 1:
            low, high = np.nanmin(rows, axis=1), np.nanmax(rows, axis=1)
            axes.fill_between(steps, low, high, color=line(k)["color"], alpha=0.2, linewidth=0)
    axes.set_xlabel("time step t")
    axes.set_ylabel("norm")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    write(where, axes.figure, path)
    return axes


def eigenvalues(spectra: Mapping[str, Spectrum], path: PathLike | None = None) -> NDArray[Any]:
    """Draw eigenvalues in the complex plane with the unit circle; an eigenvalue inside it shrinks its eigenvector.

    Parameters
    ----------
    spectra : dict of str to Spectrum
        Spectra such as those of `gpurnn.analysis.spectra`, a panel for each.
    path : path, optional
        Where to write the picture; its suffix says the format.

    Returns
    -------
    (number of spectra,) array of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        ``spectra`` is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.analysis import spectrum
    >>> (axes,) = eigenvalues({"h": spectrum(np.eye(2))})
    >>> axes.get_title()
    'h: spectral radius 1'
    """
    panels, figure = _panels("eigenvalues", spectra, 3.4, 3.5)
    angle = np.linspace(0, 2 * np.pi, 200)
    reach = 1.1 * max(1.0, *(spectrum.radius for spectrum in spectra.values()))
    for axes, (name, spectrum) in zip(panels, spectra.items(), strict=True):
        axes.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.8, label="unit circle")
        axes.plot(
            spectrum.eigenvalues.real, spectrum.eigenvalues.imag, "o", color=COLOURS[0], markersize=3, alpha=0.7,
            label="eigenvalues",
        )  # fmt: skip
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.set_title(f"{name}: spectral radius {spectrum.radius:.3g}", fontsize=10)
        axes.set_xlabel("real part")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("imaginary part")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    write("eigenvalues", figure, path)
    return panels


def singular_values(spectra: Mapping[str, Spectrum], path: PathLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw singular values, largest first, with a line at 1, above which a direction is lengthened.

    Parameters
    ----------
    spectra : dict of str to Spectrum
        The spectra, a line for each.
    path : path, optional
        Where to write the picture; its suffix says the format.
    ax : matplotlib.axes.Axes, optional
        Where to draw, instead of in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        ``spectra`` is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.analysis import spectrum
    >>> axes = singular_values({"h": spectrum(np.eye(2))})
    >>> axes.get_ylabel()
    'singular value'
    """
    where = "singular_values"
    if not spectra:
        raise ValueError(f"{where}: spectra is empty, expected at least one entry")
    axes = panel(where, 7.0, 4.2, ax)
    for k, (name, spectrum) in enumerate(spectra.items()):
        index = np.arange(1, len(spectrum.singular_values) + 1)
        axes.plot(index, spectrum.singular_values, **line(k), marker="o", markersize=3, linewidth=1.2, label=name)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--", label="1: lengths are kept")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("index, from the largest")
    axes.set_ylabel("singular value")
    whole_numbers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    write(where, axes.figure, path)
    return axes


def fixed_points(
    points: FixedPoints, path: PathLike | None = None, *, states: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Draw fixed points in the plane in which they and the states of a run vary most, and their eigenvalues.

    Parameters
    ----------
    points : FixedPoints
    path : path, optional
        Where to write the picture; its suffix says the format.
    states : (..., S) NumPy array, optional
        The states of a run, drawn behind the fixed points. For an array (T, B, S), as a layer returns it, lines join
        the steps of each row: the flow.

    Returns
    -------
    (2,) array of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        There is no fixed point, or ``states`` has states of another size.

    Examples
    --------
    >>> import gpurnn
    >>> from gpurnn import analysis
    >>> plane, spectra = fixed_points(analysis.fixed_points(gpurnn.RNN(1, 3, dtype="float64"), starts=5))
    >>> spectra.get_xlabel()
    'real part'
    """
    where = "fixed_points"
    if len(points) == 0:
        raise ValueError(f"{where}: points holds no fixed point, expected at least one")
    S = points.states.shape[1]
    run = np.empty((0, S)) if states is None else states.reshape(-1, *states.shape[-1:])
    if run.shape[1] != S:
        raise ValueError(f"{where}: states holds states of {run.shape[1]} numbers, expected (..., S) with S = {S}")
    # The principal components of all points; a state of one unit has only one.
    every = np.concatenate([points.states, run]).astype(float)
    centre = every.mean(axis=0)
    _, spread, axes_of = np.linalg.svd(every - centre, full_matrices=False)
    two = np.zeros((2, S))
    two[: len(axes_of[:2])] = axes_of[:2]
    plane, traced = (points.states - centre) @ two.T, (run - centre) @ two.T
    total = float((spread**2).sum())
    share = f"; the plane has {100 * float((spread[:2] ** 2).sum()) / total:.0f}% of the variance" if total else ""

    figure = new_figure(where, 8.4, 4.2)
    panels: NDArray[Any] = figure.subplots(1, 2)
    left, right = panels
    if states is not None and len(run):
        style = ".-" if states.ndim == 3 else "."
        if states.ndim == 3:  # a NaN ends the line of a row
            by_row = traced.reshape(*states.shape[:2], 2).swapaxes(0, 1)
            traced = np.concatenate([by_row, np.full_like(by_row[:, :1], np.nan)], axis=1).reshape(-1, 2)
        left.plot(*traced.T, style, color="0.65", markersize=3, linewidth=0.6, label="states of a run")
    for stable, colour, fill, name in (
        (True, COLOURS[0], COLOURS[0], "stable"),
        (False, COLOURS[1], "none", "unstable"),
    ):
        some = points.stable == stable
        if not some.any():
            continue
        left.plot(*plane[some].T, "o", color=colour, markerfacecolor=fill, markersize=6, label=f"{name} ({some.sum()})")
        values = points.eigenvalues[some].ravel()
        right.plot(values.real, values.imag, "o", color=colour, markerfacecolor=fill, markersize=3, alpha=0.7)
    left.set_xlabel("first principal component of the state")
    left.set_ylabel("second principal component")
    left.set_title(f"fixed points{share}", fontsize=10)
    angle = np.linspace(0, 2 * np.pi, 200)
    right.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.8, label="unit circle")
    right.set_aspect("equal", adjustable="datalim")
    right.set_xlabel("real part")
    right.set_ylabel("imaginary part")
    right.set_title("eigenvalues of their Jacobians", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="best", framealpha=0.8, edgecolor="none", fontsize=8)
    write(where, figure, path)
    return panels


def gradient_norms(record: GradientNorms, path: PathLike | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the norm of each layer's gradient over the training steps, on a logarithmic axis.

    Parameters
    ----------
    record : GradientNorms
        The object that a `gpurnn.Trainer` called with its gradients.
    path : path, optional
        Where to write the picture; its suffix says the format.
    ax : matplotlib.axes.Axes, optional
        Where to draw, instead of in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        Nothing was recorded.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.analysis import GradientNorms
    >>> record = GradientNorms()
    >>> for step in range(3):
    ...     record(step, {}, {"rnn.weight_hh_l0": np.ones(4)})
    >>> gradient_norms(record).get_xlabel()
    'training step'
    """
    where = "gradient_norms"
    if not record.steps:
        raise ValueError(f"{where}: record holds no steps, expected at least one; pass it to Trainer as on_gradients")
    axes = panel(where, 7.0, 4.2, ax)
    for k, (name, norms) in enumerate(record.layers.items()):
        positive = np.where(norms > 0, norms, np.nan)
        axes.semilogy(record.steps, positive, **line(k), linewidth=1.2, label=name)
    axes.set_xlabel("training step")
    axes.set_ylabel("norm of the gradient, before clipping")
    whole_numbers(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    write(where, axes.figure, path)
    return axes


def activations(values: Mapping[str, NDArray[Any]], path: PathLike | None = None, *, row: int = 0) -> NDArray[Any]:
    """Draw the values of hidden units over time as heat maps: a row for each unit, a column for each step.

    Values in 0 ... 1, such as those of sigmoid gates, are dark at 0 and light at 1. Other values have two colours,
    which meet at 0.

    Parameters
    ----------
    values : dict of str to (T, H) or (T, B, H) arrays
        Values such as those of `gpurnn.analysis.gates`, a panel for each.
    path : path, optional
        Where to write the picture; its suffix says the format.
    row : int
        The row of a batch to draw.

    Returns
    -------
    (number of values,) array of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        ``values`` is empty, one has another number of axes, or there is no such row.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> values = gpurnn.analysis.gates(gpurnn.GRU(1, 4), np.zeros((5, 1, 1), np.float32))
    >>> [axes.get_title() for axes in activations(values)]
    ['r', 'z', 'n', 'h']
    """
    where = "activations"
    if not values:
        raise ValueError(f"{where}: values is empty, expected at least one entry")
    drawn = {}
    for name, array in values.items():
        if array.ndim not in (2, 3):
            raise ValueError(f"{where}: values[{name!r}] has shape {array.shape}, expected (T, H) or (T, B, H)")
        if array.ndim == 3 and not 0 <= row < array.shape[1]:
            raise ValueError(f"{where}: row is {row}, expected 0 ... {array.shape[1] - 1}")
        drawn[name] = (array if array.ndim == 2 else array[:, row]).T
    columns = 1 if len(drawn) == 1 else 2
    rows = -(-len(drawn) // columns)
    figure = new_figure(where, 4.2 * columns + 0.6, 2.1 * rows + 0.5)
    panels: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axes, (name, array) in zip(panels, drawn.items(), strict=False):
        finite = array[np.isfinite(array)]
        most = float(np.abs(finite).max()) if finite.size else 1.0
        of_gate = finite.size and finite.min() >= 0 and most <= 1
        low, high, colours = (0.0, 1.0, "viridis") if of_gate else (-most or -1.0, most or 1.0, "PuOr")
        image = axes.imshow(array, aspect="auto", interpolation="nearest", vmin=low, vmax=high, cmap=colours)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("hidden unit")
        whole_numbers(axes.xaxis)
        whole_numbers(axes.yaxis)
        figure.colorbar(image, ax=axes)
    for axes in panels[len(drawn) :]:
        axes.remove()
    for axes in panels[max(len(drawn) - columns, 0) : len(drawn)]:
        axes.set_xlabel("time step t")
        axes.tick_params(labelbottom=True)
    write(where, figure, path)
    return panels[: len(drawn)]


def saturation(gates: Mapping[str, GateActivity], path: PathLike | None = None) -> NDArray[Any]:
    """Draw histograms of the values of gates and activations, with the saturated shares.

    Parameters
    ----------
    gates : dict of str to GateActivity
        The result of `gpurnn.analysis.activity`; a panel for each gate.
    path : path, optional
        Where to write the picture; its suffix says the format.

    Returns
    -------
    (number of gates,) array of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        ``gates`` is empty.

    Examples
    --------
    >>> import numpy as np
    >>> import gpurnn
    >>> gates = gpurnn.analysis.activity(gpurnn.GRU(1, 4), np.zeros((5, 1, 1), np.float32))
    >>> [axes.get_xlabel() for axes in saturation(gates)]
    ['r (sigmoid)', 'z (sigmoid)', 'n (tanh)']
    """
    panels, figure = _panels("saturation", gates, 2.9, 3.4, "gates")
    for axes, (name, gate) in zip(panels, gates.items(), strict=True):
        shares = 100 * gate.counts / gate.counts.sum()
        axes.stairs(shares, gate.edges, fill=True, color=COLOURS[0], alpha=0.8)
        saturated = f"{100 * gate.low.mean():.0f}% low, {100 * gate.high.mean():.0f}% high"
        axes.set_title(f"{saturated}\n{gate.dead.sum()} of {len(gate.dead)} units dead", fontsize=9)
        axes.set_xlabel(name if name == f"{gate.function}(c)" else f"{name} ({gate.function})")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of the values (%)")
    write("saturation", figure, path)
    return panels


def lyapunov_spectrum(spectrum: LyapunovSpectrum, path: PathLike | None = None) -> NDArray[Any]:
    """Draw Lyapunov exponents, largest first, and how the estimates of the first few converged along the run.

    Parameters
    ----------
    spectrum : LyapunovSpectrum
        The exponents. Bars and bands show one standard error. Exponents of minus infinity are left out.
    path : path, optional
        Where to write the picture; its suffix says the format.

    Returns
    -------
    (2,) array of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> import gpurnn
    >>> spectrum = gpurnn.analysis.lyapunov_spectrum(gpurnn.RNN(1, 4), steps=100)
    >>> [axes.get_xlabel() for axes in lyapunov_spectrum(spectrum)]
    ['index i', 'time averaged over (steps)']
    """
    figure = new_figure("lyapunov_spectrum", 8.4, 3.8)
    panels: NDArray[Any] = figure.subplots(1, 2)
    left, right = panels
    exponents, history = (np.where(np.isfinite(a), a, np.nan) for a in (spectrum.exponents, spectrum.history))
    error = np.nan_to_num(spectrum.standard_error)
    index = np.arange(1, len(exponents) + 1)
    left.errorbar(index, exponents, error, fmt="o", color=COLOURS[0], markersize=3, elinewidth=0.8, capsize=2)
    left.set_xlabel("index i")
    left.set_ylabel(f"Lyapunov exponent (nats per {spectrum.unit})")
    left.set_title(f"{len(exponents)} of {spectrum.size} exponents: {spectrum.verdict}", fontsize=10)
    whole_numbers(left.xaxis)
    for k in range(min(3, len(exponents))):
        name = f"$\\lambda_{k + 1}$ = {exponents[k]:.4g} $\\pm$ {error[k]:.1g}"
        right.plot(spectrum.times, history[:, k], **line(k), linewidth=1.2, label=name)
        right.axhspan(exponents[k] - error[k], exponents[k] + error[k], color=line(k)["color"], alpha=0.15, linewidth=0)
    right.set_xlabel(f"time averaged over ({_PLURAL[spectrum.unit]})")
    right.set_ylabel(f"estimate (nats per {spectrum.unit})")
    right.set_title("convergence", fontsize=10)
    right.legend(loc="best", framealpha=0.8, edgecolor="none", fontsize=8)
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.8, linestyle="--")
        axes.grid(alpha=0.3)
    write("lyapunov_spectrum", figure, path)
    return panels


def cost(
    layer: Recurrent,
    B: int,
    path: PathLike | None = None,
    *,
    steps: Sequence[int] = (64, 128, 256, 512, 1024, 2048, 4096),
    k: int | None = 64,
) -> NDArray[Any]:
    """Draw flops, bytes moved and memory of inference, BPTT and truncated BPTT over the length of the sequences.

    Parameters
    ----------
    layer : gpurnn.RNN, gpurnn.LSTM or gpurnn.GRU
    B : int
        The sequences of a batch.
    path : path, optional
        Where to write the picture; its suffix says the format.
    steps : sequence of int
        The lengths T, in ascending order.
    k : int, optional
        The steps of a window of truncated BPTT; at most T are used. None leaves it out.

    Returns
    -------
    (3,) array of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    TypeError, ValueError
        As in `gpurnn.analysis.complexity`; or ``steps`` is empty.

    Examples
    --------
    >>> import gpurnn
    >>> [axes.get_ylabel() for axes in cost(gpurnn.LSTM(8, 16), 4)]
    ['floating-point operations', 'bytes read and written', 'memory (MiB)']
    """
    where = "cost"
    if not len(steps):
        raise ValueError(f"{where}: steps is empty, expected at least one length")
    costs = [complexity(layer, T, B, None if k is None else min(k, T)) for T in steps]
    lines = {"forward": [c.forward for c in costs], "BPTT": [c.bptt for c in costs]}
    truncated = [c.truncated for c in costs if c.truncated is not None]
    if truncated:
        lines[f"BPTT truncated to {k} steps"] = truncated
    figure = new_figure(where, 10.2, 3.6)
    panels: NDArray[Any] = figure.subplots(1, 3)
    quantities = (
        ("flops", 1, "floating-point operations"),
        ("bytes", 1, "bytes read and written"),
        ("memory", 2**20, "memory (MiB)"),
    )
    for axes, (quantity, unit, label) in zip(panels, quantities, strict=True):
        for k, (name, costs_of_it) in enumerate(lines.items()):
            values = [getattr(c, quantity) / unit for c in costs_of_it]
            axes.loglog(steps, values, **line(k), marker="o", markersize=3, linewidth=1.4, label=name, base=10)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("sequence length T (steps)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    write(where, figure, path)
    return panels


def _panels(
    where: str, shown: Mapping[str, Any], width: float, height: float, name: str = "spectra"
) -> tuple[NDArray[Any], Figure]:
    """A row of panels that share their axes, one for each entry."""
    if not shown:
        raise ValueError(f"{where}: {name} is empty, expected at least one entry")
    figure = new_figure(where, max(4.2, width * len(shown)), height)
    return figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], figure
