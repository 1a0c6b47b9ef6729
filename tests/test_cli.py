"""The command line: its output, its messages when something is wrong, and resuming after an interrupt."""

import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from click.testing import CliRunner
from tolerance import assert_same

import gpurnn
from gpurnn import cli
from gpurnn.models import CharVocabulary, LanguageModel
from gpurnn.optimizers import AdamW
from gpurnn.schedules import CosineWithWarmup
from gpurnn.training import TokenStream, Trainer
from gpurnn.training.checkpoint import checkpoints, read_checkpoint
from gpurnn.training.directory import RunDirectory

TEXT = "the quick brown fox jumps over the lazy dog; then it sleeps.\n" * 12
# The command without plots, which take most of the time of a short run.
UNDRAWN = "import sys; sys.modules['matplotlib'] = None; from gpurnn.cli import main; main()"
SMALL = ["--embedding", "4", "--hidden", "6", "--batch", "4", "--window", "10", "--steps", "6", "--log-every", "2"]


@pytest.fixture(autouse=True)
def _short_runs(undrawn, monkeypatch):
    monkeypatch.setattr(cli.run, "SAMPLE_LENGTH", {"character": 50, "word": 5})


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


# Before click 8.2 a runner mixes stderr into stdout by default.
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def run(*arguments, code=0):
    result = CliRunner(**APART).invoke(cli.cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def refused(*arguments, code=2):
    """The single line on stderr."""
    result = run(*arguments, code=code)
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("gpurnn: ")
    return result.stderr


def last_line(*arguments, code):
    """The text on stderr after the progress bar."""
    return run(*arguments, code=code).stderr.splitlines()[-1]


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def parameters(directory):
    return LanguageModel.from_file(directory / "model.safetensors").state_dict()


# --- what it does ---


def test_training_writes_all_that_it_says(text, tmp_path):
    out = tmp_path / "deep" / "run"
    said = run("train", text, "--out", out, *SMALL)
    names = sorted(path.name for path in out.iterdir())
    assert names.pop(0) == ".gpurnn.lock"
    assert names == ["checkpoints", "loss.png", "metrics.jsonl", "model.safetensors", "run.json", "sample.txt"]
    assert [r["step"] for r in records(out) if "loss" in r] == [2, 4, 6]
    assert all("bits_per_character" in r for r in records(out) if "loss" in r)
    assert len((out / "sample.txt").read_text()) == 51
    assert re.search(r"6 steps: \d\.\d{3} bits per character in training, \d\.\d{3} .* in validation", said.stdout)
    for name in names[1:4] + names[5:]:
        assert str(out / name) in said.stdout
    assert f"gpurnn generate {out}" in said.stdout
    assert "tokens/s" in said.stderr


def test_the_model_is_the_one_that_was_asked_for(text, tmp_path):
    run(
        "train", text, "--out", tmp_path / "run", *SMALL, "--cell", "gru", "--layers", 2, "--tied", "--embedding", 6,
        "--dropout", 0.1, "--dtype", "float64", "--max-vocabulary", 20,
    )  # fmt: skip
    model = LanguageModel.from_file(tmp_path / "run" / "model.safetensors")
    assert repr(model).startswith(
        "LanguageModel(20 characters, 6, 6, num_layers=2, cell='gru', tied=True, dropout=0.1, dtype='float64')"
    )


def test_options_of_the_cell(text, tmp_path):
    options = ["--option", "peephole=true", "--option", "zoneout=[0.1, 0.2]", "--option", "activation=relu"]
    run("train", text, "--out", tmp_path / "run", *SMALL, *options)
    run("train", "--out", tmp_path / "run", "--resume", *options)
    run("train", "--out", tmp_path / "tuned", "--from", tmp_path / "run", text, *SMALL, *options)
    for out in ("run", "tuned"):
        cell = LanguageModel.from_file(tmp_path / out / "model.safetensors").recurrent.cell
        assert (cell.peephole, cell.zoneout, cell.activation) == (True, (0.1, 0.2), "relu")
    table = tmp_path / "table.csv"
    table.write_text("g,x,y\n" + "".join(f"{g},{t * g},{g % 2}\n" for g in range(8) for t in range(3)))
    run(
        "fit", table, "--group", "g", "--target", "y", "--epochs", 1, "--out", tmp_path / "fit",
        "--merge", "sum", "--option", "layer_norm=true",
    )  # fmt: skip
    model = gpurnn.models.load(tmp_path / "fit" / "model.safetensors")
    assert (model.recurrent.merge, model.recurrent.cell.layer_norm) == ("sum", True)


def test_files_are_one_text_and_the_end_is_kept_for_validation(tmp_path):
    (tmp_path / "a").write_text("ab" * 100)
    (tmp_path / "b").write_text("cd" * 95 + "Z" * 20)
    run("train", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "run", *SMALL, "--validation-fraction", 0.06)
    model = LanguageModel.from_file(tmp_path / "run" / "model.safetensors")
    assert model.vocabulary.symbols == ("\ufffd", "a", "b", "c", "d", "\n")  # the last 25 hold every Z
    (tmp_path / "v").write_text("Z" * 50)
    said = run("train", tmp_path / "a", "--validation", tmp_path / "v", "--out", tmp_path / "run2", *SMALL).stdout
    assert "200 characters to train on, 50 to validate on" in said


def test_words(tmp_path):
    path = tmp_path / "words"
    path.write_text("the cat and the dog\n" * 40)
    said = run("train", path, "--out", tmp_path / "run", *SMALL, "--level", "word").stdout
    assert "perplexity in validation" in said
    assert "perplexity" in records(tmp_path / "run")[0]
    written = run("generate", tmp_path / "run", "--length", 5, "--prompt", "the cat").stdout
    assert written.startswith("the cat")
    said = run("evaluate", tmp_path / "run", path).stdout
    assert re.fullmatch(r"\d+\.\d{4} perplexity \(240 words\)\n", said)


def test_generating_is_the_seeds(text, tmp_path):
    run("train", text, "--out", tmp_path / "run", *SMALL)
    one = run("generate", tmp_path / "run", "--length", 40, "--prompt", "the ", "--seed", 3).stdout
    assert one == run("generate", tmp_path / "run", "--length", 40, "--prompt", "the ", "--seed", 3).stdout
    assert one != run("generate", tmp_path / "run", "--length", 40, "--prompt", "the ", "--seed", 4).stdout
    assert one.startswith("the ")
    assert len(one) == 45
    model = LanguageModel.from_file(tmp_path / "run" / "model.safetensors")
    assert one == "the " + model.sample(40, "the ", temperature=0.7, rng=3) + "\n"
    greedy = run("generate", tmp_path / "run", "--length", 9, "--temperature", 0).stdout
    assert greedy == model.sample(9, temperature=0) + "\n"


def test_evaluating_is_the_mean_log_likelihood(text, tmp_path):
    run("train", text, "--out", tmp_path / "run", *SMALL)
    other = tmp_path / "other"
    other.write_text("the fox! QQ")
    model = LanguageModel.from_file(tmp_path / "run" / "model.safetensors")
    bits = -model.log_likelihood("the fox! QQ") / 11 / np.log(2)
    expected = f"{bits:.4f} bits per character (11 characters, 3 of them not in the vocabulary)\n"
    assert run("evaluate", tmp_path / "run", other).stdout == expected


def test_line_ends_and_a_byte_order_mark_make_no_difference(tmp_path):
    for name, data in (("unix", TEXT.encode()), ("dos", b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())):
        (tmp_path / name).write_bytes(data)
        run("train", tmp_path / name, "--out", tmp_path / f"{name}-run", *SMALL)
    assert_same(parameters(tmp_path / "dos-run"), parameters(tmp_path / "unix-run"))


def test_early_stopping_leaves_the_best_model(text, tmp_path):
    out = tmp_path / "run"
    options = [*SMALL, "--steps", 200, "--lr", 0.5, "--validate-every", 2, "--patience", 2]
    said = run("train", text, "--out", out, *options).stdout
    found = [r for r in records(out) if "validation_loss" in r]
    assert re.search(rf"stopped early at step {found[-1]['step']}", said)
    assert found[-1]["step"] < 200
    saved = read_checkpoint(checkpoints(out / "checkpoints")[-1])
    assert saved["best"]["loss"] == min(r["validation_loss"] for r in found) < found[-1]["validation_loss"]
    assert_same(parameters(out), saved["best"]["params"])
    assert not np.array_equal(saved["params"]["output.bias"], saved["best"]["params"]["output.bias"])


def test_the_command_line_is_this_program(text, tmp_path):
    run(
        "train", text, "--out", tmp_path / "run", *SMALL, "--dropout", 0.2, "--l2", 0.01, "--clip", 0.01,
        "--clip-value", 0.05, "--optimizer", "adamw", "--lr", 0.02, "--warmup", 2, "--seed", 5,
        "--validation-fraction", 0.1,
    )  # fmt: skip
    cut = round(len(TEXT) * 0.9)
    vocabulary = CharVocabulary.from_text(TEXT[:cut])
    parameter_rng, training_rng = np.random.default_rng(5).spawn(2)
    model = LanguageModel(vocabulary, 4, 6, dropout=0.2, rng=parameter_rng)
    Trainer(
        model, TokenStream(vocabulary.encode(TEXT[:cut]), 4, 10), AdamW(lr=0.02), steps=6, l2=0.01, clip_norm=0.01,
        clip_value=0.05, schedule=CosineWithWarmup(0.02, 6, 2), rng=training_rng, progress=False,
    ).train()  # fmt: skip
    assert_same(parameters(tmp_path / "run"), model.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "nadam", "adamax", "rmsprop", "adagrad", "adadelta", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_optimizers_and_schedules(text, tmp_path, optimizer, schedule):
    run(
        "train", text, "--out", tmp_path / "run", *SMALL, "--optimizer", optimizer, "--schedule", schedule, "--lr", 0.01
    )
    rates = [r["learning_rate"] for r in records(tmp_path / "run") if "loss" in r]
    assert rates == [0.01] * 3 if schedule == "constant" else rates[0] > rates[1] > rates[2]


def test_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.demo, "_DEMO", SMALL)
    monkeypatch.chdir(tmp_path)
    said = run("demo").stdout
    out = tmp_path / "gpurnn-demo"
    assert (out / "loss.png").exists()
    assert (out / "sample.txt").read_text() in said
    assert (out / "expected.png").exists()
    assert said.splitlines()[-1].startswith(f"expected    {os.path.join('gpurnn-demo', 'expected.png')}: ")
    assert "Assert statements are a convenient way to insert" in (out / "python-reference.txt").read_text()
    first = parameters(out)
    # It replaces an earlier demo's results, and is resumed on request.
    run("demo")
    assert_same(parameters(out), first)
    assert len([r for r in records(out) if "loss" in r]) == 3
    assert "resuming at step 6 of 6" in run("demo", "--resume").stdout
    # The line that it prints does the same.
    command = said.splitlines()[0].split()
    assert command[:2] == ["gpurnn", "train"]
    run(*command[1:4], tmp_path / "again", *command[5:])
    assert_same(parameters(tmp_path / "again"), first)


def test_the_demo_does_not_touch_another_run(text, tmp_path):
    run("train", text, "--out", tmp_path / "run", *SMALL)
    before = parameters(tmp_path / "run")
    assert "already holds a run that is not a demo" in refused("demo", "--out", tmp_path / "run")
    assert_same(parameters(tmp_path / "run"), before)


def test_a_missing_language_reference_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert "this Python came without its language reference" in refused("demo", "--out", tmp_path / "d")


def test_without_matplotlib_there_is_a_hint_and_no_failure(text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = run("train", text, "--out", tmp_path / "run", *SMALL).stdout
    assert "loss curve  none: matplotlib is not installed; pip install matplotlib\n" in said
    assert not (tmp_path / "run" / "loss.png").exists()


# --- what it rejects ---


def bad_files(folder):
    (folder / "empty").write_bytes(b"")
    (folder / "binary").write_bytes(b"\x89PNG\0\0" * 100)
    (folder / "latin").write_bytes("caf\xe9 ".encode("latin-1") * 200)
    (folder / "short").write_text("a" * 30)
    (folder / "folder").mkdir()


BAD = {
    "missing": "no such file or directory",
    "empty": "the file is empty",
    "binary": "a binary file, expected text; if it is text in UTF-16, add --encoding utf-16",
    "latin": "not UTF-8: byte 0xe9 at position 3; give its encoding with --encoding, for example --encoding latin-1",
    "folder": "is a directory",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line_and_exit_code_2(text, tmp_path, name):
    bad_files(tmp_path)
    path, out = tmp_path / name, tmp_path / "run"
    message = f"gpurnn: {path}: {BAD[name]}"
    assert refused("train", path, "--out", out, *SMALL).startswith(message)
    assert refused("train", text, path, "--out", out, *SMALL).startswith(message)
    assert refused("train", text, "--validation", path, "--out", out, *SMALL).startswith(message)
    assert not out.exists()
    run("train", text, "--out", out, *SMALL)
    assert refused("evaluate", out, path).startswith(message)


def test_a_short_text_is_trained_on_in_smaller_windows(text, tmp_path):
    short = tmp_path / "short"
    for size, window, batch, said in (
        (100, 24, 4, "training with --window 24 instead of 40, in"),
        (40, 19, 2, "training with --window 19 instead of 40 and --batch 2 instead of 4, in"),
        (2, 1, 1, "training with --window 1 instead of 40 and --batch 1 instead of 4, in"),
    ):
        short.write_text(TEXT[:size])
        out = tmp_path / str(size)
        result = run("train", short, "--out", out, *SMALL, "--window", 40, "--validation-fraction", 0)
        assert f"warning: the text is short: {said} 6 steps; give --steps for more\n" in result.stderr
        assert result.stderr.count("warning") == 1
        config = read_checkpoint(checkpoints(out / "checkpoints")[-1])["config"]["data"]
        assert (config["steps"], config["batch_size"]) == (window, batch)
        assert "warning" not in run("train", "--out", out, "--resume").stderr  # it is said once
    short.write_text("a")
    out = tmp_path / "run"
    assert "the text to train on has 1 characters, expected at least 2" in refused("train", short, "--out", out, *SMALL)
    assert "the text to validate on has 1 characters" in refused(
        "train", text, "--validation", short, "--out", out, *SMALL
    )
    (tmp_path / "spaces").write_text("   ")
    run("train", text, "--out", out, *SMALL, "--level", "word", "--batch", 1, "--window", 3)
    assert "there are no words in it" in refused("evaluate", out, tmp_path / "spaces")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tied"], "embedding_size is 4 and hidden_size 6, expected equal sizes"),
        (["--option", "peephol=true"], "peephol is not an option of the cell 'lstm', expected some of activation, "),
        (["--min-count", "9999"], "no character occurs --min-count 9999 times"),
        (["--validation-fraction", "0", "--patience", "2"], "--patience and --validate-every need a text"),
        (["--validation-fraction", "0", "--validate-every", "2"], "--patience and --validate-every need a text"),
    ],
)
def test_options_that_do_not_go_together(text, tmp_path, options, message):
    assert message in refused("train", text, "--out", tmp_path / "run", *SMALL, *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--steps", "0"],
        ["--lr", "0"],
        ["--dropout", "1"],
        ["--cell", "x"],
        ["--clip", "-1"],
        ["--hidden", "many"],
        ["--option", "peephole"],
        ["--option", "clip=1", "--option", "clip=2"],
        ["--no"],
        *[
            [option, number]
            for option in ("--lr", "--clip", "--clip-value", "--l2", "--dropout", "--validation-fraction")
            for number in ("nan", "inf")
        ],
        ["--out", ""],
        ["--validation", ""],
    ],
)
def test_options_out_of_range_are_exit_code_2(text, tmp_path, options):
    result = run("train", text, "--out", tmp_path / "run", *SMALL, *options, code=2)
    assert options[0] in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_temperature_that_is_not_finite_is_exit_code_2(tmp_path, number):
    assert "is not a finite number" in run("generate", tmp_path, "--temperature", number, code=2).stderr


