"""What is fuzzed: a target a reader. A new reader gets a row in `TARGETS`, and its inputs a function here."""

from __future__ import annotations

import atexit
import contextlib
import datetime as dt
import functools
import importlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import yaml

from tests.fuzz import grammar
from tests.fuzz.harness import Input, Target, Wrong
from tests.helpers.tuning import definition
from tidegate import convert
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.lines import RowLines
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.tables import read_table, write_table
from tidegate.errors import TidegateError
from tidegate.run import Run, load, prepare
from tidegate.streaming.answers import Answers
from tidegate.streaming.state import StreamState
from tidegate.trained.rows import batch_source
from tidegate.trained.settings import TrainSettings, read_settings_file
from tidegate.trained.trained import read_settings
from tidegate.training import train
from tidegate.training.resolve import complete, model_spec
from tidegate.tuning.space import check_space, parse, read_search

OLD = Path(__file__).parents[1] / "trained" / "runs_of_version_1"
TABLE = OLD / "table.csv"
CPU = "cpu"


@functools.cache
def run_of(kind: str) -> Run:
    return load(OLD / kind)


def put(given: Input, folder: Path) -> Path:
    path = folder / given.name
    path.write_bytes(given.data)
    return path


# ------------------------------------------------------------------------------------------------ tables


def some_settings(rng: Random, columns: list[str]) -> dict[str, Any]:
    """How a table is to be read: mostly columns that it has, in roles that may fit."""

    def one() -> str:
        return rng.choice(columns) if columns and rng.random() < 0.97 else rng.choice(grammar.NAMES)

    def several() -> Any:
        kind = rng.randrange(6)
        if kind == 0:
            return one()[:1] + "*"
        if kind == 1:
            return f"{one()},{one()}"
        return [one() for _ in range(rng.randint(1, 2))]

    settings: dict[str, Any] = {"target": one() if rng.random() < 0.85 else several()}
    if "label" in columns and rng.random() < 0.7:
        settings["target"] = rng.choice(["label", "label", "x"])
        if {"device", "t"} <= {*columns} and rng.random() < 0.7:
            settings |= {"group": "device", "time": "t"}
    choices: list[tuple[float, str, Callable[[], Any]]] = [
        (0.3, "group", lambda: one() if rng.random() < 0.8 else several()),
        (0.3, "time", one),
        (0.15, "per", lambda: "sequence"),
        (0.15, "horizon", lambda: rng.choice([1, 2, 3, 50])),
        (0.1, "features", several),
        (0.1, "exclude", several),
        (0.1, "categories", several),
        (0.1, "text", several),
        (0.3, "task", lambda: rng.choice(["class", "labels", "number"])),
        (0.15, "split", lambda: rng.choice([one(), "0.8,0.2", "0.5,0.25,0.25", [0.6, 0.4, 0.0]])),
        (0.3, "split_by", lambda: rng.choice(["group", "time"])),
        (0.05, "window", lambda: rng.choice([1, 3, 100])),
        (0.3, "non_finite", lambda: "missing"),
        (0.1, "missing", lambda: rng.choice(["unknown,-999", "0", "a", "1,5", ["?"], -999, "nan"])),
        (0.05, "encoding", lambda: rng.choice(["latin-1", "cp1252", "utf-16", "utf-32", "ascii", "rot13", "base64", "idna", "x", "punycode"])),
        (0.05, "row_names", lambda: True),
        (0.1, "decimal_comma", lambda: True),
        (0.15, "thousands", lambda: rng.choice(["comma", "dot", "blank", "apostrophe", "none"])),
        (0.1, "date_order", lambda: rng.choice(["dmy", "mdy"])),
    ]  # fmt: skip
    much = rng.choice([0, 0.3, 0.3, 1])
    for share, name, value in choices:
        if rng.random() < share * much:
            settings[name] = value()
    return settings


def to_sequences(source: Any, options: dict[str, Any]) -> None:
    """The whole road up to the first batch, and what was fitted read again from its JSON: the same sequences."""
    settings = TrainSettings.make(**options)
    table = read_table(source, **settings.reading)
    pre, data = fit_preprocessing(table, settings, settings.seed)
    model_spec(settings, pre, data)
    complete(settings, data)
    batch_source(data, pre, CPU)
    if not (np.isfinite(data.numbers).all() and data.codes.min(initial=0) >= 0):
        raise Wrong("a number that is not finite, or a code below 0")
    again = Preprocessing.from_json(pre.to_json())
    if again.to_json() != pre.to_json():
        raise Wrong("the preprocessing is another one after it was written and read")
    split = settings.split if isinstance(settings.split, str) else None
    applied = again.apply(
        read_table(source, **settings.reading, as_text=pre.formats, as_named=pre.names), with_target=True, split=split
    )
    for what in ("numbers", "codes", "offsets", "rows"):
        if not np.array_equal(getattr(applied, what), getattr(data, what)):
            raise Wrong(f"apply gives other {what} than fit")


