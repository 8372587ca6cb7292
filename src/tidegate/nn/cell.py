"""`GRUCell`: one step of one layer."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from tidegate import backends
from tidegate.nn import checks
from tidegate.nn.capture import as_node, not_scriptable
from tidegate.nn.kept import Kept
from tidegate.ops.gru.backend import PREFERRED


class GRUCell(nn.Module):
    """One step of a gated recurrent layer; a drop-in for `torch.nn.GRUCell`.

        r = σ(W_ir x + b_ir + W_hr h + b_hr)
        z = σ(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn))
        h' = (1 - z) ⊙ n + z ⊙ h                         z = 1 keeps the old state

    Arguments (names, order and defaults are torch's; `backend` by keyword only):
        input_size: I ≥ 1, the features of x.
        hidden_size: H ≥ 1, the units.
        bias: whether the b are there.
        device, dtype: of the parameters.
        backend: which implementation runs, as in `tidegate.GRU`.

    Parameters, the gates stacked in the order r, z, n: weight_ih [3H, I], weight_hh [3H, H], bias_ih [3H],
    bias_hh [3H]. They start uniform in ±1/√H, drawn in torch's order.

    Raises `TypeError` and `SettingsError` (a `ValueError`) for arguments out of their range, and
    `BackendUnavailableError` for a back end that can't run here.

    Cost: 6·H·(I + H) floating point operations for each row. For whole sequences `tidegate.GRU` is faster.

    Paper: Cho et al. 2014, arXiv:1406.1078.

    >>> import torch, tidegate
    >>> cell = tidegate.GRUCell(10, 20)
    >>> h = torch.zeros(3, 20)                        # [B, H]
    >>> for x_t in torch.randn(6, 3, 10):             # [T, B, I], one step at a time
    ...     h = cell(x_t, h)
    >>> h.shape
    torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        me = type(self).__name__
        self.input_size = checks.positive_int(me, "input_size", input_size)
        self.hidden_size = checks.positive_int(me, "hidden_size", hidden_size)
        self.bias = checks.true_or_false(me, "bias", bias)
        backends.check(backend)  # raises now rather than at the first call
        self.backend = backend
        self._kept = Kept()

        shapes = {
            "weight_ih": (3 * self.hidden_size, self.input_size),
            "weight_hh": (3 * self.hidden_size, self.hidden_size),
            "bias_ih": (3 * self.hidden_size,) if self.bias else None,
            "bias_hh": (3 * self.hidden_size,) if self.bias else None,
        }
        for name, shape in shapes.items():
            parameter = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform in ±1/√H, in the order of `parameters()`."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step from the state `hx` (None: zeros) with `input`: [B, I] and [B, H] -> [B, H], or [I] and
        [H] -> [H].

        Raises `ShapeError` (a `ValueError` and a `RuntimeError`) for a wrong shape, dtype or device.
        """
        preferred = PREFERRED.get(self.backend)  # (None: `choose` will raise)
        quick_step = None if preferred is None else preferred.quick_step
        if quick_step is not None and type(hx) is Tensor:
            done = quick_step(self._kept, input, hx.unsqueeze(0), self._parameters)
            if done is not None:
                return done[0]
        if (
            not (type(input) is Tensor and (hx is None or type(hx) is Tensor))
            and (node := as_node(self, "forward", input, hx)) is not None
        ):
            return cast(Tensor, node)
        w_ih, w_hh, b_ih, b_hh = self._weights()
        axes = input.dim() if isinstance(input, Tensor) else 0
        if not (axes in (1, 2) and input.size(-1) == self.input_size and checks.fits(input, w_ih)):
            raise checks.cell_input_error(self, input, w_ih)
        x = input if axes == 2 else input.unsqueeze(0)
        B = x.size(0)

        if hx is None:
            h = torch.zeros(B, self.hidden_size, dtype=x.dtype, device=x.device)
        else:
            shape = (B, self.hidden_size) if axes == 2 else (self.hidden_size,)
            if not (isinstance(hx, Tensor) and hx.shape == shape and checks.fits(hx, w_ih)):
                raise checks.state_error(self, hx, shape, "B H" if axes == 2 else "H", w_ih)
            h = hx if axes == 2 else hx.unsqueeze(0)

        h = backends.choose(self.backend, x).gru_cell(x, h, w_ih, w_hh, b_ih, b_hh, kept=self._kept)
        return h if axes == 2 else h.squeeze(0)

    def __prepare_scriptable__(self) -> Any:
        raise not_scriptable(
            self,
            "In a copy of the model put a torch.nn.GRUCell that loads its state_dict in its place, or use torch.jit.trace.",
        )

    def extra_repr(self) -> str:
        said = [f"{self.input_size}, {self.hidden_size}"]
        if not self.bias:
            said.append("bias=False")
        if self.backend != "auto":
            said.append(f"backend={self.backend!r}")
        return ", ".join(said)

    def _weights(self) -> list[Tensor]:
        """The weights as they are now (see `GRU._weights`)."""
        own: dict[str, Any] = self._parameters
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return [own[name] if name in own else getattr(self, name) for name in names]
