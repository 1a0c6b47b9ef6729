"""Pictures of training runs, forecasts and alignments. They need matplotlib.

Each function returns the axes that it drew in, so that you can add to them. ``axes.figure`` is their figure; pyplot
does not manage it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _checks, _dispatch, _files, _metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .models import Forecast, LanguageModel

_LABELS = {"bits_per_character": "bits per character", "perplexity": "perplexity"}


PathLike = str | os.PathLike[str]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which people with any kind of colour vision can distinguish."""

DASHES = ("-", "--", "-.", ":")


def line(k: int) -> dict[str, Any]:
    """The colour and dashes of line k; the dashes distinguish lines in a print without colours."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k % len(DASHES)]}


def new_figure(where: str, width: float, height: float) -> Figure:
    """An empty figure of this size in inches; ``where`` is the caller's name for the error if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{where}: matplotlib is not installed; pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def panel(where: str, width: float, height: float, ax: Axes | None) -> Axes:
    """The caller's axes, or the axes of a new figure of this size in inches."""
    if ax is None:
        return new_figure(where, width, height).add_subplot()
    if not hasattr(ax, "get_xlabel"):
        raise TypeError(f"{where}: ax is {_checks.described(ax)}, expected the axes of a matplotlib figure, or None")
    return ax


def whole_numbers(axis: Any) -> None:
    """Place the ticks of an axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def write(where: str, figure: Any, path: PathLike | None) -> None:
    """Write the figure to ``path``, if given, atomically."""
    if path is not None:
        _checks.path(where, "path", path)
        picture, target = io.BytesIO(), Path(path)
        form = target.suffix[1:] or figure.canvas.get_default_filetype()
        figure.savefig(picture, format=form)
        _files.write_atomically(target if target.suffix else f"{target}.{form}", picture.getvalue())


Metrics = str | os.PathLike[str] | Sequence[dict[str, Any]]


def loss_curve(
    metrics: Metrics | Mapping[str, Metrics], path: PathLike | None = None, *, ax: Axes | None = None
) -> Axes:
    """The training and the validation loss over the training steps, of one run or of several together.

    The loss is drawn in bits per character or as perplexity if all metrics have it, and otherwise in the unit that the
    metrics name: nats per target for a cross-entropy, a squared error for a forecaster. The thin line is the recorded
    loss, the thick line its moving average. The validation loss has markers. Each of several runs has its own colour.

    Parameters
    ----------
    metrics : path, list of dict, or dict of str to these
        The ``metrics.jsonl`` of a `Trainer`, or its ``history``. A damaged line of a file is left out with a warning.
        For several runs: a dict of these, by the run's name in the legend.
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
    ValueError, TypeError
        There is no training loss in the metrics, the losses of several runs have different units, or an argument is
        invalid.
    OSError
        A file of metrics cannot be read.

    Examples
    --------
    >>> import gpurnn
    >>> axes = loss_curve([{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5}])
    >>> axes.get_ylabel()
    'loss'
    >>> model = gpurnn.Forecaster(window=3, hidden_size=4)
    >>> model = model.fit(np.arange(20.0, dtype="float32"), epochs=1, log_interval=1)
    >>> loss_curve(model.trainer_.history).get_ylabel()
    'loss (mean squared error of the scaled series)'
    >>> axes = loss_curve({"small": [{"step": 1, "loss": 2.0}], "large": [{"step": 1, "loss": 1.0}]})
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['small', 'large']
    """
    if isinstance(metrics, Mapping):
        if not metrics:
            raise ValueError("loss_curve: metrics is empty, expected at least one run")
        runs = {str(name): _losses(f"metrics[{name!r}]", each) for name, each in metrics.items()}
    else:
        runs = {"": _losses("metrics", metrics)}
    all_training = [r for training, _ in runs.values() for r in training]
    all_validation = [r for _, validation in runs.values() for r in validation]
    units = {records[0].get(_metrics.UNIT) for records, _ in runs.values()}
    if len(units) > 1:
        raise ValueError(
            f"loss_curve: the losses of metrics are in {' and in '.join(sorted(map(str, units)))}, expected one unit"
        )
    unit, label = "loss", "loss"
    if None not in units:
        label = f"loss ({units.pop()})"
    for name, words in _LABELS.items():
        # A run that was resumed with another metric has that metric only in some of its records.
        if all(name in r for r in all_training) and all(f"validation_{name}" in r for r in all_validation):
            unit, label = name, words

    axes = panel("loss_curve", 7.0, 4.2, ax)
    for k, (name, (training, validation)) in enumerate(runs.items()):
        steps, values = [r["step"] for r in training], [float(r[unit]) for r in training]
        colour, checked = COLOURS[k % len(COLOURS)], COLOURS[(k if name else 1) % len(COLOURS)]
        dashes = DASHES[k % len(DASHES)]
        axes.plot(steps, values, color=colour, alpha=0.35, linewidth=0.8, label=None if name else "training")
        mean = name or "training, moving average"
        axes.plot(steps, _smoothed(values), color=colour, linestyle=dashes, linewidth=1.8, label=mean)
        if validation:
            axes.plot(
                [r["step"] for r in validation],
                [r[f"validation_{unit}"] for r in validation],
                color=checked, linestyle=dashes, marker="o", markersize=4, linewidth=1.2,
                label=f"{name}, validation" if name else "validation",
            )  # fmt: skip
    axes.set_xlabel("training step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", frameon=False)
    write("loss_curve", axes.figure, path)
    return axes


def _losses(name: str, metrics: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records with a training loss, and those with a validation loss, of one run."""
    if isinstance(metrics, (str, os.PathLike)):
        _checks.path("loss_curve", name, metrics)
        metrics = _metrics.read(metrics).records
    records = [record for record in metrics if isinstance(record, dict)] if isinstance(metrics, Sequence) else None
    if records is None or len(records) < len(metrics):
        raise TypeError(f"loss_curve: {name} is {_checks.described(metrics)}, expected a path or a list of dicts")
    training = [record for record in records if "loss" in record]
    if not training:
        raise ValueError(f"loss_curve: {name} holds no training loss, expected at least one record with a loss")
    return training, [record for record in records if "validation_loss" in record]


