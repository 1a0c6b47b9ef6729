"""`gpurnn fit`, `predict` and `forecast`: CSV files in, answers and plots out, and errors by line and column."""

import csv
import json
import math
import re
from datetime import date, timedelta

import numpy as np
import pytest
from test_cli import files, piped, refused, run

from gpurnn import models
from gpurnn.cli.forecast import Row, _shape_of
from gpurnn.cli.tables import read_table, read_times
from gpurnn.models.forecasting.times import evenly_spaced
from gpurnn.training.directory import RunDirectory

QUICK = ["--epochs", "10"]


def table(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def series(tmp_path):
    rng = np.random.default_rng(0)
    values = [0.1 * t + 3 * math.sin(2 * math.pi * t / 12) + 0.2 * rng.normal() for t in range(120)]
    return table(
        tmp_path / "sales.csv",
        "month,sales",
        [f"{2010 + t // 12}-{t % 12 + 1:02d},{v:.3f}" for t, v in enumerate(values)],
    )


@pytest.fixture
def trips(tmp_path):
    """A word and a number for each of 40 groups of 3 to 8 rows, the rows in disorder."""
    rng, rows = np.random.default_rng(0), []
    for trip in range(40):
        fast = trip % 2
        speeds = rng.normal(5 + 3 * fast, 1, rng.integers(3, 9))
        rows += [
            f"t{trip},{second},{speed:.2f},{'car' if fast else 'bike'},{speeds.mean():.3f},x"
            for second, speed in enumerate(speeds)
        ]
    rng.shuffle(rows)
    return table(tmp_path / "trips.csv", "trip,second,speed,vehicle,mean,remark", rows)


FIT = ["--group", "trip", "--order", "second", "--epochs", "10", "--hidden", "8", "--lr", "0.02"]


# --- forecast ---


def test_a_forecast_of_trend_and_season(series, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("forecast", series, "--time", "month", "--target", "sales", *QUICK)
    said = result.stdout
    # Once without the last rows, and once with all.
    assert len(re.findall(r"^trained for \d+ of \d+ steps$", result.stderr, re.MULTILINE)) == 2
    out = tmp_path / "sales-forecast"
    names = sorted(path.name for path in out.iterdir())
    assert names == [".gpurnn.lock", "forecast.csv", "forecast.png", "model.safetensors", "run.json"]
    assert "120 rows, 2010-01 to 2019-12: a trend and a season of 12\n" in said
    assert "tried on the last 12 rows, which it had not seen: mean absolute error 0." in said
    found = rows_of(out / "forecast.csv")
    assert list(found[0]) == ["month", "sales", "sales_lower", "sales_upper"]
    assert [row["month"] for row in found] == [f"2020-{month:02d}" for month in range(1, 13)]
    for t, row in enumerate(found, 120):
        true = 0.1 * t + 3 * math.sin(2 * math.pi * t / 12)
        assert float(row["sales"]) == pytest.approx(true, abs=0.7)
        assert float(row["sales_lower"]) < float(row["sales"]) < float(row["sales_upper"])
    assert (out / "forecast.png").read_bytes().startswith(b"\x89PNG")
    assert isinstance(models.load(out / "model.safetensors"), models.Forecaster)
    # Running it again gives the same. Then use another directory and another length.
    run("forecast", series, "--time", "month", "--target", "sales", *QUICK, "--out", "again", "--steps", 3)
    assert rows_of(tmp_path / "again" / "forecast.csv")[0]["month"] == "2020-01"
    before = files(out)
    said = refused("forecast", series, "--time", "month", "--target", "sales", *QUICK)
    assert "already holds what gpurnn forecast made; add --replace" in said
    run("forecast", series, "--time", "month", "--target", "sales", *QUICK, "--replace")
    assert (out / "forecast.csv").read_bytes() == before[(out / "forecast.csv").relative_to(out)]


def test_values_that_grow_in_proportion_stay_above_zero(tmp_path):
    rng = np.random.default_rng(1)
    values = [math.exp(0.02 * t + 0.4 * math.sin(2 * math.pi * t / 12) + 0.03 * rng.normal()) for t in range(120)]
    path = table(tmp_path / "a.csv", "t,v", [f"{t},{v}" for t, v in enumerate(values)])
    said = run("forecast", path, "--time", "t", "--target", "v", "--out", tmp_path / "o", *QUICK, "--season", 12).stdout
    assert "a trend and a season of 12, in proportion to the values" in said
    found = rows_of(tmp_path / "o" / "forecast.csv")
    assert [row["t"] for row in found] == [str(t) for t in range(120, 132)]
    assert min(float(row["v_lower"]) for row in found) > 0
    assert all(0.7 < float(row["v"]) / math.exp(0.02 * t + 0.4 * math.sin(2 * math.pi * t / 12)) < 1.4
               for t, row in enumerate(found, 120))  # fmt: skip


def test_a_constant_series(tmp_path):
    path = table(tmp_path / "a.csv", "t,v", [f"{t},5" for t in range(40)])
    run("forecast", path, "--time", "t", "--target", "v", "--out", tmp_path / "o", *QUICK)
    assert all(float(row["v"]) == pytest.approx(5, abs=0.05) for row in rows_of(tmp_path / "o" / "forecast.csv"))


def days(count, start=date(2024, 1, 1), step=1):
    return [start + timedelta(days=step * i) for i in range(count)]


@pytest.mark.parametrize(
    ("texts", "form", "following"),
    [
        (["3", "5", "7"], None, ["9", "11", "13"]),
        (["0.1", "0.2", "0.3"], None, ["0.4", "0.5", "0.6"]),
        (["2024-02-27", "2024-02-28"], None, ["2024-02-29", "2024-03-01"]),
        (["2024-01-31", "2024-02-29", "2024-03-31"], None, ["2024-04-30", "2024-05-31"]),
        (["2024-11-15", "2024-12-15"], None, ["2025-01-15", "2025-02-15"]),
        (["2023-Q"], "%Y-Q", []),
        (["2024-07", "2024-10"], None, ["2025-01", "2025-04"]),
        (["2020-02-29", "2021-02-28"], None, ["2022-02-28", "2023-02-28", "2024-02-29"]),
        (["31.12.2024 22:00", "31.12.2024 23:00"], "%d.%m.%Y %H:%M", ["01.01.2025 00:00"]),
        (["2024-12-31T22:30:00", "2024-12-31T23:00:00"], None, ["2024-12-31T23:30:00"]),
        ([str(d) for d in days(12) if d.weekday() < 5], None, ["2024-01-15", "2024-01-16"]),
    ],
)
def test_times_go_on(tmp_path, texts, form, following):
    found, write = read_times(read_table(str(table(tmp_path / "t.csv", "t", texts)), None), "t", form)
    assert [write(time) for time in found] == texts
    if following:
        times = evenly_spaced(found).times
        assert [write(time) for time in times.following(len(following))] == following


def test_rows_that_are_missing(tmp_path):
    dates = days(60)
    lines = [f"{d};{10 + d.weekday()},5" for i, d in enumerate(dates) if i not in (20, 21, 40)]
    lines[5] = f"{dates[5]};"
    lines[0], lines[30] = lines[30], lines[0]
    path = table(tmp_path / "a.csv", "Tag;Wert", lines)
    arguments = ["forecast", path, "--time", "Tag", "--target", "Wert", *QUICK, "--out", tmp_path / "o"]
    said = run(*arguments).stdout
    assert "the rows are put in the order of Tag" in said
    assert "60 rows, 2024-01-01 to 2024-02-29" in said
    assert "1 value is missing, and left as a gap\n3 rows are missing, and left as a gap" in said
    assert rows_of(tmp_path / "o" / "forecast.csv")[0]["Tag"] == "2024-03-01"
    lines[20] = lines[20].replace("2024-01-23", "2024-01-23T12:00")
    table(path, "Tag;Wert", [line.replace(";", "T00:00;") if "T" not in line else line for line in lines])
    result = run(*arguments, "--replace")
    assert "warning: the rows are not at equal distances, first at line 22, 2024-01-23T12:00; they are" in result.stderr
    assert "57 rows" in result.stdout


@pytest.mark.parametrize(
    ("header", "rows", "options", "message"),
    [
        ("t,v", ["1,2", "2,x", "3,4"], [], "line 3, column 'v': 'x' is not a number"),
        ("t,v", ["1,2", "2,inf"], [], "line 3, column 'v': 'inf' is not a number"),
        ("t,v", ["1,2", "soon,3"], [], "line 3, column 't': 'soon' is not a number; the first time is one"),
        ("t,v", ["1.2.2024,3"], [], "line 2, column 't': '1.2.2024' is neither a number nor a date"),
        ("t,v", ["2024-01-01,3"], ["--time-format", "%d.%m.%Y"], "'2024-01-01' is not of the form %d.%m.%Y"),
        (
            "t,v",
            ["1,2", "2,3", "1,4"],
            [],
            "lines 2 and 4 have the same t, 1; a row for each time is expected; --group",
        ),
        ("t,v", ["1,2,3"], [], "line 2: has 3 values, but there are 2 columns"),
        ("t,t", ["1,2"], [], "has two columns named 't'"),
        ("t,v", [], [], "has no rows below the names of its columns, t, v"),
        ("t,w", ["1,2"], [], "has no column 'v' (--target); its columns are t, w"),
        ("t,v", ['1,"2'], [], "line 2: a quotation mark is not closed"),
        ("t,v", ["1,2", ",3"], [], "column 't' has no value on 1 lines (3); every row needs its time"),
        ("t,v", [f"{i},{i}" for i in range(19)], [], "has 19 rows, expected at least 20 to learn from"),
        ("t,v", [f"{i},{i}" for i in range(30)], ["--season", "16"], "--season 16: expected at most 15, half of the"),
        ("t,v", [f"{i},{i}" for i in range(30)], ["--window", "16"], "--window 16: expected at most 15"),
        ("t,v", [f"{i},NA" for i in range(30)], [], "column 'v' has no values"),
        ("t,v", [f"{i},{i}" for i in range(30)], ["--static", "v"], "--static: 'v' is a column of another option"),
        ("t,v,p", [f"{i},{i},1" for i in range(30)], ["--static", "p"], "give the column that parts them with --group"),
        (
            "t,v,p",
            [f"{i},{i},1" for i in range(30)],
            ["--known", "p"],
            "--known: {file} says no p of the rows",
        ),
        (
            "t,v,p",
            [f"{i},{i if i < 28 else ''},1" for i in range(30)],
            ["--known", "p", "--steps", "3"],
            "--steps 3: p are known for 2 rows to come",
        ),
        (
            "t,v,p",
            [f"{i},{i},{i or ''}" for i in range(30)],
            ["--known", "p"],
            "column 'p' has no value on 1 lines (2)",
        ),
        (
            "t,v,g",
            [f"{i},{i},{i // 25}" for i in range(30)],
            ["--group", "g"],
            "the group 1 has 5 rows, expected",
        ),
        (
            "t,v,g,s",
            [f"{i % 25},{i},{i // 25},{i // 30}" for i in range(50)],
            ["--group", "g", "--static", "s"],
            "line 32, column 's': '1', but '0' on line 27; all rows of the group 1 must have the same value",
        ),
    ],
)
def test_what_is_wrong_with_a_series_is_named(tmp_path, header, rows, options, message):
    path = table(tmp_path / "a.csv", header, rows)
    said = refused("forecast", path, "--time", "t", "--target", "v", "--out", tmp_path / "o", *QUICK, *options)
    assert message.replace("{file}", str(path)) in said
    assert not (tmp_path / "o").exists()


def test_a_forecast_of_several_series_with_covariates(tmp_path):
    rng, rows, truth = np.random.default_rng(0), [], {}
    for shop, level in (("north", 100), ("south", 5)):
        for t, day in enumerate(days(90 if shop == "north" else 80)):
            offer = rng.random() < 0.3
            truth[shop, str(day)] = level * (1 + 0.5 * offer)
            sold = f"{truth[shop, str(day)] * (1 + 0.01 * rng.normal()):.3f}"
            rows.append(
                f"{shop},{day},{sold if t < (84 if shop == 'north' else 74) else ''},{int(offer)},{level},{t % 3}"
            )
    path = table(tmp_path / "shops.csv", "shop,day,sold,offer,size,visits", rows)
    options = ["--group", "shop", "--known", "offer", "--static", "size", "--past", "visits", "--quantiles", "0.1,0.5"]
    result = run(
        "forecast", path, "--time", "day", "--target", "sold", *options, "--out", tmp_path / "o", "--epochs", 60
    )
    assert "2 series of 74 to 84 rows, 2024-01-01 to 2024-03-24: " in result.stdout
    assert (
        "tried on the last 6 rows of each of 2 series, which it had not seen: mean absolute scaled error"
        in result.stdout
    )
    found = rows_of(tmp_path / "o" / "forecast.csv")
    assert list(found[0]) == ["shop", "day", "sold", "sold_lower", "sold_upper", "sold_q0.1", "sold_q0.5"]
    assert [row["day"] for row in found] == [*map(str, days(90)[84:]), *map(str, days(80)[74:])]
    for row in found:
        assert float(row["sold"]) == pytest.approx(truth[row["shop"], row["day"]], rel=0.2)
    assert models.load(tmp_path / "o" / "model.safetensors").known_features == 1


def test_roundings_make_no_trend():
    """A season describes these series exactly, with a trend or without; only the roundings of the errors differ."""
    for period in (2, 3, 4, 5, 6, 7):
        for scale in (1.0, 3.0, 0.1):
            values = [scale * (t * t % period) for t in range(60)]
            series = Row("", list(range(60)), values, {}, [], 1)
            assert not _shape_of([series], [float(period)], 5).trend, (period, scale)


def test_rows_at_the_end_without_a_target_are_those_to_forecast(tmp_path):
    lines = [f"{t},{t % 5 if t < 55 else ''}" for t in range(60)]
    arguments = ["forecast", table(tmp_path / "a.csv", "t,v", lines), "--time", "t", "--target", "v", *QUICK]
    assert "season" not in run(*arguments, "--season", 1, "--out", tmp_path / "1").stdout.splitlines()[0]
    assert (
        "55 rows, 0 to 54: a season of 5 and 7\n" in run(*arguments, "--out", tmp_path / "5", "--season", "5,7").stdout
    )
    assert [row["t"] for row in rows_of(tmp_path / "5" / "forecast.csv")] == ["55", "56", "57", "58", "59"]
    for wrong, said in (
        (["--season", "7,x"], "'7,x' holds something other than numbers and commas"),
        (["--quantiles", "0.5,1"], "1 is not between 0 and 1"),
    ):
        assert said in run(*arguments, *wrong, code=2).stderr


def test_files_in_the_way_of_a_forecast_stay(series, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    (out / "forecast.csv").write_text("mine")
    arguments = ["forecast", series, "--time", "month", "--target", "sales", *QUICK, "--out", out]
    for options in ([], ["--replace"]):
        assert "holds forecast.csv, which no training run wrote there" in refused(*arguments, *options)
    assert (out / "forecast.csv").read_text() == "mine"
    (out / "forecast.csv").unlink()
    run(*arguments)
    with RunDirectory(out).locked(new=False):
        assert "is in use by another training run" in refused(*arguments, "--replace")
    said = refused("fit", series, "--group", "month", "--target", "sales", "--out", out, "--replace")
    assert "no column of numbers to predict from" in said
    assert "holds what gpurnn forecast made, expected a directory of gpurnn fit" in refused("predict", out, series)


def test_a_forecast_from_stdin(series, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    piped(series.read_text(), "forecast", "-", "--time", "month", "--target", "sales", *QUICK, "-q")
    assert (tmp_path / "table-forecast" / "forecast.csv").exists()


# --- fit and predict ---


def test_classes_of_groups(trips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("fit", trips, *FIT, "--target", "vehicle", "--features", "speed")
    said = result.stdout
    assert re.search(r"^trained for \d+ of \d+ steps$", result.stderr, re.MULTILINE)
    assert "40 groups of 3 to 8 rows, 1 features; 2 classes of vehicle: bike, car\n" in said
    assert "of 8 groups are right (" in said
    out = tmp_path / "trips-model"
    assert sorted(path.name for path in out.iterdir()) == [".gpurnn.lock", "fit.png", "model.safetensors", "run.json"]
    said = run("predict", out, trips).stdout
    share = int(said.partition(" of 40 groups")[0])
    assert share >= 36
    found = rows_of(out / "predictions.csv")
    assert list(found[0]) == ["trip", "vehicle", "probability of bike", "probability of car"]
    truth = {row["trip"]: row["vehicle"] for row in rows_of(trips)}
    assert sum(row["vehicle"] == truth[row["trip"]] for row in found) == share
    assert sorted(row["trip"] for row in found) == sorted(truth)
    assert all(
        float(row["probability of bike"]) + float(row["probability of car"]) == pytest.approx(1, abs=2e-4)
        for row in found
    )
    assert (out / "predictions.png").read_bytes().startswith(b"\x89PNG")
    # The target, the order of the rows in the file and other columns are not needed.
    lines = sorted(f"{row['speed']},{row['second']},{row['trip']}" for row in rows_of(trips))
    blind = table(tmp_path / "blind.csv", "speed,second,trip", lines)
    said = run("predict", out, blind, "--out", tmp_path / "answers.csv").stdout
    assert "right" not in said
    answers = {row["trip"]: row for row in rows_of(tmp_path / "answers.csv")}
    assert answers == {row["trip"]: row for row in found}
    assert (tmp_path / "answers.png").exists()
    printed = piped(blind.read_text(), "predict", out, "-", "--out", "-").stdout
    assert printed == (tmp_path / "answers.csv").read_text()


def test_values_of_groups(trips, tmp_path):
    out = tmp_path / "o"
    said = run("fit", trips, *FIT, "--target", "mean", "--out", out).stdout
    assert "left out, as they hold other than numbers: vehicle, remark\n" in said
    assert "features; mean, a number\n" in said
    run("predict", out, trips)
    truth = {row["trip"]: float(row["mean"]) for row in rows_of(trips)}
    found = {row["trip"]: float(row["mean"]) for row in rows_of(out / "predictions.csv")}
    assert np.corrcoef([truth[k] for k in truth], [found[k] for k in truth])[0, 1] > 0.9
    assert np.mean([abs(truth[k] - found[k]) for k in truth]) < 0.8


def test_large_values_of_groups_keep_their_digits(trips, tmp_path):
    """Float32 cannot tell apart two values about 1e9 that differ by less than 64."""
    errors, moved = [], tmp_path / "moved.csv"
    rows = [{**row, "mean": f"{1e9 + float(row['mean']):.3f}"} for row in rows_of(trips)]
    table(moved, ",".join(rows[0]), [",".join(row.values()) for row in rows])
    for path in (trips, moved):
        out = tmp_path / f"of-{path.stem}"
        run("fit", path, *FIT, "--target", "mean", "--features", "speed", "--out", out)
        run("predict", out, path)
        truth = {row["trip"]: float(row["mean"]) for row in rows_of(path)}
        found = {row["trip"]: float(row["mean"]) for row in rows_of(out / "predictions.csv")}
        errors.append([found[trip] - truth[trip] for trip in truth])
    np.testing.assert_allclose(errors[1], errors[0], atol=1e-4)


def test_whole_numbers_are_classes_or_values(tmp_path):
    path = table(tmp_path / "a.csv", "g,x,y", [f"{g},{g % 2 + 0.1 * i},{g % 2}" for g in range(20) for i in range(3)])
    fit = ["fit", path, "--group", "g", "--target", "y", "--epochs", "2", "--hidden", "4"]
    said = run(*fit, "--out", tmp_path / "c").stdout
    assert "the 2 whole numbers of y are taken for classes; for values add --task regress" in said
    assert "2 classes of y: 0, 1" in said
    assert "y, a number" in run(*fit, "--out", tmp_path / "r", "--task", "regress").stdout
    assert json.loads((tmp_path / "r" / "run.json").read_text())["classes"] == []


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            ["a,1,u", "a,2,v"],
            [],
            "line 3, column 'y': 'v', but 'u' on line 2; all rows of the group a must have",
        ),
        (["a,1,u", ",2,u"], [], "column 'g' has no value on 1 lines (3); every row needs its group"),
        (["a,1,u", "b,,u"], [], "column 'x' has no value on 1 lines (3); fill them in, or leave the column out"),
        (["a,1,u", "b,2,"], [], "column 'y' has no value on 1 lines (3); every group needs its target"),
        (["a,1,u", "b,q,v"], ["--features", "x"], "line 3, column 'x': 'q' is not a number; leave the column out"),
        (["a,1,u", "b,2,v"], ["--features", "z"], "has no column 'z' (--features); its columns are g, x, y"),
        (["a,1,u", "b,2,v"], ["--features", "y"], "--features: 'y' is the target, and no feature"),
        (["a,1,u", "b,2,v"], ["--features", "x,x"], "--features: names a column twice"),
        (["a,q,u", "b,q,v"], [], "has no column of numbers to predict from"),
        (["a,1,u", "b,2,u"], [], "column 'y' is 'u' everywhere, so there is nothing to learn"),
        (["a,1,u", "b,2,v"], [], "column 'y' has 2 classes for 2 groups, expected several groups of each"),
        (
            ["a,1,u", "b,2,v"],
            ["--task", "regress"],
            "line 2, column 'y': 'u' is not a number, which --task regress needs",
        ),
        (["a,1,1.5", "b,2,2.5"], [], "has 2 groups in 'g', expected at least 4 to learn from"),
    ],
)
def test_what_is_wrong_with_groups_is_named(tmp_path, rows, options, message):
    path = table(tmp_path / "a.csv", "g,x,y", rows)
    assert message in refused("fit", path, "--group", "g", "--target", "y", "--out", tmp_path / "o", *options)
    assert not (tmp_path / "o").exists()


def test_what_is_wrong_with_predictions(trips, tmp_path):
    out = tmp_path / "o"
    run("fit", trips, *FIT, "--target", "vehicle", "--out", out, "--epochs", 1)
    assert "no model in there (run.json); gpurnn fit makes one" in refused("predict", tmp_path, trips)
    (tmp_path / "there.png").write_text("mine")
    assert "there.png: is there already" in refused("predict", out, trips, "--out", tmp_path / "there.csv")
    assert not (tmp_path / "there.csv").exists()
    assert "expected a name that ends in .csv" in refused("predict", out, trips, "--out", tmp_path / "there.txt")
    other = table(tmp_path / "other.csv", "trip,second", ["1,2"])
    assert "has no column 'speed' (--features)" in refused("predict", out, other)
    assert "already holds what gpurnn fit made" in refused("fit", trips, *FIT, "--target", "vehicle", "--out", out)
    run("predict", out, trips)
    run("fit", trips, *FIT, "--target", "vehicle", "--out", out, "--epochs", 1, "--replace")
    assert not (out / "predictions.csv").exists()  # it belonged to the earlier model
    assert "its run was not started by gpurnn train" in refused("train", "--out", out, "--resume")


def test_without_matplotlib(series, trips, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    said = run("forecast", series, "--time", "month", "--target", "sales", *QUICK, "--out", tmp_path / "o").stdout
    assert "picture     none: matplotlib is not installed; pip install matplotlib\n" in said
    said = run("fit", trips, *FIT, "--target", "vehicle", "--epochs", 1, "--out", tmp_path / "f").stdout
    assert "picture     none: matplotlib is not installed; pip install matplotlib\n" in said


# --- tables in the usual forms ---


def groups(path, targets, value=lambda group, row: group % 2 + row / 10, header="g,x,same,y", form="{},{},0.1,{}"):
    """A table with four rows for each group; ``form`` formats the group's number, the feature and the target."""
    rows = [form.format(g, value(g, row), target) for g, target in enumerate(targets) for row in range(4)]
    return table(path, header, rows)


SHORT = ["--group", "g", "--target", "y", "--epochs", "2", "--hidden", "4"]


def test_numbers_that_are_written_in_several_ways_are_one_class(tmp_path):
    out = tmp_path / "o"
    said = run("fit", groups(tmp_path / "a.csv", ["0", "1", "0.0", "1"] * 3), *SHORT, "--out", out).stdout
    assert "2 classes of y: 0, 1" in said
    whole = run("predict", out, groups(tmp_path / "whole.csv", ["0", "1"] * 6)).stdout
    for path in (
        groups(tmp_path / "floats.csv", ["0.0", "1.0"] * 6),
        groups(tmp_path / "commas.csv", ["0,0", "1,0"] * 6, header="g;x;same;y", form="{};{};0,1;{}"),
    ):
        assert run("predict", out, path).stdout == whole
    codes = ["01", "1", "1_0"] * 4
    said = run("fit", groups(tmp_path / "codes.csv", codes), *SHORT, "--out", tmp_path / "c").stdout
    assert "3 classes of y: 01, 1, 1_0" in said


@pytest.mark.parametrize("task", ["classify", "regress"])
def test_a_minus_sign_of_print_is_one(tmp_path, task):
    signed = [["-1", "2"] * 6, ["\u22121", "2"] * 6]
    said = []
    for number, targets in enumerate(signed):
        out = tmp_path / f"{number}"
        run("fit", groups(tmp_path / f"{number}.csv", targets), *SHORT, "--out", out, "--task", task)
        said.append(run("predict", out, tmp_path / "0.csv").stdout.splitlines()[0])
    assert said[0] == said[1]


def test_a_target_of_words_is_not_compared_with_numbers(tmp_path):
    run("fit", groups(tmp_path / "a.csv", range(12)), *SHORT, "--task", "regress", "--out", tmp_path / "o")
    result = run("predict", tmp_path / "o", groups(tmp_path / "b.csv", ["unknown"] * 12))
    assert "the answers are not compared with column 'y', which holds other than numbers" in result.stderr
    assert len(rows_of(tmp_path / "o" / "predictions.csv")) == 12


def test_a_feature_that_was_the_same_everywhere_may_differ_later(tmp_path):
    out = tmp_path / "o"
    run("fit", groups(tmp_path / "a.csv", range(12)), *SHORT, "--task", "regress", "--out", out)
    assert json.loads((out / "run.json").read_text())["std"][1] == 1.0
    run("predict", out, tmp_path / "a.csv", "--out", tmp_path / "p.csv")
    run("predict", out, groups(tmp_path / "b.csv", range(12), form="{},{},0.11,{}"), "--out", tmp_path / "q.csv")
    for same, other in zip(rows_of(tmp_path / "p.csv"), rows_of(tmp_path / "q.csv"), strict=True):
        assert float(same["y"]) == pytest.approx(float(other["y"]), abs=0.2)


def test_a_feature_beyond_what_the_network_computes_with_is_named(tmp_path):
    out = tmp_path / "o"
    run("fit", groups(tmp_path / "a.csv", ["u", "v"] * 6), *SHORT, "--out", out)
    far = groups(tmp_path / "far.csv", ["u", "v"] * 6, lambda group, row: 1e300)
    assert "column 'x' holds 1e+300, which is too far from the values" in refused("predict", out, far)


def test_a_new_fit_leaves_nothing_of_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "o"
    fit = ["fit", groups(tmp_path / "a.csv", ["u", "v"] * 6), *SHORT, "--out", out]
    run(*fit)
    run("predict", out, tmp_path / "a.csv")
    assert (out / "fit.png").exists()
    run(*fit, "--validation-fraction", 0, "--replace")  # without validation it draws nothing
    assert sorted(path.name for path in out.iterdir()) == [".gpurnn.lock", "model.safetensors", "run.json"]
    run("predict", out, tmp_path / "a.csv")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    run("predict", out, tmp_path / "a.csv")
    assert not (out / "predictions.png").exists()
    # A kill while the new model is written must not leave a model with another one's scales.
    monkeypatch.setattr(RunDirectory, "begin", lambda *_, **__: exec("raise KeyboardInterrupt"))
    run(*fit, "--replace", code=130)
    assert "no such file" in refused("predict", out, tmp_path / "a.csv")


@pytest.mark.parametrize("classes", [["$5_{-$10", "$x"], ["$a$ {", "b$\\"]])
def test_dollars_in_names_are_no_formulas(tmp_path, classes):
    path = groups(tmp_path / "a.csv", classes * 6, header="g,x,same,$y_{$")
    fit = ["fit", path, "--group", "g", "--target", "$y_{$", "--epochs", 1, "--out", tmp_path / "o"]
    run(*fit)
    run("predict", tmp_path / "o", path)
    run("predict", tmp_path / "o", table(tmp_path / "b.csv", "g,x,same", ["1,1,1", "2,1,1"]))
    assert (tmp_path / "o" / "predictions.png").exists()
    rows = [f"{day},{i % 5}" for i, day in enumerate(days(40))]
    path = table(tmp_path / "f.csv", "$t_{$,$v_{$", rows)
    run("forecast", path, "--time", "$t_{$", "--target", "$v_{$", *QUICK, "--out", tmp_path / "f")
    assert (tmp_path / "f" / "forecast.png").exists()


@pytest.mark.parametrize("text", [",,,\n", '""\n', "\n \n,\n"])
def test_a_file_of_separators_is_rejected(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert "a.csv: has no names of columns" in refused("fit", tmp_path / "a.csv", *SHORT)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2024-W05", "2024-W06"], "line 2, column 't': '2024-W05' is neither a number nor a date such as 2024-12-31"),
        (["20240101T000000"], "line 2, column 't': '20240101T000000' is neither a number nor a date"),
        (
            ["2024-01-01T00:00Z", "2024-01-02T00:00"],
            "line 3, column 't': '2024-01-02T00:00': the first time has a time zone, but it has none",
        ),
        (
            ["2024-01-01T00:00", "2024-01-02T00:00+01:00"],
            "line 3, column 't': '2024-01-02T00:00+01:00': it has a time zone, but the first time has none",
        ),
    ],
)
def test_times_that_are_not_written_again_as_they_were_are_rejected(tmp_path, texts, message):
    path = table(tmp_path / "a.csv", "t,v", [f"{text},1" for text in texts])
    assert message in refused("forecast", path, "--time", "t", "--target", "v", "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("times", "options", "message"),
    [
        ([*days(39), "9999-12-31"], [], "the times after 9999-12-31 go beyond the year 9999; give fewer --steps, or"),
        ([*(f"{y}-12-31" for y in range(1990, 2020)), "9999-12-31"], [], "the times after 9999-12-31 go beyond"),
        ([*(f"2020-{m:02d}" for m in range(1, 13)), *(f"2021-{m:02d}" for m in range(1, 13)), "9999-12"], [],
         "the times after 9999-12 go beyond the year 9999; give fewer --steps, or"),
        ([day for day in days(60) if day.weekday() < 5] + ["9999-12-31"], [], "the times after 9999-12-31 go beyond"),
        (days(40), ["--steps", 10**7], "the times after 2024-02-09 go beyond the year 9999; give fewer --steps, or"),
    ],
)  # fmt: skip
def test_a_time_that_is_far_from_the_others_is_said_at_once(tmp_path, times, options, message):
    path = table(tmp_path / "a.csv", "t,v", [f"{time},{i % 7}" for i, time in enumerate(times)])
    said = run("forecast", path, "--time", "t", "--target", "v", "--out", tmp_path / "o", *options, code=2).stderr
    assert message in said.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_values_beyond_what_the_network_computes_with_are_rejected(tmp_path):
    path = table(tmp_path / "a.csv", "t,v", [f"{i},{(i % 3) * 1e300}" for i in range(40)])
    said = refused("forecast", path, "--time", "t", "--target", "v", "--out", tmp_path / "o")
    assert "column 'v' holds 2e+300, expected at most 1e+37; divide it" in said


def test_times_of_a_zone_stay_of_it(tmp_path):
    for texts, following in (
        (["2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"], "2024-01-01T02:00:00Z"),
        (["2024-01-01 00:00:00+02:00", "2024-01-01 01:00:00+02:00"], "2024-01-01 02:00:00+02:00"),
    ):
        found, write = read_times(read_table(str(table(tmp_path / "a.csv", "t", texts)), None), "t", None)
        assert [write(time) for time in evenly_spaced(found).times.following(1)] == [following]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "run.json: damaged: mean cannot be of gpurnn fit"),
        ({"std": [0.0, 1.0]}, "run.json: damaged: std cannot be of gpurnn fit"),
        ({"features": ["x"]}, "run.json: damaged: mean and std cannot be of gpurnn fit"),
        ({"classes": "uv", "group": 1}, "run.json: damaged: group, classes cannot be of gpurnn fit"),
        (
            {"classes": ["u", "v", "w"]},
            "model.safetensors: has 2 features and 2 outputs, expected 2 and 3, as run.json",
        ),
        ({"classes": []}, "model.safetensors: holds a SequenceClassifier, expected a SequenceRegressor"),
    ],
)
def test_a_run_json_that_is_not_of_the_model_is_rejected(tmp_path, change, message):
    out = tmp_path / "o"
    path = groups(tmp_path / "a.csv", ["u", "v"] * 6)
    run("fit", path, *SHORT, "--out", out)
    (out / "run.json").write_text(json.dumps({**json.loads((out / "run.json").read_text()), **change}))
    assert message in run("predict", out, path, code=2).stderr.splitlines()[-1]
