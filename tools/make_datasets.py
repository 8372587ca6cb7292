"""Turn the published originals into the Parquet files of `tidegate.datasets`.

    python tools/make_datasets.py FOLDER_OF_ORIGINALS [--out src/tidegate/datasets] [--check]

The folder holds one sub-folder a data set (snips, occupancy, mnist1d, japanese_vowels, cheetah) with the
files as their authors published them; src/tidegate/datasets/README.md names the commits. Needs pyarrow and
numpy beside Python; pyarrow because it can write floats as BYTE_STREAM_SPLIT, a fifth smaller here.
`--check` writes nothing and ends with status 1 if a shipped table differs from what the originals give.
Everything is deterministic: the same originals give the same rows in the same order.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VALID_SENTENCES_PER_INTENT = 100


# ---- snips ------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Runs of letters and digits are words; every other mark is a word by itself; blanks only separate.

    >>> words_of("What's on at 8:30?\\n")
    ['What', "'", 's', 'on', 'at', '8', ':', '30', '?']
    """
    return re.findall(r"\w+|[^\w\s]", text)


def words_and_slots(pieces: list[dict]) -> tuple[list[str], list[str]]:
    """Each piece is cut into words on its own, so that an entity's borders always fall between words.

    >>> words_and_slots([{"text": "play "}, {"text": "Blue Moon ", "entity": "track"}, {"text": "now"}])
    (['play', 'Blue', 'Moon', 'now'], ['O', 'B-track', 'I-track', 'O'])
    """
    words, slots = [], []
    for piece in pieces:
        of_piece = words_of(piece["text"])
        entity = piece.get("entity")
        words += of_piece
        slots += ["O" if entity is None else f"{'I' if i else 'B'}-{entity}" for i in range(len(of_piece))]
    return words, slots


def utf8_with_surrogates(raw: bytes) -> str:
    """UTF-8, where one file has an emoji written as two surrogates of three bytes each (CESU-8)."""
    return raw.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16")


def snips(folder: Path) -> pa.Table:
    rows = []
    for part in ("train", "test"):
        pattern = "train_*_full.json" if part == "train" else "validate_*.json"
        for path in sorted(folder.glob(pattern)):
            ((intent, sentences),) = json.loads(utf8_with_surrogates(path.read_bytes())).items()
            of_file = []
            for sentence in sentences:
                words, slots = words_and_slots(sentence["data"])
                of_file.append({"words": words, "slots": slots, "intent": intent, "split": part})
            if part == "train":
                mark_valid(of_file)
            rows += of_file
    return pa.Table.from_pylist(
        rows,
        pa.schema(
            [
                ("words", pa.list_(pa.string())),
                ("slots", pa.list_(pa.string())),
                ("intent", pa.string()),
                ("split", pa.string()),
            ]
        ),
    )


def mark_valid(rows: list[dict]) -> None:
    """Of one intent's rows, make exactly 100 "valid": those whose text has the lowest SHA-256.

    The hash is taken of the lower-cased words. Copies of a sentence go together; a group of copies that
    would make the count overshoot is passed over. So no sentence is in both train and valid.
    """
    copies: dict[str, list[dict]] = {}
    for row in rows:
        text = " ".join(row["words"]).lower()
        copies.setdefault(hashlib.sha256(text.encode()).hexdigest(), []).append(row)
    wanted = VALID_SENTENCES_PER_INTENT
    for _, group in sorted(copies.items()):
        if len(group) <= wanted:
            wanted -= len(group)
            for row in group:
                row["split"] = "valid"
    assert wanted == 0


# ---- occupancy --------------------------------------------------------------------------------------------


def occupancy(folder: Path) -> pa.Table:
    columns: dict[str, list] = {"recording": [], "date": []}
    for recording, split in (("datatraining", "train"), ("datatest", "test"), ("datatest2", "test")):
        with open(folder / f"{recording}.txt", newline="", encoding="ascii") as file:
            reader = csv.reader(file)
            header = next(reader)  # R leaves out the name of the row numbers: one name fewer than values
            for _, date, *values in reader:
                assert len(values) == len(header) - 1
                columns["recording"].append(recording)
                columns["date"].append(datetime.datetime.strptime(date, "%Y-%m-%d %H:%M:%S"))
                for name, value in zip(header[1:], values, strict=True):
                    columns.setdefault(name, []).append(int(value) if name == "Occupancy" else float(value))
                columns.setdefault("split", []).append(split)
    order = ["recording", "date", "Temperature", "Humidity", "Light", "CO2", "HumidityRatio", "Occupancy", "split"]
    types = {"recording": pa.string(), "date": pa.timestamp("ms"), "Occupancy": pa.int8(), "split": pa.string()}
    return pa.table({name: pa.array(columns[name], types.get(name, pa.float64())) for name in order})