def _smoothed(values: list[float]) -> NDArray[Any]:
    """The centred moving average over a twentieth of the values; over fewer values near the ends."""
    places = np.arange(len(values))
    reach = np.minimum(len(values) // 40, np.minimum(places, places[::-1]))
    # From each pair of places the sum of the values between them. A zero ends the last one.
    borders = np.stack([places - reach, places + reach + 1], axis=1).ravel()
    return np.add.reduceat([*values, 0.0], borders)[::2] / (2 * reach + 1)


def forecast(
    history: Any,
    forecast: Forecast,
    path: PathLike | None = None,
    *,
    actual: Any = None,
    names: Sequence[str] | None = None,
    start: int = 0,
    times: Sequence[Any] | None = None,
) -> NDArray[Any]:
    """Draw a series, its forecast and the prediction interval; a panel for each feature.

    Parameters
    ----------
    history : (T,) or (T, features) array, pandas or polars series, or pandas table
        The series that the forecast continues, or the end of it. A pandas index gives the times.
    forecast : Forecast
        The result of `gpurnn.Forecaster.forecast`. Its further quantiles are drawn too. Two quantiles q and 1 - q are
        drawn as an interval.
    path : path, optional
        Where to write the picture; its suffix says the format.
    actual : (steps,) or (steps, features) array, optional
        The values that followed, drawn with the forecast.
    names : sequence of str, optional
        The name of each feature, with its unit: the labels of the vertical axes.
    start : int
        The time of the first value of ``history``, such as a year.
    times : sequence of T + steps numbers, dates or datetimes, optional
        The times of the values of ``history`` and of the forecast, instead of ``start``.

    Returns
    -------
    (features,) array of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        The arrays differ in their number of features, names, times or steps.

    Examples
    --------
    >>> import numpy as np
    >>> from gpurnn.models import Forecast
    >>> ahead = Forecast(np.array([3.0, 4.0]), np.array([2.0, 2.5]), np.array([4.0, 5.5]), level=0.9)
    >>> (axes,) = forecast(np.array([0.0, 1.0, 2.0]), ahead, names=["height (m)"])
    >>> axes.get_ylabel(), [text.get_text() for text in axes.figure.legends[0].get_texts()]
    ('height (m)', ['history', 'forecast', '90% prediction interval'])
    """
    past, point = _columns("history", history), _columns("forecast.point", forecast.point)
    lower, upper = _columns("forecast.lower", forecast.lower), _columns("forecast.upper", forecast.upper)
    steps, features = point.shape
    came = None if actual is None else _columns("actual", actual)
    if past.shape[1] != features:
        raise ValueError(f"forecast: history has {past.shape[1]} features, expected {features} as the forecast has")
    if came is not None and came.shape != point.shape:
        raise ValueError(f"forecast: actual has shape {came.shape}, expected (steps, features) = {point.shape}")
    if names is None:
        names = ["value"] if features == 1 else [f"value of feature {i}" for i in range(features)]
    if len(names) != features:
        raise ValueError(f"forecast: names has {len(names)} entries, expected {features}")

    figure = new_figure("forecast", 7.0, 1.6 + 2.6 * features)
    panels: NDArray[Any] = figure.subplots(features, sharex=True, squeeze=False)[:, 0]
    length = past.shape[0]
    if times is None and hasattr(history, "index") and hasattr(forecast.point, "index"):
        times = [*history.index, *forecast.point.index]
        times = [t.to_timestamp() if hasattr(t, "to_timestamp") else t for t in times]
    at: Sequence[Any] = range(start, start + length + steps) if times is None else list(times)
    if len(at) != length + steps:
        raise ValueError(f"forecast: times has {len(at)} entries, expected T + steps = {length + steps}")
    ahead = at[length:]
    for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
        of_feature = replace(
            forecast, point=point[:, i], lower=lower[:, i], upper=upper[:, i],
            quantiles={q: _columns("forecast.quantiles", v)[:, i] for q, v in forecast.quantiles.items()},
        )  # fmt: skip
        draw_forecast(axes, at[:length], past[:, i], ahead, of_feature, None if came is None else came[:, i])
        axes.set_ylabel(name)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    panels[-1].set_xlabel("time step" if start == 0 and times is None else "time")
    if times is None:
        whole_numbers(panels[-1].xaxis)
    write("forecast", figure, path)
    return panels


def draw_forecast(
    axes: Any, times: Sequence[Any], history: Any, ahead: Sequence[Any], forecast: Forecast, actual: Any = None
) -> None:
    """Draw into one panel a series (T,) at its times, its forecast of (steps,) arrays and the values that followed."""
    axes.plot(times, history, color="black", linewidth=1.2, label="history")
    if actual is not None:
        axes.plot(ahead, actual, color="black", marker="o", markersize=3, linewidth=0.8, label="actual")
    marker = "o" if len(ahead) <= 40 else None
    axes.plot(ahead, forecast.point, color=COLOURS[0], marker=marker, markersize=3, linewidth=1.6, label="forecast")
    band = {"color": COLOURS[0], "linewidth": 0}
    interval = f"{100 * forecast.level:g}% prediction interval"
    axes.fill_between(ahead, forecast.lower, forecast.upper, label=interval, alpha=0.2, **band)
    for low, values in forecast.quantiles.items():
        high = next((q for q in forecast.quantiles if abs(low + q - 1) < 1e-9), None)
        if high is None or low == high:
            axes.plot(ahead, values, color=COLOURS[0], linewidth=0.8, linestyle="--", label=f"{low:g} quantile")
        elif low < high:
            label = f"{100 * (high - low):g}% interval"
            axes.fill_between(ahead, values, forecast.quantiles[high], label=label, alpha=0.35, **band)
    axes.grid(alpha=0.3)
    if hasattr(times[0], "year"):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def alignment(
    weights: Any,
    source: Sequence[str],
    target: Sequence[str],
    path: PathLike | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw a decoder's attention: alpha_ts, the share that target symbol t gives to source symbol s.

    Parameters
    ----------
    weights : (T, S) array
        The result of `gpurnn.Translator.alignment`.
    source, target : sequences of S and T str
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
        The weights are not (T, S).

    Examples
    --------
    >>> axes = alignment([[0.9, 0.1], [0.2, 0.8]], ["a", "b"], ["one", "two"])
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['one', 'two']
    """
    shares = np.asarray(weights if isinstance(weights, (list, tuple)) else _dispatch.to_numpy(weights))
    if shares.shape != (len(target), len(source)):
        raise ValueError(
            f"alignment: weights has shape {shares.shape}, expected (T, S) = ({len(target)}, {len(source)}), the "
            "numbers of symbols of target and source"
        )
    axes = panel("alignment", 1.8 + 0.34 * len(source), 1.4 + 0.3 * len(target), ax)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(source)), [_visible(symbol) for symbol in source], parse_math=False)
    axes.set_yticks(range(len(target)), [_visible(symbol) for symbol in target], parse_math=False)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("source")
    axes.set_ylabel("target, from top to bottom")
    axes.figure.colorbar(image, ax=axes, label="attention weight")
    write("alignment", axes.figure, path)
    return axes


def expectations(
    model: LanguageModel, text: str, path: PathLike | None = None, *, guesses: int = 5, ax: Axes | None = None
) -> Axes:
    """Draw the tokens that a language model expects at each place of a text, given all text before it.

    Below each token w_t of the text are the likeliest tokens v by P(w_t = v | w_1 .. w_{t-1}), the likeliest at the
    top. A darker guess is more probable. A frame marks the correct one.

    Parameters
    ----------
    model : gpurnn.LanguageModel
    text : str
        About 70 characters fit on the width of a page.
    path : path, optional
        Where to write the picture; its suffix says the format.
    guesses : int
        How many guesses are shown at each place.
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
        The text is empty, or ``guesses`` is not in 1 ... V.
    FloatingPointError
        The logits are NaN or infinite.

    Examples
    --------
    >>> import gpurnn
    >>> model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("hello"), 8, 16)
    >>> axes = expectations(model, "hello", guesses=2)
    >>> "".join(label.get_text() for label in axes.get_xticklabels())
    'hello'
    """
    where = "expectations"
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: text is {_checks.described(text) if text else 'empty'}, expected a str with tokens")
    guesses = _checks.integer_at_least(where, "guesses", guesses, 1)
    vocabulary = model.vocabulary
    tokens = vocabulary.encode(text)
    if guesses > len(vocabulary):
        raise ValueError(
            f"{where}: guesses is {guesses}, expected at most the {len(vocabulary)} tokens of the vocabulary"
        )
    xp = _dispatch.namespace(where, params=model.params["output.bias"])
    read = np.concatenate([np.array([vocabulary.start], tokens.dtype), tokens[:-1]])
    logits = np.asarray(_dispatch.to_numpy(model(_dispatch.from_numpy(xp, read[:, None]))[0]))[:, 0].astype(float)
    if not np.isfinite(logits).all():
        raise FloatingPointError(f"{where}: the logits of model are not finite")
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :guesses]

    shown = [_visible(symbol) for symbol in vocabulary.split(text)]
    symbols = {v: _visible(vocabulary.decode([v])) for v in {*best.ravel().tolist(), *tokens.tolist()}}
    width = 0.075 + 0.075 * max(map(len, symbols.values()))
    axes = panel(where, 1.8 + width * len(tokens), 1.1 + 0.22 * guesses, ax)
    image = axes.imshow(np.take_along_axis(shares, best, 1).T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for t, row in enumerate(best):
        for rank, v in enumerate(row):
            colour = "white" if shares[t, v] > 0.5 else "black"
            axes.text(
                t, rank, symbols[v], color=colour, fontsize=8, family="monospace", ha="center", va="center",
                parse_math=False,
            )  # fmt: skip
            if v == tokens[t]:
                axes.add_patch(_frame((t - 0.5, rank - 0.5)))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xticks(range(len(shown)), shown, parse_math=False, family="monospace", fontsize=9)
    axes.tick_params(length=0)
    axes.set_yticks(range(guesses), [str(rank + 1) for rank in range(guesses)])
    axes.set_xlabel("the text")
    axes.set_ylabel("guess")
    axes.figure.colorbar(image, ax=axes, label="probability", pad=0.01)
    write(where, axes.figure, path)
    return axes


def _frame(corner: tuple[float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=1.5)


def _visible(symbol: str) -> str:
    """A label for a symbol, with white space made visible."""
    return {" ": "\u2423", "\n": "\\n", "\t": "\\t"}.get(symbol, symbol)


def _columns(name: str, array: Any) -> Any:
    """The values of a series on the host, as (T, features)."""
    if hasattr(array, "to_numpy"):
        values = array.to_numpy()
    else:
        _dispatch.namespace("forecast", **{name: array})
        values = _dispatch.to_numpy(array)
    if values.ndim not in (1, 2):
        raise ValueError(f"forecast: {name} has shape {values.shape}, expected (T,) or (T, features)")
    return values[:, None] if values.ndim == 1 else values
