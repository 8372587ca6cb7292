"""Inside `torch.onnx.export`, by either exporter: a layer becomes ONNX's own operator GRU, with T and B open.

A back end that is none to choose: whatever the layer's own is, `backends.choose` hands this one out while an ONNX file is being
written. What ONNX's GRU has no words for becomes the definition's elementary operators, for the T of the example, where the
exporter lets T be fixed without a word of it going lost; else it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch.compiler import is_compiling, is_dynamo_compiling

from tidegate.errors import SettingsError
from tidegate.ops.gru import reference, torch_aten
from tidegate.ops.gru.equations import HALF_TYPES
from tidegate.ops.gru.extras import Extras, LayerExtras
from tidegate.ops.gru.stack import stack

name = "in_onnx"
about = "ONNX's own GRU, while torch.onnx.export writes a file"
in_transforms = False
quick_step = quick_gru = join_weights = affine = None


def missing() -> None:
    """Nothing: it is part of torch."""


def why_not(x: Any, wishes: Sequence[str]) -> None:
    """Nothing: what can't be written raises."""


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes
    h_0: Tensor | None,  # [layers * D, B, H]; None: zeros
    weights: list[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    extras: Extras | None = None,
    kept: dict[Any, Any] | None = None,
    training: bool = False,
    **options: Any,
) -> tuple[Tensor, Tensor]:  # output; h_n
    """The whole stack; see `reference.gru`, whose signature and results it has."""
    lacks = [] if extras is None else [w for w in extras.wishes(training) if w in _LACKS]
    options |= {"training": training, "extras": extras}
    if batch_sizes is not None:
        if is_compiling() or extras is not None:
            raise _cannot("a PackedSequence", "Give padded x with lengths=.")
        if h_0 is None:  # (with the number of sequences as a part of the graph)
            layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
            h_0 = x.new_zeros(layers, batch_sizes[0], weights[1].size(1))  # type: ignore[call-overload]
        return torch_aten.gru(x, h_0, weights, batch_sizes=batch_sizes, **options)
    if lacks or (extras is not None and extras.starts is not None):
        _elementary(" and ".join(lacks) or "a nested tensor", x)
        return reference.gru(x, h_0, weights, **options)
    rounded = x.dtype
    if rounded in HALF_TYPES:
        x, h_0, weights = x.float(), None if h_0 is None else h_0.float(), [w.float() for w in weights]
    output, h_n, _ = stack(_run_layer, x, h_0, weights, **options)
    return output.to(rounded), h_n.to(rounded)


_LACKS = ("resets", "layer_norm", "recurrent_dropout", "zoneout")


def trace(x: Tensor, *args: Any, **options: Any) -> Any:
    """`reference.trace`."""
    _elementary("gates to show", x)
    return reference.trace(x, *args, **options)


