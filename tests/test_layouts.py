"""Results are the same to the last bit, however a caller's arrays are stored and whatever integer dtype they have.

The problems are those of `test_bad_input.ENTRIES`, which has a row for each public name, and larger ones whose matrix
products a BLAS computes in another order if an operand is transposed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import test_bad_input
from parity import INTEGERS, LAYOUTS, Wing, canonical
from test_bad_input import ENTRIES, Entry, H, I, V, fresh, normal, steps
from tolerance import arrays_of

import gpurnn
from gpurnn import analysis, reference
from gpurnn.training import Reinforce

WINGS = ["reference", pytest.param("host", marks=pytest.mark.kernels)]


def larger() -> dict[str, list[Entry]]:
    """Problems large enough that the order of a sum differs between layouts."""
    with mock.patch.multiple(test_bad_input, T=7, I=33, H=40, V=19, S=9):
        functions = {name: test_bad_input.recurrent_function(name) for name in ("rnn", "lstm", "gru", "minlstm")}
        layers = {kind: test_bad_input.recurrent_layer(kind, kind == "GRU") for kind in ("RNN", "LSTM", "GRU")}
        others = {
            "ssm": test_bad_input.state_space(),
            "multi_head_attention": test_bad_input.multi_head(gpurnn.multi_head_attention),
            "TransformerBlock": test_bad_input.transformer_block(),
        }
        shapes = {"x": (7, 3, 33), "weight": (57, 33), "bias": (57,), "dy": (7, 3, 57)}
        dense = {name: test_bad_input.normal(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
        call = test_bad_input.with_vjp(gpurnn.dense, ["x", "weight", "bias"], activation="softmax")
        made = {**functions, **layers, **others, "dense": Entry("dense", dense, call, {})}
    return {f"{name}, larger": [entry] for name, entry in made.items()}


ALL = [
    pytest.param(entry, id=f"{name}{k or ''}")
    for name, entries in {**ENTRIES, **larger()}.items()
    for k, entry in enumerate(entries)
]
each_entry = pytest.mark.parametrize("entry", ALL)


def stored(entry: Entry, name: str, a: np.ndarray, layout: str) -> np.ndarray:
    """An argument in another layout, if it can have it."""
    if name in entry.in_place and layout in ("broadcast", "read-only"):
        return a
    return LAYOUTS[layout](a)


def canonical_call(entry: Entry, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The results of the call with C-contiguous native arrays."""
    return arrays_of(entry.call({name: canonical(a) for name, a in arrays.items()}))


def check(entry: Entry, arrays: dict[str, np.ndarray], expected: list[np.ndarray], what: str) -> None:
    """Check that the call gives these bits and leaves its inputs unchanged."""
    before = {name: a.tobytes() for name, a in arrays.items()}
    result = arrays_of(entry.call(arrays))
    assert len(result) == len(expected)
    for k, (r, e) in enumerate(zip(result, expected, strict=True)):
        if not entry.in_place and entry.where != "TokenStream":  # the batches of this one are views of the stream
            assert r.dtype.isnative, what
            assert r.flags.c_contiguous, f"{what}: result {k} is not C-contiguous"
        r = canonical(r)
        assert (r.dtype, r.shape) == (e.dtype, e.shape), what
        assert r.tobytes() == e.tobytes(), f"{what}: result {k} differs by {np.abs(r - e).max()}"
    for name, a in arrays.items():
        assert name in entry.in_place or a.tobytes() == before[name], f"{what}: {name} was changed"


@each_entry
def test_each_argument_in_each_layout(entry):
    plain = canonical_call(entry, fresh(entry))
    for layout in LAYOUTS:
        for name in entry.arrays:
            arrays = fresh(entry)
            arrays[name] = stored(entry, name, arrays[name], layout)
            expected = canonical_call(entry, arrays) if layout == "broadcast" else plain
            check(entry, arrays, expected, f"{name}, {layout}")


@each_entry
@pytest.mark.parametrize("wing", WINGS)
def test_all_arguments_in_layouts_drawn_at_random(entry, wing):
    rng = np.random.default_rng(0)
    with gpurnn.use(wing):
        for _ in range(4 if wing == "reference" else 1):
            layouts = {name: str(rng.choice(list(LAYOUTS))) for name in entry.arrays}
            arrays = {name: stored(entry, name, a, layouts[name]) for name, a in fresh(entry).items()}
            check(entry, arrays, canonical_call(entry, arrays), str(layouts))


