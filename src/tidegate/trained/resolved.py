"""What a training works out for itself, as it stands under `resolved` in config.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tidegate.data.sequences import PART_NAMES
from tidegate.data.texts import listed
from tidegate.documents import Damaged, check, cut, shown
from tidegate.errors import RunError, nearest
from tidegate.model.tasks import TASKS

VERSION = 2  # of config.yaml and all that lies beside it; 1, up to November 2026, wrote no number


@dataclass(frozen=True)
class Resolved:
    """Every setting that was left to the training, the sizes of the model, and how it went.

    version: of the run's files. tidegate, torch, python: the versions that trained it. device, threads: where. table_name,
    table_sha256, rows: the table; the digest is None for one in memory. parts: of train, valid and test the number of
    sequences and rows. longest: steps of the longest sequence. task, classes, numbers, categories: what was found in the table. bidirectional ...
    patience: what the settings came to. lanes: with carry_state, how many sequences a batch carries on side by side; None: each
    window begins anew. parameters: how many numbers were learned. notes: the notes on the table.
    finished, best_epoch, epochs_run, seconds: how it ended. chosen_by: the figure of the validation rows by which the best epoch
    was chosen; None where there was none to choose by, and in runs of November 2026 and earlier. tolerance: how far below the best
    one this figure may lie in the epoch that was kept, the latest such one; None: the best epoch was kept.
    """

    version: int = VERSION
    tidegate: str = ""
    torch: str = ""
    python: str = ""
    device: str = "cpu"
    threads: int = 1
    table_name: str = ""
    table_sha256: str | None = None
    rows: int = 0
    parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    longest: int = 0
    task: str = "class"
    classes: int = 0
    numbers: Sequence[str] = field(default_factory=list)
    categories: Mapping[str, int] = field(default_factory=dict)
    bidirectional: bool = False
    embedding_dims: Sequence[int] = field(default_factory=list)
    residual: bool = False
    window: int | None = None
    lanes: int | None = None
    batch_size: int = 0
    epochs: int = 0
    patience: int = 0
    parameters: int = 0
    origin: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default_factory=list)
    finished: bool = False
    best_epoch: int | None = None
    chosen_by: str | None = None
    tolerance: float | None = None
    epochs_run: int | None = None
    seconds: float | None = None

    def __getitem__(self, name: str) -> Any:
        """`run.resolved["epochs"]` is `run.resolved.epochs`."""
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def with_(self, **changes: Any) -> Resolved:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON and YAML have it."""
        return {k: v for k, v in asdict(self).items() if v is not None or k in ("table_sha256", "window")}

    @staticmethod
    def from_dict(values: Mapping[str, Any], name: str) -> Resolved:
        """What `to_dict` gave. Raises RunError: from a later version, or with a field that this one doesn't know."""
        version = values.get("version", 1)
        if not isinstance(version, int) or isinstance(version, bool) or version > VERSION:
            raise RunError(
                f"{name} was written by a later version of Tidegate ({cut(str(values.get('tidegate', '?')))}; its files have version {shown(version)}, "
                f"and up to {VERSION} can be read here). Update this one."
            )
        known = [f.name for f in fields(Resolved)]
        for key in values:
            if key not in known:
                raise RunError(
                    f"{name} has the unknown field {shown(str(key))} under resolved.{nearest(cut(str(key)), known)} A later version of Tidegate may "
                    "have written it: update this one."
                )
        try:
            check(Resolved, dict(values))
        except Damaged as error:
            raise RunError(f"{name} is damaged (resolved: {error}).") from None
        resolved = Resolved(**{"version": version} | dict(values))
        parts = resolved.parts
        if resolved.task not in TASKS or not all(
            {"sequences", "rows"} <= {*parts.get(part, ())} for part in PART_NAMES
        ):
            raise RunError(f"{name} is damaged (resolved: task={shown(resolved.task)}, parts={shown(dict(parts))}).")
        for key, least in (("window", 1), ("lanes", 1), ("batch_size", 0), ("epochs", 0), ("patience", 0)):
            if (found := getattr(resolved, key)) is not None and found < least:
                raise RunError(f"{name} is damaged (resolved: {key}={shown(found)}).")
        return resolved

    def lines(self) -> list[str]:
        """What was made of the table and the settings, in a few lines."""
        parts = ", ".join(f"{p['sequences']} {n} ({p['rows']:,} rows)" for n, p in self.parts.items() if p["sequences"])
        reads = [f"{len(self.numbers)} number{'s' * (len(self.numbers) != 1)}"] if self.numbers else []
        if self.categories:
            known = [f"{name} ({size:,} known value{'s' * (size != 1)})" for name, size in self.categories.items()]
            reads.append(listed(known))
        carried = []
        if self.lanes is not None:
            side = f"{self.lanes} sequences side by side" if self.lanes > 1 else "one sequence at a time"
            carried = [f"Training carries the state from window to window ({self.window} steps), {side}."]
        predicts = TASKS[self.task].about(self.classes)
        return [
            f"{self.table_name}: sequences: {parts}; the longest has {self.longest:,} steps.",
            f"Reads {', '.join(reads)}; predicts {predicts}. {self.parameters:,} parameters, on {self.device}.",
            *carried,
            *self.notes,
        ]
