"""A run's gates on a person's own table: what each step kept and wrote, and what a prediction leans on.

`gates/` knows tensors; this folder knows runs and tables.

| file | what it does |
| --- | --- |
| `look.py` | reads a table, traces a sequence and counts the units |
| `inspection.py` | `Inspection`, what was seen: as numbers, sentences, a page, a picture |
| `lean.py`, `sequence.py` | what predictions lean on; one sequence of a table |
| `page.py`, `picture.py` | the page and the picture |
| `gradients/` | how far back a prediction's gradient reaches |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["GradientFlow", "Inspection", "inspect_run", "measure_gradients", "write_page"]

if TYPE_CHECKING:
    from tidegate.inspection.gradients import GradientFlow, measure_gradients
    from tidegate.inspection.inspection import Inspection
    from tidegate.inspection.look import inspect_run
    from tidegate.inspection.page import write_page

__getattr__, __dir__ = names_of(
    __name__,
    {
        "GradientFlow": "tidegate.inspection.gradients",
        "Inspection": "tidegate.inspection.inspection",
        "inspect_run": "tidegate.inspection.look",
        "measure_gradients": "tidegate.inspection.gradients",
        "write_page": "tidegate.inspection.page",
    },
)
