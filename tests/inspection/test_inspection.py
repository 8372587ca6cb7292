"""`run.inspect`: the gates shown are the model's own, the predictions those of `predict`, and mistakes are told."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

import tidegate
from tests.helpers.inspection_runs import KINDS, numbers, words
from tests.helpers.tables import QUICK, signal_table
from tidegate.errors import DataError, DataWarning, SettingsError
from tidegate.gates.gates import Gates
from tidegate.gates.sentences import described
from tidegate.gates.statistics import Counter
from tidegate.inspection.sequence import find


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_predict(trained, kind):
    run, table = trained(kind)
    found = run.inspect(table)
    predicted = run.predict(table, probabilities=kind != "a forecast")
    pre = run.preprocessing
    if pre.group:
        for name, value in zip(pre.group, found.sequence.split(", "), strict=True):
            predicted = predicted.filter(pl.col(name).cast(pl.String) == value)
    if pre.lists:
        predicted = predicted[:1].explode("words", "slots", *(c for c in predicted.columns if "_" in c or "pred" in c))
    elif pre.time:
        predicted = predicted.sort(pre.time)
    assert found.length == predicted.height
    for output in found.outputs:
        column = "prediction" if len(found.outputs) == 1 else f"prediction_{output.name}"
        if output.kind == "number":
            ahead = np.array(output.values)
            for k in range(3):
                np.testing.assert_array_equal(ahead[:, k], predicted[f"{column}_{k + 1}"].to_numpy())
            continue
        ahead = "_1" if kind == "classes ahead" else ""  # the first step ahead speaks for all
        expected = predicted[f"{column}{ahead}"].to_list()
        assert output.values == (expected[:1] if pre.per == "sequence" else expected)
        if output.kind == "label":
            np.testing.assert_allclose(output.probability, predicted[f"p_{output.name}"].to_numpy(), rtol=1e-6)
        else:
            for best, row in zip(output.top, predicted.to_dicts(), strict=False):
                for name, p in best:
                    assert p == pytest.approx(row[f"p_{name}{ahead}"], rel=1e-5)
                assert [p for _, p in best] == sorted((p for _, p in best), reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_true_values_are_the_table_s(trained, kind):
    run, table = trained(kind)
    found = run.inspect(table)
    own = table
    if run.preprocessing.group:
        for name, value in zip(run.preprocessing.group, found.sequence.split(", "), strict=True):
            own = own.filter(pl.col(name).cast(pl.String) == value)
    if run.preprocessing.lists:
        own = own[:1].explode(own.columns)
    elif run.preprocessing.time:
        own = own.sort(run.preprocessing.time)
    for output in found.outputs:
        column = own[output.name].to_list()
        if output.kind == "number":
            assert len(output.truth) == len(column)
            for t, ahead in enumerate(output.truth):
                for k, value in enumerate(ahead, 1):
                    expected = column[t + k] if t + k < len(column) else None
                    if expected is None:
                        assert np.isnan(value)
                    else:
                        assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)
        elif kind == "classes ahead":
            assert output.truth == [*column[1:], None]
        else:
            assert output.truth == (column[:1] if run.preprocessing.per == "sequence" else column)
    for column in found.columns:
        values = own[column.name].to_list()
        if column.kind == "number":
            np.testing.assert_array_equal(column.values, [np.nan if v is None else v for v in values])
        else:
            assert column.values == values


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_every_gate_make_the_gate(trained, kind):
    run, table = trained(kind)
    found = run.inspect(table)
    both = run.model.spec.bidirectional
    assert [layer.name for layer in found.layers] == [
        f"l{k}{d}" for k in range(run.model.spec.num_layers) for d in (("", "_reverse") if both else ("",))
    ]
    for layer in found.layers:
        g, H = layer.gates, layer.statistics.units
        whole = layer.input_part + layer.state_part
        torch.testing.assert_close(torch.sigmoid(whole[:, :H]), g.reset)
        torch.testing.assert_close(torch.sigmoid(whole[:, H : 2 * H]), g.update)
        torch.testing.assert_close(layer.state_part[:, 2 * H :], g.recurrent)
        torch.testing.assert_close(torch.tanh(layer.input_part[:, 2 * H :] + g.reset * g.recurrent), g.candidate)
        torch.testing.assert_close((1 - g.update) * g.candidate + g.update * layer.before, g.hidden)
        back = layer.name.endswith("_reverse")
        ours, theirs = (layer.before[:-1], g.hidden[1:]) if back else (layer.before[1:], g.hidden[:-1])
        assert torch.equal(ours, theirs)
        assert not layer.before[-1 if back else 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_is_cut_out_of_the_whole(trained, kind):
    run, table = trained(kind)
    whole = run.inspect(table)
    part = run.inspect(table, steps=(3, 5))
    assert (part.first, part.last, part.steps, part.length) == (3, 5, 3, whole.length)
    for a, b in zip(part.layers, whole.layers, strict=True):
        for ours, theirs in zip([*a.gates, a.before], [*b.gates, b.before], strict=True):
            assert torch.equal(ours, theirs[2:5])
        torch.testing.assert_close(a.input_part, b.input_part[2:5])
        for name, values in a.statistics.columns().items():
            np.testing.assert_array_equal(np.array(values), np.array(b.statistics.columns()[name]), err_msg=name)
    for a, b in zip(part.outputs, whole.outputs, strict=True):
        cut = slice(None) if run.preprocessing.per == "sequence" else slice(2, 5)
        assert a.values == b.values[cut]
        assert str(a.truth) == str(b.truth[cut])  # as text, for NaN
    for a, b in zip(part.columns, whole.columns, strict=True):
        assert str(list(a.values)) == str(list(b.values[2:5]))
    assert run.inspect(table, steps="3:5").to_frame().equals(part.to_frame())
    assert part.to_frame()["step"].unique().sort().to_list() == [3, 4, 5]


def test_a_sequence_is_found_by_what_it_is_called(trained):
    run, table = trained("classes")
    assert run.inspect(table).sequence == "d0"
    assert run.inspect(table, " d17 ").sequence == "d17"
    run, table = trained("a forecast")
    found = run.inspect(table, "s2,5")
    assert found.sequence == "s2, 5"
    assert found.length == table.filter(meter=5).height
    run, table = trained("words")
    assert [run.inspect(table, name).sequence for name in (3, "3", "row 3")] == ["row 3"] * 3
    assert run.inspect(table, 3).columns[0].values == ["play", "something"]
    run, table = trained("one sequence")
    assert run.inspect(table).sequence == "the whole table"


@pytest.mark.parametrize(
    ("kind", "sequence", "told"),
    [
        (
            "classes",
            "d99",
            r"no sequence 'd99'\. The nearest are 'd9', 'd\d+', 'd\d+'\. It has 24 in the column 'device'",
        ),
        ("labels", 12, r"no sequence '12'\. The nearest are '9', '8', '7'\. It has 10 in the column 'meter'"),
        ("a forecast", "s1, 99", r"has no sequence 's1, 99'\. The nearest .* It has 10 in the columns 'site', 'meter'"),
        ("words", 25, r"no sequence '25'\. It has 24 \(a row each\), from 'row 1' to 'row 24'\."),
        ("one sequence", "x", r"it is one sequence\. Leave --sequence out"),
    ],
)
def test_an_unknown_sequence_is_told_with_the_nearest_and_how_many_there_are(trained, kind, sequence, told):
    run, table = trained(kind)
    with pytest.raises(DataError, match=told):
        run.inspect(table, sequence)


@pytest.mark.parametrize("steps", ["0:4", "5:4", "1:999", "a:b", "4", (1, 2, 3), "", 5, (1.9, 3), [None, 3]])
def test_steps_that_are_not_there_are_told(trained, steps):
    run, table = trained("classes")
    with pytest.raises(SettingsError, match="steps="):
        run.inspect(table, steps=steps)


def test_an_open_end_of_a_stretch_is_the_sequence_s_own(trained):
    run, table = trained("classes")
    whole = run.inspect(table)
    assert (run.inspect(table, steps="3:").first, run.inspect(table, steps="3:").last) == (3, whole.length)
    assert (run.inspect(table, steps=":3").first, run.inspect(table, steps=":3").last) == (1, 3)


@pytest.mark.parametrize("cell", ["none", "rnn", "lstm"])
def test_a_cell_without_gates_is_refused(tmp_path, cell):
    run = tidegate.train(
        signal_table(), target="label", group="device", time="t", cell=cell, out=tmp_path / "run", **QUICK
    )
    with pytest.raises(SettingsError, match=f"has the cell '{cell}', which has no update and reset gate.*--cell gru"):
        run.inspect(signal_table())


def test_a_table_without_a_column_of_the_run_is_told(trained):
    run, table = trained("classes")
    with pytest.raises(DataError, match="no feature column 'x'"):
        run.inspect(table.drop("x"))
    with pytest.raises(DataError, match="no group column 'device'"):
        run.inspect(table.drop("device"))


@pytest.mark.parametrize("kind", ["classes", "a class a sequence", "labels", "words"])
def test_the_target_may_be_missing(trained, kind):
    run, table = trained(kind)
    bare = run.inspect(table.drop(run.preprocessing.target.names))
    whole = run.inspect(table)
    assert [o.truth for o in bare.outputs] == [None] * len(bare.outputs)
    assert [o.values for o in bare.outputs] == [o.values for o in whole.outputs]


def test_single_targets_that_are_missing_are_none(trained):
    run, table = trained("classes")
    holes = table.with_columns(pl.when(pl.col("t") == 2).then(None).otherwise(pl.col("label")).alias("label"))
    truth = run.inspect(holes).outputs[0].truth
    assert truth[2] is None
    assert None not in truth[:2]


def test_values_that_training_never_saw_are_marked(trained):
    run, table = trained("classes")
    strange = table.with_columns(pl.when(pl.col("t") == 1).then(pl.lit("mauve")).otherwise("colour").alias("colour"))
    colour = next(c for c in run.inspect(strange).columns if c.name == "colour")
    assert colour.unknown.tolist() == [v == "mauve" for v in colour.values]
    assert colour.unknown[1]
    run, _ = trained("words")
    found = run.inspect({"words": [["PLAY", "xylophone", None]]})
    assert found.columns[0].values == ["PLAY", "xylophone", None]
    assert found.columns[0].unknown.tolist() == [False, True, False]


def test_units_are_counted_over_the_table_and_always_over_the_one_shown(trained):
    run, table = trained("classes")
    whole = run.inspect(table, most_counted=None)
    assert whole.counted == f"{table.height} steps of 24 sequences"
    assert run.inspect(table).counted == whole.counted
    alone = run.inspect(table, "d7", most_counted=1)
    assert alone.counted == f"{alone.length} steps of 1 of 24 sequences"
    some = run.inspect(table, "d7", most_counted=100)
    assert 100 <= int(some.counted.split()[0]) < 112  # the sequence that reaches it is counted whole
    assert run.inspect(table, "d7", most_counted=100).counted == some.counted
    trace = run.inspect(table, "d7").layers[0]
    assert alone.layers[0].statistics.low == pytest.approx(trace.gates.hidden.numpy().min(axis=0))
    with pytest.raises(SettingsError, match="most_counted=0"):
        run.inspect(table, most_counted=0)


def test_counting_in_small_batches_and_chunks_finds_the_same_shares(trained, monkeypatch):
    run, table = trained("one sequence")
    whole = run.inspect(table).layers[0].statistics
    monkeypatch.setattr("tidegate.inspection.look._VALUES_AT_ONCE", 1)
    monkeypatch.setattr("tidegate.inspection.look._FEWEST_STEPS", 16)
    shares = []
    cut = run.inspect(table, on_progress=shares.append).layers[0].statistics
    for name in ("update_near_0", "reset_near_1", "low", "high"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))
    np.testing.assert_allclose(cut.update_mean, whole.update_mean, rtol=1e-12)
    assert (cut.sequences, cut.longest, cut.steps) == (1, 16, 90)
    assert shares == pytest.approx([16 / 90, 32 / 90, 48 / 90, 64 / 90, 80 / 90, 1])


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_in_the_mode_it_was_in(trained, training):
    run, table = trained("classes")
    run.model.train(training)
    a = run.inspect(table)
    assert run.model.training == training
    assert all(p.grad is None for p in run.model.parameters())
    run.model.eval()
    assert torch.equal(a.layers[0].gates.update, run.inspect(table).layers[0].gates.update)


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_what_json_knows(trained, kind):
    run, table = trained(kind)
    found = run.inspect(table)
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [layer["name"] for layer in read["layers"]] == [layer.name for layer in found.layers]
    assert len(read["layers"][0]["units"]) == 8
    assert read["steps"] == [1, found.length]
    assert np.array(read["lean"]["steps"]).shape == found.lean.steps.shape
    frame = found.to_frame()
    assert frame.height == found.length * 8 * len(found.layers)
    assert found.units_frame().height == 8 * len(found.layers)
    assert (
        found.units_frame()["memory_length_steps"].to_list()[:8]
        == found.layers[0].statistics.memory_length_steps.tolist()
    )


def test_it_tells_itself_in_words_pictures_and_in_a_notebook(trained):
    run, table = trained("two layers both ways")
    found = run.inspect(table)
    assert "layer 2, backward in time:\n    8 units: " in repr(found)
    axes = found.plot().axes
    assert len([a for a in axes if a.images]) == 4 * (4 + 1)  # of each layer and direction four gates, and the classes
    assert [a.get_ylabel() for a in axes if a.lines and not a.images and a.get_ylabel()] == ["inputs"]
    (strips,) = [a for a in axes if a.get_ylabel() == "label"]
    values = found.outputs[0].values
    assert [values.index(v) for v in values] == [
        strips.images[0].get_array()[0].tolist().index(v) for v in strips.images[0].get_array()[0].tolist()
    ]
    shown = found._repr_html_()
    assert shown.startswith('<iframe sandbox="allow-scripts" srcdoc="&lt;!doctype html&gt;')
    words_run, sentences = trained("words")
    axes = words_run.inspect(sentences).plot().axes
    assert sentences["words"][0].to_list() in [[tick.get_text() for tick in a.get_xticklabels()] for a in axes]


def test_the_step_values_are_those_of_the_layer(trained):
    run, table = trained("two layers both ways")
    found = run.inspect(table)
    layer = found.layers[3]
    v = found.step_values(4, "l1_reverse", 5)
    assert v.where.startswith("unit 5 of layer 2, backward in time, at step 4 of ")
    assert v.input_z == layer.input_part[3, 8 + 5].item()
    assert v.state_r == layer.state_part[3, 5].item()
    assert v.state_n == layer.gates.recurrent[3, 5].item()
    assert v.h == layer.before[3, 5].item()
    assert found.step_values(4).where.startswith(f"unit {found.layers[0].statistics.order[0]} of layer 1, forward")
    for wrong in ({"layer": "l2"}, {"unit": 8}, {"step": 99}):
        with pytest.raises(SettingsError):
            found.step_values(**{"step": 4, **wrong})


def test_a_name_is_taken_as_it_is_before_blanks_are_overlooked():
    names, table, pre = (
        ["a  b", "a b", "c, d", "c,e"],
        SimpleNamespace(name="t", frame=pl.DataFrame({"g": ["a  b", "a b", "c, d", "c,e"]})),
        SimpleNamespace(group=("g",), lists=False),
    )
    assert [find(name, names, table, pre) for name in ("a b", "a  b", "c,d", " c , e ")] == [1, 0, 2, 3]
    with pytest.raises(DataError, match="no sequence 'ab'"):  # it could be either one
        find("ab", names, table, pre)


def test_sequences_that_are_too_short_to_forget_in_are_not_said_to_remember():
    s = short(1)
    assert described(s)[0][0] == "6 units: 6 in sequences of a single step, which say nothing of memory."
    assert not s.still.any()
    assert "never forget" in described(short(4, update=0.999))[0][0]
    gates = torch.full((4, 1, 6), 0.999)
    gates[1] = 0.0  # one wait of three ends: most are cut off, and the longest that can be seen has 3 steps
    counter = Counter()
    counter.add(Gates(gates, gates, gates, torch.rand(4, 1, 6), torch.rand(4, 1, 6)))
    assert described(counter.result())[0][0] == "6 units: 6 remember over 3 steps."


def short(T: int, update: float = 0.5):
    counter = Counter()
    v = torch.linspace(0.2, 0.8, T)[:, None, None].expand(T, 1, 6)  # states that move, if there is a second step
    counter.add(Gates(v, torch.full_like(v, update), v, v, v))
    return counter.result()


def test_what_does_not_fit_into_memory_is_told_with_the_way_out(trained, monkeypatch):
    monkeypatch.setattr("tidegate.inspection.look.MOST_STATES", 8 * 50)
    monkeypatch.setattr("tidegate.inspection.look.WHOLE", 10)
    run, table = trained("one sequence")
    with pytest.raises(SettingsError, match=r"gates of 90 steps.* 50 do.* at most 40 steps \(--steps A:B\)"):
        run.inspect(table)
    assert run.inspect(table, steps=(51, 90)).steps == 40
    run, table = trained("a class a sequence")
    monkeypatch.setattr("tidegate.inspection.look.MOST_STATES", 8)
    with pytest.raises(SettingsError, match="reads each from end to end"):
        run.inspect(table)


def test_an_empty_table_is_told(trained):
    run, _ = trained("words")
    with pytest.raises(DataError, match="no sequence with a step"):
        run.inspect({"words": [[], []]}, None)


def test_the_tables_of_these_tests_are_as_they_say():
    assert numbers()["flow"].null_count() > 3
    assert words().height == 24


@pytest.mark.one_in(4)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_has_a_picture_with_its_inputs_and_predictions_on_top(trained, kind):
    run, table = trained(kind)
    found = run.inspect(table, steps="2:")
    axes = found.plot().axes
    names = [a.get_ylabel() for a in axes if a.get_ylabel() and "units" not in a.get_ylabel()]
    expected = ["inputs"] if any(c.kind == "number" for c in found.columns) else []
    assert names == expected + ([] if kind == "a class a sequence" else [o.name for o in found.outputs])
    for a in axes:
        if a.images and a.get_ylabel():
            assert a.images[0].get_extent()[:2] == [1.5, found.length + 0.5]


def test_names_that_two_sequences_share_are_told(trained):
    run, table = trained("a forecast")
    twice = pl.concat(
        [
            table.filter(meter=0).with_columns(site=pl.lit(site), meter=pl.lit(meter))
            for site, meter in (("a, b", "c"), ("a", "b, c"))
        ]
    )
    with pytest.raises(DataError, match="has 2 sequences whose group columns read 'a, b, c'"):
        run.inspect(twice, "a, b, c")


@pytest.mark.parametrize(
    "values",
    [
        [dt.datetime(2024, 1, 4, 12, 30), dt.datetime(2024, 1, 5)],
        [dt.timedelta(hours=1), dt.timedelta(hours=2)],
        [dt.date(2024, 1, 4), dt.date(2024, 1, 5)],
        [True, False],
        [1e-09, 2.5],
        [7, 8],
    ],
    ids=lambda v: type(v[0]).__name__,
)
def test_a_group_of_any_kind_can_be_asked_for_as_python_writes_it(trained, values):
    run, table = trained("classes")
    two = pl.concat(
        [table.filter(device=f"d{k}").with_columns(pl.lit(v).alias("device")) for k, v in enumerate(values)]
    )
    for value, device in zip(values, ("d0", "d1"), strict=True):
        for asked in (value, str(value)):
            found = run.inspect(two, asked)
            assert found.length == table.filter(device=device).height
            assert found.layers[0].gates.update.equal(run.inspect(table, device).layers[0].gates.update)


def test_the_most_probable_classes_of_many_are_found_a_few_steps_at_a_time(trained, monkeypatch):
    from tidegate.model import tasks

    run, table = trained("classes")
    whole = run.inspect(table, "d3").outputs
    monkeypatch.setattr(tasks, "BLOCK", 5)
    assert run.inspect(table, "d3").outputs == whole


def test_targets_that_cannot_be_read_cost_the_true_values_alone(trained):
    run, table = trained("classes")
    foreign = table.with_columns(label=pl.lit(1))
    with pytest.warns(DataWarning, match=r"No true values are shown: .* the target 'label' holds"):
        found = run.inspect(foreign, "d3")
    assert found.outputs[0].truth is None
    assert found.outputs[0].values == run.inspect(table, "d3").outputs[0].values


@pytest.mark.parametrize("kind", ["classes", "classes ahead", "a class a sequence"])
def test_a_class_that_training_never_saw_is_shown_by_its_own_name(trained, kind):
    run, table = trained(kind)
    renamed = {"up": "sideways", "down": "up"}
    foreign = table.with_columns(
        pl.when(pl.col("device") == "d3").then(pl.col("label").replace(renamed)).otherwise("label").alias("label")
    )
    found, before = run.inspect(foreign, "d3"), run.inspect(table, "d3")
    (output,), (own,) = found.outputs, before.outputs
    assert output.truth == [renamed.get(name) for name in own.truth]
    assert "sideways" in output.truth
    assert set(output.values) <= {"up", "down"}
    assert output.classes == ("down", "up")
    assert '"sideways"' in found.html()
    found.plot()


def test_words_that_training_never_knew_are_told_as_predict_tells_them(trained):
    run, _ = trained("words")
    with pytest.warns(DataWarning, match="never occurred in training"):
        run.inspect({"words": [["wholly", "other", "words"]]})


def test_the_output_that_a_prediction_leans_for_is_named(trained):
    run, table = trained("labels")
    found = run.inspect(table)
    sizes = np.abs(
        np.log(
            np.array([o.probability for o in found.outputs]) / (1 - np.array([o.probability for o in found.outputs]))
        )
    )
    assert found.leaning_outputs() == [("hot", "wet")[k] for k in sizes.argmax(axis=0)]
    run, table = trained("a forecast")
    assert set(run.inspect(table).leaning_outputs()) <= {
        f"{c}, {k} ahead" for c in ("level", "flow") for k in (1, 2, 3)
    }
    run, table = trained("classes")
    assert run.inspect(table).leaning_outputs() == []


def test_classes_have_one_colour_wherever_they_are_drawn(trained):
    run, table = trained("classes")
    found = run.inspect(table)
    (output,) = found.outputs
    colours: dict[str, set] = {"up": set(), "down": set()}
    for first, second in (("up", "down"), ("down", "up")):
        values = [first, *[second] * (found.length - 1)]
        drawn = dataclasses.replace(found, outputs=[dataclasses.replace(output, values=values)]).plot()
        (strips,) = [a for a in drawn.axes if a.get_ylabel() == "label"]
        image = strips.images[0]
        for value, code in zip(values, image.get_array()[0], strict=True):
            colours[value].add(tuple(image.cmap(image.norm(code))))
    assert all(len(seen) == 1 for seen in colours.values())
    assert colours["up"] != colours["down"]
