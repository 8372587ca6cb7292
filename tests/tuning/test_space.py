"""What a search varies: what is read, what is refused and in which words, and what is searched by default."""

from __future__ import annotations

import pytest

from tidegate.errors import SettingsError
from tidegate.trained.settings import TrainSettings
from tidegate.tuning.space import (
    Choice,
    Facts,
    Range,
    check_space,
    default_space,
    defaults_of,
    parse,
    read_search,
    searchable,
)

RESOLVED = {"batch_size": 16, "window": None, "epochs": 40, "patience": 20, "bidirectional": False, "residual": False}


def facts(longest: int = 20, sequences: bool = False, **resolved: object) -> Facts:
    return Facts(resolved=RESOLVED | resolved, longest=longest, sequences=sequences)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hidden_size", "32..256", Range(32, 256, whole=True)),
        ("hidden_size", " 32 .. 256 : log", Range(32, 256, log=True, whole=True)),
        ("lr", "1e-3..0.02:log", Range(0.001, 0.02, log=True)),
        ("dropout", "0..0.5", Range(0.0, 0.5)),
        ("update_bias", "2..50", Range(2.0, 50.0)),
        ("reset", "after,before", Choice(("after", "before"))),
        ("layer_norm", "yes, no", Choice((True, False))),
        ("layer_norm", [False, True], Choice((False, True))),
        ("hidden_size", "32,64", Choice((32, 64))),
        ("dropout", [0, 0.5], Choice((0.0, 0.5))),
        ("batch_size", "none,8", Choice((None, 8))),
        ("update_bias", [None, "2,50"], Choice((None, "2,50"))),
        ("pooling", "last+max+mean,max", Choice(("last+max+mean", "max"))),
    ],
)
def test_a_range_and_a_list_are_read_as_the_type_of_the_setting(name, value, expected):
    assert parse(name, value) == expected
    if not isinstance(value, list):
        assert parse(name, str(expected)) == expected  # as it stands in a study


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("hiden_size=32..256", "there is no setting 'hiden_size'. Did you mean 'hidden_size'?"),
        ("target=a,b", "target can't be searched: it says how the table is read"),
        ("seed=1..9", "seed can't be searched"),
        ("choose_by=loss,accuracy", "choose_by can't be searched"),
        ("hidden_size", "expected NAME=LOW..HIGH such as hidden_size=32..256"),
        ("hidden_size=256..32", "hidden_size=256..32 is empty: 256 is above 32. Turn them round."),
        ("hidden_size=64..64", "is a single value. Name two ends, or fix it: --hidden-size 64."),
        ("hidden_size=64", "is a single value. Name several (a,b) or a range, or fix it: --hidden-size 64."),
        ("hidden_size=1.5..3", "expected two whole numbers, such as 32..256."),
        ("lr=a..b", "expected two numbers, such as 0.001..0.02:log."),
        ("lr=0..inf", "expected two numbers"),
        ("lr=0..0.1:log", "a logarithmic scale begins above 0."),
        ("lr=0.001..0.1:ln", "what may follow the range is :log"),
        ("reset=1..2", "reset is no number. List its values: reset=after,before."),
        ("layer_norm=0..1", "layer_norm is no number. List its values: layer_norm=yes,no."),
        ("reset=after,after", "is a single value"),
        ("reset=after,before,after", "names a value twice"),
        (["lr=0.1,0.2", "lr=0.1..0.2"], "search names lr twice"),
        ({"lr": 0.1}, "lr=0.1: expected a range such as 0.001..0.02:log, or a list of values"),
        ({"lr": [0.1, {}]}, "lr: {} is no single value"),
        (7, "search=7: expected text such as hidden_size=32..256"),
    ],
)
def test_what_is_no_space_is_refused_in_a_sentence(search, message):
    with pytest.raises(SettingsError) as error:
        read_search(search)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("search", "fixed", "message"),
    [
        ("dropout=0..1.5", {}, "search: dropout=1.5: expected less than 1."),
        ("hidden_size=0..8", {}, "search: hidden_size=0: expected at least 1."),
        ("reset=after,befor", {}, "search: reset='befor': expected one of 'after' or 'before'."),
        ("hidden_size=8,many", {}, "search: hidden_size='many': Input should be a valid integer"),
        ("layer_norm=yes,no", {"cell": "lstm"}, "layer_norm=True needs cell='gru': 'lstm' has no such option"),
        (["cell=gru,lstm", "layer_norm=yes,no"], {}, "layer_norm=True needs cell='gru': 'lstm' has no such option"),
        ("bidirectional=yes,no", {"horizon": 2}, "bidirectional=True with a horizon"),
    ],
)
def test_every_value_must_be_one_that_the_setting_may_have_beside_the_fixed_ones(search, fixed, message):
    space, _ = read_search(search)
    with pytest.raises(SettingsError) as error:
        check_space(space, fixed)
    assert message in str(error.value)


