"""What is measured: the shapes, and what is done at each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tidegate.errors import SettingsError

KINDS = {"forward": "forward", "train": "forward+backward", "step": "single step"}
"""The name of a kind on the command line and in the raw numbers, and how the tables call it."""

QUICK = 1_000_000_000
"""Multiply-adds that a cell of `--quick` may have: some 50 ms a call for a slow peer on one core."""


@dataclass(frozen=True)
class Shape:
    B: int  # batch
    T: int  # steps
    I: int  # input features
    H: int  # hidden units
    layers: int = 1

    @classmethod
    def parse(cls, text: str) -> Shape:
        """`B,T,I,H` or `B,T,I,H,layers`. Raises SettingsError.

        >>> Shape.parse("5,7,10,20")
        Shape(B=5, T=7, I=10, H=20, layers=1)
        """
        try:
            sizes = [int(word) for word in text.split(",")]
        except ValueError:
            sizes = []
        if len(sizes) not in (4, 5) or min(sizes) < 1:
            raise SettingsError(
                f"--shape {text}: expected B,T,I,H,layers, whole numbers from 1 on, such as 32,50,32,64,1."
            )
        return cls(*sizes)

    def multiply_adds(self, kind: str) -> int:
        """What the products of matrices need, the gates' arithmetic left out.

        Backwards costs the same product twice, for the weights and for what lies below; x wants no gradient, so the
        first layer's input has only one of them.

        >>> Shape(1, 1, 2, 3).multiply_adds("forward"), Shape(1, 1, 2, 3).multiply_adds("train")
        (45, 117)
        """
        per_feature = self.T * self.B * 3 * self.H
        forward = per_feature * (self.I + self.H + (self.layers - 1) * 2 * self.H)
        return 3 * forward - per_feature * self.I if kind == "train" else forward

    def __str__(self) -> str:
        stack = f", {self.layers} layers" if self.layers > 1 else ""
        return f"B {self.B}, T {self.T}, I {self.I}, H {self.H}{stack}"


@dataclass(frozen=True)
class Cell:
    """A shape and what is done at it: a row of a table."""

    kind: str
    shape: Shape

    def __str__(self) -> str:
        return f"{KINDS[self.kind]}, {self.shape}"


GRID = (
    Shape(5, 7, 10, 20),  # the example on torch.nn.GRU's page
    Shape(1, 100, 40, 64),  # one stream
    Shape(32, 50, 32, 64),
    Shape(32, 100, 64, 128),
    Shape(64, 32, 32, 128),
    Shape(64, 128, 128, 256),
    Shape(16, 256, 256, 512, 2),
    Shape(128, 100, 64, 128, 2),
    Shape(8, 200, 512, 1024),  # 18 MB of weights, more than a core's own cache holds
)
STEPS = (Shape(1, 1, 40, 64), Shape(1, 1, 256, 256))


def cells(kinds: Iterable[str] = KINDS, shapes: Iterable[Shape] = (), quick: bool = False) -> list[Cell]:
    """The cells of these kinds, the grid's where no shapes are given. A single step is at T = 1 whatever the shape says.

    `quick` leaves the grid's long cells out; a shape that was asked for stays.
    """
    kinds, shapes = list(kinds), list(shapes)
    if shapes:
        chosen = [Cell(kind, replace(s, T=1) if kind == "step" else s) for kind in kinds for s in shapes]
        return list(dict.fromkeys(chosen))
    chosen = [Cell(kind, shape) for kind in kinds for shape in (STEPS if kind == "step" else GRID)]
    return [cell for cell in chosen if not quick or cell.shape.multiply_adds(cell.kind) <= QUICK]
