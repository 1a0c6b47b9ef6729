"""``gpurnn fit``."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import click

from ..cells import CELLS, ELEMENTWISE
from ..layers.recurrent import MERGES
from .options import PathType, cell_options, choice, computing_on, device_option, encoding_option, integer, number
from .pictures import draw_groups
from .tables import (
    MODEL,
    Table,
    directory_of,
    features_of,
    groups_of,
    number_in,
    read_table,
    targets_of,
)
from .terminal import Refusal, progress_of, quiet_option, refusing, say, say_how_training_ended, warn
from .texts import STDIN

PICTURE, PREDICTIONS, PREDICTED = "fit.png", "predictions.csv", "predictions.png"
MOST_CLASSES = 10
"""Whole numbers are treated as classes if there are at most this many different ones."""


@click.command(
    short_help="Learn to predict from groups of rows of a CSV file.",
    context_settings={"show_default": True},
)
@click.argument("file", type=PathType(allow_dash=True), metavar="DATA.csv")
@click.option("--group", required=True, metavar="COLUMN", help="The group of a row, such as a patient or a trip.")
@click.option("--target", required=True, metavar="COLUMN", help="What to predict; the same in all rows of a group.")
@click.option("--features", metavar="A,B,...", help="Columns to predict from.  [default: all others]")
@click.option(
    "--order", metavar="COLUMN", help="Numbers or dates to sort a group's rows by.  [default: their order in the file]"
)
@click.option("--time-format", metavar="FORM", help="How dates of --order are written: %d.%m.%Y.")
@choice("--task", ["auto", "classify", "regress"], "Whether the target is a class or a number; auto looks at it.")
@choice("--cell", sorted(CELLS | ELEMENTWISE, key="gru".__ne__), "Recurrent cell.")
@cell_options
@choice("--merge", list(MERGES), "How the outputs of the two directions become one.")
@integer("--hidden", 32, "Width of the recurrent layer.")
@integer("--layers", 1, "Number of recurrent layers.")
@number("--dropout", 0.1, "Dropout rate.", max=1, max_open=True)
@integer("--epochs", 100, "Largest number of passes over the groups; fewer if the held-out loss stops falling.")
@integer("--batch", 16, "Groups in a batch.")
@number("--lr", 0.005, "Learning rate.", min_open=True)
@number("--validation-fraction", 0.2, "Share of the groups that is held out to score the model.", max=1, max_open=True)
@click.option("--out", type=PathType(path_type=Path), metavar="DIR", show_default=False,
              help="Directory of the results.  [default: DATA-model]")  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace what an earlier fit left in DIR.")
@integer("--seed", 0, "Seeds parameters, the held-out groups and training.", least=0)
@encoding_option
@device_option
@quiet_option
def fit(
    file: str,
    group: str,
    target: str,
    features: str | None,
    order: str | None,
    time_format: str | None,
    task: str,
    out: Path | None,
    replace: bool,
    encoding: str | None,
    device: str,
    **options: Any,
) -> None:
    """Learn to predict a class or a number for each group of rows of a CSV file.

    A group, such as a patient, a trip or a machine, is a sequence: each of its rows is a step, with a number in each of
    the --features. All rows of a group have the same --target. Words are classes, numbers are values. Some groups are
    held out to score the model. DIR receives the model (model.safetensors), the columns and options that it was fitted
    with (run.json), and fit.png, which shows its answers for the held-out groups.

    \b
    gpurnn fit trips.csv --group trip --target vehicle
    gpurnn fit patients.csv --group id --order day --features pulse,fever --target stay --task regress
    gpurnn predict trips-model NEW.csv
    """
    table = read_table(file, encoding)
    if time_format is not None and order is None:
        warn("--time-format has no effect without --order")
    groups = groups_of(table, group, order, time_format)
    texts = targets_of(table, groups, target)
    names = _features(table, features, (group, target, order))
    examples = features_of(table, groups, names)
    classes = _classes(table, texts, target, task)
    if len(groups.names) < 4:
        raise Refusal(f"{table.file}: has {len(groups.names)} groups in {group!r}, expected at least 4 to learn from")
    out = out or Path(f"{'table' if file == STDIN else Path(file).stem}-model")
    with directory_of(out, "fit", [MODEL, PICTURE, PREDICTIONS, PREDICTED], replace) as folder:
        rows = [len(example) for example in examples]
        what = f"{len(classes)} classes of {target}: {', '.join(classes[:8])}" if classes else f"{target}, a number"
        say(f"{len(groups.names)} groups of {min(rows)} to {max(rows)} rows, {len(names)} features; {what}")
        with computing_on(device) as xp:
            values = [] if classes else [table.numbers(target)[rows[0]] for rows in groups.rows]
            model, details, answers = _fitted(xp, names, examples, texts, values, classes, options)
        folder.details = {
            "command": "fit", "group": group, "target": target, "order": order,
            "time_format": time_format, "classes": classes, **details,
        }  # fmt: skip
        # A kill must not leave the model of one fit with the scales of another.
        for name in folder.names:
            (out / name).unlink(missing_ok=True)
        with refusing(ValueError, OSError):
            folder.begin(anew=True)
        model.save(out / MODEL)
        if answers is not None:
            say(quality(answers[0], answers[1], classes) + " that it had not seen")
            draw_groups(answers[0], answers[1], classes, target, out / PICTURE)
        say(f"model       {out / MODEL}")
        say(f"predict     gpurnn predict {shlex.quote(str(out))} NEW.csv")


def _features(table: Table, chosen: str | None, others: tuple[str | None, ...]) -> list[str]:
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        for name in names:
            table.column(name, "--features")
            if name in others[:2]:
                raise Refusal(
                    f"--features: {name!r} is the {'group' if name == others[0] else 'target'}, and no feature"
                )
        if len(set(names)) < len(names):
            raise Refusal("--features: names a column twice")
        return names
    names = [name for name in table.columns if name not in others]
    numeric = [name for name in names if table.is_numeric(name)]
    left = [name for name in names if name not in numeric]
    if left and numeric:
        say(f"left out, as they hold other than numbers: {', '.join(left)}")
    if not numeric:
        raise Refusal(f"{table.file}: has no column of numbers to predict from, besides the group and the target")
    return numeric


def _classes(table: Table, texts: list[str], target: str, task: str) -> list[str]:
    """The classes in order; none if the target is a number."""
    numeric = table.is_numeric(target)
    whole = numeric and all(value == int(value) for value in table.numbers(target))
    if task == "regress" and not numeric:
        row = next(row for row in range(len(table)) if table.number(row, target) is None)
        raise Refusal(
            f"{table.place(row, target)}: {table.columns[target][row]!r} is not a number, which --task regress needs"
        )
    if task == "regress" or (task == "auto" and numeric and not (whole and len(set(texts)) <= MOST_CLASSES)):
        return []
    if task == "auto" and numeric:
        say(f"the {len(set(texts))} whole numbers of {target} are taken for classes; for values add --task regress")
    classes = sorted(set(texts), key=(lambda text: number_in(text, table.comma) or 0.0) if numeric else None)
    if len(classes) < 2:
        raise Refusal(f"{table.file}: column {target!r} is {classes[0]!r} everywhere, so there is nothing to learn")
    if len(classes) > len(texts) // 2:
        raise Refusal(
            f"{table.file}: column {target!r} has {len(classes)} classes for {len(texts)} groups, expected several "
            "groups of each; is it the right column?"
        )
    return classes


def _fitted(
    xp: Any,
    features: list[str],
    examples: list[Any],
    texts: list[str],
    values: list[float],
    classes: list[str],
    options: dict[str, Any],
) -> tuple[Any, dict[str, Any], Any]:
    """The fitted model, its scaling, and the targets and answers of the held-out groups (None without such groups).

    The targets are the ``texts`` if there are ``classes``, and the ``values`` otherwise.
    """
    import numpy as np

    from .. import models, optimizers
    from ..models.examples import scale_of

    rng = np.random.default_rng(options["seed"])
    count = len(examples)
    aside = min(round(count * options["validation_fraction"]), count - 2)
    order = rng.permutation(count).tolist()
    held, known = order[:aside], order[aside:]
    if aside == 0 and options["validation_fraction"]:
        warn("no group is held out, as there are too few")
    mean, std = scale_of(np.concatenate([examples[i] for i in known]))
    targets: Any = [classes.index(text) for text in texts] if classes else values
    middle, spread = 0.0, 1.0
    if not classes:
        middle, spread = (float(scale[0]) for scale in scale_of(np.asarray([targets[i] for i in known])))
    details: dict[str, Any] = {
        "features": features, "mean": mean.tolist(), "std": std.tolist(), "target_mean": middle, "target_std": spread
    }  # fmt: skip
    inputs = scaled(xp, examples, details)

    def of(chosen: list[int]) -> tuple[list[Any], Any]:
        if classes:
            return [inputs[i] for i in chosen], [targets[i] for i in chosen]
        values = (np.asarray([targets[i] for i in chosen]) - middle) / spread
        return [inputs[i] for i in chosen], xp.asarray(values[:, None].astype(np.float32))

    kind: Any = models.SequenceClassifier if classes else models.SequenceRegressor
    with refusing(ValueError, TypeError):
        model = kind(
            len(mean), options["hidden"], len(classes) or 1, options["layers"], cell=options["cell"],
            cell_options=options["option"], merge=options["merge"], dropout=options["dropout"], pooling="mean",
            bidirectional=True, rng=options["seed"],
        ).to(xp)  # fmt: skip
    total = options["epochs"] * math.ceil(len(known) / options["batch"])
    stop = {"validation": of(held), "patience": 15} if held else {}
    model.fit(
        *of(known), epochs=options["epochs"], batch_size=options["batch"], rng=options["seed"],
        optimizer=optimizers.AdamW(options["lr"], weight_decay=0.01), **stop, **progress_of(lambda: total, "verbose"),
    )  # fmt: skip
    say_how_training_ended(model.trainer_)
    if not held:
        return model, details, None
    found = answers_of(model, of(held)[0], classes, details)[0]
    return model, details, ([texts[i] for i in held] if classes else [targets[i] for i in held], found)


def scaled(xp: Any, examples: list[Any], details: dict[str, Any]) -> list[Any]:
    """The scaled features that the network reads; reject one that is too large for it."""
    import numpy as np

    mean, std = np.asarray(details["mean"]), np.asarray(details["std"])
    found = []
    for example in examples:
        with np.errstate(over="ignore"):
            values = ((example - mean) / std).astype(np.float32)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0].tolist()
            raise Refusal(
                f"column {details['features'][column]!r} holds {example[row, column]:g}, which is too far from the "
                f"values that the model is fitted to, of mean {mean[column]:g} and standard deviation {std[column]:g}"
            )
        found.append(xp.asarray(values))
    return found


def answers_of(model: Any, inputs: list[Any], classes: list[str], details: dict[str, Any]) -> tuple[list[Any], Any]:
    """The class or the value of each group, and the class probabilities (N, classes), None for values."""
    from .._dispatch import to_numpy

    if classes:
        chances = to_numpy(model.predict_proba(inputs))
        return [classes[i] for i in chances.argmax(axis=1).tolist()], chances
    scaled = to_numpy(model.predict(inputs))[:, 0].astype("float64")  # float32 would lose the digits of a large mean
    values = scaled * details["target_std"] + details["target_mean"]
    return values.tolist(), None


def quality(actual: list[Any], found: list[Any], classes: list[str]) -> str:
    """The score of the answers, compared with that of a constant answer."""
    import numpy as np

    count = len(actual)
    if classes:
        right = sum(a == b for a, b in zip(actual, found, strict=True))
        most = max(actual.count(name) for name in classes)
        return (
            f"{right} of {count} groups are right ({right / count:.0%}; always the commonest class: {most / count:.0%})"
        )
    truth, guess = np.asarray(actual), np.asarray(found)
    error, naive = np.abs(guess - truth).mean(), np.abs(truth - truth.mean()).mean()
    return f"mean absolute error {error:.4g} (always their mean: {naive:.4g}) on {count} groups"