def test_what_does_not_fit_into_memory_is_one_line(text, tmp_path):
    said = refused("train", text, "--out", tmp_path / "run", *SMALL, "--hidden", 10**15, code=1)
    assert said.startswith("gpurnn: out of memory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_text_that_cannot_be_read_again_is_not_trained_on(text, tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nothing waits for it
    said = f"gpurnn: {tmp_path / 'pipe'}: no regular file, which --resume could not read again"
    assert refused("train", tmp_path / "pipe", "--out", tmp_path / "run").startswith(said)
    assert refused("train", text, "--validation", tmp_path / "pipe", "--out", tmp_path / "run").startswith(said)
    command = f"cat '{text}' | '{sys.executable}' -m gpurnn train /dev/stdin --out '{tmp_path / 'run'}'"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.startswith("gpurnn: /dev/stdin: no regular file")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs /dev/zero")
def test_a_file_without_an_end_is_read_no_further_than_its_first_zero(text, tmp_path):
    run("train", text, "--out", tmp_path / "run", *SMALL)
    assert "a binary file, expected text" in refused("evaluate", tmp_path / "run", "/dev/zero")
    assert "a binary file, expected text" in refused("diagnose", tmp_path / "run", "--text", "/dev/zero")


CHINESE = "\u4e2d\u6587" * 300


def in_latin_1(*arguments):
    """Run a command whose output encoding has no Chinese."""
    command = [sys.executable, "-m", "gpurnn", *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_an_encoding_that_lacks_a_character(tmp_path):
    (tmp_path / "text").write_text(CHINESE, encoding="utf-8")
    run("train", tmp_path / "text", "--out", tmp_path / "run", *SMALL)
    said = in_latin_1("generate", tmp_path / "run")
    assert said.returncode == 1
    assert re.fullmatch(
        r"gpurnn: the output cannot hold '.+' in its encoding, \S+; set the environment variable PYTHONIOENCODING "
        "to utf-8\n",
        said.stderr,
    )


@pytest.mark.slow
def test_an_encoding_that_lacks_a_character_of_a_path(tmp_path):
    (tmp_path / "text").write_text(CHINESE, encoding="utf-8")
    out = tmp_path / "\u4e2d"
    said = in_latin_1("train", tmp_path / "text", "--out", out, *SMALL)
    assert (said.returncode, said.stdout.splitlines()[-1]) == (0, rf"write more  gpurnn generate '{tmp_path}/\u4e2d'")
    said = in_latin_1("diagnose", out, "--length", "3", "--starts", "1")
    assert (said.returncode, said.stdout.splitlines()[-1]) == (0, rf"pictures      {tmp_path}/\u4e2d/diagnosis")


def test_a_model_whose_outputs_are_not_finite_is_one_line(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    model = LanguageModel.from_file(out / "model.safetensors")
    model.params["output.weight"][...] = np.nan
    model.save(out / "model.safetensors")
    assert "LanguageModel.stream: the logits" in refused("generate", out, code=1)


def test_no_files_and_no_model(tmp_path):
    assert "no FILE given to train on" in refused("train", "--out", tmp_path / "run")
    assert "no model in there (model.safetensors); gpurnn train makes one" in refused("generate", tmp_path)
    assert "no model in there" in refused("evaluate", tmp_path / "x", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    assert "model.safetensors: damaged, or not a safetensors file" in refused("generate", tmp_path)


def test_an_out_directory_that_is_a_file(text):
    assert "file exists" in refused("train", text, "--out", text, *SMALL)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written(text, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission denied" in refused("train", text, "--out", tmp_path / "locked" / "run", *SMALL)
    text.chmod(0)
    assert "permission denied" in refused("train", text, "--out", tmp_path / "run", *SMALL)


def test_training_that_diverges_is_one_line_and_keeps_the_last_good_checkpoint(text, tmp_path):
    out = tmp_path / "run"
    diverging = ["--cell", "rnn", "--optimizer", "sgd", "--lr", 1e38, "--schedule", "constant", "--checkpoint-every", 1]
    said = last_line("train", text, "--out", out, *SMALL, *diverging, "--clip", 1e30, code=1)
    assert re.match(r"gpurnn: Trainer: step \d+: .*; last good checkpoint: .*step-\d{9}\.safetensors", said)
    assert (out / re.search(r"checkpoints/step-\d+\.safetensors", said)[0]).exists()


# --- resuming ---


def edited(out, change):
    """Let ``change`` edit the contents of run.json; return the file."""
    path = out / "run.json"
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))
    return path


WRONG = [None, True, -3, 0.25, 1e308, math.nan, "x", [], [1], {}, {"a": 1}]


def test_a_run_json_that_no_command_line_wrote_is_rejected(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    path, whole = out / "run.json", (out / "run.json").read_text()
    before = parameters(out)

    def try_to_resume(change, *said):
        path.write_text(whole)
        edited(out, change)
        assert refused("train", "--out", out, "--resume").startswith(said)

    damaged = f"gpurnn: {path}: damaged"
    for value in WRONG:
        try_to_resume(lambda held, value=value: held.update(options=value), damaged)
        try_to_resume(lambda held, value=value: held.update(files=value), damaged)
    # Options of every type.
    for option in ("hidden", "level", "tied", "lr", "validation", "patience"):
        try_to_resume(lambda held, option=option: held["options"].pop(option), damaged)
        default = json.loads(whole)["options"][option]
        for value in WRONG:
            fitting = value == default or (option, value) in [("tied", True), ("lr", 0.25), ("lr", 1e308)]
            if fitting or (option, value) == ("validation", "x"):
                continue
            try_to_resume(
                lambda held, option=option, value=value: held["options"].update({option: value}),
                f"{damaged}: --{option} cannot be {value!r}",
            )
    assert_same(parameters(out), before)
    path.write_text(whole)
    run("train", "--out", out, "--resume")


def test_a_model_whose_checkpoints_are_gone_is_not_trained_anew(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    shutil.rmtree(out / "checkpoints")
    (out / "metrics.jsonl").unlink()
    before = files(out)
    assert "holds the model.safetensors of a run whose checkpoints are gone" in last_line(
        "train", "--out", out, "--resume", code=2
    )
    assert files(out) == before


def test_a_run_whose_metrics_are_gone_is_resumed_with_a_warning(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    (out / "metrics.jsonl").unlink()
    result = run("train", "--out", out, "--resume")
    assert f"warning: {out / 'metrics.jsonl'}: is missing, so the history begins at step 6\n" in result.stderr
    assert f"loss curve  none: {out / 'metrics.jsonl'} holds no loss\n" in result.stdout


def test_a_directory_with_a_run_is_not_overwritten(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    before = parameters(out)
    message = "already holds a run; add --resume to resume it, --replace to replace it, or choose another directory"
    assert message in refused("train", text, "--out", out, *SMALL, "--seed", 1)
    (out / "run.json").unlink()
    assert message in refused("train", text, "--out", out, *SMALL, "--seed", 1)
    assert_same(parameters(out), before)
    assert "no run to resume in there" in refused("train", "--out", tmp_path / "none", "--resume")
    assert "no run to resume in there" in refused("demo", "--out", tmp_path / "none", "--resume")


def interrupted(text, out, at, *options):
    """Train until Ctrl-C arrives in the middle of step ``at``."""
    from gpurnn.optimizers import Adam

    step, taken = Adam.step, []

    def counting(*arguments, **keywords):
        taken.append(1)
        if len(taken) == at:
            signal.raise_signal(signal.SIGINT)
        step(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adam, "step", counting)
        return last_line("train", text, "--out", out, *SMALL, *options, code=130)


def test_an_interrupted_run_goes_on_to_the_same_end(text, tmp_path):
    run("train", text, "--out", tmp_path / "whole", *SMALL, "--dropout", 0.2)
    out = tmp_path / "a run"
    said = interrupted(text, out, 4, "--dropout", 0.2)
    assert said == f"gpurnn: interrupted; step 4 is kept. Resume with: gpurnn train --out '{out}' --resume"
    assert (out / "model.safetensors").exists()  # the model so far
    said = run("train", "--out", out, "--resume").stdout
    assert "resuming at step 4 of 6" in said
    assert_same(parameters(out), parameters(tmp_path / "whole"))
    assert (out / "sample.txt").read_text() == (tmp_path / "whole" / "sample.txt").read_text()
    strip = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records(out)]
    assert strip == [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records(tmp_path / "whole")]
    # Resuming a finished run changes nothing.
    run("train", "--out", out, "--resume")
    assert_same(parameters(out), parameters(tmp_path / "whole"))


def test_a_run_is_resumed_from_another_directory(text, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "held").write_text(TEXT[:200])
    monkeypatch.chdir(tmp_path)
    interrupted("text.txt", "run", 2, "--validation", "held")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("train", "--out", tmp_path / "run", "--resume")
    assert records(tmp_path / "run")[-1]["step"] == 6


def test_an_interrupt_before_training_is_one_line(text, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.run, "read", lambda *_: signal.raise_signal(signal.SIGINT))
    assert refused("train", text, "--out", tmp_path / "run", *SMALL, code=130) == "gpurnn: interrupted\n"


def test_resuming_takes_the_same_files_and_options_and_no_others(text, tmp_path):
    out = tmp_path / "run"
    interrupted(text, out, 2)
    (tmp_path / "other").write_text(TEXT)
    for arguments, message in (
        ([tmp_path / "other"], f"its run was started with the files {text}; they cannot be changed"),
        (["--hidden", 7], "its run was started with --hidden 6; it cannot be changed to 7"),
        (["--validate-every", 7], "its run was started with --validate-every None; it cannot be changed to 7"),
        (["--tied"], "its run was started with --tied False; it cannot be changed to True"),
        (["--steps", 5], "its run has 6 steps; --steps 5 can make it longer, but not shorter"),
        (["--from", text], "its run was started without --from; it cannot be changed"),
    ):
        assert message in refused("train", *arguments, "--out", out, "--resume")
    text.write_text(TEXT + "more")
    assert "the text has changed since its run was started" in refused("train", "--out", out, "--resume")
    text.write_text(TEXT)
    run("train", text, "--out", out, "--resume", *SMALL)
    assert records(out)[-1]["step"] == 6


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL)
    whole = parameters(out)
    for path in [*(out / "checkpoints").iterdir(), out / "metrics.jsonl", out / "model.safetensors"]:
        path.unlink()
    run("train", "--out", out, "--resume")
    assert_same(parameters(out), whole)


def test_damaged_checkpoints(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL, "--checkpoint-every", 2)
    whole = parameters(out)
    older, newest = sorted((out / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-5])
    result = subprocess.run(
        [sys.executable, "-c", UNDRAWN, "train", "--out", str(out), "--resume"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.match(rf"gpurnn: warning: {newest}: damaged.*; using the one before it, {older}\n", result.stderr)
    assert "resuming at step 4 of 6" in result.stdout
    assert_same(parameters(out), whole)
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(b"rubbish")
    assert "damaged, or not a safetensors file" in refused("train", "--out", out, "--resume")
    for damaged, message in (("{", "run.json: damaged"), ("{}", "not a training run that this version")):
        (out / "run.json").write_text(damaged)
        assert message in refused("train", "--out", out, "--resume")


# --- the process ---


def test_control_c_in_a_real_process(text, tmp_path):
    # Children of a process that ignores SIGINT ignore it too, for example those of a test in the background.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from gpurnn.cli import main; main()"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-c", code, "train", str(text), "--out", str(out), *SMALL, "--steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "tokens/s" in line:  # the first metrics have been written
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Resume with: gpurnn train --out {out} --resume" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from gpurnn.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'tqdm', 'safetensors', 'matplotlib', 'gpurnn.reference'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("[]\n")
    assert done.stdout.startswith(f"gpurnn {gpurnn.__version__}\n")


def test_every_command_and_option_has_help():
    assert run("--help").stdout.count("gpurnn train BOOK.txt") == 1
    for name, command in cli.cli.commands.items():
        said = run(name, "--help").stdout
        assert command.help.splitlines()[0][:40] in said
        assert f"  gpurnn {name}" in said  # an example
        assert command.short_help in run("--help").stdout  # the whole help text
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (name, parameter.name)


def test_reading_only_the_first_lines_is_no_error(text, tmp_path):
    run("train", text, "--out", tmp_path / "run", *SMALL)
    command = [sys.executable, "-m", "gpurnn", "generate", str(tmp_path / "run"), "--length", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=60)


# --- export ---


def test_export_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    model = tmp_path / "model.safetensors"
    LanguageModel(CharVocabulary.from_text("ab"), 2, 3).save(model)
    said = run("export", model, tmp_path / "model.onnx", code=2).stderr
    assert said == "gpurnn: to_onnx needs onnx; pip install 'gpurnn[onnx]'\n"
    said = run("export", tmp_path / "none", tmp_path / "model.onnx", code=2).stderr
    assert said == f"gpurnn: {tmp_path / 'none'}: no such file or directory\n"


# --- info ---


def test_info_names_versions_and_backends():
    said = run("info").stdout
    assert f"gpurnn {gpurnn.__version__}\n" in said
    assert f"numpy {np.__version__} (" in said
    for package in ("array-api-compat", "safetensors", "tqdm", "click", "matplotlib"):
        assert re.search(rf"^{package} \d", said, re.MULTILINE)
    assert "  cpu       runs here: as reference, the default, because GPURNN_WING is reference\n" in said
    assert "  reference runs here: NumPy\n" in said


class FakeRuntimeError(RuntimeError):
    pass


def fake_cupy(devices):
    def count():
        if devices is None:
            raise FakeRuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return devices

    runtime = types.SimpleNamespace(getDeviceCount=count)
    return types.SimpleNamespace(__version__="14.0.0", cuda=types.SimpleNamespace(runtime=runtime))


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"cannot run here: CuPy cannot be imported \(.*\); pip install 'cupy-cuda12x\[ctk\]'"),
        (fake_cupy(None), r"cannot run here: CuPy 14.0.0 finds no CUDA device \(cudaErrorNoDevice: no CUDA"),
        (fake_cupy(0), r"cannot run here: CuPy 14.0.0 finds no CUDA device$"),
        (fake_cupy(1), "runs here: fused CUDA kernels, by CuPy$"),
    ],
)
def test_info_says_why_cuda_cannot_run(monkeypatch, cupy, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr("gpurnn.kernels.recurrence.cost.launch_seconds", lambda: 8.126e-6)
    said = run("info").stdout
    assert re.search("^  cuda      " + message, said, re.MULTILINE)
    runs = "runs here" in message
    assert f"  measured  {8.13 if runs else 'no: there is no GPU'}\n" in said
    assert f"  planned   9, the default{'; GPURNN_LAUNCH_MICROSECONDS=8.13 sets it' if runs else ''}\n" in said
    monkeypatch.setenv("GPURNN_LAUNCH_MICROSECONDS", "7.5")
    assert "  planned   7.5, GPURNN_LAUNCH_MICROSECONDS" in run("info").stdout


def test_info_says_why_a_launch_cannot_be_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy(1))
    said = run("info").stdout
    assert "  measured  no: AttributeError: " in said
    assert "  planned   9, the default\n" in said


def test_info_says_what_compiles_kernels_for_the_cpu(monkeypatch):
    monkeypatch.setenv("CXX", "my-c++ -pipe")
    assert (
        "  host      runs here: the CUDA kernels on the CPU, slowly, compiled with my-c++ -pipe\n" in run("info").stdout
    )
    monkeypatch.setenv("CXX", 'g++ "-O2')
    assert "  host      cannot run here: CXX is 'g++ \"-O2', expected a command: No closing" in run("info").stdout
    monkeypatch.setenv("CXX", " ")
    assert "compiled with \n" not in run("info").stdout
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "  host      cannot run here: no C++ compiler: set CXX, install g++" in run("info").stdout


def test_info_says_what_compiles_recurrences_for_the_cpu(monkeypatch):
    monkeypatch.setenv("CXX", "my-c++ -pipe")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("gpurnn.kernels.native.processor.instruction_sets", lambda: ("avx2", "sse4"))
    how = "compiled for avx2, when it is first called, by my-c++ -pipe, on at most 1 thread\n"
    monkeypatch.setattr("gpurnn.kernels.native.install.why_not", lambda: "there are none")
    assert f"  native    runs here: {how}" in run("info").stdout
    monkeypatch.setattr("gpurnn.kernels.native.install.why_not", lambda: "")
    assert "compiled for avx2, on at most 1 thread\n" in run("info").stdout
    monkeypatch.setenv("GPURNN_CPU", "avx512")
    why = "cannot run here: GPURNN_CPU is 'avx512', expected an instruction set of this processor: avx2, sse4\n"
    assert f"  native    {why}" in run("info").stdout
    monkeypatch.setattr("gpurnn.kernels.native.processor.instruction_sets", lambda: ())
    assert (
        "  native    cannot run here: compiled layers need SSE4.2 or NEON, which this processor " in run("info").stdout
    )


@pytest.mark.parametrize("command", ["--help", "--version", "info", "train --help"])
def test_a_full_disk_under_the_output_is_one_line(command):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    command = f"'{sys.executable}' -m gpurnn {command} >/dev/full"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (1, "gpurnn: no space left on device\n")


def test_info_as_json():
    found = json.loads(run("info", "--json").stdout)
    assert found["gpurnn"] == gpurnn.__version__
    assert found["packages"]["numpy"] == np.__version__
    assert found["devices"]["cpu"] == {"runs": True, "reason": None}
    assert found["devices"]["cuda"]["runs"] == (found["devices"]["cuda"]["reason"] is None)
    assert found["launch_microseconds"]["planned"] == 9
    assert (found["launch_microseconds"]["measured"] is None) == (not found["devices"]["cuda"]["runs"])


# --- texts ---


@pytest.mark.parametrize(
    ("encoding", "options"),
    [
        ("utf-16", []),
        ("utf-32", []),
        ("utf-8-sig", []),
        ("utf-16-le", ["--encoding", "utf-16-le"]),
        ("utf-16", ["--encoding", "UTF-16"]),
        ("cp1252", ["--encoding", "cp1252"]),
    ],
)
def test_texts_in_other_encodings(tmp_path, encoding, options):
    text = "caf\xe9 au lait; na\xefve r\xe9sum\xe9.\r\n" * 20
    (tmp_path / "text").write_bytes(text.encode(encoding))
    (tmp_path / "plain").write_text(text, encoding="utf-8")
    run("train", tmp_path / "text", "--out", tmp_path / "run", *SMALL, *options)
    run("train", tmp_path / "plain", "--out", tmp_path / "same", *SMALL)
    assert_same(parameters(tmp_path / "run"), parameters(tmp_path / "same"))
    said = run("evaluate", tmp_path / "run", tmp_path / "text", *options).stdout
    assert said == run("evaluate", tmp_path / "run", tmp_path / "plain").stdout
    run("train", "--out", tmp_path / "run", "--resume")
    run("diagnose", tmp_path / "run", "--length", 3, "--starts", 1)


@pytest.mark.parametrize("encoding", ["nonsense", "base64", ""])
def test_what_is_no_encoding(text, tmp_path, encoding):
    said = run("train", text, "--out", tmp_path / "run", "--encoding", encoding, code=2).stderr
    assert f"{encoding!r} is not an encoding that Python knows" in said


def test_a_text_in_another_encoding_than_said(text, tmp_path):
    said = refused("train", text, "--out", tmp_path / "run", "--encoding", "ascii", "--validation", bad_latin(tmp_path))
    assert said.startswith(f"gpurnn: {tmp_path / 'latin'}: not ASCII: byte 0xe9 at position 3; give its encoding")


def bad_latin(folder):
    (folder / "latin").write_bytes("caf\xe9".encode("latin-1") * 200)
    return folder / "latin"


def piped(data, *arguments, code=0):
    result = CliRunner(**APART).invoke(cli.cli, [str(argument) for argument in arguments], input=data)
    assert result.exit_code == code, result.output
    return result


def test_a_text_from_stdin_is_kept_and_the_run_is_resumed(text, tmp_path):
    out = tmp_path / "run"
    piped(TEXT, "train", "-", text, "--out", out, *SMALL)
    assert (out / "text.txt").read_text() == TEXT
    run("train", text, text, "--out", tmp_path / "same", *SMALL)
    assert_same(parameters(out), parameters(tmp_path / "same"))
    run("train", "--out", out, "--resume", "--steps", 8)
    assert records(out)[-1]["step"] == 8
    run("train", "-", text, "--out", out, "--resume")
    assert "characters of text" in run("diagnose", out, "--length", 3, "--starts", 1).stdout
    said = piped(TEXT, "evaluate", out, "-").stdout
    assert said == run("evaluate", out, text).stdout
    shutil.move(out, tmp_path / "moved")
    run("train", "--out", tmp_path / "moved", "--resume", "--steps", 9)


def test_what_is_wrong_with_stdin(text, tmp_path):
    out = tmp_path / "run"
    for data, arguments, message in (
        (b"", ["-"], "gpurnn: stdin: nothing came"),
        (b"caf\xe9", ["-"], "gpurnn: stdin: not UTF-8: byte 0xe9 at position 3"),
        (b"\0\0", ["-"], "gpurnn: stdin: a binary file"),
        (b"text", ["-", "-"], "gpurnn: - is given 2 times; stdin can be read only once"),
        (b"text", ["-", "--validation", "-"], "gpurnn: - is given 2 times"),
    ):
        assert piped(data, "train", *arguments, "--out", out, *SMALL, code=2).stderr.startswith(message)
        assert not out.exists()
    out.mkdir()
    (out / "text.txt").write_text("mine")
    said = piped(TEXT, "train", "-", "--out", out, *SMALL, code=2).stderr
    assert "holds text.txt, which no training run wrote there" in said
    assert files(out) == {(out / "text.txt").relative_to(out): b"mine"}
    run("train", text, "--out", out, *SMALL)  # this writes no text.txt
    assert (out / "text.txt").read_text() == "mine"


# --- longer, from, again ---


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_run_is_made_longer(text, tmp_path, schedule):
    options = [*SMALL, "--schedule", schedule, "--dropout", 0.1]
    run("train", text, "--out", tmp_path / "run", *options)
    first = records(tmp_path / "run")
    said = run("train", "--out", tmp_path / "run", "--resume", "--steps", 12).stdout
    assert "resuming at step 6 of 12" in said
    run("train", "--out", tmp_path / "run", "--resume", "--steps", 15)
    run("train", "--out", tmp_path / "run", "--resume")  # it is already there
    rates = {r["step"]: r["learning_rate"] for r in records(tmp_path / "run") if "loss" in r}
    assert list(rates) == [2, 4, 6, 8, 10, 12, 14, 15]
    if schedule == "constant":
        run("train", text, "--out", tmp_path / "whole", *options, "--steps", 15)
        assert_same(parameters(tmp_path / "run"), parameters(tmp_path / "whole"))
    else:
        parts = [CosineWithWarmup(0.003, 6, 0), CosineWithWarmup(0.003, 6, 0), CosineWithWarmup(0.003, 3, 0)]
        assert rates == {
            step: parts[part](step - 1 - begin)
            for step, part, begin in [
                (2, 0, 0), (4, 0, 0), (6, 0, 0), (8, 1, 6), (10, 1, 6), (12, 1, 6), (14, 2, 12), (15, 2, 12)
            ]
        }  # fmt: skip
        assert [r["learning_rate"] for r in first if "loss" in r] == [rates[step] for step in (2, 4, 6)]
    # A run that was interrupted on the way gives the same.
    interrupted(text, tmp_path / "other", 4, *options[len(SMALL) :])
    run("train", "--out", tmp_path / "other", "--resume", "--steps", 12)
    run("train", "--out", tmp_path / "other", "--resume", "--steps", 15)
    assert_same(parameters(tmp_path / "other"), parameters(tmp_path / "run"))


def test_a_run_is_made_longer_by_epochs(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, "--embedding", 4, "--hidden", 6, "--batch", 4, "--window", 40, "--epochs", 1)
    steps = records(out)[-1]["step"]
    said = run("train", "--out", out, "--resume", "--epochs", 3)
    assert f"resuming at step {steps} of {3 * steps}" in said.stdout
    said = run("train", "--out", out, "--resume", "--epochs", 4, "--steps", 3 * steps + 1)
    assert "warning: --epochs 4 has no effect, as --steps is given too" in said.stderr
    assert records(out)[-1]["step"] == 3 * steps + 1


def test_a_run_that_stopped_early_is_not_made_longer(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL, "--steps", 200, "--lr", 0.5, "--validate-every", 2, "--patience", 2)
    before = files(out)
    said = last_line("train", "--out", out, "--resume", "--steps", 300, code=2)
    assert re.search(r"its run stopped early at step \d+, as --patience 2 asks; .* with --from ", said)
    assert files(out) == before


def test_training_begins_with_another_model(text, tmp_path):
    run("train", text, "--out", tmp_path / "base", *SMALL, "--cell", "gru", "--layers", 2)
    other = tmp_path / "other.txt"
    other.write_text("the lazy fox sleeps! " * 40)
    result = run(
        "train", other, "--out", tmp_path / "tuned", "--from", tmp_path / "base", "--steps", 3, "--batch", 4,
        "--window", 10, "--hidden", 7, "--cell", "gru", "--dropout", 0.1,
    )  # fmt: skip
    assert result.stderr.count("warning: --hidden has no effect, as the model of --from is as it is\n") == 1
    assert "--cell" not in result.stderr
    assert re.search(r"warning: \d+ of 798 characters are not in the vocabulary", result.stderr)
    base = LanguageModel.from_file(tmp_path / "base" / "model.safetensors")
    tuned = LanguageModel.from_file(tmp_path / "tuned" / "model.safetensors")
    assert tuned.vocabulary == base.vocabulary
    assert tuned.config() == {**base.config(), "dropout": 0.1}
    held = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert (held["options"]["hidden"], held["options"]["cell"], held["options"]["layers"]) == (6, "gru", 2)
    begun = read_checkpoint(checkpoints(tmp_path / "tuned" / "checkpoints")[0])
    assert begun["step"] == 0
    assert_same(begun["params"], base.state_dict())
    # The base model is no longer needed.
    shutil.rmtree(tmp_path / "base")
    run("train", "--out", tmp_path / "tuned", "--resume", "--steps", 5)
    run("train", other, "--out", tmp_path / "again", "--from", tmp_path / "tuned" / "model.safetensors", "--steps", 1)


def test_a_run_from_another_model_that_was_killed_at_once(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", tmp_path / "base", *SMALL)
    run("train", text, "--out", out, "--from", tmp_path / "base", "--steps", 3, "--batch", 4, "--window", 10)
    whole = parameters(out)
    for path in [*(out / "checkpoints").iterdir(), out / "metrics.jsonl", out / "model.safetensors"]:
        path.unlink()
    run("train", "--out", out, "--resume")
    assert_same(parameters(out), whole)
    for path in [*(out / "checkpoints").iterdir(), out / "metrics.jsonl", out / "model.safetensors"]:
        path.unlink()
    run("train", "--out", tmp_path / "base", "--resume", "--steps", 8)
    assert "the model has changed since the run was started with it" in refused("train", "--out", out, "--resume")


def test_what_is_wrong_with_a_model_to_begin_with(text, tmp_path):
    arguments = ["train", text, "--out", tmp_path / "run", *SMALL, "--from"]
    assert "no such file" in refused(*arguments, tmp_path / "none")
    assert "damaged, or not a safetensors file" in refused(*arguments, text)
    gpurnn.Forecaster(3, 2).save(tmp_path / "other.safetensors")
    assert "holds a Forecaster, expected a LanguageModel" in refused(*arguments, tmp_path / "other.safetensors")
    assert not (tmp_path / "run").exists()


def test_replacing_a_run(text, tmp_path):
    out = tmp_path / "run"
    run("train", text, "--out", out, *SMALL, "--replace")  # nothing to replace yet
    (out / "notes.txt").write_text("mine")
    run("train", text, "--out", out, *SMALL, "--seed", 1, "--replace")
    run("train", text, "--out", tmp_path / "same", *SMALL, "--seed", 1)
    assert_same(parameters(out), parameters(tmp_path / "same"))
    assert len([r for r in records(out) if "loss" in r]) == 3
    assert (out / "notes.txt").read_text() == "mine"
    # Errors of the new run are reported before the old one is deleted.
    before = files(out)
    refused("train", tmp_path / "none", "--out", out, *SMALL, "--replace")
    assert files(out) == before
    assert "--resume and --replace are given" in refused("train", "--out", out, "--resume", "--replace")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.safetensors").write_text("mine")
    said = refused("train", text, "--out", tmp_path / "foreign", *SMALL, "--replace")
    assert "holds model.safetensors, which no training run wrote there" in said


def test_a_run_that_cannot_be_replaced_stays(text, tmp_path):
    out, short = tmp_path / "run", tmp_path / "short.txt"
    short.write_text("a")
    run("train", text, "--out", out, *SMALL)
    before = files(out)
    for arguments, message in (
        ([text, "--device", "cuda:99"], "cannot run here"),
        ([short], "the text to train on has 1 characters"),
        ([text, "--min-count", 10**6], "no character occurs --min-count 1000000 times"),
        ([text, "--patience", 1, "--validation-fraction", 0], "--patience and --validate-every need a text"),
        ([text, "--from", out], f"{out / 'model.safetensors'}: is of the run that --replace deletes"),
        ([text, "--from", out / "model.safetensors"], "is of the run that --replace deletes; move it away"),
        ([out / "sample.txt"], f"{out / 'sample.txt'}: is of the run that --replace deletes; move it away"),
        ([text, "--validation", out / "metrics.jsonl"], "is of the run that --replace deletes; move it away"),
    ):
        assert message in refused("train", *arguments, "--out", out, *SMALL, "--replace")
        assert files(out) == before


def test_a_run_in_the_place_of_a_demo_is_no_demo(text, tmp_path, monkeypatch):
    monkeypatch.setattr(cli.demo, "_DEMO", SMALL)
    out = tmp_path / "out"
    run("demo", "--out", out)
    before = files(out)
    said = refused("demo", "--out", out, "--device", "cuda:99")
    assert "cannot run here" in said
    assert files(out) == before
    run("train", text, "--out", out, *SMALL, "--replace")
    before = files(out)
    assert "already holds a run that is not a demo" in refused("demo", "--out", out)
    assert files(out) == before


def test_what_another_command_made_is_not_replaced_by_a_run(text, tmp_path):
    rows = "\n".join(f"g{i // 2},{i % 4},{i // 2 % 2}" for i in range(20))
    (tmp_path / "a.csv").write_text(f"g,x,y\n{rows}\n")
    out = tmp_path / "out"
    run("fit", tmp_path / "a.csv", "--group", "g", "--target", "y", "--epochs", 1, "--out", out)
    before = files(out)
    for options in ([], ["--replace"]):
        said = refused("train", text, "--out", out, *SMALL, *options)
        assert f"{out}: holds what gpurnn fit made; choose another directory" in said
    assert files(out) == before


# --- options without effect ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "2"], "--epochs has no effect, as --steps is given"),
        (["--warmup", "2", "--schedule", "constant"], "--warmup has no effect, as --schedule constant has none"),
        (["--warmup", "6"], "--warmup 6 is longer than the run: the rate rises over all of its 6 steps"),
        (["--validation", "v", "--validation-fraction", "0.2"], "--validation-fraction has no effect, as --validation"),
    ],
)
def test_options_without_effect_are_said(text, tmp_path, monkeypatch, options, said):
    (tmp_path / "v").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    result = run("train", text, "--out", tmp_path / "run", *SMALL, *options)
    assert result.stderr.count("gpurnn: warning: ") == 1
    assert f"gpurnn: warning: {said}" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--top-k", "3"], "top_k=3 has no effect, as temperature=0 takes the likeliest token"),
        (["--top-p", "0.5"], "top_p=0.5 has no effect, as temperature=0 takes the likeliest token"),
        (["--seed", "3"], "--seed has no effect, as --temperature 0 takes the likeliest symbol"),
    ],
)
def test_options_of_a_greedy_text_without_effect_are_said(text, tmp_path, options, said):
    run("train", text, "--out", tmp_path / "run", *SMALL)
    result = run("generate", tmp_path / "run", "--temperature", 0, "--length", 5, *options)
    assert result.stderr.count("gpurnn: warning: ") == 1
    assert said in result.stderr
    said = run("diagnose", tmp_path / "run", "--encoding", "utf-16", "--length", 3, "--starts", 1).stderr
    assert said.startswith("gpurnn: warning: --encoding has no effect without --text")


# --- what computes, and messages about it ---


def test_the_kernels_on_the_cpu_train_and_write(text, tmp_path):
    run("train", text, "--out", tmp_path / "host", *SMALL, "--steps", 1, "--device", "host", "--dtype", "float64")
    run("train", text, "--out", tmp_path / "cpu", *SMALL, "--steps", 1, "--dtype", "float64")
    for name, p in parameters(tmp_path / "cpu").items():
        np.testing.assert_allclose(parameters(tmp_path / "host")[name], p, rtol=1e-9, atol=1e-12)
    written = [
        run("generate", tmp_path / "cpu", "--length", 5, "--device", d).stdout for d in ("cpu", "host", "reference")
    ]
    assert written[0] == written[1] == written[2]
    assert run("evaluate", tmp_path / "cpu", text, "--device", "host").stdout.endswith("characters)\n")
    assert gpurnn._dispatch.numpy_wing() == "reference"  # the choice ends with the command


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
def test_what_is_no_device(text, tmp_path, device):
    said = run("train", text, "--out", tmp_path / "run", *SMALL, "--device", device, code=2).stderr
    assert f"{device!r} is none of cpu, cuda, cuda:N, reference, native and host" in said


@pytest.mark.parametrize(
    ("cupy", "device", "message"),
    [
        (None, "cuda", "--device cuda cannot run here: CuPy cannot be imported"),
        (fake_cupy(0), "cuda", "--device cuda cannot run here: CuPy 14.0.0 finds no CUDA device"),
        (fake_cupy(2), "cuda:2", "--device cuda:2 cannot run here: there are 2 CUDA devices, cuda:0 to cuda:1"),
    ],
)
def test_a_device_that_cannot_run_here(text, tmp_path, monkeypatch, cupy, device, message):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert message in refused("train", text, "--out", tmp_path / "run", *SMALL, "--device", device)
    assert not (tmp_path / "run").exists()


def test_quiet(text, tmp_path, monkeypatch):
    result = run("train", text, "--out", tmp_path / "run", *SMALL, "--quiet")
    assert (result.stdout, result.stderr) == ("", "")
    result = run("train", text, "--out", tmp_path / "other", *SMALL, "-q", "--epochs", 3)
    assert result.stderr == "gpurnn: warning: --epochs has no effect, as --steps is given\n"
    monkeypatch.setattr(cli.demo, "_DEMO", SMALL)
    result = run("demo", "--out", tmp_path / "demo", "-q")
    assert (result.stdout, result.stderr) == ("", "")


def test_several_files_are_evaluated(text, tmp_path):
    run("train", text, "--out", tmp_path / "run", *SMALL)
    (tmp_path / "other").write_text("the fox! QQ")
    each = [run("evaluate", tmp_path / "run", path).stdout for path in (text, tmp_path / "other")]
    lines = run("evaluate", tmp_path / "run", text, tmp_path / "other").stdout.splitlines(keepends=True)
    assert [line.split(maxsplit=1)[0] for line in lines] == [str(text), str(tmp_path / "other"), "all"]
    assert [line.split(maxsplit=1)[1] for line in lines[:2]] == each
    found = json.loads(run("evaluate", tmp_path / "run", text, tmp_path / "other", "--json").stdout)
    assert found["metric"] == "bits_per_character"
    one, other = found["files"]
    assert (one["symbols"], other["symbols"], other["unknown"]) == (len(TEXT), 11, 3)
    assert one["nats"] + other["nats"] == pytest.approx(found["all"]["nats"])
    bits = found["all"]["nats"] / (len(TEXT) + 11) / math.log(2)
    assert found["all"]["bits_per_character"] == pytest.approx(bits)
    assert f"{bits:.4f}" in lines[2]
    assert "all" not in json.loads(run("evaluate", tmp_path / "run", text, "--json").stdout)


def test_generating_words_as_they_are_drawn(tmp_path):
    path = tmp_path / "words"
    path.write_text("the cat and\nthe dog\n" * 40)
    run("train", path, "--out", tmp_path / "run", *SMALL, "--level", "word")
    model = LanguageModel.from_file(tmp_path / "run" / "model.safetensors")
    for prompt in ("", "the cat", "the cat\n", "\n", " "):
        written = run("generate", tmp_path / "run", "--length", 60, "--prompt", prompt, "--top-p", 0.95).stdout
        text = model.sample(60, prompt, temperature=0.7, top_p=0.95, rng=0)
        expected = model.vocabulary.join([prompt.strip(" "), text] if prompt.strip(" ") else [text])
        assert written == (" " if prompt == " " else "") + expected + "\n"


# --- who owns a directory ---


def files(directory):
    return {path.relative_to(directory): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


NAMES = ["metrics.jsonl", "model.safetensors", "loss.png", "sample.txt", "run.json", "checkpoints/important.bin"]


@pytest.mark.parametrize("command", ["train", "demo"])
@pytest.mark.parametrize("name", NAMES)
def test_files_that_no_run_wrote_are_named_and_stay(text, tmp_path, monkeypatch, command, name):
    monkeypatch.setattr(cli.demo, "_DEMO", SMALL)
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("precious")
    before = files(out)
    arguments = ["train", text, *SMALL] if command == "train" else ["demo"]
    said = refused(*arguments, "--out", out)
    assert name.partition("/")[0] in said
    assert "choose another directory" in said
    assert files(out) == before


def test_a_text_in_the_directory_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample.txt").write_text(TEXT)
    said = refused("train", "sample.txt", "--out", ".", *SMALL)
    assert "holds sample.txt, which no training run wrote there" in said
    assert files(tmp_path) == {(tmp_path / "sample.txt").relative_to(tmp_path): TEXT.encode()}
    (tmp_path / "sample.txt").rename("book.txt")
    run("train", "book.txt", "--out", ".", *SMALL)
    assert (tmp_path / "book.txt").read_text() == TEXT
    assert len((tmp_path / "sample.txt").read_text()) == 51


def test_a_demo_replaces_its_own_files_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.demo, "_DEMO", SMALL)
    out = tmp_path / "demo"
    run("demo", "--out", out)
    others = {"notes.txt": "mine", "checkpoints/important.bin": "mine", "checkpoints/step-1.safetensors": "mine"}
    for name, data in others.items():
        (out / name).write_text(data)
    first = parameters(out)
    run("demo", "--out", out)
    assert_same(parameters(out), first)
    assert all((out / name).read_text() == data for name, data in others.items())
    (out / "checkpoints" / "step-000000003.safetensors").write_text("mine")
    before = files(out)
    assert "step-000000003.safetensors is damaged or not of the run" in refused("demo", "--out", out)
    assert files(out) == before


def test_a_text_of_the_demos_name_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.demo, "_DEMO", SMALL)
    (tmp_path / "python-reference.txt").write_text("mine")
    assert "holds python-reference.txt, which no training run wrote" in refused("demo", "--out", tmp_path)
    assert (tmp_path / "python-reference.txt").read_text() == "mine"


