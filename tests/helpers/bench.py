"""Small cells, and a peer's way through the gate; shared with tests/peers."""

from __future__ import annotations

from tidegate.bench import case
from tidegate.bench.peers import Peer
from tidegate.bench.shapes import Cell, Shape

SHAPES = [Shape(B=3, T=5, I=4, H=6), Shape(B=2, T=4, I=3, H=7, layers=2)]


def as_cell(kind: str, shape: Shape) -> Cell:
    return Cell(kind, Shape(shape.B, 1, shape.I, shape.H, shape.layers) if kind == "step" else shape)


def checked(peer: Peer, given: case.Case) -> tuple[float, bool]:
    runner = getattr(peer, given.cell.kind)(given)
    with runner.around():
        for _ in range(case.GATE_STEPS if given.cell.kind == "step" else 1):
            result = runner.call()
    return case.check(runner.read(result), case.truth(given))
