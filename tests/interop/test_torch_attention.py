"""Multi-head attention against `torch.nn.MultiheadAttention`: masks, sizes of keys and values, axes, gradients."""

from __future__ import annotations

import numpy as np
import pytest

import gpurnn

torch = pytest.importorskip("torch")

T, S, B, E, HEADS = 3, 5, 2, 6, 2
MASKS = {
    "none": None, "for-all": (T, S), "of-rows-and-heads": (B * HEADS, T, S),
}  # fmt: skip


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sizes", [{}, {"key_size": 4, "value_size": 7}], ids=["one-size", "sizes"])
def test_it_is_torchs(sizes, mask, additive):
    batch_first = additive
    layer = gpurnn.MultiHeadAttention(E, HEADS, **sizes, batch_first=batch_first, dtype="float64")
    module = torch.nn.MultiheadAttention(
        E, HEADS, kdim=sizes.get("key_size"), vdim=sizes.get("value_size"), batch_first=batch_first, dtype=torch.float64
    )
    rng = np.random.default_rng(0)
    for name in layer.params:
        layer.params[name][...] = rng.standard_normal(layer.params[name].shape)
    module.load_state_dict({name: torch.from_numpy(p) for name, p in layer.params.items()})
    shapes = (T, E), (S, sizes.get("key_size", E)), (S, sizes.get("value_size", E)), (T, E)
    *inputs, dy = (rng.standard_normal((B, n, F) if batch_first else (n, B, F)) for n, F in shapes)
    given = {"key_padding_mask": np.arange(S) >= np.array([[S], [3]])}
    if MASKS[mask]:
        given["attn_mask"] = rng.random(MASKS[mask]) < 0.4
        given["attn_mask"][..., 0] = False  # where a query sees nothing, PyTorch gives NaN
        if additive:
            given["attn_mask"] = np.where(given["attn_mask"], -np.inf, rng.standard_normal(MASKS[mask]))
    dweights = rng.standard_normal((B, HEADS, T, S))

    (y, weights), pullback = layer.vjp(*inputs, **given)
    gradients, of_parameters = pullback((dy, dweights))
    if additive:  # PyTorch warns if only one of the masks is
        given["key_padding_mask"] = np.where(given["key_padding_mask"], -np.inf, 0.0)
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    expected, expected_weights = module(
        *tensors, **{name: torch.from_numpy(m) for name, m in given.items()}, average_attn_weights=False
    )
    ((expected * torch.from_numpy(dy)).sum() + (expected_weights * torch.from_numpy(dweights)).sum()).backward()

    found = [y, weights, *gradients, *of_parameters.values()]
    theirs = [expected, expected_weights, *(t.grad for t in tensors)]
    theirs += [dict(module.named_parameters())[name].grad for name in of_parameters]
    for ours, tensor in zip(found, theirs, strict=True):
        np.testing.assert_allclose(ours, tensor.detach().numpy(), rtol=1e-9, atol=1e-12)
