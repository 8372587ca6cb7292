"""Searches that are made up, and small ones that are real."""

from __future__ import annotations

from typing import Any

from tidegate.trained.settings import TrainSettings
from tidegate.tuning.record import Definition, Trial, Tuned


def definition(**changes: Any) -> Definition:
    settings = TrainSettings.make(target="label", group="a b", split=(0.8, 0.1, 0.1), seed=5).model_dump(mode="json")
    values: dict[str, Any] = {
        "table": "t.csv",
        "table_sha256": "0",
        "source": None,
        "settings": settings,
        "space": {"reset": "after,before", "layer_norm": "no,yes", "lr": "0.001..0.02:log"},
        "defaults": {"reset": "after", "layer_norm": False, "lr": 0.005},
        "chosen_by": "accuracy",
        "validates": 100,
        "unit": "rows",
        "tidegate": "0.1.0",
        "optuna": "5.0.0",
    }
    return Definition(**(values | changes))


def finished(
    number: int, figure: float, loss: float = 0.5, *, seed: int = 5, defaults: bool = False, **tried: Any
) -> Trial:
    settings = {"reset": "before", "layer_norm": False, "lr": 0.005} | tried
    return Trial(number, "finished", figure, loss, settings, seed, defaults, epochs=10, seconds=1.5)


def tuned(*trials: Trial, **changes: Any) -> Tuned:
    return Tuned(definition(**changes), trials, "x.study")


# The smallest search that is one: a second for a trial, figures don't matter.
ROLES = {"target": "label", "group": "device", "time": "t"}
SMALL = {"epochs": 4, "device": "cpu", "threads": 1}
SPACE = {"hidden_size": "4..12", "lr": "0.001..0.05:log", "reset": "after,before"}
