"""The types of the interfaces between the parts of gpurnn. Read this file first.

- `Array` is the array type that all parts use.
- `Wing` is the contract between shared code, which is written once for every array library, and a wing, which computes.
- `StatelessLayer` and `SequenceLayer` are the layers that `Sequential` accepts.
- `Trainable` is a model that `Trainer` can train.

mypy checks that both wings, all layers and all models have these types (``tests/typing_contract.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ._op import Pullback
    from .cells import Cell, IndRNN

    Array: TypeAlias = NDArray[Any]
else:
    Array = object
"""An array of NumPy or CuPy.

Type checkers and editors see NumPy's class. CuPy's class has the same methods and no type information, so a checker
accepts a CuPy array as an `Array`. A union of the two would not help: its unknown part would accept everything, even
``gpurnn.lstm([[1.0]], w, w)``. No annotation says that a function's outputs are of the same library as its inputs,
because a type variable would be lost in `f.vjp`. The results of an array namespace are unknown to mypy, so
``warn_return_any`` in ``pyproject.toml`` is off.

At run time `Array` is ``object``, so that tools that check annotations at run time accept CuPy arrays too.
"""

State: TypeAlias = Any
"""The state of a layer: h, or ``(h, c)`` for an LSTM, or a tuple of states for a `Sequential`. None means zero."""

Weights: TypeAlias = Mapping[str, Array]
"""The weights of one direction of a recurrent layer, by the cell's parameter names. A missing bias is zero."""

Saved: TypeAlias = Any
"""The values that a forward function saves for its backward function. Only their own wing can read them."""


class Memory:
    """Counts the bytes that a stack of recurrent layers holds. A wing's `recurrence_memory` knows its own allocations.

    Attributes
    ----------
    itemsize : int
        The bytes of one array entry.
    peak : int
        The most bytes held so far.
    """

    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize
        self.peak = self._held = 0

    def take(self, entries: int) -> int:
        """Count an allocation of ``entries`` numbers; return ``entries``."""
        self._held += entries * self.itemsize
        self.peak = max(self.peak, self._held)
        return entries

    def free(self, entries: int) -> None:
        self._held -= entries * self.itemsize

    def forward(self, I: int, *, training: bool) -> None:
        """Count a layer's forward pass over I inputs: the output stays, and in training the saved values too."""
        raise NotImplementedError

    def backward(self, I: int) -> None:
        """Count a layer's backward pass: the gradients of the input and of the weights stay."""
        raise NotImplementedError


class Wavefront(Protocol):
    """A schedule that runs layers of a stack at once: while one is at a chunk, the one above is at the chunk before."""

    @property
    def layers(self) -> int:
        """The largest number of layers that run at once; the layers above begin when these have ended."""

    @property
    def backward_layers(self) -> int:
        """The largest number of layers that run at once in the backward pass."""

    @property
    def chunk(self) -> int:
        """The number of steps in a chunk. The last chunk may have fewer."""

    def at_once(self) -> AbstractContextManager[None]:
        """Within this context, call `recurrence_forward` or `recurrence_backward` for several layers, a chunk for each.

        Do not read or pass on the results before the context has ended.
        """


