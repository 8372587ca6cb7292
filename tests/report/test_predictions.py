"""What a report shows of predictions is what `predict` gives, chosen by the rules that its captions state."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ET

import numpy as np
import polars as pl
import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tests.helpers.tables import QUICK, signal_table
from tidegate.data.preprocessing import Target
from tidegate.data.sequences import MISSING_CLASS
from tidegate.report.predictions import confusion_matrix, label_dots, most_confused, scatter
from tidegate.trained import predicted as module
from tidegate.trained.predicted import Confusion
from tidegate.training import load, train

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<b>"x" & [y]'


def with_targets(seed: int = 0) -> pl.DataFrame:
    """Two numbers, two labels and a class a step, and which part each sequence is in: ten of 24 are scored."""
    frame = signal_table(seed=seed)
    rng = np.random.default_rng(seed)
    number = pl.Series(np.cumsum(rng.standard_normal(frame.height)) * 3 + 40)
    parts = {f"d{k}": "test" if k < 10 else "valid" if k < 12 else "train" for k in range(24)}
    return frame.with_columns(
        **{EVIL: number},
        level=pl.Series(rng.standard_normal(frame.height)),
        wet=(pl.col("x") > 0).cast(pl.Int64),
        cold=pl.Series(rng.integers(0, 2, frame.height)),
        split=pl.col("device").replace_strict(parts),
    )


TABLE = with_targets()
SCORED = TABLE.filter(pl.col("split") == "test")
SETTINGS = QUICK | {"group": "device", "time": "t"} | {"features": ["x", "colour"], "split": "split", "epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(target, ...): a run on TABLE, made once."""
    kept, folder = {}, tmp_path_factory.mktemp("predictions")

    def run(target, **more):
        key = repr((target, more))
        if key not in kept:
            kept[key] = train(TABLE, target, out=folder / f"run {len(kept)}", **SETTINGS | more)
        return kept[key]

    return run


def pictures(run) -> dict[str, ET.Element]:
    """The drawings that the Markdown names, each by its file."""
    names = re.findall(r"^!\[.*\]\((\w+)\.svg\)$", (run.folder / "report.md").read_text(), re.MULTILINE)
    return {name: ET.parse(run.folder / f"{name}.svg").getroot() for name in names}


def texts(svg: ET.Element) -> list[str]:
    return ["".join(t.itertext()) for t in svg.iter(f"{SVG}text")]


def test_the_confusion_matrix_has_the_counts_of_torchmetrics(trained):
    run = trained("label")
    found = run.predict(SCORED)
    classes = run.predicted.confusion.truths
    p, t = (torch.tensor([classes.index(v) for v in found[name]]) for name in ("prediction", "label"))
    assert (run.predicted.confusion.counts == multiclass_confusion_matrix(p, t, len(classes)).numpy()).all()
    svg = pictures(run)["confusion_matrix"]
    told = [g.find(f"{SVG}title").text for g in svg.iter(f"{SVG}g")]
    count = ((found["label"] == "up") & (found["prediction"] == "down")).sum()
    of = (found["label"] == "up").sum()
    assert f"true up, predicted down: {count:,} of {of:,} ({100 * count / of:.0f} %)" in told
    assert len([r for r in svg.iter(f"{SVG}rect") if r.attrib["class"] == "r"]) == len(
        classes
    )  # what is right is framed


def test_beyond_so_many_classes_the_pairs_that_are_confused_most_are_told(trained, monkeypatch):
    monkeypatch.setattr(module, "MOST_CELLS", 1)
    run = train(TABLE, "label", out=False, **SETTINGS)
    assert run.predicted.confusion.counts is None
    found = run.predict(SCORED)
    wrong = found.filter(pl.col("label") != pl.col("prediction")).group_by("label", "prediction").len().sort("len")
    of = found["label"].value_counts()
    expected = [
        [a, b, str(n), f"{100 * n / of.filter(pl.col('label') == a)['count'][0]:.0f} %"]
        for a, b, n in wrong.rows()[::-1]
    ]
    assert most_confused(run.predicted.confusion).rows == expected


def test_the_most_frequent_of_the_wrong_pairs_come_first(monkeypatch):
    monkeypatch.setattr(module, "MOST_PAIRS", 2)
    target = Target(("c",), "class", ("a", "b", "c"), (5, 5, 5))
    truth, guesses = np.array([0, 0, 0, 1, 1, 1, 1, MISSING_CLASS, 2]), np.array([1, 0, 2, 0, 0, 0, 1, 0, 0])
    found = module._confusion(target, guesses, truth)
    assert found.pairs == [("b", "a", 3, 4), ("a", "b", 1, 3)]
    assert found.wrong == 4
    seen = Target(("c",), "class", ("a", "b"), (5, 5)).with_unseen(["c"])
    assert module._confusion(seen, np.minimum(guesses, 1), truth).guesses == ["a", "b"]  # "c" is never predicted


