"""`GRU`: the layer. Parameters, initialisation and checks; the arithmetic is in `tidegate.ops.gru`."""

from __future__ import annotations

import math
import warnings
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tidegate import backends
from tidegate.errors import SettingsError
from tidegate.nn import checks
from tidegate.nn.kept import Kept
from tidegate.ops.gru import native_cpu, torch_aten


class GRU(nn.Module):
    """A stack of gated recurrent layers over a sequence; a drop-in for `torch.nn.GRU`.

        r_t = σ(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)            reset gate
        z_t = σ(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)            update gate
        n_t = tanh(W_in x_t + b_in + r_t ⊙ (W_hn h_(t-1) + b_hn)) candidate
        h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_(t-1)

    **z = 1 keeps the old state**, z = 0 replaces it by the candidate. Every unit obeys |h_t| ≤ max(1, |h_0|).

    Axes: T steps, B batch, I = `input_size`, H = `hidden_size`, D directions (2 if `bidirectional`, else 1).

    Arguments (names, order and defaults are torch's; `device` and everything after it by keyword only):
        input_size: I ≥ 1, the features of a step.
        hidden_size: H ≥ 1, the units of a layer and direction.
        num_layers: layers on top of each other, ≥ 1; a layer reads the output of the one below.
        bias: whether the b are there.
        batch_first: x and output are [B, T, ·] in place of [T, B, ·]. The states are [·, B, H] all the same.
        dropout: in [0, 1], the probability with which a value between two layers is zeroed in training; it
            needs a second layer, and a warning says so where there is none.
        bidirectional: a second run over the steps from the last to the first; its outputs come second.
        device, dtype: of the parameters.
        backend: which implementation runs: "auto", "native", "torch", "reference". A back end asked for by
            name runs or raises; `tidegate.backends.explain()` tells what "auto" takes.

    Parameters, for each layer k and, with the ending `_reverse`, for the second direction; the gates are
    stacked in the order r, z, n:
        weight_ih_l{k} [3H, I] (above the first layer [3H, D·H]), weight_hh_l{k} [3H, H],
        bias_ih_l{k} [3H], bias_hh_l{k} [3H].
    They start uniform in ±1/√H, drawn in torch's order: one seed gives both the same weights. A `state_dict`
    of either loads into the other, strictly.

    Raises `TypeError` and `SettingsError` (a `ValueError`) for arguments out of their range, and
    `BackendUnavailableError` for a back end that can't run here.

    Cost: 6·H·(I + H) floating point operations for each step, row and direction of the first layer forwards,
    and twice that again backwards. The Python around it takes some 10 us a call, less than torch's own.

    Papers: Cho et al. 2014, arXiv:1406.1078; Chung et al. 2014, arXiv:1412.3555. There the reset gate falls
    on the state ahead of the product; like torch and cuDNN this layer lets it fall on the product, which is
    faster.

    >>> import torch, tidegate
    >>> layer = tidegate.GRU(10, 20, num_layers=2, batch_first=True)
    >>> x = torch.randn(3, 7, 10)                     # [B, T, I]
    >>> output, h_n = layer(x)
    >>> output.shape, h_n.shape                       # [B, T, D·H], [layers·D, B, H]
    (torch.Size([3, 7, 20]), torch.Size([2, 3, 20]))
    >>> first, h = layer(x[:, :4])                    # the same in two parts: the state is handed on
    >>> second, h = layer(x[:, 4:], h)
    >>> torch.allclose(torch.cat([first, second], dim=1), output, atol=1e-6)
    True
    >>> other = torch.nn.GRU(10, 20, num_layers=2, batch_first=True)
    >>> other.load_state_dict(layer.state_dict())
    <All keys matched successfully>
    """

    # What code written for torch.nn.RNNBase asks about; fixed for a GRU.
    mode = "GRU"
    proj_size = 0

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
        backend: str = "auto",
    ) -> None:
        super().__init__()
        me = type(self).__name__
        self.input_size = checks.positive_int(me, "input_size", input_size)
        self.hidden_size = checks.positive_int(me, "hidden_size", hidden_size)
        self.num_layers = checks.positive_int(me, "num_layers", num_layers)
        self.bias = checks.true_or_false(me, "bias", bias)
        self.batch_first = checks.true_or_false(me, "batch_first", batch_first)
        self.dropout = checks.probability(me, "dropout", dropout)
        self.bidirectional = checks.true_or_false(me, "bidirectional", bidirectional)
        backends.check(backend)  # raises now rather than at the first call
        self.backend = backend
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                f"{me}: dropout={self.dropout} has no effect with num_layers=1; it falls between layers.",
                stacklevel=2,
            )

        self._kept = Kept()
        # One list of names for each layer and direction, in the order that every back end expects.
        self._weight_names: list[list[str]] = []
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else self._directions * self.hidden_size
            for ending in ("", "_reverse")[: self._directions]:
                shapes = {
                    f"weight_ih_l{layer}{ending}": (3 * self.hidden_size, width),
                    f"weight_hh_l{layer}{ending}": (3 * self.hidden_size, self.hidden_size),
                    f"bias_ih_l{layer}{ending}": (3 * self.hidden_size,),
                    f"bias_hh_l{layer}{ending}": (3 * self.hidden_size,),
                }
                names = list(shapes)[: 4 if self.bias else 2]
                for name in names:
                    empty = torch.empty(shapes[name], device=device, dtype=dtype)
                    self.register_parameter(name, nn.Parameter(empty))
                self._weight_names.append(names)
        self._flat_names = [name for names in self._weight_names for name in names]
        self._join_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform in ±1/√H, in the order of `parameters()`."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

    def forward(self, input, hx=None):
        """Run the stack over `input` from the state `hx`; return every step's output and the last states.

        input: x, one of
            [T, B, I], or [B, T, I] if `batch_first`;
            [T, I], one sequence without a batch, whatever `batch_first` says;
            a `PackedSequence`, sorted or not, for sequences of different lengths.
        hx: h_0 [layers·D, B, H], or [layers·D, H] without a batch. None: zeros.

        Returns `(output, h_n)`: output is like x, with D·H features, the last layer's h_t; packed if x was.
        h_n has the shape of h_0: the state of every layer and direction after its last step (backwards, that
        is step 0). With no steps (T = 0), where `torch.nn.GRU` raises, output is empty and h_n equals h_0.

        Raises `ShapeError` (a `ValueError` and a `RuntimeError`) for a wrong shape, dtype or device.

        >>> import torch, tidegate
        >>> tidegate.GRU(3, 8)(torch.zeros(20, 4, 5))
        Traceback (most recent call last):
            ...
        tidegate.errors.ShapeError: GRU(input_size=3, hidden_size=8): x has 5 features, expected 3. \
x is [T=20, B=4, I=5] (batch_first=False).
        """
        weights = self._weights()
        packed = isinstance(input, PackedSequence)
        x = input.data if packed else input

        axes = x.dim() if isinstance(x, Tensor) else 0
        if not (
            (axes == 2 or (axes == 3 and not packed)) and x.size(-1) == self.input_size and checks.fits(x, weights[0])
        ):
            raise checks.sequence_error(self, input, weights[0])

        runs = self.num_layers * self._directions
        one = axes == 2 and not packed  # one sequence without a batch
        if packed:
            batch_sizes = input.batch_sizes
            if not torch.compiler.is_compiling():
                checks.batch_sizes(self, batch_sizes, x)
        else:
            batch_sizes = None
            if one:
                x = x.unsqueeze(1)
            elif self.batch_first:
                x = x.transpose(0, 1)

        if hx is None:
            h_0 = None
        else:
            B = int(batch_sizes[0]) if packed else x.size(1)
            shape = (runs, self.hidden_size) if one else (runs, B, self.hidden_size)
            if not (isinstance(hx, Tensor) and hx.shape == shape and checks.fits(hx, weights[0])):
                names = "layers*D H" if one else "layers*D B H"
                raise checks.state_error(self, hx, shape, names, weights[0])
            h_0 = hx.unsqueeze(1) if one else hx
            if packed and input.sorted_indices is not None:
                h_0 = h_0.index_select(1, input.sorted_indices)

        output, h_n = backends.choose(self.backend, x).gru(
            x,
            h_0,
            weights,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
            kept=self._kept,
        )

        if packed:
            if input.unsorted_indices is not None:
                h_n = h_n.index_select(1, input.unsorted_indices)
            return PackedSequence(output, batch_sizes, input.sorted_indices, input.unsorted_indices), h_n
        if one:
            return output.squeeze(1), h_n.squeeze(1)
        if self.batch_first:
            output = output.transpose(0, 1)
        return output, h_n

    def step(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step from `state` (None: zeros); for streams, where the next input isn't known yet.

        input: x_t [B, I], or [I] without a batch. state: [layers, B, H], or [layers, H] without a batch; what
        `forward` takes as hx and returns as h_n.

        Returns `(y, state)`: y [B, H] is the last layer's h_t; the new state is a value of its own: the one that was
        given is not changed. Steps give what one call of `forward` gives over the whole sequence; in the native back
        end to the bit.

        Raises `ShapeError` (a `ValueError` and a `RuntimeError`) for a wrong shape, dtype or device, and
        `SettingsError` (a `ValueError`) if `bidirectional`: the second direction begins at the end.

        Cost: without gradients (`torch.no_grad()`) a step of a small layer takes some microseconds.

        >>> import torch, tidegate
        >>> layer = tidegate.GRU(3, 8)
        >>> x, state = torch.randn(5, 1, 3), None         # [T, B, I]
        >>> for x_t in x:
        ...     y, state = layer.step(x_t, state)
        >>> torch.allclose(y, layer(x)[0][-1], atol=1e-6)
        True
        """
        if self.backend in ("auto", "native") and not (self.training and self.dropout):
            done = native_cpu.quick_step(self._kept, input, state, self._parameters)
            if done is not None:
                return done
        weights = self._weights()
        if self.bidirectional:
            raise SettingsError(
                f"{type(self).__name__}: step() runs forwards in time, and with bidirectional=True half of the layer "
                "begins at the end of the sequence. Use bidirectional=False, or forward() over whole sequences."
            )
        axes = input.dim() if isinstance(input, Tensor) else 0
        if not (axes in (1, 2) and input.size(-1) == self.input_size and checks.fits(input, weights[0])):
            raise checks.cell_input_error(self, input, weights[0])
        x_t = input if axes == 2 else input.unsqueeze(0)
        h = state
        if h is not None:
            one = axes == 1
            H, layers = self.hidden_size, self.num_layers
            shape = (layers, H) if one else (layers, x_t.size(0), H)
            if not (isinstance(h, Tensor) and h.shape == shape and checks.fits(h, weights[0])):
                raise checks.state_error(self, h, shape, "layers H" if one else "layers B H", weights[0])
            if one:
                h = h.unsqueeze(1)
        y, h = backends.choose(self.backend, x_t).step(
            x_t,
            h,
            weights,
            num_layers=self.num_layers,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            kept=self._kept,
        )
        return (y, h) if axes == 2 else (y.squeeze(0), h.squeeze(1))

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters, a list for each layer and direction: weight_ih, weight_hh[, bias_ih, bias_hh]."""
        return [[getattr(self, name) for name in names] for names in self._weight_names]

    def flatten_parameters(self) -> None:
        """Do nothing. It is here for code that calls it on `torch.nn.GRU`.

        cuDNN wants the weights in one block of memory. This layer sees to that by itself whenever it is made,
        moved, converted, loaded, copied or unpickled.
        """

    def extra_repr(self) -> str:
        said = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0),
            ("bidirectional", False),
            ("backend", "auto"),
        ):
            value = getattr(self, name)
            if value != default:
                said.append(f"{name}={value!r}")
        return ", ".join(said)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _weights(self) -> list[Tensor]:
        """The weights as they are now: parametrised, pruned or swapped ones included, so they are looked up
        each time.

        Plain parameters are read straight from their dictionary: `getattr` on a Module takes ten times as long.
        """
        own: dict[str, Any] = self._parameters
        if [*own] == self._flat_names:
            return [*own.values()]
        return [own[name] if name in own else getattr(self, name) for name in self._flat_names]

    def _join_weights(self) -> None:
        own: dict[str, Any] = self._parameters
        if all(isinstance(own.get(name), Tensor) for name in self._flat_names):
            torch_aten.join_weights(
                [own[name] for name in self._flat_names],
                input_size=self.input_size,
                hidden_size=self.hidden_size,
                num_layers=self.num_layers,
                bidirectional=self.bidirectional,
                bias=self.bias,
            )

    # How weights get new memory: .to() and its kin; load_state_dict(assign=True); copying and unpickling.

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._join_weights()
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args, **kwargs):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        if local_metadata.get("assign_to_params_buffers"):
            self._join_weights()

    def __setstate__(self, state):
        super().__setstate__(state)
        self._join_weights()
