"""Pictures of predictions for groups of rows, and of forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .terminal import say


def draw_groups(actual: list[Any] | None, found: list[Any], classes: list[str], target: str, path: Path) -> None:
    """Draw the prediction for each group, compared with the true target if that is known."""
    try:
        from .. import plots

        figure = plots.new_figure("gpurnn", 6.0, 4.6)
    except ImportError:
        say("picture     none: matplotlib is not installed; pip install matplotlib")
        return
    axes = figure.add_subplot()
    if actual is None:
        _spread(axes, found, classes, target)
    elif classes:
        _confusion(figure, axes, actual, found, classes, target)
    else:
        low, high = min(*actual, *found), max(*actual, *found)
        axes.plot([low, high], [low, high], color="gray", linewidth=1, label="exactly right")
        axes.scatter(actual, found, s=18, color=plots.COLOURS[0], alpha=0.7, linewidth=0, label="a group")
        axes.set_xlabel(f"{target} as it is", parse_math=False)
        axes.set_ylabel(f"{target} as predicted", parse_math=False)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", frameon=False)
    plots.write("gpurnn", figure, path)
    say(f"picture     {path}")


def _confusion(figure: Any, axes: Any, actual: list[Any], found: list[Any], classes: list[str], target: str) -> None:
    counts = [
        [sum((a, f) == (row, column) for a, f in zip(actual, found, strict=True)) for column in classes]
        for row in classes
    ]
    axes.imshow(counts, cmap="Blues", vmin=0, aspect="auto")
    most = max(map(max, counts))
    if len(classes) <= 20:
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                axes.text(j, i, count, ha="center", va="center", color="white" if count > most / 2 else "black")
    long = max(map(len, classes)) * len(classes) > 40
    axes.set_xticks(range(len(classes)), classes, rotation=45 if long else 0, ha="right" if long else "center",
                    parse_math=False)  # fmt: skip
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set_xlabel(f"{target} as predicted", parse_math=False)
    axes.set_ylabel(f"{target} as it is", parse_math=False)
    axes.set_title(f"number of groups, of {len(actual)}", fontsize=10)


def _spread(axes: Any, found: list[Any], classes: list[str], target: str) -> None:
    from .. import plots

    if classes:
        axes.bar(range(len(classes)), [found.count(name) for name in classes], color=plots.COLOURS[0])
        long = max(map(len, classes)) * len(classes) > 40
        axes.set_xticks(range(len(classes)), classes, rotation=45 if long else 0, parse_math=False)
    else:
        axes.hist(found, bins=min(40, max(5, len(found) // 5)), color=plots.COLOURS[0])
    axes.set_xlabel(f"{target} as predicted", parse_math=False)
    axes.set_ylabel("number of groups")
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis="y")


PANELS = 6
"""The largest number of series that are drawn."""


def draw_forecasts(series: list[Any], found: list[Any], names: tuple[str, str], path: Path) -> None:
    """Draw the end of each series and its forecast; ``names`` are the names of the columns of times and values."""
    try:
        from .. import plots

        shown = min(len(series), PANELS)
        figure = plots.new_figure("forecast", 7.0, 1.6 + 2.6 * shown)
    except ImportError:
        say("picture     none: matplotlib is not installed; pip install matplotlib")
        return
    panels = figure.subplots(shown, squeeze=False)[:, 0]
    for axes, one, ahead in zip(panels, series, found, strict=False):
        count = max(60, 3 * len(one.ahead))
        plots.draw_forecast(axes, one.times[-count:], one.values[-count:], one.ahead, ahead)
        axes.set_ylabel(f"{names[1]} of {one.name}" if one.name else names[1], parse_math=False)
    panels[-1].set_xlabel(names[0], parse_math=False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    plots.write("forecast", figure, path)
    left = len(series) - shown
    say(f"picture     {path}{f' (without {left} more series)' if left else ''}")
