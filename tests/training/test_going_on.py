"""A training that goes on from another run: its weights, columns and means, and what is new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import tidegate
from tests.helpers.runs import run_of, table_of
from tests.helpers.tables import QUICK
from tests.helpers.training import ROLES, StopAfter, same_weights, weights
from tidegate.cli import main
from tidegate.data.tables import write_table
from tidegate.errors import DataError, Interrupted, RunError, SettingsError
from tidegate.trained import TrainSettings
from tidegate.training import fit
from tidegate.training.progress import Silent

pytestmark = pytest.mark.usefixtures("ctrl_c")

QUIET = {"progress": False, "device": "cpu"}
SHARES = {"split": (0.7, 0.15, 0.15)}  # the helpers' runs were divided by a column


class Notes(Silent):
    text = ""

    def note(self, text: str) -> None:
        self.text += text + "\n"

    epoch = note


def words(seed: int = 0, least: int = 0, tags: int = 3) -> pl.DataFrame:
    """Sentences of numbered words, each tagged by its number; `least` moves to other words."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(40):
        some = rng.integers(least, least + 12, int(rng.integers(2, 8)))
        rows.append({"words": [f"w{w}" for w in some], "tags": [f"t{w % tags}" for w in some]})
    return pl.DataFrame(rows)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A run that knows 12 words and 3 classes, with a baseline."""
    out = tmp_path_factory.mktemp("runs") / "old"
    return tidegate.train(words(), "tags", out=out, **(QUICK | {"baselines": True, "bidirectional": False}))


@pytest.fixture(scope="module")
def grown(tagger):
    """The same with the 6 words and 2 classes that another table adds, as it begins."""
    return tidegate.train(words(1, 6, 5), out=False, from_run=tagger, epochs=0, **QUIET)


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "name",
    [
        "class",
        "labels",
        "two numbers",
        "words both ways",
        "forecast of two",
        "class ahead",
        "every option",
        "sequence mean both ways",
        "yes/no",
    ],
)
def test_without_epochs_a_run_predicts_what_the_run_it_goes_on_from_does_to_the_bit(name):
    run, table = run_of(name), table_of(name)
    chances = run.preprocessing.target.task != "number"
    again = tidegate.train(table, out=False, from_run=run, epochs=0, **(QUIET | SHARES))
    assert again.predict(table, probabilities=chances).equals(run.predict(table, probabilities=chances))
    assert again.resolved.best_epoch == again.resolved.epochs_run == 0
    assert again.resolved.origin["fingerprint"] == run.fingerprint


@pytest.mark.parametrize("cell", ["mingru", "lstm", "rnn", "none"])
def test_every_cell_goes_on(cell, signals):
    run = tidegate.train(signals, out=False, cell=cell, **(QUICK | ROLES))
    same = tidegate.train(signals, out=False, from_run=run, epochs=0, **QUIET)
    assert same.predict(signals).equals(run.predict(signals))
    assert same.model.spec == run.model.spec
    more = tidegate.train(signals, out=False, from_run=run, epochs=1, **QUIET)
    assert more.history[0]["valid_loss"] == run.history[int(run.resolved.best_epoch) - 1]["valid_loss"]
    assert more.history[1]["valid_loss"] != more.history[0]["valid_loss"]


@pytest.mark.filterwarnings("ignore:.* never occurred in training")
def test_new_words_and_classes_leave_the_scores_of_the_old_ones_as_they_were(tagger, grown):
    table = words(1, 6, 5)
    old, new = tagger.preprocessing, grown.preprocessing
    assert new.tokens[0].vocabulary[:12] == old.tokens[0].vocabulary
    assert set(new.tokens[0].vocabulary[12:]) == {f"w{k}" for k in range(12, 18)}
    assert new.target.classes == (*old.target.classes, "t3", "t4")
    assert grown.resolved.origin["new"] == {"words": 6, "tags": 2}
    for frame in (words(), table):
        before, after = tagger.predict(frame, probabilities=True), grown.predict(frame, probabilities=True)
        assert after["prediction"].equals(before["prediction"])
        p, q = (np.stack([np.concatenate(f[f"p_t{k}"].to_list()) for k in range(3)], axis=1) for f in (before, after))
        np.testing.assert_allclose(q / q.sum(axis=1, keepdims=True), p, rtol=2e-6)
        fresh = np.stack([np.concatenate(after[f"p_t{k}"].to_list()) for k in (3, 4)], axis=1)
        assert (fresh <= 1 / 5 + 1e-7).all()  # of Hewitt 2021: 3 classes before, 2 new ones


def test_grown_embeddings_and_head_score_as_those_of_plain_torch(tagger, grown):
    old = tagger.model
    rows = old.embeddings[0].weight.detach()
    embedding = torch.nn.Embedding.from_pretrained(torch.cat([rows, rows[0].repeat(6, 1)]))
    head = torch.nn.Linear(8, 5)
    with torch.no_grad():
        head.weight[:3], head.bias[:3] = old.head.weight, old.head.bias
        head.weight[3:], head.bias[3:] = old.head.weight.mean(0), old.head.bias.mean()
        codes = torch.randint(0, 19, (7, 4, 1), generator=torch.Generator().manual_seed(1))
        core = torch.nn.GRU(rows.size(1), 8)
        core.load_state_dict(old.core.state_dict())
        expected = head(core(embedding(codes[..., 0]))[0])
        found, _ = grown.model(torch.zeros(7, 4, 0), codes, torch.full((4,), 7))
    torch.testing.assert_close(found[:, :, 0], expected, rtol=0, atol=1e-6)


def test_new_classes_several_steps_ahead_stand_behind_the_old_ones_of_their_step(signals):
    settings = {"target": "label", "features": ["x", "label"], "horizon": 2, "group": "device", "time": "t"}
    run = tidegate.train(signals, out=False, **(QUICK | settings))
    more = signals.with_columns(label=pl.when(pl.col("x") > 1).then(pl.lit("high")).otherwise("label"))
    again = tidegate.train(more, out=False, from_run=run, epochs=0, **QUIET)
    assert again.preprocessing.target.classes == ("down", "up", "high")
    numbers, codes, lengths = torch.randn(5, 2, 1), torch.ones(5, 2, 1, dtype=torch.long), torch.tensor([5, 5])
    with torch.no_grad():
        old, new = (r.model(numbers, codes, lengths)[0] for r in (run, again))
    assert new.shape == (5, 2, 2, 3)
    torch.testing.assert_close(new[..., :2], old, rtol=0, atol=1e-6)
    torch.testing.assert_close(new[..., 2], old.mean(-1), rtol=0, atol=1e-6)


def test_new_classes_are_learned(tagger):
    run = tidegate.train(
        words(1, 6, 5), out=False, from_run=tagger, epochs=15, lr=0.05, dropout=0, baselines=False, **QUIET
    )
    assert run.results.model.summary["accuracy"] > 0.9 > run.results.before.summary["accuracy"]
    assert "The training helped: accuracy" in str(run.results)


@pytest.mark.parametrize("parts", ["encoder", "core", "head", "encoder,core", "core,head"])
def test_frozen_parts_keep_their_weights_to_the_bit_and_the_others_learn(tagger, parts):
    run = tidegate.train(
        words(2), out=False, from_run=tagger, freeze=parts, weight_decay=0.1, lr=0.05, epochs=2, **QUIET
    )
    frozen = {"embeddings" if part == "encoder" else part for part in parts.split(",")}
    if run.resolved.best_epoch == 0:
        pytest.fail("this table was to be learned from")
    for name, value in weights(run).items():
        assert torch.equal(value, weights(tagger)[name]) == (name.split(".")[0] in frozen), name
    assert all(p.requires_grad for p in run.model.parameters())
    assert "Frozen: " + " and ".join(parts.split(",")) in "".join(run.resolved.notes)


def test_what_freeze_can_t_do_is_told(tagger, signals):
    with pytest.raises(
        SettingsError, match=r"freeze holds the head, and the training rows .* new classes of 'tags': 't3' and 't4'"
    ):
        tidegate.train(words(1, 6, 5), out=False, from_run=tagger, freeze="head", **QUIET)
    with pytest.raises(SettingsError, match="leaves no weights to learn"):
        tidegate.train(words(), out=False, from_run=tagger, freeze="head,core,encoder", **QUIET)
    with pytest.raises(
        SettingsError, match=r"freeze='body': a model has no part 'body'; expected encoder, core or head"
    ):
        tidegate.train(words(), out=False, from_run=tagger, freeze="body", **QUIET)
    with pytest.raises(SettingsError, match=r"freeze=core needs from_run \(--from\)"):
        tidegate.train(signals, out=False, freeze="core", **(QUICK | ROLES))
    with pytest.raises(SettingsError, match=r"epochs=0: expected at least 1"):
        tidegate.train(signals, out=False, **(QUICK | ROLES | {"epochs": 0}))
    run = tidegate.train(words(1, 6, 3), out=False, from_run=tagger, freeze="encoder", epochs=1, **QUIET)
    assert "new words and categories stay what the unknown one is" in "".join(run.resolved.notes)


def test_settings_of_the_training_may_differ_and_what_is_not_said_is_as_the_run_had_it(tagger):
    run = tidegate.train(words(3), out=False, from_run=tagger, lr=0.001, epochs=1, dropout=0.1, **QUIET)
    assert (run.settings.lr, run.settings.epochs, run.settings.dropout) == (0.001, 1, 0.1)
    assert (run.settings.hidden_size, run.settings.baselines, run.settings.target) == (8, True, ("tags",))
    assert run.model.spec.dropout == 0.1
    assert run.settings.from_run == str(tagger.folder)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"hidden_size": 16},
            r"hidden_size=16, but .*old has hidden_size=8, and its weights mean nothing without that",
        ),
        ({"cell": "lstm"}, r"cell='lstm', but .*old has cell='gru'"),
        ({"target": "words"}, r"target=words, but .*old has target=tags"),
        ({"bidirectional": True}, r"bidirectional=True, but .*old has bidirectional=False"),
        ({"features": "tags"}, r"features=tags, but .*old has features=words"),
        ({"exclude": "wor*"}, r"exclude=wor\*, but"),
        ({"layer_norm": True}, "layer_norm=True, but"),
    ],
)
def test_another_model_or_table_than_the_run_has_is_an_error_that_names_both(tagger, said, message):
    with pytest.raises(SettingsError, match=message):
        tidegate.train(words(), out=False, from_run=tagger, **(QUIET | said))


def test_what_the_run_has_may_be_said_again(tagger):
    said = {
        "target": "tags",
        "features": "words",
        "task": "class",
        "hidden_size": 8,
        "bidirectional": False,
        "exclude": "other",
    }
    assert tidegate.train(words(), out=False, from_run=tagger, epochs=0, **(QUIET | said)).results is not None


def test_means_stay_and_rows_that_lie_elsewhere_are_told_of(signals):
    table = signals.with_columns(y=pl.col("x") * 2 + 1)
    run = tidegate.train(table, "y", out=False, features="x", group="device", time="t", **QUICK)
    moved = table.with_columns(x=pl.col("x") + 100, y=pl.col("y") + 5)
    again = tidegate.train(moved, out=False, from_run=run, epochs=0, **QUIET)
    assert again.preprocessing.features == run.preprocessing.features
    assert again.preprocessing.target.means == run.preprocessing.target.means
    assert "Far from the rows of the earlier run" in "".join(again.resolved.notes)
    assert again.predict(table).equals(run.predict(table))


def test_the_baseline_of_the_mean_is_that_of_the_new_training_rows(signals):
    table = signals.with_columns(y=pl.col("x") * 2 + 1, split=pl.lit("train"))
    split = (
        pl.when(pl.col("device").is_in(["d0", "d1"]))
        .then(pl.lit("test"))
        .when(pl.col("device") == "d2")
        .then(pl.lit("valid"))
    )
    table = table.with_columns(split=split.otherwise(pl.lit("train")))
    run = tidegate.train(table, "y", out=False, features="x", group="device", time="t", split="split", **QUICK)
    moved = table.with_columns(y=pl.col("y") + 5)
    again = tidegate.train(moved, out=False, from_run=run, epochs=0, **QUIET)
    of = {part: moved.filter(pl.col("split") == part)["y"].to_numpy() for part in ("train", "test")}
    expected = float(np.sqrt(np.mean((of["train"].mean() - of["test"]) ** 2)))
    assert again.results.baselines["training mean"].summary["rmse"] == pytest.approx(expected, rel=1e-6)


def test_a_class_that_only_the_earlier_run_saw_leaves_the_nll_of_the_shares_finite(tagger):
    table = words(1, 0, 2)  # t2 is in none of its rows
    run = tidegate.train(table, out=False, from_run=tagger, epochs=1, **QUIET)
    assert run.preprocessing.target.counts[2] == 0
    scores = run.evaluate(words())
    assert np.isfinite(scores.baselines["majority class"].summary["nll"])


def test_the_report_says_where_a_run_comes_from_and_what_it_was_before(tmp_path, tagger):
    notes = Notes()
    path = tmp_path / "new.parquet"
    write_table(words(1, 6, 5), path)
    run = tidegate.train(path, out=tmp_path / "new", from_run=tagger, epochs=2, device="cpu", progress=notes)
    assert f"Goes on from {tagger.folder}" in notes.text
    assert "2 classes of 'tags' ('t3' and 't4')" in notes.text
    assert "6 words of 'words'" in notes.text
    assert "before the first epoch  valid loss" in notes.text
    report = (tmp_path / "new" / "report.md").read_text()
    assert "| before the first epoch |" in report
    assert f"| origin.fingerprint | {tagger.fingerprint} |" in report
    assert "| origin.new.words | 6 |" in report
    assert "{" not in report
    opened = tidegate.load(tmp_path / "new")
    assert opened.resolved.origin == {
        "run": str(tagger.folder),
        "fingerprint": tagger.fingerprint,
        "new": {"words": 6, "tags": 2},
    }
    assert opened.results.before == run.results.before
    assert opened.history[0]["epoch"] == 0
    assert "valid_accuracy" in opened.history[0]
    assert opened.evaluate(path).before == run.results.before  # the test rows of the very table
    alone = tidegate.train(path, out=False, from_run=tagger, epochs=0, **QUIET)
    assert alone.results.model == run.results.before
    assert json.loads((tagger.folder / "results.json").read_text()).get("before") is None


def test_the_weights_of_the_earlier_run_are_kept_where_no_epoch_is_better(tagger):
    table = tagger.predict(words()).drop("tags").rename({"prediction": "tags"}).with_row_index("part")
    wrong = pl.col("tags").list.eval(pl.element().replace({"t0": "t1", "t1": "t2", "t2": "t0"}))
    trains = pl.col("part") < 30
    table = table.with_columns(
        part=pl.when(trains).then(pl.lit("train")).otherwise(pl.lit("valid")),
        tags=pl.when(trains).then(wrong).otherwise("tags"),
    )
    run = tidegate.train(table, out=False, from_run=tagger, split="part", epochs=2, lr=0.05, **QUIET)
    assert run.history[0]["valid_accuracy"] == 1 > run.history[2]["valid_accuracy"]
    assert run.resolved.best_epoch == 0
    assert same_weights(run, tagger)
    assert "The training changed nothing: accuracy 1.0000, as before the first epoch." in str(run.results)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("batches", [3, 1, 8])
def test_an_interrupted_training_goes_on_to_the_same_bits_without_the_run_it_came_from(tmp_path, tagger, batches):
    old = shutil.copytree(tagger.folder, tmp_path / "old")
    path = tmp_path / "new.parquet"
    write_table(words(1, 6, 5), path)
    settings = {"from_run": old, "epochs": 2, "batch_size": 8, "freeze": "core", **QUIET}
    whole = tidegate.train(path, out=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        tidegate.train(path, out=tmp_path / "cut", **(settings | {"progress": StopAfter(batches)}))
    shutil.rmtree(old)
    resumed = tidegate.train(out=tmp_path / "cut", resume=True, progress=False)
    assert same_weights(whole, resumed)
    assert same_weights(whole.no_memory, resumed.no_memory)
    assert whole.results.to_dict() == resumed.results.to_dict()
    assert whole.resolved.notes == resumed.resolved.notes
    assert whole.preprocessing == resumed.preprocessing


def test_the_baseline_without_a_recurrence_goes_on_from_that_of_the_run(tagger, grown):
    old, new = weights(tagger.no_memory), weights(grown.no_memory)
    assert torch.equal(new["head.weight"][:3], old["head.weight"])
    assert torch.equal(new["embeddings.0.weight"][:13], old["embeddings.0.weight"])
    assert grown.no_memory.history[0]["epoch"] == 0
    alone = tidegate.train(words(), "tags", out=False, **(QUICK | {"bidirectional": False}))
    assert "same head, no recurrence" not in (
        tidegate.train(words(), out=False, from_run=alone, baselines=True, epochs=0, **QUIET).results.baselines
    )


def test_a_run_in_memory_goes_on_and_says_later_that_it_lies_nowhere(tmp_path, signals):
    run = tidegate.train(signals, out=False, **(QUICK | ROLES))
    again = tidegate.train(signals, out=tmp_path / "new", from_run=run, epochs=1, **QUIET)
    assert again.resolved.origin["run"] == "(a run in memory)"
    with pytest.raises(SettingsError, match="was in memory and lies in no folder"):
        tidegate.train(signals, out=False, config=tmp_path / "new" / "config.yaml")
    again.save(tmp_path / "copy")
    assert same_weights(again, tidegate.load(tmp_path / "copy"))
    assert tidegate.load(tmp_path / "copy").evaluate(signals).before is not None


def test_fit_goes_on_from_the_run_that_its_settings_name(tagger):
    settings = TrainSettings.make(from_run=str(tagger.folder), epochs=0, device="cpu")
    run = fit(words(), settings)
    assert same_weights(run, tagger)
    assert run.settings.hidden_size == 8


def test_the_settings_file_of_a_run_repeats_it(tmp_path, tagger):
    path = tmp_path / "new.parquet"
    write_table(words(1, 6, 5), path)
    run = tidegate.train(path, out=tmp_path / "new", from_run=tagger.folder, epochs=1, freeze="core", **QUIET)
    again = tidegate.train(config=tmp_path / "new" / "config.yaml", out=tmp_path / "again", progress=False)
    assert same_weights(run, again)


def test_a_run_goes_on_from_one_that_went_on(tmp_path, tagger):
    first = tidegate.train(words(1, 6, 5), out=tmp_path / "first", from_run=tagger, epochs=1, freeze="core", **QUIET)
    second = tidegate.train(words(4, 12, 5), out=False, from_run=first, epochs=1, **QUIET)
    assert second.settings.freeze == ()
    assert second.resolved.origin["run"] == str(tmp_path / "first")
    assert second.preprocessing.tokens[0].vocabulary[:18] == first.preprocessing.tokens[0].vocabulary


def test_columns_are_those_of_the_run(tagger):
    with pytest.raises(DataError, match=r"has no feature column 'words'"):
        tidegate.train(words().rename({"words": "text"}), out=False, from_run=tagger, **QUIET)
    run = tidegate.train(words().with_columns(extra=1), out=False, from_run=tagger, epochs=0, **QUIET)
    assert "Not read, as the earlier run reads other columns: 'extra'." in run.resolved.notes


def test_the_table_of_the_run_divided_otherwise_is_told(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(words(), path)
    old = tidegate.train(path, "tags", out=tmp_path / "old", **QUICK)
    same = tidegate.train(path, out=False, from_run=old, epochs=0, **QUIET)
    other = tidegate.train(path, out=False, from_run=old, epochs=0, seed=3, **QUIET)
    assert "so the figures flatter" not in "".join(same.resolved.notes)
    assert "divided otherwise (seed): rows that it learned from" in "".join(other.resolved.notes)
    assert same.results.model == old.results.model


def test_a_table_without_the_split_column_of_the_run_says_what_to_do():
    with pytest.raises(DataError, match=r"has no split column 'split'.*--split 0\.7,0\.15,0\.15"):
        tidegate.train(table_of("class").drop("split"), out=False, from_run=run_of("class"), **QUIET)


def test_a_yes_no_target_gets_no_third_class(signals):
    table = signals.with_columns(label=pl.col("x") > 0)
    run = tidegate.train(table, out=False, **(QUICK | ROLES))
    with pytest.raises(DataError, match=r"'label' holds 2; the earlier run knows it as yes or no"):
        tidegate.train(signals.with_columns(label=pl.int_range(pl.len()) % 3), out=False, from_run=run, **QUIET)


def test_a_run_that_is_none_unfinished_or_of_a_later_version_is_told(tmp_path, tagger):
    with pytest.raises(RunError, match="There is no run folder"):
        tidegate.train(words(), out=False, from_run=tmp_path / "nowhere", **QUIET)
    with pytest.raises(SettingsError, match=r"from_run=7: expected the folder of a run, or a run"):
        tidegate.train(words(), out=False, from_run=7, **QUIET)
    with pytest.raises(SettingsError, match=r"No table: .*resume"):
        tidegate.train(out=False, from_run=tagger, **QUIET)
    for text, other, message in [
        ("version: 2", "version: 99", "later version"),
        ("hidden_size: 8", "hiden_size: 8", "no setting"),
    ]:
        folder = shutil.copytree(tagger.folder, tmp_path / message.replace(" ", ""))
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace(text, other))
        with pytest.raises(RunError, match=message):
            tidegate.train(words(), out=False, from_run=folder, **QUIET)
    cut = shutil.copytree(tagger.folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"short")
    with pytest.raises(RunError, match="can't be read"):
        tidegate.train(words(), out=False, from_run=cut, **QUIET)
    with pytest.raises(Interrupted):
        tidegate.train(words(), "tags", out=tmp_path / "half", batch_size=4, **(QUICK | {"progress": StopAfter(9)}))
    notes = Notes()
    tidegate.train(words(), out=False, from_run=tmp_path / "half", epochs=0, device="cpu", progress=notes)
    assert "half is not finished: it has the best weights of 1 of at most 2 epochs" in notes.text


def test_a_run_can_t_be_trained_into_the_folder_it_goes_on_from(tmp_path, tagger):
    folder = shutil.copytree(tagger.folder, tmp_path / "old")
    for out in (folder, tmp_path / "." / "old"):
        with pytest.raises(RunError, match="is the run to go on from, and can't be the folder of the new one"):
            tidegate.train(words(), out=out, from_run=folder, overwrite=True, **QUIET)
    assert same_weights(tidegate.load(folder), tagger)


def test_gradients_of_other_cells_are_refused_for_a_run_that_went_on(tmp_path, signals):
    run = tidegate.train(signals, out=False, **(QUICK | ROLES))
    again = tidegate.train(signals, out=False, from_run=run, epochs=0, **QUIET)
    from tidegate.data.tables import Table
    from tidegate.inspection.gradients.siblings import table_of_training

    with pytest.raises(SettingsError, match=r"went on from .* can't be trained alike"):
        table_of_training(again, Table(signals, "table"))


def test_words_that_are_new_are_counted_in_both_tables(grown, tagger):
    old = dict(zip(tagger.preprocessing.tokens[0].vocabulary, tagger.preprocessing.tokens[0].counts, strict=True))
    new = dict(zip(grown.preprocessing.tokens[0].vocabulary, grown.preprocessing.tokens[0].counts, strict=True))
    assert new["w0"] == old["w0"]  # in no row of the second table
    assert new["w7"] > old["w7"]


def test_a_stream_and_exports_know_what_is_new(tmp_path, grown):
    stream = grown.stream(probabilities=True)
    answer = stream.push({"words": "w17"})
    assert "p_t4" in answer
    assert "t4" in grown.export("c", tmp_path / "m.h").path.read_text()


def test_the_command_line_goes_on_from_a_run_and_gives_a_run_more_epochs(tmp_path, tagger, capsys):
    path, new = tmp_path / "new.parquet", tmp_path / "new"
    write_table(words(1, 6, 5), path)
    said = ["train", str(path), "--from", str(tagger.folder), "--freeze", "encoder,core", "--no-baselines"]
    assert main([*said, "--out", str(new), "--epochs", "1", "--schedule", "constant"]) == 0
    assert "Frozen: encoder and core" in capsys.readouterr().err
    run = tidegate.load(new)
    assert run.settings.freeze == ("encoder", "core")
    assert all(torch.equal(value, weights(tagger)[name]) for name, value in weights(run).items() if "core" in name)
    assert main(["train", "--resume", str(new), "--epochs", "2"]) == 0
    assert "Goes on after epoch 1, to 2 at most, to the bit" in capsys.readouterr().err
    assert main([*said, "--out", str(tmp_path / "other"), "--hidden-size", "9"]) == 2
    assert "hidden_size=9, but" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_run_of_an_earlier_version_is_gone_on_from(kind):
    old = Path(__file__).parents[1] / "trained" / "runs_of_version_1"
    run = tidegate.train(old / "table.csv", out=False, from_run=old / kind, epochs=0, progress=False)
    found = run.predict(old / "table.csv", probabilities=True)
    assert found.equals(tidegate.load(old / kind).predict(old / "table.csv", probabilities=True))


def test_a_split_seed_a_fold_and_gaps_may_be_said_of_the_new_training(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(words(), path)
    member = tidegate.train(path, "tags", out=tmp_path / "old", **(QUICK | {"fold": "1/3", "split_seed": 4}))
    said = {"split_seed": 2, "fold": "2/3", "across_gaps": True}
    run = tidegate.train(path, out=False, from_run=member, epochs=0, **(QUIET | said))
    assert {name: getattr(run.settings, name) for name in said} == said
    assert "divided otherwise (split_seed, fold)" in "".join(run.resolved.notes)
    other = tidegate.train(path, out=False, from_run=member, epochs=0, **QUIET)
    assert (other.settings.split_seed, other.settings.fold) == (4, None)  # a fold is of one training
    assert "(fold): rows that it learned from now validate" in "".join(other.resolved.notes)


def test_of_several_runs_the_kept_one_is_gone_on_from_and_an_ensemble_names_its_runs(tmp_path):
    kept = tidegate.train(words(), "tags", out=tmp_path / "folds", folds=2, **QUICK)
    run = tidegate.train(words(1), out=False, from_run=tmp_path / "folds", epochs=0, **QUIET)
    assert run.settings.from_run == str(kept.folder.resolve())
    assert kept.settings.fold == "0/2"
    assert run.settings.fold is None
    assert run.resolved.parts["valid"]["rows"]
    with pytest.raises(RunError, match="is the run to go on from"):
        tidegate.train(words(1), out=tmp_path / "folds", from_run=kept, overwrite=True, **QUIET)
    together = {"seeds": [1, 2], "split_seed": 0, "keep": "ensemble"}
    tidegate.train(words(), "tags", out=tmp_path / "seeds", **(QUICK | together))
    with pytest.raises(RunError, match=r"is an ensemble, .*seed-1, .*seed-2"):
        tidegate.train(words(1), out=False, from_run=tmp_path / "seeds", **QUIET)


def test_labels_before_the_first_epoch_are_judged_by_the_thresholds_of_the_earlier_run(tmp_path):
    table = table_of("labels").with_columns(
        alarm=(pl.col("x").fill_null(0) > 0.9).cast(int),
        split=pl.when(pl.col("split") == "valid").then(pl.lit("test")).otherwise("split"),
    )
    path, roles = (
        tmp_path / "t.parquet",
        {"target": ["alarm", "door"], "split": "split", "group": "device", "time": "t"},
    )
    write_table(table.drop("label", "whole"), path)
    old = tidegate.train(path, out=False, **(QUICK | roles | {"label_thresholds": "f1"}))
    run = tidegate.train(path, out=tmp_path / "new", from_run=old, lr=0.1, epochs=1, **QUIET)
    assert run.preprocessing.target.thresholds != old.preprocessing.target.thresholds
    assert run.results.before == old.results.model
    assert tidegate.load(run.folder).evaluate(path).before == old.results.model
    half = tidegate.train(path, out=False, from_run=old, label_thresholds="half", epochs=1, **QUIET)
    assert half.results.before == old.results.model


def test_the_latest_of_equal_epochs_never_takes_the_place_of_the_weights_that_a_training_begins_with(signals):
    table = signals.with_columns(
        whole=(pl.col("x").sum().over("device") > 0).cast(pl.String),
        part=pl.when(pl.col("device").str.slice(1).cast(int) < 14).then(pl.lit("train")).otherwise(pl.lit("valid")),
    ).drop("label")
    said = ROLES | {"target": "whole", "per": "sequence", "split": "part", "features": ["x"]}
    old = tidegate.train(table, out=False, **(QUICK | said | {"epochs": 5}))
    learned = old.predict(table)["prediction"]
    flipped = learned.replace({"true": "false", "false": "true"})
    other = table.with_columns(whole=pl.when(pl.col("part") == "train").then(flipped).otherwise(learned))
    run = tidegate.train(other, out=False, from_run=old, epochs=1, lr=1e-4, schedule="constant", **QUIET)
    first, last = run.history
    assert first["valid_accuracy"] == last["valid_accuracy"] == 1
    assert first["valid_loss"] < last["valid_loss"]
    assert (run.resolved.best_epoch, run.resolved.tolerance) == (0, None)
    assert same_weights(run, old)