EACH_SIZE = [np.dtype(name) for name in ("u1", ">i2", "i4", ">u8")]
WITH_INTEGERS = [
    p for p in ALL if "larger" not in p.id and any(a.dtype.kind in "ib" for a in p.values[0].arrays.values())
]


@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize("entry", WITH_INTEGERS)
def test_each_integer_argument_in_each_integer_dtype(entry, wing):
    with gpurnn.use(wing):
        expected = arrays_of(entry.call(fresh(entry)))
        for name, a in entry.arrays.items():
            if a.dtype.kind in "ib":
                for dtype in INTEGERS if wing == "reference" else EACH_SIZE:
                    result = arrays_of(entry.call({**fresh(entry), name: a.astype(dtype)}))
                    for r, e in zip(result, expected, strict=True):
                        # The batches of a stream of tokens have the dtype of the stream.
                        assert r.astype(e.dtype).tobytes() == e.tobytes(), f"{name} of {dtype.str}"


def parameters_of(call: Callable[..., object]) -> Iterator[dict[str, np.ndarray]]:
    """The dicts that hold the parameters of the layers used by a call."""
    for cell in call.__closure__ or ():
        yield from _held(cell.cell_contents)


def _held(value: object, is_array: Callable[[object], bool] = lambda a: isinstance(a, np.ndarray)) -> Iterator[Any]:
    if isinstance(value, gpurnn.Layer):
        assert value.params is not None  # initial parameters are made on first use
        yield from _held(list(vars(value).values()), is_array)
    elif isinstance(value, dict) and any(map(is_array, value.values())):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _held(entry, is_array)


WITH_PARAMETERS = [p for p in ALL if any(parameters_of(p.values[0].call))]


@pytest.mark.parametrize("entry", WITH_PARAMETERS)
@pytest.mark.parametrize("wing", WINGS)
def test_parameters_of_layers_in_each_layout(entry, wing, monkeypatch):
    held = list(parameters_of(entry.call))
    layouts = [layout for layout in LAYOUTS if layout != "broadcast"]
    with gpurnn.use(wing):
        expected = arrays_of(entry.call(fresh(entry)))
        for layout in layouts if wing == "reference" else ["fortran", "byte-swapped"]:
            with monkeypatch.context() as patch:
                for params in held:
                    for name, p in list(params.items()):
                        patch.setitem(params, name, LAYOUTS[layout](p))
                for r, e in zip(arrays_of(entry.call(fresh(entry))), expected, strict=True):
                    assert r.tobytes() == e.tobytes(), layout


@each_entry
def test_a_wing_is_given_contiguous_arrays(entry, monkeypatch):
    """Checks the contract between shared code and the wings."""
    given: list[tuple[str, np.ndarray]] = []

    def noted(name, function):
        def call(*args, **kwargs):
            saved = 1 if name.endswith("_backward") else 0  # the wing's own object, of any type
            given.extend((name, a) for a in nested_arrays((args[saved:], kwargs)))
            return function(*args, **kwargs)

        return call

    for name, function in vars(reference).items():
        if inspect.isfunction(function):
            monkeypatch.setattr(reference, name, noted(name, function))
    for layout in ("fortran", "unaligned", "byte-swapped", "reversed"):
        entry.call({name: stored(entry, name, a, layout) for name, a in fresh(entry).items()})
    for name, a in given:
        assert a.flags.c_contiguous, name
        assert a.flags.aligned, name
        assert a.dtype.isnative, name
        assert a.dtype.kind in "fcb" or a.dtype == np.int64, name


def nested_arrays(nested: object) -> list[np.ndarray]:
    """The arrays in nested tuples, lists and dicts, whatever else is in them."""
    if isinstance(nested, dict):
        nested = list(nested.values())
    if isinstance(nested, (tuple, list)):
        return [a for entry in nested for a in nested_arrays(entry)]
    return [nested] if isinstance(nested, np.ndarray) else []


NARROW = ["int8", "uint8", ">i2", "uint16", ">u4", "uint64"]
LONG = 300
"""More steps than int8 and uint8 can count."""


