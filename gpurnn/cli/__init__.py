"""The ``gpurnn`` command. Heavy modules are imported where they are used, so that ``gpurnn --help`` is quick."""

from __future__ import annotations

import click

from .. import __version__
from . import demo, diagnose, evaluate, export, fit, forecast, generate, info, predict, tokenize, train
from .terminal import Commands, end_on_sigterm


def main() -> None:
    """Run the command line and exit."""
    end_on_sigterm()
    cli(prog_name="gpurnn")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="gpurnn", message="gpurnn %(version)s")
def cli() -> None:
    """Recurrent networks from the shell: language models of texts, and models of tables.

    \b
    gpurnn demo                              train on the Python language reference, under two minutes
    gpurnn train BOOK.txt --out my-model     train on texts of your own
    gpurnn tokenize BOOK.txt book.tokens     once, for a text larger than memory
    gpurnn generate my-model                 let it write
    gpurnn evaluate my-model OTHER.txt       bits per character, or perplexity
    gpurnn diagnose my-model                 what is good or bad in it, and what to try
    gpurnn forecast SALES.csv --time month --target sales
    gpurnn fit TRIPS.csv --group trip --target vehicle
    gpurnn predict TRIPS-model NEW.csv
    gpurnn export TRIPS-model TRIPS.onnx     write a model as ONNX
    """


for _command in (
    demo.demo, train.train, generate.generate, evaluate.evaluate, diagnose.diagnose,
    fit.fit, predict.predict, forecast.forecast, tokenize.tokenize, export.export, info.info,
):  # fmt: skip
    cli.add_command(_command)