def step(x_t: Tensor, h: Tensor | None, weights: list[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """One time step of a stack in one direction; see `reference.step`."""
    return reference.step(x_t, h, weights, run=gru, **options)


def gru_cell(
    x_t: Tensor,  # [B, I]
    h_prev: Tensor,  # [B, H]
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    kept: dict[Any, Any] | None = None,
) -> Tensor:  # [B, H]
    """One step of one layer; see `reference.gru_cell`. float64, which ONNX Runtime has no GRU for, is its elementary operators."""
    if x_t.dtype is torch.float64:
        return reference.gru_cell(x_t, h_prev, w_ih, w_hh, b_ih, b_hh)
    weights = [w for w in (w_ih, w_hh, b_ih, b_hh) if w is not None]
    return gru(x_t.unsqueeze(0), h_prev.unsqueeze(0), weights, bias=b_ih is not None)[1][0]


def of_operator(
    x: Tensor,
    h_0: Tensor,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    *extras_and_save: Any,
) -> tuple[Tensor, Tensor, None, None]:
    """What takes the place of `tidegate::gru_layer` (`native/registered.py`, whose arguments and results these are) in the graph of a
    `torch.export.ExportedProgram`. Without what backward needs: nobody reads that in a program for inference, but for gates.
    """
    *fields, _ = extras_and_save
    extras = LayerExtras(*fields)
    if batch_sizes is not None:
        raise _cannot("a PackedSequence", "Give padded x with lengths=.")
    lacks = [name for name, there in _beyond(extras).items() if there]
    if not lacks:
        output, h_n, _ = _run_layer(x, h_0, weights, bias, None, extras, place=0)
    elif isinstance(x.size(0), torch.SymInt):
        raise _cannot(
            " and ".join(lacks),
            "Export a program with a fixed number of steps, or the layer alone with tidegate.export.onnx.write_layer.",
        )
    else:
        output, h_n, _ = reference.layer(x, h_0, weights, bias, None, extras)
    return output, h_n, None, None


def _beyond(extras: LayerExtras) -> dict[str, bool]:
    return {
        "a nested tensor": extras.starts is not None,
        "resets": extras.resets is not None,
        "layer_norm": extras.norm,
        "recurrent_dropout": extras.mask is not None,
        "zoneout": extras.zone is not None or extras.zone_rate > 0,
    }


def _elementary(what: str, x: Tensor) -> None:
    """Raise where step after step would be written for a T that the file then wouldn't have."""
    # (Dynamo comes second, where the exporter's first try has failed, and hides whether T is open.)
    if not is_compiling() or is_dynamo_compiling() or isinstance(x.size(0), torch.SymInt):
        raise _cannot(
            what,
            "Export with dynamo=True and a fixed number of steps, or the layer alone with tidegate.export.onnx.write_layer.",
        )


def _cannot(what: str, advice: str) -> SettingsError:
    return SettingsError(f"torch.onnx.export: ONNX's GRU has no {what}. {advice}")


def _run_layer(
    x: Tensor,  # [T, B, I]
    h_0: Tensor | None,  # [D, B, H]; None: zeros
    weights: list[Tensor],  # of both directions
    bias: bool,
    batch_sizes: Tensor | None,
    extras: LayerExtras | None,
    *,
    place: int,
) -> tuple[Tensor, Tensor, None]:
    """One layer in both directions.

    With lengths the operator's own input for them stays empty: ONNX doesn't say what becomes of the state of a sequence with no
    steps, and OpenVINO pays no heed to it where shapes are open. Each direction runs over all T steps, the second one over
    sequences that are turned round within their lengths, and the state after n steps is entry n of [h_0, h_1 ... h_T].
    """
    per = 4 if bias else 2
    runs = [weights[k : k + per] for k in range(0, len(weights), per)]
    before = extras is not None and extras.before
    T, B, D, H = x.size(0), x.size(1), len(runs), weights[1].size(1)
    operator = partial(_operator, B=B, H=H, before=before)
    lengths = None if extras is None else extras.lengths
    if lengths is None:
        Y, h_n = operator(x, h_0, runs)
        return Y.transpose(1, 2).reshape(T, B, D * H), h_n, None
    lengths = lengths.to(x.device)
    steps = torch.arange(T, device=x.device).unsqueeze(1)  # [T, 1]
    past = (steps >= lengths).unsqueeze(-1)  # [T, B, 1]
    turned = torch.where(steps < lengths, lengths - 1 - steps, steps).unsqueeze(-1)  # [T, B, 1]
    first = x.new_zeros(D, B, H) if h_0 is None else h_0
    outputs, last = [], []
    for d, run in enumerate(runs):
        given = x if d == 0 else x.gather(0, turned.expand(T, B, x.size(2)))
        states = operator(given, first[d : d + 1], [run])[0].reshape(T, B, H)
        ends = lengths.reshape(1, B, 1).expand(1, B, H)
        last.append(torch.cat([first[d : d + 1], states]).gather(0, ends))
        outputs.append(states if d == 0 else states.gather(0, turned.expand(T, B, H)))
    return torch.cat(outputs, dim=-1).masked_fill(past, 0), torch.cat(last), None


def _operator(
    x: Tensor,  # [T, B, I]
    h_0: Tensor | None,  # [D, B, H]
    runs: list[list[Tensor]],  # of each direction w_ih, w_hh[, b_ih, b_hh]
    *,
    B: int,
    H: int,
    before: bool,
) -> tuple[Tensor, Tensor]:  # Y [T, D, B, H]; Y_h [D, B, H]
    W, R = (torch.stack([_z_r_n(run[k]) for run in runs]) for k in (0, 1))
    b = torch.stack([torch.cat([_z_r_n(run[2]), _z_r_n(run[3])]) for run in runs]) if len(runs[0]) > 2 else None
    D = len(runs)
    if tracing() is not None:
        Y = _Node.apply(x, W, R, b, h_0, before)  # type: ignore[no-untyped-call]
        return Y, Y[-1] if D == 1 else torch.stack([Y[-1, 0], Y[0, 1]])
    Y, h_n = torch.onnx.ops.symbolic_multi_out(
        "GRU",
        [x, W, R, b, None, h_0],
        _attributes(D, H, before),
        dtypes=[x.dtype, x.dtype],
        shapes=[[x.size(0), D, B, H], [D, B, H]],
    )
    return Y, h_n


def _z_r_n(v: Tensor) -> Tensor:
    """The gates in ONNX's order."""
    r, z, n = v.chunk(3)
    return torch.cat([z, r, n])


def _attributes(D: int, H: int, before: bool) -> dict[str, Any]:
    direction = "forward" if D == 1 else "bidirectional"
    return {"direction": direction, "hidden_size": H, "linear_before_reset": 0 if before else 1}


class _Node(torch.autograd.Function):
    """The operator for the exporter that traces (`dynamo=False`). Its result is Y alone: of a node with two results of which nobody
    reads either (the last step of a decoder's loop) the exporter fails with an internal error.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, R: Tensor, b: Tensor | None, h_0: Tensor | None, before: bool
    ) -> Tensor:
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # the numbers are needed, the steps that lead to them are not
        try:
            D, H = R.size(0), R.size(2)
            first = x.new_zeros(D, x.size(1), H) if h_0 is None else h_0
            weights = []
            for d in range(D):
                weights += [_z_r_n(W[d]), _z_r_n(R[d])]  # (z r n -> r z n is the same exchange)
                weights += [] if b is None else [_z_r_n(v) for v in b[d].chunk(2)]
            output = reference.layer(x, first, weights, b is not None, None, LayerExtras(before=before))[0]
            Y = output.unflatten(2, (D, H)).transpose(1, 2)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
        one: Tensor = Y * 1
        return one  # (a result must come from something that was traced)

    @staticmethod
    def symbolic(g: Any, x: Any, W: Any, R: Any, b: Any, h_0: Any, before: bool) -> Any:
        sizes = R.type().sizes()
        attributes = {
            f"{name}_{'s' if isinstance(value, str) else 'i'}": value
            for name, value in _attributes(sizes[0], sizes[2], before).items()
        }

        def or_nothing(v: Any) -> Any:
            if v is not None and not v.node().mustBeNone():
                return v
            nothing = g.op("prim::Constant")
            nothing.setType(torch._C.OptionalType.ofTensor())
            return nothing

        return g.op("GRU", x, W, R, or_nothing(b), or_nothing(None), or_nothing(h_0), outputs=1, **attributes)
