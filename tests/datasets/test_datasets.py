"""The shipped tables are what their descriptions and the published figures say, and carry their licences."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tidegate import datasets
from tidegate.errors import DataError
from tidegate.files import DiskError

HERE = Path(datasets.__file__).parent
NAMES = ["cheetah", "japanese_vowels", "mnist1d", "occupancy", "snips"]


def counts(table: pl.DataFrame, *by: str) -> dict:
    rows = table.group_by(by).len().rows()
    return {(r[:-1] if len(by) > 1 else r[0]): r[-1] for r in rows}


def flat(text: str) -> str:
    """Text without line breaks and marks, to compare a paragraph with its source."""
    return " ".join(text.split())


# ---- every data set


def test_the_five_data_sets_are_there_and_no_other_table_is_shipped():
    assert datasets.names() == NAMES
    assert sorted(p.stem for p in HERE.glob("*.parquet")) == NAMES


def test_all_tables_together_are_below_3_6_megabytes():
    sizes = [p.stat().st_size for p in HERE.glob("*.parquet")]
    assert 1e6 < sum(sizes) < 3.6e6


@pytest.mark.parametrize("name", NAMES)
def test_the_description_names_every_column_in_order_and_counts_the_rows(name):
    described = []
    for key in datasets.describe(name).columns:
        first, dots, last = key.partition(" ... ")
        if dots:
            stem = first.rstrip("0123456789")
            described += [f"{stem}{i}" for i in range(int(first[len(stem) :]), int(last[len(stem) :]) + 1)]
        else:
            described.append(first)
    table = datasets.read(name)
    assert table.columns == described
    assert table.height == datasets.describe(name).rows
    assert sum(table.null_count().row(0)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_finite(name):
    table = datasets.read(name)
    floats = [c for c in table.columns if table.schema[c].is_float()]
    values = table["signal"].explode().to_frame() if name == "mnist1d" else table.select(floats)
    assert values.width == {"cheetah": 17, "japanese_vowels": 12, "mnist1d": 1, "occupancy": 5, "snips": 0}[name]
    assert all(values[c].is_finite().all() for c in values.columns)


@pytest.mark.parametrize("name", NAMES)
def test_no_sequence_is_in_two_splits(name):
    key = {"cheetah": "rollout", "japanese_vowels": "utterance", "mnist1d": "id", "occupancy": "recording"}
    table = datasets.read(name).with_row_index("row")
    key = key.get(name, "row")
    assert table.group_by(key).agg(pl.col("split").n_unique())["split"].max() == 1
    assert table[key].n_unique() == datasets.describe(name).sequences


@pytest.mark.parametrize("name", NAMES)
def test_the_suggested_settings_are_settings_of_train_and_columns_of_the_table(name):
    from tidegate.trained.settings import TrainSettings

    d, columns = datasets.describe(name), datasets.read(name).columns
    settings = TrainSettings.make(**d.train)
    used = [*settings.target, *settings.group, *(settings.features or ()), settings.split]
    assert set(used) <= set(columns)
    assert settings.time is None or settings.time in columns
    assert (settings.per == "sequence") == (d.task == "a class per sequence")


def test_the_command_repeats_an_option_that_has_several_values():
    words = datasets.describe("cheetah").command("a folder/cheetah.parquet").split(" --")
    assert words[0] == "tidegate train 'a folder/cheetah.parquet'"
    assert words[1:18] == [f"target o{i}" for i in range(17)]
    assert words[18:] == ["horizon 1", "group rollout", "time step", "split split"]


def test_an_unknown_name_is_an_error_that_names_the_nearest():
    for call in (datasets.describe, datasets.read):
        with pytest.raises(DataError, match=r"no data set 'snip'. Did you mean 'snips'"):
            call("snip")


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(datasets)
    assert result.attempted >= 4
    assert result.failed == 0


def test_the_package_reads_nothing_outside_itself(tmp_path):
    # Python tells an audit hook of each file it opens; polars opens files in Rust, so its path is looked at too.
    script = """
import sys, polars
from tidegate import datasets
opened = []
real = polars.read_parquet
polars.read_parquet = lambda path: (opened.append(str(path)), real(path))[1]
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
for name in datasets.names():
    datasets.read(name), datasets.write(name, sys.argv[1])