def make_csv(rng: Random) -> Input:
    columns = grammar.table(rng)
    data = grammar.encoded(rng, grammar.csv_text(rng, columns))
    if rng.random() < 0.2:
        data = grammar.damaged(rng, data)
    return Input(rng.choice(["t.csv"] * 4 + ["t.tsv", "t.txt"]), data, some_settings(rng, list(columns)))


def make_json_lines(rng: Random) -> Input:
    columns = typed_columns(rng)
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    lines = [json.dumps(row, default=str, ensure_ascii=rng.random() < 0.5) for row in rows]
    if lines and rng.random() < 0.5:
        at = rng.randrange(len(lines))
        lines[at] = grammar.json_text(rng, grammar.mutated(rng, rows_as_json(rows[at])))
    text = rng.choice(["\n", "\n", "\n", "\r\n", "\n\n"]).join(lines)
    data = grammar.as_bytes(text)
    if rng.random() < 0.2:
        data = grammar.damaged(rng, data)
    return Input(rng.choice(["t.jsonl", "t.ndjson"]), data, some_settings(rng, list(columns)))


def rows_as_json(row: dict[str, Any]) -> Any:
    return json.loads(json.dumps(row, default=str))


def typed_columns(rng: Random) -> dict[str, list[Any]]:
    """Columns of values as Python has them."""
    rows = rng.choice([0, 1, 2, 3, 8, 12, 20, 20])
    start = dt.datetime(2026, 11, 23)
    kinds: list[Callable[[], list[Any]]] = [
        lambda: [rng.uniform(-3, 3) for _ in range(rows)],
        lambda: [rng.randrange(2) for _ in range(rows)],
        lambda: [rng.choice(["up", "down"]) for _ in range(rows)],
        lambda: [f"d{k // 4}" for k in range(rows)],
        lambda: list(range(rows)),
        lambda: [rng.random() < 0.5 for _ in range(rows)],
        lambda: [rng.choice([1.0, None, 1e308, -1e308, 2.5, 0.0, -0.0, 5e-324]) for _ in range(rows)],
        lambda: [rng.choice(grammar.TEXTS) for _ in range(rows)],
        lambda: [[rng.randrange(3) for _ in range(rng.randint(0, 3))] for _ in range(rows)],
        lambda: [[1.5] * rng.choice([2, 2, 2, 0]) for _ in range(rows)],
        lambda: [["the", "cat"] for _ in range(rows)],
        lambda: [{"a": 1} for _ in range(rows)],
        lambda: [None] * rows,
        lambda: [start + dt.timedelta(hours=k) for k in range(rows)],
        lambda: [(start + dt.timedelta(days=k)).date() for k in range(rows)],
    ]
    columns = {name: rng.choice(kinds)() for name in grammar.names(rng, rng.randint(1, 5))}
    if rng.random() < 0.5:
        usual: dict[str, list[Any]] = dict(grammar.usual(rng, rows))
        columns = usual | {"t": list(range(rows)), "x": rng.choice(kinds[:7])()} | dict(list(columns.items())[:1])
    if rows and rng.random() < 0.2:
        column = rng.choice(list(columns.values()))
        column[rng.randrange(rows)] = None
    return columns


TYPES: list[Any] = [
    pl.Int8, pl.UInt8, pl.Int16, pl.UInt64, pl.Int128, pl.Float32, pl.String, pl.Categorical, pl.Boolean, pl.Date, pl.Datetime("ns"),
    pl.Datetime("ms", "UTC"), pl.Duration, pl.Time, pl.Binary, pl.Decimal(20, 3), pl.Enum(["up", "down"]), pl.List(pl.Int8), pl.Null,
]  # fmt: skip


def typed_frame(rng: Random) -> pl.DataFrame:
    columns = {}
    for name, values in typed_columns(rng).items():
        column = pl.Series(values, strict=False)
        if rng.random() < 0.3:
            with contextlib.suppress(pl.exceptions.PolarsError, ValueError, TypeError):
                column = column.cast(rng.choice(TYPES), strict=False)
        if column.dtype.is_float() and len(column) and rng.random() < 0.1:
            column[rng.randrange(len(column))] = rng.choice([float("nan"), float("inf")])
        columns[name] = column
    return pl.DataFrame(columns)


