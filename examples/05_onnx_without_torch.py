"""Predictions without PyTorch and without Tidegate: all it takes is ONNX Runtime, numpy and Python's own csv.

    tidegate export runs/sensors --to onnx -o sensors.onnx
    python examples/05_onnx_without_torch.py sensors.onnx sensors.csv > predicted.csv

The file itself knows which columns it reads, what makes a sequence of rows, and what its classes are called.
"""

import csv
import json
import re
import sys

import numpy as np
import onnxruntime

path_of_model, path_of_table = sys.argv[1:]
session = onnxruntime.InferenceSession(path_of_model, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
about = json.loads(metadata["tidegate"])
group, time = json.loads(metadata["group"]), json.loads(metadata["time"])  # names of columns; there may be no time
if about["text"] or about["lists"]:
    sys.exit(f"{path_of_model} reads sentences or lists, and how those are cut into words isn't shown here.")
with open(path_of_table, newline="", encoding="utf-8-sig") as file:
    rows = list(csv.DictReader(file, restval=""))
if not rows:
    sys.exit(f"{path_of_table} has no rows.")
reads = [column["name"] for column in about["numbers"] + about["tokens"]]
for name in [*group, *([time] if time else []), *reads]:
    if name not in rows[0]:
        sys.exit(f"{path_of_table} has no column {name!r}.")

MISSING = ("", "NA", "null")


def number(row, name):
    known = dict.fromkeys(MISSING, np.nan) | {"true": 1.0, "false": 0.0}
    try:
        return known[row[name]] if row[name] in known else float(row[name])
    except ValueError:
        sys.exit(f"{path_of_table}, row {rows.index(row) + 1}, column {name!r}: {row[name]!r} is no number.")


def text(row, column):
    cell = row[column["name"]]
    if cell in MISSING:
        return metadata["missing_text"]
    if column["whole_numbers"] and re.fullmatch(r"-?\d{1,15}(\.0*)?", cell):  # a code may be written as 3.0
        cell = str(int(float(cell)))
    return cell.lower() if column["kind"] == "words" else cell  # words are known in lower case


def in_order(some):
    if time and any(row[time] in MISSING for row in some):
        sys.exit(f"{path_of_table}: column {time!r}, which has the rows' order, lacks a value.")
    try:
        return sorted(some, key=lambda row: float(row[time])) if time else some
    except ValueError:
        return sorted(some, key=lambda row: row[time])  # dates such as 2026-11-26 have the order of their letters


# The rows of one sequence have the same group. Of very many sequences, take some hundred at a time.
sequences = {}
for row in rows:
    sequences.setdefault(tuple(row[name] for name in group), []).append(row)
sequences = [in_order(some) for some in sequences.values()]
lengths = np.array([len(some) for some in sequences])
B, T = len(sequences), max(lengths)

numbers = np.full((B, T, len(about["numbers"])), np.nan)  # what lies past a sequence's length is not read
tokens = np.full((B, T, len(about["tokens"])), "", dtype=object)
for b, some in enumerate(sequences):
    for t, row in enumerate(some):
        numbers[b, t] = [number(row, column["name"]) for column in about["numbers"]]
        tokens[b, t] = [text(row, column) for column in about["tokens"]]

shapes = {value.name: value.shape for value in session.get_inputs()}
layers, _, H = shapes["h_0"]
# No memory yet: zeros, or what training learned to begin with. The h_n of one call is the h_0 of the next.
start = np.array(about.get("initial_h", np.zeros((layers, H))), dtype=np.float32)
h_0 = np.repeat(start[:, None], B, axis=1)
given = {"numbers": numbers, "tokens": tokens, "lengths": lengths, "h_0": h_0}
(prediction,) = session.run(["prediction"], {name: given[name] for name in shapes})

# [B, T, ...] a step, [B, ...] a sequence: then all its rows have the same.
for some, of_sequence in zip(sequences, prediction, strict=True):
    for t, row in enumerate(some):
        row["prediction"] = of_sequence[t] if about["per"] == "step" else of_sequence

targets = about["target"]["names"] if len(about["target"]["names"]) > 1 else [""]
ahead = [f"_{k}" for k in range(1, about["horizon"] + 1)] if about["horizon"] > 1 else [""]
names = ["prediction" + (target and "_" + target) + end for end in ahead for target in targets]
table = csv.writer(sys.stdout)
table.writerow([*(name for name in rows[0] if name != "prediction"), *names])
for row in rows:
    predicted = row.pop("prediction")
    table.writerow([*row.values(), *predicted.flatten()])
