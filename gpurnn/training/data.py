"""The data of a `Trainer`: batches by epoch and number, so that a position is two integers."""

from __future__ import annotations

import copy
import functools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from .. import _arrays, _checks, _dispatch, _random
from .curriculum import Curriculum
from .truncation import borders


@dataclass(frozen=True)
class Batch:
    """The examples that a model computes at once.

    Attributes
    ----------
    inputs : array (T, B) or (T, B, I)
        Time-major.
    targets : array (T, B, ...) or (B, ...), or a pair
        One for each step, or one for each sequence; or the pair of target sequences (T_target, B, ...) and their
        lengths (B,).
    lengths : array (B,) of ints, optional
        The number of valid steps of each sequence. None: all of them.
    count : int or float
        The number of targets that the loss is the mean of; with weights, the sum of the weights.
    context : int
        The number of steps at the beginning that the batch before also held. Gradients flow back through them, but they
        have no targets: only the later steps do.
    state_after : int, optional
        The state after this many steps is passed on. None: the state after all steps.
    weights : array (B,) or (T, B), optional
        The weight of each target in the mean loss. It is passed on to the model as the keyword ``mask``.
    rows : (int, int, int), optional
        For a shard: its first row in the whole batch, the row after its last, and the number of rows of the whole.
        Dropout then depends only on a row's place in the whole batch.
    """

    inputs: Any
    targets: Any
    lengths: Any
    count: float
    context: int = 0
    state_after: int | None = None
    weights: Any = None
    rows: tuple[int, int, int] | None = None