def make_parquet(rng: Random) -> Input:
    frame, out = typed_frame(rng), io.BytesIO()
    data = b""
    try:
        frame.write_parquet(
            out, compression=rng.choice(["zstd", "uncompressed", "snappy"]), statistics=rng.random() < 0.5
        )
        data = out.getvalue()
    except pl.exceptions.PolarsError:  # a type that the format hasn't
        pass
    if rng.random() < 0.4:
        data = grammar.damaged(rng, data)
    return Input("t.parquet", data, some_settings(rng, frame.columns))


def make_arrow(rng: Random) -> Input:
    frame, out = typed_frame(rng), io.BytesIO()
    frame.write_ipc(out, compression=rng.choice(["uncompressed", "zstd", "lz4"]))
    data = out.getvalue()
    if rng.random() < 0.4:
        data = grammar.damaged(rng, data)
    return Input(rng.choice(["t.arrow", "t.feather"]), data, some_settings(rng, frame.columns))


def read_file(given: Input, folder: Path) -> None:
    to_sequences(put(given, folder), given.options)


def make_memory(rng: Random) -> Input:
    """A mapping of columns, as JSON: what a program may hand over."""
    columns: Any = {name: json.loads(json.dumps(values, default=str)) for name, values in typed_columns(rng).items()}
    if rng.random() < 0.6:
        columns = grammar.mutated(rng, columns, rng.choice([1, 1, 2]))
    return Input(
        "columns",
        json.dumps(columns).encode(),
        some_settings(rng, list(columns) if isinstance(columns, dict) else ["x"]),
    )


def read_memory(given: Input, folder: Path) -> None:
    to_sequences(json.loads(given.data), given.options)


# ------------------------------------------------------------------------------------------------ a run's tables


def table_like_training(rng: Random) -> dict[str, list[str]]:
    rows = rng.choice([1, 2, 5, 10, 20])
    columns = grammar.usual(rng, rows)
    if rng.random() < 0.5:
        columns[rng.choice(list(columns))][rng.randrange(rows)] = grammar.odd(rng)
    if rng.random() < 0.15:
        columns[rng.choice(list(columns))] = grammar.column(rng, rows)
    if rng.random() < 0.1:
        del columns[rng.choice(list(columns))]
    if rng.random() < 0.1:
        columns[rng.choice(["prediction", "p_up", "row", "*", "^x$", ""])] = grammar.column(rng, rows)
    return columns


def make_prediction(rng: Random) -> Input:
    columns = table_like_training(rng)
    options = {
        "run": rng.choice(["gru", "lstm"]),
        "do": rng.choice(["predict", "predict", "evaluate"]),
        "rows": rng.choice(["auto", "all", "test"]),
        "out": rng.choice(["out.csv", "out.parquet", "out.jsonl", "out.arrow", "out.xyz", "out.tsv"]),
    }
    if rng.random() < 0.5:
        data = grammar.encoded(rng, grammar.csv_text(rng, columns))
        return Input("t.csv", grammar.damaged(rng, data) if rng.random() < 0.2 else data, options)
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    data = "\n".join(lines).encode()
    return Input("t.jsonl", grammar.damaged(rng, data) if rng.random() < 0.2 else data, options)


def read_prediction(given: Input, folder: Path) -> None:
    path, run = put(given, folder), run_of(given.options["run"])
    if given.options["do"] == "evaluate":
        str(run.evaluate(path, rows=given.options["rows"]))
        return
    found = run.predict(path, probabilities=True)
    table = run.read(path)
    if found.height != table.frame.height or found["prediction"].null_count():
        raise Wrong("a row without a prediction")
    out = folder / given.options["out"]
    try:
        write_table(found, out)
    except TidegateError:
        if out.exists():
            raise Wrong("a table that was refused is there all the same") from None
        raise
    if read_table(out).frame.height != found.height:
        raise Wrong("a table of another height is read again")


# ------------------------------------------------------------------------------------------------ settings


VALUES = [
    "1", "0", "-1", "1.5", "1e400", ".inf", ".nan", "0x10", "0o17", "1_000", "yes", "no", "on", "~", "null", "''", "[]", "{}", "[a, b]", "a,b",
    "'*'", "x", "[[[]]]", "{a: {b: c}}", "2026-11-23", "2026-02-30", "2026-13-45", "12:30:45", "!!binary aGk=", "!!binary ä", "!!set {a, b}",
    "!!omap [a: 1]", "!!python/object:collections.OrderedDict x", "!!int x", "!!float ''", "!!timestamp x", "!!pairs [a: 1]", "&a [*a]", "*b", "<<", "|\n  a\n  b",
    "0.8,0.2", "[0.5, 0.5]", "[.nan, 0, 1]", "balanced", "yes=5,no=1", "yes=.inf", "{yes: 5}", "auto", "2,50", "50,2", "cuda:99", "cpu", "meta", "gru",
    "99999999999999999999999999", "'\\ud800'", '"\\uD800"', '"\\0"', "? a", "[a, a]", "- a", "@x", "%x", "`x", "{a: 1, a: 2}", "!!null x", "!!bool x",
]  # fmt: skip