def test_classes_that_training_never_saw_have_a_row_and_no_column():
    svg = ET.fromstring(confusion_matrix(Confusion(["a", "b", EVIL], ["a", "b"], np.arange(6).reshape(3, 2), [], 0)))
    assert [text for text in texts(svg) if text.isdigit()] == list("012345")
    assert any(text.endswith(EVIL) for text in texts(svg))
    assert len([r for r in svg.iter(f"{SVG}rect") if r.attrib["class"] == "r"]) == 2


def test_the_curves_are_of_the_sequences_with_the_median_and_the_largest_error(trained):
    run = trained(EVIL)
    found = run.predict(SCORED).with_columns(error=(pl.col("prediction") - pl.col(EVIL)) ** 2)
    by_error = found.group_by("device").agg(pl.col("error").mean()).sort("error")
    for stretch, place in zip(run.predicted.stretches, [4, 9], strict=True):
        device, error = by_error.row(place)
        rows = found.filter(pl.col("device") == device).sort("t")
        assert stretch.sequence == device
        assert stretch.rmse * run.preprocessing.target.stds[0] == pytest.approx(error**0.5)
        assert stretch.steps.tolist() == list(range(1, rows.height + 1))
        assert stretch.truth[:, 0].tolist() == pytest.approx(rows[EVIL].to_list(), rel=1e-6)
        assert stretch.predicted[0][:, 0].tolist() == rows["prediction"].to_list()
    names = ["over_time_median_1", "over_time_worst_1", "against_truth_1"]
    assert [name for name in pictures(run) if name in names] == names
    caption = f"{by_error.row(9)[0]}, steps 1 to "
    assert caption in (run.folder / "report.html").read_text()


