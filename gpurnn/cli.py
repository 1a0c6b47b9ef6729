"""The ``gpurnn`` command. What is heavy is imported where it is used, so that ``gpurnn --help`` is quick."""

from __future__ import annotations

import hashlib
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from . import __version__
from .cells import CELLS

if TYPE_CHECKING:
    from .models import LanguageModel, Vocabulary
    from .optimizers import Optimizer
    from .training import TokenStream, Trainer
    from .training.directory import RunDirectory

F = TypeVar("F", bound=Callable[..., Any])

RUN, MODEL, METRICS, CURVE, SAMPLE = "run.json", "model.safetensors", "metrics.jsonl", "loss.png", "sample.txt"
DEMO_TEXT = "python-reference.txt"
SAMPLE_LENGTH = {"character": 2000, "word": 400}


class Refusal(click.ClickException):
    """One line on stderr and exit code 2: what was asked for cannot be done."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        with suppress(OSError, ValueError):  # where nobody reads it, the exit code says it
            click.echo(f"gpurnn: {self.format_message()}", file=file, err=file is None)


class Failure(Refusal):
    """One line on stderr and exit code 1: what was begun went wrong."""

    exit_code = 1


class Interrupted(Refusal):
    """One line on stderr and exit code 130, as a shell has it after Ctrl-C."""

    exit_code = 130


class _Commands(click.Group):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _failing():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, context: click.Context, /) -> Any:
        with _failing():
            return super().invoke(context)


@contextmanager
def _failing() -> Iterator[None]:
    """Turn what no option can be blamed for into one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    except BrokenPipeError:
        raise  # click ends quietly when nobody reads on
    except UnicodeEncodeError as error:
        raise Failure(
            f"the output cannot hold {error.object[error.start]!r} in its encoding, {sys.stdout.encoding}; set the "
            "environment variable PYTHONIOENCODING to utf-8"
        ) from error
    except MemoryError as error:
        raise Failure(f"out of memory: {error}" if str(error) else "out of memory") from error
    except (OSError, FloatingPointError) as error:
        raise Failure(_sentence(error)) from error


def _sentence(error: BaseException) -> str:
    """What an error says, and the file first where it names one."""
    if isinstance(error, OSError) and error.strerror:
        what = error.strerror.lower()
        return what if error.filename is None else f"{error.filename}: {what}"
    return str(error)


def _say(text: str = "", err: bool = False) -> None:
    """Print a line. Training goes on where nobody reads it any more."""
    with suppress(OSError, ValueError):
        click.echo(_printable(text, err), err=err)


def _tell(text: str = "") -> None:
    """Print a line of what was asked for."""
    click.echo(_printable(text))


def _printable(text: str, err: bool = False) -> str:
    """``text`` with escapes for what the encoding of the stream lacks: a path, for example, can be any bytes."""
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def main() -> None:
    """Run the command line and exit."""
    cli(prog_name="gpurnn")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="gpurnn", message="gpurnn %(version)s")
def cli() -> None:
    """Recurrent networks for array programmers: train a language model, let it write, measure it.

    \b
    gpurnn demo                              train on the Python language reference, under two minutes
    gpurnn train BOOK.txt --out my-model     train on texts of your own
    gpurnn generate my-model                 let it write
    gpurnn evaluate my-model OTHER.txt       bits per character, or perplexity
    gpurnn diagnose my-model                 gradients, stability, saturation
    """


def _integer(flag: str, default: int | None, text: str, least: int = 1) -> Callable[[F], F]:
    return click.option(flag, type=click.IntRange(min=least), default=default, metavar="N", help=text)


class _Finite(click.FloatRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):  # a NaN passes every comparison with the bounds
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":  # which Path takes for the current directory
            self.fail("it is empty.", param, ctx)
        return super().convert(value, param, ctx)


def _number(flag: str, default: float | None, text: str, **bounds: Any) -> Callable[[F], F]:
    return click.option(flag, type=_Finite(min=0, **bounds), default=default, metavar="X", help=text)


def _choice(flag: str, choices: list[str], text: str) -> Callable[[F], F]:
    return click.option(flag, type=click.Choice(choices), default=choices[0], help=text)


