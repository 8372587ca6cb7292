"""Five real data sets that come with the package, 3 MB in all, each with its credit and licence.

    >>> from tidegate import datasets
    >>> datasets.names()
    ['cheetah', 'japanese_vowels', 'mnist1d', 'occupancy', 'snips']
    >>> datasets.describe("mnist1d").task
    'a class per sequence'
    >>> datasets.read("mnist1d").shape
    (5000, 4)

Nothing is fetched from a network: the tables lie beside this file as Parquet. Each description, and
README.md here, says what was changed from the original; tools/make_datasets.py does it.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.errors import DataError, nearest
from tidegate.files import replacing

if TYPE_CHECKING:
    import polars

__all__ = ["Dataset", "describe", "names", "read", "write"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Dataset:
    """What one data set is, where it comes from, and how to train on it."""

    name: str
    title: str
    what: str
    task: str
    rows: int
    sequences: int
    columns: dict[str, str]  # in the order of the table; the key may name several, as "c1 ... c12"
    splits: str
    published: str
    licence: str  # the SPDX identifier
    licence_file: str  # in LICENSES/
    credit: str
    origin: str  # "repository, commit abc1234", and the DOI where there is one
    changes: str  # from the published files
    train: dict[str, Any]  # the settings to give `tidegate.train` or `tidegate train`; the rest is left at its default

    def command(self, table: str | os.PathLike[str] | None = None) -> str:
        """The line to type, for the table as `write` leaves it in a folder. A setting with several values is repeated.

        >>> describe("mnist1d").command()
        'tidegate train mnist1d.parquet --target digit --per sequence --features signal --split split'
        """
        words = ["tidegate", "train", f"{self.name}.parquet" if table is None else os.fspath(table)]
        for setting, value in self.train.items():
            for v in value if isinstance(value, tuple) else (value,):
                words += ["--" + setting.replace("_", "-"), str(v)]
        return shlex.join(words)


_ALL = {
    d.name: d
    for d in (
        Dataset(
            name="cheetah",
            title="Half-cheetah rollouts",
            what="25 runs of a simulated two-legged runner (HalfCheetah), 1,000 steps each, 17 observed values a step.",
            task="the next observation per step",
            rows=25_000,
            sequences=25,
            columns={
                "rollout": "the run, 0 to 24, in the order of the original files",
                "step": "0 to 999",
                "o0 ... o16": "the observation (float32): positions and angles, then their velocities",
                "split": "train, valid or test",
            },
            splits="By whole rollouts, as in the paper: 0-4 valid, 5-14 test, 15-24 train.",
            published="Mean squared error on the test rollouts: LSTM 2.500 ± .140, CT-GRU 3.014 ± .134, "
            "LTC 2.308 ± .015 (arXiv:2006.04439, table 6; windows of 32 steps).",
            licence="Apache-2.0",
            licence_file="Apache-2.0.txt",
            credit="Ramin Hasani, Mathias Lechner, Alexander Amini, Daniela Rus and Radu Grosu, "
            "Liquid Time-constant Networks, arXiv:2006.04439.",
            origin="raminmh/liquid_time_constant_networks, commit 4a8a4fa",
            changes="25 NumPy files became one table with rollout and step numbers and a split column; "
            "float64 values were rounded to float32.",
            train={
                "target": tuple(f"o{i}" for i in range(17)),
                "horizon": 1,
                "group": "rollout",
                "time": "step",
                "split": "split",
            },
        ),
        Dataset(
            name="japanese_vowels",
            title="Japanese Vowels",
            what="Nine men say two Japanese vowels, /ae/: 640 utterances of 7 to 29 frames, 12 cepstral channels a frame.",
            task="a class per sequence",
            rows=9_961,
            sequences=640,
            columns={
                "utterance": "0 to 639; the original training file's 270 come first",
                "frame": "0, 1, ... within the utterance",
                "c1 ... c12": "LPC cepstrum coefficients (float32, every printed digit kept)",
                "speaker": 'who speaks, "1" to "9"',
                "split": "train or test",
            },
            splits="As published: 270 utterances train (30 a speaker), 370 test (24 to 88 a speaker). No valid.",
            published="No verified GRU result is known to us.",
            licence="CC-BY-4.0",
            licence_file="CC-BY-4.0-japanese_vowels.txt",
            credit="Mineichi Kudo, Jun Toyama and Masaru Shimbo, Japanese Vowels, UCI Machine Learning Repository, 1999; "
            "Multidimensional Curve Classification Using Passing-Through Regions, "
            "Pattern Recognition Letters 20 (1999), 1103-1111.",
            origin="DOI 10.24432/C5NS47; taken from aeon-toolkit/aeon, commit a101ddc",
            changes="Two .ts files became one long table, a row a frame, with utterance and frame numbers and a split "
            "column; values are stored as float32, which keeps every printed digit.",
            train={
                "target": "speaker",
                "per": "sequence",
                "group": "utterance",
                "time": "frame",
                "split": "split",
            },
        ),
        Dataset(
            name="mnist1d",
            title="MNIST-1D",
            what="5,000 drawn and distorted signals of 40 steps, each standing for a digit.",
            task="a class per sequence",
            rows=5_000,
            sequences=5_000,
            columns={
                "id": "0 to 4999; the original training signals come first",
                "signal": "the 40 values (a list of float32)",
                "digit": "0 to 9",
                "split": "train or test",
            },
            splits="As published: 4,000 train, 1,000 test. No valid.",
            published="Accuracy: GRU .91, MLP .68, CNN .94, people .96 (arXiv:2011.14439; the GRU is bidirectional "
            "with 6 hidden units, all 40 outputs into one linear layer).",
            licence="Apache-2.0",
            licence_file="Apache-2.0.txt",
            credit="Sam Greydanus, Scaling Down Deep Learning, arXiv:2011.14439.",
            origin="greydanus/mnist1d, commit 7878d96 (its frozen data)",
            changes="The arrays became one table, a row a signal, with an id and a split column; values unchanged.",
            train={"target": "digit", "per": "sequence", "features": "signal", "split": "split"},
        ),
        Dataset(
            name="occupancy",
            title="Occupancy Detection",
            what="An office room, about a row a minute for three stretches of days in February 2015: temperature, "
            "humidity, light, CO2, and whether somebody is there.",
            task="a class per step",
            rows=20_560,
            sequences=3,
            columns={
                "recording": "datatraining, datatest or datatest2: the original file",
                "date": "date and time of day",
                "Temperature": "°C",
                "Humidity": "relative, %",
                "Light": "lux",
                "CO2": "parts per million",
                "HumidityRatio": "kilogram of water vapour a kilogram of dry air",
                "Occupancy": "1: somebody is there; 0: nobody",
                "split": "train or test",
            },
            splits="By original file: datatraining (8,143 rows) train; datatest (2,665) and datatest2 (9,752) test. No valid.",
            published="Accuracy: CT-GRU .914, LSTM .932 (arXiv:2006.04439). A logistic regression of the single row scores .989, "
            "and .794 without Light: light nearly tells the answer, so look at the baselines.",
            licence="CC-BY-4.0",
            licence_file="CC-BY-4.0-occupancy.txt",
            credit="Luis M. Candanedo and Véronique Feldheim, Occupancy Detection, UCI Machine Learning Repository, 2016; "
            "Accurate occupancy detection of an office room from light, temperature, humidity and CO2 measurements "
            "using statistical learning models, Energy and Buildings 112 (2016), 28-39.",
            origin="DOI 10.24432/C5X01N; taken from LuisM78/Occupancy-detection-data, commit ba2b1d7",
            changes="Three text files became one table with a recording and a split column; the unnamed row number "
            "was left out; date became a date-time; values unchanged.",
            train={"target": "Occupancy", "group": "recording", "time": "date", "split": "split"},
        ),
        Dataset(
            name="snips",
            title="SNIPS spoken commands",
            what="14,484 English commands to a voice assistant, 7 intents, with 39 kinds of slots marked on their words.",
            task="a class per step",
            rows=14_484,
            sequences=14_484,
            columns={
                "words": "the sentence (a list of words; capitals kept)",
                "slots": "a mark a word: B-x begins an entity of kind x, I-x goes on with it, O is none",
                "intent": "what is wanted: AddToPlaylist, BookRestaurant, GetWeather, PlayMusic, RateBook, "
                "SearchCreativeWork or SearchScreeningEvent",
                "split": "train, valid or test",
            },
            splits="The official validation files (700) are test. Of the official full training files (13,784), 100 "
            "sentences an intent are valid: those with the lowest SHA-256 of their lower-cased words, copies of a "
            "sentence kept together; the other 13,084 are train. 11 of the 700 test sentences also stand in train, "
            "6 of them with the same capitals; they were left in.",
            published="Slot F1: Joint Seq .873, attention BiRNN .878, slot-gated .888 (Goo et al. 2018; LSTM type, trained "
            "from scratch). Their test set is cut from the training files, so the figures are near, not equal.",
            licence="CC0-1.0",
            licence_file="CC0-1.0.txt",
            credit="Alice Coucke and others (Snips), Snips Voice Platform: an embedded Spoken Language Understanding "
            "system for private-by-design voice interfaces, arXiv:1805.10190.",
            origin="sonos/nlu-benchmark, commit b86ac7f",
            changes="14 JSON files became one table, a row a sentence. Each piece of text was cut into words on its own, so "
            "that an entity's borders fall between words: runs of letters, digits and underscores are words, every "
            "other mark is a word by itself, blanks only separate. One emoji, written as two surrogates, was put right. "
            "The split column was added.",
            train={"target": "slots", "features": "words", "split": "split"},
        ),
    )
}


def names() -> list[str]:
    """The names of the data sets, in alphabetical order."""
    return list(_ALL)


def describe(name: str) -> Dataset:
    """What the data set `name` is. Raises `DataError` for a name that there is none of."""
    if name not in _ALL:
        raise DataError(f"There is no data set {name!r}.{nearest(name, _ALL)} There are: {', '.join(_ALL)}.")
    return _ALL[name]


def read(name: str) -> polars.DataFrame:
    """The whole table of the data set `name`, all splits."""
    import polars

    return polars.read_parquet(_HERE / f"{describe(name).name}.parquet")


def write(name: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Write NAME.parquet, NAME.md (what it is, credit, the command to type) and NAME.LICENSE.txt into `folder`.

    The folder is made if need be. Each file is written under a temporary name and renamed, so nothing is ever
    half there. A file that is there already and is the same is left alone; if one differs, nothing is written
    and a `DataError` says which. Returns the three paths, the table's first.
    """
    dataset, folder = describe(name), Path(folder)
    contents = {
        folder / f"{name}.parquet": (_HERE / f"{name}.parquet").read_bytes(),
        folder / f"{name}.md": _note(dataset).encode(),
        folder / f"{name}.LICENSE.txt": (_HERE / "LICENSES" / dataset.licence_file).read_bytes(),
    }
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder to write the data set {name!r} into.")
    for path, content in contents.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise DataError(
                f"{path} is there already and is not what the data set {name!r} would write; "
                "move it away or give another folder. Nothing was written."
            )
    for path, content in contents.items():
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_bytes(content)
    return list(contents)


def _note(d: Dataset) -> str:
    columns = "\n".join(f"| {name} | {meaning} |" for name, meaning in d.columns.items())
    return f"""# {d.title}

{d.what}
{d.rows:,} rows, {d.sequences:,} sequences. Task: {d.task}.

    {d.command()}

| column | meaning |
|---|---|
{columns}

**Split.** {d.splits}

**Published results.** {d.published}

**Credit.** {d.credit}

**Origin.** {d.origin}.

**Licence.** {d.licence}; the text is in {d.name}.LICENSE.txt.

**Changed from the original.** {d.changes}
"""