def test_a_long_sequence_is_cut_into_stretches_of_one_length(monkeypatch):
    monkeypatch.setattr(module, "STRETCH", 20)
    hours = pl.DataFrame({"t": np.arange(300), "load": np.sin(np.arange(300) / 4)})
    run = train(hours, "load", time="t", horizon=2, out=False, **QUICK)
    test = len(run.predict(hours)) - 255  # the last 15 % are test rows
    assert run.predicted.of_stretches == -(-test // 20)
    median, worst = run.predicted.stretches
    assert {len(median.steps), len(worst.steps)} <= {14, 15, 16, 17}  # 45 rows in three, and the values two steps ahead
    assert median.rmse < worst.rmse
    assert worst.truth[:, 0].tolist() == pytest.approx(hours["load"].gather(worst.steps - 1).to_list(), abs=1e-6)


def test_the_error_by_step_ahead_is_that_of_predict_and_of_the_last_value(trained):
    run = trained("level", horizon=3, features=["x", "level"])
    found = run.predict(SCORED).sort("device", "t")
    for k in range(1, 4):
        ahead = found.with_columns(true=pl.col("level").shift(-k).over("device")).drop_nulls("true")
        for name, column in {"gru": f"prediction_{k}", "last value": "level"}.items():
            error = float(((ahead[column] - ahead["true"]) ** 2).mean()) ** 0.5
            assert run.predicted.by_step_ahead[name][k - 1] == pytest.approx(error, rel=1e-6), (name, k)
    assert {"gru", "training mean", "last value"} <= set(texts(pictures(run)["by_step_ahead"]))


@pytest.mark.parametrize(
    ("target", "figure"), [("label", "accuracy"), (["wet", "cold"], "micro_f1"), ([EVIL, "level"], "scaled_rmse")]
)
def test_the_figure_by_step_ahead_is_the_one_of_the_summary(trained, target, figure):
    run = trained(target, horizon=2)
    assert run.predicted.figure == figure
    one = train(TABLE, target, out=False, **SETTINGS | {"horizon": 1})
    assert one.predicted.by_step_ahead == {}  # a single step is no curve
    assert one.results.model.summary[figure] == pytest.approx(
        module._figure(one.preprocessing.target, *_only_step(one))
    )


def _only_step(run):
    from tidegate.data.sequences import TEST
    from tidegate.trained.evaluation import score_rows
    from tidegate.trained.rows import rows_to_score

    rows = rows_to_score(run, run.read(TABLE), "test")
    assert rows.part == TEST
    guesses = score_rows(run, rows)[1]
    return next(iter(guesses.values.values()))[:, 0], guesses.truth[:, 0]


def test_labels_show_their_precision_recall_and_probabilities(trained):
    run = trained(["wet", "cold"])
    found = run.predict(SCORED, probabilities=True)
    p = np.concatenate([found["p_wet"].to_numpy(), found["p_cold"].to_numpy()])
    t = np.concatenate([found["wet"].to_numpy(), found["cold"].to_numpy()])
    for mean, share, count in run.predicted.calibration:
        here = np.floor(p * 10) == np.floor(mean * 10)
        assert (mean, share, count) == (
            pytest.approx(p[here].mean(), rel=1e-5),
            pytest.approx(t[here].mean()),
            here.sum(),
        )
    assert sum(count for *_, count in run.predicted.calibration) == len(p)
    assert {"wet", "cold", "precision", "recall"} <= set(texts(pictures(run)["labels"]))


def test_one_number_a_sequence_is_set_against_the_truth_without_a_curve(trained):
    whole = TABLE.with_columns(whole=pl.col("x").mean().over("device"))
    run = train(whole, "whole", per="sequence", out=False, **SETTINGS)
    assert run.predicted.stretches == []
    found = run.predict(SCORED.with_columns(whole=pl.col("x").mean().over("device"))).unique(
        "device", maintain_order=True
    )
    points = sorted(run.predicted.points["whole"])
    assert [p for _, p in points] == [p for _, p in sorted(zip(found["whole"], found["prediction"], strict=True))]


@pytest.mark.parametrize("target", ["label", EVIL, ["wet", "cold"]])
def test_a_report_needs_no_network_and_no_script_and_every_picture_has_a_name(trained, target):
    run = trained(target)
    html = (run.folder / "report.html").read_text()
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert EVIL not in html
    svgs = [ET.fromstring(text) for text in re.findall(r"<svg .*?</svg>", html, re.DOTALL)]
    assert all(svg.attrib["aria-label"] for svg in svgs)
    assert len(svgs) == len(pictures(run))
    assert len(html) < 60_000


def test_a_run_that_is_saved_later_has_the_same_pictures(trained, tmp_path):
    run = train(TABLE, "label", out=False, **SETTINGS)
    run.save(tmp_path / "run")
    assert (tmp_path / "run/confusion_matrix.svg").read_bytes() == (
        trained("label").folder / "confusion_matrix.svg"
    ).read_bytes()


def test_what_to_do_next_names_what_this_run_can_do(trained):
    def commands(run):
        text = (run.folder / "report.md").read_text()
        return re.findall(r"^    tidegate (.+)$", text.split("## What to do next")[1], re.MULTILINE)

    one, both, lstm = trained("label"), trained("label", bidirectional=True), trained("label", cell="lstm")
    assert [c.split()[0] for c in commands(one)] == ["predict", "evaluate", "inspect", "stream", "export", "train"]
    assert [c.split()[0] for c in commands(both)] == ["predict", "evaluate", "inspect", "export", "train"]
    assert not {"inspect", "export"} & {c.split()[0] for c in commands(lstm)}
    for command in commands(one)[:5]:  # the folder's name has a blank
        assert shlex.split(command)[1] == str(one.folder)
    assert "--key device" in commands(one)[3]


def test_a_run_that_is_opened_has_no_predictions_to_draw(trained):
    assert load(trained("label").folder).predicted is None


def test_points_and_labels_are_drawn_where_they_belong():
    svg = ET.fromstring(scatter(EVIL, [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0)]))
    (dots,) = [p.attrib["d"] for p in svg.iter(f"{SVG}path") if p.attrib["class"] == "p"]
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, d.split(","))) for d in re.findall(r"M([\d.,]+)h0", dots)]
    assert x0 < x1 == x2
    assert y1 < y0 == y2
    svg = ET.fromstring(label_dots("t", [{"class": EVIL, "precision": 0.25, "recall": 0.75, "count": 3}]))
    (row,) = svg.iter(f"{SVG}g")
    assert row.find(f"{SVG}title").text.startswith(f"{EVIL}: precision 0.2500, recall 0.7500")
    disc = float(row.find(f"{SVG}circle").attrib["cx"])
    (diamond,) = [p.attrib["d"] for p in row.iter(f"{SVG}path") if p.attrib["class"] == "o"]
    assert disc < float(diamond[1:].split(",")[0])
