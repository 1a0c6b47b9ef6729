"""A cell's description determines its function and its layer, their parameters and their documentation."""

from __future__ import annotations

import inspect
from dataclasses import fields

import numpy as np
import pytest

import gpurnn
from gpurnn import models
from gpurnn.cells import CELLS, ELEMENTWISE, CellOptions
from gpurnn.cli import cli
from gpurnn.layers.recurrent import LAYERS
from gpurnn.models.base import CELL_OPTIONS

ALL = CELLS | ELEMENTWISE
HEAD, TAIL = ["x"], ["lengths", "resets", "mask", "zero_masked_output", "reverse"]


def on_product(cell) -> list[str]:
    """The extra argument of functions that have a product with W_hh."""
    return ["dropout_h"] if "weight_hh" in cell.parameters else []


@pytest.mark.parametrize("name", ALL)
def test_a_cells_function_takes_what_the_description_says(name):
    kind, parameters = ALL[name], inspect.signature(getattr(gpurnn, name)).parameters
    cell, options = kind(), kind.function_options()
    keywords = [*options, *kind.implied, *TAIL, *on_product(cell), *kind.masks]
    assert list(parameters) == [*HEAD, *cell.parameters, "state", *keywords]
    assert [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY] == keywords
    assert [n for n, p in parameters.items() if p.default is p.empty] == [*HEAD, *cell.needed]
    assert {n: parameters[n].default for n in options} == {n: defaults_of(kind)[n] for n in options}
    step = inspect.signature(getattr(gpurnn, f"{name}_cell")).parameters
    assert list(step) == [*HEAD, *cell.parameters, "state", *options, *kind.implied, *on_product(cell)]
    assert {n: step[n].default for n in options} == {n: parameters[n].default for n in options}


def defaults_of(kind) -> dict:
    return {field.name: field.default for field in fields(kind) if field.name in kind.options()}


@pytest.mark.parametrize("name", ALL)
def test_a_cells_function_documents_every_argument(name):
    function = getattr(gpurnn, name)
    documented = inspect.getdoc(function).partition("Returns\n---")[0]
    for argument in inspect.signature(function).parameters:
        assert f"\n{argument} : " in documented, argument


LAYER_HEAD = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
LAYER_TAIL = [
    "merge",
    "reverse",
    "zero_masked_output",
    "residual",
    "variational_dropout",
    "recurrent_dropout",
    "init",
    "dtype",
    "rng",
]


@pytest.mark.parametrize("name", ALL)
def test_a_cells_layer_takes_what_the_description_says(name):
    kind, layer = ALL[name], LAYERS[name]
    assert getattr(gpurnn, layer.__name__) is layer
    parameters = inspect.signature(layer).parameters
    tail = [n for n in LAYER_TAIL if on_product(kind()) or n not in ("variational_dropout", "recurrent_dropout")]
    assert list(parameters) == [*LAYER_HEAD, *kind.options(), *tail]
    assert [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY] == [*kind.options(), *tail]
    first = inspect.signature(next(iter(LAYERS.values()))).parameters
    alike = [n for n in LAYER_HEAD + tail if n != "init"]
    assert [parameters[n].default for n in alike] == [first[n].default for n in alike]
    assert parameters["init"].default == ("xavier" if kind.elementwise else ("xavier", "orthogonal"))
    assert {n: parameters[n].default for n in kind.options()} == defaults_of(kind)
    documented = inspect.getdoc(layer).partition("Attributes\n---")[0]
    for argument in set(parameters) - {"input_size", "hidden_size"}:
        assert f"\n{argument} : " in documented, argument


@pytest.mark.parametrize("name", ALL)
def test_a_layer_has_the_parameters_of_its_description(name):
    layer, cell = LAYERS[name](2, 3, num_layers=2, bidirectional=True), ALL[name]()
    shapes = cell.shapes(input_size=2, hidden_size=3)
    assert {n: layer.params[f"{n}_l0_reverse"].shape for n in shapes} == shapes
    assert len(layer.params) == 4 * len(shapes)
    without = LAYERS[name](2, 3, bias=False)
    assert [n.removesuffix("_l0") for n in without.params] == list(cell.needed)
    for gate, block in zip(cell.gate_functions, np.split(layer.params["bias_ih_l1"], cell.gates), strict=True):
        assert (block == (gate in cell.biases_of_one)).all()


@pytest.mark.parametrize(
    "model",
    [
        models.SequenceClassifier, models.SequenceTagger, models.SequenceRegressor, models.Forecaster,
        models.LanguageModel, models.EncoderDecoder, models.Translator,
    ],
)  # fmt: skip
def test_a_models_constructor_takes_options_of_cells(model):
    parameters = inspect.signature(model).parameters
    assert {name: parameters[name].default for name in CELL_OPTIONS} == dict.fromkeys(CELL_OPTIONS)
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]


def test_type_checkers_know_the_options_of_all_cells():
    options = {option for cell in (CELLS | ELEMENTWISE).values() for option in cell.options()}
    assert CellOptions.__annotations__.keys() == options


@pytest.mark.parametrize("name", ALL)
def test_a_cell_is_a_choice_of_the_models_and_of_the_command_line(name):
    model = gpurnn.SequenceClassifier(2, 3, 2, cell=name)
    assert isinstance(model.recurrent, LAYERS[name])
    option = next(p for p in cli.commands["train"].params if p.name == "cell")
    assert name in option.type.choices
