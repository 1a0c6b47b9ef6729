"""The output of `inspect` and `help`: `f.vjp` has the parameters of f, and a class documents its inherited ones."""

from __future__ import annotations

import inspect
import pickle
import pydoc
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import gpurnn
from gpurnn import optimizers, schedules

OPS = {
    name: function
    for module in (gpurnn, gpurnn.functional, gpurnn.losses)
    for name, function in vars(module).items()
    if inspect.isfunction(function) and hasattr(function, "vjp")
}


def own_parameters(function: types.FunctionType) -> list[inspect.Parameter]:
    """The parameters in a function's code, whatever `inspect.signature` reports."""
    bare = types.FunctionType(function.__code__, {}, "bare", function.__defaults__, function.__closure__)
    bare.__kwdefaults__ = function.__kwdefaults__
    return list(inspect.signature(bare).parameters.values())


def test_all_differentiable_functions_are_here():
    assert {"rnn", "lstm", "gru", "ssm", "dense", "attention", "cross_entropy", "mse"} <= OPS.keys()


@pytest.mark.parametrize("name", OPS)
def test_a_vjp_shows_the_parameters_of_its_function(name):
    function, vjp = OPS[name], OPS[name].vjp
    shown, of_function = inspect.signature(vjp), inspect.signature(function)
    assert shown.parameters == of_function.parameters
    assert shown.return_annotation == f"tuple[{of_function.return_annotation}, Pullback]"
    assert pydoc.plain(pydoc.render_doc(vjp)).splitlines()[2].startswith(f"vjp({next(iter(shown.parameters))}: ")
    assert pickle.loads(pickle.dumps(vjp)) is vjp


@pytest.mark.parametrize("name", OPS)
def test_a_vjp_takes_the_parameters_that_it_shows(name):
    shown, own = inspect.signature(OPS[name].vjp).parameters, own_parameters(inspect.unwrap(OPS[name].vjp))
    named = [p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    assert [(p.name, p.kind, p.default) for p in named] == [
        (q.name, q.kind, q.default) for q in (shown[p.name] for p in named)
    ]
    assert len(named) < len(own) or len(named) == len(shown)


def test_a_function_with_a_misspelt_argument_is_rejected():
    x, w = np.zeros((2, 1, 3)), np.zeros((12, 3))
    for function in (gpurnn.lstm, gpurnn.lstm.vjp):
        with pytest.raises(TypeError, match="unexpected keyword argument 'lengthz'"):
            function(x, w, w, lengthz=3)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "rnn", "lstm", "gru", "rnn_cell", "lstm_cell", "gru_cell"])
def test_help_describes_every_option_of_a_recurrent_layer(name):
    made = getattr(gpurnn, name)
    parameters = inspect.signature(made).parameters
    described = re.findall(r"^([a-z_, ]+) : ", inspect.getdoc(made).split("\nReturns\n")[0], re.MULTILINE)
    described = [one for names in described for one in names.split(", ")]
    assert {*parameters} <= {*described}
    assert not [p for p in parameters.values() if p.kind is p.VAR_KEYWORD]
    shown = pydoc.plain(pydoc.render_doc(made))
    assert all(f"{option}: " in shown for option in parameters)


@pytest.mark.slow
def test_a_type_checker_accepts_right_calls_and_no_others():
    """The calls in ``typing_calls.py``: mypy also reports a ``type: ignore`` that hides no error."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "mypy", "tests/typing_calls.py"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


CLASSES = [
    value
    for module in (optimizers, schedules)
    for value in vars(module).values()
    if inspect.isclass(value) and value.__module__ == module.__name__ and value is not schedules._Schedule
]


@pytest.mark.parametrize("cls", CLASSES)
def test_help_describes_every_parameter_in_the_order_of_the_signature(cls):
    assert len(CLASSES) > 20
    sections = re.split(r"\n\n(\w+)\n-+\n", inspect.getdoc(cls))
    described = re.findall(r"^(\w+) : ", sections[sections.index("Parameters") + 1], re.MULTILINE)
    assert described == list(inspect.signature(cls).parameters)
    assert sections.count("Parameters") == sections.count("Raises") == 1
