"""The minGRU: a gated recurrence whose gates don't read the state, so that all steps can be computed at once.

    k_t = W_z x_t + b_z
    v_t = W_h x_t + b_h
    z_t = σ(k_t)                                             update gate
    n_t = g(v_t),  g(v) = v + 1/2 for v ≥ 0, σ(v) for v < 0  candidate, above 0
    h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_(t-1)

**z = 1 keeps the old state**, as everywhere in Tidegate; the z of the paper is 1 minus ours. The two gates are stacked in
the order z (update), n (candidate) along the first axis of the weights:

    w = | W_z |   [2H, I]        b = | b_z |   [2H]
        | W_h |                      | b_h |

Shapes: `T` steps, `B` batch, `I` input features, `H` hidden units, `D` directions (1 or 2). Time comes first.

Paper: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi 2024, arXiv:2410.01201; g and the positive candidate are those of its
appendix B.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _get_tracing_state as tracing
from torch.nn.functional import dropout as drop

from tidegate.ops.affine import affine
from tidegate.ops.gru.reference import without_autocast
from tidegate.ops.threads import one_thread


class Gates(NamedTuple):
    """What x alone decides of a layer, for all steps; [T, B, H] each."""

    update: Tensor  # z_t
    candidate: Tensor  # n_t
    write: Tensor  # (1 - z_t) ⊙ n_t


def gates(
    x: Tensor,  # [..., I]
    w: Tensor,  # [2H, I]
    b: Tensor | None = None,  # [2H]
) -> Gates:  # [..., H] each
    """The gates of one layer in one direction. 1 - z is computed as σ(-k), which is exact to the last bits even where z is near 1.

    Without gradients the bits of a row depend on nothing but its own x, with gradients not on the number of threads.
    """
    sums = affine(x, w, w.new_zeros(w.size(0)) if b is None else b)
    k, v = sums.chunk(2, dim=-1)
    if torch.compiler.is_compiling():
        z, not_z, shut = torch.sigmoid(k), torch.sigmoid(-k), torch.sigmoid(v)
    elif _together():
        with one_thread():
            z, not_z, shut = torch.sigmoid(k), torch.sigmoid(-k), torch.sigmoid(v)
    else:
        z, not_z = _sigmoids(k)
        e = v.exp()
        shut = e / (1 + e)  # looked at below 0 only
    n = torch.where(v >= 0, v + 0.5, shut)
    return Gates(z, n, not_z * n)


def _together() -> bool:
    """Whether all steps are computed at once. (A traced call must not depend on whether gradients are wanted.)"""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or tracing() is not None


def _sigmoids(k: Tensor) -> tuple[Tensor, Tensor]:
    """σ(k) and σ(-k), in operations that round each value by itself.

    `torch.sigmoid` on the CPU takes another exponential for the last values of a tensor than for the others.
    """
    positive = k >= 0
    e = torch.where(positive, -k, k).exp_()  # at most 1
    large = 1 / (1 + e)
    small = e * large
    return torch.where(positive, large, small), torch.where(positive, small, large)


def states(
    keep: Tensor,  # [T, B, H], in [0, 1]
    write: Tensor,  # [T, B, H]
    h_0: Tensor,  # [B, H]
) -> Tensor:  # [T, B, H]
    """h_t = keep_t ⊙ h_(t-1) + write_t for every t.

    With gradients in about 2 log2(T) operations over many steps each (`scan`); without, step after step: then the
    same steps give the same bits in one call, in several and alone.
    """
    if len(write) == 0:
        return write
    if _together():
        first = write[:1] + keep[:1] * h_0
        return scan(keep, torch.cat([first, write[1:]]))
    h, all_h = h_0, []
    for keep_t, write_t in zip(keep.unbind(), write.unbind(), strict=True):
        h = keep_t * h + write_t  # not addcmul: it may or may not round the product
        all_h.append(h)
    return torch.stack(all_h)


def scan(
    keep: Tensor,  # [T, ...]
    write: Tensor,  # [T, ...]
) -> Tensor:  # [T, ...]
    """h_t = keep_t ⊙ h_(t-1) + write_t from h_0 = 0, in parallel over time (Blelloch 1990, "Prefix sums and their applications").

    Two steps in a row are one step of the same kind:

        h_(t+1) = (keep_(t+1) keep_t) h_(t-1) + (keep_(t+1) write_t + write_(t+1))

    So half as many steps give every second state, and one more product the others. There is neither a division nor a
    difference: with keep in [0, 1] nothing overflows, and the rounding error is that of the recurrence, at any T. The
    paper's form, exp(a + logcumsumexp(log write - a)) with a = cumsum(log keep), loses digits where |a| is large.

    Cost: about 2 T products and sums; training stores some 5 values a step and unit.

    >>> scan(torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.tensor([8.0, 0.0, 0.0, 1.0]))
    tensor([8., 4., 2., 3.])
    """
    T = len(write)
    if T < 2:
        return write
    pairs = T // 2
    keep_odd, write_odd = keep[1::2], write[1::2]  # counted from 0: of each pair the second step
    keep_even, write_even = keep[0::2], write[0::2]
    odd = scan(keep_odd * keep_even[:pairs], torch.addcmul(write_odd, keep_odd, write_even[:pairs]))
    later = torch.addcmul(write_even[1:], keep_even[1:], odd[: T - pairs - 1])
    even = torch.cat([write_even[:1], later])
    both = torch.stack([even[:pairs], odd], dim=1).flatten(0, 1)
    return both if T % 2 == 0 else torch.cat([both, even[-1:]])


def direction(
    x: Tensor,  # [T, B, I]
    h_0: Tensor,  # [B, H]
    w: Tensor,  # [2H, I]
    b: Tensor | None = None,  # [2H]
    *,
    reverse: bool = False,
    there: Tensor | None = None,  # [T, B, 1], bool; None: all
    resets: Tensor | None = None,  # [T, B, 1], bool; only where there
    fresh: Tensor | None = None,  # [B, H]; None: zeros
) -> tuple[Tensor, Tensor, Gates]:  # h_t of each step [T, B, H]; h_n [B, H]
    """One layer in one direction, from the last step to the first where `reverse` is true.

    Before a step that is marked in `resets` the state becomes `fresh`. Backwards it does so on the way from the marked
    step to the one before. A step that is not `there` leaves the state as it is.
    """
    parts = gates(x, w, b)
    keep, write = parts.update, parts.write
    if resets is not None:
        begins = torch.cat([resets[1:], torch.zeros_like(resets[:1])]) if reverse else resets
        if fresh is not None:
            write = torch.where(begins, write + keep * fresh, write)
        keep = torch.where(begins, 0, keep)
    if there is not None:
        keep, write = torch.where(there, keep, 1), torch.where(there, write, 0)
    if reverse:
        h = states(keep.flip(0), write.flip(0), h_0).flip(0)
        return h, h[0] if len(h) else h_0.clone(), parts
    h = states(keep, write, h_0)
    return h, h[-1] if len(h) else h_0.clone(), parts


def trace(
    x: Tensor,  # [T, B, I]
    h_0: Tensor | None,  # [layers * D, B, H]: layer 0 forwards, layer 0 backwards, layer 1 forwards ...; None: zeros
    weights: list[Tensor],  # in the order of h_0: w and, with bias, b
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,  # [B], each 0 ... T
    resets: Tensor | None = None,  # [T, B], bool
    fresh: Tensor | None = None,  # [layers * D, B, H]; None: zeros
) -> tuple[Tensor, Tensor, list[tuple[Tensor, list[Gates]]]]:  # output; h_n; of every layer: output and gates
    """`mingru`, and the gates of each layer and direction on the way."""
    D = 2 if bidirectional else 1
    per_run = 2 if bias else 1
    H = weights[0].size(0) // 2
    # Half types and autocast's mixtures: in float32 through the whole stack, and rounded once, at the end.
    real = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    rounded = x.dtype if x.dtype in (torch.float16, torch.bfloat16) else real
    with without_autocast(x):
        x, weights = x.to(real), [w.to(real) for w in weights]
        h_0 = x.new_zeros(num_layers * D, x.size(1), H) if h_0 is None else h_0.to(real)
        fresh = None if fresh is None else fresh.to(real)
        there = None
        if lengths is not None:
            steps = torch.arange(x.size(0), device=x.device).unsqueeze(1)
            there = (steps < lengths.to(x.device)).unsqueeze(-1)
            x = torch.where(there, x, 0)  # padding may hold anything
        if resets is not None:
            resets = resets.unsqueeze(-1) if there is None else resets.unsqueeze(-1) & there
        last: list[Tensor] = []
        layers: list[tuple[Tensor, list[Gates]]] = []
        for k in range(num_layers):
            if k > 0 and training and dropout > 0:
                x = drop(x, dropout)
            outputs, layer_gates = [], []
            for d in range(D):
                run = k * D + d
                h, h_n, parts = direction(
                    x,
                    h_0[run],
                    *weights[run * per_run : (run + 1) * per_run],
                    reverse=d == 1,
                    there=there,
                    resets=resets,
                    fresh=None if fresh is None else fresh[run],
                )
                outputs.append(h)
                last.append(h_n)
                layer_gates.append(parts)
            x = outputs[0] if D == 1 else torch.cat(outputs, dim=-1)
            if there is not None:
                x = torch.where(there, x, 0)
                layer_gates = [Gates(*(torch.where(there, v, 0) for v in parts)) for parts in layer_gates]
            layers.append((x.to(rounded), [Gates(*(v.to(rounded) for v in parts)) for parts in layer_gates]))
        return x.to(rounded), torch.stack(last).to(rounded), layers


def mingru(
    x: Tensor,  # [T, B, I]
    h_0: Tensor | None,  # [layers * D, B, H]
    weights: list[Tensor],
    **options: object,  # those of `trace`
) -> tuple[Tensor, Tensor]:  # output [T, B, D * H]; h_n [layers * D, B, H]
    """The whole stack: each layer reads the output of the layer below, both directions side by side.

    Dropout falls on the output of every layer but the last, and only while `training`. With lengths, h_n is the state at
    a sequence's own end, and outputs past it are 0.
    """
    return trace(x, h_0, weights, **options)[:2]  # type: ignore[arg-type]


def step(
    x_t: Tensor,  # [B, I]
    h: Tensor | None,  # [layers, B, H]; None: zeros
    weights: list[Tensor],
    **options: object,  # those of `trace`, but for `bidirectional`
) -> tuple[Tensor, Tensor]:  # y [B, H]; the new state [layers, B, H]
    """One time step of a stack in one direction: a sequence of one. y is the last layer's new state."""
    output, h_n = mingru(x_t.unsqueeze(0), h, weights, **options)
    return output.squeeze(0), h_n
