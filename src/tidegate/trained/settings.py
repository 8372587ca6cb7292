"""Every setting of a training run, and of several, once. The command line, the YAML file and Python all read this list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, model_validator

from tidegate.data.settings import MODEL, SPLIT, TRAINING, DataSettings, Settings, setting
from tidegate.default_memory import bytes_of
from tidegate.documents import Damaged, cut, from_yaml, shown
from tidegate.errors import SettingsError, nearest
from tidegate.model.cells import CELLS, gated
from tidegate.model.spec import CoreOptions
from tidegate.trained.figures import CHOICES

RECURRENCE = "The recurrence, beyond torch.nn.GRU"
WARM_START = "A warm start"
REPEATS = "Several runs"
SCALE = "More rows than memory"


def _pair(value: Any) -> Any:
    """'20' is a number and '2,50' a pair of them, as the command line has them."""
    if not isinstance(value, str):
        return value
    parts = value.split(",")
    if len(parts) > 2:
        return value
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        return value
    return numbers[0] if len(numbers) == 1 else numbers


def _weights(value: Any) -> Any:
    """'yes=5,no=1' is a mapping, as the command line has it; names are text."""
    if isinstance(value, str) and "=" in value:
        value = dict(part.rpartition("=")[::2] for part in value.split(","))
    if isinstance(value, Mapping):
        value = {str(name).strip(): weight for name, weight in value.items()}
        for name, weight in value.items():
            try:
                good = 0 < float(weight) < float("inf")
            except (TypeError, ValueError, OverflowError):
                good = False
            if not good:
                raise ValueError(f"the weight of {shown(name)} is {shown(weight)}, expected a number above 0")
    elif value not in (None, "balanced"):
        raise ValueError("expected balanced, or a weight for each class such as yes=5,no=1")
    return value


PARTS = ("encoder", "core", "head")  # of a model, as `freeze` names them


def _parts(value: Any) -> Any:
    """'encoder,core' and ['encoder', 'core'] are two parts of the model, once each and in its order."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        return values
    names = [part.strip() for one in values for part in str(one).split(",") if part.strip()]
    for name in names:
        if name not in PARTS:
            raise ValueError(
                f"a model has no part {name!r}; expected {', '.join(PARTS[:-1])} or {PARTS[-1]}, or a list of them"
            )
    return tuple(part for part in PARTS if part in names)


def _size(value: Any) -> Any:
    """2GB, 512 MiB or a number of bytes, as text."""
    if value is not None:
        bytes_of(value)
    return None if value is None else str(value)


Memory = Annotated[str | None, BeforeValidator(_size)]
_MEMORY = "The most memory that the process may take. None: four fifths of what the machine, or its container, has. A table for which that isn't enough is arranged on disk, and read from there."

Kind = TypeVar("Kind", bound="TrainSettings")


class PrepareSettings(DataSettings):
    """How `tidegate prepare` arranges a table on disk."""

    seed: int = setting(0, SPLIT, "Draws the split, as the seed of a run does.", ge=0, lt=2**31)
    memory: Memory = setting(None, SCALE, _MEMORY, metavar="SIZE")


