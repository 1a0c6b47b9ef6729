"""The diagnosis of a trained language model: what `gpurnn diagnose` says and draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .._contract import Array
from ..cells import Vanilla
from ..layers.base import StateDict
from ..layers.recurrent import Recurrent
from ..models import LanguageModel
from . import plots
from ._transition import Transition, parts, quiet
from .activity import activity
from .complexity import complexity
from .jacobians import Floats, GradientNorms, gradient_bound, gradient_growth, jacobians, product_norms, state_gradients
from .lyapunov import lyapunov_spectrum
from .spectrum import fixed_points, spectra

_EXPONENTS = 8
"""How many of the largest Lyapunov exponents are drawn."""


_BOUND = {"vanishing": "vanishing", "exploding": "can explode", "neither": "neither"}
"""What is said of the bound on a step; above 1 it lets gradients explode, no more."""


@quiet  # gradients that leave float64, which the picture says
def diagnose(
    model: LanguageModel,
    tokens: Any,
    directory: Path,
    history: list[dict[str, Any]],
    starts: int = 8,
    say: Callable[[str], None] = print,
) -> None:
    """Say how the recurrent layers of a language model behave on a text, and draw it.

    It is computed in float64, whatever the model's dtype: gradients that vanish are small numbers.

    Parameters
    ----------
    model : LanguageModel
        With NumPy arrays.
    tokens : (T + 1,) integer array
        The text: T steps and what follows the last. T is 1 at least.
    directory : path
        Where the pictures go; it exists.
    history : list of dict
        The metrics of the training, as of `gpurnn.Trainer`; may be empty.
    starts : int
        States from which fixed points are looked for.
    say : callable
        Is given the lines of the report.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        A parameter, or what the model makes of the text, is NaN or infinite.
    """
    steps = np.asarray(tokens[:-1])[:, None]
    say(f"{model!r}".partition("\n")[0])
    say(f"{len(steps):,} {model.vocabulary.kind}s of text")
    stack, model = model.recurrent, _in_float64(model)
    layers = parts(model.recurrent)
    inputs: list[Array] = [model.embedding(steps)]
    for layer in layers.values():
        y, _ = layer(inputs[-1])
        inputs.append(y + inputs[-1] if _skips(stack, layer) else y)
    # That of the last prediction alone, so that what is left of it at each step back is seen.
    dy = np.zeros_like(inputs[-1])
    _, dy[-1:], _ = model._loss_of_rows(inputs[-1][-1:], np.asarray(tokens[-1:])[:, None], None)
    gradients = {}
    for (name, layer), x in reversed(list(zip(layers.items(), inputs, strict=False))):
        found = state_gradients(layer, x, dy)
        gradients[f"{name}: $\\|\\partial L_T / \\partial h_t\\|$"] = _norms(found[:, :, : layer.hidden_size])
        (dx, _), _ = layer.vjp(x)[1]((dy, None))
        dy = dx + dy if _skips(stack, layer) else dx
    norms = dict(reversed(gradients.items()))
    for (name, layer), x in zip(layers.items(), inputs, strict=False):
        say(f"\n{name}: {type(layer).__name__}, {layer.input_size} inputs, {layer.hidden_size} units")
        norms[f"{name}: $\\|\\partial s_T / \\partial s_t\\|$"] = _layer(name, layer, x, directory, starts, say)
    spent = complexity(stack, len(steps), 1)
    say(
        f"\ncost          of {len(steps)} steps: {spent.forward.flops / 1e6:.3g} Mflop forward, "
        f"{spent.bptt.flops / 1e6:.3g} Mflop and {spent.bptt.memory / 2**20:.3g} MiB with gradients"
    )
    plots.cost(stack, 1, directory / "cost.png")
    plots.gradient_flow(norms, directory / "gradient_flow.png")
    trained = [record for record in history if "gradient_norm" in record]
    if trained:
        record = GradientNorms()
        record.steps = [entry["step"] for entry in trained]
        record.norms = {"all parameters": [entry["gradient_norm"] for entry in trained]}
        plots.gradient_norms(record, directory / "gradient_norms.png")


def _norms(vectors: Floats) -> Floats:
    """||v|| over the last axis, where its square too may be beyond float64."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    norms: Floats = largest[..., 0] * np.linalg.norm(vectors / np.where(largest > 0, largest, 1), axis=-1)
    return norms


