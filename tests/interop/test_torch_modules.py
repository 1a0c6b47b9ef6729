"""The modules of gpurnn.torch: they replace those of torch.nn, and have correct gradients of their own."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle

import pytest

import gpurnn

torch = pytest.importorskip("torch")
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence  # noqa: E402

import gpurnn.torch as modules  # noqa: E402

T, B, I, H = 5, 3, 3, 4
PAIRS = {name: (getattr(modules, name), getattr(torch.nn, name)) for name in ("RNN", "LSTM", "GRU")}
CELLS = {name: (getattr(modules, name), getattr(torch.nn, name)) for name in ("RNNCell", "LSTMCell", "GRUCell")}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "native"])
def each_cpu_wing(request):
    with gpurnn.use(request.param):
        yield


def both(name: str, *args, dtype=torch.float64, **options):
    """A module of gpurnn and its counterpart in PyTorch, with the same parameters."""
    ours, theirs = ({**PAIRS, **CELLS}[name][k](*args, dtype=dtype, **options) for k in (0, 1))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def leaves(tree) -> list:
    if isinstance(tree, (tuple, list)):
        return [leaf for entry in tree for leaf in leaves(entry)]
    return [] if tree is None else [tree]


def same(ours, theirs) -> None:
    """Check that structures of tensors are equal up to the rounding of their dtype."""
    assert type(ours) is type(theirs)
    ours, theirs = leaves(ours), leaves(theirs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def compare(ours, theirs, *args) -> None:
    """Check the outputs and the gradients of inputs and parameters against PyTorch's."""
    results = []
    for module in (ours, theirs):
        given = copy.deepcopy(args)
        inputs = [leaf.requires_grad_() for leaf in leaves(given) if leaf.is_floating_point()]
        outputs = module(*given)
        torch.manual_seed(1)
        loss = sum((leaf * torch.randn_like(leaf)).sum() for leaf in leaves(outputs) if leaf.is_floating_point())
        grads = torch.autograd.grad(loss, [*inputs, *module.parameters()])
        results.append((outputs, grads))
    same(results[0][0], results[1][0])
    same(results[0][1], results[1][1])


def module_inputs():
    """The inputs with which PyTorch tests its own modules, from its wheel."""
    internal = pytest.importorskip("torch.testing._internal.common_modules")
    common = {"device": "cpu", "dtype": torch.float64, "requires_grad": True, "training": True}
    return {
        "RNN": internal.module_inputs_torch_nn_RNN_GRU(None, **common, is_rnn=True, with_packed_sequence=True),
        "GRU": internal.module_inputs_torch_nn_RNN_GRU(None, **common, is_rnn=False, with_packed_sequence=True),
        "LSTM": internal.module_inputs_torch_nn_LSTM(None, **common),
        "RNNCell": internal.module_inputs_torch_nn_RNN_GRU_Cell(None, **common, is_rnn=True),
        "GRUCell": internal.module_inputs_torch_nn_RNN_GRU_Cell(None, **common),
        "LSTMCell": internal.module_inputs_torch_nn_LSTMCell(None, **common),
    }


