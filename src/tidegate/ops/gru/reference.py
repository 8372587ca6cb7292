"""The definition of the GRU: plain PyTorch that reads like the equations; every other back end is held to it.

Shapes: `T` steps, `B` batch, `I` input features, `H` hidden units, `D` directions (1 or 2). Time comes first.
The three gates are stacked in the order r (reset), z (update), n (candidate) along the first axis of every
weight:

    w_ih = | W_ir |        b_ih = | b_ir |        w_hh = | W_hr |        b_hh = | b_hr |
           | W_iz |               | b_iz |               | W_hz |               | b_hz |
           | W_in |               | b_in |               | W_hn |               | b_hn |
           [3H, I]                [3H]                   [3H, H]                [3H]

**z = 1 keeps the old state.** Papers: Cho et al. 2014, arXiv:1406.1078; Chung et al. 2014, arXiv:1412.3555. What may
change the recurrence: layer norm, Ba et al. 2016, arXiv:1607.06450; recurrent dropout, Gal and Ghahramani 2016,
arXiv:1512.05287; zoneout, Krueger et al. 2017, arXiv:1606.01305.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import layer_norm, linear
from torch.utils.checkpoint import checkpoint

from tidegate.ops.gru.extras import Extras, LayerExtras, PackedRows
from tidegate.ops.gru.modes import transformed, values_are_hidden

_HALF_TYPES = (torch.float16, torch.bfloat16)
NORM_EPSILON = 1e-5


def _wide(*tensors: Tensor | None) -> list[Any]:
    return [None if v is None else v.float() for v in tensors]


def gru_cell(
    x_t: Tensor,  # [B, I]
    h_prev: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
    *,
    reset: str = "after",
    kept: dict[Any, Any] | None = None,
) -> Tensor:  # [B, H]
    """One step of one layer. `kept` is as in `gru`.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))        reset="after"
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)        reset="before"
        h' = (1 - z) * n + z * h

    `reset="after"` is what torch, cuDNN and Keras compute: the reset gate scales the product.
    `reset="before"` is the form of the papers: it scales the state that goes into the product. A `float16` or
    `bfloat16` step is computed in float32 and rounded once, at the end.

    >>> x, h = torch.tensor([[1.0]]), torch.tensor([[0.5]])
    >>> w_ih, w_hh = torch.tensor([[0.0], [100.0], [1.0]]), torch.zeros(3, 1)   # W_iz is huge, so z = 1 ...
    >>> gru_cell(x, h, w_ih, w_hh)                                              # ... and the state is kept
    tensor([[0.5000]])

    Raises `ValueError` when `reset` is another word.
    """
    if x_t.dtype in _HALF_TYPES:
        return gru_cell(*_wide(x_t, h_prev, w_ih, w_hh, b_ih, b_hh), reset=reset).to(x_t.dtype)
    return _step(_of_x(x_t, w_ih, b_ih, None), h_prev, w_hh, b_hh, reset)[0]


def _sums(v: Tensor, w: Tensor, b: Tensor | None, g: Tensor | None) -> Tensor:
    """W v + b; with layer norm's gains g ⊙ norm(W v) + b, the values of all of w's rows normalised together."""
    if g is None:
        return linear(v, w, b)
    return layer_norm(linear(v, w), (w.size(0),), g, b, NORM_EPSILON)


def _gates(H: int, *stacked: Tensor | None) -> tuple[list[Any], list[Any]]:
    """The r and z part and the n part of weights or biases: two sums, as a layer norm sees them."""
    return [None if v is None else v[: 2 * H] for v in stacked], [None if v is None else v[2 * H :] for v in stacked]


def _of_x(x: Tensor, w_ih: Tensor, b_ih: Tensor | None, g_ih: Tensor | None) -> Tensor:
    """What x has to say to the gates, [..., 3H]."""
    if g_ih is None:
        return linear(x, w_ih, b_ih)
    rz, n = _gates(w_ih.size(0) // 3, w_ih, b_ih, g_ih)
    return torch.cat([_sums(x, *rz), _sums(x, *n)], dim=-1)


def _step(
    gates_x: Tensor,  # [B, 3H], what x has to say to the gates: W_ir x + b_ir | W_iz x + b_iz | W_in x + b_in
    h_prev: Tensor,  # [B, H]
    w_hh: Tensor,  # [3H, H]
    b_hh: Tensor | None,  # [3H]
    reset: str,
    g_hh: Tensor | None = None,  # [3H], layer norm's gains
    mask: Tensor | None = None,  # [B, H], recurrent dropout's
    zone: Tensor | float = 0.0,  # [B, H] or one for all: the part of its state that a unit keeps in any case
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:  # h_t [B, H]; r, z, n, h_n [B, H] each
    if reset not in ("after", "before"):
        raise ValueError(f"reset is {reset!r}, expected 'after' or 'before'.")
    x_r, x_z, x_n = gates_x.chunk(3, dim=-1)  # [B, H] each
    of_rz, of_n = _gates(h_prev.size(-1), w_hh, b_hh, g_hh)
    h = h_prev if mask is None else mask * h_prev
    h_r, h_z = _sums(h, *of_rz).chunk(2, dim=-1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    if reset == "after":
        h_n = _sums(h, *of_n)
        n = torch.tanh(x_n + r * h_n)
    else:
        h_n = _sums(r * h, *of_n)
        n = torch.tanh(x_n + h_n)
    keep = z + zone * (1 - z)
    return (1 - keep) * n + keep * h_prev, (r, z, n, h_n)


def gru_layer(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes
    h_0: Tensor,  # [B, H]
    w_ih: Tensor,  # [3H, I]
    w_hh: Tensor,  # [3H, H]
    b_ih: Tensor | None = None,  # [3H]
    b_hh: Tensor | None = None,  # [3H]
    g_ih: Tensor | None = None,  # [3H]
    g_hh: Tensor | None = None,  # [3H]
    *,
    reverse: bool = False,
    reset: str = "after",
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
    resets: Tensor | None = None,  # [T, B], bool
    fresh: Tensor | None = None,  # [B, H]; None: zeros
    mask: Tensor | None = None,  # [B, H]
    zone: Tensor | float = 0.0,  # like the output, or one number for all
    there: Tensor | None = None,  # [T, B], bool; None: all
    checkpoint_every: int = 0,
) -> tuple[
    Tensor, Tensor, Tensor
]:  # output [T, B, H] or [rows, H]; h_n [B, H]; r, z, n, h_n [T, B, 4, H] or [rows, 4, H]
    """One layer in one direction: `gru_cell` step after step, from the last to the first where `reverse` is
    true.

    With `batch_sizes`, sequences of different lengths lie step by step, the longest first, with no padding:
    step t has the first `batch_sizes[t]` rows of the batch (`PackedSequence.data` and `.batch_sizes`).

    Before a step that is marked in `resets` the state becomes `fresh`. Backwards it does so on the way from the marked
    step to the one before: both directions see the same separate pieces.

    A step that is not `there` leaves the state as it is. No steps (T = 0): an empty output, and h_n = h_0.
    """
    gates_x = _of_x(x, w_ih, b_ih, g_ih)  # [T, B, 3H]: it needs no state, so all steps at once
    sizes = [x.size(1)] * x.size(0) if batch_sizes is None else batch_sizes.tolist()
    steps = gates_x.unbind(0) if batch_sizes is None else gates_x.split(sizes)
    zones = _by_step(zone, batch_sizes, sizes, gates_x.dtype)
    T = len(sizes)
    times = range(T - 1, -1, -1) if reverse else range(T)
    fresh = torch.zeros_like(h_0) if fresh is None else fresh

    def run(state: Tensor, times: Sequence[int]) -> list[Tensor]:  # the last state, h_t of each step, their gates
        outputs: list[Tensor] = []
        gates: list[Tensor] = []
        for t in times:
            # Only the first B_t rows have this step. The rest keep their state: forwards these sequences are
            # over, backwards they have not begun.
            B_t = sizes[t]
            h_prev = state[:B_t]
            if resets is not None:
                marked = t + 1 if reverse else t
                n = min(B_t, sizes[marked]) if marked < T else 0  # the others begin here
                anew = torch.where(resets[marked, :n, None], fresh[:n], h_prev[:n]) if n else h_prev[:0]
                h_prev = torch.cat([anew, h_prev[n:]])
            m = None if mask is None else mask[:B_t]
            h_t, parts = _step(steps[t], h_prev, w_hh, b_hh, reset, g_hh, m, zones[t])
            if there is not None:
                h_t = torch.where(there[t, :, None], h_t, state)
            outputs.append(h_t)
            gates.append(torch.stack(parts, dim=1))
            state = h_t if B_t == state.size(0) else torch.cat([h_t, state[B_t:]])
        return [state, *outputs, *gates]

    state = h_0
    outputs: list[Tensor] = []
    gates: list[Tensor] = []
    # (torch.func can't undo a checkpoint.)
    every = checkpoint_every if checkpoint_every and torch.is_grad_enabled() and not transformed() else max(1, T)
    for first in range(0, T, every):
        some = times[first : first + every]
        state, *found = checkpoint(run, state, some, use_reentrant=False) if every < T else run(state, some)
        outputs += found[: len(some)]
        gates += found[len(some) :]
    if not outputs:
        # Part of the graph even so: the batch of a process may have nothing but padding.
        empty = gates_x[..., : h_0.size(-1)]
        return empty, h_0.clone(), x.new_empty(*x.shape[:-1], 4, h_0.size(-1))
    if reverse:
        outputs.reverse()
        gates.reverse()
    join = torch.stack if batch_sizes is None else torch.cat
    return join(outputs), state, join(gates)


def _by_step(zone: Tensor | float, batch_sizes: Tensor | None, sizes: list[int], dtype: torch.dtype) -> Sequence[Any]:
    if not isinstance(zone, Tensor):
        return [zone] * len(sizes)
    zone = zone.to(dtype)
    return zone.unbind(0) if batch_sizes is None else zone.split(sizes)


def layer(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes or starts
    h_0: Tensor,  # [D, B, H]
    weights: Sequence[Tensor],  # of both directions: w_ih, w_hh[, b_ih, b_hh][, g_ih, g_hh]
    bias: bool,
    batch_sizes: Tensor | None,
    extras: LayerExtras = LayerExtras(),  # noqa: B008 (a constant)
) -> tuple[Tensor, Tensor, Tensor]:  # output [..., D * H]; h_n [D, B, H]; r, z, n, h_n [D, ..., 4, H]
    """One layer in both directions, side by side."""
    lengths, starts, resets, fresh, mask, zone, zone_rate, before, norm, every = extras
    D, per_run = h_0.size(0), len(weights) // h_0.size(0)
    rows = there = None
    if lengths is not None and batch_sizes is not None:
        raise ValueError("lengths and batch_sizes say the same; give one of them.")
    if lengths is not None and starts is None and values_are_hidden():
        # How many steps there are in all can't be told, so the padding takes its time too.
        there = torch.arange(x.size(0), device=x.device).unsqueeze(1) < lengths.to(x.device)  # [T, B]
        x = torch.where(there.unsqueeze(-1), x, 0)  # (it may hold anything)
        resets = None if resets is None else resets & there
    elif lengths is not None:
        shape = x.shape[:-1]
        rows = PackedRows.of(lengths, starts)
        batch_sizes, at, order = rows.batch_sizes, rows.numbers.to(x.device), rows.order.to(x.device)
        x = x.reshape(-1, x.size(-1))[at]
        resets = None if resets is None else resets[: len(batch_sizes), order]
        zone = None if zone is None else zone.reshape(-1, zone.size(-1))[at]
        ends, h_0 = h_0, h_0[:, order]
        fresh, mask = (None if v is None else v[:, order] for v in (fresh, mask))

    outputs, last, gates = [], [], []
    for d in range(D):
        own: list[Any] = list(weights[d * per_run : (d + 1) * per_run])
        if norm and not bias:
            own[2:2] = [None, None]
        H = h_0.size(-1)
        output, h_n, parts = gru_layer(
            x,
            h_0[d],
            *own,
            reverse=d == 1,
            reset="before" if before else "after",
            batch_sizes=batch_sizes,
            resets=resets,
            fresh=None if fresh is None else fresh[d],
            mask=None if mask is None else mask[d],
            zone=zone_rate if zone is None else zone[..., d * H : (d + 1) * H],
            there=there,
            checkpoint_every=every,
        )
        outputs.append(output)
        last.append(h_n)
        gates.append(parts)
    output, h_n, parts = torch.cat(outputs, dim=-1), torch.stack(last), torch.stack(gates)
    if there is not None:
        output = torch.where(there.unsqueeze(-1), output, 0)
        parts = torch.where(there[:, :, None, None], parts, 0)
    if rows is not None:  # back to their places; padding is 0
        number = shape.numel()
        output = output.new_zeros(number, output.size(-1)).index_copy(0, at, output).view(*shape, output.size(-1))
        parts = parts.new_zeros(D, number, *parts.shape[2:]).index_copy(1, at, parts).view(D, *shape, *parts.shape[2:])
        h_n = ends.index_copy(1, order, h_n)
    return output, h_n, parts


def are_steps(batch_sizes: Sequence[int], rows: int) -> bool:
    """Whether these can be the batch_sizes of a packed sequence of so many rows: never growing, none empty, all there."""
    return (
        len(batch_sizes) > 0
        and batch_sizes[-1] >= 1
        and sum(batch_sizes) == rows
        and all(after <= before for before, after in pairwise(batch_sizes))
    )


def batch_of(x: Tensor, batch_sizes: Tensor | None, extras: Extras | None) -> int:
    """B, wherever it is to be found."""
    if batch_sizes is not None:
        return int(batch_sizes[0])
    if extras is not None and extras.lengths is not None:
        return extras.lengths.size(0)
    return x.size(1)


def stack(
    run_layer: Callable[..., tuple[Tensor, Tensor, Any]],  # as `layer`, and with `place`: which layer it is
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    extras: Extras | None = None,
) -> tuple[Tensor, Tensor, list[tuple[Tensor, Any]]]:  # output; h_n; the first and third result of every layer
    """The layers of a stack, one on top of the other. What runs a layer is a back end's own."""
    D = 2 if bidirectional else 1
    per_layer = len(weights) // num_layers
    H = weights[1].size(-1)
    last, found = [], []
    for k in range(num_layers):
        if k > 0 and training and dropout > 0:
            x = drop(x, dropout)
        x, h_n, parts = run_layer(
            x,
            None if h_0 is None else h_0[k * D : (k + 1) * D],
            weights[k * per_layer : (k + 1) * per_layer],
            bias,
            batch_sizes,
            None if extras is None else extras.of_layer(k, x, batch_of(x, batch_sizes, extras), D, H, training),
            place=k,
        )
        last.append(h_n)
        found.append((x, parts))
    return x, last[0] if num_layers == 1 else torch.cat(last), found


