"""The numbers that every peer is given in a cell, and the right answer to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tidegate.bench.shapes import Cell, Shape
from tidegate.ops.gru import reference

GATE_STEPS = 4
"""Steps after which a single step is checked: a state that is not handed on shows from the second on."""

BOUNDS = {"output": 1e-4, "gradient": 1e-3}
"""How far a peer may be from float64, relative to the largest value of the tensor. float32 stays well within."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    cell: Cell
    x: np.ndarray  # [T, B, I], float32 like the rest
    h_0: np.ndarray  # [layers, B, H], zeros
    d_output: np.ndarray  # [T, B, H], what comes from above backwards: another value everywhere
    weights: Arrays  # by torch's names, gates in torch's order r, z, n

    @property
    def shape(self) -> Shape:
        return self.cell.shape

    def layer(self, k: int) -> list[np.ndarray]:
        """w_ih [3H, I], w_hh [3H, H], b_ih [3H], b_hh [3H] of layer k."""
        return [self.weights[f"{name}_l{k}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def make(cell: Cell) -> Case:
    """The same numbers at every call, so that all processes measure the same."""
    s = cell.shape
    rng = np.random.default_rng(0)
    bound = 1 / math.sqrt(s.H)
    weights = {}
    for k in range(s.layers):
        sizes = {"weight_ih": (s.I if k == 0 else s.H,), "weight_hh": (s.H,), "bias_ih": (), "bias_hh": ()}
        for name, width in sizes.items():
            weights[f"{name}_l{k}"] = rng.uniform(-bound, bound, (3 * s.H, *width)).astype(np.float32)
    return Case(
        cell,
        x=rng.standard_normal((s.T, s.B, s.I), dtype=np.float32),
        h_0=np.zeros((s.layers, s.B, s.H), dtype=np.float32),
        d_output=rng.standard_normal((s.T, s.B, s.H), dtype=np.float32),
        weights=weights,
    )


def truth(case: Case) -> Arrays:
    """`output`, and for training every weight's gradient by its name, from the definition in float64."""
    kind = case.cell.kind
    x, h_0, d_output = (torch.from_numpy(a).double() for a in (case.x, case.h_0, case.d_output))
    if kind == "step":
        x = x.expand(GATE_STEPS, -1, -1)
    weights = {name: torch.from_numpy(w).double().requires_grad_(kind == "train") for name, w in case.weights.items()}
    output, _ = reference.gru(x, h_0, list(weights.values()), num_layers=case.shape.layers)
    answer = {"output": output[-1] if kind == "step" else output}
    if kind == "train":
        answer |= zip(weights, torch.autograd.grad(output, list(weights.values()), d_output), strict=True)
    return {name: value.detach().numpy() for name, value in answer.items()}


def check(found: Mapping[str, np.ndarray], right: Arrays) -> tuple[float, bool]:
    """The largest relative error of any tensor, and whether every tensor is within its bound.

    Raises ValueError where a tensor is missing or has another shape.
    """
    worst, passed = 0.0, True
    for name, value in right.items():
        if name not in found or found[name].shape != value.shape:
            got = f"has shape {found[name].shape}" if name in found else "is missing"
            raise ValueError(f"{name} {got}, expected {value.shape}")
        error = float(np.max(np.abs(found[name] - value)) / np.max(np.abs(value)))
        passed &= error <= BOUNDS["output" if name == "output" else "gradient"]  # false for NaN too
        worst = float(np.maximum(worst, error))  # hands on NaN, which max() would lose
    return worst, passed
