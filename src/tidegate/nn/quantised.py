"""`quantize`, and `QuantisedGRU`: a GRU whose weights are numbers of 8 bits, or bfloat16. Buffers and checks; the arithmetic is
in `tidegate.ops.gru.native.narrow`.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, is_grad_enabled, nn
from torch._C import _get_tracing_state as tracing
from torch.nn.utils.rnn import PackedSequence

from tidegate.errors import BackendUnavailableError, SettingsError, ShapeError, of_type
from tidegate.nn import checks
from tidegate.nn.capture import as_node
from tidegate.nn.cell import GRUCell
from tidegate.nn.gru import GRU
from tidegate.nn.kept import Kept
from tidegate.nn.layouts import RecurrentLayer
from tidegate.ops.gru import native
from tidegate.ops.gru.extras import Extras
from tidegate.ops.gru.modes import functorch_level, not_compiled
from tidegate.ops.gru.native import narrow
from tidegate.ops.rounding import quantise, widened

KINDS = tuple(narrow.BITS)
_PLAIN = (Tensor, nn.Parameter)
_TORCHS = (nn.RNNBase, nn.RNNCellBase)


def quantize(given: Any, weights: str) -> Any:
    """A copy of a layer, a model or a run with its GRUs' weights in 8 bits or in bfloat16, for inference on a CPU.

    given: a `tidegate.GRU` in float32: a `QuantisedGRU` comes back. A model (`torch.nn.Module`): a copy in evaluation mode with
        such a layer in the place of each of its `tidegate.GRU`s; all else in it stays. A run (`tidegate.load`): a run whose core
        is quantised, which predicts, evaluates and streams; embeddings and head stay in float32. What was given is not changed.
    weights: "int8" or "bf16"; `QuantisedGRU` says what each is.

    Raises `SettingsError` (a `ValueError`) for what has no GRU (LSTM, MinGRU, GRUCell), has one already that is quantised, isn't
    float32 or isn't finite, `ShapeError` for weights that are not on the CPU, `BackendUnavailableError` without the C++ kernels.
    Nothing has been done then.

    >>> import torch, tidegate
    >>> layer = tidegate.GRU(3, 8)
    >>> small = tidegate.quantize(layer, "int8")
    >>> small
    QuantisedGRU(3, 8, weights='int8')
    >>> x = torch.randn(20, 4, 3)                     # [T, B, I]
    >>> bool((small(x)[0] - layer(x)[0]).abs().max() < 0.05)
    True
    """
    checks.one_of("quantize", "weights", weights, KINDS)
    if hasattr(type(given), "quantized"):  # a run, which this room doesn't know
        return given.quantized(weights)
    if isinstance(given, GRU):
        return QuantisedGRU.of(given, weights)
    if not isinstance(given, nn.Module):
        raise TypeError(f"quantize: expected a layer, a model or a run, got a value {of_type(given)}.")
    modules = [*given.modules()]
    if any(isinstance(module, QuantisedGRU) for module in modules):
        raise SettingsError(_TWICE)
    layers = [module for module in modules if isinstance(module, GRU)]
    if not layers:
        raise SettingsError(_without_a_gru(given, modules))
    for layer in layers:
        _check_float(layer)
    # `deepcopy` takes what is in its memo for copied already.
    replaced: dict[int, Any] = {id(layer): QuantisedGRU.of(layer, weights) for layer in layers}
    return copy.deepcopy(given, replaced).eval()


class QuantisedGRU(RecurrentLayer):
    """A `tidegate.GRU` whose weights are numbers of 8 bits, or bfloat16, for inference on a CPU. `tidegate.quantize(layer, "int8")`
    makes one.

    The equations are those of `tidegate.GRU`; what goes into products W x_t and W h_(t-1) is rounded first:

        "int8"  w_ik ≈ s_i q_ik    s_i = max_k |w_ik| / 127,  q_ik = w_ik / s_i to the nearest whole number; and so x_t, and h_(t-1)
                                   in every step, a scale for each row of a batch: Σ_k w_ik x_k ≈ s_i s Σ_k q_ik p_k, the sum exact
        "bf16"  w_ik, x_k and h_k to the nearest bfloat16, sums in float32

    Biases, gains, gates, states and outputs are float32. An exported C header (`run.export("c", int8=True)`) has the same 8-bit
    weights, but multiplies them by float32 states. On one instruction set a row's bits depend neither on the batch it is in, nor on where its
    sequence is cut into calls, nor on threads; `step` gives the bits of `forward`. 8-bit products of finite numbers are
    exact, so all instruction sets round them alike.

    Arguments are those of `tidegate.GRU` that matter in evaluation, and
        weights: "int8" or "bf16".
    A layer that is made by its class holds zeros, until `load_state_dict` brings the buffers of another one:
        weight_ih_l{k}_int8 [3H, I] int8, weight_ih_l{k}_scale [3H] float32, and so weight_hh_l{k}; or weight_ih_l{k}_bf16;
        bias_ih_l{k}, bias_hh_l{k}, weight_ln_ih_l{k}, weight_ln_hh_l{k} [3H] and initial_h float32, where the layer has these.
    There are no parameters, and no training mode.

    Raises `SettingsError` where gradients are wanted, for `train()`, `trace`, torch.func and what records a graph, and
    `ShapeError` for other types and devices than float32 on the CPU (under autocast any float type, which the output has then, too).
    """

    mode = "GRU"
    proj_size = 0
    _said = (
        *RecurrentLayer._said,
        ("reset", "after"),
        ("layer_norm", False),
        ("zoneout", 0),
        ("learn_initial_state", False),
        ("weights", None),
    )

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        *,
        weights: str,
        bidirectional: bool = False,
        reset: str = "after",
        layer_norm: bool = False,
        zoneout: float = 0.0,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional)
        me = type(self).__name__
        self.weights = checks.one_of(me, "weights", weights, KINDS)
        self.reset = checks.one_of(me, "reset", reset, ("after", "before"))
        self.layer_norm = checks.true_or_false(me, "layer_norm", layer_norm)
        self.zoneout = checks.probability(me, "zoneout", zoneout)
        self.learn_initial_state = checks.true_or_false(me, "learn_initial_state", learn_initial_state)
        _check_kernels()
        self.training = False
        self._kept = Kept()
        self._real = torch.empty(0)
        H = self.hidden_size
        # For each layer and direction the names of its weights in float32, whatever holds them here.
        self._weight_names = []
        for run, width in self._runs():
            matrices = {f"weight_ih_{run}": width, f"weight_hh_{run}": H}
            for name, columns in matrices.items():
                if self.weights == "int8":
                    self.register_buffer(f"{name}_int8", torch.zeros(3 * H, columns, dtype=torch.int8))
                    self.register_buffer(f"{name}_scale", torch.zeros(3 * H))
                else:
                    self.register_buffer(f"{name}_bf16", torch.zeros(3 * H, columns, dtype=torch.bfloat16))
            vectors = [f"bias_ih_{run}", f"bias_hh_{run}"] if self.bias else []
            vectors += [f"weight_ln_ih_{run}", f"weight_ln_hh_{run}"] if self.layer_norm else []
            for name in vectors:
                self.register_buffer(name, torch.zeros(3 * H))
            self._weight_names.append([*matrices, *vectors])
        self._flat_names = [name for names in self._weight_names for name in names]
        if self.learn_initial_state:
            self.register_buffer("initial_h", torch.zeros(self.num_layers * self._directions, H))

    @classmethod
    def of(cls, layer: GRU, weights: str) -> QuantisedGRU:
        """The layer with its weights, as they are now, rounded. Errors are those of `quantize`."""
        _check_float(layer)
        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            made = cls(
                layer.input_size,
                layer.hidden_size,
                layer.num_layers,
                layer.bias,
                layer.batch_first,
                weights=weights,
                bidirectional=layer.bidirectional,
                reset=layer.reset,
                layer_norm=layer.layer_norm,
                zoneout=layer.zoneout,
                learn_initial_state=layer.learn_initial_state,
            )
            for name in made._flat_names:
                value = getattr(layer, name).detach().clone()
                if name in made._buffers:
                    made._buffers[name] = value
                elif weights == "int8":
                    made._buffers[f"{name}_int8"], made._buffers[f"{name}_scale"] = quantise(value)
                else:
                    made._buffers[f"{name}_bf16"] = value.to(torch.bfloat16)
            if made.learn_initial_state:
                made._buffers["initial_h"] = cast(Tensor, layer.initial_h).detach().clone()
        return made

    @classmethod
    def from_float(cls, layer: GRU, use_precomputed_fake_quant: bool = False) -> QuantisedGRU:
        """What `torch.ao.quantization.quantize_dynamic(model, {tidegate.GRU})` asks for: 8 bits. Raises SettingsError for another
        dtype than torch.qint8.
        """
        dtype = layer.qconfig.weight().dtype
        if dtype is not torch.qint8:
            raise SettingsError(
                f"quantize_dynamic: {dtype} was asked for, and a tidegate.GRU has int8 (torch.qint8) and bf16: "
                "tidegate.quantize(model, 'bf16')."
            )
        return cls.of(layer, "int8")

    @property
    def all_weights(self) -> list[list[Tensor]]:  # type: ignore[override]
        """The rounded weights in float32, in the order of `tidegate.GRU.all_weights`; a copy."""
        return [[self._wide(name) for name in names] for names in self._weight_names]

    def _wide(self, name: str) -> Tensor:
        own = cast(dict[str, Tensor], self._buffers)
        if name in own:
            return own[name]
        if self.weights == "int8":
            return widened(own[f"{name}_int8"], own[f"{name}_scale"])
        return own[f"{name}_bf16"].float()

    def _weights(self) -> list[Tensor]:
        return [self._real]  # (what states are like)

    @property
    def form(self) -> narrow.Form:
        """Sizes and options, as the kernels are told them."""
        return narrow.Form(
            self.weights,
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self._directions,
            self.bias,
            self.reset == "before",
            self.layer_norm,
            self.zoneout,
        )

    def _handles(self) -> list[Any]:
        """The weights as C++ has packed them: anew where a buffer was changed or replaced since."""
        buffers = [*self._buffers.values()]
        marks = [(id(v), v._version, v.data_ptr()) for v in cast(list[Tensor], buffers)]
        have = self._kept.get("packed")
        if have is not None and have[0] == marks and narrow.are_of_this_isa(have[1]):
            return cast(list[Any], have[1])
        _check_kernels()
        with torch.inference_mode(False), torch.no_grad():
            handles = narrow.pack_rounded([w for each in self.all_weights for w in each], self.form)
        self._kept["packed"] = marks, handles, buffers  # (alive, so that no other tensor has their ids)
        if not self.bidirectional:
            self._kept["step"] = narrow.quick_step(cast(list[Tensor], buffers), handles, self.form)
        return handles

    @not_compiled
    def forward(self, input, hx=None, *, lengths=None, resets=None, mask=None):
        """Arguments and results are those of `tidegate.GRU.forward`; what else is raised, the class says."""
        node = as_node(self, "forward", input, hx, lengths=lengths, resets=resets, mask=mask)
        if node is not None:
            return node
        self._check_call(input, hx)
        if mask is not None:
            lengths = checks.lengths_of(self, mask, lengths, input)
        x, h_0, batch_sizes, lengths, starts, resets, fresh, kind = self._sequences(
            input, hx, lengths, resets, self._real
        )
        given = x.dtype
        extras = None
        if lengths is not None or resets is not None or self.zoneout:
            extras = Extras(lengths, starts, resets, fresh, zoneout=self.zoneout)
        with torch.no_grad():
            output, h_n = narrow.gru(
                _taken(x), _taken(h_0), self._handles(), self.form, batch_sizes=batch_sizes, extras=extras
            )
        output = output.to(given)
        if kind == "batched":
            return output.transpose(0, 1) if self.batch_first else output, h_n
        return self._like(input, kind, output), self._last(input, kind, h_n)

    @not_compiled
    def step(self, input: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step from `state` (None: `initial_state()`), with the bits of `forward`. Arguments and results are those of
        `tidegate.GRU.step`; what else is raised, the class says.
        """
        quick: Any = self._kept.get("step")
        if quick is not None and not (is_grad_enabled() and _wants_gradients(input, state)):
            done: tuple[Tensor, Tensor] | None = quick(input, state, self._buffers)
            if done is not None:
                return done
        if (node := as_node(self, "step", input, state)) is not None:
            return cast(Any, node)
        self._check_call(input, state)
        x_t, h = self._one_step(input, state, self._real)
        with torch.no_grad():
            y, h = narrow.step(_taken(x_t), _taken(h), self._handles(), self.form)
        y = y.to(x_t.dtype)
        return (y, h) if input.dim() == 2 else (y.squeeze(0), h.squeeze(1))

    def trace(self, *args: Any, **options: Any) -> NoReturn:
        """Raises SettingsError: gates are shown by the layer that this one was made of."""
        raise SettingsError(
            f"{self._me}: a quantised layer keeps no gates to show. Trace the layer that it was made of."
        )

    @property
    def _me(self) -> str:
        return f"{type(self).__name__}(input_size={self.input_size}, hidden_size={self.hidden_size})"

    def _check_call(self, input: Any, hx: Any) -> None:
        """Raise for what the kernels must not be given, and what can't be told from the shapes alone."""
        x = input.data if isinstance(input, PackedSequence) else input
        if _wants_gradients(x, hx):
            raise SettingsError(
                f"{self._me}: gradients are wanted, and a quantised layer is for inference only. Call it under torch.no_grad(), or "
                "train the layer that it was made of."
            )
        if functorch_level() is not None or tracing() is not None:
            raise SettingsError(
                f"{self._me}: torch.func and torch.jit.trace can't look into a quantised layer. Take the layer it was made of."
            )
        for name, v in (("x", x), ("h_0", hx)):
            if not isinstance(v, Tensor):
                continue
            if not v.is_cpu:
                raise ShapeError(
                    f"{self._me}: {name} is on {v.device}; a quantised layer runs on the CPU. Use {name}.cpu()."
                )
            if not checks.fits(v, self._real):
                raise ShapeError(
                    f"{self._me}: {name} is {v.dtype}; a quantised layer takes float32. Use {name}.float()."
                )
            if type(v) not in _PLAIN and not v.is_nested:
                raise SettingsError(f"{self._me}: {name} is {of_type(v)}; a quantised layer takes plain tensors.")

    # What would change a layer that is for inference on the CPU alone.

    def train(self, mode: bool = True) -> QuantisedGRU:
        """Evaluation mode it is in already; SettingsError for any other."""
        if mode:
            raise SettingsError(
                f"{self._me} is quantised and can't be trained. Train the layer that it was made of, and quantise that."
            )
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        probe = fn(torch.zeros(1))
        if probe.device.type != "cpu" or probe.dtype is not torch.float32:
            where = f"on {probe.device}" if probe.device.type != "cpu" else f"in {probe.dtype}"
            raise ShapeError(
                f"{self._me} is quantised: it runs on the CPU and in float32 around its {self.weights} weights, not {where}. "
                "Move the layer that it was made of."
            )
        for name, buffer in self._buffers.items():
            if buffer is not None:
                moved = fn(buffer)
                if moved.dtype is buffer.dtype:  # (`float()` means the others)
                    self._buffers[name] = moved
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        other = next(
            (kind for kind in KINDS if kind != self.weights and f"{prefix}weight_ih_l0_{kind}" in state_dict), None
        )
        found = f"{other} weights" if other else "weights that are not quantised"
        if other or f"{prefix}weight_ih_l0" in state_dict:
            fits = f"tidegate.nn.QuantisedGRU(..., weights={other!r})" if other else "a tidegate.GRU, and quantise that"
            raise ShapeError(
                f"{self._me}: the state dict has {found}, and this layer has {self.weights}. Load it into {fits}."
            )
        for name, buffer in cast(dict[str, Tensor], self._buffers).items():
            v = state_dict.get(f"{prefix}{name}")
            if isinstance(v, Tensor) and v.dtype is not buffer.dtype:
                raise ShapeError(
                    f"{self._me}: {prefix}{name} of the state dict is {v.dtype}, expected {buffer.dtype}. Take the state dict of a "
                    "quantised layer as it is."
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        with torch.inference_mode(False):  # (of a tensor made in inference mode nobody can tell whether it changed)
            for name, buffer in cast(dict[str, Tensor], self._buffers).items():
                if buffer.is_inference():
                    self._buffers[name] = buffer.clone()

    def __prepare_scriptable__(self) -> Any:
        raise SettingsError(
            f"{self._me}: torch.jit.script can't read a quantised layer. Export the run to C with int8=True, or script "
            "tidegate.convert.to_torch() of the layer that it was made of."
        )


GRU._quantised = QuantisedGRU

_TWICE = "quantize: its GRU is quantised already. Quantise the one in float32 that it was made of."


def _check_kernels() -> None:
    why = native.missing()
    if why is not None:
        raise BackendUnavailableError(
            f"Quantised layers run in the C++ kernels alone, and {why}. `tidegate doctor` says what to do."
        )


def _check_float(layer: GRU) -> None:
    """Raise for a layer that can't be quantised."""
    _check_kernels()
    me = f"quantize: GRU(input_size={layer.input_size}, hidden_size={layer.hidden_size})"
    if type(layer).forward is not GRU.forward or type(layer).step is not GRU.step:
        raise SettingsError(
            f"{me} is {of_type(layer)}, with a forward or step of its own, which would be lost. Quantise a plain tidegate.GRU with its "
            "weights."
        )
    tensors = [w for each in layer.all_weights for w in each]
    tensors += [cast(nn.Parameter, layer.initial_h)] if layer.learn_initial_state else []
    for v in tensors:
        if not v.is_cpu:
            raise ShapeError(f"{me} is on {v.device}; quantised layers run on the CPU. Use layer.cpu() first.")
        if v.dtype is not torch.float32:
            raise SettingsError(f"{me} is in {v.dtype}; what is quantised is float32. Use layer.float() first.")
    if not all(bool(v.isfinite().all()) for v in tensors):
        raise SettingsError(f"{me} has weights that are NaN or infinite, which no 8 bits hold. Train it again.")


def _without_a_gru(given: nn.Module, modules: list[nn.Module]) -> str:
    recurrent = [m for m in modules if hasattr(m, "hidden_size")]
    names = sorted(
        {f"{type(m).__module__.split('.')[0]}.{'nn.' * isinstance(m, _TORCHS)}{type(m).__name__}" for m in recurrent}
    )
    what = f"a {names[0]}" if recurrent == [given] else f"a model with {' and '.join(names) or 'none'}"
    more = ""
    if any(isinstance(m, nn.GRU) for m in modules):
        more = " tidegate.convert.from_torch() makes one of a torch.nn.GRU."
    elif any(isinstance(m, GRUCell | nn.GRUCell) for m in modules):
        more = " A GRU of one layer has a GRUCell's step: layer.step()."
    return f"quantize: what is quantised is tidegate.GRU, and this is {what}.{more}"


def _wants_gradients(x: Any, h: Any) -> bool:
    if not is_grad_enabled():
        return False
    return bool(getattr(x, "requires_grad", False)) or bool(getattr(h, "requires_grad", False))


def _taken(v: Any) -> Any:
    """As the kernels take it: float32, its own memory's sign."""
    return v if v is None else v.to(torch.float32).resolve_neg()
