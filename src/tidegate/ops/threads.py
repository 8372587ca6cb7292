"""PyTorch's operators whose bits depend on the number of threads, and the way around them."""

from __future__ import annotations

from types import TracebackType

import torch


class one_thread:
    """While the block runs, PyTorch's operators work on the calling thread alone. (0.5 µs.)

    For those few whose bits depend on the number of threads: a sum over a whole tensor, which is cut into as many parts as there
    are threads, and σ, for which the last values of each part take another exponential than the others.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = torch.get_num_threads()
        if self._before > 1:
            torch.set_num_threads(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before > 1:
            torch.set_num_threads(self._before)
