"""`tidegate tune`: a search for settings, on Optuna. Each trial is a training in memory, chosen by its validation rows.

| file | what it does |
| --- | --- |
| `search.py` | `tune`: what is searched, one trial after the other, until there are enough |
| `space.py` | what a trial may vary: from text, YAML, or by default |
| `trial.py` | one trial: trained in memory, reported epoch by epoch, pruned |
| `study.py` | the study in Optuna's storage, which processes and machines share |
| `optuna_parts.py` | what Optuna lets us put in: how values are drawn, and how the journal file is locked |
| `place.py`, `owner.py` | where a study is; whose a running trial is, and whether that process is gone |
| `record.py` | what came of it, as data: the definition of a study, its trials, the best of them |
| `report.py`, `pictures.py` | the page about a study |
| `progress.py` | what a person sees |

Optuna is imported by `study.py` and `optuna_parts.py` alone, and these when a search begins. Lazy, so that the command line can show
its help without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidegate._lazy import names_of

__all__ = ["Trial", "Tuned", "open_study", "tune", "write_report"]

if TYPE_CHECKING:
    from tidegate.tuning.record import Trial, Tuned
    from tidegate.tuning.report import write_report
    from tidegate.tuning.search import open_study, tune

__getattr__, __dir__ = names_of(
    __name__,
    {
        "Trial": "tidegate.tuning.record",
        "Tuned": "tidegate.tuning.record",
        "open_study": "tidegate.tuning.search",
        "tune": "tidegate.tuning.search",
        "write_report": "tidegate.tuning.report",
    },
)