class Wing(Protocol):
    """A module that computes for the arrays of a library: ``reference`` (NumPy) or ``kernels`` (CUDA).

    - Arrays are time-major. T are steps, B rows, I inputs, H hidden units, G gates and D directions, 1 or 2.
    - Every array that a wing gets is C-contiguous, aligned and in the machine's byte order; integers are int64,
      resets and exists are bools. ``gpurnn/_arrays.py`` ensures it, and shared code checks shapes and dtypes.
    - A wing never modifies its arguments, except in `optimizer_update`.
    - ``saved`` is None unless ``training``. A backward function may be called any number of times.
    - Where a cotangent (``dy``, ``dstate``, ...) may be None, None means zero.
    - A wing for NumPy arrays need not define every function: the reference computes the rest. Functions that share
      ``saved`` belong to one wing, see ``gpurnn/_dispatch.py``.
    """

    # ---- recurrence: one layer over a whole sequence, in one direction or both

    def recurrence_forward(
        self,
        cell: Cell,
        x: Array,
        weights: tuple[Weights, ...],
        state: tuple[Array, ...],
        *,
        lengths: Array | None = None,
        resets: Array | None = None,
        exists: Array | None = None,
        repeats: bool = False,
        mask: Array | None = None,
        step_masks: Array | None = None,
        training: bool = False,
    ) -> tuple[Array, tuple[Array, ...], Saved]:
        """Run a layer: return y (T, B, D*H), the final state, and the values that `recurrence_backward` needs.

        ``x`` is (T, B, I). ``weights`` has a dict for each direction, with the shapes of ``cell.parameters`` and the
        gates in PyTorch's order. ``state`` is ``(h,)``, for an LSTM ``(h, c)``, each (D, B, H).

        ``lengths`` (B,) are the steps of each row that exist: past them y is zero, and x is not read. ``resets`` (T, B)
        are True where a new sequence starts. ``exists`` (T, B) are True at the steps that a row has, in any pattern. At
        the other steps the state stays, unless there is a reset; y is zero, and x is not read. If lengths are given
        too, a step must exist by both. With ``repeats``, y at a missing step within the lengths is the h that stays
        instead of zero. ``mask`` (D, B, H) multiplies h_{t-1} where it enters a product with W_hh. ``step_masks``
        (M, D, T, B, H) are the masks that ``cell.step_masks`` names.

        The product W_ih x belongs to the wing because the order, scale and layout of the gates decide the speed of the
        steps.
        """

    def recurrence_backward(
        self,
        saved: Saved,
        dy: Array | None,
        dstate: tuple[Array | None, ...],
        dweights: tuple[Mapping[str, Array], ...] | None = None,
    ) -> tuple[Array, tuple[dict[str, Array], ...], tuple[Array, ...]]:
        """The gradients of x, of the weights of each direction by name, and of the initial state.

        ``dweights`` are the gradients of the weights from later steps of the same sequence. The gradients from these
        steps are added to them.
        """

    def recurrence_chunk(self, batch: int) -> int:
        """The steps of a chunk: a sequence cut at multiples of it gives the same bits as the whole sequence."""

    def check_lengths(self, where: str, lengths: Array | None, T: int) -> None:
        """Reject lengths that are not in 0 ... T, if reading them does not wait for a device."""

    def wavefront(self, cell: Cell, T: int, B: int, H: int, D: int, layers: int, like: Array) -> Wavefront | None:
        """How the layers of a stack run at once on the device of ``like``; None if they run one after another.

        Chunks are then those of the wavefront, not of `recurrence_chunk`. A sequence cut at multiples of them gives the
        same bits as the whole, in whatever order its chunks are computed.
        """

    def recurrence_memory(self, cell: Cell, T: int, B: int, H: int, D: int, like: Array) -> Memory:
        """A counter of what the two functions allocate for layers of these sizes, with dtype and device of ``like``."""

    # ---- cells: one step, for callers who step by hand; tests check the loop against it

    def cell_forward(
        self, cell: Cell, xw: Array, state: tuple[Array, ...], weights: Weights
    ) -> tuple[tuple[Array, ...], Saved]:
        """The arrays of the new state, (B, H), from xw (B, G*H) = W_ih x + b_ih; ``weights`` has no input weights."""

    def cell_backward(
        self, saved: Saved, dstate: tuple[Array, ...]
    ) -> tuple[Array, tuple[Array, ...], dict[str, Array]]:
        """The gradients of xw, of the state before the step, and of the weights by name."""

    def cell_gates(self, saved: Saved) -> dict[str, Array]:
        """The values (B, H) of the step's gates by name."""

    # ---- attention: context_t = sum_s alpha_ts values_s, with alpha_t the softmax over s of scores of query and keys

    def attention_forward(
        self,
        query: Array,
        keys: Array,
        values: Array,
        v: Array | None = None,
        *,
        lengths: Array | None = None,
        scale: float = 1.0,
        training: bool = False,
    ) -> tuple[Array, Array, Saved]:
        """The context (T, B, E), alpha (T, B, S), and the values that `attention_backward` needs.

        ``query`` is (T, B, A), ``keys`` (S, B, A), ``values`` (S, B, E). The score is v . tanh(query_t + keys_s) if
        ``v`` (A,) is given, else scale query_t . keys_s. ``lengths`` (B,) are the numbers of positions s that exist.
        """

    def attention_backward(
        self, saved: Saved, dcontext: Array | None, dweights: Array | None
    ) -> tuple[Array, Array, Array, Array | None]:
        """The gradients of query, keys, values and v; ``dweights`` is the gradient of alpha."""

    # ---- multi-head attention, between the projections: each head has its columns of query, keys and values

    def multi_head_forward(
        self,
        query: Array,
        keys: Array,
        values: Array,
        num_heads: int,
        *,
        causal: bool = False,
        excluded: Array | None = None,
        mask: Array | None = None,
        scale: float = 1.0,
        with_weights: bool = True,
        training: bool = False,
    ) -> tuple[Array, Array | None, Saved]:
        """The context (T, B, E), alpha (B, num_heads, T, S) or None, and the values that `multi_head_backward` needs.

        ``query`` is (T, B, E), ``keys`` and ``values`` are (S, B, E); all three may be views. The score is
        scale query_t . keys_s, plus the ``mask`` (B or 1, num_heads or 1, T, S), which may be minus infinity. A step
        sees no position that is ``excluded`` (B, S). If ``causal``, it sees no position later than itself, and the
        steps are the last T of the S positions. alpha is returned only ``with_weights``; without, a wing need not hold
        all of it at once.
        """

    def multi_head_backward(self, saved: Saved, dcontext: Array, dweights: Array | None) -> tuple[Array, Array, Array]:
        """The gradients of query, keys and values; ``dweights`` is the gradient of alpha."""

    # ---- linear scan: h_t = a_t h_{t-1} + b_t, elementwise, real or complex

    def linear_scan_forward(self, a: Array, b: Array, h0: Array, *, training: bool = False) -> tuple[Array, Saved]:
        """h (T, B, N) from a (T, B, N) or (N,), b (T, B, N) and h0 (B, N)."""

    def linear_scan_backward(self, saved: Saved, dh: Array) -> tuple[Array, Array, Array]:
        """The gradients of a, b and h0."""

    # ---- independent units: h_t = f(a_t + u h_{t-1}) + leak h_{t-1}, elementwise

    def independent_forward(
        self,
        cell: IndRNN,
        a: Array,
        u: Array,
        h0: Array,
        *,
        resets: Array | None = None,
        exists: Array | None = None,
        training: bool = False,
    ) -> tuple[Array, Saved]:
        """h (T, B, H) from a (T, B, H), u (B, H) and h0 (B, H).

        ``resets`` (T, B) are True where the state before a step is zero. ``exists`` (T, B) are False where a row lacks
        the step: its state stays, unless there is a reset.
        """

    def independent_backward(self, saved: Saved, dh: Array) -> tuple[Array, Array, Array]:
        """The gradients of a, u and h0."""

    # ---- minimal cells: h_t = kept h_{t-1} + z n_t, elementwise; kept, z and n_t come from the same step's arguments

    def minimal_forward(
        self,
        cell: Cell,
        a: Array,
        h0: Array,
        *,
        resets: Array | None = None,
        exists: Array | None = None,
        training: bool = False,
    ) -> tuple[Array, Saved]:
        """h (T, B, H) from the arguments a (T, B, G*H) of gates and candidate, and h0 (B, H).

        ``resets`` and ``exists`` are those of `independent_forward`.
        """

    def minimal_backward(self, saved: Saved, dh: Array) -> tuple[Array, Array]:
        """The gradients of a and h0."""

    # ---- dense: the products of rows with the weights of a layer

    def dense_forward(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """x W^T + b, (N, O), from x (N, I), ``weight`` (O, I) and ``bias`` (O,)."""

    def dense_backward(self, x: Array, weight: Array, dy: Array) -> tuple[Array, Array, Array]:
        """The gradients of x, W and b from dy (N, O)."""

    # ---- losses

    def cross_entropy_forward(
        self,
        logits: Array,
        labels: Array,
        weights: Array | None = None,
        *,
        class_weights: Array | None = None,
        label_smoothing: float = 0.0,
        training: bool = False,
    ) -> tuple[Array, Saved]:
        """The loss of each of N rows of ``logits`` (N, V). ``weights`` (N,) weigh the rows; zero leaves a row out."""

    def cross_entropy_backward(self, saved: Saved, dlosses: Array) -> Array:
        """The gradient of the logits."""

    def mse_forward(self, y: Array, target: Array, *, training: bool = False) -> tuple[Array, Saved]:
        """(y - target)^2, elementwise."""

    def mse_backward(self, saved: Saved, d: Array) -> Array:
        """The gradient of y."""

    # ---- dropout and embedding

    def dropout_mask(
        self, like: Array, shape: tuple[int, ...], rate: float, seed: int, first: int = 0, stride: int | None = None
    ) -> Array:
        """Entries 0 and 1/(1 - rate), of the dtype and device of ``like``, from the words of Philox4x32-10.

        ``mask[k]`` starts at entry ``first + k stride`` of the seed's stream.
        """

    def embedding_gather(self, weight: Array, indices: Array) -> Array:
        """The rows ``weight[indices]``."""

    def embedding_scatter(self, indices: Array, dy: Array, num_embeddings: int) -> Array:
        """The gradient (V, E) of the table: for each index a sum of rows of ``dy``, in a fixed order."""

    # ---- optimizers: over whole lists of arrays

    def global_norm(self, arrays: Sequence[Array]) -> Array:
        """The 2-norm of all elements of all arrays, a () float64 array."""

    def scaled(self, arrays: Sequence[Array], factor: Array) -> list[Array]:
        """``factor``, a () float64 array, times each array."""

    def optimizer_update(
        self,
        kind: str,
        params: Sequence[Array],
        grads: Sequence[Array],
        slots: Mapping[str, Sequence[Array] | None],
        shrink: Sequence[float],
        weight_decay: float,
        scalars: Mapping[str, float | bool],
    ) -> None:
        """Update the parameters in place: g = gradient + weight_decay p, p <- shrink p - step(g).

        ``kind`` names the optimizer, and so the step. ``slots`` are the arrays that the optimizer keeps for the
        parameters, None for a slot that its options do not need; they are updated too. ``scalars`` depend on its
        hyperparameters and the step number. A class of ``optimizers.py`` declares its slots and scalars.
        """


WING_FUNCTIONS = tuple(name for name in vars(Wing) if not name.startswith("_"))
"""The names of a wing's functions."""


class StatelessLayer(Protocol):
    """A layer without a state, for use in `Sequential`: its attribute ``stateful`` is False."""

    @property
    def stateful(self) -> bool: ...

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name. An optimizer updates these arrays in place."""

    def __call__(self, x: Array, /) -> Array:
        """Return y; save nothing."""

    def vjp(self, x: Array, /, rng: int | np.random.Generator | None = None) -> tuple[Array, Pullback]:
        """Return y and its pullback, in training mode if there is an ``rng``."""


class SequenceLayer(Protocol):
    """A layer with a state that passes from step to step: its attribute ``stateful`` is True."""

    @property
    def stateful(self) -> bool: ...

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name. An optimizer updates these arrays in place."""

    def __call__(
        self, x: Array, /, state: State = None, lengths: Array | None = None, resets: Array | None = None
    ) -> tuple[Array, State]:
        """Return y and the final state; save nothing."""

    def vjp(
        self,
        x: Array,
        /,
        state: State = None,
        lengths: Array | None = None,
        resets: Array | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[tuple[Array, State], Pullback]:
        """Return ``(y, state)`` and their pullback, in training mode if there is an ``rng``."""


class Trainable(Protocol):
    """The methods that a `Trainer` calls on a model. `LanguageModel` is one; ten lines around any layers are another.

    A model may have a string ``loss_unit``, such as "nats per target"; the metrics name it.
    """

    @property
    def params(self) -> dict[str, Array]:
        """The parameters by name. The optimizer changes these arrays in place."""

    def loss(self, inputs: Any, targets: Any, state: State = None, lengths: Array | None = None) -> tuple[Any, State]:
        """The mean loss over the targets that count, and the final recurrent state."""

    def loss_and_gradients(
        self,
        inputs: Any,
        targets: Any,
        state: State = None,
        lengths: Array | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> tuple[Any, State, dict[str, Array]]:
        """The results of `loss`, in training mode if ``rng`` is given, and the loss's gradients by parameter name.

        If the trainer has ``teacher_forcing``, it passes this float as one more keyword of the same name.
        If the model's two functions take ``metrics``, they get a dict to fill with further means over the same targets,
        by name, such as the accuracy.
        Likewise ``checkpoint_every``; ``mask`` for batches with weights (`loss` gets it too); and for windows that
        overlap ``state_after``: ``targets`` are then of the last steps only, and the model must return the state after
        ``state_after`` steps.
        """


@runtime_checkable
class Remembers(Protocol):
    """The further methods of a model that remembers more than its parameters between steps, as `Reinforce` does."""

    def training_state(self) -> dict[str, Any]:
        """The model's memory for a checkpoint: a dict of arrays, numbers, strings and None."""

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the memory that `training_state` returned."""
