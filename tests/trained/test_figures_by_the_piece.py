"""Of more rows than are kept, figures are added up piece by piece: the same figures, from a table in memory and from a store."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.runs import FEATURES, ROLES, sensors
from tests.helpers.tables import QUICK
from tidegate.errors import SettingsError
from tidegate.run import train
from tidegate.trained import evaluation

CASES: dict[str, dict[str, Any]] = {
    "classes": {"target": "label", "features": FEATURES},
    "classes ahead": {"target": "label", "features": ["x", "label"], "horizon": 2},
    "unseen classes": {"target": "colour", "features": ["x", "kind"], "split": "split"},
    "a number": {"target": "y", "features": FEATURES},
    "numbers ahead": {"target": ["y2", "y"], "features": ["x", "y", "y2"], "horizon": 3, "season": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_they_are_those_of_all_predictions_together(monkeypatch, case):
    asked = ROLES | QUICK | CASES[case] | {"out": False, "baselines": True}
    whole = train(sensors(), **asked)
    monkeypatch.setattr(evaluation, "MOST_KEPT", 20)
    monkeypatch.setattr(evaluation, "MOST_DRAWN", 40)
    monkeypatch.setattr("tidegate.data.sequences.BLOCK", 17)
    pieces = train(sensors(), **asked)
    assert pieces.fingerprint == whole.fingerprint
    before, now = whole.results.to_dict(), pieces.results.to_dict()
    assert {*now["baselines"]} == {*before["baselines"]}
    for a, b in zip(
        [before["model"], *before["baselines"].values()], [now["model"], *now["baselines"].values()], strict=True
    ):
        assert b["count"] == a["count"]
        assert b["missed"] == a["missed"]
        assert {*b["summary"]} == {*a["summary"]}
        for name, value in a["summary"].items():
            assert b["summary"][name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
        for one, other in zip(a["rows"], b["rows"], strict=True):
            assert other.pop("class") == one.pop("class")
            assert other == pytest.approx(one, rel=1e-9, nan_ok=True)
    for a, b in zip(whole.history, pieces.history, strict=True):
        assert {k: v for k, v in b.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in a.items() if k != "seconds"}, rel=1e-9
        )
    assert "the first" in pieces.predicted.what
    assert pieces.predicted.what.endswith("of them")


@pytest.mark.parametrize("case", CASES)
def test_they_are_the_same_to_the_bit_from_memory_and_from_a_store(tmp_path, monkeypatch, case):
    monkeypatch.setattr(evaluation, "MOST_KEPT", 20)
    monkeypatch.setattr(evaluation, "MOST_DRAWN", 40)
    sensors().write_parquet(tmp_path / "t.parquet")
    asked = ROLES | QUICK | CASES[case] | {"out": False}
    memory = train(tmp_path / "t.parquet", **asked)
    disk = train(tmp_path / "t.parquet", memory="16kB", store=str(tmp_path / "s"), **asked)
    assert disk.results.to_dict() == memory.results.to_dict()
    assert disk.fingerprint == memory.fingerprint
    assert [{**row, "seconds": 0} for row in disk.history] == [{**row, "seconds": 0} for row in memory.history]


def test_labels_in_a_store_of_more_rows_than_are_kept_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("tidegate.training.prepared.MOST_KEPT", 20)
    sensors().write_parquet(tmp_path / "t.parquet")
    asked = ROLES | QUICK | {"target": ["alarm", "door"], "memory": "16kB", "store": str(tmp_path / "s"), "out": False}
    with pytest.raises(
        SettingsError, match=r"several 0/1 labels of more than 20 can be scored only with the table in memory"
    ):
        train(tmp_path / "t.parquet", **asked)
