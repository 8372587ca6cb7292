"""A warm start, a training that goes on from another run: what it keeps of that run, and its first weights. See decision 040."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tidegate.data.extending import Extended, divide, extend
from tidegate.data.preprocessing import Preprocessing, named
from tidegate.data.sequences import TEST, TRAIN, VALID, Sequences
from tidegate.data.settings import TRAINING
from tidegate.data.tables import Table, read_table
from tidegate.data.texts import listed
from tidegate.errors import RunError, SettingsError
from tidegate.model import ModelSpec, SequenceModel
from tidegate.trained import Resolved, Trained, TrainSettings
from tidegate.trained.folder import BEFORE, MODEL, NO_MEMORY, read_preprocessing
from tidegate.trained.repeats import ENSEMBLE, holds_repeats, open_repeats
from tidegate.trained.settings import PARTS
from tidegate.trained.trained import open_folder
from tidegate.trained.weights import load_model, model_of, weights_of
from tidegate.training.journal import CHECKPOINTS, FIRST

IN_MEMORY = "(a run in memory)"  # stands for the path of a run that has none
# Beside the settings of the training itself, what may differ from the earlier run: it changes neither what is read nor the model.
FREE = frozenset(
    {
        "split", "split_by", "split_seed", "across_gaps", "window", "season", "encoding", "row_names", "dropout", "recurrent_dropout",
        "checkpoint_every",
    }
)  # fmt: skip
# Settings of one training alone: where they aren't given they have their defaults, not the earlier run's values.
OF_ONE = frozenset({"from_run", "freeze", "fold", "device", "threads", "memory", "store"})


class Origin(NamedTuple):
    """The run that a training goes on from.

    no_memory: its baseline, None where it has none. about: as it stands under `origin` in config.yaml. table_sha256: of its table.
    begun: this training itself, which goes on: the preprocessing and the model are already extended, and `notes` already shown.
    """

    preprocessing: Preprocessing
    model: SequenceModel
    no_memory: SequenceModel | None
    about: Mapping[str, Any]
    settings: TrainSettings
    table_sha256: str | None
    begun: bool = False
    notes: Sequence[str] = ()

    @staticmethod
    def of(run: Trained) -> Origin:
        bare = None if run.no_memory is None else run.no_memory.model
        about: dict[str, Any] = {"run": path_of(run), "fingerprint": run.fingerprint}
        if thresholds := run.preprocessing.target.thresholds:
            about["thresholds"] = list(thresholds)
        return Origin(run.preprocessing, run.model, bare, about, run.settings, run.resolved.table_sha256)

    @staticmethod
    def of_begun(folder: Path, settings: TrainSettings, resolved: Resolved) -> Origin:
        """That of the training in this folder, from what it wrote when it began. Raises RunError where some of that is missing."""
        bare = folder / NO_MEMORY / CHECKPOINTS / FIRST
        return Origin(
            Preprocessing.from_json(*read_preprocessing(folder)),
            load_model(folder / BEFORE / MODEL),
            load_model(bare) if bare.is_file() else None,
            resolved.origin or {},
            settings,
            resolved.table_sha256,
            begun=True,
            notes=resolved.notes,
        )

    def read(self, table: Any, settings: TrainSettings) -> Table:
        """A table as the one of the earlier run was read."""
        pre = self.preprocessing
        return read_table(table, **settings.reading, as_text=pre.formats, as_named=pre.names)

    def rows(self, table: Table, settings: TrainSettings) -> tuple[Origin, Preprocessing, Sequences]:
        """The table by the earlier run's preprocessing, with entries for what is new; the notes say what was kept and is new.

        The origin that comes back says so, too.
        """
        pre = self.preprocessing
        if self.begun:
            return self, pre, divide(table, pre, settings, settings.seed)
        extended = extend(table, pre, settings, settings.seed)
        if extended.classes and "head" in settings.freeze:
            raise SettingsError(
                f"freeze holds the head, and the training rows of {table.name} have new classes of {pre.target.names[0]!r}: "
                f"{named(extended.classes)}. A frozen head can't learn them. Leave head out of freeze."
            )
        extended.data.notes[:0] = self._notes(extended, settings, table)
        new = {name: len(words) for name, words in extended.words.items()}
        if extended.classes:
            new[pre.target.names[0]] = len(extended.classes)
        return self._replace(about={**self.about, "new": new}), extended.preprocessing, extended.data

    def _notes(self, extended: Extended, settings: TrainSettings, table: Table) -> list[str]:
        pre, classes, words = extended.preprocessing, extended.classes, extended.words
        new = (
            [f"{_count(classes, 'class', 'classes')} of {pre.target.names[0]!r} ({named(classes)})"] if classes else []
        )
        for column in pre.tokens:
            if column.name in words:
                kind = ("word", "words") if column.kind == "words" else ("category", "categories")
                new.append(f"{_count(words[column.name], *kind)} of {column.name!r}")
        notes = [
            f"Goes on from {self.about['run']}: its columns, means and vocabularies are kept, and its weights. New in the training rows: "
            f"{', '.join(new) or 'no class, no word and no category'}."
        ]
        if "encoder" in settings.freeze and words:
            notes.append("The encoder is frozen, so new words and categories stay what the unknown one is.")
        named_by = ("split", "split_by", "split_seed", "seed", "fold")
        differs = [n for n in named_by if getattr(settings, n) != getattr(self.settings, n)]
        if differs and table.sha256 is not None and table.sha256 == self.table_sha256:
            learned = divide(table, pre, self.settings, self.settings.seed).part == TRAIN
            parts, said = (
                extended.data.part,
                f"This is the table of that run, divided otherwise ({listed(differs)}): rows that it learned from",
            )
            if (learned & (parts == TEST)).any() or not (parts == TEST).any():
                notes.append(f"{said} are now among those that are scored, so the figures flatter.")
            elif (learned & (parts == VALID)).any():
                notes.append(
                    f"{said} now validate, so the figures after each epoch flatter. Those of the test rows don't."
                )
        return notes

    def spec(self, settings: TrainSettings, pre: Preprocessing, earlier: SequenceModel) -> ModelSpec:
        """The sizes of a model of the earlier run with the entries of `pre`."""
        return replace(
            earlier.spec,
            vocabularies=tuple(c.size for c in pre.tokens),
            outputs=pre.target.width,
            dropout=settings.dropout,
            core=settings.core,
        )


def open_origin(source: Any) -> Trained:
    """The run that `from_run` names, a folder or a run in memory; of several runs the one that is kept.

    Raises RunError and SettingsError.
    """
    if isinstance(source, Trained):
        return source
    if source == IN_MEMORY:
        raise SettingsError(
            "from_run: the run to go on from was in memory and lies in no folder. Pass it as from_run, or the folder it was saved in."
        )
    if not isinstance(source, str | Path):
        raise SettingsError(f"from_run={source!r}: expected the folder of a run, or a run.")
    if holds_repeats(source):
        repeats, kept = open_repeats(Path(source))
        if repeats.kept == ENSEMBLE:
            raise RunError(
                f"{source} is an ensemble, and a training goes on from a single run. Name one of them: {', '.join(run.name for run in kept)}."
            )
        return kept[0]
    return open_folder(source)


def path_of(run: Trained) -> str:
    """As settings name the run."""
    return str(run.folder.resolve()) if run.folder else IN_MEMORY


def inherit(settings: TrainSettings, run: Trained) -> TrainSettings:
    """The settings of a training that goes on from `run`: what was given, else what that run had.

    Raises SettingsError where something was given that would need another model, or read the table differently.
    """
    values = {}
    for name, about in TrainSettings.model_fields.items():
        said = name in settings.model_fields_set
        own, theirs = getattr(settings, name), getattr(run.settings, name)
        extra = about.json_schema_extra
        assert isinstance(extra, dict)
        if name in OF_ONE or (said and (extra["panel"] == TRAINING or name in FREE)):
            values[name] = own
            continue
        meant = _meant(name, run)
        if said and own not in (theirs, meant) and not (name == "exclude" and _excludes_nothing(own, run)):
            raise SettingsError(
                f"{name}={_shown(own)}, but {run.name} has {name}={_shown(theirs if theirs is not None else meant)}, and its weights "
                f"mean nothing without that. Leave {name} out, or train a new run without from_run (--from)."
            )
        values[name] = theirs
    inherited: TrainSettings = TrainSettings.make(**(values | {"from_run": path_of(run)}))
    return inherited


def _meant(name: str, run: Trained) -> Any:
    """What a setting came to in a run, where that run left it open or gave a pattern."""
    pre, spec = run.preprocessing, run.model.spec
    dims = set(spec.embedding_dims)
    found = {
        "target": pre.target.names,
        "task": pre.target.task,
        "group": pre.group,
        "features": tuple(c.name for c in pre.features),
        "bidirectional": spec.bidirectional,
        "residual": spec.residual is not None,
        "embedding_dim": dims.pop() if len(dims) == 1 else None,
    }
    return found.get(name, getattr(run.settings, name))


def _excludes_nothing(patterns: tuple[str, ...], run: Trained) -> bool:
    """Whether none of the columns is one that the run reads."""
    names = run.preprocessing.names
    return not any(
        fnmatchcase(name, part.strip()) for one in patterns for part in [one, *one.split(",")] for name in names
    )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else repr(value)


def _count(values: tuple[Any, ...], one: str, more: str) -> str:
    return f"{len(values):,} {one if len(values) == 1 else more}"


def begin(spec: ModelSpec, earlier: SequenceModel) -> SequenceModel:
    """A model of this spec, on the CPU, with the weights of an earlier one, which knows some of its words and classes.

    New rows of an embedding are the one of the unknown word, as which the earlier model read these words: so it reads them as it
    did. A new class has the mean of the rows of all earlier classes in the head, weights and bias (Hewitt 2021, "Initializing new
    word embeddings for pretrained language models"): its score is the mean of theirs, so that it is never the largest, and with n
    classes before and m new ones no new one has a probability above 1 / (n + m).
    """
    old, weights = earlier.spec, weights_of(earlier)
    for k, (before, after) in enumerate(zip(old.vocabularies, spec.vocabularies, strict=True)):
        rows = weights[f"embeddings.{k}.weight"]
        weights[f"embeddings.{k}.weight"] = torch.cat([rows, rows[:1].expand(after - before, -1)])
    for name in ("head.weight", "head.bias"):
        weights[name] = _with_outputs(weights[name], old.ahead, spec.outputs - old.outputs)
    return model_of(spec, weights).requires_grad_(True)


def _with_outputs(rows: Tensor, ahead: int, new: int) -> Tensor:
    """[K·W, ...] -> [K·(W + new), ...], the new ones of each step ahead behind its old ones."""
    of_step = rows.unflatten(0, (ahead, -1))
    mean = of_step.double().mean(dim=1, keepdim=True).to(rows.dtype)
    return torch.cat([of_step, mean.expand(-1, new, *rows.shape[1:])], dim=1).flatten(0, 1)


def freeze(model: SequenceModel, parts: tuple[str, ...], epochs: int) -> list[str]:
    """Have these parts keep their weights; a sentence on it. Raises SettingsError where that leaves the epochs nothing to learn."""
    modules = dict(zip(PARTS, (model.embeddings, model.core, model.head), strict=True))
    empty = []
    for part in parts:
        frozen = list(module.parameters()) if (module := modules[part]) is not None else []
        for parameter in frozen:
            parameter.requires_grad_(False)
        empty += [] if frozen else [f"The {part} of this model has no weights to freeze."]
    learned, kept = (sum(p.numel() for p in model.parameters() if p.requires_grad is some) for some in (True, False))
    if epochs and not learned:
        raise SettingsError(
            f"freeze={','.join(parts)} leaves no weights to learn. Leave a part out, or say epochs=0 (--epochs 0)."
        )
    return [f"Frozen: {' and '.join(parts)}, {kept:,} of {learned + kept:,} weights.", *empty] if parts else []


def check_folder(out: Path, run: Trained) -> None:
    """Raises RunError where a training would write into the folder that it goes on from."""
    folder = None if run.folder is None else run.folder.resolve()
    if (
        folder is not None
        and out.exists()
        and (out.resolve() == folder or (holds_repeats(out) and out.resolve() == folder.parent))
    ):
        raise RunError(
            f"{out} is the run to go on from, and can't be the folder of the new one. Choose another folder. (More epochs on its own table: "
            f"tidegate train --resume --out {out} --epochs N)"
        )
