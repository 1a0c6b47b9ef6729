"""Pictures of what was predicted for groups of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .terminal import say


def draw_groups(actual: list[Any] | None, found: list[Any], classes: list[str], target: str, path: Path) -> None:
    """Draw what was found for each group, against what is the case where that is known."""
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
        axes.scatter(actual, found, s=18, color="tab:blue", alpha=0.7, linewidth=0, label="a group")
        axes.set_xlabel(f"{target} as it is", parse_math=False)
        axes.set_ylabel(f"{target} as predicted", parse_math=False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    plots.written("gpurnn", figure, path)
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
    if classes:
        axes.bar(range(len(classes)), [found.count(name) for name in classes], color="tab:blue")
        long = max(map(len, classes)) * len(classes) > 40
        axes.set_xticks(range(len(classes)), classes, rotation=45 if long else 0, parse_math=False)
    else:
        axes.hist(found, bins=min(40, max(5, len(found) // 5)), color="tab:blue")
    axes.set_xlabel(f"{target} as predicted", parse_math=False)
    axes.set_ylabel("number of groups")
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis="y")