def _run_layer(x, h_0, weights, bias, batch_sizes, extras, place):
    return layer(x, h_0, weights, bias, batch_sizes, *(() if extras is None else (extras,)))


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast would narrow the recurrence."""
    kind = x.device.type
    wished = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if wished else nullcontext()


def trace(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    *,
    extras: Extras | None = None,
    kept: dict[Any, Any] | None = None,
    **options: Any,
) -> tuple[
    Tensor, Tensor, list[tuple[Tensor, Tensor]]
]:  # output; h_n; of every layer: output and r, z, n, h_n [D, ..., 4, H]
    """`gru`, and the gates on the way."""
    batch_sizes = options.get("batch_sizes")
    if h_0 is None:
        runs = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        h_0 = x.new_zeros(runs, batch_of(x, batch_sizes, extras), weights[1].size(1))
    # Half types and autocast's mixtures: in float32 through the whole stack, and rounded once, at the end.
    real = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    rounded = x.dtype if x.dtype in _HALF_TYPES else real
    weights = [w.to(real) for w in weights]
    extras = None if extras is None else extras.to(real)
    with without_autocast(x):
        output, h_n, gates = stack(_run_layer, x.to(real), h_0.to(real), weights, extras=extras, **options)
    return output.to(rounded), h_n.to(rounded), [(y.to(rounded), v.to(rounded)) for y, v in gates]


def gru(
    x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes or extras.starts
    h_0: Tensor | None,  # [layers * D, B, H]: layer 0 forwards, layer 0 backwards, layer 1 forwards ...; None: zeros
    weights: list[
        Tensor
    ],  # in the order of h_0: w_ih, w_hh, with bias b_ih, b_hh, with layer norm its gains g_ih, g_hh
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
    extras: Extras | None = None,  # None: what torch.nn.GRU computes
    kept: dict[Any, Any] | None = None,
) -> tuple[Tensor, Tensor]:  # output [T, B, D * H] or [rows, D * H]; h_n [layers * D, B, H]
    """The whole stack: each layer reads the output of the layer below, both directions side by side.

    Dropout falls on the output of every layer but the last, and only while `training`. The last layer's
    states of all steps are the output; the last states of every layer and direction are h_n. With lengths, h_n is the
    state at a sequence's own end, and outputs past it are 0.

    `kept`: a dictionary of the caller's in which a back end may keep what it makes of the weights, from one call to
    the next. This one keeps nothing.
    """
    return trace(
        x,
        h_0,
        weights,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        dropout=dropout,
        training=training,
        batch_sizes=batch_sizes,
        extras=extras,
    )[:2]


def step(
    x_t: Tensor,  # [B, I]
    h: Tensor | None,  # [layers, B, H]; None: zeros
    weights: list[Tensor],
    *,
    run: Callable[..., tuple[Tensor, Tensor]] = gru,  # the `gru` of a back end that has no step of its own
    **options: Any,  # those of `gru`, but for `bidirectional` and `batch_sizes`
) -> tuple[Tensor, Tensor]:  # y [B, H]; the new state [layers, B, H]
    """One time step of a stack in one direction: a sequence of one. y is the last layer's new state."""
    output, h_n = run(x_t.unsqueeze(0), h, weights, **options)
    return output.squeeze(0), h_n