def test_a_space_that_is_named_replaces_the_default_one_unless_that_is_named_too():
    assert read_search(["lr=0.1,0.2"]) == ({"lr": Choice((0.1, 0.2))}, False)
    assert read_search(["lr=0.1,0.2", "default"]) == ({"lr": Choice((0.1, 0.2))}, True)
    assert read_search({"hidden_size": "8..9", "default": True})[1] is True
    assert read_search("hidden-size=8..9") == ({"hidden_size": Range(8, 9, whole=True)}, False)
    assert read_search(None) == ({}, False)


def test_the_default_space_has_the_core_the_training_and_the_options_of_a_gru():
    space = default_space(TrainSettings.make(), [], facts())
    assert list(space) == ["hidden_size", "num_layers", "dropout", "reset", "layer_norm", "batch_size", "lr"]
    for name, value in defaults_of(space, TrainSettings.make(), facts()).items():
        assert value in space[name], name  # so that the drawing learns from the trial with the defaults
    check_space(space, {})


def test_what_is_given_leaves_the_default_space():
    assert {"lr", "reset"}.isdisjoint(default_space(TrainSettings.make(lr=0.01), ["lr", "reset"], facts()))


def test_other_cells_have_no_options_of_a_gru_and_none_has_no_core():
    assert "reset" not in default_space(TrainSettings.make(cell="lstm"), [], facts())
    assert {*default_space(TrainSettings.make(cell="none"), [], facts(bidirectional=False))} == {
        "dropout",
        "lr",
        "batch_size",
    }


def test_both_directions_are_searched_only_where_a_model_reads_both_by_default():
    assert "bidirectional" not in default_space(TrainSettings.make(), [], facts())
    space = default_space(TrainSettings.make(per="sequence"), [], facts(bidirectional=True, sequences=True))
    assert space["bidirectional"] == Choice((True, False))
    assert "pooling" in space


def test_a_window_is_searched_where_there_is_one_and_is_no_longer_than_the_sequences():
    assert default_space(TrainSettings.make(), [], facts(300, window=128))["window"] == Range(
        64, 256, log=True, whole=True
    )
    assert default_space(TrainSettings.make(), [], facts(200, window=128))["window"].high == 200


def test_the_smallest_batch_still_has_a_range():
    for size in (1, 2, 4):
        batch = default_space(TrainSettings.make(), [], facts(batch_size=size))["batch_size"]
        assert 1 <= batch.low < batch.high


def test_all_that_can_be_searched_are_settings_that_change_a_model():
    names = searchable()
    assert {"hidden_size", "window", "weight_decay", "schedule", "class_weights"} <= {*names}
    assert not {"target", "split", "seed", "device", "threads", "from_run", "baselines"} & {*names}


def test_a_drawn_number_has_four_digits_and_stays_within_its_range():
    assert Range(0.0012341, 0.5).rounded(0.0012341) == 0.0012341
    assert Range(0.0, 0.5).rounded(0.123456) == 0.1235
