"""The diagnosis of a trained language model: the text and pictures of `gpurnn diagnose`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._contract import Array
from ..cells import Vanilla
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


@dataclass(frozen=True)
class Finding:
    """One finding of the diagnosis, whether it is good, and what to try.

    Attributes
    ----------
    where : str
        The layer, such as "l0"; or "training".
    name : str
        The quantity that was examined.
    verdict : {"good", "watch", "bad"}
        "watch" is a finding that harms some uses and not others.
    meaning : str
        The meaning of the finding, in a sentence.
    advice : str
        What to try; empty if nothing needs to be done.
    values : dict
        The numbers, in a JSON-compatible form.
    """

    where: str
    name: str
    verdict: str
    meaning: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class _Findings(list[Finding]):
    """The findings so far; each is reported as it is added."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def add(
        self, where: str, name: str, verdict: str, meaning: str, advice: str = "", /, **values: float | None
    ) -> None:
        finding = Finding(where, name, verdict, meaning, advice, values)
        self.append(finding)
        self._say(f"    {finding.verdict}: {finding.meaning}")
        if finding.advice:
            self._say(f"    try: {finding.advice}")


_BOUND = {"vanishing": "vanishing", "exploding": "can explode", "neither": "neither"}
"""The words for the bound on a step. A bound above 1 allows gradients to explode; it does not show that they do."""


@quiet  # gradients beyond the range of float64; the picture says so
def diagnose(
    model: LanguageModel,
    tokens: Any,
    directory: Path,
    history: list[dict[str, Any]],
    starts: int = 8,
    say: Callable[[str], None] = print,
) -> list[Finding]:
    """Report how the recurrent layers of a language model behave on a text, what is good or bad, and draw it.

    It is computed in float64, whatever the model's dtype, because vanishing gradients are small numbers.

    Parameters
    ----------
    model : LanguageModel
        A model with NumPy arrays.
    tokens : (T + 1,) integer array
        The text: T steps and the token after the last. T is at least 1.
    directory : path
        An existing directory for the pictures.
    history : list of dict
        The metrics of the training, such as those of `gpurnn.Trainer`; may be empty.
    starts : int
        The number of states from which to search for fixed points.
    say : callable
        It is called with each line of the report.

    Returns
    -------
    list of Finding

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        A parameter, or an output of the model for the text, is NaN or infinite.
    """
    steps = np.asarray(tokens[:-1])[:, None]
    say(f"{model!r}".partition("\n")[0])
    say(f"{len(steps):,} {model.vocabulary.kind}s of text")
    findings = _Findings(say)
    _training(history, model, findings, say)
    stack, model = model.recurrent, _in_float64(model)
    layers = parts(model.recurrent)
    inputs: list[Array] = [model.embedding(steps)]
    for layer in layers.values():
        y, _ = layer(inputs[-1])
        inputs.append(y + inputs[-1] if _skips(stack, layer) else y)
    # The gradient of the last prediction alone, to see how much of it remains at each earlier step.
    dy = np.zeros_like(inputs[-1])
    _, dy[-1:], _ = model._loss_of_rows(inputs[-1][-1:], np.asarray(tokens[-1:])[:, None], None)
    gradients = {}
    for (name, layer), x in reversed(list(zip(layers.items(), inputs, strict=False))):
        by_state = state_gradients(layer, x, dy)
        gradients[f"{name}: $\\|\\partial L_T / \\partial h_t\\|$"] = _norms(by_state[:, :, : layer.hidden_size])
        (dx, _), _ = layer.vjp(x)[1]((dy, None))
        dy = dx + dy if _skips(stack, layer) else dx
    norms = dict(reversed(gradients.items()))
    for (name, layer), x in zip(layers.items(), inputs, strict=False):
        say(f"\n{name}: {type(layer).__name__}, {layer.input_size} inputs, {layer.hidden_size} units")
        norms[f"{name}: $\\|\\partial s_T / \\partial s_t\\|$"] = _layer(
            name, layer, x, directory, starts, say, findings
        )
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
    _summary(findings, say)
    return list(findings)


def _summary(findings: list[Finding], say: Callable[[str], None]) -> None:
    counts = {verdict: sum(found.verdict == verdict for found in findings) for verdict in ("bad", "watch", "good")}
    say(f"\nin all        {counts['bad']} bad, {counts['watch']} to watch, {counts['good']} good")
    advice = dict.fromkeys(f.advice for verdict in ("bad", "watch") for f in findings if f.verdict == verdict)
    for line in list(filter(None, advice))[:3]:
        say(f"  try         {line}")


