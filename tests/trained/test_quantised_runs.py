"""Runs whose core has weights in 8 bits or bfloat16: what they predict, what they cost, what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tidegate
from tests.helpers.runs import CASES, folder_of, run_of, sensors
from tests.helpers.tables import QUICK, signal_table
from tidegate.cli import main
from tidegate.errors import BackendUnavailableError, DataError, RunError, SettingsError
from tidegate.nn import QuantisedGRU
from tidegate.ops.gru.native import kernels
from tidegate.run import Ensemble, QuantisedRun, Run
from tidegate.trained.rounding import FILE, figures_of

KINDS = ["int8", "bf16"]
both = pytest.mark.parametrize("weights", KINDS)
STREAMED = ["class", "labels", "forecast", "sequence mean", "every option", "learned start"]


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run that was trained on a CSV file, with test rows."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    signal_table(groups=30).write_csv(folder / "signals.csv")
    tidegate.train(folder / "signals.csv", out=folder / "run", target="label", group="device", time="t", **QUICK)
    return folder


def coarse(model: Any) -> None:
    """Weights that 8 bits hold badly: one of each row is large, so that the steps between the others are."""
    with torch.no_grad():
        model.core.weight_ih_l0[:, -1] = 20.0


@both
@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_gives_the_bits_of_predict(name: str, weights: str) -> None:
    run, frame = run_of(name), sensors()
    told = run.predict(frame, weights=weights)
    columns = [c for c in told.columns if c.startswith("prediction")]
    stream = run.stream(weights=weights)
    answers = [stream.push(row, row["device"]) for row in frame.to_dicts()]
    many = run.stream(weights=weights).push_many(frame.to_dicts(), frame["device"].to_list())
    assert answers == many
    for column in columns:
        found, expected = [a[column] for a in answers], told[column].to_list()
        if name == "sequence mean":  # the last answer is the sequence's
            last = dict(zip(frame["device"], found, strict=True))
            found = [last[device] for device in frame["device"]]
        assert found == expected


@both
def test_quantize_is_what_the_option_does_and_leaves_the_run(weights: str) -> None:
    run = run_of("two numbers")
    before = run.fingerprint
    small = tidegate.quantize(run, weights)
    assert isinstance(small, QuantisedRun)
    assert isinstance(small.model.core, QuantisedGRU)
    frame = sensors()
    assert small.predict(frame).equals(run.predict(frame, weights=weights))
    assert not small.predict(frame).equals(run.predict(frame))
    assert run.fingerprint == before != small.fingerprint
    # embeddings and head are those of the run
    assert torch.equal(small.model.head.weight, run.model.head.weight)
    assert all(
        torch.equal(a.weight, b.weight) for a, b in zip(small.model.embeddings, run.model.embeddings, strict=True)
    )


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_run_is_near_itself_in_8_bits(name: str) -> None:
    run = run_of(name)
    small = run.quantized("int8")
    own = {k: v for k, v in run.model.core.named_parameters() if v.dim() == 2 and k != "initial_h"}
    rounded = dict(
        zip(run.model.core._flat_names, (w for each in small.model.core.all_weights for w in each), strict=True)
    )  # type: ignore[union-attr]
    for key, value in own.items():
        assert (rounded[key] - value).abs().max() <= value.abs().max() / 253


@both
def test_the_cost_names_bytes_scores_and_the_figure_on_the_test_rows(folder: Path, weights: str) -> None:
    run = tidegate.load(folder)
    coarse(run.model)
    table = folder.parent / "signals.csv"
    run.source = str(table)
    small = tidegate.quantize(run, weights)
    before, after = (r.evaluate(table).model.summary["accuracy"] for r in (run, small))
    size = sum(p.nbytes for p in run.model.core.parameters())
    less = sum(b.nbytes for b in small.model.core.buffers())
    cost = small.cost()
    assert str(cost).startswith(
        f"The core's weights take {less:,} bytes as {weights}, {size:,} as float32. Accuracy on the test rows of signals.csv: "
        f"{before:.4g} as float32, {after:.4g} as {weights} ({after - before:+.2g}). Scores differ by at most 0."
    )
    rows = figures_of(run, small.model, table)
    assert rows == cost.figures
    assert cost.figures is not None
    assert cost.figures.scores > 0


def test_what_rounding_costs_in_accuracy_shows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_nothing(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(rows.shape, dtype=torch.int8), torch.zeros(len(rows))

    monkeypatch.setattr("tidegate.nn.quantised.quantise", to_nothing)
    run = tidegate.load(folder)
    frame = signal_table(groups=9, seed=4)
    figures = run.quantized("int8").cost(frame).figures
    assert figures is not None
    assert figures.after < figures.before - 0.05
    assert figures.before == run.evaluate(frame).model.summary["accuracy"]
    assert run.evaluate(frame, weights="int8").model.summary["accuracy"] == figures.after


def test_the_largest_difference_of_scores_is_that_of_the_models(folder: Path) -> None:
    run = tidegate.load(folder)
    table = signal_table(groups=9, seed=4)
    small = run.quantized("int8")
    figures = small.cost(table).figures
    logits = []
    for one in (run, small):
        told = one.predict(table, probabilities=True)
        logits.append(torch.tensor(told.select("p_down", "p_up").to_numpy()).log())
    # of two classes the difference of both scores is that of the logarithms of their probabilities
    of_both = ((logits[0][:, 0] - logits[0][:, 1]) - (logits[1][:, 0] - logits[1][:, 1])).abs().max().item()
    assert figures is not None
    assert of_both / 2 * 0.9 < figures.scores < of_both * 1.1


def test_what_it_costs_is_counted_once_and_kept_in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(kind: str) -> str:
        run = tidegate.load(folder)
        run.source = str(folder.parent / "signals.csv")
        return str(run.quantized(kind).cost())

    first = {kind: cost(kind) for kind in KINDS}
    assert set(json.loads((folder / FILE).read_text())) == {"run", "int8", "bf16"}
    with monkeypatch.context() as patch:
        patch.setattr("tidegate.trained.rounding.figures_of", None)
        assert {kind: cost(kind) for kind in KINDS} == first
    for damage in (b"{", b"[]", json.dumps({"run": "another", "int8": {}}).encode()):
        (folder / FILE).write_bytes(damage)
        assert cost("int8") == first["int8"]
    values = json.loads((folder / FILE).read_text())
    values["int8"]["after"] = "much"
    (folder / FILE).write_text(json.dumps(values))
    assert cost("int8") == first["int8"]


def test_other_weights_are_counted_anew(folder: Path) -> None:
    run = tidegate.load(folder)
    run.source = str(folder.parent / "signals.csv")
    first = run.quantized("int8").cost()
    coarse(run.model)
    assert run.quantized("int8").cost() != first


def test_where_it_cant_be_written_it_is_told_all_the_same(folder: Path) -> None:
    (folder / "quantised.json").mkdir()
    run = tidegate.load(folder)
    run.source = str(folder.parent / "signals.csv")
    assert "Accuracy on" in str(run.quantized("int8").cost())
    assert [*(folder / "quantised.json").iterdir()] == []


def test_where_the_disk_is_full_it_is_told_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tidegate.files import DiskError

    def full(path: Path, text: str) -> None:
        raise DiskError(f"{path} could not be written: the disk is full.")

    monkeypatch.setattr("tidegate.trained.rounding.write_text", full)
    run = tidegate.load(folder)
    run.source = str(folder.parent / "signals.csv")
    assert "Accuracy on" in str(run.quantized("int8").cost())


def test_without_its_table_the_cost_says_how_to_see_it(folder: Path) -> None:
    run = tidegate.load(folder)
    run.source = str(folder / "gone.csv")
    told = str(run.quantized("int8").cost())
    assert "What that costs is unknown: " in told
    assert "is not there any more. Evaluate a table with weights='int8' (--weights int8)." in told
    assert not (folder / FILE).exists()
    with pytest.raises(DataError, match="label"):
        run.quantized("int8").cost(signal_table(groups=3).drop("label"))


@both
def test_an_evaluation_says_what_the_runs_own_weights_give(folder: Path, weights: str) -> None:
    run = tidegate.load(folder)
    coarse(run.model)
    frame = signal_table(groups=9, seed=4)
    before = run.evaluate(frame)
    after = run.evaluate(frame, weights=weights)
    a, b = (e.model.summary["accuracy"] for e in (after, before))
    assert f"Accuracy {a:.4f} as {weights}, {b:.4f} as float32 ({a - b:+.2g})." in str(after)
    assert f"bytes as {weights}, " in str(after)
    assert "float32" not in str(before)
    assert after.to_dict()["notes"]


def test_batches_do_not_change_what_is_predicted(folder: Path) -> None:
    small = tidegate.load(folder).quantized("int8")
    frame = signal_table(groups=9, seed=4)
    told = [small.predict(frame, probabilities=True, batch_size=n) for n in (1, 4, None)]
    assert told[0].equals(told[1])
    assert told[1].equals(told[2])


def test_an_ensemble_quantises_its_members() -> None:
    frame = signal_table(groups=20)
    roles = {"target": "label", "group": "device", "time": "t"}
    run = tidegate.train(frame, out=False, seeds=[1, 2], split_seed=0, keep="ensemble", **QUICK, **roles)
    small = tidegate.quantize(run, "int8")
    assert isinstance(small, Ensemble)
    assert all(isinstance(m, QuantisedRun) for m in small.members)
    told = run.predict(frame, probabilities=True, weights="int8")
    assert told.equals(small.predict(frame, probabilities=True))
    assert not told.equals(run.predict(frame, probabilities=True))
    assert run.evaluate(frame, weights="int8").to_dict() == small.evaluate(frame).to_dict()


# ------------------------------------------------------------------------------------------------------ refusals


def of_cell(cell: str) -> Run:
    roles = {"target": "label", "group": "device", "time": "t"}
    return tidegate.train(signal_table(groups=6), out=False, cell=cell, **QUICK, **roles)


@pytest.mark.parametrize("cell", ["lstm", "mingru", "rnn", "none"])
def test_another_cell_is_refused(cell: str) -> None:
    run = of_cell(cell)
    for call in (lambda: tidegate.quantize(run, "int8"), lambda: run.stream(weights="bf16")):
        with pytest.raises(SettingsError, match=rf"The cell of .* is '{cell}'; what is quantised are GRUs.*--weights"):
            call()


REFUSED = {
    "twice": (lambda run: tidegate.quantize(run, "int8"), "quantised already"),
    "weights of a quantised run": (lambda run: run.predict(sensors(), weights="bf16"), "quantised already"),
    "an evaluation of it": (lambda run: run.evaluate(sensors(), weights="bf16"), "quantised already"),
    "a stream of it": (lambda run: run.stream(weights="bf16"), "quantised already"),
    "export": (lambda run: run.export("onnx"), r"--to c --int8"),
    "inspect": (lambda run: run.inspect(sensors()), "in float32: tidegate.load"),
    "save": (lambda run: run.save("elsewhere"), "Save the run itself"),
    "training": (lambda run: run.model.train(), "can't be trained"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_quantised_run_cant_do_is_told_in_a_sentence(what: str) -> None:
    call, words = REFUSED[what]
    with pytest.raises(SettingsError, match=words):
        call(run_of("class").quantized("int8"))


def test_an_unknown_kind_of_weights_is_refused_before_the_table_is_read() -> None:
    with pytest.raises(SettingsError, match="expected 'int8' or 'bf16'"):
        run_of("class").predict("no such table.csv", weights="int16")


def test_without_the_kernels_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of("class")
    monkeypatch.setattr(kernels, "_MISSING", "the C++ kernel is not part of this installation")
    with pytest.raises(BackendUnavailableError, match="tidegate doctor"):
        run.quantized("int8")


def test_an_ensemble_of_quantised_runs_has_no_single_model() -> None:
    roles = {"target": "label", "group": "device", "time": "t"}
    run = tidegate.train(
        signal_table(groups=12), out=False, seeds=[1, 2], split_seed=0, keep="ensemble", **QUICK, **roles
    )
    with pytest.raises(RunError, match="Name one of them"):
        run.stream(weights="int8")


def test_states_of_one_kind_of_weights_are_not_taken_up_with_another() -> None:
    run = run_of("class")
    row = sensors().to_dicts()[0]
    streams = {kind: run.stream(weights=kind) for kind in (None, "int8", "bf16")}
    states = {}
    for kind, stream in streams.items():
        stream.push(row)
        states[kind] = stream.state()
    for kind, stream in streams.items():
        for other, state in states.items():
            if kind == other:
                run.stream(weights=kind).put(state)
            else:
                with pytest.raises(DataError, match="of another run"):
                    stream.put(state)


# ------------------------------------------------------------------------------------------------------ commands


@both
def test_the_commands_take_weights_and_say_what_they_cost(
    folder: Path, weights: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "config.yaml").write_text(
        "".join(
            f"table: {folder.parent / 'signals.csv'}\n" if line.startswith("table:") else line
            for line in (folder / "config.yaml").read_text().splitlines(keepends=True)
        )
    )
    run = tidegate.load(folder)
    assert main(["predict", str(folder), "signals.csv", "--out", "told.csv", "--weights", weights]) == 0
    told = capfd.readouterr()
    assert str(run.quantized(weights).cost()) in told.err
    assert (folder / FILE).is_file()
    expected = run.predict("signals.csv", weights=weights)
    assert tidegate.datasets is not None
    import polars as pl

    assert pl.read_csv("told.csv")["prediction"].to_list() == expected["prediction"].to_list()
    assert main(["evaluate", str(folder), "signals.csv", "--weights", weights]) == 0
    assert str(run.evaluate("signals.csv", weights=weights)) in capfd.readouterr().out
    with open("signals.csv") as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main(["stream", str(folder), "--weights", weights]) == 0
    found = capfd.readouterr()
    assert [json.loads(line)["prediction"] for line in found.out.splitlines()] == expected["prediction"].to_list()
    assert f"bytes as {weights}, " in found.err


def test_the_command_line_refuses_unknown_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", str(folder), "--weights", "int4"]) == 2
    assert "expected 'int8' or 'bf16'" in capsys.readouterr().err


def test_a_folder_with_its_costs_is_a_run_all_the_same(folder: Path) -> None:
    run = tidegate.load(folder)
    run.source = str(folder.parent / "signals.csv")
    run.quantized("int8").cost()
    assert folder_of("class").is_dir()
    assert tidegate.load(folder).fingerprint == run.fingerprint
