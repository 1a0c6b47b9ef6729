"""What follows from a cell's description: its function and its layer, their parameters and documentation."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

import gpurnn
from gpurnn.cells import CELLS

HEAD, TAIL = ["x"], ["lengths", "resets", "mask"]


@pytest.mark.parametrize("name", CELLS)
def test_a_cells_function_takes_what_the_description_says(name):
    kind, parameters = CELLS[name], inspect.signature(getattr(gpurnn, name)).parameters
    cell = kind()
    assert list(parameters) == [*HEAD, *cell.parameters, "state", *kind.options(), *TAIL]
    assert [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY] == [*kind.options(), *TAIL]
    assert [n for n, p in parameters.items() if p.default is p.empty] == [*HEAD, *cell.needed]
    assert {n: parameters[n].default for n in kind.options()} == {field.name: field.default for field in fields(kind)}


@pytest.mark.parametrize("name", CELLS)
def test_a_cells_function_documents_every_argument(name):
    function = getattr(gpurnn, name)
    documented = inspect.getdoc(function).partition("Returns\n---")[0]
    for argument in inspect.signature(function).parameters:
        assert f"\n{argument} : " in documented, argument
