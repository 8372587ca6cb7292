"""The report of a run: report.md, report.html and their charts.

| file | what it makes |
| --- | --- |
| `report.py` | both pages |
| `repeats.py` | both pages of several runs |
| `predictions.py` | pictures of the predictions |
| `charts.py` | line charts as SVG |
| `gate_curves.py` | the gates over the epochs |
"""

from tidegate.report.report import write_report

__all__ = ["write_report"]