def make_settings(rng: Random) -> Input:
    known = [*TrainSettings.model_fields, "table", "out", "resolved"]
    lines = []
    for _ in range(rng.randint(0, 6)):
        name = (
            rng.choice(known)
            if rng.random() < 0.95
            else rng.choice([*grammar.NAMES, "<<", "1", "~", "[a]", "{a: b}", "? x", "lrr"])
        )
        lines.append(f"{name}: {rng.choice(VALUES)}")
    if rng.random() < 0.1:
        name, deep = rng.choice(known), rng.choice([2, 3, 4, 5, 30])
        lines.append(f"{name}: &a0 [x, y]")
        lines += [f"{rng.choice(known)}: &a{k} [{', '.join([f'*a{k - 1}'] * 4)}]" for k in range(1, deep)]
    if rng.random() < 0.01:
        lines.append("target: " + "[" * rng.choice([100, 700]))
    if rng.random() < 0.1:
        lines = [rng.choice(["---", "...", "[1]", "x", "- a", "%YAML 9.9", "--- a\n--- b", "\t", "{"]), *lines]
    data = grammar.encoded(rng, "\n".join(lines))
    return Input("settings.yaml", grammar.damaged(rng, data) if rng.random() < 0.3 else data)


def read_yaml(given: Input, folder: Path) -> None:
    values = read_settings_file(put(given, folder))
    TrainSettings.make(**{k: v for k, v in values.items() if k not in {"table", "out"}})


def make_search(rng: Random) -> Input:
    """What a search varies, as the command line, YAML and Python have it."""
    ends = [
        "1",
        "0",
        "-1",
        "8",
        "256",
        "0.001",
        "1e-400",
        "1e400",
        "nan",
        "inf",
        "",
        "a",
        "1_0",
        "٣",
        "9" * 500,
        "0x10",
    ]

    def values() -> Any:
        if rng.random() < 0.5:
            joined = rng.choice(["..", "..", "..", "...", ".", "…"])
            return rng.choice(ends) + joined + rng.choice(ends) + rng.choice(["", "", ":log", ":", ":lin", ":log:log"])
        if rng.random() < 0.5:
            return ",".join(
                rng.choice([*ends, "yes", "no", "none", "after", "gru", "lstm"]) for _ in range(rng.randint(0, 4))
            )
        return yaml.safe_load(
            rng.choice(["[8, 16]", "[true, no]", "[[1]]", "{}", "[]", "[1, '1', 1.0]", "[.nan, .inf]", "7", "~"])
        )

    names = [*TrainSettings.model_fields, "default", "", "lrr", "hidden-size"]
    space = {rng.choice(names): values() for _ in range(rng.randint(0, 4))}
    texts = [f"{name}={value}" if rng.random() < 0.95 else name for name, value in space.items()]
    return Input("search", json.dumps(rng.choice([space, texts, ";".join(texts)])).encode())


def read_space(given: Input, folder: Path) -> None:
    space, _ = read_search(json.loads(given.data))
    check_space(space, {})
    for name, parameter in space.items():
        if parse(name, str(parameter)) != parameter:  # as a study keeps it
            raise Wrong(f"{name}: {parameter!r} is read again as another one")


def make_lists(rng: Random) -> Input:
    """Options as the command line has them, each a text."""
    columns = small_frame().columns
    settings: dict[str, Any] = {"target": rng.choice(["label"] * 6 + [*columns, "*", "?", "x,y"])}
    if rng.random() < 0.1:
        settings[rng.choice(["class_weights", "update_bias", "split"])] = rng.choice(VALUES)
    if rng.random() < 0.1:
        settings["class_weights"] = f"up={grammar.number(rng)},{grammar.odd(rng)}={grammar.number(rng)}"
    for name in rng.sample(
        ["group", "features", "exclude", "categories", "text", "split", "missing"], rng.choice([1, 1, 2, 3])
    ):
        parts = [
            rng.choice(columns)
            if rng.random() < 0.6
            else rng.choice([*grammar.NAMES, "x*", "*", "?", "**", "x=1", "=", "1", "1e400", "nan", "-1", "0.5"])
            for _ in range(rng.randint(0, 4))
        ]
        text = rng.choice([","] * 9 + [", ", ",,", ";"]).join(parts)
        settings[name] = [text] if rng.random() < 0.3 else text
    return Input("columns", json.dumps(settings).encode())


