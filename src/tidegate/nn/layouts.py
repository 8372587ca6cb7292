"""What the layers over a sequence share: their directions and names, and the layouts that a sequence may come in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tidegate.errors import SettingsError
from tidegate.gates.trace import Origin
from tidegate.nn import checks

# x [T, B, I], packed and nested [rows, I]
# h_0 [layers * D, B, H]; None: zeros
# batch_sizes [T], packed only
# lengths [B], int64, on the CPU; None: all T
# starts [B], nested only: where each sequence starts in x
# resets [T, B], bool; packed: in the order of the pack
# fresh [layers * D, B, H], the state after a reset; None: zeros
# what kind of input it is: batched, one (without a batch), packed or nested
Sequences = tuple[Tensor, Tensor | None, Any, Any, Any, Any, Tensor | None, str]
"""The arguments of a call, checked, and laid out as operators take them. (A tuple: a NamedTuple takes half a microsecond to make.)"""


class RecurrentLayer(nn.Module):
    """A stack of recurrent layers over a sequence, in one direction or both. A subclass registers the parameters, names
    them in `_weight_names` and `_flat_names`, and computes.
    """

    _said: ClassVar[tuple[tuple[str, Any], ...]] = (
        ("num_layers", 1),
        ("bias", True),
        ("batch_first", False),
        ("dropout", 0),
        ("bidirectional", False),
    )
    """The arguments that `repr` shows where they are not the default, given here."""

    learn_initial_state: bool
    _weight_names: list[list[str]]  # for each layer and direction, in the order that operators expect
    _flat_names: list[str]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
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

    def _warn_of_dropout(self) -> None:
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                f"{type(self).__name__}: dropout={self.dropout} has no effect with num_layers=1; it falls between layers.",
                stacklevel=3,
            )

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _runs(self) -> Iterator[tuple[str, int]]:
        """Of every layer and direction the ending of its parameters' names, and how many features it reads."""
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else self._directions * self.hidden_size
            for ending in ("", "_reverse")[: self._directions]:
                yield f"l{layer}{ending}", width

    def _register_initial_state(self, device: Any, dtype: torch.dtype | None) -> None:
        if self.learn_initial_state:
            empty = torch.empty(self.num_layers * self._directions, self.hidden_size, device=device, dtype=dtype)
            self.register_parameter("initial_h", nn.Parameter(empty))

    def initial_state(self, batch_size: int | None = None) -> Tensor:
        """The state that `hx=None` stands for, [layers·D, B, H], or [layers·D, H] for None: zeros, or, with
        `learn_initial_state`, the parameter.

        >>> import tidegate
        >>> tidegate.GRU(3, 8, num_layers=2).initial_state(5).shape
        torch.Size([2, 5, 8])
        """
        B = 1 if batch_size is None else batch_size
        if self.learn_initial_state:
            state = cast(Tensor, self.initial_h).unsqueeze(1).expand(-1, B, -1)
        else:
            state = self._weights()[0].new_zeros(self.num_layers * self._directions, B, self.hidden_size)
        return state.squeeze(1) if batch_size is None else state

    def _origin(self, input: Any, hx: Tensor | None) -> Origin:
        """What `GateTrace` needs to find the parts of its gates. What drops values in training drops those between layers, and
        `recurrent_dropout`, where a layer has it, the state's.
        """
        names = ["recurrent_dropout"] if getattr(self, "recurrent_dropout", 0) else []
        if self.dropout and self.num_layers > 1:
            names.append("dropout")
        return Origin(input, hx, self.initial_state(), self._parts, " and ".join(names) if self.training else "")

    def _parts(self, run: int, x: Tensor, before: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the input and what the state say to the gates of a layer and direction: see `gates.trace.Origin`."""
        raise NotImplementedError

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters, a list for each layer and direction: weight_ih[, weight_hh][, bias_ih[, bias_hh]][, weight_ln_ih,
        weight_ln_hh], those that the layer has."""
        return [[getattr(self, name) for name in names] for names in self._weight_names]

    def _weights(self) -> list[Tensor]:
        """The weights as they are now: parametrised, pruned or swapped ones included, so they are looked up
        each time.

        Plain parameters are read straight from their dictionary: `getattr` on a Module takes ten times as long.
        """
        own: dict[str, Any] = self._parameters
        names = [*own]
        if names == self._flat_names:
            return [*own.values()]
        if self.learn_initial_state and names[:-1] == self._flat_names:
            return [*own.values()][:-1]
        return [own[name] if name in own else getattr(self, name) for name in self._flat_names]

    def extra_repr(self) -> str:
        said = [f"{self.input_size}, {self.hidden_size}"]
        for name, default in self._said:
            value = getattr(self, name)
            if value != default:
                said.append(f"{name}={value!r}")
        return ", ".join(said)

    # --- a call -----------------------------------------------------------------------------------------------

    def _sequences(self, input: Any, hx: Any, lengths: Any, resets: Any, weight: Tensor) -> Sequences:
        """The arguments of a call. Everything that can be wrong with them is reported here."""
        x = input
        batch_sizes: Any = None
        starts = None
        kind = "batched"
        if isinstance(input, PackedSequence):
            x, batch_sizes, kind = input.data, input.batch_sizes, "packed"
        axes = x.dim() if isinstance(x, Tensor) else 0
        if axes and x.is_nested:
            kind = "nested"
            good = axes == 3 and x.layout == torch.jagged
        else:
            good = axes == 2 or (axes == 3 and kind == "batched")
            if axes == 2 and kind == "batched":
                kind = "one"  # one sequence without a batch
        if not (good and x.size(-1) == self.input_size and checks.fits(x, weight)):
            raise checks.sequence_error(self, input, weight)

        if kind == "one":
            x = x.unsqueeze(1)
        elif kind == "batched":
            x = x.transpose(0, 1) if self.batch_first else x
        elif kind == "packed" and not torch.compiler.is_compiling():
            checks.batch_sizes(self, batch_sizes, x)
        if lengths is not None:
            lengths = checks.lengths(self, lengths, x, kind)
        elif kind == "nested":
            x, starts, lengths = _ends(x)

        h_0, fresh = hx, None
        if hx is not None or self.learn_initial_state or resets is not None:
            runs = self.num_layers * self._directions
            B = int(batch_sizes[0]) if kind == "packed" else x.size(1) if kind != "nested" else len(lengths)
            if hx is not None:
                shape = (runs, self.hidden_size) if kind == "one" else (runs, B, self.hidden_size)
                if not (isinstance(hx, Tensor) and hx.shape == shape and checks.fits(hx, weight)):
                    names = "layers*D H" if kind == "one" else "layers*D B H"
                    raise checks.state_error(self, hx, shape, names, weight)
                h_0 = hx.unsqueeze(1) if kind == "one" else hx
            elif self.learn_initial_state:
                h_0 = self.initial_state(B)
            if resets is not None:
                T = len(batch_sizes) if kind == "packed" else x.size(0)
                if kind == "nested":
                    T = int(lengths.max()) if B else 0
                resets = checks.resets(self, resets, T, B, kind == "one", x)
                fresh = self.initial_state(B) if self.learn_initial_state else None
            order = input.sorted_indices if kind == "packed" else None
            if order is not None:
                h_0 = None if h_0 is None else h_0.index_select(1, order)
                resets = None if resets is None else resets.index_select(1, order)
        return x, h_0, batch_sizes, lengths, starts, resets, fresh, kind

    def _like(self, input: Any, kind: str, v: Tensor) -> Any:
        """A result with a vector for each step, in the layout of the input."""
        if kind == "packed":
            return PackedSequence(v, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
        if kind == "nested":
            return torch.nested.nested_tensor_from_jagged(v, input.offsets(), input.lengths())
        if kind == "one":
            return v.squeeze(1)
        return v.transpose(0, 1) if self.batch_first else v

    def _last(self, input: Any, kind: str, h_n: Tensor) -> Tensor:
        if kind == "packed" and input.unsorted_indices is not None:
            return h_n.index_select(1, input.unsorted_indices)
        return h_n.squeeze(1) if kind == "one" else h_n

    def _one_step(self, input: Any, state: Any, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The arguments of `step` with a batch: x_t [B, I] and the state [layers, B, H]; None: zeros."""
        if self.bidirectional:
            raise SettingsError(
                f"{type(self).__name__}: step() runs forwards in time, and with bidirectional=True half of the layer "
                "begins at the end of the sequence. Use bidirectional=False, or forward() over whole sequences."
            )
        axes = input.dim() if isinstance(input, Tensor) else 0
        if not (axes in (1, 2) and input.size(-1) == self.input_size and checks.fits(input, weight)):
            raise checks.cell_input_error(self, input, weight)
        x_t = input if axes == 2 else input.unsqueeze(0)
        h = state
        if h is not None:
            one = axes == 1
            H, layers = self.hidden_size, self.num_layers
            shape = (layers, H) if one else (layers, x_t.size(0), H)
            if not (isinstance(h, Tensor) and h.shape == shape and checks.fits(h, weight)):
                raise checks.state_error(self, h, shape, "layers H" if one else "layers B H", weight)
            if one:
                h = h.unsqueeze(1)
        elif self.learn_initial_state:
            h = self.initial_state(x_t.size(0))
        return x_t, h


def _ends(x: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Of a jagged nested tensor: its rows [rows, I], and where each sequence starts and how long it is, on the CPU."""
    offsets, lengths = x.offsets(), x.lengths()
    return (
        x.values(),
        offsets[:-1].to("cpu", torch.int64),
        (offsets.diff() if lengths is None else lengths).to("cpu", torch.int64),
    )


def begin_with_memory(b_z: Tensor, steps: float | tuple[float, float]) -> None:
    """Set the bias of an update gate, detached, to the argument `update_bias` of a layer: a memory of so many steps."""
    if isinstance(steps, tuple):
        b_z.uniform_(*steps).sub_(1).log_()
    else:
        b_z.fill_(math.log(steps - 1))


def wide(weight: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, in which they are computed."""
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
