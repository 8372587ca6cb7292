"""How far back a prediction's gradient reaches, measured: a GRU beside an LSTM and a plain RNN of the same size, trained alike.

Through a plain RNN the gradient of a loss is multiplied by W_hh at every step back, so that it vanishes or explodes within
some steps (Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063); gates are there to carry it
further. Whether they did on a given table is what is found here.

| file | what it does |
| --- | --- |
| `plan.py` | which predictions are followed, and how far back |
| `unrolled.py` | a core taken apart; the gradients themselves |
| `siblings.py` | the runs of the other cells, trained alike |
| `measure.py` | all of it for a run and a table |
| `flow.py` | what was found: sentences, figures, the page |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["CellFlow", "GradientFlow", "Reach", "Unrolled", "make_plan", "measure_gradients", "relative_gradients"]

if TYPE_CHECKING:
    from tidegate.inspection.gradients.flow import CellFlow, GradientFlow, Reach
    from tidegate.inspection.gradients.measure import measure_gradients
    from tidegate.inspection.gradients.plan import make_plan
    from tidegate.inspection.gradients.unrolled import Unrolled, relative_gradients

__getattr__, __dir__ = names_of(
    __name__,
    {
        "CellFlow": "tidegate.inspection.gradients.flow",
        "GradientFlow": "tidegate.inspection.gradients.flow",
        "Reach": "tidegate.inspection.gradients.flow",
        "measure_gradients": "tidegate.inspection.gradients.measure",
        "make_plan": "tidegate.inspection.gradients.plan",
        "Unrolled": "tidegate.inspection.gradients.unrolled",
        "relative_gradients": "tidegate.inspection.gradients.unrolled",
    },
)