@pytest.mark.parametrize(
    "name", [pytest.param("RNN", marks=pytest.mark.slow), "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]
)
def test_the_inputs_of_pytorchs_own_tests(name):
    count = 0
    for sample in module_inputs()[name]:
        constructed, forward = sample.constructor_input, sample.forward_input
        ours, theirs = both(name, *constructed.args, **constructed.kwargs)
        packed = any(isinstance(a, PackedSequence) for a in forward.args)
        with torch.no_grad():
            outputs = ours(*forward.args, **forward.kwargs)
            if not packed:  # the reference of packed sequences is written for tensors
                expected = sample.reference_fn(ours, *forward.args, **forward.kwargs)
                same(leaves(outputs), leaves(expected))
        compare(ours, theirs, *(copy.deepcopy(a) if packed else _detached(a) for a in forward.args))
        count += 1
    assert count >= 2


def _detached(tree):
    return type(tree)(map(_detached, tree)) if isinstance(tree, tuple) else tree.detach()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("layers", "bidirectional", "bias", "batch_first"),
    [(1, False, True, False), (2, True, True, True), (2, False, False, False), (1, True, True, False)],
)
def test_outputs_and_gradients_are_those_of_pytorch(name, layers, bidirectional, bias, batch_first, each_cpu_wing):
    ours, theirs = both(name, I, H, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn(B, T, I, dtype=torch.float64)
    state = torch.randn(layers * (1 + bidirectional), B if batch_first else T, H, dtype=torch.float64)
    compare(ours, theirs, x)
    compare(ours, theirs, x, (state, state.flip(0)) if name == "LSTM" else state)
    single = ours.float()(x.float())
    assert leaves(single)[0].dtype == torch.float32
    torch.testing.assert_close(leaves(single)[0], leaves(theirs(x))[0].float())


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences(name, enforce_sorted):
    ours, theirs = both(name, I, H, 2, bidirectional=True)
    lengths = [5, 3, 3, 1] if enforce_sorted else [1, 5, 3, 5]
    packed = pack_sequence([torch.randn(n, I, dtype=torch.float64) for n in lengths], enforce_sorted)
    state = torch.randn(4, 4, H, dtype=torch.float64)
    compare(ours, theirs, packed)
    compare(ours, theirs, packed, (state, state.flip(0)) if name == "LSTM" else state)


@pytest.mark.parametrize("name", PAIRS)
def test_lengths_give_what_a_packed_sequence_does(name):
    ours, theirs = both(name, I, H, batch_first=True, bidirectional=True)
    sequences = [torch.randn(n, I, dtype=torch.float64) for n in (2, 5, 4)]
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    y, state = ours(padded, lengths=torch.tensor([2, 5, 4]))
    packed, expected = theirs(pack_sequence(sequences, enforce_sorted=False))
    same(y, pad_packed_sequence(packed, batch_first=True)[0])
    same(state, expected)


def test_resets_separate_episodes():
    lstm = modules.LSTM(I, H, batch_first=True, dtype=torch.float64)
    x, state = torch.randn(1, T, I, dtype=torch.float64), torch.randn(1, 1, H, dtype=torch.float64)
    resets = torch.tensor([[False, False, True, False, False]])
    y, _ = lstm(x, (state, state), resets=resets)
    same(y[:, :2], lstm(x[:, :2], [state, state])[0])  # a list of both, as torch.nn takes it too
    same(y[:, 2:], lstm(x[:, 2:])[0])


@pytest.mark.parametrize("name", PAIRS)
def test_gradcheck(name):
    module = modules.__dict__[name](2, 2, 2, bidirectional=True, dtype=torch.float64)
    names = [n for n, _ in module.named_parameters()]
    resets = torch.tensor([[False, True], [True, False], [False, False]])
    state = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, h, c, *weights):
        hx = (h, c) if name == "LSTM" else h
        y, final = torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), (x, hx), {"resets": resets}
        )
        return (y, *leaves(final))

    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    c = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=name == "LSTM")
    for training in (True, False):
        module.train(training)
        assert torch.autograd.gradcheck(run, (x, state, c, *module.parameters()), fast_mode=True)


def test_a_module_may_stand_twice_in_a_graph_and_the_graph_be_used_twice():
    ours, theirs = both("GRU", I, I)
    x = torch.randn(T, B, I, dtype=torch.float64)
    grads = []
    for module in (ours, theirs):
        y = module(module(x)[0])[0].square().sum()
        y.backward(retain_graph=True)
        y.backward()
        grads.append([p.grad for p in module.parameters()])
    same(*grads)


def test_what_a_forward_pass_saves_lives_as_long_as_its_graph():
    module, x = modules.LSTM(I, H), torch.randn(T, B, I)
    gc.collect()
    before = len(modules._kept)
    y, _ = module(x)
    assert len(modules._kept) == before + 1
    y.sum().backward()
    del y
    gc.collect()
    assert len(modules._kept) == before
    with torch.no_grad():
        module(x)
        assert len(modules._kept) == before


def test_gradients_of_gradients_and_changed_parameters_are_rejected():
    module, x = modules.GRU(I, H), torch.randn(T, B, I, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="gpurnn"):
        dx.sum().backward()
    y = module(x)[0].sum()
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_checkpointing_computes_the_same_gradients_again():
    module, x = modules.LSTM(I, H, dtype=torch.float64), torch.randn(T, B, I, dtype=torch.float64)
    module(x)[0].sum().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    torch.utils.checkpoint.checkpoint(lambda x: module(x)[0].sum(), x, use_reentrant=False).backward()
    same([p.grad for p in module.parameters()], expected)