class TrainSettings(DataSettings):
    """The table's columns, the model and its training. Names and defaults are those of `tidegate train --help`."""

    cell: Literal[tuple(CELLS)] = setting(  # type: ignore[valid-type]
        "gru", MODEL, f"The recurrence. {'; '.join(f'{name}: {row.about}' for name, row in CELLS.items())}."
    )
    hidden_size: int = setting(128, MODEL, "Hidden units of each layer and direction.", ge=1)
    num_layers: int = setting(1, MODEL, "Layers of the recurrence.", ge=1)
    bidirectional: bool | None = setting(
        None,
        MODEL,
        "Read each sequence in both directions. None: yes with per=sequence and for list columns, as the whole sequence is there at once; no with carry_state.",
    )
    dropout: float = setting(
        0.3,
        MODEL,
        "Share of values dropped in training: of embeddings, between layers, and of what the head reads.",
        ge=0,
        lt=1,
    )
    embedding_dim: int | None = setting(
        None, MODEL, "Length of the vector of a word or category. None: by the size of the vocabulary.", ge=1
    )
    pooling: Literal["last", "mean", "max", "last+max+mean"] = setting(
        "max",
        MODEL,
        "With per=sequence: which summary of the outputs the head reads: the last one, the mean, each unit's largest, or all three side by side.",
    )
    residual: bool | None = setting(
        None,
        MODEL,
        "Predict the change from the last value instead of the value. None: for a forecast of numbers, where the last value is a better guess than the mean.",
    )

    reset: Literal["after", "before"] = setting(
        "after",
        RECURRENCE,
        "Where the reset gate falls: after the product with the state, as in torch, cuDNN and Keras, or before it, as in the papers.",
    )
    layer_norm: bool = setting(
        False, RECURRENCE, "Normalise the four sums of every step (Ba et al. 2016); steadier training of large layers."
    )
    recurrent_dropout: float = setting(
        0.0,
        RECURRENCE,
        "Share of the state that is masked on its way into the gates in training, the same at every step (Gal and Ghahramani 2016).",
        ge=0,
        le=1,
    )
    zoneout: float = setting(
        0.0,
        RECURRENCE,
        "Probability with which a unit keeps its state at a step in training (Krueger et al. 2017).",
        ge=0,
        le=1,
    )
    learn_initial_state: bool = setting(
        False, RECURRENCE, "The state before the first step is learned; else it is zeros."
    )
    init: Literal["torch", "orthogonal"] = setting(
        "torch", RECURRENCE, "First weights: uniform as in torch, or orthogonal for the state and Glorot for the input."
    )
    update_bias: Annotated[str | float | tuple[float, float] | None, BeforeValidator(_pair)] = setting(
        None,
        RECURRENCE,
        "How many steps a new layer remembers (chrono initialisation): a number above 1, or a shortest and a longest such as 2,50. None: as init makes it.",
    )
    checkpoint_every: int = setting(
        0,
        RECURRENCE,
        "Store only states for the backward pass, and compute the gates again so many steps at a time: a fifth of the memory for a quarter more time. 0: store everything.",
        ge=0,
    )

    from_run: str | None = setting(
        None,
        WARM_START,
        "Begin with the weights of this run (a folder), and keep its columns, means, vocabularies and model; new words and classes get entries of their own. Settings that you don't give are those of that run.",
        metavar="RUN",
        option="from",
    )
    freeze: Annotated[tuple[str, ...], BeforeValidator(_parts)] = setting(
        (),
        WARM_START,
        "With --from: parts of the model that keep their weights: encoder (the embeddings), core (the recurrence), head. encoder,core trains the head alone.",
        metavar="PART,...",
    )
    epochs: int | None = setting(
        None,
        TRAINING,
        "Most passes over the training rows. None: some 2,000 updates, within 15 to 150 epochs. 0, with --from: train nothing.",
        ge=0,
    )
    patience: int | None = setting(
        None,
        TRAINING,
        "Stop after so many epochs without a better validation score. None: half of the epochs, at least 10. 0: never.",
        ge=0,
    )
    choose_by: Literal[CHOICES] = setting(  # type: ignore[valid-type]
        "auto",
        TRAINING,
        f"The figure of the validation rows that chooses the best epoch: {', '.join(CHOICES[1:])}. auto: for classes accuracy, or span F1 where they are B-, I- and O; for 0/1 labels the loss; for a number the RMSE, for several the MAE in standard deviations of each. For a class a sequence with fewer than 100 sequences to validate on, auto keeps the latest epoch within one standard error of the best accuracy.",
        metavar="FIGURE",
    )
    class_weights: Annotated[str | dict[str, float] | None, BeforeValidator(_weights)] = setting(
        None,
        TRAINING,
        "How much each class counts in the training loss: balanced (the rarer, the more), or by name, such as yes=5,no=1; a class without a weight has 1. None: all alike.",
    )
    label_thresholds: Literal["half", "f1"] = setting(
        "half",
        TRAINING,
        "The probability above which each 0/1 label is predicted. half: 1/2; f1: the value with the best F1 on the validation rows.",
    )
    batch_size: int | None = setting(
        None,
        TRAINING,
        "Sequences (or windows) in a batch. None: 32, fewer where there are few, so that an epoch has some 30 updates.",
        ge=1,
    )
    carry_state: bool = setting(
        False,
        TRAINING,
        "Train on the windows of a sequence in their order, each from the state that the one before left (truncated backpropagation through time, a stateful RNN). Without it, windows are shuffled, and each begins at the initial state. For a target a step, read in one direction.",
    )
    lr: float = setting(5e-3, TRAINING, "Adam's learning rate.", gt=0)
    weight_decay: float = setting(0.0, TRAINING, "Decoupled weight decay (AdamW); 0 is plain Adam.", ge=0)
    clip: float = setting(1.0, TRAINING, "Clip the norm of the gradient. 0: don't.", ge=0)
    schedule: Literal["constant", "cosine", "plateau"] = setting(
        "cosine",
        TRAINING,
        "How the learning rate changes. constant: not at all; cosine: warm-up, then down to zero along a cosine; plateau: halved when the validation score stops improving.",
    )
    word_dropout: float = setting(
        0.25,
        TRAINING,
        "A training word seen c times is read as unknown with probability a/(a+c); this option is a.",
        ge=0,
    )
    noise: float = setting(
        0.0, TRAINING, "Standard deviation of Gaussian noise added to standardised numbers in training.", ge=0
    )
    baselines: bool = setting(True, TRAINING, "Also train the same head without a recurrence, to compare with.")
    log_gates: bool = setting(
        False,
        TRAINING,
        "After every epoch, write into metrics.csv how open the gates are and how long they remember, and draw it in the report; with "
        f"cell={' or '.join(gated())}.",
    )
    seed: int = setting(0, TRAINING, "Repeats a run exactly: weights, order, dropout and split.", ge=0, lt=2**31)
    shards: int = setting(
        1,
        TRAINING,
        "Cut every batch into so many slices, whose gradients are added up in a fixed order: any number of workers that divides it then gives the same weights, bit for bit. Several workers without it: as many as there are workers.",
        ge=1,
    )
    device: str = setting("auto", TRAINING, "cpu, cuda, cuda:1, mps; auto: a GPU where there is one.")
    precision: Literal["float32", "bf16"] = setting(
        "float32",
        TRAINING,
        "What the recurrence multiplies in training. bf16: bfloat16, with sums, states, weights and validation in float32; half the memory, and faster on processors that have such products. For cell=gru on the CPU.",
    )
    threads: int | None = setting(
        None,
        TRAINING,
        "The most CPU threads; an update of a training takes fewer where that is faster. None: as torch chooses, and in a command no more than the CPU quota of a container grants (see tidegate doctor).",
        ge=1,
    )
    memory: Memory = setting(None, SCALE, _MEMORY, metavar="SIZE")
    store: str | None = setting(
        None,
        SCALE,
        "Folder in which a table that doesn't fit the memory is arranged; one that is there already is used. None: beside the run, RUN.store.",
        metavar="DIR",
    )

    @model_validator(mode="after")
    def _fit_together(self: Kind) -> Kind:
        if self.from_run is None:
            if self.epochs == 0:
                raise ValueError(
                    "epochs=0: expected at least 1; 0 is for the weights of another run as they are (from_run, --from)."
                )
            if self.freeze:
                raise ValueError(
                    f"freeze={','.join(self.freeze)} needs from_run (--from): a new model has no weights to keep. Leave freeze out, or name a run."
                )
        if self.bidirectional and self.horizon:
            raise ValueError(
                "bidirectional=True with a horizon would read the values it is to predict. Leave bidirectional out, or predict at horizon 0."
            )
        if self.carry_state:
            self._check_carry()
        if self.log_gates and not CELLS[self.cell].gates:
            raise ValueError(
                f"log_gates=True needs {' or '.join(f'cell={cell!r}' for cell in gated())}: {self.cell!r} has no update and "
                "reset gate. Leave log_gates out."
            )
        if self.precision != "float32" and not CELLS[self.cell].bf16:
            able = " or ".join(f"cell={cell!r}" for cell, row in CELLS.items() if row.bf16)
            raise ValueError(
                f"precision={self.precision!r} needs {able}: {self.cell!r} is trained in float32. Leave precision out."
            )
        for name, value in self.core.changed().items():
            if name not in CELLS[self.cell].options:
                able = " or ".join(f"cell={cell!r}" for cell, row in CELLS.items() if name in row.options)
                raise ValueError(f"{name}={value!r} needs {able}: {self.cell!r} has no such option. Leave {name} out.")
        memory: Any = self.update_bias
        if memory is not None:
            shortest, longest = memory if isinstance(memory, tuple) else (memory, memory)
            if isinstance(memory, str) or not 1 < shortest <= longest < float("inf"):
                raise ValueError(
                    f"update_bias={shown(memory)}: expected a number of steps above 1, or a shortest and a longest such as 2,50."
                )
        return self

    def _check_carry(self) -> None:
        """Raises ValueError where no state can be handed from window to window."""
        why = None
        if self.per == "sequence":
            why = "with per='sequence' sequences are read whole"
        elif self.bidirectional:
            why = "bidirectional=True reads from the last step, too"
        elif not CELLS[self.cell].state:
            why = f"cell={self.cell!r} has no state"
        if why:
            raise ValueError(
                f"carry_state=True hands the state from one window of a sequence to the next, and {why}. Leave one of the two out."
            )

    @property
    def core(self) -> CoreOptions:
        """What changes the recurrence, as the model takes it."""
        return CoreOptions(**{f.name: getattr(self, f.name) for f in fields(CoreOptions)})

    def with_cell(self: Kind, cell: str, **changes: Any) -> Kind:
        """The same for another cell, without the options that it doesn't know, without `log_gates` and from no other run: to compare
        with."""
        lost = {
            name: type(self).model_fields[name].default
            for name in self.core.changed()
            if name not in CELLS[cell].options
        }
        if not CELLS[cell].state:
            lost["carry_state"] = False
        if not CELLS[cell].bf16:
            lost["precision"] = "float32"
        return self.model_copy(
            update={"cell": cell, "log_gates": False, "from_run": None, "freeze": ()} | lost | changes
        )


