"""A run's gates on a person's own table: what each step kept and wrote, and what a prediction leans on.

`gates/` knows tensors; this folder knows runs and tables. Nothing below it (`training/` and further down) imports it, but
for the methods of `Run` that lead here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["GradientFlow", "Inspection", "inspect_run", "measure_gradients", "write_page"]

if TYPE_CHECKING:
    from tidegate.inspection.gradients import GradientFlow, measure_gradients
    from tidegate.inspection.inspection import Inspection, inspect_run
    from tidegate.inspection.page import write_page

__getattr__, __dir__ = names_of(
    __name__,
    {
        "GradientFlow": "tidegate.inspection.gradients",
        "Inspection": "tidegate.inspection.inspection",
        "inspect_run": "tidegate.inspection.inspection",
        "measure_gradients": "tidegate.inspection.gradients",
        "write_page": "tidegate.inspection.page",
    },
)
