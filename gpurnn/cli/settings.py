"""The settings of a training run: the options of `gpurnn train`, which run.json stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..cells import CELLS, ELEMENTWISE
from .options import PathType, cell_options, choice, encoding_option, integer, number
from .terminal import F

OPTIMIZERS = {
    name.lower(): name for name in ("Adam", "AdamW", "NAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "SGD")
}

OF_MODEL = (
    "level", "tokenizer", "max_vocabulary", "min_count", "cell", "option", "embedding", "hidden", "layers", "tied",
    "dtype",
)  # fmt: skip
"""The options that define the model; with --from, the other model defines it."""

_OPTIONS: list[Callable[[Any], Any]] = [
    choice("--level", ["char", "word", "bpe"], "What a token is: a character, a word or (bpe) a part of a word."),
    click.option(
        "--tokenizer",
        type=PathType(),
        metavar="FILE.json",
        help="Use this tokenizer of the library tokenizers; without it --level bpe trains one on the text.",
    ),
    integer("--max-vocabulary", None, "The most symbols to know; rarer ones are unknown.", least=2),
    integer("--min-count", 1, "Know only symbols that occur at least this often."),
    choice("--cell", sorted(CELLS | ELEMENTWISE, key="lstm".__ne__), "Recurrent cell."),
    cell_options,
    integer("--embedding", 64, "Width of the embedding."),
    integer("--hidden", 256, "Width of the recurrent layers."),
    integer("--layers", 1, "Number of recurrent layers."),
    click.option("--tied", is_flag=True, help="Use the embedding as output weight too; their widths must be equal."),
    number("--dropout", 0.0, "Dropout rate before, between and after the layers.", max=1, max_open=True),
    choice("--dtype", ["float32", "float64"], "Floating-point type."),
    integer("--epochs", 5, "Passes over the text."),
    integer("--steps", None, "Updates to make, instead of --epochs."),
    integer("--batch", 32, "Places in the text that are read side by side."),
    integer("--window", 100, "Steps that gradients flow back through."),
    choice("--optimizer", list(OPTIMIZERS), "Optimizer."),
    number("--lr", 0.003, "Learning rate; with cosine, the highest.", min_open=True),
    choice("--schedule", ["cosine", "constant"], "Learning rate over the steps."),
    integer("--warmup", 0, "With cosine, steps in which the rate rises.", least=0),
    number("--clip", 1.0, "Largest global norm of the gradient.", min_open=True),
    number("--clip-value", None, "Largest entry of the gradient.", min_open=True),
    number("--l2", 0.0, "Weight of the L2 penalty."),
    click.option("--validation", type=PathType(allow_dash=True), metavar="FILE", help="Text to validate on."),
    number("--validation-fraction", 0.05, "The share to validate on, without --validation.", max=1, max_open=True),
    integer("--validate-every", None, "Steps between validations.  [default: an epoch]"),
    integer("--patience", None, "Stop after this many validations without improvement."),
    integer("--checkpoint-every", 200, "Steps between checkpoints."),
    integer("--log-every", 10, "Steps that a line of the metrics covers."),
    integer("--shards", None, "Parts of a batch, for the same result on any number of processes."),
    integer("--seed", 0, "Seeds parameters and dropout.", least=0),
    encoding_option,
]


def with_training_options(command: F) -> F:
    """Add all training options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_COMMAND = with_training_options(click.command("train", add_help_option=False)(lambda **options: None))
"""A command with these options and nothing else."""


def options_of(arguments: list[str]) -> dict[str, Any]:
    """The options of `gpurnn train` with these arguments."""
    return dict(_COMMAND.make_context("train", [*arguments]).params)


def can_be_given(name: str, value: Any, default: Any) -> bool:
    """Whether the command line can give an option of `gpurnn train` this value."""
    if isinstance(default, dict):
        return isinstance(value, dict)
    if value is None or isinstance(default, bool):
        return type(value) is type(default)
    option = next(option for option in _COMMAND.params if option.name == name)
    try:
        given = option.type_cast_value(click.Context(_COMMAND), str(value))
    except click.BadParameter:
        return False
    return type(given) is type(value) and bool(given == value)