class Data(Protocol):
    """Batches for a `Trainer`; `TokenStream` and `PaddedBatches` are two kinds.

    Data whose epochs differ in their number of batches also have a method ``num_batches(epoch)``. A `Trainer` with
    ``epochs`` calls it for each of them at the beginning.

    Data for a `Trainer` with ``shards`` have ``shard(epoch, index, number, shards)``. It returns shard ``number`` of
    ``shards`` of the rows of batch ``index``, as a `Batch` with ``rows``; None if there are no such rows.
    """

    carries_state: bool
    """Whether a batch continues the one before it, in every lane, so that the state is passed on."""

    def __len__(self) -> int:
        """The number of batches of an epoch in which all examples take part."""

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch number ``index`` of an epoch: the same one whenever it is asked for."""

    def config(self) -> dict[str, Any]:
        """The settings that the batches depend on, JSON-compatible; they are compared when training is resumed."""


def num_batches(data: Data, epoch: int) -> int:
    """The number of batches of an epoch of any `Data`."""
    own = getattr(data, "num_batches", None)
    number: int = len(data) if own is None else own(epoch)
    if number < 1:
        raise ValueError(f"{type(data).__name__}: epoch {epoch} has {number} batches, expected at least 1")
    return number


def steps_of_epoch(data: Data, epoch: int, batches: int = 1) -> int:
    """The number of steps of an epoch of any `Data`, with ``batches`` batches in a step; the last may have fewer."""
    return -(-num_batches(data, epoch) // batches)


def steps_of_epochs(data: Data, epochs: int, batches: int = 1) -> int:
    """The number of steps of the first ``epochs`` epochs of any `Data`; epochs known to be alike are counted once."""
    differing = epochs
    if not hasattr(data, "num_batches"):
        differing = 0
    elif isinstance(data, PaddedBatches) and type(data).num_batches is PaddedBatches.num_batches:
        differing = min(epochs, data._first_of_the_alike())
    alike = epochs - differing
    steps = sum(steps_of_epoch(data, e, batches) for e in range(differing))
    return steps + (alike * steps_of_epoch(data, differing, batches) if alike else 0)


def _position(data: Data, epoch: int, index: int) -> tuple[int, int]:
    """The epoch and the number of one of its batches; reject a batch that the epoch does not have."""
    where = f"{type(data).__name__}.batch"
    epoch = _checks.integer_at_least(where, "epoch", epoch, 0)
    index, count = _checks.integer_at_least(where, "index", index, 0), num_batches(data, epoch)
    if index >= count:
        raise IndexError(f"{where}: index is {index}, expected 0 ... {count - 1}, as epoch {epoch} has {count} batches")
    return epoch, index


def _rows(rows: int, number: int, shards: int) -> tuple[int, int]:
    """The first row of a shard and the row after its last; shards differ by one row at most."""
    return rows * number // shards, rows * (number + 1) // shards


def _share(where: str, share: float) -> float:
    """The share of the examples that a split sets aside; reject one outside (0, 1)."""
    share = _checks.finite(where, "share", share)
    if not 0.0 < share < 1.0:
        raise ValueError(f"{where}: share is {share!r}, expected a number in (0, 1)")
    return share


def _fingerprint(arrays: Sequence[Any]) -> int:
    checksum = 0
    for array in arrays:
        host = _dispatch.to_numpy(array)
        checksum = zlib.crc32(f"{host.dtype.str}{host.shape}".encode(), checksum)
        # Piece by piece, since a mapped file may be larger than memory.
        pieces = range(0, len(host), _PIECE) if host.ndim == 1 else ()
        for piece in (host[i : i + _PIECE] for i in pieces) if pieces else (host,):
            checksum = zlib.crc32(piece.tobytes(), checksum)
    return checksum


_PIECE = 1 << 22
"""The number of entries of an array that are read at a time for its checksum."""


class TokenStream:
    r"""One long sequence of tokens for truncated backpropagation through time, each predicted from those before it.

    The stream is cut into B contiguous lanes, and those into windows of k steps:
    x_t = w_t, target_t = w_{t+1}, t = ik .. (i+1)k - 1 in window i of each lane. The state at the end of a window is
    the initial state of the next, and gradients stop between them; an epoch begins with the state zero. Tokens at the
    end that fill no window are not used.

    With ``gradient_steps`` k2 > k this is BPTT(k1 = k, k2): an update every k steps by the loss of those steps, with
    gradients that go back through k2 steps. So a window begins k2 - k steps before its targets. The window before
    computes the state that enters it; see `truncated_bptt`.

    Parameters
    ----------
    tokens : array (n,) of ints
        The stream. It is not copied, and may be a file that is mapped into memory, ``numpy.load(path, mmap_mode="r")``:
        a batch reads its own windows and nothing else.
    batch_size : int
        B, the number of lanes.
    steps : int
        k, the steps of a window.
    gradient_steps : int, optional
        k2, the steps that gradients go back through, at least ``steps`` and not necessarily a multiple of it.
    checksum : str, optional
        Identifies the tokens when a run is resumed; for example the checksum of a `TokenFile`. Without it, all tokens
        are read once for their CRC-32.

    Raises
    ------
    ValueError
        The stream is too short for one window in every lane, n < B (k + 1), or ``gradient_steps`` is below ``steps``.

    References
    ----------
    Williams and Peng, "An efficient gradient-based algorithm for on-line training of recurrent network trajectories",
    Neural Computation 2(4), 1990; Sutskever, "Training recurrent neural networks", PhD thesis, 2013, section 2.8.6.

    Examples
    --------
    >>> import numpy as np
    >>> stream = TokenStream(np.arange(10), batch_size=2, steps=2)
    >>> len(stream)
    2
    >>> stream.batch(0, 1).inputs
    array([[2, 7],
           [3, 8]])
    >>> stream.batch(0, 1).targets
    array([[3, 8],
           [4, 9]])
    """

    carries_state = True

    @_checks.lists_options
    def __init__(
        self,
        tokens: Any,
        batch_size: int,
        steps: int,
        gradient_steps: int | None = None,
        *,
        checksum: str | None = None,
    ) -> None:
        _checks.given("TokenStream", tokens=tokens)
        _dispatch.namespace("TokenStream", tokens=tokens)
        tokens = _arrays.native(tokens)
        _checks.ndim("TokenStream", "tokens", tokens, 1, "(n,)")
        _checks.integer("TokenStream", "tokens", tokens)
        self.batch_size = _checks.integer_at_least("TokenStream", "batch_size", batch_size, 1)
        self.steps = _checks.integer_at_least("TokenStream", "steps", steps, 1)
        if gradient_steps is not None:
            gradient_steps = _checks.integer_at_least("TokenStream", "gradient_steps", gradient_steps, self.steps)
        self.gradient_steps = gradient_steps
        lane = tokens.shape[0] // self.batch_size
        if lane < self.steps + 1:
            raise ValueError(
                f"TokenStream: tokens has {tokens.shape[0]} tokens, expected at least batch_size (steps + 1) = "
                f"{self.batch_size * (self.steps + 1)}"
            )
        self._tokens = tokens
        self._lanes = self._cut()
        self.checksum = checksum

    def _cut(self) -> Any:
        """The lanes, a view of the tokens of shape (lane, B)."""
        xp, B = _dispatch.namespace("TokenStream", tokens=self._tokens), self.batch_size
        lane = self._tokens.shape[0] // B
        return xp.permute_dims(xp.reshape(self._tokens[: lane * B], (B, lane)), (1, 0))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lanes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lanes = self._cut()

    def __len__(self) -> int:
        return int((self._lanes.shape[0] - 1) // self.steps)

    def batch(self, epoch: int, index: int) -> Batch:
        """Window ``index`` of every lane, the same in every epoch; targets are (k, B), inputs at most (k2, B)."""
        return self._window(epoch, index, 0, self.batch_size)

    def shard(self, epoch: int, index: int, number: int, shards: int) -> Batch | None:
        """Window ``index`` of the lanes that are shard ``number`` of ``shards``; None if there are none."""
        first, end = _rows(self.batch_size, number, shards)
        if first == end:
            return None
        return replace(self._window(epoch, index, first, end), rows=(first, end, self.batch_size))

    def _window(self, epoch: int, index: int, first: int, end: int) -> Batch:
        """A window of the lanes from ``first`` to ``end``."""
        _, index = _position(self, epoch, index)
        start, new, stop, following = borders(index, self.steps, self.gradient_steps or self.steps)
        inputs, targets = self._lanes[start:stop, first:end], self._lanes[new + 1 : stop + 1, first:end]
        state_after = None if following == stop else following - start
        return Batch(inputs, targets, None, self.steps * (end - first), new - start, state_after)

    @property
    def num_examples(self) -> int:
        """The number of windows in all lanes."""
        return len(self) * self.batch_size

    def split(self, share: float, *, rng: int | np.random.Generator = 0) -> tuple[TokenStream, TokenStream]:
        """Two parts of the stream: its beginning to train on, and its end to validate on.

        Parameters
        ----------
        share : float
            The share of the second part, in (0, 1). It has one window at least.
        rng : int or numpy.random.Generator
            Has no effect: the parts are cut in the order of time.

        Returns
        -------
        rest, part : TokenStream
            With the window sizes of this object; in fewer lanes if a part is too short for as many.

        Raises
        ------
        ValueError, TypeError
            The share is out of its range, or the stream is too short for one window in each part.

        Examples
        --------
        >>> import numpy as np
        >>> rest, part = TokenStream(np.arange(40), batch_size=2, steps=4).split(0.25)
        >>> rest, part
        (TokenStream(30 tokens, batch_size=2, steps=4), TokenStream(10 tokens, batch_size=2, steps=4))
        """
        where = "TokenStream.split"
        share = _share(where, share)
        count = int(self._tokens.shape[0])
        least = self.steps + 1
        if count < 2 * least:
            raise ValueError(
                f"{where}: the stream has {count} tokens, expected at least 2 (steps + 1) = {2 * least}: one window "
                "in each part"
            )
        cut = count - min(max(round(share * count), least), count - least)
        rest, part = self._tokens[:cut], self._tokens[cut:]
        lanes = [min(self.batch_size, int(tokens.shape[0]) // least) for tokens in (rest, part)]
        sums = [None if self.checksum is None else f"{self.checksum} {p}" for p in (f"0:{cut}", f"{cut}:{count}")]
        return (
            TokenStream(rest, lanes[0], self.steps, self.gradient_steps, checksum=sums[0]),
            TokenStream(part, lanes[1], self.steps, self.gradient_steps, checksum=sums[1]),
        )

    def __repr__(self) -> str:
        further = "" if self.gradient_steps is None else f", gradient_steps={self.gradient_steps}"
        return (
            f"TokenStream({self._tokens.shape[0]:,} tokens, batch_size={self.batch_size}, steps={self.steps}{further})"
        )

    def config(self) -> dict[str, Any]:
        """The sizes and a checksum of the tokens."""
        return {
            "kind": "TokenStream",
            "batch_size": self.batch_size,
            "steps": self.steps,
            "gradient_steps": self.gradient_steps,
            "tokens": int(self._tokens.shape[0]),
            **({"crc32": self._crc32} if self.checksum is None else {"checksum": self.checksum}),
        }

    @functools.cached_property
    def _crc32(self) -> int:
        return _fingerprint([self._tokens])


def pad(arrays: Sequence[Any]) -> tuple[Any, Any]:
    """Return sequences of any lengths as one time-major array, zero past the end of each, and their lengths.

    Parameters
    ----------
    arrays : sequence of arrays (T_i, ...)
        At least one, of one library and one dtype, with the same shape except for the number of steps. Different
        integer dtypes become int64.

    Returns
    -------
    padded : array (T, B, ...)
        T is the largest T_i.
    lengths : (B,) int32 array

    Raises
    ------
    TypeError, ValueError
        There are no arrays, or they differ in library, dtype or shape.

    Examples
    --------
    >>> import numpy as np
    >>> padded, lengths = pad([np.array([1, 2, 3]), np.array([4])])
    >>> padded
    array([[1, 4],
           [2, 0],
           [3, 0]])
    >>> lengths
    array([3, 1], dtype=int32)
    """
    return _pad(_check_sequences("pad", "arrays", arrays))


def _pad(arrays: Sequence[Any]) -> tuple[Any, Any]:
    first, lengths = arrays[0], [a.shape[0] for a in arrays]
    xp = _dispatch.namespace("pad", arrays=first)
    padded = _dispatch.zeros(xp, (max(lengths), len(arrays), *first.shape[1:]), first)
    for lane, array in enumerate(arrays):
        padded[: array.shape[0], lane, ...] = array
    return padded, xp.asarray(lengths, dtype=xp.int32, device=_dispatch.device(first))


class PaddedBatches:
    r"""Sequences of any lengths for full backpropagation through time, shuffled in every epoch.

    A batch holds the sequences (T, B, ...), where T is the longest length, and their lengths. Values past a length are
    zero, and count neither in the loss nor in a gradient. The last batch of an epoch may be smaller.

    With a ``token_budget`` instead of a ``batch_size``, batches are dynamic: sequences of similar length make a batch,
    as many as fit the budget, B T <= token_budget. Every epoch draws how sequences of equal length are batched, and the
    order of the batches. `padding_share` is the share of padding.

    Parameters
    ----------
    sequences : sequence of arrays (T_i,) of ints or (T_i, I)
        The inputs. Arrays of one library and one dtype; different integer dtypes become int64.
    batch_size : int, optional
        B.
    targets : sequence of arrays, optional
        For each sequence an array (T_i, ...) with a target for each step; with ``per_sequence``, an array (...) for the
        whole of it; with ``own_lengths``, an array (T'_i, ...) of any length. None: each token is predicted from those
        before it, so that inputs are w_1 .. w_{T-1} and targets w_2 .. w_T.
    per_sequence : bool
        Whether a target belongs to a whole sequence, not to each of its steps.
    own_lengths : bool
        Whether targets are sequences with their own lengths, such as translations of sentences. The targets of a batch
        are then a pair: the padded targets (T', B, ...) and their lengths (B,). Its count is the number of their steps.
    weights : sequence, optional
        For each sequence a number (``per_sequence``) or an array (T_i,): the weight of its target, or of the target at
        each step, in the mean loss; 0 leaves a target out.
    token_budget : int, optional
        The largest B T, padding included; with ``own_lengths``, T is the longer of inputs and targets. Give exactly one
        of this and ``batch_size``.
    curriculum : Curriculum, optional
        Chooses the sequences that take part in an epoch, so that epochs have more and more batches. None: all.
    shuffle : bool
        False keeps the same order in every epoch, for example for validation; with a ``token_budget``, the order of the
        lengths.
    rng : int or numpy.random.Generator
        Seeds the order. The order of an epoch depends only on the seed and the epoch.

    Raises
    ------
    ValueError
        There are no sequences, one is too short to learn from, or targets do not fit them.

    Examples
    --------
    >>> import numpy as np
    >>> batches = PaddedBatches([np.array([1, 2, 3]), np.array([4, 5])], batch_size=2, shuffle=False)
    >>> batch = batches.batch(0, 0)
    >>> batch.inputs
    array([[1, 4],
           [2, 0]])
    >>> batch.targets
    array([[2, 5],
           [3, 0]])
    >>> batch.lengths
    array([2, 1], dtype=int32)

    Sequences and their translations:

    >>> pairs = PaddedBatches([np.array([1, 2]), np.array([3])], 2, [np.array([7]), np.array([8, 9])], own_lengths=True)
    >>> targets, target_lengths = pairs.batch(0, 0).targets
    >>> targets.shape, pairs.batch(0, 0).count
    ((2, 2), 3)

    Sequences of similar length make a batch, two of 4 steps as well as four of 2:

    >>> sequences = [np.ones((length, 3)) for length in (2, 4, 2, 4, 2, 1, 4)]
    >>> wanted = [np.zeros(())] * 7
    >>> dynamic = PaddedBatches(sequences, targets=wanted, per_sequence=True, token_budget=8, shuffle=False)
    >>> [dynamic.batch(0, index).inputs.shape for index in range(len(dynamic))]
    [(2, 4, 3), (4, 2, 3), (4, 1, 3)]
    >>> dynamic.padding_share()
    0.05
    """

    carries_state = False

    @_checks.lists_options
    def __init__(
        self,
        sequences: Sequence[Any],
        batch_size: int | None = None,
        targets: Sequence[Any] | None = None,
        *,
        per_sequence: bool = False,
        own_lengths: bool = False,
        weights: Sequence[Any] | None = None,
        token_budget: int | None = None,
        curriculum: Curriculum | None = None,
        shuffle: bool = True,
        rng: int | np.random.Generator = 0,
    ) -> None:
        where = "PaddedBatches"
        if (batch_size is None) == (token_budget is None):
            raise ValueError(
                f"{where}: batch_size is {batch_size!r} and token_budget is {token_budget!r}, "
                "expected exactly one of the two"
            )
        per_sequence = _checks.flag(where, "per_sequence", per_sequence)
        own_lengths = _checks.flag(where, "own_lengths", own_lengths)
        self.batch_size, self.token_budget = batch_size, token_budget
        if batch_size is not None:
            self.batch_size = _checks.integer_at_least(where, "batch_size", batch_size, 1)
        if token_budget is not None:
            self.token_budget = _checks.integer_at_least(where, "token_budget", token_budget, 1)
        sequences = _check_sequences(where, "sequences", sequences)
        for i, sequence in enumerate(sequences):
            least = 2 if targets is None else 1
            if sequence.shape[0] < least:
                raise ValueError(
                    f"{where}: sequences[{i}] has shape {tuple(sequence.shape)}, expected at least {least} steps"
                )
        if per_sequence and own_lengths:
            raise ValueError(f"{where}: per_sequence and own_lengths are both True, expected at most one of the two")
        if targets is None:
            for name, value in (("per_sequence", per_sequence), ("own_lengths", own_lengths)):
                if value:
                    raise ValueError(f"{where}: {name} is True but targets is None, expected a target per sequence")
            for i, sequence in enumerate(sequences):
                _checks.ndim(where, f"sequences[{i}]", sequence, 1, "(T,) of tokens, as there are no targets")
            _checks.integer(where, "sequences[0]", sequences[0])
            self._inputs, self._targets = [s[:-1] for s in sequences], [s[1:] for s in sequences]
        else:
            targets = _check_arrays(where, "targets", targets)
            _dispatch.namespace(where, sequences=sequences[0], **{f"targets[{i}]": t for i, t in enumerate(targets)})
            if len(targets) != len(sequences):
                raise ValueError(f"{where}: targets has {len(targets)} entries, expected {len(sequences)}")
            _like_the_first(where, "targets", targets, whole=per_sequence)
            for i, (sequence, target) in enumerate(zip(sequences, targets, strict=True)):
                if own_lengths:
                    if 0 in target.shape[:1] or target.ndim == 0:
                        raise ValueError(
                            f"{where}: targets[{i}] has shape {tuple(target.shape)}, expected at least 1 step"
                        )
                elif not per_sequence and target.shape[:1] != sequence.shape[:1]:
                    raise ValueError(
                        f"{where}: targets[{i}] has shape {tuple(target.shape)}, expected {sequence.shape[0]} steps, "
                        f"as sequences[{i}] has; for one target per sequence pass per_sequence=True, for targets of "
                        "other lengths pass own_lengths=True"
                    )
            self._inputs, self._targets = sequences, targets
        self.per_sequence, self.own_lengths = per_sequence, own_lengths
        self._weights = None if weights is None else self._check_weights(where, weights)
        self.shuffle = _checks.flag(where, "shuffle", shuffle)
        self.seed = _random.philox_seed(_random.generator(where, rng))
        # (N, 1), or (N, 2) with own_lengths.
        of_both = (self._inputs, self._targets) if own_lengths else (self._inputs,)
        self._lengths = np.array([[array.shape[0] for array in arrays] for arrays in of_both]).T
        self._steps = self._lengths.max(axis=1)
        if self.token_budget is not None and self._steps.max() > self.token_budget:
            longest = int(self._steps.argmax())
            raise ValueError(
                f"{where}: token_budget is {self.token_budget}, expected at least {self._steps[longest]}, "
                f"the steps of sequences[{longest}]"
            )
        self.curriculum = curriculum
        if curriculum is not None and not isinstance(curriculum, Curriculum):
            raise TypeError(f"{where}: curriculum is {curriculum!r}, expected a Curriculum")
        self._difficulties: Any = None if curriculum is None else _difficulties(curriculum, sequences, targets)
        self._plan: tuple[int, list[Any]] = (-1, [])
        self._num_batches: dict[int, int] = {}

    def _check_weights(self, where: str, weights: Any) -> list[np.ndarray[Any, Any]]:
        """The weights, () or (T_i,) float64 arrays; reject any that do not fit the targets or are not valid."""
        if self.own_lengths:
            raise ValueError(f"{where}: weights and own_lengths are both given, expected at most one of the two")
        weights = _arrays.entries(where, "weights", weights, "a weight or an array of weights for each sequence")
        if len(weights) != len(self._inputs):
            raise ValueError(f"{where}: weights has {len(weights)} entries, expected {len(self._inputs)}")
        arrays = []
        for i, (weight, targets) in enumerate(zip(weights, self._targets, strict=True)):
            if _arrays.has_masked(weight):
                raise ValueError(
                    f"{where}: weights[{i}] has masked entries, expected numbers only; 0 leaves a target out"
                )
            array = np.asarray(_dispatch.to_numpy(weight) if _arrays.is_single(weight) else weight)
            if array.dtype.kind not in "biuf":
                raise TypeError(f"{where}: weights[{i}] holds {array.dtype} values, expected numbers")
            expected = () if self.per_sequence else tuple(targets.shape[:1])
            _checks.shape(where, f"weights[{i}]", array, expected, "()" if self.per_sequence else "(T,)")
            array = array.astype(np.float64)
            wrong = array[~(np.isfinite(array) & (array >= 0))]
            if wrong.size:
                raise ValueError(
                    f"{where}: weights[{i}] holds {float(wrong.flat[0])}, expected finite numbers of at least 0"
                )
            arrays.append(array)
        if not any(array.any() for array in arrays):
            raise ValueError(f"{where}: weights are all zero, expected one above zero")
        return arrays

    def __len__(self) -> int:
        """The number of batches of an epoch; with a curriculum, of an epoch at its end."""
        return self._count(self._admitted(None))

    @property
    def num_examples(self) -> int:
        """The number of sequences."""
        return len(self._inputs)

    def split(self, share: float, *, rng: int | np.random.Generator = 0) -> tuple[PaddedBatches, PaddedBatches]:
        """Two parts of the sequences, drawn at random: one to train on, and a share of them to validate on.

        If each sequence has a class, an integer, the share is taken of every class, as nearly as whole numbers allow.

        Parameters
        ----------
        share : float
            The share of the second part, in (0, 1). Each part has one sequence at least.
        rng : int or numpy.random.Generator

        Returns
        -------
        rest, part : PaddedBatches
            The first has the options of this object; the second is not shuffled and has no curriculum.

        Raises
        ------
        ValueError, TypeError
            The share is out of its range, or there is only one sequence.
        """
        where = "PaddedBatches.split"
        share = _share(where, share)
        count = self.num_examples
        if count < 2:
            raise ValueError(f"{where}: there is only one sequence, expected at least two")
        order = self._by_class(_random.generator(where, rng).permutation(count))
        size = min(max(round(share * count), 1), count - 1)
        rest, part = self._chosen(np.sort(order[size:])), self._chosen(np.sort(order[:size]))
        part.shuffle, part.curriculum, part._difficulties = False, None, None
        return rest, part

    def _by_class(self, order: Any) -> Any:
        """``order``, changed so that any prefix has its share of each class; unchanged if there are no classes."""
        first = self._targets[0]
        if not self.per_sequence or first.shape != () or _checks.dtype_name(first) not in _checks.INTS:
            return order
        xp = _dispatch.namespace("PaddedBatches", targets=first)
        classes = _dispatch.to_numpy(xp.stack(self._targets))[order]
        ranks, sizes = np.empty(len(order)), np.empty(len(order))
        for one in np.unique(classes):
            members = np.flatnonzero(classes == one)
            ranks[members], sizes[members] = (np.arange(len(members)) + 0.5) / len(members), len(members)
        return order[np.lexsort((sizes, ranks))]

    def _chosen(self, places: Any) -> PaddedBatches:
        """A copy of this object with only the sequences at these places."""
        chosen = copy.copy(self)
        for name in ("_inputs", "_targets", "_weights"):
            of_all = getattr(self, name)
            setattr(chosen, name, None if of_all is None else [of_all[i] for i in places])
        for name in ("_lengths", "_steps", "_difficulties"):
            of_all = getattr(self, name)
            setattr(chosen, name, None if of_all is None else of_all[places])
        chosen._plan, chosen._num_batches = (-1, []), {}
        return chosen

    @property
    def weighted(self) -> bool:
        """Whether the targets have weights."""
        return self._weights is not None

    def num_batches(self, epoch: int) -> int:
        """The number of batches of an epoch. Epochs differ only if there is a curriculum."""
        epoch = _checks.integer_at_least("PaddedBatches.num_batches", "epoch", epoch, 0)
        return self._count(self._admitted(epoch))

    def _first_of_the_alike(self) -> int:
        """The epoch from which all have the same number of batches."""
        if self.curriculum is None:
            return 0
        limit = min(self.curriculum.maximum, float(self._difficulties.max()))
        epochs = (limit - self.curriculum.start) / self.curriculum.increment
        return math.ceil(min(max(epochs, 0.0), 2.0**53)) + 1  # one more, as the quotient is rounded

    def padding_share(self, epoch: int = 0) -> float:
        """The share of padding in an epoch's steps, including the steps of targets with their own lengths."""
        epoch = _checks.integer_at_least("PaddedBatches.padding_share", "epoch", epoch, 0)
        batches = [self._lengths[chosen] for chosen in self._batches(epoch)]
        held = sum(int(lengths.sum()) for lengths in batches)
        padded = sum(len(lengths) * int(lengths.max(axis=0).sum()) for lengths in batches)
        return (padded - held) / padded

    def _admitted(self, epoch: int | None) -> Any:
        """The examples that take part in an epoch; with None, at the end of the curriculum."""
        if self.curriculum is None:
            return np.arange(len(self._inputs))
        limit = self.curriculum.maximum if epoch is None else self.curriculum(epoch)
        return np.flatnonzero(self._difficulties <= limit)

    def _count(self, admitted: Any) -> int:
        # The number of admitted examples determines which they are, and every past epoch asks again.
        if len(admitted) not in self._num_batches:
            self._num_batches[len(admitted)] = len(self._cut(admitted))
        return self._num_batches[len(admitted)]

    def _cut(self, order: Any) -> list[Any]:
        """Cut examples in this order into batches; with a ``token_budget``, sort them by length first."""
        if self.batch_size is not None:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        # By the steps that the budget counts, then by those of the inputs; stable, so that ties stay shuffled.
        order = order[np.lexsort((self._lengths[order, 0], self._steps[order]))]
        assert self.token_budget is not None  # one of the two was given
        cuts = [0]
        for i, steps in enumerate(self._steps[order].tolist()):
            if (i + 1 - cuts[-1]) * steps > self.token_budget:
                cuts.append(i)
        return np.split(order, cuts[1:])

    def _batches(self, epoch: int) -> list[Any]:
        """The examples of each batch of an epoch."""
        if self._plan[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order = self._admitted(epoch)
            if self.shuffle:
                rng.shuffle(order)
            batches = self._cut(order)
            if self.shuffle and self.token_budget is not None:
                batches = [batches[i] for i in rng.permutation(len(batches))]
            self._plan = (epoch, batches)
        return self._plan[1]

    def batch(self, epoch: int, index: int) -> Batch:
        """Batch ``index`` in the order of ``epoch``."""
        epoch, index = _position(self, epoch, index)
        return self._padded(self._batches(epoch)[index])

    def shard(self, epoch: int, index: int, number: int, shards: int) -> Batch | None:
        """The examples of batch ``index`` that are shard ``number`` of ``shards``; None if there are none."""
        epoch, index = _position(self, epoch, index)
        chosen = self._batches(epoch)[index]
        first, end = _rows(len(chosen), number, shards)
        if first == end:
            return None
        return replace(self._padded(chosen[first:end]), rows=(first, end, len(chosen)))

    def _padded(self, chosen: Any) -> Batch:
        """These examples as a batch."""
        inputs, lengths = _pad([self._inputs[i] for i in chosen])
        weights = None
        if self._weights is not None:
            of_batch = [self._weights[i] for i in chosen]
            weights = np.stack(of_batch) if self.per_sequence else _pad(of_batch)[0]
            xp = _dispatch.namespace("PaddedBatches", inputs=inputs)
            weights, total = _dispatch.from_numpy(xp, weights), float(weights.sum())
        wanted = [self._targets[i] for i in chosen]
        if self.per_sequence:
            targets = _dispatch.namespace("PaddedBatches", targets=wanted[0]).stack(wanted)
            return Batch(inputs, targets, lengths, len(wanted) if weights is None else total, weights=weights)
        targets, target_lengths = _pad(wanted)
        if self.own_lengths:
            targets = (targets, target_lengths)
        count = sum(target.shape[0] for target in wanted) if weights is None else total
        return Batch(inputs, targets, lengths, count, weights=weights)

    def config(self) -> dict[str, Any]:
        """The sizes, the seed, the curriculum and a checksum of the sequences."""
        c = self.curriculum
        return {
            "kind": "PaddedBatches",
            "sequences": len(self._inputs),
            "batch_size": self.batch_size,
            "token_budget": self.token_budget,
            "curriculum": None if c is None else [c.start, c.increment, c.maximum, _fingerprint([self._difficulties])],
            "per_sequence": self.per_sequence,
            "own_lengths": self.own_lengths,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "crc32": _fingerprint([*self._inputs, *self._targets, *(self._weights or [])]),
        }


def _difficulties(curriculum: Curriculum, sequences: Sequence[Any], targets: Sequence[Any] | None) -> Any:
    """The difficulties, (N,) floats; reject a curriculum that admits no sequence at the beginning."""
    where, measure = "PaddedBatches", curriculum.difficulty
    found = []
    for i, sequence in enumerate(sequences):
        target = None if targets is None else targets[i]
        value = sequence.shape[0] if measure is None else measure(sequence, target)
        found.append(_checks.score(where, f"curriculum's difficulty of sequences[{i}]", value))
    if min(found) > curriculum.start:
        raise ValueError(
            f"{where}: curriculum has start {curriculum.start!r}, expected at least {min(found):g}, the difficulty of "
            "the easiest sequence"
        )
    return np.array(found)


def _check_arrays(where: str, name: str, arrays: Any) -> list[Any]:
    """The arrays of a sequence of arrays of one library, in the machine's byte order; integers share one dtype."""
    arrays = _arrays.entries(where, name, arrays, "a sequence of arrays")
    named = {f"{name}[{i}]": array for i, array in enumerate(arrays)}
    _checks.given(where, **named)
    if named:
        _dispatch.namespace(where, **named)
    dtypes = {_checks.dtype_name(array) for array in arrays}
    if len(dtypes) > 1 and dtypes <= set(_checks.INTS):
        return list(_arrays.take(where, integers=named)[1:])
    return [_arrays.native(array) for array in arrays]


def _check_sequences(where: str, name: str, sequences: Any) -> list[Any]:
    """Arrays (T_i, ...) of one library, dtype and shape except for the number of steps, in the machine's byte order."""
    arrays = _check_arrays(where, name, sequences)
    if len(arrays) == 0:
        raise ValueError(f"{where}: {name} is empty, expected at least one sequence")
    for i, array in enumerate(arrays):
        if array.ndim == 0:
            raise ValueError(f"{where}: {name}[{i}] has shape (), expected (T, ...), steps first")
    _like_the_first(where, name, arrays)
    return arrays


def _like_the_first(where: str, name: str, arrays: Sequence[Any], whole: bool = False) -> None:
    """Reject arrays that differ from the first in dtype or in shape, except in the first axis unless ``whole``."""
    axis = 0 if whole else 1
    for i, array in enumerate(arrays):
        if array.dtype != arrays[0].dtype:
            raise TypeError(
                f"{where}: {name}[{i}] has dtype {_checks.dtype_name(array)}, "
                f"expected {_checks.dtype_name(arrays[0])} as {name}[0] has"
            )
        if array.ndim != arrays[0].ndim or array.shape[axis:] != arrays[0].shape[axis:]:
            steps = "" if whole else ", save for the number of steps"
            raise ValueError(
                f"{where}: {name}[{i}] has shape {tuple(array.shape)}, "
                f"expected that of {name}[0], {tuple(arrays[0].shape)}{steps}"
            )