# ---- japanese_vowels --------------------------------------------------------------------------------------


def japanese_vowels(folder: Path) -> pa.Table:
    utterances, speakers, splits, channels = [], [], [], []
    frames: list[int] = []
    utterance = 0
    for name, split in (("JapaneseVowels_TRAIN.ts", "train"), ("JapaneseVowels_TEST.ts", "test")):
        _, _, data = (folder / name).read_text(encoding="ascii").partition("@data\n")
        for line in data.splitlines():
            *series, speaker = line.split(":")
            values = np.array([[float(v) for v in s.split(",")] for s in series]).T  # [frames, 12]
            assert values.shape[1] == 12
            channels.append(values)
            utterances += [utterance] * len(values)
            frames += range(len(values))
            speakers += [speaker] * len(values)
            splits += [split] * len(values)
            utterance += 1
    exact = np.concatenate(channels)
    narrow = exact.astype(np.float32)
    assert np.array_equal(np.round(narrow.astype(np.float64), 6), exact), "float32 loses a printed digit"
    return pa.table(
        {
            "utterance": pa.array(utterances, pa.int32()),
            "frame": pa.array(frames, pa.int32()),
            **{f"c{i + 1}": narrow[:, i] for i in range(12)},
            "speaker": speakers,
            "split": splits,
        }
    )


# ---- mnist1d ----------------------------------------------------------------------------------------------


def mnist1d(folder: Path) -> pa.Table:
    with np.load(folder / "mnist1d.npz", allow_pickle=False) as file:
        signal = np.concatenate([file["x"], file["x_test"]])  # [5000, 40], float32 already
        digit = np.concatenate([file["y"], file["y_test"]])
        split = ["train"] * len(file["x"]) + ["test"] * len(file["x_test"])
    assert signal.dtype == np.float32
    offsets = np.arange(0, signal.size + 1, signal.shape[1], dtype=np.int32)
    return pa.table(
        {
            "id": pa.array(range(len(signal)), pa.int32()),
            "signal": pa.ListArray.from_arrays(offsets, signal.reshape(-1)),
            "digit": pa.array(digit, pa.int8()),
            "split": split,
        }
    )


# ---- cheetah ----------------------------------------------------------------------------------------------


def cheetah(folder: Path) -> pa.Table:
    traces = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("trace_*.npy"))]
    steps = [len(trace) for trace in traces]
    values = np.concatenate(traces).astype(np.float32)  # [25000, 17]; float64 in the originals
    of_rollout = ["valid" if i < 5 else "test" if i < 15 else "train" for i in range(len(traces))]
    return pa.table(
        {
            "rollout": pa.array(np.repeat(np.arange(len(traces)), steps), pa.int32()),
            "step": pa.array(np.concatenate([np.arange(n) for n in steps]), pa.int32()),
            **{f"o{i}": values[:, i] for i in range(values.shape[1])},
            "split": np.repeat(of_rollout, steps).tolist(),
        }
    )


# ---- all --------------------------------------------------------------------------------------------------

MAKERS = {f.__name__: f for f in (cheetah, japanese_vowels, mnist1d, occupancy, snips)}


def write(table: pa.Table, path: Path) -> None:
    """float32 columns as byte streams, everything else by dictionary; zstd; one row group, read as a whole."""
    by_stream: list[str] = []
    by_dictionary: list[str] = []
    for field in table.schema:
        is_list = pa.types.is_list(field.type)
        value_type = field.type.value_type if is_list else field.type
        leaf = f"{field.name}.list.element" if is_list else field.name
        (by_stream if pa.types.is_float32(value_type) else by_dictionary).append(leaf)
    temporary = path.with_suffix(".parquet.tmp")
    pq.write_table(
        table,
        temporary,
        compression="zstd",
        compression_level=19,
        use_dictionary=by_dictionary,
        use_byte_stream_split=by_stream,
        row_group_size=table.num_rows,
        store_schema=False,
    )
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src/tidegate/datasets")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    different = 0
    for name, make in MAKERS.items():
        table, path = make(options.originals / name), options.out / f"{name}.parquet"
        if options.check:
            shipped = pq.read_table(path)
            same = shipped.to_pylist() == table.to_pylist()
            different += not same
            print(f"{name:16} {'the same' if same else 'DIFFERENT'}")
        else:
            write(table, path)
            print(f"{name:16} {table.num_rows:6} rows {path.stat().st_size:9} bytes")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