def _training(
    history: list[dict[str, Any]], model: LanguageModel, findings: _Findings, say: Callable[[str], None]
) -> None:
    """Report whether the model has learnt, and whether it has learnt its text by heart."""
    training = [record["loss"] for record in history if "loss" in record]
    validation = [record["validation_loss"] for record in history if "validation_loss" in record]
    if not training:
        return
    last = float(np.mean(training[-max(1, len(training) // 20) :]))
    chance = math.log(len(model.vocabulary))
    held_out = f", {validation[-1]:.3f} on held-out text" if validation else ""
    say(f"\ntraining      loss {last:.3f} nats{held_out}; guessing among all symbols has {chance:.3f}")
    values = {"loss": last, "validation_loss": validation[-1] if validation else None, "chance": chance}
    best = min(validation, default=math.inf)
    if last > 0.9 * chance:
        findings.add(
            "training", "learning", "bad", "it predicts hardly better than by chance: it has learnt little yet",
            "train longer with --resume --steps, or raise --lr (0.01), if the loss falls slowly but steadily", **values,
        )  # fmt: skip
    elif validation and validation[-1] > 1.1 * best:
        findings.add(
            "training", "learning", "bad",
            f"the loss on other text has risen again, from {best:.3f}: it learns its text by heart",
            "give it more text, stop sooner with --patience 3, or add --dropout 0.3", **values,
        )  # fmt: skip
    elif validation and validation[-1] > 1.3 * last:
        findings.add(
            "training", "learning", "watch", "other text is predicted much worse than the text of the training",
            "give it more text, add --dropout 0.3, or lower --hidden", **values,
        )  # fmt: skip
    elif len(training) >= 20 and last < 0.98 * float(np.mean(training[-len(training) // 5 : -len(training) // 10])):
        findings.add(
            "training", "learning", "watch", "the loss was still falling when training ended",
            "train longer with --resume --steps", **values,
        )  # fmt: skip
    else:
        findings.add(
            "training", "learning", "good", "it has learnt, and other text is predicted about as well", **values
        )


def _norms(vectors: Floats) -> Floats:
    """||v|| over the last axis, even if its square is beyond float64."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    norms: Floats = largest[..., 0] * np.linalg.norm(vectors / np.where(largest > 0, largest, 1), axis=-1)
    return norms


def _skips(stack: Recurrent, layer: Recurrent) -> bool:
    """Whether the stack adds this layer's input to its output."""
    return stack.residual and layer.input_size == layer.hidden_size


def _in_float64(model: LanguageModel) -> LanguageModel:
    double = LanguageModel.from_config({**model.config(), "dtype": "float64"})
    double.load_state_dict({name: p.astype(np.float64) for name, p in model.state_dict().items()})
    return double


def _layer(
    name: str,
    layer: Recurrent,
    x: Array,
    directory: Path,
    starts: int,
    say: Callable[[str], None],
    findings: _Findings,
) -> Floats:
    """Report and draw the behaviour of one layer; return ||ds_T / ds_t||."""
    J = jacobians(layer, x)
    growth = gradient_growth(J)
    total = f"{growth.total:.3g}"
    if growth.per_step > 0 and growth.total in (0, np.inf):
        total = f"10^{len(x) * np.log10(growth.per_step):.0f}"
    say(f"  gradients     {growth.verdict}: x {total} over {len(x)} steps, x {growth.per_step:.4f} a step")
    _gradients(name, layer, growth.verdict, growth.per_step, len(x), findings)
    if isinstance(layer.cell, Vanilla):
        bound = gradient_bound(layer, x)
        say(
            f"  bound         {_BOUND[bound.verdict]}: "
            f"lambda_max {bound.lambda_max:.3f} times max |f'| {bound.max_slope:.3f}"
            + (f", and |leak| {abs(layer.cell.leak):.3f}" if layer.cell.leak else "")
            + f" = {bound.bound:.3f}"
        )
    by_gate = spectra(layer)
    radii = ", ".join(f"{gate} {spectrum.radius:.3f} ({spectrum.norm:.3f})" for gate, spectrum in by_gate.items())
    say(f"  W_hh          spectral radius (largest singular value): {radii}")
    plots.eigenvalues(by_gate, directory / f"{name}_eigenvalues.png")
    plots.singular_values(by_gate, directory / f"{name}_singular_values.png")

    if len(x) > 1:
        exponents = lyapunov_spectrum(layer, x, exponents=min(_EXPONENTS, J.shape[-1]))
        error = f" +- {exponents.standard_error[0]:.2g}" if np.isfinite(exponents.standard_error[0]) else ""
        say(
            f"  perturbations {exponents.verdict}: largest Lyapunov exponent {exponents.exponents[0]:.4g}{error} "
            "nats a step on this text"
        )
        _perturbations(name, exponents.verdict, float(exponents.exponents[0]), findings)
        plots.lyapunov_spectrum(exponents, directory / f"{name}_lyapunov.png")

    points = fixed_points(layer, x.mean(axis=(0, 1)), starts=starts)
    stable = int(points.stable.sum())
    say(
        f"  fixed points  under the mean input: {stable} stable, {len(points) - stable} unstable, from "
        f"{starts - points.failed} of {starts} starts"
    )
    _fixed_points(name, stable, len(points), starts, findings)
    if len(points):
        transition = Transition("diagnose", layer)
        states = transition.states(*transition.sequence(x))
        plots.fixed_points(points, directory / f"{name}_fixed_points.png", states=states)

    gates = activity(layer, x)
    shares = ", ".join(f"{gate} {100 * units.saturated:.0f}%" for gate, units in gates.items())
    say(f"  saturated     {shares}")
    _saturation(name, {gate: units.saturated for gate, units in gates.items()}, findings)
    dead = {gate: int(units.dead.sum()) for gate, units in gates.items() if units.dead.any()}
    counts = ", ".join(f"{gate} {count}" for gate, count in dead.items()) or "none"
    say(f"  dead units    {counts} of {layer.hidden_size}")
    _dead(name, dead, layer.hidden_size, findings)
    plots.saturation(gates, directory / f"{name}_saturation.png")
    return product_norms(J)


def _gradients(name: str, layer: Recurrent, verdict: str, per_step: float, steps: int, findings: _Findings) -> None:
    # After this number of steps a hundredth of the gradient remains.
    reach = math.log(0.01) / math.log(per_step) if 0 < per_step < 1 else math.inf
    values = {"per_step": per_step, "steps": steps, "reach": reach}
    gated = "train longer and with a larger --window; more layers do not help here"
    cure = "--cell lstm or --cell gru, which keep gradients for longer" if isinstance(layer.cell, Vanilla) else gated
    if verdict == "exploding" and per_step > 1.02:
        findings.add(
            name, "gradients", "bad", "errors grow on their way back in time: single updates can throw it off course",
            "keep --clip at 1 or lower it, and lower --lr", **values,
        )  # fmt: skip
    elif reach < 10:
        findings.add(
            name, "gradients", "bad", f"it can learn only from the last {max(1, round(reach))} steps: what lies "
            "further back hardly reaches the weights", cure, **values,
        )  # fmt: skip
    elif reach < steps:
        findings.add(
            name, "gradients", "watch", f"it learns from about the last {round(reach)} steps; that is enough unless "
            "what belongs together lies further apart", cure, **values,
        )  # fmt: skip
    else:
        findings.add(name, "gradients", "good", f"it can learn from all of the {steps} steps", **values)


def _perturbations(name: str, verdict: str, exponent: float, findings: _Findings) -> None:
    if verdict == "chaotic":
        findings.add(
            name, "perturbations", "bad", "a small difference in the text grows until the state has nothing to do with "
            "what it would have been", "lower --lr, add --l2 0.00001, or --dropout 0.2, and train again",
            exponent=exponent,
        )  # fmt: skip
    elif verdict == "stable":
        fades = 1 / -exponent
        findings.add(
            name, "perturbations", "good", f"a small difference in the text fades, to a third in {fades:.2g} steps",
            exponent=exponent,
        )  # fmt: skip
    else:
        findings.add(
            name, "perturbations", "watch", "a small difference in the text neither fades nor grows: long memory, near "
            "the edge of chaos", "a longer text, with --length 500, to be sure", exponent=exponent,
        )  # fmt: skip


def _fixed_points(name: str, stable: int, found: int, starts: int, findings: _Findings) -> None:
    values = {"stable": stable, "unstable": found - stable, "starts": starts}
    if stable == 1:
        meaning = "left without news, it settles at one state, whatever came before: it clears its memory"
        findings.add(name, "fixed points", "good", meaning, **values)
    elif stable > 1:
        meaning = f"left without news, it settles at one of {stable} states: it can keep a choice for any time"
        findings.add(name, "fixed points", "good", meaning, **values)
    else:
        findings.add(
            name, "fixed points", "watch", "no state was found at which it comes to rest: it may go round in circles",
            "more starts, with --starts 50", **values,
        )  # fmt: skip


def _saturation(name: str, shares: dict[str, float], findings: _Findings) -> None:
    gate, most = max(shares.items(), key=lambda pair: pair[1])
    if most > 0.8:
        findings.add(
            name, "saturation", "bad", f"{gate} is at an end of its range in {most:.0%} of all cases, where almost "
            "no gradient passes: it can hardly learn any more",
            "lower --lr and train again, or add --l2 0.00001", **shares,
        )  # fmt: skip
    elif most > 0.5:
        findings.add(
            name, "saturation", "watch", f"{gate} is at an end of its range in {most:.0%} of all cases, where "
            "little gradient passes; of a gate that may be what it has learnt",
            "lower --lr, if the loss falls no more", **shares,
        )  # fmt: skip
    else:
        findings.add(name, "saturation", "good", "gates and activations are where gradients pass", **shares)


def _dead(name: str, dead: dict[str, int], units: int, findings: _Findings) -> None:
    most = max(dead.values(), default=0)
    if most > units / 10:
        findings.add(
            name, "dead units", "bad", f"{most} of {units} units never move on this text: they do nothing",
            "lower --hidden, which makes it faster too, or lower --lr and train again", units=units, **dead,
        )  # fmt: skip
    elif most:
        meaning = f"{most} of {units} units never move on this text"
        findings.add(name, "dead units", "watch", meaning, "a longer text, with --length 500", units=units, **dead)
    else:
        findings.add(name, "dead units", "good", "all units do something", units=units)
