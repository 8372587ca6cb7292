"""The definition over whole sequences: the equations step after step, in both directions, layer by layer.

Plain PyTorch, so it runs on every device, in every transform and under every option; every other back end has its
signatures and is held against it. Shapes: as in `equations`, with `D` directions (1 or 2); time comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tidegate.ops.gru.equations import HALF_TYPES, gates_of_x, next_state
from tidegate.ops.gru.equations import gru_cell as gru_cell  # (a back end has it)
from tidegate.ops.gru.extras import Extras, LayerExtras, PackedRows
from tidegate.ops.gru.modes import transformed, values_are_hidden
from tidegate.ops.gru.stack import batch_of, stack

name = "reference"
about = "the definition, step by step in Python; it does all, and slowly"
in_transforms = True
quick_step = quick_gru = join_weights = affine = None


def missing() -> None:
    """Nothing: it runs wherever torch does."""


def why_not(x: Any, wishes: Sequence[str]) -> None:
    """Nothing: it runs everywhere, whatever is wished."""


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
    gates_x = gates_of_x(x, w_ih, b_ih, g_ih)  # [T, B, 3H]: it needs no state, so all steps at once
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
            h_t, parts = next_state(steps[t], h_prev, w_hh, b_hh, reset, g_hh, m, zones[t])
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


def _run_layer(
    x: Tensor,
    h_0: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    batch_sizes: Tensor | None,
    extras: LayerExtras | None,
    *,
    place: int,
) -> tuple[Tensor, Tensor, Tensor]:
    assert h_0 is not None  # (`trace` made zeros of it)
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
    rounded = x.dtype if x.dtype in HALF_TYPES else real
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
