"""``gpurnn predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .fit import PREDICTED, PREDICTIONS, answers_of, quality, scaled
from .options import PathType, computing_on, device_option, encoding_option
from .pictures import draw_groups
from .run import RUN
from .tables import MODEL, csv_bytes, details_of, features_of, groups_of, read_table, targets_of
from .terminal import Refusal, quiet_option, refusing, say, warn


@click.command(short_help="Predict with the model of `gpurnn fit`.")
@click.argument("directory", type=PathType(path_type=Path), metavar="DIR")
@click.argument("file", type=PathType(allow_dash=True), metavar="DATA.csv")
@click.option(
    "--out", type=PathType(path_type=Path, allow_dash=True), metavar="FILE.csv",
    help="The file of the predictions, with a picture next to it; - prints them.  [default: DIR/predictions.csv]",
)  # fmt: skip
@encoding_option
@device_option
@quiet_option
def predict(directory: Path, file: str, out: Path | None, encoding: str | None, device: str) -> None:
    """Predict the class or the number of each group of rows of a CSV file, with the model of `gpurnn fit` in DIR.

    The file needs the columns that the model was fitted with, except the target. If the target is there, the answers
    are compared with it. Each line of the predictions is for a group: its name, the answer, and the probability of each
    class.

    \b
    gpurnn predict trips-model NEW.csv
    gpurnn predict trips-model NEW.csv --out answers.csv
    """
    details = details_of(directory, "fit")
    table = read_table(file, encoding)
    group, target, classes, mean = details["group"], details["target"], details["classes"], details["mean"]
    groups = groups_of(table, group, details["order"], details["time_format"])
    examples = features_of(table, groups, details["features"])
    actual: list[Any] | None = None
    if target in table.columns and not table.missing(target):
        if classes:
            actual = list(targets_of(table, groups, target, classes))
        elif table.is_numeric(target):
            targets_of(table, groups, target)
            values = table.numbers(target)
            actual = [values[rows[0]] for rows in groups.rows]
        else:
            warn(f"the answers are not compared with column {target!r}, which holds other than numbers")
    if out is not None and str(out) != "-":
        if out.suffix.lower() != ".csv":
            raise Refusal(f"--out {out}: expected a name that ends in .csv")
        for path in (out, out.with_suffix(".png")):
            if path.exists():
                raise Refusal(f"{path}: is there already; choose another --out, or move it away")
    from .. import _files, models

    with computing_on(device) as xp:
        kind: Any = models.SequenceClassifier if classes else models.SequenceRegressor
        with refusing(ValueError, OSError):
            model = kind.from_file(directory / MODEL)
        sizes, expected = (model.recurrent.input_size, model.output.out_features), (len(mean), len(classes) or 1)
        if sizes != expected:
            raise Refusal(
                f"{directory / MODEL}: has {sizes[0]} features and {sizes[1]} outputs, expected {expected[0]} and "
                f"{expected[1]}, as {RUN} has"
            )
        found, chances = answers_of(model.to(xp), scaled(xp, examples, details), classes, details)
    header = [group, target, *(f"probability of {name}" for name in classes)]
    rows = []
    for i, name in enumerate(groups.names):
        answer = found[i] if classes else str(found[i])
        rows.append([name, answer, *([f"{chance:.4f}" for chance in chances[i]] if classes else [])])
    written = csv_bytes(header, rows)
    if str(out) == "-":
        click.echo(written.decode(), nl=False)
        return
    path = out or directory / PREDICTIONS
    _files.write_atomically(path, written)
    if actual is not None:
        say(quality(actual, found, classes))
    say(f"predictions {path}")
    picture = out.with_suffix(".png") if out else directory / PREDICTED
    picture.unlink(missing_ok=True)  # the picture of earlier predictions must not stay if this one cannot be drawn
    draw_groups(actual, found, classes, target, picture)
