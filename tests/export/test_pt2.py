"""The torch.export archive of every kind of run gives the run's numbers, at other sizes, without Tidegate."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import tidegate
from tests.helpers import runs
from tests.helpers.exported import file_of, program
from tests.helpers.runs import CASES_OF, MANY, ONE, THREE, batch_of, folder_of, run_of, table_of
from tidegate.errors import SettingsError
from tidegate.export import pt2, take_apart
from tidegate.files import DiskError

# Rounding alone: over the whole grid the program was at most 2e-6 away. In units of the table the same times the standard
# deviation.
ATOL = 1e-5
CASES = CASES_OF["pt2"]


def inputs(batch):
    return {name: torch.from_numpy(v) for name, v in runs.inputs(batch, "numbers", "codes", "lengths", "h_0").items()}


def assert_same(found, batch, run):
    runs.assert_same({name: value.detach().numpy() for name, value in found.items()}, batch, run, ATOL)


@pytest.mark.one_in(100)
@pytest.mark.parametrize("sequences", [ONE, THREE, MANY], ids=["one", "three", "many"])
@pytest.mark.parametrize("name", CASES)
def test_the_program_gives_the_numbers_of_the_run(name, sequences):
    run = run_of(name)
    batch = batch_of(run, table_of(name), sequences)
    assert_same(program(name)(**inputs(batch)), batch, run)


@pytest.mark.one_in(20)
@pytest.mark.parametrize("name", CASES)
def test_a_given_state_is_where_the_program_begins(name):
    run = run_of(name)
    state = np.random.default_rng(3).standard_normal(batch_of(run, table_of(name), THREE).h_0.shape, dtype=np.float32)
    batch = batch_of(run, table_of(name), THREE, state)
    assert_same(program(name)(**inputs(batch)), batch, run)


@pytest.mark.one_in(21)
@pytest.mark.parametrize("name", ["class", "labels", "both ways", "sequence mean", "sequence last both ways"])
def test_one_step_of_one_sequence_is_enough(name):
    run = run_of(name)
    batch = batch_of(run, table_of(name).group_by("device", maintain_order=True).head(1), ONE)
    assert batch.numbers.shape[:2] == (1, 1)
    assert_same(program(name)(**inputs(batch)), batch, run)


@pytest.mark.one_in(20)
@pytest.mark.parametrize("name", ["class", "labels", "forecast of two", "words"])
def test_pieces_with_the_state_handed_on_equal_the_whole(name):
    batch = batch_of(run_of(name), table_of(name), MANY)
    given, T = inputs(batch), int(batch.lengths.max())
    right = program(name)(**given)
    lengths, state, pieces = given["lengths"], given["h_0"], []
    for start, stop in ((0, 1), (1, 4), (4, T)):
        steps = {k: given[k][:, start:stop] for k in ("numbers", "codes") if k in given}
        found = program(name)(**steps, lengths=lengths.clamp(start, stop) - start, h_0=state)  # 0 where it has ended
        state = found["h_n"]
        pieces.append(found["scores"])
    inside = torch.from_numpy(batch.inside)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[inside], right["scores"][inside], rtol=0, atol=ATOL)
    torch.testing.assert_close(state, right["h_n"], rtol=0, atol=ATOL)


@pytest.mark.long
@pytest.mark.parametrize("name", ["labels", "both ways", "sequence max", "sequence mean both ways"])
def test_padding_may_hold_anything(name):
    run = run_of(name)
    batch = batch_of(run, table_of(name), MANY)
    beyond = ~batch.inside
    assert beyond.any()
    batch.numbers[beyond] = np.resize([np.nan, np.inf, 1e300], batch.numbers[beyond].shape)
    batch.codes[beyond] = 1
    assert_same(program(name)(**inputs(batch)), batch, run)


@pytest.mark.long
def test_a_missing_value_an_infinite_one_and_one_too_far_for_float32_read_as_the_mean():
    run = run_of("one number")
    batch = batch_of(run, table_of("one number"), THREE)
    found = {}
    for value in (run.preprocessing.numbers[0].mean, np.nan, np.inf, -np.inf, 1e300):
        batch.numbers[:, 0] = value
        found[value] = program("one number")(**inputs(batch))["scores"].detach()
    first, *others = found.values()
    assert first.isfinite().all()
    assert all(torch.equal(first, other) for other in others)


WITHOUT_TIDEGATE = """
import sys, json, torch
sys.modules["tidegate"] = None  # makes the import fail
extra = {"tidegate.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
found = program(**torch.load(sys.argv[2]))
torch.save({name: value.detach() for name, value in found.items()}, sys.argv[3])
print(json.loads(extra["tidegate.json"])["target"]["classes"])
"""


@pytest.mark.long
def test_pytorch_alone_loads_and_runs_it_and_finds_the_classes_inside(tmp_path):
    run = run_of("both ways")
    batch = batch_of(run, table_of("both ways"), THREE)
    torch.save(inputs(batch), tmp_path / "in.pt")
    command = [
        sys.executable,
        "-c",
        WITHOUT_TIDEGATE,
        file_of("both ways", "pt2"),
        tmp_path / "in.pt",
        tmp_path / "out.pt",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.strip() == str(list(run.preprocessing.target.classes))
    assert_same(torch.load(tmp_path / "out.pt"), batch, run)


def test_the_description_is_in_the_archive():
    extra = {"tidegate.json": ""}
    torch.export.load(file_of("words", "pt2"), extra_files=extra)
    assert json.loads(extra["tidegate.json"]) == take_apart(run_of("words")).description


@pytest.mark.long
def test_writing_and_loading_say_nothing_that_was_not_asked_for(tmp_path):
    code = (
        "import sys, tidegate, torch\n"
        "print(tidegate.load(sys.argv[1]).export('pt2', sys.argv[2]))\n"
        "torch.export.load(sys.argv[2]).module()"
    )
    command = [sys.executable, "-c", code, folder_of("both ways"), tmp_path / "run.pt2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3
    assert "(numbers, codes, lengths, h_0)" in done.stdout


@pytest.mark.long
def test_the_program_learns_on():
    module = torch.export.load(file_of("both ways", "pt2")).module()
    weights = dict(module.named_parameters())
    assert set(weights) == {name for name, _ in run_of("both ways").model.named_parameters()}
    batch = batch_of(run_of("both ways"), table_of("both ways"), THREE)
    module(**inputs(batch))["scores"].square().sum().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in weights.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"reset": "before"},
            r"has no reset='before'\. to='onnx', to='keras' and to='c' compute it; or train a run without",
        ),
        ({"layer_norm": True}, r"has no layer_norm=True\. to='onnx' and to='c' compute it; or train a run without\."),
        ({"zoneout": 0.2}, r"has no zoneout=0\.2\. to='onnx' and to='c' compute it; or train a run without\."),
        (
            {"reset": "before", "layer_norm": True},
            r"has no reset='before' and no layer_norm=True\. to='onnx' and to='c' compute them;",
        ),
    ],
)
def test_what_atens_gru_can_not_do_is_named_and_nothing_is_written(tmp_path, options, said):
    parts = take_apart(run_of("class"))
    core = tidegate.GRU(parts.core.input_size, parts.core.hidden_size, **options).eval()
    with pytest.raises(SettingsError, match=said):
        pt2.write(dataclasses.replace(parts, core=core), tmp_path / "run.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_dropout_in_the_recurrence_which_falls_in_training_alone_is_no_hindrance(tmp_path):
    run = run_of("class")
    run.model.core.recurrent_dropout = 0.5
    run.export("pt2", tmp_path / "run.pt2")
    batch = batch_of(run, table_of("class"), THREE)
    assert_same(torch.export.load(tmp_path / "run.pt2").module()(**inputs(batch)), batch, run)


def test_a_file_that_can_not_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "folder").write_text("a file where a folder is wanted")
    with pytest.raises(DiskError):
        run_of("class").export("pt2", tmp_path / "folder" / "run.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