def tagged(dtype: str) -> object:
    model = gpurnn.SequenceTagger(I, H, V, dtype="float64")
    x, tags = normal(LONG, 3, I), steps(LONG, 3, below=V).astype(dtype)
    lengths = np.array([100, 7, 0], dtype)
    return model.loss(x, tags, None, lengths), model.loss_and_gradients(x, tags, None, lengths)


def regressed(dtype: str) -> object:
    model = gpurnn.SequenceRegressor(I, H, V, pooling=None, dtype="float64")
    return model.loss_and_gradients(normal(LONG, 3, I), normal(LONG, 3, V), None, np.array([100, 7, 0], dtype))


def language(dtype: str) -> object:
    model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("abcdef"), H, H, dtype="float64")
    tokens, lengths = steps(LONG, 3, below=V).astype(dtype), np.array([100, 7, 0], dtype)
    trained = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text("abcdef"), H, H, dtype="float64")
    trained.fit(tokens[:, 0], steps=2, batch_size=2, window=8)
    trained.fit([tokens[:9, 0], tokens[:5, 1]], steps=2, batch_size=2)
    found = model.loss(tokens, tokens, None, lengths), model.loss_and_gradients(tokens, tokens, None, lengths)
    return (*found, model.predict([tokens[:9, 0]]), np.array(model.perplexity(tokens[:9, 0])), trained.params)


def generated(dtype: str) -> object:
    model = gpurnn.SequenceGenerator(I, H, V, dtype="float64")
    x, lengths = normal(3, I), np.array([100, 7, 0], dtype)
    targets = steps(LONG, 3, below=V).astype(dtype)
    found = [model.loss_and_gradients(x, targets, None, lengths, teacher_forcing=p, rng=0) for p in (0.0, 0.5, 1.0)]
    model.fit(x, [targets[:5, 0], targets[:3, 1], targets[:4, 2]], steps=2)
    return found, model.params


def translated(dtype: str) -> object:
    """The model's own choices and its begin and end symbols exceed the range of int8 and uint8."""
    model = gpurnn.EncoderDecoder(120, 300, 4, 6, attention="additive", begin=298, end=299, dtype="float64", rng=3)
    for k, p in enumerate(model.params.values()):
        p[...] = normal(*p.shape, seed=k)
    source, lengths = steps(6, 3, below=120).astype(dtype), np.array([6, 2, 1], dtype)
    targets = steps(8, 3, below=120).astype(dtype), np.array([8, 3, 5], dtype)
    forced = [
        model.loss_and_gradients(source, targets, None, lengths, teacher_forcing=p, rng=0) for p in (0.0, 0.5, 1.0)
    ]
    decoded = [model.greedy(source, lengths, max_length=5), model.sample(source, lengths, max_length=5, rng=0)]
    beams = [[b.tokens for b in row] for row in model.beam_search(source, lengths, max_length=4, beam_size=2)]
    predicted = model.predict([source[:, 0], source[:2, 1]], max_length=4)
    likely = model.log_likelihood(source, targets, lengths), model.align(source, targets, lengths)
    model.fit([source[:, 0], source[:2, 1]], [targets[0][:3, 0], targets[0][:2, 1]], steps=2)
    return forced, decoded, beams, predicted, likely, model.params


def classified(dtype: str) -> object:
    model = gpurnn.SequenceClassifier(I, H, V, num_embeddings=120, pooling="mean", dtype="float64")
    examples = [steps(n, below=120).astype(dtype) for n in (5, 3, 4)]
    labels = np.array([0, 3, 6], dtype)
    model.fit(examples, labels, steps=2)
    return model.params, model.predict_proba(examples), np.array(model.score(examples, labels))


def reinforced(dtype: str) -> object:
    model = gpurnn.EncoderDecoder(7, 9, 4, 6, dtype="float64", rng=3)
    learner = Reinforce(model, lambda tokens, reference: float(len(set(tokens) & set(reference))), max_length=4)
    references = steps(4, 3, below=9).astype(dtype), np.array([4, 1, 3], dtype)
    sources, lengths = steps(5, 3, below=7).astype(dtype), np.array([5, 1, 2], dtype)
    return learner.loss_and_gradients(sources, references, None, lengths, rng=0)


MODELS = [tagged, regressed, language, generated, translated, classified, reinforced]


@pytest.mark.parametrize("run", MODELS, ids=lambda run: run.__name__)
def test_models_in_each_integer_dtype(run):
    expected = arrays_of(run("int64"))
    for dtype in NARROW:
        for r, e in zip(arrays_of(run(dtype)), expected, strict=True):
            assert r.tobytes() == e.tobytes(), dtype


