"""Pictures of a training run. They need matplotlib, which ``pip install 'gpurnn[plot]'`` brings."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {"bits_per_character": "bits per character", "perplexity": "perplexity", "loss": "loss (nats per target)"}


def loss_curve(
    metrics: str | os.PathLike[str] | Sequence[dict[str, Any]], path: str | os.PathLike[str] | None = None
) -> Figure:
    """The training and the validation loss over the training steps.

    The loss is drawn in bits per character or as perplexity where the metrics have it. The thin line is what the
    metrics hold, the thick one its moving average.

    Parameters
    ----------
    metrics : path or list of dict
        The ``metrics.jsonl`` of a `Trainer`, or its ``history``.
    path : path, optional
        Where to write the picture; its suffix says the format.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        There is no training loss in the metrics.

    Examples
    --------
    >>> figure = loss_curve([{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5}])
    >>> figure.axes[0].get_ylabel()
    'loss (nats per target)'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("loss_curve: matplotlib is not installed; pip install 'gpurnn[plot]'") from error
    if isinstance(metrics, (str, os.PathLike)):
        metrics = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    training = [record for record in metrics if "loss" in record]
    validation = [record for record in metrics if "validation_loss" in record]
    if not training:
        raise ValueError("loss_curve: metrics holds no training loss, expected at least one record with a loss")
    unit = next(name for name in _LABELS if name in training[0])

    figure = Figure(figsize=(7.0, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    steps, values = [r["step"] for r in training], [r[unit] for r in training]
    axes.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=0.8, label="training")
    axes.plot(steps, _smoothed(values), color="tab:blue", linewidth=1.8, label="training, moving average")
    if validation:
        axes.plot(
            [r["step"] for r in validation],
            [r[f"validation_{unit}"] for r in validation],
            color="tab:orange", marker="o", markersize=4, linewidth=1.2, label="validation",
        )  # fmt: skip
    axes.set_xlabel("training step")
    axes.set_ylabel(_LABELS[unit])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    if path is not None:
        figure.savefig(path)
    return figure


def _smoothed(values: list[float]) -> list[float]:
    """The moving average over a twentieth of the values, centred, and so over fewer of them towards the ends."""
    smoothed = []
    for i in range(len(values)):
        reach = min(len(values) // 40, i, len(values) - 1 - i)
        part = values[i - reach : i + reach + 1]
        smoothed.append(sum(part) / len(part))
    return smoothed
