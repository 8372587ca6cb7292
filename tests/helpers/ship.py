"""The README's "Ship it": its commands, and the working directory that they speak of."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.runs import sensors
from tests.helpers.tables import QUICK
from tidegate.training import train

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """Those of the README, without what is said of them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Ship it\n")[1].split("\n## ")[0]
    return [line.split("  #")[0].strip() for line in section.splitlines() if line.startswith("    tidegate ")]


def working_directory(path: Path) -> Path:
    """The folder, with sensors.csv and runs/sensors in it, as the README has it."""
    sensors().write_csv(path / "sensors.csv")
    roles = {"target": "label", "group": "device", "time": "t", "features": ["x", "far", "colour"]}
    train(path / "sensors.csv", out=path / "runs" / "sensors", **(QUICK | roles))
    return path
