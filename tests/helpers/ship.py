"""The commands at the top of docs/ship.md, and the working directory that they speak of."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.pages import read
from tests.helpers.runs import sensors
from tests.helpers.tables import QUICK
from tidegate.training import train


def commands() -> list[str]:
    """Those at the top of the page, without what is said of them."""
    top = read("docs/ship.md").split("\n## ")[0]
    return [line.split("  #")[0].strip() for line in top.splitlines() if line.startswith("    tidegate ")]


def working_directory(path: Path) -> Path:
    """The folder, with sensors.csv and runs/sensors in it, as the page has it."""
    sensors().write_csv(path / "sensors.csv")
    roles = {"target": "label", "group": "device", "time": "t", "features": ["x", "far", "colour"]}
    train(path / "sensors.csv", out=path / "runs" / "sensors", **(QUICK | roles))
    return path
