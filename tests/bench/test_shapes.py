"""Which cells are measured, and how much work is in one."""

from __future__ import annotations

import numpy as np
import pytest

from tidegate.bench import case
from tidegate.bench.shapes import GRID, KINDS, QUICK, STEPS, Cell, Shape, cells
from tidegate.errors import SettingsError


def test_a_shape_is_read_from_its_sizes_and_has_one_layer_if_none_is_said():
    assert Shape.parse("5,7,10,20") == Shape(B=5, T=7, I=10, H=20, layers=1)
    assert Shape.parse("5, 7, 10, 20, 3") == Shape(B=5, T=7, I=10, H=20, layers=3)


@pytest.mark.parametrize("text", ["", "5,7,10", "5,7,10,20,1,1", "5,7,ten,20", "5,7,0,20", "5,-7,10,20", "5 7 10 20"])
def test_any_other_shape_is_answered_with_the_argument_and_an_example(text):
    with pytest.raises(SettingsError, match=r"--shape .*expected B,T,I,H,layers.*32,50,32,64,1"):
        Shape.parse(text)


@pytest.mark.parametrize("shape", [Shape(5, 7, 10, 20), Shape(3, 4, 2, 6, 3)], ids=str)
def test_multiply_adds_are_one_for_every_weight_of_a_matrix_row_and_step(shape):
    weights = case.make(Cell("train", shape)).weights
    matrices = {name: w.size * shape.T * shape.B for name, w in weights.items() if w.ndim == 2}
    forward = sum(matrices.values())
    assert shape.multiply_adds("forward") == forward
    # Backwards: once more for the gradient of each weight, and once for what each matrix was multiplied by, but x.
    assert shape.multiply_adds("train") == 3 * forward - matrices["weight_ih_l0"]


def test_the_grid_has_every_kind_and_single_steps_have_shapes_of_their_own():
    grid = cells()
    assert {cell.kind for cell in grid} == set(KINDS)
    assert [cell.shape for cell in grid if cell.kind == "train"] == list(GRID)
    assert [cell.shape for cell in grid if cell.kind == "step"] == list(STEPS)
    assert all(cell.shape.T == 1 for cell in grid if cell.kind == "step")


def test_a_shape_that_is_asked_for_takes_the_place_of_the_grid_and_is_stepped_at_one_step():
    one, other = Shape(2, 9, 3, 4), Shape(2, 8, 3, 4)
    assert cells(["forward", "step"], [one, other]) == [
        Cell("forward", one),
        Cell("forward", other),
        Cell("step", Shape(2, 1, 3, 4)),  # once, although both shapes lead to it
    ]


def test_quick_leaves_out_the_grids_long_cells_but_no_shape_that_was_asked_for():
    quick = cells(quick=True)
    assert quick == [c for c in cells() if c.shape.multiply_adds(c.kind) <= QUICK]
    assert {c.kind for c in quick} == set(KINDS)
    assert len(quick) < len(cells())
    long = Shape(64, 512, 512, 512)
    assert cells(["train"], [long], quick=True) == [Cell("train", long)]


def test_all_processes_are_given_the_same_numbers():
    a, b = (case.make(Cell("train", Shape(2, 3, 4, 5))) for _ in range(2))
    assert np.array_equal(a.x, b.x)
    assert all(np.array_equal(a.weights[name], b.weights[name]) for name in a.weights)