@functools.cache
def small_frame() -> pl.DataFrame:
    return pl.read_csv(TABLE).with_columns(
        y=pl.col("x") * 2, **{"a,b": pl.col("x"), "*": pl.col("x"), "^x$": pl.col("t")}
    )


def read_lists(given: Input, folder: Path) -> None:
    to_sequences(small_frame(), json.loads(given.data))


# ------------------------------------------------------------------------------------------------ run folders


def whole(kind: str) -> list[str]:
    return sorted(str(p.relative_to(OLD / kind)) for p in (OLD / kind).rglob("*") if p.is_file())


def damaged_file(rng: Random, path: Path) -> bytes:
    """A file of a run with something changed in its tree, or in its bytes."""
    data = path.read_bytes()
    if rng.random() < 0.3:
        return grammar.damaged(rng, data)
    times = rng.choice([1, 1, 1, 2, 5])
    if path.suffix == ".json":
        return grammar.as_bytes(grammar.json_text(rng, grammar.mutated(rng, json.loads(data), times)))
    if path.suffix == ".yaml":
        tree = grammar.mutated(rng, yaml.safe_load(data), times)
        try:
            return yaml.safe_dump(tree).encode(errors="replace")
        except (yaml.YAMLError, RecursionError):
            return json.dumps(tree).encode() if not isinstance(tree, float) else b".nan"
    if path.suffix in (".safetensors", ".state"):
        return damaged_tensors(rng, data, times)
    text = data.decode().split("\n")
    at = rng.randrange(len(text))
    cells = text[at].split(",")
    cells[rng.randrange(len(cells))] = grammar.odd(rng)
    text[at] = ",".join(cells)
    return "\n".join(text).encode()


def damaged_tensors(rng: Random, data: bytes, times: int = 1) -> bytes:
    """A safetensors file whose header, our own header within it, or tensors are changed."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kind = rng.randrange(4)
    if kind == 0:
        ours = json.loads(header["__metadata__"]["tidegate"])
        header["__metadata__"]["tidegate"] = grammar.json_text(rng, grammar.mutated(rng, ours, times))
    elif kind == 1:
        header = grammar.mutated(rng, header, times)
    elif kind == 2:
        body = grammar.damaged(rng, body)[: len(body)].ljust(len(body), b"\xff")
    else:  # a tensor of another shape or type, and the file is sound
        names = [n for n in header if n != "__metadata__"]
        entry = header[rng.choice(names)]
        if rng.random() < 0.5:
            entry["shape"] = rng.choice(
                [entry["shape"][::-1], [1, *entry["shape"]], [int(np.prod(entry["shape"]))], [0], []]
            )
        else:
            entry["dtype"] = rng.choice(
                ["F32", "I32", "U32", "F64", "F16", "BF16", "U8", "BOOL", "I64", "F8_E4M3", "X"]
            )
    text = grammar.as_bytes(json.dumps(header))
    return len(text).to_bytes(8, "little") + text + body


def make_run(rng: Random) -> Input:
    kind = rng.choice(["gru", "gru", "lstm"])
    name = rng.choice(whole(kind))
    return Input(name, damaged_file(rng, OLD / kind / name), {"run": kind})


def _copy(kind: str, given: Input, folder: Path) -> Path:
    copy = folder / "run"
    for name in whole(kind):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if name != given.name:
            os.symlink(OLD / kind / name, copy / name)
    (copy / given.name).write_bytes(given.data)
    return copy


def read_run(given: Input, folder: Path) -> None:
    copy = _copy(given.options["run"], given, folder)
    run = load(copy)
    str(run.resolved.lines())
    str(run.results)
    str(run.history)
    run.predict(TABLE, probabilities=run.preprocessing.target.task != "number")
    str(run.evaluate(TABLE, rows="all"))
    if not run.model.spec.bidirectional:
        run.stream().push({"x": 0.5, "colour": "red"})


def make_quantised(rng: Random) -> Input:
    figures = {"metric": "accuracy", "what": "the test rows", "before": 0.9, "after": 0.88, "scores": 0.03}
    tree = {"run": run_of("gru").fingerprint, "int8": figures, "bf16": figures}
    data = grammar.as_bytes(grammar.json_text(rng, grammar.mutated(rng, tree, rng.choice([1, 1, 2, 5]))))
    return Input("quantised.json", grammar.damaged(rng, data) if rng.random() < 0.3 else data)


def read_quantised(given: Input, folder: Path) -> None:
    str(load(_copy("gru", given, folder)).quantized("int8").cost())


@functools.cache
def _store() -> Path:
    """A store of the table that runs are trained on."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    read_table(TABLE).frame.write_parquet(folder / "t.parquet")
    return prepare(folder / "t.parquet", folder / "store", "label", group="device", memory="8kB", progress=False)


