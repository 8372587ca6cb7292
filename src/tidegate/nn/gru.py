"""`GRU`: the layer. Parameters, initialisation and checks; the arithmetic is in `tidegate.ops.gru`."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Any, ClassVar, cast, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tidegate import backends
from tidegate.errors import ShapeError
from tidegate.gates.gates import Equations
from tidegate.gates.trace import GateTrace
from tidegate.nn import checks
from tidegate.nn.capture import as_node, not_scriptable
from tidegate.nn.kept import Kept
from tidegate.nn.layouts import RecurrentLayer, begin_with_memory, wide
from tidegate.ops.gru.backend import IN_ORDER, PREFERRED
from tidegate.ops.gru.equations import parts
from tidegate.ops.gru.extras import Extras
from tidegate.ops.gru.native.narrow import BITS


class GRU(RecurrentLayer):
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

    What `torch.nn.GRU` doesn't have; each may be combined with all others:
        reset: where the reset gate falls: "after" the product, as above and in torch, cuDNN and Keras, or "before" it,
            as in the papers: n_t = tanh(W_in x_t + b_in + W_hn (r_t ⊙ h_(t-1)) + b_hn).
        layer_norm: normalise four sums of each step: W_i(rz) x_t and W_h(rz) h_(t-1), r and z together, over their 2H values,
            W_in x_t and W_hn h_(t-1) (or W_hn (r_t ⊙ h_(t-1))) over their H: (v - mean) / sqrt(variance + 1e-5), times a
            gain, and then the biases are added (Ba et al. 2016, the layer-normalised GRU). The gains are parameters,
            weight_ln_ih_l{k} and weight_ln_hh_l{k} [3H], that start at 1.
        recurrent_dropout: p in [0, 1]. In training, h_(t-1) is multiplied on its way into W_h by a mask of zeros (with
            probability p) and 1 / (1 - p), drawn once a call for each sequence, layer and direction, and the same at every
            step (Gal and Ghahramani 2016). z_t ⊙ h_(t-1) is not masked: the memory itself stays.
        zoneout: p in [0, 1]. In training, each unit keeps its state at each step with probability p; in evaluation it
            keeps the part p of it: h_t = p h_(t-1) + (1 - p) (the h_t above) (Krueger et al. 2017).
        learn_initial_state: the state that stands for none, and after a reset, is a parameter, initial_h [layers·D, H],
            that starts at 0.
        init: "torch": uniform in ±1/√H, drawn in torch's order: one seed gives both the same weights. "orthogonal": each
            gate's W_h orthogonal, each gate's W_i Glorot uniform, biases 0.
        update_bias: how long the memory is to begin with, in steps: τ > 1 sets b_iz = ln(τ - 1) and b_hz = 0, so that with
            no other input z = 1 - 1/τ, and what is in the state falls to 1/e in about τ steps. A pair (shortest, longest) draws
            a τ for each unit, uniform: chrono initialisation (Tallec and Ollivier 2018).
        checkpoint_every: k > 0: training does not store the gates of all T steps for backward, only what it returns, the
            states, and computes the gates again, k steps at a time (native: 256 rows at a time, so that the bits stay the
            same). Memory falls from 5 values a step, unit, layer and direction to 1; a training step takes a quarter to
            a third longer. Inside the transforms of torch.func, which can't undo that, all gates are stored.

    Parameters, for each layer k and, with the ending `_reverse`, for the second direction; the gates are
    stacked in the order r, z, n:
        weight_ih_l{k} [3H, I] (above the first layer [3H, D·H]), weight_hh_l{k} [3H, H],
        bias_ih_l{k} [3H], bias_hh_l{k} [3H].
    Without `layer_norm` and `learn_initial_state` there are no others, and a `state_dict` of either layer loads into
    the other, strictly.

    Raises `TypeError` and `SettingsError` (a `ValueError`) for arguments out of their range, and
    `BackendUnavailableError` for a back end that can't run here.

    Cost: 6·H·(I + H) floating point operations for each step, row and direction of the first layer forwards,
    and twice that again backwards. The Python around it takes some 10 us a call, less than torch's own.

    Papers: Cho et al. 2014, arXiv:1406.1078; Chung et al. 2014, arXiv:1412.3555; Ba et al. 2016, arXiv:1607.06450;
    Gal and Ghahramani 2016, arXiv:1512.05287; Krueger et al. 2017, arXiv:1606.01305; Tallec and Ollivier 2018,
    arXiv:1804.11188.

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

    _quantised: ClassVar[Any]  # nn/quantised.py, which stands on this file, says which class it is

    @property
    def _all_weights(self) -> list[list[str]]:
        """The names of the weights, as `torch.nn.RNNBase` keeps them, for programs (TorchRL) that compute `torch.nn.GRU`'s
        equations from them themselves. A layer with other equations has none.
        """
        if self._extended() or self.learn_initial_state:
            raise AttributeError("_all_weights")
        return self._weight_names

    _said = (
        *RecurrentLayer._said,
        ("backend", "auto"),
        ("reset", "after"),
        ("layer_norm", False),
        ("recurrent_dropout", 0),
        ("zoneout", 0),
        ("learn_initial_state", False),
        ("init", "torch"),
        ("update_bias", None),
        ("checkpoint_every", 0),
    )

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
        reset: str = "after",
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        learn_initial_state: bool = False,
        init: str = "torch",
        update_bias: float | tuple[float, float] | None = None,
        checkpoint_every: int = 0,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        me = type(self).__name__
        backends.check(backend)  # raises now rather than at the first call
        self.backend = backend
        self.reset = checks.one_of(me, "reset", reset, ("after", "before"))
        self.layer_norm = checks.true_or_false(me, "layer_norm", layer_norm)
        self.recurrent_dropout = checks.probability(me, "recurrent_dropout", recurrent_dropout)
        self.zoneout = checks.probability(me, "zoneout", zoneout)
        self.learn_initial_state = checks.true_or_false(me, "learn_initial_state", learn_initial_state)
        self.init = checks.one_of(me, "init", init, ("torch", "orthogonal"))
        self.update_bias = checks.update_bias(me, update_bias, self.bias)
        self.checkpoint_every = (
            0 if checkpoint_every == 0 else checks.positive_int(me, "checkpoint_every", checkpoint_every)
        )
        self._warn_of_dropout()

        self._kept = Kept()
        # One list of names for each layer and direction, in the order that every back end expects.
        self._weight_names: list[list[str]] = []
        for run, width in self._runs():
            shapes = {
                f"weight_ih_{run}": (3 * self.hidden_size, width),
                f"weight_hh_{run}": (3 * self.hidden_size, self.hidden_size),
                f"bias_ih_{run}": (3 * self.hidden_size,),
                f"bias_hh_{run}": (3 * self.hidden_size,),
            }
            names = list(shapes)[: 4 if self.bias else 2]
            if self.layer_norm:
                gains = [f"weight_ln_ih_{run}", f"weight_ln_hh_{run}"]
                shapes |= dict.fromkeys(gains, (3 * self.hidden_size,))
                names += gains
            for name in names:
                empty = torch.empty(shapes[name], device=device, dtype=dtype)
                self.register_parameter(name, nn.Parameter(empty))
            self._weight_names.append(names)
        self._flat_names = [name for names in self._weight_names for name in names]
        self._register_initial_state(device, dtype)
        self._join_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in the order of `parameters()`, as `init` and `update_bias` say."""
        H, bound = self.hidden_size, 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if "weight_ln_" in name:
                nn.init.ones_(parameter)
            elif "initial_h" in name or (self.init == "orthogonal" and parameter.dim() == 1):
                nn.init.zeros_(parameter)
            elif self.init == "orthogonal":
                draw = nn.init.orthogonal_ if "weight_hh_" in name else nn.init.xavier_uniform_
                for gate in range(3):
                    draw(parameter.detach()[gate * H : (gate + 1) * H])
            else:
                nn.init.uniform_(parameter, -bound, bound)
        if self.update_bias is None:
            return
        for names in self._weight_names:
            b_iz, b_hz = (getattr(self, name).detach()[H : 2 * H] for name in names[2:4])
            begin_with_memory(b_iz, self.update_bias)
            b_hz.zero_()

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

        input: x, one of
            [T, B, I], or [B, T, I] if `batch_first`;
            [T, I], one sequence without a batch, whatever `batch_first` says;
            a `PackedSequence`, sorted or not, for sequences of different lengths;
            a nested tensor, `torch.jagged`, [B, steps, I], for the same.
        hx: h_0 [layers·D, B, H], or [layers·D, H] without a batch. None: `initial_state()`.
        lengths: [B] whole numbers, 0 ... T in any order: how many steps of each sequence there are; the rest is
            padding, which is not looked at and takes no time. A tensor (on the CPU, or with x) or a list.
        resets: [B, T] bool, whatever `batch_first` says ([T] without a batch): before a marked step the state starts
            anew, from `initial_state()`, and no gradient passes. Episodes or sessions one after the other give what each
            gives alone; backwards in time a sequence begins anew at the step before a mark. (hx is what the first piece
            starts from, unless its own first step is marked.)

        mask: [B, T] bool, whatever `batch_first` says: lengths in the words of TorchRL and Keras. True for a sequence's steps,
            False for the padding behind them.

        Returns `(output, h_n)`: output is like x, with D·H features, the last layer's h_t; packed or nested if x
        was; 0 past a sequence's length. h_n has the shape of h_0: the state of every layer and direction after its
        last step (backwards, that is step 0). With no steps (T = 0, where `torch.nn.GRU` raises, or a length of 0)
        output is empty and h_n equals h_0.

        Raises `ShapeError` (a `ValueError` and a `RuntimeError`) for a wrong shape, dtype or device, and `SettingsError`
        (a `ValueError`) for lengths beside an input that has its own.

        >>> import torch, tidegate
        >>> tidegate.GRU(3, 8)(torch.zeros(20, 4, 5))
        Traceback (most recent call last):
            ...
        tidegate.errors.ShapeError: GRU(input_size=3, hidden_size=8): x has 5 features, expected 3. \