class CompleteSettings(TrainSettings):
    """TrainSettings in which nothing is left to be worked out (see `resolve.complete`)."""

    epochs: int
    patience: int
    batch_size: int


# What runs did before there was a setting for it; a run writes down all settings that it knows.
EARLIER_DEFAULTS: dict[str, Any] = {"word_features": "none", "across_gaps": True}


def with_earlier_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A run's settings, which an earlier version may have written, so that they mean what they meant then."""
    return {**EARLIER_DEFAULTS, **config}


def _seeds(value: Any) -> Any:
    """'1,2,3', ['1', '2,3'] and [1, 2, 3] are three seeds."""
    values = value if isinstance(value, list | tuple | range) else [] if value is None else [value]
    try:
        return tuple(int(part) for one in values for part in str(one).split(",") if part.strip())
    except ValueError:
        raise ValueError("expected whole numbers, such as 1,2,3") from None


class RepeatSettings(Settings):
    """How often a training is repeated, and what of it is kept. All that one training takes is in `TrainSettings`."""

    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds)] = setting(
        (),
        REPEATS,
        "Train a run for each of these seeds (1,2,3), and report the mean and standard deviation of every figure.",
        metavar="N,N,...",
    )
    folds: int | None = setting(
        None,
        REPEATS,
        "Cross-validation with so many folds: a run for each, which validates on this fold and trains on the others. Folds are whole sequences, or go forward in time where the split cuts sequences. Test rows stay out.",
        ge=2,
    )
    keep: Literal["auto", "best", "ensemble", "refit"] = setting(
        "auto",
        REPEATS,
        "What predicts in the end. best: the run with the best validation score; ensemble: the mean of all runs; refit, with folds: one more run on the rows of all folds, for the median of their best epochs. auto: best with seeds, refit with folds.",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> RepeatSettings:
        if self.seeds and self.folds:
            raise ValueError("seeds and folds can't be combined. Name one of them; with folds, seed draws the folds.")
        if self.seeds and (len(set(self.seeds)) < 2 or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError(f"seeds={list(self.seeds)}: expected two or more different ones.")
        if any(not 0 <= seed < 2**31 for seed in self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: expected numbers from 0 to {2**31 - 1}.")
        if self.keep != "auto" and not self:
            raise ValueError(
                f"keep={self.keep!r} says which of several runs is kept. Name seeds or folds, or leave it out."
            )
        if self.keep == "refit" and self.seeds:
            raise ValueError(
                "keep='refit' needs folds: runs with other seeds have no rows to add. Say best or ensemble."
            )
        return self

    def __bool__(self) -> bool:
        """Whether there is anything to repeat."""
        return bool(self.seeds or self.folds)

    @property
    def kept(self) -> str:
        """`keep`, with auto worked out."""
        return self.keep if self.keep != "auto" else "refit" if self.folds else "best"


def read_settings_file(path: str | Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a YAML file, `table` and `out` among them; a run's own config.yaml too. more: other names that it may have.

    Raises SettingsError: no such file, not YAML, or an unknown setting (the nearest one is named).
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"No such settings file: {path}.")
    try:
        values: Any = from_yaml(path.read_bytes())
    except Damaged as error:
        line = f", line {error.line}" if error.line else ""
        raise SettingsError(f"{path}{line}: not YAML ({error}).") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected lines such as 'target: label', found a {type(values).__name__}.")
    if values.pop("resolved", None) is not None:  # what a run worked out for itself; a new run works it out anew
        values = with_earlier_defaults(values)
    known = [*TrainSettings.model_fields, *RepeatSettings.model_fields, "table", "out", *more]
    for name in values:
        if name not in known:
            raise SettingsError(f"{path}: there is no setting {shown(name)}.{nearest(cut(str(name)), known)}")
    return dict(values)
