"""A run taken apart into plain arrays, and what goes in and comes out of it, in JSON. every format is written from these."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidegate.errors import SettingsError
from tidegate.export.targets import TARGETS

if TYPE_CHECKING:  # not to load them: `write_layer` needs neither
    from tidegate.data.preprocessing import Preprocessing
    from tidegate.model import ModelSpec
    from tidegate.nn import GRU
    from tidegate.trained import Trained

FORMAT, VERSION = "tidegate-export", 2
DESCRIPTION = "tidegate.json"
"""Name of `Parts.description` in an archive, which Keras and PyTorch read past."""


@dataclass(frozen=True)
class Parts:
    """What a format is written from. Arrays are float32 and copies."""

    run: Trained
    spec: ModelSpec
    preprocessing: Preprocessing
    core: GRU  # in evaluation mode, on the CPU, as a function of x and h_0
    # for each layer and direction: w_ih [3H, I], w_hh [3H, H], b_ih [3H], b_hh [3H], with layer norm also its gains g_ih, g_hh [3H]
    layers: list[list[list[np.ndarray]]]
    initial_h: np.ndarray | None  # [layers*D, H], the learned state that a sequence begins at; None: zeros
    embeddings: list[np.ndarray]  # one a token column: [entries, dim], entry 0 for what is unknown or missing
    head_weight: np.ndarray  # [K * outputs, width], K = max(horizon, 1)
    head_bias: np.ndarray

    @property
    def missing_text(self) -> str:
        """A text that no vocabulary holds, for a missing token: "", unless training saw an empty text as a category of its own."""
        known = {entry for column in self.preprocessing.tokens for entry in column.vocabulary}
        return next(text for text in ("", *(f"<missing{'!' * k}>" for k in range(len(known) + 1))) if text not in known)

    @property
    def description(self) -> dict[str, Any]:
        """What a program that holds only the exported file wants to know, as JSON has it."""
        spec, pre, target = self.spec, self.preprocessing, self.preprocessing.target
        return {
            "format": FORMAT,
            "version": VERSION if any(c.of_words for c in pre.tokens) else 1,  # in 1 each token is a column
            "tidegate": self.run.resolved.tidegate or None,
            "run": self.run.fingerprint,
            "group": list(pre.group),
            "time": pre.time,
            "text": list(pre.text),  # columns of sentences, which are cut into words
            "lists": pre.lists,  # a row is a sequence
            "missing_text": self.missing_text,
            "numbers": [{"name": c.name, "mean": c.mean, "std": c.std, "mask": c.mask} for c in pre.numbers],
            "tokens": [
                # whole_numbers: 3.0 of a column with gaps is the entry "3"
                {
                    "name": c.name,
                    "kind": c.kind,
                    "whole_numbers": _whole(c.vocabulary),
                    "vocabulary": list(c.vocabulary),
                }
                for c in pre.tokens
            ],
            "target": {
                "names": list(target.names),
                "task": target.task,
                "classes": list(target.classes),
                "means": list(target.means) if target.task == "number" else [],
                "stds": list(target.stds) if target.task == "number" else [],
                # of labels, the probabilities above which they are predicted; without it 1/2
                **({"thresholds": list(target.thresholds)} if target.thresholds else {}),
            },
            "per": spec.per,
            "horizon": spec.horizon,
            "pooling": spec.pooling if spec.per == "sequence" else None,
            "hidden_size": spec.hidden_size,
            "num_layers": spec.num_layers,
            "bidirectional": spec.bidirectional,
            # [layers*D, H], what h_0 is, for each sequence, where one begins; without it zeros
            **({} if self.initial_h is None else {"initial_h": self.initial_h.tolist()}),
        }

    def to_json(self) -> str:
        return json.dumps(self.description, ensure_ascii=False, indent=1) + "\n"


@dataclass(frozen=True)
class Exported:
    """What was written: the file, other files beside it, and what to tell whoever asked for it, in lines."""

    path: Path
    beside: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        also = f" Also written: {', '.join(map(str, self.beside))}." if self.beside else ""
        size = self.path.stat().st_size
        return "\n".join([f"{self.path}: {size:,} bytes.{also}", *self.notes])


COMPUTED = {
    "reset": ("after", ("onnx", "keras", "c")),
    "layer_norm": (False, ("onnx", "c")),
    "zoneout": (0.0, ("onnx", "c")),
    "bias": (True, ("onnx", "keras", "pt2")),
}
"""Options of a core that change what it computes in evaluation: the value that every format computes, and the formats that compute
others too. (A learned initial state goes in as h_0.)"""


def check_core(parts: Parts, to: str, what: str) -> None:
    """Raise SettingsError where the core has options that a format hasn't, and name the formats that have them. what: how the
    format's own GRU is called."""
    lacking = {
        name: formats
        for name, (plain, formats) in COMPUTED.items()
        if getattr(parts.core, name) != plain and to not in formats
    }
    if not lacking:
        return
    options = " and no ".join(f"{name}={getattr(parts.core, name)!r}" for name in lacking)
    others = [f"to={other!r}" for other in TARGETS if all(other in formats for formats in lacking.values())]
    compute = f"{', '.join(others[:-1])} and {others[-1]} compute" if len(others) > 1 else f"{others[0]} computes"
    raise SettingsError(
        f"to={to!r}: the core of {parts.run.name}: {what} has no {options}. {compute} {'it' if len(lacking) == 1 else 'them'}; "
        "or train a run without."
    )