x is [T=20, B=4, I=5] (batch_first=False).
        """
        if lengths is None and resets is None and mask is None and not self._extended():
            preferred = PREFERRED.get(self.backend)  # (None: `choose` will raise)
            quick_gru = None if preferred is None else preferred.quick_gru
            if quick_gru is not None:
                done = quick_gru(self._kept, input, hx, self._parameters, self.batch_first)
                if done is not None:
                    return done
        node = as_node(self, "forward", input, hx, lengths=lengths, resets=resets, mask=mask)
        if node is not None:
            return node
        if mask is not None:
            lengths = checks.lengths_of(self, mask, lengths, input)
        x, h_0, weights, batch_sizes, extras, kind = self._checked(input, hx, lengths, resets)
        back_end = backends.choose(self.backend, x, () if extras is None else extras.wishes(self.training))
        output, h_n = back_end.gru(
            x,
            h_0,
            weights,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
            extras=extras,
            kept=self._kept,
        )
        if kind == "batched":
            return output.transpose(0, 1) if self.batch_first else output, h_n
        return self._like(input, kind, output), self._last(input, kind, h_n)

    def trace(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Any = None,
        resets: Tensor | None = None,
    ) -> GateTrace:
        """`forward`, and the gates of every layer and direction at every step. Arguments and errors are those of
        `forward`, and so are the numbers.

        The fields of a `GateTrace` are laid out like the output, with H features, and part of the autograd graph. Cost: at
        most half as much again as `forward`; in the native back end it is what training stores in any case.

        >>> import torch, tidegate
        >>> layer = tidegate.GRU(3, 8, num_layers=2, batch_first=True)
        >>> trace = layer.trace(torch.randn(5, 7, 3))     # [B, T, I]
        >>> list(trace)
        ['l0', 'l1']
        >>> trace["l1"].update.shape                      # z_t, where 1 keeps the old state
        torch.Size([5, 7, 8])
        >>> torch.equal(trace["l1"].hidden, trace.output)
        True
        """
        if (node := as_node(self, "trace", input, hx, lengths=lengths, resets=resets)) is not None:
            return cast(GateTrace, node)
        x, h_0, weights, batch_sizes, extras, kind = self._checked(input, hx, lengths, resets)
        wishes = ["trace"] if extras is None else ["trace", *extras.wishes(self.training)]
        trace = backends.choose(self.backend, x, wishes).trace
        assert trace is not None  # (it is one of the wishes)
        output, h_n, layers = trace(
            x,
            h_0,
            weights,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
            extras=extras,
            kept=self._kept,
        )
        like = partial(self._like, input, kind)
        return GateTrace(
            like(output),
            self._last(input, kind, h_n),
            layers,
            like,
            batch_first=self.batch_first,
            lengths=extras.lengths if extras is not None and kind in ("batched", "one") else None,
            resets=resets,
            equations=self.equations,
            origin=self._origin(input, hx),
        )

    @property
    def equations(self) -> Equations:
        """How this layer makes its gates and states, as far as layers differ."""
        return Equations(cast(Any, self.reset), self.layer_norm, self.zoneout)

    def _parts(self, run: int, x: Tensor, before: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        weights: list[Any] = [wide(w) for w in self.all_weights[run]]
        if not self.bias:
            weights[2:2] = [None, None]
        x, before, r = (v.to(weights[0]) for v in (x, before, cast(Tensor, reset)))
        return parts(x, before, r, *weights, reset=self.reset)

    def _checked(
        self, input: Any, hx: Any, lengths: Any, resets: Any
    ) -> tuple[Tensor, Tensor | None, list[Tensor], Tensor | None, Extras | None, str]:
        """The arguments of a call as back ends take them, x, h_0, weights, batch_sizes and extras, and what kind of input
        it is: batched, one, packed or nested.
        """
        weights = self._weights()
        x, h_0, batch_sizes, lengths, starts, resets, fresh, kind = self._sequences(
            input, hx, lengths, resets, weights[0]
        )
        extras = None
        if lengths is not None or resets is not None or self._extended():
            extras = self._extras(lengths, starts, resets, fresh)
        return x, h_0, weights, batch_sizes, extras, kind

    def _extended(self) -> bool:
        """Whether the recurrence is another one than torch's."""
        if self.reset != "after" or self.layer_norm or self.zoneout or self.checkpoint_every:
            return True
        return self.recurrent_dropout > 0 and self.training

    def _extras(self, lengths=None, starts=None, resets=None, fresh=None) -> Extras:
        return Extras(
            lengths,
            starts,
            resets,
            fresh,
            self.reset,
            self.layer_norm,
            self.recurrent_dropout,
            self.zoneout,
            self.checkpoint_every,
        )

    def step(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step from `state` (None: `initial_state()`); for streams, where the next input isn't known yet.

        input: x_t [B, I], or [I] without a batch. state: [layers, B, H], or [layers, H] without a batch; what
        `forward` takes as hx and returns as h_n.

        Returns `(y, state)`: y [B, H] is the last layer's h_t; the new state is a value of its own: the one that was
        given is not changed. Steps give what one call of `forward` gives over the whole sequence; in the native back
        end to the bit. (In training, every call of either draws masks of its own.)

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
        preferred = PREFERRED.get(self.backend)  # (None: `choose` will raise)
        quick_step = None if preferred is None else preferred.quick_step
        if quick_step is not None and not (self.training and (self.dropout or self.zoneout or self.recurrent_dropout)):
            form = (self.reset, self.layer_norm, self.zoneout)
            done = quick_step(self._kept, input, state, self._parameters, form)
            if done is not None:
                return done
        if (node := as_node(self, "step", input, state)) is not None:
            return cast(Any, node)
        weights = self._weights()
        x_t, h = self._one_step(input, state, weights[0])
        extras = self._extras() if self._extended() else None
        y, h = backends.choose(self.backend, x_t, () if extras is None else extras.wishes(self.training)).step(
            x_t,
            h,
            weights,
            num_layers=self.num_layers,
            bias=self.bias,
            dropout=self.dropout,
            training=self.training,
            extras=extras,
            kept=self._kept,
        )
        return (y, h) if input.dim() == 2 else (y.squeeze(0), h.squeeze(1))

    # `torch.ao.quantization.quantize_dynamic(model, {GRU})` first gives each layer a qconfig, then looks up in a table by which
    # class it replaces which (docs/decisions/054), and at last takes the qconfig from what is still there.

    @property
    def qconfig(self) -> Any:
        if "_qconfig" not in self.__dict__:
            raise AttributeError("qconfig")
        return self.__dict__["_qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        self.__dict__["_qconfig"] = value
        if value is not None:
            from torch.ao.quantization.quantization_mappings import get_default_dynamic_quant_module_mappings

            get_default_dynamic_quant_module_mappings()[GRU] = GRU._quantised

    @qconfig.deleter
    def qconfig(self) -> None:
        if self.__dict__.pop("_qconfig", None) is not None:
            warnings.warn(
                "torch.ao.quantization left a tidegate.GRU in float32: it replaces the layers inside of a model, in quantize_dynamic alone. "
                "tidegate.quantize(model, 'int8') takes a layer and a model.",
                stacklevel=3,
            )

    def flatten_parameters(self) -> None:
        """Do nothing. It is here for code that calls it on `torch.nn.GRU`.

        cuDNN wants the weights in one block of memory. This layer sees to that by itself whenever it is made,
        moved, converted, loaded, copied or unpickled.
        """

    def __prepare_scriptable__(self) -> Any:
        raise not_scriptable(
            self,
            "In a copy of the model put tidegate.convert.to_torch(layer), a torch.nn.GRU with the same weights, in its place, "
            "or use torch.jit.trace.",
        )

    def _join_weights(self) -> None:
        own: dict[str, Any] = self._parameters
        if self.layer_norm or not all(isinstance(own.get(name), Tensor) for name in self._flat_names):
            return
        for back_end in IN_ORDER:
            if back_end.join_weights is not None:
                back_end.join_weights(
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
        for weights in BITS:
            if f"{prefix}weight_ih_l0_{weights}" in state_dict:
                raise ShapeError(
                    f"{type(self).__name__}(input_size={self.input_size}, hidden_size={self.hidden_size}): the state dict is that of a "
                    f"quantised layer, with {weights} weights. Load it into tidegate.nn.QuantisedGRU(..., weights={weights!r})."
                )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        if local_metadata.get("assign_to_params_buffers"):
            self._join_weights()

    def __setstate__(self, state):
        super().__setstate__(state)
        self._join_weights()
