"""Deprecated names warn the caller, at the caller's line, and work as before."""

import warnings

import pytest

from gpurnn import _deprecation


@_deprecation.renamed_argument("hidden", "hidden_size", ends="0.3")
def layer(hidden_size=1):
    """A layer."""
    return hidden_size


def test_former_name_works_and_warns():
    with pytest.warns(
        DeprecationWarning, match=r"^layer: hidden is deprecated and ends with gpurnn 0\.3; use hidden_size$"
    ):
        assert layer(hidden=5) == 5
    assert layer.__doc__ == "A layer."


def test_new_name_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer(hidden_size=5) == 5
        assert layer(6) == 6


def test_both_names_are_rejected():
    with pytest.raises(TypeError, match="layer: hidden is the former name of hidden_size"):
        layer(hidden=5, hidden_size=6)


def test_warning_points_at_the_caller():
    with pytest.warns(DeprecationWarning, match="hidden") as caught:
        layer(hidden=5)
    assert caught[0].filename == __file__

    def old():
        _deprecation.warn("old", instead="new", ends="0.3")

    with pytest.warns(DeprecationWarning, match="old") as caught:
        old()
    line = old.__code__.co_firstlineno + 4
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