def test_the_state_dict_is_pytorchs_and_modules_are_copied_and_pickled():
    for name in PAIRS:
        ours, theirs = both(name, I, H, 2, bidirectional=True)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.flatten_parameters()
        x = torch.randn(T, B, I, dtype=torch.float64)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            same(other(x), ours(x))


def test_dropout_draws_from_the_generator_of_pytorch():
    module, x = modules.LSTM(I, H, 2, dropout=0.5), torch.randn(T, B, I)
    torch.manual_seed(3)
    first, second = module(x)[0], module(x)[0]
    torch.manual_seed(3)
    assert torch.equal(module(x)[0], first)
    assert not torch.equal(first, second)
    module.eval()
    assert torch.equal(module(x)[0], module(x)[0])


def test_options_that_pytorch_lacks():
    x = torch.randn(T, B, I, dtype=torch.float64)
    for name, options in (
        ("GRU", {"reset_after": False}), ("GRU", {"reset_after": False, "update": "candidate"}),
        ("RNN", {"leak": 0.5, "activation": "sigmoid"}), ("LSTM", {"residual": True}),
    ):  # fmt: skip
        module = modules.__dict__[name](I, H, 2, dtype=torch.float64, **options)
        usual = {"reset_after": True, "update": "state"} if name == "GRU" else {}
        layer = getattr(gpurnn, name)(I, H, 2, dtype="float64", **{**usual, **options})
        layer.params = {n: p.detach().numpy() for n, p in module.named_parameters()}
        same(module(x)[0].detach(), layer(x)[0])
        option, value = next(iter(options.items()))
        assert f"{option}={value!r}" in repr(module)


OWN = {"IndRNN": {"activation": "tanh", "clip": 2.0}, "MinGRU": {"residual": True}, "MinLSTM": {}}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("bias", [True, False])
def test_modules_that_pytorch_lacks(name, bias, each_cpu_wing):
    module = getattr(modules, name)(I, H, 2, bias, bidirectional=True, dtype=torch.float64, **OWN[name])
    layer = getattr(gpurnn, name)(I, H, 2, bias, bidirectional=True, dtype="float64", **OWN[name])
    assert {n: tuple(p.shape) for n, p in module.named_parameters()} == {n: p.shape for n, p in layer.params.items()}
    assert module.weight_ih_l0.any()
    layer.params = {n: p.detach().numpy() for n, p in module.named_parameters()}
    x, lengths = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True), torch.tensor([5, 2, 0])
    y, h = module(x, lengths=lengths)
    (expected, state), pullback = layer.vjp(x.detach().numpy(), lengths=lengths.numpy())
    same((y.detach(), h.detach()), tuple(map(torch.from_numpy, (expected, state))))
    y.square().sum().backward()
    (dx, _), grads = pullback((2 * expected, None))
    same([x.grad, *(p.grad for p in module.parameters())], [torch.from_numpy(a) for a in (dx, *grads.values())])
    again = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert torch.equal(again(x, lengths=lengths)[0], y)
    loaded = gpurnn.interop.from_torch(torch.nn.ModuleDict({"encoder": module}), "encoder.")
    assert loaded.config() == layer.config()
    same(torch.from_numpy(loaded(x.detach().numpy(), lengths=lengths.numpy())[0]), y.detach())
    other = getattr(modules, name)(I, H, 2, bias, bidirectional=True, dtype=torch.float64, **OWN[name])
    assert not torch.equal(other.weight_ih_l0, module.weight_ih_l0)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x, lengths=lengths)[0], y)


def test_bad_input_is_rejected_as_pytorch_rejects_it():
    for name in PAIRS:
        ours, theirs = both(name, I, H)
        state = torch.zeros(1, B, H + 1, dtype=torch.float64)
        for args in (
            (torch.zeros(I, dtype=torch.float64),), (torch.zeros(T, B, I + 1, dtype=torch.float64),),
            (torch.zeros(T, B, I),),
            (torch.zeros(T, B, I, dtype=torch.float64), (state, state) if name == "LSTM" else state),
            (torch.zeros(T, B, I, dtype=torch.float64), (state[0], state[0]) if name == "LSTM" else state[0]),
        ):  # fmt: skip
            for module in (ours, theirs):
                with pytest.raises((RuntimeError, ValueError)):
                    module(*args)
    with pytest.raises(ValueError, match=r"lengths"):
        modules.GRU(I, H)(torch.zeros(T, B, I), lengths=torch.tensor([9, 1, 1]))
    with pytest.raises(TypeError, match="GRU: colour is not an option, expected one of activation, batch_first, "):
        modules.GRU(I, H, colour=1)


