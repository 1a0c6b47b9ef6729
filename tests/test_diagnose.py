"""`gpurnn diagnose`: its output agrees with the analysis, and it rejects bad arguments."""

import json
import re
import shutil

import numpy as np
import pytest
from test_cli import SMALL, TEXT, refused, run

import gpurnn
from gpurnn import analysis
from gpurnn.analysis import fixed_points, plots, report
from gpurnn.models import LanguageModel


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directories of two small models, by their cell."""
    where = tmp_path_factory.mktemp("diagnose")
    (where / "text.txt").write_text(TEXT)
    for cell, layers in (("gru", 2), ("rnn", 1)):
        run("train", where / "text.txt", "--out", where / cell, *SMALL, "--cell", cell, "--layers", layers)
    return where


@pytest.mark.slow
def test_pictures_are_drawn(trained):
    run("diagnose", trained / "rnn", "--length", 12, "--starts", 3)
    pictures = list((trained / "rnn" / "diagnosis").glob("*.png"))
    assert len(pictures) >= 8
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_report_and_its_pictures(trained, undrawn):
    said = run("diagnose", trained / "gru", "--length", 12, "--starts", 3).stdout
    names = {path.name for path in (trained / "gru" / "diagnosis").iterdir()}
    each = {"eigenvalues", "singular_values", "saturation", "fixed_points", "lyapunov"}
    assert {f"l{k}_{name}.png" for k in (0, 1) for name in each} | {
        "gradient_flow.png",
        "gradient_norms.png",
        "cost.png",
    } <= names
    assert "12 characters of text" in said
    assert str(trained / "gru" / "diagnosis") in said

    model = LanguageModel.from_file(trained / "gru" / "model.safetensors")
    layer = analysis.parts(model.recurrent)["l0"]
    x = model.embedding(model.vocabulary.encode(TEXT[:12])[:, None])
    growth = analysis.gradient_growth(analysis.jacobians(layer, x))
    first = said.partition("\nl1")[0]
    verdict, total = re.search(r"gradients +(\w+): x (\S+) over 12 steps", first).groups()
    assert verdict == growth.verdict
    assert float(total) == pytest.approx(growth.total, rel=1e-2)
    radius = analysis.spectra(layer)["z"].radius
    assert f"z {radius:.3f} (" in first
    assert "bound" not in said
    doubled = {name: p.astype(float) for name, p in layer.params.items()}
    layer.params = doubled
    (exponent,) = analysis.lyapunov_spectrum(layer, x.astype(float), exponents=1).exponents
    assert float(re.search(r"Lyapunov exponent (\S+)", first)[1]) == pytest.approx(exponent, abs=0.02)
    assert f"{analysis.complexity(model.recurrent, 12, 1).bptt.flops / 1e6:.3g} Mflop and" in said


@pytest.mark.parametrize("residual", [False, True])
def test_the_gradients_are_those_of_the_last_prediction_through_all_layers(
    trained, tmp_path, monkeypatch, residual, undrawn
):
    drawn, driven = {}, []
    monkeypatch.setattr(plots, "gradient_flow", lambda norms, path: drawn.update(norms))
    monkeypatch.setattr(report, "fixed_points", lambda layer, x, **k: driven.append(x) or fixed_points(layer, x, **k))
    model = LanguageModel.from_file(trained / "gru" / "model.safetensors")
    if residual:
        model = LanguageModel(model.vocabulary, 6, 6, 2, cell="lstm", residual=True)
    tokens = model.vocabulary.encode(TEXT[:9])
    report.diagnose(model, tokens, tmp_path, [], 1, lambda line: None)
    (logits, _), pullback = model.vjp(tokens[:-1, None])
    dlogits = np.zeros_like(logits)
    dlogits[-1] = gpurnn.cross_entropy.vjp(logits[-1], tokens[-1:])[1](np.ones((), np.float32))[0]
    (_, dstate0), _ = pullback((dlogits, None))
    dstate0 = dstate0[0] if residual else dstate0  # the h of (h, c)
    for k in (0, 1):
        norms = drawn[f"l{k}: $\\|\\partial L_T / \\partial h_t\\|$"]
        assert norms.shape == (9, 1)
        assert norms[0, 0] == pytest.approx(np.linalg.norm(dstate0[k]), rel=1e-4)
    np.testing.assert_allclose(driven[0], model.embedding(tokens[:-1, None]).mean(axis=(0, 1)), rtol=1e-5)


def test_the_bound_of_a_vanilla_network(trained, undrawn):
    said = run("diagnose", trained / "rnn", "--length", 5, "--starts", 1).stdout
    lambda_max, slope, bound = map(float, re.search(r"max (\S+) times max \|f'\| (\S+) = (\S+)", said).groups())
    assert lambda_max * slope == pytest.approx(bound, abs=2e-3)
    weight = LanguageModel.from_file(trained / "rnn" / "model.safetensors").params["recurrent.weight_hh_l0"]
    assert lambda_max == pytest.approx(np.linalg.norm(weight, 2), abs=1e-3)


@pytest.mark.slow
def test_gradients_that_leave_float64(tmp_path, monkeypatch):
    rng, drawn = np.random.default_rng(0), {}
    model = LanguageModel(gpurnn.CharVocabulary.from_text(TEXT), 16, 32, cell="rnn")
    model.params["recurrent.weight_hh_l0"][...] = rng.normal(0, 8 / 32**0.5, (32, 32))
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "text.txt").write_text(TEXT * 3)
    draw = plots.gradient_flow
    monkeypatch.setattr(plots, "gradient_flow", lambda norms, path: drawn.update(norms) or draw(norms, path))
    said = run("diagnose", tmp_path, "--text", tmp_path / "text.txt", "--length", 2000, "--starts", 1).stdout
    assert (tmp_path / "diagnosis" / "gradient_flow.png").read_bytes().startswith(b"\x89PNG")
    power, per_step = re.search(r"gradients +exploding: x 10\^(\d+) over 2000 steps, x (\S+) a step", said).groups()
    assert int(power) == pytest.approx(2000 * np.log10(float(per_step)), abs=1)
    assert int(power) > 308
    assert "bound         can explode: lambda_max" in said
    for norms in drawn.values():
        assert np.isfinite(norms[-1000:]).all()
        assert not np.isfinite(norms[0]).any()
        growth = (np.log(norms[-1000, 0]) - np.log(norms[-100, 0])) / 900
        assert growth == pytest.approx(np.log(float(per_step)), rel=0.1)


@pytest.mark.parametrize(
    ("history", "verdict", "meaning"),
    [
        ([{"loss": 3.3}], "bad", "hardly better than by chance"),
        ([{"loss": 1.0}, {"validation_loss": 1.0}, {"validation_loss": 1.2}], "bad", "by heart"),
        ([{"loss": 1.0}, {"validation_loss": 1.4}], "watch", "much worse"),
        ([{"loss": 3 - k / 20} for k in range(40)], "watch", "still falling"),
        ([{"loss": 1.0}, {"validation_loss": 1.1}], "good", "it has learnt"),
    ],
)
def test_what_the_losses_mean(history, verdict, meaning):
    said = []
    findings = report._Findings(said.append)
    report._training(history, LanguageModel(gpurnn.CharVocabulary.from_text(TEXT), 2, 3), findings, said.append)
    (found,) = findings
    assert (found.verdict, bool(found.advice)) == (verdict, verdict != "good")
    assert meaning in found.meaning
    assert said[1] == f"    {verdict}: {found.meaning}"
    assert (f"    try: {found.advice}" in said) == (verdict != "good")


@pytest.mark.parametrize(
    ("function", "arguments", "verdict", "meaning"),
    [
        (report._gradients, (gpurnn.GRU(1, 2), "exploding", 1.1, 50), "bad", "errors grow on their way back"),
        (report._gradients, (gpurnn.GRU(1, 2), "vanishing", 0.5, 50), "bad", "only from the last 7 steps"),
        (report._gradients, (gpurnn.GRU(1, 2), "vanishing", 0.9, 50), "watch", "about the last 44 steps"),
        (report._gradients, (gpurnn.GRU(1, 2), "neither", 0.99, 50), "good", "from all of the 50 steps"),
        (report._perturbations, ("chaotic", 0.3), "bad", "has nothing to do with"),
        (report._perturbations, ("neither", 0.0), "watch", "neither fades nor grows"),
        (report._perturbations, ("stable", -0.1), "good", "to a third in 10 steps"),
        (report._fixed_points, (0, 2, 8), "watch", "comes to rest"),
        (report._fixed_points, (1, 3, 8), "good", "settles at one state"),
        (report._fixed_points, (2, 3, 8), "good", "one of 2 states"),
        (report._saturation, ({"r": 0.9, "z": 0.1},), "bad", "r is at an end of its range in 90%"),
        (report._saturation, ({"r": 0.1, "z": 0.6},), "watch", "z is at an end of its range in 60%"),
        (report._saturation, ({"r": 0.1, "z": 0.2},), "good", "where gradients pass"),
        (report._dead, ({"h": 20}, 100), "bad", "20 of 100 units never move"),
        (report._dead, ({"h": 2}, 100), "watch", "2 of 100 units never move"),
        (report._dead, ({}, 100), "good", "all units do something"),
    ],
)
def test_what_findings_mean(function, arguments, verdict, meaning):
    findings = report._Findings(lambda line: None)
    function("l0", *arguments, findings)
    (found,) = findings
    assert (found.where, found.verdict, bool(found.advice)) == ("l0", verdict, verdict != "good")
    assert meaning in found.meaning


def test_a_diagnosis_in_words_and_as_json(trained, undrawn):
    said = run("diagnose", trained / "rnn", "--length", 12, "--starts", 3).stdout
    found = json.loads(run("diagnose", trained / "rnn", "--length", 12, "--starts", 3, "--json").stdout)
    names = ["learning", "gradients", "perturbations", "fixed points", "saturation", "dead units"]
    assert [finding["name"] for finding in found["findings"]] == names
    assert found["steps"] == 12
    for finding in found["findings"]:
        assert f"    {finding['verdict']}: {finding['meaning']}\n" in said
        assert finding["advice"] in said
        assert finding["values"]
    verdicts = [finding["verdict"] for finding in found["findings"]]
    written = json.loads((trained / "rnn" / "diagnosis" / "findings.json").read_text())
    assert written["findings"] == found["findings"]
    expected = f"in all        {verdicts.count('bad')} bad, {verdicts.count('watch')} to watch"
    assert expected in said


def test_pictures_of_others_stay(trained, undrawn, tmp_path):
    for name in ("model.safetensors", "run.json"):
        shutil.copy(trained / "rnn" / name, tmp_path)
    (tmp_path / "diagnosis").mkdir()
    for name in ("cost.png", "findings.json"):
        (tmp_path / "diagnosis" / name).write_text("{}")
        said = refused("diagnose", tmp_path, "--length", 4, "--starts", 1)
        assert "diagnosis: is there already, and no diagnosis made it; move it away" in said
        assert (tmp_path / "diagnosis" / name).read_text() == "{}"
        (tmp_path / "diagnosis" / name).unlink()
    for _ in range(2):
        run("diagnose", tmp_path, "--length", 4, "--starts", 1)


def test_norms_are_right_where_their_squares_are_beyond_float64():
    vectors = np.array([3.0, 4.0]) * 10.0 ** np.array([-300, 0, 300])[:, None]
    np.testing.assert_allclose(report._norms(vectors), [5e-300, 5, 5e300], rtol=1e-15)
    np.testing.assert_array_equal(report._norms(np.zeros((1, 2))), [0])


@pytest.mark.slow
def test_metrics_that_a_kill_cut_short(trained, undrawn, tmp_path):
    for name in ("model.safetensors", "run.json", "metrics.jsonl"):
        shutil.copy(trained / "rnn" / name, tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    result = run("diagnose", tmp_path, "--length", 4, "--starts", 1)
    assert result.stderr == f"gpurnn: warning: {metrics}: its last line is cut off and left out\n"
    assert (tmp_path / "diagnosis" / "gradient_norms.png").exists()
    for damaged in (b"{\n", b"3\n", b"\xff\n"):
        metrics.write_bytes(b'{"step": 1}\n' + damaged)
        said = run("diagnose", tmp_path, "--length", 4, "--starts", 1).stderr
        assert said == f"gpurnn: warning: {metrics}: line 2 is damaged and left out of the metrics\n"
    metrics.unlink()
    assert not run("diagnose", tmp_path, "--length", 4, "--starts", 1).stderr


def test_a_model_that_is_not_finite_is_refused(trained, tmp_path):
    model = LanguageModel.from_file(trained / "rnn" / "model.safetensors")
    model.params["recurrent.weight_hh_l0"][2] = np.nan
    model.save(tmp_path / "model.safetensors")
    said = refused("diagnose", tmp_path, "--text", trained / "text.txt", "--length", 4)
    assert "weight_hh_l0[2] is NaN or infinite" in said


def test_the_run_is_that_of_the_text_that_is_given(trained, undrawn, tmp_path):
    (tmp_path / "other.txt").write_text("dog dog dog")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(trained / "rnn" / "model.safetensors", alone)
    said = run("diagnose", alone, "--text", tmp_path / "other.txt", "--starts", 1).stdout
    assert "10 characters of text" in said
    assert not (alone / "diagnosis" / "gradient_norms.png").exists()


def test_what_is_refused(trained, tmp_path):
    assert "no model in there" in refused("diagnose", tmp_path)
    shutil.copy(trained / "gru" / "model.safetensors", tmp_path)
    assert "give a text with --text" in refused("diagnose", tmp_path)
    (tmp_path / "one.txt").write_text("a")
    assert "expected at least 2 characters" in refused("diagnose", tmp_path, "--text", tmp_path / "one.txt")
    (tmp_path / "run.json").write_text(json.dumps({"format": "something else"}))
    assert "not a training run" in refused("diagnose", tmp_path)


def test_without_matplotlib(trained, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib is not installed" in refused("diagnose", trained / "gru", "--length", 2, "--starts", 1)