def take_apart(run: Trained) -> Parts:
    """Raises SettingsError for a run whose cell isn't a GRU."""
    from tidegate.nn import GRU

    model, spec = run.model, run.model.spec
    if not isinstance(model.core, GRU):
        raise SettingsError(
            f"The cell of {run.name} is {spec.cell!r}; what is exported are GRUs. Train one with cell='gru' (--cell gru), or "
            "run this one with Tidegate: predict over tables, stream row by row."
        )
    core = copy.deepcopy(model.core).cpu().eval()
    initial_h = array(core.initial_h.float()) if core.learn_initial_state else None
    core.learn_initial_state = False  # it goes in as h_0
    core.recurrent_dropout = 0.0  # falls in training alone
    directions = spec.directions
    flat = [[array(w.float()) for w in weights] for weights in core.all_weights]
    return Parts(
        run=run,
        spec=spec,
        preprocessing=run.preprocessing,
        core=core,
        layers=[flat[k : k + directions] for k in range(0, len(flat), directions)],
        initial_h=initial_h,
        embeddings=[array(e.weight.float()) for e in model.embeddings],
        head_weight=array(model.head.weight.float()),
        head_bias=array(model.head.bias.float()),
    )


def _whole(vocabulary: Sequence[str]) -> bool:
    return bool(vocabulary) and all(re.fullmatch(r"0|-?[1-9][0-9]*", entry) for entry in vocabulary)


def numbers_in_text(pre: Preprocessing) -> list[str]:
    """A line for the notes of a run whose table writes numbers as text: a format takes numbers."""
    from tidegate.data.texts import listed

    samples = [f"{c.name} ({pre.formats[c.name].sample!r})" for c in pre.numbers if c.name in pre.formats]
    if not samples:
        return []
    return [f"The run reads numbers in text: {listed(samples)}. This file takes them as numbers (1234.5)."]


def word_features_of(pre: Preprocessing) -> list[str]:
    """A line for the notes of a run that reads the shape and the suffix of words: a format takes them as tokens of their own."""
    from tidegate.data.texts import listed

    features = [c.label for c in pre.tokens if c.of_words]
    if not features:
        return []
    return [
        f"Beside its words the run reads {listed(features)}. They are tokens of their own, which the caller makes "
        "(docs/ship.md says how). A run trained with word_features='none' (--word-features none) has none."
    ]


def feed_initial_h(parts: Parts, where: str) -> list[str]:
    """A line for the notes of a run whose initial state is learned. where: what holds the description."""
    if parts.initial_h is None:
        return []
    return [
        f"The state that sequences begin at is learned: as h_0 give, for each of them, what {where} has as initial_h."
    ]


def one_line(text: str) -> str:
    """For a note on the terminal: line ends, and what else can't be seen, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def array(tensor: Any) -> np.ndarray:
    """A copy, of the same type."""
    return tensor.detach().cpu().numpy().copy()


def check_beside(path: Path, mark: str) -> None:
    """Raise SettingsError where a file of that name, which nobody named, is not an earlier one of ours: there `mark` is near
    the beginning."""
    if path.is_dir():
        raise SettingsError(f"{path} is a folder, and a file beside the export takes that name. Name another file.")
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            ours = mark.encode() in file.read(4096)
    except OSError:
        ours = False
    if not ours:
        raise SettingsError(
            f"{path} is there and was not written by an export, which would put a file of that name beside the one you "
            "named. Name another file, or move that one away."
        )