print("\\n".join(path for path in opened if not path.isdigit()))
"""
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    opened = run.stdout.split("\n")[:-1]
    data = [p for p in opened if p.endswith((".parquet", ".txt", ".json", ".npz", ".ts", ".npy", ".md", ".tmp"))]
    assert len([p for p in data if p.endswith(".parquet")]) >= 10
    assert all(Path(p).parent in (HERE, HERE / "LICENSES", tmp_path) for p in data)


# ---- licences and credit


@pytest.mark.parametrize("name", NAMES)
def test_the_licence_that_is_named_is_shipped(name):
    d = datasets.describe(name)
    text = flat((HERE / "LICENSES" / d.licence_file).read_text(encoding="utf-8"))
    last_words = {
        "Apache-2.0": "limitations under the License.",
        "CC0-1.0": "<http://creativecommons.org/publicdomain/zero/1.0/>",
        "CC-BY-4.0": "The authors have not endorsed Tidegate or these changes.",
    }
    assert text.endswith(last_words[d.licence])
    if d.licence == "CC-BY-4.0":  # attribution: title, authors, source, licence with its address, changes
        doi = re.search(r"10\.24432/\w+", d.origin).group()
        wanted = [d.title, d.credit.split(f", {d.title}")[0], f"https://doi.org/{doi}", d.changes]
        wanted += ["Creative Commons Attribution 4.0 International", "https://creativecommons.org/licenses/by/4.0/"]
        assert [w for w in wanted if w not in text] == []
    else:
        assert len(text) > 5000


def test_every_licence_file_belongs_to_a_data_set():
    assert {p.name for p in (HERE / "LICENSES").iterdir()} == {datasets.describe(n).licence_file for n in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_gives_credit_origin_licence_changes_and_split(name):
    d = datasets.describe(name)
    sections = (HERE / "README.md").read_text(encoding="utf-8").split("\n## ")
    (section,) = [flat(s) for s in sections if s.startswith(f"{name}: {d.title}")]
    for fact in (d.credit, d.origin, d.licence, f"LICENSES/{d.licence_file}", d.changes, d.splits):
        assert fact in section


# ---- one by one


def test_snips_has_the_published_13784_training_and_700_test_sentences():
    table = datasets.read("snips")
    assert counts(table, "split") == {"train": 13_084, "valid": 700, "test": 700}
    of_intent = counts(table, "split", "intent")
    assert {of_intent["valid", i] for i in table["intent"].unique()} == {100}
    assert {of_intent["test", i] for i in table["intent"].unique()} == {100}
    assert table["intent"].n_unique() == 7
    assert table.schema == {
        "words": pl.List(pl.String),
        "slots": pl.List(pl.String),
        "intent": pl.String,
        "split": pl.String,
    }


def test_snips_marks_are_well_formed_and_one_a_word():
    table = datasets.read("snips")
    kinds = set()
    for words, slots in zip(table["words"].to_list(), table["slots"].to_list(), strict=True):
        assert len(words) == len(slots) > 0
        for before, slot in zip(["O", *slots], slots, strict=False):
            assert re.fullmatch(r"O|[BI]-\w+", slot)
            if slot.startswith("I-"):
                assert before in (slot, f"B-{slot[2:]}")
            kinds.add(slot[2:])
    assert len(kinds - {""}) == 39


def test_snips_words_hold_no_blank_and_either_one_mark_or_no_mark():
    words = datasets.read("snips")["words"].explode().unique().to_list()
    assert len(words) == 13_556
    assert all(re.fullmatch(r"\w+|[^\w\s]", w) for w in words)
    assert {"Romántica", "🍕", "’", "楽園追放"} <= set(words)


def test_snips_sentences_are_read_as_they_were_written():
    first = datasets.read("snips").row(0, named=True)
    assert first["words"] == ["Add", "another", "song", "to", "the", "Cita", "Romántica", "playlist", "."]
    assert first["slots"] == ["O", "O", "B-music_item", "O", "O", "B-playlist", "I-playlist", "O", "O"]


def test_snips_copies_across_the_splits_are_as_few_as_the_description_says():
    table = datasets.read("snips").with_columns(text=pl.col("words").list.join(" "))

    def copies(of: str, in_: str, lower: bool) -> int:
        text = pl.col("text").str.to_lowercase() if lower else pl.col("text")
        there = set(table.filter(split=in_).select(text)["text"])
        return sum(t in there for t in table.filter(split=of).select(text)["text"])

    assert copies("valid", "train", lower=True) == 0
    assert copies("test", "valid", lower=True) == 0
    found = copies("test", "train", lower=True), copies("test", "train", lower=False)
    assert found == (11, 6)
    said = "{} of the 700 test sentences also stand in train, {} of them with the same capitals".format(*found)
    assert said in datasets.describe("snips").splits


def test_occupancy_has_the_published_20560_rows_in_three_recordings_in_time_order():
    table = datasets.read("occupancy")
    assert counts(table, "recording", "split") == {
        ("datatraining", "train"): 8_143,
        ("datatest", "test"): 2_665,
        ("datatest2", "test"): 9_752,
    }
    assert table.schema["date"] == pl.Datetime("ms")
    assert all(table.filter(recording=r)["date"].is_sorted() for r in table["recording"].unique())
    assert table["Occupancy"].dtype.is_integer()
    assert set(table["Occupancy"]) == {0, 1}


def test_occupancy_values_stand_under_their_own_names():
    # The header of the originals is one name short; shifted by one, CO2 would read as light.
    row = datasets.read("occupancy").row(0, named=True)
    assert str(row.pop("date")) == "2015-02-04 17:51:00"
    assert row == {
        "recording": "datatraining",
        "Temperature": 23.18,
        "Humidity": 27.272,
        "Light": 426.0,
        "CO2": 721.25,
        "HumidityRatio": 0.00479298817650529,
        "Occupancy": 1,
        "split": "train",
    }


def test_japanese_vowels_has_270_and_370_utterances_of_7_to_29_frames_by_9_speakers():
    table = datasets.read("japanese_vowels")
    utterances = table.group_by("utterance", maintain_order=True).agg(
        pl.len(), pl.col("frame"), pl.col("speaker").unique(), pl.col("split").first()
    )
    assert utterances["utterance"].to_list() == list(range(640))
    assert (utterances["len"].min(), utterances["len"].max()) == (7, 29)
    assert all(frames == list(range(len(frames))) for frames in utterances["frame"].to_list())
    assert utterances["speaker"].list.len().max() == 1
    of_speaker = counts(utterances.explode("speaker"), "split", "speaker")
    assert [of_speaker["train", str(s)] for s in range(1, 10)] == [30] * 9
    assert [of_speaker["test", str(s)] for s in range(1, 10)] == [31, 35, 88, 44, 29, 24, 40, 50, 29]


def test_japanese_vowels_keeps_the_printed_digits():
    table = datasets.read("japanese_vowels")
    first = table.select(f"c{i}" for i in range(1, 13))
    assert set(first.dtypes) == {pl.Float32}
    assert [str(pl.Series([v], dtype=pl.Float32)[0])[:8] for v in first["c1"].head(3)] == [
        "1.860936",
        "1.891651",
        "1.939205",
    ]
    assert str(first["c2"].round(6)[0])[:9] == "-0.207383"


def test_mnist1d_has_4000_and_1000_signals_of_40_values():
    table = datasets.read("mnist1d")
    assert table["split"].to_list() == ["train"] * 4_000 + ["test"] * 1_000
    assert table.schema["signal"] == pl.List(pl.Float32)
    assert set(table["signal"].list.len()) == {40}
    assert table["id"].to_list() == list(range(5_000))
    assert set(table["digit"]) == set(range(10))
    assert set(counts(table, "digit").values()) == {500}


def test_cheetah_has_25_rollouts_of_1000_steps_split_as_in_the_paper():
    table = datasets.read("cheetah")
    assert table["rollout"].to_list() == [r for r in range(25) for _ in range(1_000)]
    assert table["step"].to_list() == list(range(1_000)) * 25
    split = dict(table.select("rollout", "split").unique().rows())
    assert [split[r] for r in range(25)] == ["valid"] * 5 + ["test"] * 10 + ["train"] * 10
    observation = table.select(f"o{i}" for i in range(17))
    assert set(observation.dtypes) == {pl.Float32}
    assert table.row(0, named=True)["o16"] == pytest.approx(-0.1678988, abs=1e-7)
    assert min(observation[c].std() for c in observation.columns) > 0.05


# ---- writing


@pytest.mark.parametrize("name", NAMES)
def test_writing_gives_the_table_a_note_and_the_licence(name, tmp_path):
    folder = tmp_path / "new" / "folder"
    d = datasets.describe(name)
    paths = datasets.write(name, folder)
    assert [p.name for p in paths] == [f"{name}.parquet", f"{name}.md", f"{name}.LICENSE.txt"]
    assert sorted(folder.iterdir()) == sorted(paths)
    assert pl.read_parquet(paths[0]).equals(datasets.read(name))
    note = paths[1].read_text(encoding="utf-8")
    for fact in (d.title, d.credit, d.origin, d.licence, d.changes, f"    {d.command()}\n", *d.columns):
        assert fact in note
    assert paths[2].read_bytes() == (HERE / "LICENSES" / d.licence_file).read_bytes()


def test_writing_again_changes_nothing(tmp_path):
    before = [(p, p.stat().st_mtime_ns, p.stat().st_ino) for p in datasets.write("snips", tmp_path)]
    assert [(p, p.stat().st_mtime_ns, p.stat().st_ino) for p in datasets.write("snips", str(tmp_path))] == before


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_different_file_in_the_way_stops_the_writing_before_it_begins(tmp_path, which):
    taken = tmp_path / ["mnist1d.parquet", "mnist1d.md", "mnist1d.LICENSE.txt"][which]
    taken.write_text("mine")
    with pytest.raises(DataError, match=re.escape(str(taken)) + " is there already.*Nothing was written"):
        datasets.write("mnist1d", tmp_path)
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is a file; give a folder"):
        datasets.write("snips", tmp_path / "file")


def test_a_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(self, content):
        with open(self, "wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DiskError):
        datasets.write("snips", tmp_path)
    assert list(tmp_path.iterdir()) == []
