"""Tables, sentences and the raw numbers."""

from __future__ import annotations

import csv
from dataclasses import asdict

import pytest

from tidegate.bench import report
from tidegate.bench.measure import Row


def row(peer: str, median_us: float | None, kind: str = "forward", threads: int = 1, H: int = 20, **more) -> Row:
    status = "ok" if median_us is not None else more.pop("status")
    return Row(kind, threads, 5, 7, 10, H, 1, peer, f"{peer} 1.0", status, median_us, **more)


WON = [row("tidegate", 10.0, share_of_peak=0.256), row("torch", 40.0), row("jax", 20.0)]
LOST = [row("tidegate", 1250.0, H=64, share_of_peak=0.5), row("torch", 1300.0, H=64), row("jax", 1000.0, H=64)]


def test_a_line_has_every_peers_time_our_ratio_to_the_fastest_other_and_our_share_of_the_peak():
    assert report.table(WON) == [
        {
            "B T I H layers": "5 7 10 20 1",
            "tidegate": "10.0",
            "torch": "40.0",
            "jax": "20.0",
            "over fastest other": "0.50",
            "of peak": "26%",
        }
    ]


def test_a_losing_cell_is_marked_and_has_a_sentence():
    assert [line["over fastest other"] for line in report.table(WON + LOST)] == ["0.50", "1.25 slower"]
    assert report.losses(WON + LOST) == [
        "forward, 1 thread, B 5, T 7, I 10, H 64: "
        "tidegate is slower than jax, 1,250 us to 1,000 us, 1.25 times as long."
    ]
    shown = report.render(WON + LOST)
    assert "1.25 slower" in shown
    assert report.losses(LOST)[0] in shown
    assert "fastest of those" not in shown


def test_a_cell_that_is_lost_by_a_hair_is_lost():
    lost = [row("tidegate", 100.1), row("torch", 100.0)]
    assert report.table(lost)[0]["over fastest other"] == "1.00 slower"
    assert len(report.losses(lost)) == 1


def test_training_is_set_over_torch_and_over_the_fastest_of_jax_and_keras_apart():
    times = {"tidegate": 30.0, "torch": 60.0, "jax": 40.0, "keras": 90.0, "keras-xla": 20.0}
    rows = [row(peer, us, kind="train") for peer, us in times.items()]
    (line,) = report.table(rows)
    assert (line["over torch.nn.GRU"], line["over fastest JAX/Keras"]) == ("0.50", "1.50 slower")
    (sentence,) = report.losses(rows)
    assert "slower than keras-xla, 30.0 us to 20.0 us, 1.50 times" in sentence


def test_a_comparison_that_nobody_is_there_for_has_no_column():
    rows = [row("tidegate", 30.0, kind="train"), row("torch", 60.0, kind="train")]
    assert list(report.table(rows)[0]) == ["B T I H layers", "tidegate", "torch", "over torch.nn.GRU"]


def test_wrong_and_failed_peers_are_shown_as_such_and_win_nothing():
    rows = [
        row("tidegate", 10.0),
        row("torch", 40.0),
        row("openvino", None, status="wrong", reason="error 0.02", error=0.02),
        row("jax", None, status="failed", reason="RuntimeError: out of memory"),
    ]
    (line,) = report.table(rows)
    assert (line["openvino"], line["jax"]) == ("wrong: error 0.02", "failed")
    assert line["over fastest other"] == "0.25"
    assert report.notes(rows) == [
        "forward, 1 thread, B 5, T 7, I 10, H 20: openvino is wrong and was not timed: error 0.02.",
        "forward, 1 thread, B 5, T 7, I 10, H 20: jax failed: RuntimeError: out of memory.",
    ]
    assert all(note in report.render(rows) for note in report.notes(rows))


def test_where_we_have_no_time_there_is_no_ratio_and_no_praise():
    failed = [row("tidegate", None, status="failed", reason="x", H=64), row("torch", 40.0, H=64)]
    assert report.table(WON[:2] + failed)[1]["over fastest other"] == ""
    assert "fastest of those" not in report.render(WON[:2] + failed)
    assert "fastest of those" in report.render(WON)
    assert "fastest of those" not in report.render(WON[:1])  # nobody to compare with


def test_a_share_of_the_peak_that_cannot_be_is_explained():
    (note,) = report.notes([row("tidegate", 10.0, share_of_peak=1.2)])
    assert "other programs were at work" in note
    assert report.notes(WON) == []


def test_every_kind_and_number_of_threads_has_a_table_of_its_own():
    rows = [row("tidegate", 1.0, kind=kind, threads=n) for n in (1, 2) for kind in ("step", "forward", "train")]
    assert [report.title(block) for block in report.blocks(rows)] == [
        "forward, 1 thread: microseconds a call",
        "forward, 2 threads: microseconds a call",
        "forward+backward, 1 thread: microseconds a call",
        "forward+backward, 2 threads: microseconds a call",
        "single step, 1 thread: microseconds a call",
        "single step, 2 threads: microseconds a call",
    ]


def test_plain_tables_have_columns_of_one_width_and_figures_to_the_right():
    head, first, second = report.plain(report.table(WON + LOST)).splitlines()
    for name in ("tidegate", "torch", "of peak"):
        end = head.index(name) + len(name)
        assert first[end - 1] != " "
        assert second[end - 1] != " "
    assert head.startswith("B T I H layers  ")


def test_markdown_has_a_heading_a_table_and_a_list():
    heading, _, head, rule, *lines = report.render(WON + LOST, markdown_=True).splitlines()
    assert heading == "### forward, 1 thread: microseconds a call"
    assert head == "| B T I H layers | tidegate | torch | jax | over fastest other | of peak |"
    assert rule == "| " + " | ".join(["---"] * 6) + " |"
    assert lines[0] == "| 5 7 10 20 1 | 10.0 | 40.0 | 20.0 | 0.50 | 26% |"
    assert lines[-1] == "- " + report.losses(LOST)[0]


def test_the_csv_has_the_machine_first_and_then_every_field_of_every_row(tmp_path):
    rows = [row("tidegate", 10.123456, error=1.23456789e-7), row("jax", None, status="failed", reason='a, "b"')]
    text = report.csv_text("a machine, 2 threads", report.raw(rows))
    first, *rest = text.splitlines()
    assert first == "# a machine, 2 threads"
    read = list(csv.DictReader(rest))
    assert list(read[0]) == list(asdict(rows[0]))
    assert (float(read[0]["median_us"]), float(read[0]["error"])) == pytest.approx((10.123, 1.2346e-7))
    assert (read[1]["median_us"], read[1]["reason"]) == ("", 'a, "b"')
