"""What a back end is, and the table of all of them. `tidegate.backends` chooses from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from tidegate.ops.gru import native, reference, torch_aten
from tidegate.ops.gru.extras import Extras


class Backend(Protocol):
    """An implementation of the GRU: a module of `ops/gru` with these names. `reference` says what its functions compute.

    `kept` is a dictionary of the caller's (`Kept`) in which a back end may keep what it makes of the weights.
    """

    @property
    def name(self) -> str: ...  # what `backend=` calls it

    @property
    def about(self) -> str: ...  # what it is, for `explain()`

    @property
    def in_transforms(
        self,
    ) -> bool: ...  # whether "auto" may take it in the transforms of torch.func, unless `why_not` objects

    def missing(self) -> str | None:
        """Why it can't run in this installation at all; None where it can."""

    def why_not(self, x: Any, wishes: Sequence[str]) -> str | None:
        """Why a call with an input like x that wants all this can't run here; None where it can. Well below a microsecond.

        wishes: what of the call `torch.nn.GRU` does not have; see `extras.WISHES`.
        """

    def gru(
        self,
        x: Tensor,  # [T, B, I], or [rows, I] with batch_sizes or extras.starts
        h_0: Tensor | None,  # [layers * D, B, H]; None: zeros
        weights: list[Tensor],
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        training: bool = False,
        batch_sizes: Tensor | None = None,  # [T], int64, on the CPU
        extras: Extras | None = None,
        kept: dict[Any, Any] | None = None,
    ) -> tuple[Tensor, Tensor]: ...  # output; h_n

    def step(
        self,
        x_t: Tensor,  # [B, I]
        h: Tensor | None,  # [layers, B, H]; None: zeros
        weights: list[Tensor],
        *,
        num_layers: int = 1,
        bias: bool = True,
        dropout: float = 0.0,
        training: bool = False,
        extras: Extras | None = None,
        kept: dict[Any, Any] | None = None,
    ) -> tuple[Tensor, Tensor]: ...  # y [B, H]; the new state [layers, B, H]

    def gru_cell(
        self,
        x_t: Tensor,  # [B, I]
        h_prev: Tensor,  # [B, H]
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
        *,
        kept: dict[Any, Any] | None = None,
    ) -> Tensor: ...  # [B, H]

    # What a back end need not have: then it is None.

    @property
    def trace(self) -> Callable[..., tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]] | None:
        """`gru`, and the gates of every layer: output and r, z, n, h_n [D, ..., 4, H]. Its `why_not` knows the wish "trace"."""

    @property
    def quick_step(self) -> QuickStep | None:
        """`step` for a stream, asked before the caller checks anything."""

    @property
    def quick_gru(self) -> QuickGru | None:
        """`gru` for a short call of one layer without extras, asked before the caller checks anything."""

    @property
    def join_weights(self) -> JoinWeights | None:
        """Asked wherever the weights of a layer get new memory: to move them to where it wants them, the values unchanged."""

    @property
    def affine(self) -> Affine | None:
        """W x + b for what stands on a recurrence, with this back end's promise."""


class QuickStep(Protocol):
    def __call__(
        self,
        kept: dict[Any, Any],
        x_t: Any,
        h: Any,
        parameters: dict[str, Any],  # the module's own
        form: tuple[str, bool, float] = ...,  # reset, layer_norm, zoneout
        /,
    ) -> tuple[Tensor, Tensor] | None:
        """`step` where everything is as it was at the last step. None in any other case: then `step` is the way."""


class QuickGru(Protocol):
    def __call__(
        self,
        kept: dict[Any, Any],
        x: Any,  # [T, B, I], or [B, T, I] if batch_first
        h_0: Any,  # [D, B, H]; None: zeros
        parameters: dict[str, Any],  # the module's own
        batch_first: bool,
        /,
    ) -> tuple[Tensor, Tensor] | None:  # output, laid out like x; h_n
        """`gru` where everything is as it was at the last call. None in any other case: then `gru` is the way."""


class JoinWeights(Protocol):
    def __call__(
        self,
        weights: list[Tensor],
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
    ) -> None: ...


class Affine(Protocol):
    def can_affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> bool:
        """Whether the functions below take these."""

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """W x + b, [..., O]. No gradients."""

    def affine_with_gradients(self, x: Tensor, weight: Tensor, bias: Tensor, /) -> Tensor:
        """The same for training."""

    def affine_into(self, weight: Tensor, bias: Tensor, y: Tensor) -> Callable[[int], None]:
        """A function of the address of one row [I] that writes W x + b to y [1, O]."""


IN_ORDER: tuple[Backend, ...] = (native, torch_aten, reference)
"""All of them, in the order in which "auto" prefers them."""

BACKENDS: dict[str, Backend] = {back_end.name: back_end for back_end in IN_ORDER}

PREFERRED: dict[str, Backend] = {"auto": IN_ORDER[0], **BACKENDS}
"""What a `backend=` stands for where nothing is in the way."""
