"""`Trained`: what a training leaves, in memory or as a folder on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tidegate.data.preprocessing import Preprocessing
from tidegate.data.store.prepare import larger_than_memory
from tidegate.data.tables import Table, read_table
from tidegate.documents import shown
from tidegate.errors import DataError, RunError, SettingsError
from tidegate.model import ModelSpec, SequenceModel
from tidegate.trained import folder as files
from tidegate.trained.comparison import Evaluation
from tidegate.trained.resolved import Resolved
from tidegate.trained.settings import TrainSettings, with_earlier_defaults
from tidegate.trained.weights import load_model

if TYPE_CHECKING:  # it leads here
    from tidegate.trained.predicted import Predicted


class Trained:
    """A trained model with all that belongs to it.

    settings: as given. resolved: what the training worked out. preprocessing: fitted on the training rows. model: with the weights
    of the best epoch. source: the path of the table; None: it was in memory. folder: where all this lies on disk; None: in
    memory alone.
    """

    def __init__(
        self,
        *,
        settings: TrainSettings,
        resolved: Resolved,
        preprocessing: Preprocessing,
        model: SequenceModel,
        source: str | None = None,
        folder: Path | None = None,
        history: list[dict[str, float]] | None = None,
        results: Evaluation | None = None,
        no_memory: Trained | None = None,
        before: SequenceModel | None = None,
    ) -> None:
        self.settings, self.resolved = settings, resolved
        self.preprocessing, self.model = preprocessing, model
        self.source, self.folder = source, folder
        self._history, self._results, self._no_memory, self._before = history, results, no_memory, before
        self._predicted: Predicted | None = None

    def __repr__(self) -> str:
        target = ", ".join(self.preprocessing.target.names)
        where = repr(str(self.folder)) if self.folder else "in memory"
        return f"{type(self).__name__}({where}: {self.model.spec.cell} for {target!r})"

    @property
    def name(self) -> str:
        """How messages and pages call it: its folder, or that it has none."""
        return str(self.folder) if self.folder else "the run in memory"

    @property
    def results(self) -> Evaluation | None:
        """The figures at the end of training; None where it was interrupted."""
        if self._results is None and self.folder is not None and self.resolved.finished:
            self._results = files.read_results(self.folder)
        return self._results

    @property
    def predicted(self) -> Predicted | None:
        """The predictions at the end of training, as its report draws them; None in a run that was opened from a folder."""
        return self._predicted

    @property
    def history(self) -> list[dict[str, float]]:
        """The figures of training, a dict an epoch."""
        if self._history is None:
            self._history = [] if self.folder is None else files.read_history(self.folder)
        return self._history

    @property
    def no_memory(self) -> Trained | None:
        """The same head without a recurrence, trained to compare with; None where it wasn't."""
        if self._no_memory is None and self.folder is not None:
            folder = self.folder / files.NO_MEMORY
            if (folder / files.MODEL).is_file():
                model = load_model(folder / files.MODEL)
                own = (folder / files.PREPROCESSING).is_file()  # where it differs from the run's
                pre = Preprocessing.from_json(*files.read_preprocessing(folder)) if own else self.preprocessing
                _check_belong(pre, model.spec, folder)
                self._no_memory = Trained(
                    settings=self.settings.with_cell("none"),
                    resolved=self.resolved,
                    preprocessing=pre,
                    model=model.to(self.device),
                    source=self.source,
                    folder=folder,
                )
        return self._no_memory

    @property
    def before(self) -> SequenceModel | None:
        """The model with the weights of another run with which this one began; None where it began with none."""
        if self._before is None and self.folder is not None and self.resolved.origin is not None:
            path = self.folder / files.BEFORE / files.MODEL
            self._before = load_model(path) if path.is_file() else None
        return self._before

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over sizes, weights and preprocessing: runs that predict alike share it, no others. All weights
        are read at every call.
        """
        digest = hashlib.sha256(self.preprocessing.to_json().encode())
        digest.update(json.dumps(self.model.spec.to_dict()).encode())
        for name, weight in self.model.state_dict().items():
            digest.update(name.encode())
            weight = weight.detach().cpu().contiguous()
            if weight.dtype is torch.bfloat16:  # NumPy has none
                weight = weight.view(torch.int16)
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()

    def read(self, table: Any) -> Table:
        """A table as the one of the training was read."""
        pre = self.preprocessing
        if why := larger_than_memory(table, self.settings.reading):
            raise DataError(
                f"{why}, and this reads a table as a whole. Give it some of the rows, such as one of several files. Predictions need not: "
                "tidegate predict RUN TABLE -o FOLDER/ (predict_to) takes some rows at a time."
            )
        return read_table(table, **self.settings.reading, as_text=pre.formats, as_named=pre.names)


def open_folder(folder: str | Path) -> Trained:
    """What lies in a run's folder. Opening never runs code from it: weights are safetensors, the rest is JSON and YAML.

    Raises RunError: no such folder, not a run, of a later version, or a file of it is missing, cut off or foreign.
    """
    folder = Path(folder)
    settings, resolved, source = read_settings(folder)
    if not resolved.finished and not (folder / files.MODEL).is_file():
        raise RunError(
            f"{folder / files.MODEL} is missing: the run is not complete. Its training hasn't come to the end of an epoch yet; go on with: "
            f"tidegate train --resume --out {folder}"
        )
    pre, model = Preprocessing.from_json(*files.read_preprocessing(folder)), load_model(folder / files.MODEL)
    _check_belong(pre, model.spec, folder)
    return Trained(
        settings=settings,
        resolved=resolved,
        preprocessing=pre,
        model=model,
        source=source,
        folder=folder,
    )


def unfinished(run: Trained) -> str:
    """A sentence on a run whose training is not finished."""
    done = int(run.history[-1]["epoch"]) if run.history else 0
    return (
        f"Note: {run.folder} is not finished: it has the best weights of {done} of at most {run.resolved.epochs} epochs. "
        f"Go on with: tidegate train --resume --out {run.folder}"
    )


def _check_belong(pre: Preprocessing, spec: ModelSpec, folder: Path) -> None:
    """Raises RunError where the model reads or predicts other things than the preprocessing says."""
    of_table = (pre.number_width, tuple(c.size for c in pre.tokens), pre.per, pre.horizon, pre.target.width)
    of_model = (spec.number_width, spec.vocabularies, spec.per, spec.horizon, spec.outputs)
    if of_table != of_model:
        raise RunError(
            f"{folder}: {files.PREPROCESSING} and {files.MODEL} don't belong together: numbers, vocabularies, per, horizon and outputs "
            f"are {shown(of_table)} in the one and {shown(of_model)} in the other. A file was replaced or damaged; take the whole folder again."
        )


def read_settings(folder: Path) -> tuple[TrainSettings, Resolved, str | None]:
    """What config.yaml says: the settings as given, what was worked out, and the table's path."""
    name = str(folder / files.CONFIG)
    config = files.read_config(folder)
    resolved = Resolved.from_dict(config.pop("resolved"), name)
    source = config.pop("table", None)
    config.pop("out", None)
    config = with_earlier_defaults(config)
    try:
        return TrainSettings.make(**config), resolved, source
    except SettingsError as error:
        by = f" It was written by Tidegate {resolved.tidegate}." if resolved.tidegate else ""
        raise RunError(f"{name}: {error}{by} Where that is a later version, update this one.") from error
