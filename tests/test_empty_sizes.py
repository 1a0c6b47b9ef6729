"""Sizes of zero: every function gives empty results and zero gradients, or reports what it expected."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpurnn
from gpurnn import losses
from gpurnn.gradients import clip_by_global_norm, clip_by_value

pytestmark = pytest.mark.usefixtures("each_wing")

SIZES = [sizes for sizes in itertools.product((0, 3), (0, 2), (0, 2), (0, 2)) if not all(sizes)]


def ones(*shape):
    return np.ones(shape)


def recurrent(op, gates):
    def call(T, B, I, H, **options):
        arrays = ones(gates * H, I), ones(gates * H, H), ones(gates * H), ones(gates * H)
        return op, (ones(T, B, I), *arrays), options

    return call


def attention(score, S, A=2):
    def call(T, B, I, H):
        query, keys = ones(T, B, I), ones(S, B, I if score == "dot" else H)
        options = {"dot": {}, "general": {"weight": ones(I, H)}}.get(score)
        if options is None:
            options = {"weight_query": ones(A, I), "weight_keys": ones(A, H), "v": ones(A)}
        return gpurnn.attention, (query, keys, ones(S, B, H)), {"score": score, **options}

    return call


CALLS = {
    "rnn": recurrent(gpurnn.rnn, 1),
    "lstm": recurrent(gpurnn.lstm, 4),
    "gru": recurrent(gpurnn.gru, 3),
    "rnn with a clip": lambda *sizes: recurrent(gpurnn.rnn, 1)(*sizes, clip=3.0),
    "lstm with coupled gates": lambda *sizes: recurrent(gpurnn.lstm, 3)(*sizes, coupled=True),
    "gru with zoneout": lambda *sizes: recurrent(gpurnn.gru, 3)(*sizes, zoneout=0.25),
    "lengths": lambda T, B, I, H: recurrent(gpurnn.lstm, 4)(T, B, I, H, lengths=np.full(B, T)),
    **{
        f"dense {g}": lambda T, B, I, H, g=g: (gpurnn.dense, (ones(T, B, I), ones(H, I), ones(H)), {"activation": g})
        for g in ("identity", "sigmoid", "softmax", "tanh", "relu")
    },
    "layer_norm": lambda T, B, I, H: (gpurnn.layer_norm, (ones(T, B, I), ones(I), ones(I)), {}),
    "dropout": lambda T, B, I, H: (gpurnn.dropout, (ones(T, B, I), 0.5, 0), {}),
    "linear_scan": lambda T, B, I, H: (gpurnn.linear_scan, (ones(T, B, H), ones(T, B, H)), {}),
    "linear_scan constant": lambda T, B, I, H: (gpurnn.linear_scan, (ones(H), ones(T, B, H)), {}),
    "ssm": lambda T, B, I, H: (gpurnn.ssm, (ones(T, B, I), ones(H, H), ones(H, I), ones(2, H)), {}),
    "ssm diagonal": lambda T, B, I, H: (gpurnn.ssm, (ones(T, B, I), ones(H), ones(H, I), ones(0, H), ones(0, I)), {}),
    **{
        f"attention {score} {S} {A}": attention(score, S, A)
        for score, S, A in itertools.product(("dot", "general", "additive"), (0, 2), (0, 2))
        if score == "additive" or A
    },
    "multi_head_attention": lambda T, B, I, H: (
        gpurnn.multi_head_attention, (ones(T, B, I),),
        {"in_proj_weight": ones(3 * I, I), "out_proj_weight": ones(I, I), "num_heads": 1},
    ),
    **{
        name: lambda T, B, I, H, name=name: (getattr(losses, name), (ones(T, B, I), ones(T, B, I)), {})
        for name in ("mse", "l1", "huber", "smooth_l1", "binary_cross_entropy")
    },
    "cross_entropy": lambda T, B, I, H: (losses.cross_entropy, (ones(T, B, I), np.zeros((T, B), int)), {}),
}  # fmt: skip


def arrays_of(nested):
    if isinstance(nested, np.ndarray):
        return [nested]
    values = nested.values() if isinstance(nested, dict) else nested or ()
    return [a for value in values for a in arrays_of(value)]


def like(nested):
    if isinstance(nested, tuple):
        return tuple(map(like, nested))
    return None if nested is None else np.ones_like(nested)


@pytest.mark.parametrize("name", CALLS)
def test_sizes_of_zero(name):
    for sizes in SIZES:
        op, arguments, options = CALLS[name](*sizes)
        try:
            result, pull = op.vjp(*arguments, **options)
        except ValueError:
            with pytest.raises(ValueError, match=rf"^{op.__name__}: \w+ has shape \(.*\), expected .+"):
                op(*arguments, **options)
            continue
        found = arrays_of((op(*arguments, **options), pull(like(result))))
        assert all(np.isfinite(a).all() for a in found), sizes


@pytest.mark.parametrize("norm_type", [1.0, 2.0, np.inf])
def test_the_norm_of_nothing(norm_type):
    clipped, norm = clip_by_global_norm({"a": ones(0), "b": ones(3, 0)}, 1.0, norm_type)
    assert norm == 0
    assert clipped["b"].shape == (3, 0)
    assert clip_by_value({"a": ones(0)}, 1.0)["a"].shape == (0,)
