"""The loss curve: its lines, its units, and its files."""

import json
import sys

import numpy as np
import pytest

from gpurnn import models, plots
from gpurnn.plots import loss_curve

TRAINING = [{"step": 10 * i, "loss": 4.0 / i, "bits_per_character": 4.0 / i / np.log(2)} for i in range(1, 81)]
VALIDATION = [
    {"step": 200 * i, "validation_loss": 3.0 / i, "validation_bits_per_character": 3.0 / i / np.log(2)}
    for i in range(1, 5)
]


def drawn(axes):
    assert axes.figure.axes == [axes]
    return axes, {line.get_label(): line.get_xydata() for line in axes.get_lines()}


def test_training_and_validation_are_drawn_in_the_metric_of_the_run():
    axes, lines = drawn(loss_curve(TRAINING + VALIDATION))
    assert axes.get_xlabel() == "training step"
    assert axes.get_ylabel() == "bits per character"
    assert set(lines) == {"training", "training, moving average", "validation"}
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(lines)
    np.testing.assert_array_equal(lines["training"], [(r["step"], r["bits_per_character"]) for r in TRAINING])
    expected = [(r["step"], r["validation_bits_per_character"]) for r in VALIDATION]
    np.testing.assert_array_equal(lines["validation"], expected)


def test_the_moving_average_is_centred():
    values = np.random.default_rng(0).normal(size=80)
    _, lines = drawn(loss_curve([{"step": i, "loss": v} for i, v in enumerate(values)]))
    smooth = lines["training, moving average"][:, 1]
    assert smooth[40] == pytest.approx(values[38:43].mean())
    assert smooth[1] == pytest.approx(values[:3].mean())
    assert smooth[0] == values[0]
    assert smooth[-1] == values[-1]


@pytest.mark.parametrize(
    ("record", "label"),
    [
        ({"loss": 1.0}, "loss"),
        ({"loss": 1.0, "loss_unit": "nats per target"}, "loss (nats per target)"),
        ({"loss": 1.0, "perplexity": 2.7}, "perplexity"),
        ({"loss": 1.0, "bits_per_character": 1.4}, "bits per character"),
    ],
)
def test_the_axis_states_the_unit(record, label):
    axes, lines = drawn(loss_curve([{"step": 1, **record}]))
    assert axes.get_ylabel() == label
    assert "validation" not in lines


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_file_is_written_from_a_file(tmp_path, suffix):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in TRAINING + VALIDATION))
    axes = loss_curve(metrics, tmp_path / f"loss.{suffix}")
    assert (tmp_path / f"loss.{suffix}").stat().st_size > 1000
    axes, lines = drawn(axes)
    _, same = drawn(loss_curve(TRAINING + VALIDATION))
    assert axes.get_ylabel() == "bits per character"
    for label, points in same.items():
        np.testing.assert_array_equal(lines[label], points)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(record) + "\n" for record in TRAINING)
    metrics.write_text(whole + '{"step": 4, "lo')
    _, lines = drawn(loss_curve(metrics))
    _, expected = drawn(loss_curve(TRAINING))
    assert [line.tolist() for line in lines["training"]] == [line.tolist() for line in expected["training"]]


def test_refusals(monkeypatch):
    for metrics in ([], VALIDATION):
        with pytest.raises(
            ValueError, match="metrics holds no training loss, expected at least one record with a loss"
        ):
            loss_curve(metrics)
    with pytest.raises(
        TypeError, match=r"^loss_curve: metrics\['step'\] is an int, expected a path or a list of dicts"
    ):
        loss_curve(TRAINING[0])
    for metrics in (None, 3, b"m", [3]):
        with pytest.raises(TypeError, match=r"^loss_curve: metrics is .*, expected a path or a list of dicts"):
            loss_curve(metrics)
    with pytest.raises(ValueError, match=r"^loss_curve: metrics is '', expected the path of a file"):
        loss_curve("")
    with pytest.raises(TypeError, match=r"^loss_curve: path is an int, expected a str or a path-like object"):
        loss_curve(TRAINING, 3)
    with pytest.raises(ValueError, match=r"^loss_curve: path is '', expected the path of a file"):
        loss_curve(TRAINING, "")
    with pytest.raises(FileNotFoundError):
        loss_curve("/nowhere/metrics.jsonl")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib is not installed; pip install matplotlib"):
        loss_curve(TRAINING)