_OPTIMIZERS = {
    name.lower(): name for name in ("Adam", "AdamW", "NAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "SGD")
}

_TRAIN_OPTIONS: list[Callable[[Any], Any]] = [
    _choice("--level", ["char", "word"], "What the model predicts."),
    _integer("--max-vocabulary", None, "Most symbols to know; the rest are unknown.", least=2),
    _integer("--min-count", 1, "Know only symbols that occur this often."),
    _choice("--cell", sorted(CELLS, key="lstm".__ne__), "Recurrent cell."),
    _integer("--embedding", 64, "Width of the embedding."),
    _integer("--hidden", 256, "Width of the recurrent layers."),
    _integer("--layers", 1, "Number of recurrent layers."),
    click.option("--tied", is_flag=True, help="Use the embedding as output weight too; their widths must agree."),
    _number("--dropout", 0.0, "Dropout rate before, between and after the layers.", max=1, max_open=True),
    _choice("--dtype", ["float32", "float64"], "Floating-point type."),
    _integer("--epochs", 5, "Passes over the text."),
    _integer("--steps", None, "Updates to make, instead of --epochs."),
    _integer("--batch", 32, "Places in the text that are read side by side."),
    _integer("--window", 100, "Steps that gradients flow back through."),
    _choice("--optimizer", list(_OPTIMIZERS), "Optimizer."),
    _number("--lr", 0.003, "Learning rate; with cosine, the highest.", min_open=True),
    _choice("--schedule", ["cosine", "constant"], "Learning rate over the steps."),
    _integer("--warmup", 0, "With cosine, steps in which the rate rises.", least=0),
    _number("--clip", 1.0, "Largest global norm of the gradient.", min_open=True),
    _number("--clip-value", None, "Largest entry of the gradient.", min_open=True),
    _number("--l2", 0.0, "Weight of the L2 penalty."),
    click.option("--validation", type=_Path(), metavar="FILE", help="Text to validate on."),
    _number("--validation-fraction", 0.05, "Without --validation, the share kept for it.", max=1, max_open=True),
    _integer("--validate-every", None, "Steps between validations.  [default: an epoch]"),
    _integer("--patience", None, "Stop after this many validations without improvement."),
    _integer("--checkpoint-every", 200, "Steps between checkpoints."),
    _integer("--log-every", 10, "Steps that a line of the metrics covers."),
    _integer("--seed", 0, "Seeds parameters and dropout.", least=0),
]


def _train_options(command: F) -> F:
    for option in reversed(_TRAIN_OPTIONS):
        command = option(command)
    return command


@cli.command(context_settings={"show_default": True})
@click.argument("files", nargs=-1, type=_Path(), metavar="FILE...")
@click.option("--out", required=True, type=_Path(path_type=Path), metavar="DIR", help="Where everything goes.")
@click.option("--resume", is_flag=True, help="Go on with the run in DIR; its files and options need not be repeated.")
@_train_options
@click.pass_context
def train(context: click.Context, /, files: tuple[str, ...], out: Path, resume: bool, **options: Any) -> None:
    """Train a language model on text FILEs (UTF-8, read as one text, each from a new line on).

    DIR receives the model (model.safetensors), the loss as metrics.jsonl and loss.png, a sample.txt, and checkpoints:
    after a crash, or Ctrl-C, the same command with --resume goes on exactly where it stopped. The file run.json says
    that DIR belongs to this run. A DIR that holds any of these names already, and no run to resume, is rejected; other
    files in it are left alone.
    """
    paths = [_to_be_read_again(file) for file in files]
    if options["validation"] is not None:
        options["validation"] = _to_be_read_again(options["validation"])
    if resume:
        source = context.get_parameter_source
        given = {name: value for name, value in options.items() if source(name) is ParameterSource.COMMANDLINE}
        _train(_held_run(out, paths, given))
    elif not paths:
        raise Refusal("no FILE given to train on")
    else:
        _check_new(_folder(out))
        _train(_new_run(_folder(out), paths, options))


_DEMO = shlex.split("--cell gru --hidden 192 --batch 24 --window 48 --steps 1600 --lr 0.01 --warmup 20")


@cli.command()
@click.option(
    "--out", default="gpurnn-demo", type=_Path(path_type=Path), metavar="DIR", show_default=True,
    help="Where everything goes; what an earlier demo left there is replaced.",
)  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a demo that was interrupted.")
def demo(out: Path, resume: bool) -> None:
    """Train on the Python language reference, in under two minutes on two cores, and let the model write.

    The text is that of the help() topics, which comes with Python. DIR receives it as python-reference.txt; the rest is
    what `gpurnn train` does with it.
    """
    from . import _files

    if resume:
        _train(_held_run(out, [], {}))
        _show_sample(out)
        return
    source = out / DEMO_TEXT
    folder = _folder(out, demo=True)
    _check_demo(folder)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise Refusal("this Python came without its language reference, pydoc_data.topics; try gpurnn train") from error
    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    arguments = [str(source), "--out", str(out), *_DEMO]
    _say(f"gpurnn train {shlex.join(arguments)}")
    options = _options(arguments)
    with _refusing(ValueError, OSError), folder.locked(new=not _is_demo(folder)):
        if _is_demo(folder):
            _remove_demo(folder)
        folder.begin()
        _files.write_atomically(source, text.encode())
        run = _new_run(folder, [str(source.resolve())], options)
    _train(run)
    _show_sample(out)


def _check_demo(folder: RunDirectory) -> None:
    """Reject a directory that is neither free for a demo nor an earlier demo's."""
    if _is_demo(folder):
        return
    if folder.belongs_to_a_run():
        raise Refusal(f"{folder.path} already holds a run that is no demo; choose another directory with --out")
    _check_new(folder)


def _is_demo(folder: RunDirectory) -> bool:
    from .training.directory import RunDirectoryError

    try:
        held = folder.read()
    except RunDirectoryError:
        return False
    return held is not None and held.get("demo") is True


def _remove_demo(folder: RunDirectory) -> None:
    """Delete what an earlier demo wrote, and nothing else."""
    from .training.checkpoint import checkpoints, is_of_run

    held = folder.read()
    assert held is not None
    found = checkpoints(folder.path / "checkpoints")
    others = [path.name for path in found if not is_of_run(path, held["run"])]
    if others:
        raise Refusal(
            f"{folder.path / 'checkpoints'}: {others[0]} is damaged or not of the demo; move it away, or choose "
            "another directory with --out"
        )
    for stale in [*found, *(folder.path / name for name in (MODEL, METRICS, CURVE, SAMPLE))]:
        stale.unlink(missing_ok=True)


def _show_sample(out: Path) -> None:
    _say("\n" + (out / SAMPLE).read_text(encoding="utf-8")[:1000].rstrip())


@cli.command(context_settings={"show_default": True})
@click.argument("directory", type=_Path(path_type=Path), metavar="DIR")
@_integer("--length", 1000, "Characters or words to write.", least=0)
@click.option("--prompt", default="", help="What the text goes on from.")
@_number("--temperature", 0.7, "Below 1 likelier, above 1 wilder; 0 takes the likeliest.")
@_integer("--top-k", None, "Draw from the N likeliest symbols only.")
@_integer("--seed", 0, "The same seed writes the same text.", least=0)
def generate(directory: Path, length: int, prompt: str, temperature: float, top_k: int | None, seed: int) -> None:
    """Write a text with the model in DIR."""
    model = _load_model(directory)
    text = model.sample(length, prompt, temperature=temperature, top_k=top_k, rng=seed)
    click.echo(model.vocabulary.join([prompt, text] if prompt else [text]))


@cli.command()
@click.argument("directory", type=_Path(path_type=Path), metavar="DIR")
@click.argument("file", type=_Path(), metavar="FILE")
def evaluate(directory: Path, file: str) -> None:
    """State how well the model in DIR predicts the text FILE.

    In bits per character for a model of characters, as perplexity for one of words; every symbol is predicted from all
    those before it.
    """
    from .training.trainer import METRICS as UNITS

    model = _load_model(directory)
    vocabulary = model.vocabulary
    tokens = vocabulary.encode(_read(file))
    if len(tokens) == 0:
        raise Refusal(f"{file}: there are no {vocabulary.kind}s in it")
    words, convert = UNITS[vocabulary.metric]
    value = convert(-model.log_likelihood(tokens) / len(tokens))
    unknown = int((tokens == 0).sum())
    note = f", {unknown:,} of them not in the vocabulary" if unknown else ""
    _tell(f"{value:.4f} {words} ({len(tokens):,} {vocabulary.kind}s{note})")


@cli.command(context_settings={"show_default": True})
@click.argument("directory", type=_Path(path_type=Path), metavar="DIR")
@click.option("--text", type=_Path(), metavar="FILE", help="Text to run on.  [default: that of the training]")
@_integer("--length", 64, "Characters or words of it.")
@_integer("--starts", 8, "States from which fixed points are looked for.")
def diagnose(directory: Path, text: str | None, length: int, starts: int) -> None:
    """Say how the recurrent layers of the model in DIR behave, and draw it.

    Do gradients vanish or explode, are perturbations forgotten or amplified, what are the fixed points, which gates are
    saturated, which units are dead, what does a step cost. The pictures go to DIR/diagnosis.

    The norm of the gradient in training is that of all parameters, before clipping, as metrics.jsonl has it; for that
    of each layer give a gpurnn.analysis.GradientNorms to a Trainer.
    """
    from .analysis.report import diagnose as report

    model = _load_model(directory)
    if text is None:
        if not (directory / RUN).exists():
            raise Refusal(f"{directory}: does not say what the model was trained on ({RUN}); give a text with --text")
        files = _read_run(_folder(directory))["files"]
    else:
        files = [text]
    tokens = model.vocabulary.encode(_read_all(files))[: length + 1]
    if len(tokens) < 2:
        raise Refusal(f"{' '.join(files)}: expected at least 2 {model.vocabulary.kind}s")
    history = _read_metrics(directory / METRICS)
    pictures = directory / "diagnosis"
    _make_directory(pictures)
    with _refusing(ImportError, ValueError):
        report(model, tokens, pictures, history, starts, _tell)
    _tell(f"\npictures      {pictures}")


@cli.command()
def info() -> None:
    """Show versions, and which backends can run here and why the others cannot."""
    import importlib.metadata
    import os
    import platform

    import numpy as np

    _tell(f"gpurnn {__version__}")
    _tell(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    _tell(f"numpy {np.__version__} ({blas['name']} {blas['version']})")
    for package in ("array-api-compat", "safetensors", "tqdm", "click", "filelock", "platformdirs"):
        _tell(f"{package} {importlib.metadata.version(package)}")
    try:
        _tell(f"matplotlib {importlib.metadata.version('matplotlib')}")
    except importlib.metadata.PackageNotFoundError:
        _tell("matplotlib is not installed: no loss curves; pip install 'gpurnn[plot]'")
    _tell("\nBackends")
    _tell("  numpy  runs here")
    reasons = list(_why_no_cuda())
    _tell("  cuda   " + ("cannot run here: " + "; ".join(reasons) if reasons else "runs here"))
    from .kernels.host import CompilerError, find_compiler

    try:
        _tell(f"  host   runs here: gpurnn.use('host') compiles the CUDA kernels with {' '.join(find_compiler())}")
    except CompilerError as error:
        _tell(f"  host   cannot run here: {error}")


def _why_no_cuda() -> Iterator[str]:
    """What keeps CuPy arrays from being computed with; nothing if nothing does."""
    try:
        import cupy
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        yield f"CuPy cannot be imported ({reason}); pip install 'gpurnn[cuda12]'"
        return
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:
        yield f"CuPy {cupy.__version__} finds no CUDA device ({error})"
        return
    if devices == 0:
        yield f"CuPy {cupy.__version__} finds no CUDA device"


def _to_be_read_again(file: str) -> str:
    """The absolute path of a text that --resume reads once more; refuse what can be read only once."""
    path = Path(file)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Refusal(f"{file}: no regular file, which --resume could not read again; write the text to one first")
    return str(path.resolve())


def _read(file: str) -> str:
    """The text in a file; refuse one that is missing, empty, binary or not UTF-8."""
    parts = []
    try:
        with open(file, "rb") as stream:
            while part := stream.read(2**20):
                if b"\0" in part:  # before the next part is read, as some devices never end
                    raise Refusal(f"{file}: a binary file, expected text in UTF-8")
                parts.append(part)
    except OSError as error:
        raise Refusal(f"{file}: {(error.strerror or str(error)).lower()}") from error
    data = b"".join(parts)
    if not data:
        raise Refusal(f"{file}: the file is empty")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{file}: not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; "
            "convert it, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_all(files: list[str]) -> str:
    """The texts in files as one, each from a new line on."""
    texts = [_read(file) for file in files]
    ended = [text if text.endswith("\n") else f"{text}\n" for text in texts[:-1]]
    return "".join([*ended, texts[-1]])


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(_sentence(error)) from error


def _load_model(directory: Path) -> LanguageModel:
    from .models import LanguageModel

    path = directory / MODEL
    if not path.exists():
        raise Refusal(f"{directory}: no model in there ({MODEL}); gpurnn train makes one")
    with _refusing(ValueError, OSError):
        return LanguageModel.from_file(path)


@contextmanager
def _refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turn errors that say what is wrong with the user's files and options into refusals."""
    try:
        yield
    except errors as error:
        raise Refusal(_sentence(error)) from error


@dataclass
class _Run:
    """A training run; `_held_run` reads what `_new_run` wrote."""

    folder: RunDirectory
    files: list[str]
    options: dict[str, Any]
    text: str
    validation: str | None
    resumed: bool


def _texts(files: list[str], options: dict[str, Any]) -> tuple[str, str | None, str]:
    """The text to train on, that to validate on if it is apart, and a digest of both."""
    text = _read_all(files)
    validation = None if options["validation"] is None else _read(options["validation"])
    return text, validation, hashlib.sha256(f"{len(text)}\0{text}{validation}".encode()).hexdigest()


def _folder(out: Path, **details: Any) -> RunDirectory:
    """``out`` as the directory of a run of this command line."""
    from .training.directory import RunDirectory

    names = [MODEL, CURVE, SAMPLE, *([DEMO_TEXT] if details.get("demo") else [])]
    return RunDirectory(out, names, details)


def _check_new(folder: RunDirectory) -> None:
    """Reject, before any work, a directory that holds a run, or files in the way of one."""
    from .training.checkpoint import checkpoints

    out = folder.path
    with _refusing(ValueError, OSError):
        if folder.belongs_to_a_run():
            with folder.locked(new=False):  # where a run is under way, that is what is to be said
                pass
        if folder.belongs_to_a_run() or checkpoints(out / "checkpoints"):
            raise Refusal(f"{out}: already holds a run; add --resume to go on with it, or choose another directory")
        folder.check_new()


def _new_run(folder: RunDirectory, files: list[str], options: dict[str, Any]) -> _Run:
    """A run that is to go to ``folder``."""
    text, validation, digest = _texts(files, options)
    folder.details |= {"files": files, "sha256": digest, "options": options}
    return _Run(folder, files, options, text, validation, resumed=False)


def _read_run(folder: RunDirectory) -> dict[str, Any]:
    """What the run in a directory was started with."""
    with _refusing(ValueError, OSError):
        run = folder.read()
    if run is None:
        raise Refusal(f"{folder.path}: no run to resume in there")
    if not {"files", "sha256", "options"} <= run.keys():
        raise Refusal(
            f"{folder.path / RUN}: its run was not started by gpurnn train, or not got as far as reading its text"
        )
    files = run["files"]
    if not isinstance(files, list) or not files or not all(isinstance(file, str) for file in files):
        raise Refusal(f"{folder.path / RUN}: damaged: its files are {files!r}, expected a list of paths")
    _check_options(folder.path / RUN, run["options"])
    return run


def _check_options(path: Path, held: Any) -> None:
    """Reject options of a run that are not those that `gpurnn train` takes."""
    known = _options(["FILE", "--out", "DIR"])
    if not isinstance(held, dict) or held.keys() != known.keys():
        raise Refusal(f"{path}: damaged, or of another version of gpurnn: its options are not those of gpurnn train")
    for name, value in held.items():
        if not _can_be_given(name, value, known[name]):
            raise Refusal(f"{path}: damaged: --{str(name).replace('_', '-')} cannot be {value!r}")


def _can_be_given(name: str, value: Any, default: Any) -> bool:
    """Whether the command line can give an option of `gpurnn train` this value."""
    if value is None or isinstance(default, bool):
        return type(value) is type(default)
    option = next(option for option in train.params if option.name == name)
    try:
        given = option.type_cast_value(click.Context(train), str(value))
    except click.BadParameter:
        return False
    return type(given) is type(value) and bool(given == value)


def _options(arguments: list[str]) -> dict[str, Any]:
    """The options that arguments of `gpurnn train` give."""
    options = train.make_context("train", [*arguments]).params
    return {name: value for name, value in options.items() if name not in ("files", "out", "resume")}


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """The sound lines of the metrics of a run; none if there is no file."""
    from . import _metrics

    if not path.exists():
        return []
    with _warnings_said(), _refusing(ValueError, OSError):
        found = _metrics.read(path)
    if found.cut:
        _say(f"gpurnn: warning: {path}: its last line is cut off and left out", err=True)
    return found.records


@contextmanager
def _warnings_said() -> Iterator[None]:
    """Print warnings as lines on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: _say(f"gpurnn: warning: {message}", err=True)
        yield


def _held_run(out: Path, files: list[str], given: dict[str, Any]) -> _Run:
    """The run in ``out``; reject ``files`` and ``given`` options that differ from its own."""
    folder = _folder(out)
    run = _read_run(folder)
    if files and files != run["files"]:
        raise Refusal(f"{out}: its run was started with the files {' '.join(run['files'])}; they cannot be changed")
    for name, value in given.items():
        held = run["options"].get(name)
        if held != value:
            flag = "--" + name.replace("_", "-")
            raise Refusal(f"{out}: its run was started with {flag} {held}; it cannot be changed to {value}")
    text, validation, digest = _texts(run["files"], run["options"])
    if digest != run["sha256"]:
        raise Refusal(f"{out}: the text has changed since its run was started, so it cannot be resumed")
    return _Run(folder, run["files"], run["options"], text, validation, resumed=True)


def _train(run: _Run) -> None:
    """Train, and write everything to the directory of the run."""
    import numpy as np

    from .models import CharVocabulary, LanguageModel, WordVocabulary
    from .training import Trainer
    from .training.checkpoint import checkpoints
    from .training.directory import RunDirectoryError

    out, options, text, validation = run.folder.path, run.options, run.text, run.validation
    kind = CharVocabulary if options["level"] == "char" else WordVocabulary
    if validation is None:
        cut = round(len(text) * (1 - options["validation_fraction"]))
        text, validation = text[:cut], text[cut:]
    vocabulary = kind.from_text(text, max_size=options["max_vocabulary"], min_count=options["min_count"])
    if len(vocabulary) < 2:
        raise Refusal(
            f"no {vocabulary.kind} occurs --min-count {options['min_count']} times, so there is none to learn"
        )
    if not validation and (options["patience"] or options["validate_every"]):
        raise Refusal("--patience and --validate-every need a text to validate on, but --validation-fraction is 0")
    data = _stream(vocabulary, text, options, "to train on", options["batch"])
    held_out = _stream(vocabulary, validation, options, "to validate on", 1) if validation else None
    parameter_rng, training_rng = np.random.default_rng(options["seed"]).spawn(2)
    with _refusing(ValueError):
        model = LanguageModel(
            vocabulary, options["embedding"], options["hidden"], options["layers"], cell=options["cell"],
            tied=options["tied"], dropout=options["dropout"], dtype=options["dtype"], rng=parameter_rng,
        )  # fmt: skip
    steps = options["steps"] or options["epochs"] * len(data)
    trainer = Trainer(
        model, data, _optimizer(options), steps=steps, schedule=_schedule(options, steps),
        clip_norm=options["clip"], clip_value=options["clip_value"], l2=options["l2"],
        validation=held_out, validation_interval=options["validate_every"], patience=options["patience"],
        directory=run.folder, checkpoint_interval=options["checkpoint_every"], log_interval=options["log_every"],
        metric=vocabulary.metric, rng=training_rng, on_checkpoint=lambda: model.save(out / MODEL),
    )  # fmt: skip
    with _directory_taken(run.folder, new=not run.resumed):
        if run.resumed:
            # A kill may have come before the first checkpoint.
            if checkpoints(out / "checkpoints"):
                with _warnings_said(), _refusing(ValueError, OSError):
                    step = trainer.resume()
                _say(f"resuming at step {step:,} of {trainer.total:,}")
            elif (out / MODEL).exists():
                raise Refusal(f"{out}: holds the {MODEL} of a run whose checkpoints are gone; choose another directory")
        else:
            with _refusing(ValueError, OSError):
                run.folder.begin()
            _say(f"{len(text):,} characters to train on, {len(validation):,} to validate on; {vocabulary!r}")
            _say(f"{model!r}")
        try:
            trainer.train()
        except KeyboardInterrupt:
            again = f"gpurnn {click.get_current_context().info_name} --out {shlex.quote(str(out))} --resume"
            raise Interrupted(f"interrupted; step {trainer.saved_step} is kept. Go on with: {again}") from None
        except (FloatingPointError, OSError, RunDirectoryError) as error:
            raise Failure(_sentence(error)) from error
        model.save(out / MODEL)  # early stopping goes back to parameters that are older than the last checkpoint
        _report(out, model, trainer, options["seed"])


@contextmanager
def _directory_taken(folder: RunDirectory, *, new: bool) -> Iterator[None]:
    """Hold the lock of a run's directory; reject one that cannot be had."""
    with ExitStack() as stack:
        with _refusing(ValueError, OSError):
            stack.enter_context(folder.locked(new=new))
        yield


def _stream(vocabulary: Vocabulary, text: str, options: dict[str, Any], purpose: str, least_lanes: int) -> TokenStream:
    """``text`` as a stream of at most ``--batch`` lanes; refuse one that is too short for ``least_lanes``."""
    from .training import TokenStream

    tokens = vocabulary.encode(text)
    batch, window = options["batch"], options["window"]
    lanes = min(batch, len(tokens) // (window + 1))
    if lanes < least_lanes:
        product = f"--batch {batch} times (--window {window} + 1)" if least_lanes > 1 else f"--window {window} + 1"
        raise Refusal(
            f"the text {purpose} has {len(tokens):,} {vocabulary.kind}s, expected at least "
            f"{least_lanes * (window + 1):,}: {product}"
        )
    return TokenStream(tokens, lanes, window)


def _optimizer(options: dict[str, Any]) -> Optimizer:
    from . import optimizers

    kind: Callable[..., Optimizer] = getattr(optimizers, _OPTIMIZERS[options["optimizer"]])
    return kind(lr=options["lr"])


def _schedule(options: dict[str, Any], steps: int) -> Callable[[int], float] | None:
    from . import schedules

    if options["schedule"] == "constant":
        return None
    return schedules.CosineWithWarmup(options["lr"], steps, min(options["warmup"], steps - 1))


def _report(out: Path, model: LanguageModel, trainer: Trainer, seed: int) -> None:
    """Draw the loss curve, write a sample, and say where everything is."""
    from . import _files

    unit = model.vocabulary.metric
    told = []
    for name, where in ((unit, "training"), (f"validation_{unit}", "validation")):
        found = [record[name] for record in trainer.history if name in record]
        told += [f"{found[-1]:.3f} {unit.replace('_', ' ')} in {where}"] if found else []
    ended = f"stopped early at step {trainer.step:,}" if trainer.stopped_early else f"{trainer.step:,} steps"
    _say(f"{ended}: {', '.join(told)}")
    sample = model.sample(SAMPLE_LENGTH[model.vocabulary.kind], "\n", temperature=0.7, rng=seed)
    _files.write_atomically(out / SAMPLE, f"{sample}\n".encode())
    try:
        from .plots import loss_curve

        if any("loss" in record for record in trainer.history):
            loss_curve(trainer.history, out / CURVE)
            curve = f"loss curve  {out / CURVE}"
        else:
            curve = f"loss curve  none: {out / METRICS} holds no loss"
    except ImportError:
        curve = "loss curve  none: matplotlib is not installed; pip install 'gpurnn[plot]'"
    _say(f"model       {out / MODEL}")
    _say(curve)
    _say(f"metrics     {out / METRICS}")
    _say(f"sample      {out / SAMPLE}")
    _say(f"write more  gpurnn generate {shlex.quote(str(out))}")
