"""The report draws the gates where they were logged."""

from __future__ import annotations

import polars as pl

from tests.helpers.tables import QUICK
from tests.helpers.training import ROLES
from tidegate.report.gate_curves import gate_curves
from tidegate.training import train


def test_the_report_draws_the_gates_where_they_were_logged(tmp_path, signals):
    one = train(signals, out=tmp_path / "one", log_gates=True, **(QUICK | ROLES))
    html, markdown = ((one.folder / name).read_text() for name in ("report.html", "report.md"))
    for title in ("Mean gates", "Memory length in steps"):
        assert f'aria-label="{title}"' in html
        assert f"![{title}](" in markdown
    assert (one.folder / "mean_gates.svg").is_file()
    assert "Update gate z: 1 keeps the old state" in html
    assert "Update gate z: 1 keeps the old state" in markdown
    both = train(signals, out=tmp_path / "both", log_gates=True, bidirectional=True, **(QUICK | ROLES))
    assert [title for title, _ in gate_curves(both.history)] == [
        "Mean update gate z",
        "Mean reset gate r",
        "Memory length in steps",
    ]
    assert "layer 1 backward" in (both.folder / "report.html").read_text()


def test_the_report_escapes_what_a_table_is_called_and_holds(tmp_path, signals):
    evil = "<script>alert(1)</script>"
    frame = signals.with_columns(pl.when(pl.col("label") == "up").then(pl.lit(evil)).otherwise("label").alias("label"))
    run = train(frame, out=tmp_path / "<b>run", **(QUICK | ROLES))
    html = (run.folder / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<b>run" not in html
    assert "<svg" in html  # the pictures are not escaped
