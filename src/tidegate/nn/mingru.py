"""`MinGRU`: the layer. Parameters, initialisation and checks; the arithmetic is in `tidegate.ops.mingru`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tidegate.gates.gates import Equations
from tidegate.gates.trace import GateTrace
from tidegate.nn import checks
from tidegate.nn.capture import as_node, not_scriptable
from tidegate.nn.layouts import RecurrentLayer, begin_with_memory, wide
from tidegate.ops import mingru
from tidegate.ops.affine import affine


class MinGRU(RecurrentLayer):
    """A stack of minGRU layers over a sequence: gated recurrent layers whose gates don't read the state.

        k_t = W_z x_t + b_z
        v_t = W_h x_t + b_h
        z_t = σ(k_t)                              update gate
        n_t = g(v_t)                              candidate, above 0
        h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_(t-1)

    with g(v) = v + 1/2 for v ≥ 0 and σ(v) for v < 0. **z = 1 keeps the old state**, as in `GRU`; the z of the paper is 1
    minus ours. From h_0 ≥ 0 every state is ≥ 0, and none is above max(n_1 ... n_t, h_0); candidates have no bound.

    There is no reset gate, and no gate reads the state: what a layer writes depends on the step's x alone. So all steps
    are trained at once, in about 2 log2(T) operations in place of T; to let a gate see the past, stack a second layer.

    Axes: T steps, B batch, I = `input_size`, H = `hidden_size`, D directions (2 if `bidirectional`, else 1).

    Arguments (those of `GRU`; `device` and everything after it by keyword only):
        input_size: I ≥ 1, the features of a step.
        hidden_size: H ≥ 1, the units of a layer and direction.
        num_layers: layers on top of each other, ≥ 1; a layer reads the output of the one below.
        bias: whether the b are there.
        batch_first: x and output are [B, T, ·] in place of [T, B, ·]. The states are [·, B, H] all the same.
        dropout: in [0, 1], the probability with which a value between two layers is zeroed in training; it
            needs a second layer, and a warning says so where there is none.
        bidirectional: a second run over the steps from the last to the first; its outputs come second.
        device, dtype: of the parameters.
        learn_initial_state: the state that stands for none, and after a reset, is a parameter, initial_h [layers·D, H],
            that starts at 0. It may become negative.
        update_bias: how long the memory is to begin with, in steps: τ > 1 sets b_z = ln(τ - 1), so that with no other
            input z = 1 - 1/τ, and what is in the state falls to 1/e in about τ steps. A pair (shortest, longest) draws a
            τ for each unit, uniform: chrono initialisation (Tallec and Ollivier 2018).

    Parameters, for each layer k and, with the ending `_reverse`, for the second direction; stacked in the order z, n:
        weight_ih_l{k} [2H, I] (above the first layer [2H, D·H]), bias_ih_l{k} [2H].
    They start uniform in ±1/√I (above the first layer ±1/√(D·H)), as those of `torch.nn.Linear`.

    Raises `TypeError` and `SettingsError` (a `ValueError`) for arguments out of their range.

    Cost: 4·H·I floating point operations for each step, row and direction of the first layer forwards, and twice that
    again backwards; the recurrence itself is about 4·H. Float16 and bfloat16 are computed in float32.

    Papers: Feng et al. 2024, arXiv:2410.01201; Tallec and Ollivier 2018, arXiv:1804.11188.

    >>> import torch, tidegate
    >>> layer = tidegate.MinGRU(10, 20, num_layers=2, batch_first=True)
    >>> x = torch.randn(3, 7, 10)                     # [B, T, I]
    >>> output, h_n = layer(x)
    >>> output.shape, h_n.shape                       # [B, T, D·H], [layers·D, B, H]
    (torch.Size([3, 7, 20]), torch.Size([2, 3, 20]))
    >>> first, h = layer(x[:, :4])                    # the same in two parts: the state is handed on
    >>> second, h = layer(x[:, 4:], h)
    >>> torch.allclose(torch.cat([first, second], dim=1), output, atol=1e-6)
    True
    """

    _said = (*RecurrentLayer._said, ("learn_initial_state", False), ("update_bias", None))

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        learn_initial_state: bool = False,
        update_bias: float | tuple[float, float] | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        me = type(self).__name__
        self.learn_initial_state = checks.true_or_false(me, "learn_initial_state", learn_initial_state)
        self.update_bias = checks.update_bias(me, update_bias, self.bias)
        self._warn_of_dropout()
        self._weight_names = []
        for run, width in self._runs():
            shapes: dict[str, tuple[int, ...]] = {f"weight_ih_{run}": (2 * self.hidden_size, width)}
            if self.bias:
                shapes[f"bias_ih_{run}"] = (2 * self.hidden_size,)
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
            self._weight_names.append([*shapes])
        self._flat_names = [name for names in self._weight_names for name in names]
        self._register_initial_state(device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in the order of `parameters()`, and set what `update_bias` says."""
        for weights in self.all_weights:
            bound = 1 / math.sqrt(weights[0].size(1))
            for parameter in weights:
                nn.init.uniform_(parameter, -bound, bound)
            if self.update_bias is not None:
                begin_with_memory(weights[1].detach()[: self.hidden_size], self.update_bias)
        if self.learn_initial_state:
            nn.init.zeros_(self.get_parameter("initial_h"))

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Any = None,
        resets: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, *, resets: Tensor | None = None
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input, hx=None, *, lengths=None, resets=None, mask=None):
        """Run the stack over `input` from the state `hx`; return every step's output and the last states.

        Arguments, results and errors are those of `GRU.forward`: x [T, B, I], [B, T, I] if `batch_first`, [T, I], a
        `PackedSequence` or a jagged nested tensor; hx h_0 [layers·D, B, H], of any sign; lengths [B]; resets [B, T]; mask [B, T].

        With gradients all steps are computed at once, without them (`torch.no_grad()`) one after the other. Then, with
        the native back end, the bits of a sequence's outputs depend on nothing but its own x and h_0: in a batch, in
        pieces and step by step they are the same.

        >>> import torch, tidegate
        >>> tidegate.MinGRU(3, 8)(torch.zeros(20, 4, 5))
        Traceback (most recent call last):
            ...
        tidegate.errors.ShapeError: MinGRU(input_size=3, hidden_size=8): x has 5 features, expected 3. \
x is [T=20, B=4, I=5] (batch_first=False).
        """
        node = as_node(self, "forward", input, hx, lengths=lengths, resets=resets, mask=mask)
        if node is not None:
            return node
        if mask is not None:
            lengths = checks.lengths_of(self, mask, lengths, input)
        weights = self._weights()
        x, h_0, batch_sizes, lengths, starts, marks, fresh, kind = self._sequences(
            input, hx, lengths, resets, weights[0]
        )
        if kind in ("packed", "nested"):
            x, lengths, rows_of = _padded(x, batch_sizes, lengths, starts)
        else:
            rows_of = _unchanged
        output, h_n = mingru.mingru(
            x,
            h_0,
            weights,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            lengths=lengths,
            resets=marks,
            fresh=fresh,
        )
        return self._like(input, kind, rows_of(output)), self._last(input, kind, h_n)

    def trace(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Any = None,
        resets: Tensor | None = None,
    ) -> GateTrace:
        """`forward`, and the gates of every layer and direction at every step: `update`, `candidate` and `hidden`; `reset`
        and `recurrent`, which a minGRU doesn't have, are None. Arguments and errors are those of `forward`, and so are the
        numbers.

        >>> import torch, tidegate
        >>> layer = tidegate.MinGRU(3, 8, batch_first=True)
        >>> trace = layer.trace(torch.randn(5, 7, 3))     # [B, T, I]
        >>> trace["l0"].update.shape                      # z_t, where 1 keeps the old state
        torch.Size([5, 7, 8])
        >>> print(trace["l0"].reset)
        None
        """
        if (node := as_node(self, "trace", input, hx, lengths=lengths, resets=resets)) is not None:
            return cast(GateTrace, node)
        weights = self._weights()
        x, h_0, batch_sizes, lengths, starts, marks, fresh, kind = self._sequences(
            input, hx, lengths, resets, weights[0]
        )
        if kind in ("packed", "nested"):
            x, lengths, rows_of = _padded(x, batch_sizes, lengths, starts)
        else:
            rows_of = _unchanged
        output, h_n, layers = mingru.trace(
            x,
            h_0,
            weights,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            lengths=lengths,
            resets=marks,
            fresh=fresh,
        )
        like = partial(self._like, input, kind)
        return GateTrace(
            like(rows_of(output)),
            self._last(input, kind, h_n),
            [
                (rows_of(states), torch.stack([rows_of(torch.stack([g.update, g.candidate], dim=-2)) for g in gates]))
                for states, gates in layers
            ],
            like,
            fields=("update", "candidate"),
            batch_first=self.batch_first,
            lengths=lengths if kind in ("batched", "one") else None,
            resets=resets,
            equations=self.equations,
            origin=self._origin(input, hx),
        )

    @property
    def equations(self) -> Equations:
        """How this layer makes its gates and states, as far as layers differ."""
        return Equations(reset=None, candidate="g")

    def _parts(self, run: int, x: Tensor, before: Tensor, reset: Tensor | None) -> tuple[Tensor, None]:
        w, *bias = (wide(w) for w in self.all_weights[run])
        return affine(x.to(w), w, bias[0] if bias else w.new_zeros(w.size(0))), None

    def step(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step from `state` (None: `initial_state()`); for streams, where the next input isn't known yet.

        Arguments, results and errors are those of `GRU.step`: x_t [B, I] or [I]; state [layers, B, H] or [layers, H].
        Without gradients steps give what one call of `forward` gives over the whole sequence, to the bit.

        >>> import torch, tidegate
        >>> layer = tidegate.MinGRU(3, 8)
        >>> x, state = torch.randn(5, 1, 3), None         # [T, B, I]
        >>> with torch.no_grad():
        ...     for x_t in x:
        ...         y, state = layer.step(x_t, state)
        ...     torch.equal(y, layer(x)[0][-1])
        True
        """
        if (node := as_node(self, "step", input, state)) is not None:
            return cast(Any, node)
        weights = self._weights()
        x_t, h = self._one_step(input, state, weights[0])
        y, h = mingru.step(
            x_t,
            h,
            weights,
            num_layers=self.num_layers,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
        )
        return (y, h) if input.dim() == 2 else (y.squeeze(0), h.squeeze(1))

    def __prepare_scriptable__(self) -> Any:
        raise not_scriptable(self, "torch.jit.trace takes it for one number of steps.")


def _unchanged(v: Tensor) -> Tensor:
    return v


def _padded(
    x: Tensor,  # [rows, I]
    batch_sizes: Tensor | None,  # [T]: x is packed
    lengths: Any,  # [B], with starts: x is nested
    starts: Any,  # [B]
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:  # x [T, B, I]; lengths [B]; from [T, B, ...] to [rows, ...]
    """Packed or nested sequences with padding: where no step needs the one before, it costs little."""
    if batch_sizes is not None:
        there = torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)  # [T, B]
        lengths = there.sum(0)
        rows = torch.arange(x.size(0))
    else:
        T = int(lengths.max()) if len(lengths) else 0
        there = torch.arange(T).unsqueeze(1) < lengths
        t, b = there.nonzero(as_tuple=True)
        rows = starts[b] + t
    places = there.flatten().nonzero().squeeze(1).to(x.device)
    rows = rows.to(x.device)

    def rows_of(v: Tensor) -> Tensor:
        return v.new_zeros(x.size(0), *v.shape[2:]).index_copy(0, rows, v.flatten(0, 1)[places])

    grid = x.new_zeros(there.numel(), x.size(-1)).index_copy(0, places, x[rows])
    return grid.view(*there.shape, -1), lengths, rows_of
