"""What changes the recurrence, from the command line, YAML and Python to the layer, and on to everything a run does."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
import torch
import yaml

import tidegate
from tests.helpers.tables import QUICK
from tests.helpers.training import ROLES, same_weights
from tidegate.cli import main
from tidegate.data.tables import write_table
from tidegate.errors import SettingsError
from tidegate.model.cells import CELLS
from tidegate.model.pooling import POOLINGS
from tidegate.model.spec import CoreOptions
from tidegate.model.tasks import TASKS
from tidegate.trained import TrainSettings

pytestmark = pytest.mark.usefixtures("ctrl_c")

# An option a line: how the command line says it, and what the layer has then.
OPTIONS = {
    "reset": (["--reset", "before"], "before"),
    "layer_norm": (["--layer-norm"], True),
    "recurrent_dropout": (["--recurrent-dropout", "0.2"], 0.2),
    "zoneout": (["--zoneout", "0.1"], 0.1),
    "learn_initial_state": (["--learn-initial-state"], True),
    "init": (["--init", "orthogonal"], "orthogonal"),
    "update_bias": (["--update-bias", "2,50"], (2.0, 50.0)),
    "checkpoint_every": (["--checkpoint-every", "4"], 4),
}
ALL = {name: value for name, (_, value) in OPTIONS.items()}


def test_every_option_of_the_core_is_here_and_is_an_argument_of_the_layer():
    names = [f.name for f in fields(CoreOptions)]
    assert names == list(OPTIONS)
    layer = tidegate.GRU(3, 4, **{f.name: f.default for f in fields(CoreOptions)})
    assert repr(layer) == repr(tidegate.GRU(3, 4))
    for f in fields(CoreOptions):
        assert TrainSettings.model_fields[f.name].default == f.default


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_layer_from_the_command_line_and_comes_back_from_the_folder(tmp_path, signals, name):
    write_table(signals, tmp_path / "t.csv")
    words, value = OPTIONS[name]
    quick = ["--hidden-size", "4", "--epochs", "1", "--no-baselines", "--quiet", "--device", "cpu"]
    roles = ["--target", "label", "--group", "device", "--time", "t"]
    assert main(["train", str(tmp_path / "t.csv"), *roles, *quick, *words, "--out", str(tmp_path / "run")]) == 0
    run = tidegate.load(tmp_path / "run")
    assert getattr(run.model.core, name) == value
    assert run.model.spec.core.changed() == {name: value}
    # ... by YAML, the run's own
    again = tidegate.train(config=tmp_path / "run/config.yaml", out=False, progress=False)
    assert same_weights(run, again)
    stored = yaml.safe_load((tmp_path / "run/config.yaml").read_text())[name]
    assert stored == (list(value) if isinstance(value, tuple) else value)


def test_all_options_together_train_predict_stream_and_come_back(tmp_path, signals):
    settings = QUICK | ROLES | ALL | {"num_layers": 2}
    run = tidegate.train(signals, out=tmp_path / "run", **settings)
    opened = tidegate.load(tmp_path / "run")
    predicted = opened.predict(signals, probabilities=True)
    assert predicted.equals(run.predict(signals, probabilities=True))
    stream = opened.stream(probabilities=True)
    rows = signals.to_dicts()
    answers = stream.push_many(rows, [row["device"] for row in rows])
    assert [a["p_up"] for a in answers] == predicted["p_up"].to_list()  # bit for bit
    assert run.fingerprint == opened.fingerprint


def test_a_training_with_all_options_goes_on_as_if_it_had_not_been_interrupted(tmp_path, signals):
    from tests.helpers.training import StopAfter

    settings = QUICK | ROLES | ALL
    whole = tidegate.train(signals, out=False, **settings)
    with pytest.raises(tidegate.errors.Interrupted):
        tidegate.train(signals, out=tmp_path / "run", **(settings | {"progress": StopAfter(3)}))
    assert same_weights(tidegate.train(signals, out=tmp_path / "run", resume=True, progress=False), whole)


def test_options_change_what_is_computed(signals):
    plain = tidegate.train(signals, out=False, **(QUICK | ROLES))
    for name, value in ALL.items():
        other = tidegate.train(signals, out=False, **(QUICK | ROLES | {name: value}))
        same = name == "checkpoint_every"  # memory for time, the same bits
        assert same_weights(plain, other) is same, name


def test_gates_computed_again_train_to_the_same_bits(signals):
    settings = QUICK | ROLES | {"window": 4}
    plain, again = (tidegate.train(signals, out=False, **settings, checkpoint_every=k) for k in (0, 2))
    assert same_weights(plain, again)


def test_the_baseline_without_a_recurrence_has_no_options_of_one(signals):
    run = tidegate.train(signals, out=False, **(QUICK | ROLES | ALL | {"baselines": True}))
    assert run.no_memory.model.spec.core == CoreOptions()
    assert run.no_memory.settings.cell == "none"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"cell": "lstm", "zoneout": 0.1},
            r"zoneout=0.1 needs cell='gru': 'lstm' has no such option. Leave zoneout out.",
        ),
        ({"cell": "none", "layer_norm": True}, "layer_norm=True needs cell='gru'"),
        ({"cell": "rnn", "update_bias": 5}, "update_bias=5.0 needs cell='gru' or cell='mingru'"),
        ({"zoneout": 1.5}, "zoneout=1.5: expected at most 1"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout=-0.1: expected at least 0"),
        ({"reset": "beside"}, "reset='beside': expected one of 'after' or 'before'"),
        ({"init": "zeros"}, "init='zeros': expected one of 'torch' or 'orthogonal'"),
        ({"update_bias": 1}, "update_bias=1.0: expected a number of steps above 1, or a shortest and a longest"),
        ({"update_bias": "9,2"}, r"update_bias=\(9.0, 2.0\): expected a number of steps"),
        ({"update_bias": "long"}, "update_bias='long': expected a number of steps"),
        ({"update_bias": "1,2,3"}, "update_bias='1,2,3': expected a number of steps"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1: expected at least 0"),
    ],
)
def test_an_option_that_cannot_be_says_why(settings, message):
    with pytest.raises(SettingsError, match=message):
        TrainSettings.make(**settings)


def test_settings_know_the_cells_poolings_and_tasks_of_the_tables():
    assert set(get_args(TrainSettings.model_fields["cell"].annotation)) == set(CELLS)
    assert set(get_args(TrainSettings.model_fields["pooling"].annotation)) == set(POOLINGS)
    assert set(get_args(TrainSettings.model_fields["task"].annotation)) - {"auto"} == set(TASKS)


def test_first_weights_depend_on_the_seed_alone_with_every_option(signals):
    a, b = (tidegate.train(signals, out=False, **(QUICK | ROLES | ALL)) for _ in range(2))
    torch.rand(7)
    assert same_weights(a, b)