def test_drawing_leaves_no_global_state():
    before = "matplotlib.pyplot" in sys.modules
    loss_curve(TRAINING)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_picture_that_cannot_be_drawn_or_written_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "loss.png"
    loss_curve(TRAINING, path)
    old = path.read_bytes()

    def fail(self, target, **_):
        target.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        loss_curve(TRAINING, path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_a_path_without_a_suffix_gets_that_of_the_default_format(tmp_path):
    loss_curve(TRAINING, tmp_path / "loss")
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize(
    ("model", "unit"),
    [
        (lambda: models.LanguageModel(models.CharVocabulary("?ab"), 2, 2), "nats per target"),
        (lambda: models.SequenceClassifier(2, 2, 2), "nats per target"),
        (lambda: models.SequenceTagger(2, 2, 2), "nats per target"),
        (lambda: models.EncoderDecoder(3, 4, 2, 2), "nats per target"),
        (lambda: models.SequenceRegressor(2, 2, 1), "mean squared error of the scaled targets"),
        (lambda: models.SequenceRegressor(2, 2, 1, standardize=False), "mean squared error"),
        (lambda: models.SequenceRegressor(2, 2, 1, loss="l1"), "mean absolute error of the scaled targets"),
        (lambda: models.SequenceGenerator(2, 2, 2), "nats per target"),
        (lambda: models.SequenceGenerator(2, 2, 2, output_activation="identity", loss="huber"), "mean Huber loss"),
        (lambda: models.Forecaster(2, 2), "mean squared error of the scaled series"),
        (lambda: models.Forecaster(2, 2, loss="l1"), "mean absolute error of the scaled series"),
    ],
)
def test_every_model_names_the_unit_of_its_loss(model, unit):
    assert model().loss_unit == unit


def test_the_metrics_of_a_run_name_the_unit():
    model = models.SequenceRegressor(2, 2, 1)
    inputs, targets = [np.ones((3, 2), "f4")] * 4, np.zeros((4, 1), "f4")
    trainer = model.fit(inputs, list(targets), epochs=2, log_interval=1).trainer_
    assert loss_curve(trainer.history).get_ylabel() == "loss (mean squared error of the scaled targets)"


def test_damaged_lines_of_a_file_are_left_out_with_a_warning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 3.0}\n\xff\x00\n[1]\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    with pytest.warns(UserWarning, match=r"metrics.jsonl: lines 2, 3 are damaged and left out of the metrics"):
        _, lines = drawn(loss_curve(path))
    np.testing.assert_array_equal(lines["training"], [(1, 3.0), (2, 2.0)])


def test_metrics_that_have_a_metric_in_a_part_only_are_drawn_as_the_loss():
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "perplexity": 1.6}]
    assert loss_curve(records).get_ylabel() == "loss"


def test_a_forecast_of_a_pandas_series_with_quantiles():
    pd = pytest.importorskip("pandas")
    from gpurnn.models import Forecast

    months = pd.period_range("2024-01", periods=5, freq="M")
    point, low, high = (pd.Series([a, a + 1.0], index=months[3:]) for a in (5.0, 4.0, 6.0))
    ahead = Forecast(point, low, high, 0.9, {0.25: point - 0.5, 0.5: point, 0.75: point + 0.5})
    (axes,) = plots.forecast(pd.Series([1.0, 2.0, 3.0], index=months[:3]), ahead)
    history, line, median = axes.get_lines()
    assert [str(t)[:7] for t in history.get_xdata()] == ["2024-01", "2024-02", "2024-03"]
    assert [str(t)[:7] for t in line.get_xdata()] == ["2024-04", "2024-05"]
    assert (median.get_label(), median.get_ydata().tolist()) == ("0.5 quantile", [5, 6])
    outer, inner = axes.collections
    assert (outer.get_label(), inner.get_label()) == ("90% prediction interval", "50% interval")
    assert {y for _, y in inner.get_paths()[0].vertices.tolist()} == {4.5, 5.5, 6.5}