@pytest.mark.kernels
@pytest.mark.parametrize("run", [tagged, translated], ids=lambda run: run.__name__)
def test_kernels_take_lengths_and_tokens_in_a_narrow_dtype(run):
    with gpurnn.use("host"):
        for r, e in zip(arrays_of(run("uint8")), arrays_of(run("int64")), strict=True):
            assert r.tobytes() == e.tobytes()


def forecast(layout: str) -> object:
    model = gpurnn.Forecaster(5, H, features=2, dtype="float64")
    series = LAYOUTS[layout](np.cumsum(normal(40, 2), axis=0))
    model.fit([series, series[:20]], steps=3)
    found = model.forecast(series, 3, samples=5)
    rolled = model.backtest(series, 30, 2, samples=5)
    return model.params, model.predict(series, 3), found.lower, found.upper, rolled.point, rolled.upper


def filtered(layout: str) -> object:
    F, H = LAYOUTS[layout](0.3 * normal(5, 5)), LAYOUTS[layout](normal(2, 5))
    model = gpurnn.LinearGaussian(F, H, LAYOUTS[layout](np.eye(5)), LAYOUTS[layout](np.eye(2)))
    y = normal(30, 2)
    y[10:15, 0] = np.nan
    model.fit(LAYOUTS[layout](y), iterations=2)
    return model.params, model.log_likelihoods_, model.vjp(LAYOUTS[layout](y))[0]


def sequences(layout: str) -> object:
    model = gpurnn.SequenceRegressor(33, 40, V, cell="lstm", pooling="attention", dtype="float64")
    x, y = LAYOUTS[layout](normal(6, 9, 33)), LAYOUTS[layout](normal(6, V))
    model.fit(x, y, steps=2)
    return model.params, model.predict(x)


def diagnosed(layout: str) -> object:
    layer = gpurnn.GRU(33, 8, dtype="float64")
    layer.params = {name: LAYOUTS[layout](p) for name, p in layer.params.items()}
    x, state = LAYOUTS[layout](normal(9, 2, 33)), LAYOUTS[layout](normal(1, 2, 8))
    J = analysis.jacobians(layer, x, state)
    gradients = analysis.state_gradients(layer, x, LAYOUTS[layout](normal(9, 2, 8)))
    norms = analysis.product_norms(LAYOUTS[layout](J))
    spectrum = analysis.spectrum(LAYOUTS[layout](normal(8, 8)))
    exponents = analysis.lyapunov_spectrum(layer, x=x, state=state, transient=1).exponents
    points = analysis.fixed_points(layer, x=LAYOUTS[layout](normal(33)), starts=LAYOUTS[layout](normal(3, 8)))
    return J, gradients, norms, spectrum.eigenvalues, exponents, points.states


@pytest.mark.parametrize("run", [forecast, filtered, sequences, diagnosed], ids=lambda run: run.__name__)
def test_models_and_diagnoses_in_each_layout(run):
    expected = arrays_of(run("new axis"))
    for layout in LAYOUTS.keys() - {"broadcast", "new axis"}:
        for r, e in zip(arrays_of(run(layout)), expected, strict=True):
            assert r.tobytes() == e.tobytes(), layout


@pytest.mark.parametrize("wing", WINGS)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "Rprop"])
def test_gradients_that_overlap_parameters(wing, kind):
    """A step uses the gradients as they were before it."""
    with gpurnn.use(wing):
        results = []
        for apart in (True, False):
            memory = normal(200_000)
            params = {"a": memory[10_000:], "b": normal(3, 4, seed=1)}
            grads = {"a": memory[:190_000], "b": params["b"]}
            if apart:
                grads = {name: g.copy() for name, g in grads.items()}
            getattr(gpurnn, kind)(0.1).step(params, grads)
            results.append([p.copy() for p in params.values()])
        for r, e in zip(*results, strict=True):
            assert r.tobytes() == e.tobytes()


def test_unsigned_integers_above_all_others():
    large = np.array([2**63, 0, 0], np.uint64)
    layer = gpurnn.RNN(I, H, dtype="float64")
    with pytest.raises(ValueError, match=r"RNN: lengths holds 9223372036854775808, expected at most 2\*\*63 - 1"):
        layer(normal(4, 3, I), lengths=large)
    with pytest.raises(ValueError, match=r"embedding: indices holds 9223372036854775808, expected at most"):
        gpurnn.embedding(large, normal(V, I))