def make_store(rng: Random) -> Input:
    name = rng.choice(["store.json"] * 3 + ["preprocessing.json", "numbers.npy", "offsets.npy", "codes.npy"])
    data = (_store() / name).read_bytes()
    if name == "store.json" and rng.random() < 0.8:
        tree = json.loads(data)
        data = grammar.as_bytes(grammar.json_text(rng, grammar.mutated(rng, tree, rng.choice([1, 1, 2, 5]))))
        return Input(name, data)
    return Input(name, grammar.damaged(rng, data))


def read_store(given: Input, folder: Path) -> None:
    copy = folder / "store"
    shutil.copytree(_store(), copy)
    (copy / given.name).write_bytes(given.data)
    train(copy, out=False, epochs=1, hidden_size=4, baselines=False, progress=False)


def make_checkpoint(rng: Random) -> Input:
    name = rng.choice(["checkpoints/last.safetensors"] * 3 + ["config.yaml", "preprocessing.json"])
    return Input(name, damaged_file(rng, OLD / "interrupted" / name))


def read_checkpoint(given: Input, folder: Path) -> None:
    copy = folder / "run"
    shutil.copytree(OLD / "interrupted", copy)
    (copy / given.name).write_bytes(given.data)
    # Epochs without end are no fault of a reader: those that config.yaml asks for beyond a few are left out.
    settings = read_settings(copy)[0]
    if (
        (settings.epochs and settings.epochs > 5)
        or settings.hidden_size > 64
        or settings.num_layers > 4
        or settings.device not in ("cpu", "auto")
    ):
        return
    train(TABLE, out=copy, resume=True, progress=False)


def make_states(rng: Random) -> Input:
    kind = rng.choice(["gru", "lstm"])
    if rng.random() < 0.3:
        stream = run_of(kind).stream(time=rng.choice([None, "t"]))
        stream.push({"x": 0.5, "colour": "red", "t": 1}, "d0")
        state = stream.state("d0")
        assert state is not None
        return Input("one", damaged_tensors(rng, state.to_bytes()), {"run": kind})
    data = (OLD / f"{kind}.state").read_bytes()
    if rng.random() < 0.3:
        return Input("all.state", grammar.damaged(rng, data), {"run": kind})
    return Input(
        "all.state", damaged_tensors(rng, data) if rng.random() < 0.5 else damaged_lists(rng, data), {"run": kind}
    )


def damaged_lists(rng: Random, data: bytes) -> bytes:
    """A state file in which what is JSON among its arrays was changed: keys, what is kept beside them, times."""
    from safetensors.numpy import load, save

    arrays = load(data)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]
    name = rng.choice([n for n in ("keys", "more", "times") if n in arrays])
    tree = json.loads(arrays[name].tobytes())
    if name == "more":
        tree |= {
            "last": [["d0", {"prediction": "up"}]],
            "key": ["device"],
            "input": {"rows": 3, "first": "a", "digest": "b"},
            "only_last": False,
        }
    text = grammar.as_bytes(grammar.json_text(rng, grammar.mutated(rng, tree, rng.choice([0, 1, 2]))))
    arrays[name] = np.frombuffer(text, dtype=np.uint8)
    return save(arrays, header)


def read_state(given: Input, folder: Path) -> None:
    run = run_of(given.options["run"])
    row = {"x": 0.5, "colour": "red", "device": "d0", "t": 5}
    if given.name == "one":
        stream = run.stream(time="t")
        stream.put(StreamState.from_bytes(given.data), "d0")
        stream.push(row, "d0")
        return
    path = put(given, folder)
    lines = io.BytesIO(b"device,t,x,colour\nd0,1,0.5,red\nd0,2,0.5,red\n")
    for new_rows in (False, True):
        lines.seek(0)
        Answers(
            run, RowLines(lines, run.preprocessing, group=("device",)), io.BytesIO(), state=path, new_rows=new_rows
        ).all()
    stream = run.stream()
    stream.restore(path)
    stream.push(row, "d0")


# ------------------------------------------------------------------------------------------------ streams


