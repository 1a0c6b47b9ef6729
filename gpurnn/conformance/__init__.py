"""Check whether a kernel of a recurrent layer computes correctly, and which options it supports.

It checks any kernel, of any array library, against PyTorch's results in float64, the definition in float64, central
differences, properties that hold for every recurrence, awkward shapes and bad input. The report has a line for each
option. Use `run` in Python, or ``python -m gpurnn.conformance torch.nn.LSTM`` on the command line.

A kernel is a function of one layer in one direction::

    y, state = kernel(x, weights, state, lengths=..., resets=..., **options)

``x`` is (T, B, I). ``weights`` is a dict of ``weight_ih`` (G*H, I), ``weight_hh`` (G*H, H) and, if there are biases,
``bias_ih`` and ``bias_hh`` (G*H,), with the gates in PyTorch's order. With peepholes, layer norm or a projection it
also has their parameters, as in `gpurnn.lstm` and the like, and the option that they imply, such as ``peephole=True``,
is passed by keyword. For the cells "indrnn", "mingru" and "minlstm" it has the parameters of `gpurnn.indrnn`,
`gpurnn.mingru` and `gpurnn.minlstm`. ``state`` is h (B, H), for an LSTM the pair (h, c), or None. ``lengths`` (B,),
``resets`` (T, B) and the options of the cell, as in `gpurnn.lstm` and the like, are passed where they are tested. An
argument that the kernel does not take, or a NotImplementedError, is reported as not supported. Gradients come from
PyTorch's or JAX's automatic differentiation, or from ``kernel.vjp``, which takes the same arguments and returns
``((y, state), pullback)``; ``pullback((dy, dstate))`` returns ``((dx, dstate0), dweights)``.

FlashRNN takes W_ih x, its own order of axes, and one bias::

    def flash(x, weights, state):  # --library torch; x (T, B, I)
        (T, B, _), H = x.shape, weights["weight_hh"].shape[1]
        Wx = (x @ weights["weight_ih"].T).reshape(T, B, 4, 1, H).transpose(0, 1)
        R = weights["weight_hh"].reshape(4, 1, H, H)
        b = (weights["bias_ih"] + weights["bias_hh"]).reshape(4, 1, H)
        h = [s.reshape(1, B, 1, 1, H) for s in state]
        states, last = flashrnn(Wx, R, b, states=torch.cat(h), function="lstm")
        return states[0].reshape(B, T, H).transpose(0, 1), tuple(last.reshape(2, B, H))

haste's `LSTM` is a module of kernels (I, 4H) with the gates i, g, f, o, whose parameters are set before a call.

References
----------
K. Poeppel, M. Beck, S. Hochreiter, "FlashRNN: optimizing traditional RNNs on modern hardware", arXiv 2412.07752 (2024).
"""

from __future__ import annotations

from .kernels import find
from .report import Report, Result
from .suite import run

__all__ = ["Report", "Result", "find", "run"]