def _skips(stack: Recurrent, layer: Recurrent) -> bool:
    """Whether the stack adds the input of this layer of it to its output."""
    return stack.residual and layer.input_size == layer.hidden_size


def _in_float64(model: LanguageModel) -> LanguageModel:
    double = LanguageModel.from_config({**model.config(), "dtype": "float64"})
    values = {name: p.astype(np.float64) for name, p in model.state_dict().items()}
    double.load_state_dict(StateDict(values, double._forms()))
    return double


def _layer(name: str, layer: Recurrent, x: Array, directory: Path, starts: int, say: Callable[[str], None]) -> Floats:
    """Say and draw what one layer does; returns ||ds_T / ds_t||."""
    J = jacobians(layer, x)
    growth = gradient_growth(J)
    total = f"{growth.total:.3g}"
    if growth.per_step > 0 and growth.total in (0, np.inf):
        total = f"10^{len(x) * np.log10(growth.per_step):.0f}"
    say(f"  gradients     {growth.verdict}: x {total} over {len(x)} steps, x {growth.per_step:.4f} a step")
    if isinstance(layer.cell, Vanilla):
        bound = gradient_bound(layer, x)
        say(
            f"  bound         {_BOUND[bound.verdict]}: "
            f"lambda_max {bound.lambda_max:.3f} times max |f'| {bound.max_slope:.3f}"
            + (f", and |leak| {abs(layer.cell.leak):.3f}" if layer.cell.leak else "")
            + f" = {bound.bound:.3f}"
        )
    found = spectra(layer)
    radii = ", ".join(f"{gate} {spectrum.radius:.3f} ({spectrum.norm:.3f})" for gate, spectrum in found.items())
    say(f"  W_hh          spectral radius (largest singular value): {radii}")
    plots.eigenvalues(found, directory / f"{name}_eigenvalues.png")
    plots.singular_values(found, directory / f"{name}_singular_values.png")

    if len(x) > 1:
        exponents = lyapunov_spectrum(layer, x, exponents=min(_EXPONENTS, J.shape[-1]))
        error = f" +- {exponents.standard_error[0]:.2g}" if np.isfinite(exponents.standard_error[0]) else ""
        say(
            f"  perturbations {exponents.verdict}: largest Lyapunov exponent {exponents.exponents[0]:.4g}{error} "
            "nats a step on this text"
        )
        plots.lyapunov_spectrum(exponents, directory / f"{name}_lyapunov.png")

    points = fixed_points(layer, x.mean(axis=(0, 1)), starts=starts)
    stable = int(points.stable.sum())
    say(
        f"  fixed points  under the mean input: {stable} stable, {len(points) - stable} unstable, from "
        f"{starts - points.failed} of {starts} starts"
    )
    if len(points):
        transition = Transition("diagnose", layer)
        states = transition.states(*transition.sequence(x))
        plots.fixed_points(points, directory / f"{name}_fixed_points.png", states=states)

    gates = activity(layer, x)
    shares = ", ".join(f"{gate} {100 * found.saturated:.0f}%" for gate, found in gates.items())
    say(f"  saturated     {shares}")
    dead = {gate: int(found.dead.sum()) for gate, found in gates.items() if found.dead.any()}
    told = ", ".join(f"{gate} {count}" for gate, count in dead.items()) or "none"
    say(f"  dead units    {told} of {layer.hidden_size}")
    plots.saturation(gates, directory / f"{name}_saturation.png")
    return product_norms(J)