def test_a_directory_in_use_is_said_with_the_process(text, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gpurnn", "train", str(text), "--out", str(out), *SMALL, "--steps", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if "tokens/s" in line:  # training has begun
                break
        for arguments in ([text, *SMALL], ["--resume"]):
            said = refused("train", *arguments, "--out", out)
            assert f"{out} is in use by another training run (process {process.pid}); wait until it has ended" in said
    finally:
        process.kill()
        process.communicate()
    run_directory = RunDirectory(out)
    with run_directory.locked(new=False):  # a killed process holds no lock
        pass


def test_a_run_of_the_library_is_not_resumed_by_the_command_line(text, tmp_path):
    vocabulary = CharVocabulary.from_text(TEXT)
    model = LanguageModel(vocabulary, 4, 6)
    Trainer(
        model, TokenStream(vocabulary.encode(TEXT), 4, 10), AdamW(), steps=2, directory=tmp_path / "run", progress=False
    ).train()
    assert "its run was not started by gpurnn train" in refused("train", "--out", tmp_path / "run", "--resume")
    assert "already holds a run" in refused("train", text, "--out", tmp_path / "run", *SMALL)


def test_files_are_joined_by_a_line_end(tmp_path):
    (tmp_path / "a").write_text("one two end")
    (tmp_path / "b").write_text("start three\n")
    (tmp_path / "c").write_text("four")
    names = [tmp_path / name for name in "abc"]
    assert cli.texts.read_all([str(name) for name in names]) == "one two end\nstart three\nfour"
    assert cli.texts.read_all([str(names[0])]) == "one two end"
    words = [*names, *[names[1]] * 10]
    run("train", *words, "--out", tmp_path / "run", *SMALL, "--level", "word", "--batch", 1, "--window", 1)
    assert "endstart" not in LanguageModel.from_file(tmp_path / "run" / "model.safetensors").vocabulary.symbols
    assert "words of text" in run("diagnose", tmp_path / "run", "--length", 4, "--starts", 1).stdout


def test_a_full_disk_is_one_line(text, tmp_path, monkeypatch):
    def full(self, records):
        raise OSError(28, "No space left on device", str(self.path / "metrics.jsonl"))

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "append_metrics", full)
        said = last_line("train", text, "--out", out, *SMALL, code=1)
    assert said == f"gpurnn: {out / 'metrics.jsonl'}: no space left on device"
    run("train", "--out", out, "--resume")
    run("train", text, "--out", tmp_path / "whole", *SMALL)
    assert_same(parameters(out), parameters(tmp_path / "whole"))


@pytest.mark.parametrize("dead", ["2>&-", ">&- 2>&-", "2>/dev/full", "| true", "2>&1 | true"])
def test_a_dead_terminal_does_not_end_training(text, tmp_path, dead):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    out = tmp_path / "run"
    command = f"'{sys.executable}' -c \"{UNDRAWN}\" train '{text}' --out '{out}' {' '.join(SMALL)} {dead}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stderr
    run("train", text, "--out", tmp_path / "whole", *SMALL)
    assert_same(parameters(out), parameters(tmp_path / "whole"))
    assert (out / "sample.txt").exists()


@pytest.mark.parametrize("dead", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_an_error_that_nobody_reads_is_an_exit_code(tmp_path, dead):
    command = f"'{sys.executable}' -m gpurnn generate '{tmp_path}' {dead}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in done.stdout + done.stderr
    if "|" not in dead and "full" not in dead:
        assert done.returncode == 2


def test_what_stopped_a_training_is_said(capsys):
    ended = types.SimpleNamespace(step=1200, total=2000, patience=15, stopped_early=True)
    cli.terminal.say_how_training_ended(ended)
    said = "trained for 1,200 of 2,000 steps: 15 evaluations did not lower the validation loss\n"
    assert capsys.readouterr() == ("", said)