@pytest.mark.parametrize("dtype", ["int8", ">i4", "uint64"])
def test_integers_that_stand_for_bools(dtype):
    layer = gpurnn.RNN(I, H, dtype="float64")
    with pytest.raises(ValueError, match="RNN: resets holds 2, expected bools, or integers 0 and 1"):
        layer(normal(4, 3, I), resets=np.full((4, 3), 2, dtype))


def of_cupy(xp: Any, a: np.ndarray, layout: str) -> Any:
    """A CuPy array with these values. CuPy has no read-only or byte-swapped arrays."""
    array = xp.asarray(a)
    if layout == "fortran" and a.ndim:
        return xp.asfortranarray(array)
    if layout == "strided" and a.ndim:
        return xp.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "reversed":
        backwards = (slice(None, None, -1),) * a.ndim
        return xp.asarray(a[backwards].copy())[backwards]
    if layout == "broadcast" and a.ndim:
        return xp.broadcast_to(array[:1], a.shape)
    if layout == "unaligned":
        memory = xp.zeros(a.nbytes + 1, np.uint8)[1:]
        memory[...] = xp.asarray(np.frombuffer(a.tobytes(), np.uint8))
        return memory.view(a.dtype).reshape(a.shape)
    return array


CUPY_LAYOUTS = ("fortran", "strided", "reversed", "broadcast", "unaligned")


@pytest.mark.gpu
@each_entry
def test_cupy_arrays_in_each_layout_and_integer_dtype(entry, monkeypatch):
    """Arguments and parameters of layers have the layout, all of them at once."""
    wing, rng = Wing("cuda"), np.random.default_rng(0)
    held = [(params, name, p) for params in parameters_of(entry.call) for name, p in params.items()]

    def results(arrays: dict[str, np.ndarray], layout: str) -> list[np.ndarray]:
        given = {
            name: of_cupy(wing.xp, a, "C" if layout == "broadcast" and name in entry.in_place else layout)
            for name, a in arrays.items()
        }
        with monkeypatch.context() as patch:
            for params, name, p in held:
                patch.setitem(params, name, of_cupy(wing.xp, p, "fortran" if layout == "broadcast" else layout))
            return arrays_of(wing.back(entry.call(given)))

    for layout in CUPY_LAYOUTS:
        arrays = fresh(entry)
        if layout == "broadcast":
            for name in arrays.keys() - entry.in_place:
                arrays[name] = canonical(LAYOUTS[layout](arrays[name]))
        expected = results(arrays, "C")
        for name, a in arrays.items():
            if a.dtype.kind in "ib":
                arrays[name] = a.astype(rng.choice([d for d in INTEGERS if d.isnative]))
        for r, e in zip(results(arrays, layout), expected, strict=True):
            assert r.astype(e.dtype).tobytes() == e.tobytes(), layout


@pytest.mark.gpu
@pytest.mark.parametrize("layout", CUPY_LAYOUTS)
def test_a_model_of_cupy_arrays_in_each_layout_is_trained_to_the_same_bits(layout):
    """Parameters in the layout are updated in place, and examples in the layout are read."""
    wing, trained = Wing("cuda"), []
    x, labels = normal(6, 5, I).astype("float32"), np.arange(6) % V
    if layout == "broadcast":
        x, labels = LAYOUTS[layout](x), LAYOUTS[layout](labels)
    for chosen in ("C", layout):
        model = gpurnn.SequenceClassifier(I, H, V, cell="lstm", pooling="attention", rng=0).to(wing.xp)
        for params in _held(list(vars(model).values()), lambda a: isinstance(a, wing.xp.ndarray)):
            for name, p in params.items():
                params[name] = of_cupy(wing.xp, wing.xp.asnumpy(p), "fortran" if chosen == "broadcast" else chosen)
        examples = of_cupy(wing.xp, canonical(x), chosen)
        model.fit(examples, of_cupy(wing.xp, canonical(labels), chosen), steps=3, batch_size=4)
        trained.append(arrays_of(wing.back((model.params, model.predict_proba(examples)))))
    for r, e in zip(*trained, strict=True):
        assert r.tobytes() == e.tobytes()