def make_lines(rng: Random) -> Input:
    columns = table_like_training(rng)
    options: dict[str, Any] = {"run": rng.choice(["gru", "lstm"])}
    for share, name, value in (
        (0.2, "key", [[rng.choice(["device", "colour", "zz", "t"])]]),
        (0.3, "time", ["t", "x", "device", "zz"]),
        (0.2, "only_last", [True]),
        (0.2, "max_keys", [1, 2]),
        (0.1, "ttl", [1e-9, 1e9]),
        (0.1, "decimal_comma", [True]),
        (0.1, "missing", [["-999"], ["red"]]),
        (0.05, "row_names", [True]),
        (0.05, "encoding", ["latin-1", "utf-16", "ascii", "rot13", "base64"]),
    ):
        if rng.random() < share:
            options[name] = rng.choice(value)
    if rng.random() < 0.5:
        data = grammar.encoded(rng, grammar.csv_text(rng, columns))
    else:
        rows: list[Any] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        rows = [row | {"x": _as_number(row.get("x", "0"))} for row in rows]
        lines = [
            json.dumps(row)
            if rng.random() < 0.8
            else grammar.json_text(rng, grammar.mutated(rng, row, rng.choice([0, 1, 2])))
            for row in rows
        ]
        data = grammar.as_bytes("\n".join(lines))
    return Input("lines", grammar.damaged(rng, data) if rng.random() < 0.3 else data, options)


def _as_number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def read_lines(given: Input, folder: Path) -> None:
    options = dict(given.options)
    run, out = run_of(options.pop("run")), io.BytesIO()
    reading = {k: options.pop(k) for k in ("key", "decimal_comma", "missing", "row_names", "encoding") if k in options}
    lines = RowLines(
        io.BytesIO(given.data), run.preprocessing, group=run.preprocessing.group, time=options.get("time"), **reading
    )
    counts = Answers(run, lines, out, **options).all()
    answers = [json.loads(line) for line in out.getvalue().split(b"\n")[:-1]]
    if not options.get("only_last") and len(answers) != counts.rows:
        raise Wrong("a row without an answer")
    for answer in answers:
        if ("error" in answer) == ("prediction" in answer) or len(answer.get("error", "")) > 1000:
            raise Wrong("an answer that is neither a prediction nor a sentence")


def make_row(rng: Random) -> Input:
    row: Any = {"x": rng.uniform(-2, 2), "colour": rng.choice(["red", "blue"]), "t": rng.randrange(9)}
    key: Any = rng.choice(["d0", "d1", 1, None, ["a", 1]])
    tree = grammar.mutated(rng, {"row": row, "key": key}, rng.choice([0, 1, 1, 2]))
    return Input(
        "row", json.dumps(tree).encode(), {"run": rng.choice(["gru", "lstm"]), "time": rng.choice([None, "t"])}
    )


def read_row(given: Input, folder: Path) -> None:
    run = run_of(given.options["run"])
    tree = json.loads(given.data)
    if not isinstance(tree, dict):
        return
    row, key = tree.get("row"), tree.get("key")
    key = tuple(key) if isinstance(key, list) else key
    stream = run.stream(time=given.options["time"])
    good = {"x": 0.5, "colour": "red", "t": -1}
    alone = stream.push(good, "other")
    try:
        stream.push(row, key)
    except TidegateError:
        if key != "other" and len(stream) != 1:
            raise Wrong("a refused row left a state") from None
        raise
    finally:
        again = run.stream(time=given.options["time"]).push(good, "other")
        if alone != again:
            raise Wrong("a row changed another key's answer")
    stream.push_many([good | {"t": 100}], [key])


# ------------------------------------------------------------------------------------------------ weights of other programs


def make_arrays(rng: Random) -> Input:
    """Arrays as nested lists, by their layout; and what is said of them."""
    size, hidden, directions = rng.randint(1, 3), rng.randint(1, 3), rng.choice([1, 1, 2])

    def array(*shape: int) -> Any:
        return np.round(np.random.default_rng(rng.randrange(2**32)).standard_normal(shape), 2).tolist()

    if rng.random() < 0.5:
        weights = [
            array(size, 3 * hidden),
            array(hidden, 3 * hidden),
            array(*rng.choice([(2, 3 * hidden), (3 * hidden,)])),
        ][: rng.choice([2, 3, 3])]
        tree: Any = {"layers": [weights * directions], "reset": rng.choice([None, "after", "before"])}
        kind = "keras"
    else:
        tree = {
            "W": array(directions, 3 * hidden, size), "R": array(directions, 3 * hidden, hidden), "B": rng.choice([None, array(directions, 6 * hidden)]),
            "linear_before_reset": rng.choice([0, 1]), "direction": "bidirectional" if directions == 2 else "forward",
        }  # fmt: skip
        kind = "onnx"
    return Input(kind, json.dumps(grammar.mutated(rng, tree, rng.choice([0, 1, 1, 2]))).encode())


def read_arrays(given: Input, folder: Path) -> None:
    tree = json.loads(given.data)
    if not isinstance(tree, dict):
        return
    if given.name == "keras":
        layers = tree.get("layers")
        convert.from_keras(layers if isinstance(layers, list) else [layers], reset=tree.get("reset"))
        return
    known = ("W", "R", "B", "linear_before_reset", "direction")
    convert.from_onnx([convert.OnnxGRU(**({"W": None, "R": None} | {k: tree[k] for k in known if k in tree}))])


