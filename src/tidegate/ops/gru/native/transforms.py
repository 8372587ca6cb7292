"""The road of `torch.func`: vmap and grad, nested as they may be, as an `autograd.Function` with a rule for vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tidegate.ops.gru import reference
from tidegate.ops.gru.extras import LayerExtras
from tidegate.ops.gru.native import layer


def _one_by_one(
    function: type[torch.autograd.Function], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A rule for vmap: the kernels run once for each of its elements."""
    found = [
        function.apply(*(v.select(d, i) if isinstance(d, int) else v for v, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])


def _or_empty(like: Tensor, values: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if v is None else v for v in values)


class Transformed(torch.autograd.Function):
    """The road of vmap and grad of torch.func, nested as they may be. All tensors are arguments of their own; `rest` is
    what `LayerExtras` has beside tensors.
    """

    @staticmethod
    def forward(
        bias: bool, rest: Any, batch_sizes: Tensor | None, x: Tensor, h_0: Tensor, *more: Any
    ) -> tuple[Tensor, ...]:
        extras, weights = LayerExtras(*more[:6], *rest), more[6:]
        output, h_n, *saved = layer.forward(x, h_0, weights, bias, batch_sizes, True, extras=extras, shown=True)
        return output, h_n, *_or_empty(x, saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bias, ctx.rest, *tensors = inputs
        ctx.save_for_backward(output[0], output[2], output[3], *tensors)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor, d_h_n: Tensor, d_saved: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs = (ctx.bias, ctx.rest, d_output, d_h_n, d_saved, *tensors)
        found = _TransformedBackward.apply(*inputs)  # type: ignore[no-untyped-call]  # (torch's)
        d_x, d_h_0, d_fresh, *d_weights = found
        fresh = tensors[9]
        nothing = (None,) * 3
        return *nothing, d_x, d_h_0, *nothing, None if fresh is None else d_fresh, None, None, *d_weights

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _one_by_one(Transformed, info, in_dims, args)


class _TransformedBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        bias: bool,
        rest: Any,
        d_output: Tensor,
        d_h_n: Tensor,
        d_saved: Tensor,
        output: Tensor,
        saved: Tensor,
        norms: Tensor,
        batch_sizes: Tensor | None,
        x: Tensor,
        h_0: Tensor,
        *more: Any,
    ) -> tuple[Tensor, ...]:
        extras, weights = LayerExtras(*more[:6], *rest), more[6:]
        d_x, d_h_0, d_fresh, d_weights = layer.backward(
            d_output, d_h_n, d_saved, x, h_0, output.contiguous(), saved.contiguous(),
            norms.contiguous() if extras.norm else None, [w.contiguous() for w in weights], bias, batch_sizes, extras,
            True, True, extras.fresh is not None, [True] * len(weights),
        )  # fmt: skip
        return _or_empty(x, (d_x, d_h_0, d_fresh, *d_weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bias, ctx.rest, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Through the reference's own derivative."""
        d_output, d_h_n, d_saved, _, _, _, batch_sizes, x, h_0, *more = ctx.saved_tensors
        extras, weights = LayerExtras(*more[:6], *ctx.rest), more[6:]
        fresh = torch.zeros_like(h_0) if extras.fresh is None else extras.fresh  # (vjp takes no None)

        def gradients(
            d_output: Tensor, d_h_n: Tensor, d_gates: Tensor, x: Tensor, h_0: Tensor, fresh: Tensor, *weights: Tensor
        ) -> tuple[Tensor, ...]:
            def run(x: Tensor, h_0: Tensor, fresh: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                found = reference.layer(x, h_0, weights, ctx.bias, batch_sizes, extras._replace(fresh=fresh))
                return found[0], found[1], found[2].reshape(h_0.size(0), -1, *found[2].shape[-2:])

            back: Any = torch.func.vjp(run, x, h_0, fresh, *weights)[1]
            d_x, d_h_0, d_fresh, *d_weights = back((d_output, d_h_n, d_gates))
            return d_x, d_h_0, x.new_empty(0) if extras.fresh is None else d_fresh, *d_weights

        d_gates = d_saved[:, :, :4]
        back: Any = torch.func.vjp(gradients, d_output, d_h_n, d_gates, x, h_0, fresh, *weights)[1]
        d_output, d_h_n, d_gates, d_x, d_h_0, d_fresh, *d_weights = back(upstream)
        d_saved = torch.cat([d_gates, d_saved.new_zeros(d_saved[:, :, 4:].shape)], 2)
        nothing = (None,) * 3
        return (
            None, None, d_output, d_h_n, d_saved, *nothing, None, d_x, d_h_0, *nothing,
            None if extras.fresh is None else d_fresh, None, None, *d_weights,
        )  # fmt: skip

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _one_by_one(_TransformedBackward, info, in_dims, args)
