"""What others wrote is read, or refused with a sentence: every input that once was neither, and some new ones of each kind.

`tools/fuzz.py` makes many more of them; docs/reliability.md has its figures.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.fuzz import grammar
from tests.fuzz.harness import Input, input_of, read
from tests.fuzz.targets import OLD, TARGETS, has

CORPUS = Path(__file__).parent / "corpus"
HERE = [name for name, target in TARGETS.items() if all(map(has, target.needs)) and name != "keras"]
SEEDS = dict.fromkeys(HERE, 25) | {"resume": 4, "run": 12, "predict": 12}
ENTRIES = [
    pytest.param(path.stem, entry, id=f"{path.stem}: {entry['title']}")
    for path in sorted(CORPUS.glob("*.jsonl"))
    for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines())
]


def given(target: str, entry: dict[str, Any]) -> Input:
    """An entry of the corpus: a text, bytes, or a file of a run in which some text was replaced."""
    options = entry.get("options", {})
    if "text" in entry:
        return Input(entry["name"], entry["text"].encode("utf-8", "surrogatepass"), options)
    if "base64" in entry:
        return Input(entry["name"], base64.b64decode(entry["base64"]), options)
    if "more" in entry:
        return Input(entry["name"], _with_more((OLD / f"{options['run']}.state").read_bytes(), entry["more"]), options)
    data = (OLD / ("interrupted" if target == "resume" else options["run"]) / entry["name"]).read_bytes()
    if "header" in entry:
        size = int.from_bytes(data[:8], "little")
        header = _replaced(data[8 : 8 + size].decode(), *entry["header"]).encode()
        return Input(entry["name"], len(header).to_bytes(8, "little") + header + data[8 + size :], options)
    text = data.decode()
    for old, new in (entry["replace"], entry.get("also", ("", ""))):
        text = _replaced(text, old, new)
    return Input(entry["name"], text.encode(), options)


def _replaced(text: str, old: str, new: str) -> str:
    assert old in text, f"{old!r} is not in the file any more"
    return text.replace(old, new) if old else text


def _with_more(data: bytes, more: dict[str, Any]) -> bytes:
    """A state file with other things beside its states."""
    size = int.from_bytes(data[:8], "little")
    arrays = load(data) | {"more": np.frombuffer(json.dumps(more).encode(), dtype=np.uint8)}
    return save(arrays, json.loads(data[8 : 8 + size])["__metadata__"])


@pytest.mark.parametrize(("target", "entry"), ENTRIES)
def test_what_failed_once_is_read_or_refused_in_a_sentence(target, entry):
    assert entry["says"] in read(TARGETS[target], given(target, entry))


@pytest.mark.parametrize("name", HERE)
def test_new_inputs_are_read_or_refused_in_a_sentence(name):
    for seed in range(SEEDS[name]):
        assert read(TARGETS[name], input_of(TARGETS[name], seed))


def test_a_seed_is_an_input():
    for name in HERE:
        assert input_of(TARGETS[name], 7) == input_of(TARGETS[name], 7)
        assert len({input_of(TARGETS[name], seed).data for seed in range(8)}) > 4


def test_making_inputs_changes_nothing_for_those_that_come_later():
    before = repr(grammar.EXTREMES)
    for seed in range(400):
        for name in ("rows", "memory", "lines"):
            input_of(TARGETS[name], seed)
    assert repr(grammar.EXTREMES) == before