def test_a_forecast_over_dates():
    from datetime import date, timedelta

    from gpurnn.models import Forecast

    ahead = Forecast(np.array([3.0, 4.0]), np.array([2.0, 2.5]), np.array([4.0, 5.5]), level=0.9)
    days = [date(2024, 12, 29) + timedelta(days=i) for i in range(5)]
    (axes,) = plots.forecast(np.arange(3.0), ahead, times=days)
    assert [list(line.get_xdata()) for line in axes.lines] == [days[:3], days[3:]]
    assert axes.get_xlabel() == "time"
    with pytest.raises(ValueError, match=r"forecast: times has 4 entries, expected T \+ steps = 5"):
        plots.forecast(np.arange(3.0), ahead, times=days[1:])


def test_dollars_among_the_symbols_of_an_alignment_are_no_formulas(tmp_path):

    plots.alignment([[1.0, 0.0]], ["$5_{", "a$b$"], ["$x_{$"], tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_several_runs_are_drawn_together(tmp_path):
    """Each run has its name, a colour and a dash style. The metric is one that all runs have."""
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in TRAINING))
    axes, lines = drawn(loss_curve({"one": TRAINING + VALIDATION, "other": tmp_path / "metrics.jsonl"}))
    assert axes.get_ylabel() == "bits per character"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "one, validation", "other"]
    np.testing.assert_array_equal(lines["one, validation"][:, 0], [r["step"] for r in VALIDATION])
    styles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert styles["one"] == styles["one, validation"]
    assert styles["one"][0] != styles["other"][0]
    assert styles["one"][1] != styles["other"][1]
    # If one run lacks the metric, all are drawn as losses.
    assert loss_curve({"one": TRAINING, "other": [{"step": 1, "loss": 2.0}]}).get_ylabel() == "loss"


def test_several_runs_that_cannot_be_drawn_together():
    nats, squares = ([{"step": 1, "loss": 2.0, "loss_unit": unit}] for unit in ("nats", "squared error"))
    with pytest.raises(ValueError, match=r"^loss_curve: the losses of metrics are in nats and in squared error, exp"):
        loss_curve({"a": nats, "b": squares})
    with pytest.raises(ValueError, match=r"^loss_curve: metrics\['b'\] holds no training loss"):
        loss_curve({"a": nats, "b": []})
    with pytest.raises(ValueError, match=r"^loss_curve: metrics is empty, expected at least one run"):
        loss_curve({})


def test_a_picture_goes_into_the_callers_axes(tmp_path):
    from matplotlib.figure import Figure

    left, right = Figure().subplots(1, 2)
    assert loss_curve(TRAINING, ax=left) is left
    assert plots.alignment([[1.0]], ["a"], ["b"], tmp_path / "both.png", ax=right) is right
    assert left.get_ylabel() == "bits per character"
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TypeError, match=r"^loss_curve: ax is a str, expected the axes of a matplotlib figure, or None"):
        loss_curve(TRAINING, ax="left")


def test_the_guesses_of_a_language_model_are_its_likeliest_tokens():
    vocabulary = models.CharVocabulary.from_text("a$b c")
    model = models.LanguageModel(vocabulary, 4, 8, dtype="float64")
    axes = plots.expectations(model, "ab $c", guesses=3)
    tokens = vocabulary.encode("ab $c")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "\u2423", "$", "c"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    right = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches}
    shares = np.asarray(axes.images[0].get_array()).T
    for t in range(5):
        logits, _ = model(np.concatenate([[0], tokens[:t]])[:, None])
        p = np.exp(logits[-1, 0]) / np.exp(logits[-1, 0]).sum()
        order = np.argsort(-p)[:3]
        np.testing.assert_allclose(shares[t], p[order])
        assert [shown[t, rank] for rank in range(3)] == [vocabulary.symbols[v].replace(" ", "\u2423") for v in order]
        assert {rank for rank in range(3) if (t, rank) in right} == {*np.flatnonzero(order == tokens[t])}


def test_guesses_that_cannot_be_drawn():
    model = models.LanguageModel(models.CharVocabulary.from_text("ab"), 4, 8)
    with pytest.raises(ValueError, match=r"^expectations: text is empty, expected a str with tokens"):
        plots.expectations(model, "")
    with pytest.raises(ValueError, match=r"^expectations: guesses is 4, expected at most the 3 tokens of the vocabul"):
        plots.expectations(model, "ab", guesses=4)
    model.params["output.bias"][0] = np.nan
    with pytest.raises(FloatingPointError, match=r"^expectations: the logits of model are not finite"):
        plots.expectations(model, "ab", guesses=1)