@pytest.mark.parametrize("name", PAIRS)
def test_the_signature_has_the_options_of_both(name):
    shown = inspect.signature(PAIRS[name][0]).parameters
    of_layer = inspect.signature(getattr(gpurnn, name)).parameters
    assert {*of_layer} - {"init", "rng"} <= {*shown}
    assert not [p for p in shown.values() if p.kind is p.VAR_KEYWORD]
    module = PAIRS[name][0](I, H, bidirectional=True, merge="sum")
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(T, B, I))[0].shape == (T, B, H)


def test_other_modules_follow_the_device_and_dtype():
    module = modules.LSTM(I, H).to(torch.float64)
    y, _ = module(torch.zeros(T, B, I, dtype=torch.float64))
    assert y.dtype == torch.float64
    with torch.device("meta"):
        made = modules.LSTM(I, H), modules.MinGRU(I, H)
    for empty in made:
        y, _ = empty(torch.zeros(T, B, I, device="meta"))
        assert tuple(y.shape) == (T, B, H)


@pytest.mark.parametrize("name", [*PAIRS, *OWN])
@pytest.mark.parametrize("sizes", [(0, B), (T, 0)])
def test_no_steps_and_no_sequences(name, sizes):
    """NumPy's empty arrays in C order may have any strides, even negative ones."""
    for options in ({"reverse": True}, {"bidirectional": True, "num_layers": 2}):
        module = modules.__dict__[name](I, H, **options)
        x = torch.zeros(*sizes, I, requires_grad=True)
        y, state = module(x)
        assert y.shape == (*sizes, H * (1 + module.bidirectional))
        grads = torch.autograd.grad(sum(leaf.sum() for leaf in leaves((y, state))), [x, *module.parameters()])
        assert not any(g.any() for g in grads[1:])


@pytest.mark.parametrize("name", [*PAIRS, "MinGRU", "LSTMCell"])
def test_autocast_gives_a_module_numbers_of_the_dtype_of_its_parameters(name):
    module, head = modules.__dict__[name](H, H), torch.nn.Linear(I, H)
    x = torch.randn(B, I) if name.endswith("Cell") else torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = head(x)
        outputs = module(narrow)
        if name == "GRU":
            same(torch.compile(module, backend="eager", fullgraph=True)(narrow.detach()), outputs)
    assert narrow.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in leaves(outputs)} == {torch.float32}
    same(outputs, module(narrow.float()))
    leaves(outputs)[0].sum().backward()
    assert head.weight.grad.any()


def test_advice_is_in_the_terms_of_pytorch():
    x, lengths = torch.zeros(T, B, I), torch.ones(B)
    for module, given, said in (
        (modules.GRU(I, H), lengths, r"lengths\.to\(torch\.int64\)"),
        (
            modules.GRU(I, H).bfloat16(),
            None,
            r"weight_ih_l0 has dtype bfloat16, .*; cast it with weight_ih_l0\.float\(\)",
        ),
    ):
        with pytest.raises(TypeError, match=said):
            module(x.to(module.weight_ih_l0.dtype), lengths=given)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_the_compiler_keeps_the_graph_whole(name):
    """AOTAutograd traces forward and backward; the default backend needs a C++ compiler and proves nothing more."""
    module = modules.__dict__[name](I, H, 2, bidirectional=True, dtype=torch.float64)
    head = torch.nn.Linear(2 * H, 2, dtype=torch.float64)

    def loss(x):
        return head(torch.tanh(module(x)[0])).square().sum()

    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = torch.autograd.grad(loss(x), [*module.parameters()])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        same(torch.autograd.grad(compiled(x), [*module.parameters()]), expected)


def test_the_operator_passes_pytorchs_own_checks():
    module, x = modules.LSTM(2, 2, dtype=torch.float64), torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    state = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = [p.detach().requires_grad_() for p in module.parameters()]
    args = (x, state, state.detach(), weights, torch.tensor([3, 1]), None, None, module._described, True)
    torch.library.opcheck(
        modules._recurrence, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