@functools.cache
def keras_file() -> bytes:
    """A small model as Keras writes it."""
    import tempfile

    from tidegate.keras_models import import_keras

    keras = import_keras("the fuzzer")
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((None, 2)),
            layers.GRU(2, return_sequences=True),
            layers.Dropout(0.1),
            layers.GRU(2),
            layers.Dense(1),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.keras"
        model.save(path)
        return path.read_bytes()


def make_keras(rng: Random) -> Input:
    import zipfile

    data = keras_file()
    if rng.random() < 0.3:
        return Input("m.keras", grammar.damaged(rng, data))
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.choice(["config.json", "config.json", "config.json", "metadata.json", "model.weights.h5"])
        for name in old.namelist():
            part = old.read(name)
            if name == chosen and rng.random() < 0.95:
                if name.endswith(".json"):
                    part = grammar.as_bytes(
                        grammar.json_text(rng, grammar.mutated(rng, json.loads(part), rng.choice([1, 1, 2])))
                    )
                else:
                    part = grammar.damaged(rng, part)
            elif name == chosen:
                continue
            new.writestr(name, part)
    return Input("m.keras", out.getvalue())


def read_keras(given: Input, folder: Path) -> None:
    from tidegate.keras_models import load_keras_gru

    load_keras_gru(put(given, folder))


# ------------------------------------------------------------------------------------------------ studies


@functools.cache
def study_file() -> bytes:
    """Of a search with a finished trial, a pruned one and one that failed."""
    from tidegate.tuning.place import Place
    from tidegate.tuning.study import Study

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.study"
        about, study = definition(), Study(Place.of(path))
        study.create(about)
        study.begin(about, read_search(about.space)[0])
        for k, state in enumerate(("finished", "pruned", "failed", "finished")):
            trial = study.ask(9)
            assert trial is not None
            trial.begin()
            trial.report(3, 0.5 + k / 10)
            trial.end(state, 0.5 + k / 10 if state == "finished" else None, loss=0.5, epochs=3, seconds=1.0)
        return path.read_bytes()


def make_study(rng: Random) -> Input:
    lines = study_file().splitlines(keepends=True)
    if rng.random() < 0.5:
        at = rng.randrange(len(lines))
        lines[at] = (grammar.json_text(rng, grammar.mutated(rng, json.loads(lines[at]))) + "\n").encode(
            "utf-8", "surrogatepass"
        )
        return Input("a.study", b"".join(lines))
    return Input("a.study", grammar.damaged(rng, b"".join(lines)))


def read_study(given: Input, folder: Path) -> None:
    from tidegate.tuning import open_study, write_report

    tuned = open_study(put(given, folder))
    str(tuned)
    write_report(tuned)


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


TARGETS = {
    target.name: target
    for target in (
        Target("csv", "CSV and TSV files, with the settings that say how to read them, up to batches", make_csv, read_file),
        Target("json-lines", "JSON lines files, the same way", make_json_lines, read_file),
        Target("parquet", "Parquet files, the same way", make_parquet, read_file),
        Target("arrow", "Arrow and Feather files, the same way", make_arrow, read_file),
        Target("memory", "mappings of columns in Python, the same way", make_memory, read_memory),
        Target("predict", "tables that a run is to predict or to score, and the table that comes out", make_prediction, read_prediction),
        Target("settings", "settings in YAML", make_settings, read_yaml),
        Target("search", "what a search varies, as the command line, YAML and Python have it", make_search, read_space),
        Target("study", "damaged study files: opened, told, and their report written", make_study, read_study, needs=("optuna",)),
        Target("lists", "lists and patterns of columns, class weights and fractions as the command line has them", make_lists, read_lists),
        Target("run", "run folders with one damaged file: opened, predicted with, scored", make_run, read_run),
        Target("quantised", "what a run's folder keeps of the cost of rounded weights: opened, and told", make_quantised, read_quantised),
        Target("store", "stores of `tidegate prepare` with one damaged file: opened, and trained from", make_store, read_store),
        Target("resume", "interrupted trainings with a damaged checkpoint, config or preprocessing: resumed", make_checkpoint, read_checkpoint),
        Target("states", "state files of streams, and states as bytes", make_states, read_state),
        Target("lines", "lines of `tidegate stream`, CSV and JSON", make_lines, read_lines),
        Target("rows", "rows and keys that Python pushes into a stream", make_row, read_row),
        Target("weights", "arrays of Keras and ONNX layers, for `tidegate.convert`", make_arrays, read_arrays),
        Target("keras", "Keras files, for `tidegate.load_keras_gru`", make_keras, read_keras, needs=("keras",)),
    )
}  # fmt: skip
