"""The training loop: Adam over shuffled batches, the best epoch kept, every epoch repeatable.

All that is random in epoch e (order, windows, dropout, noise) is drawn from generators seeded by (seed, e), or is a hash of
(seed, e, update). So a run repeats exactly, and one that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import MISSING_CLASS, TRAIN, VALID
from tidegate.documents import Damaged, check, cut
from tidegate.errors import Interrupted, RunError, TrainingFailed
from tidegate.model import SequenceModel
from tidegate.model.cells import CELLS
from tidegate.model.tasks import TASKS
from tidegate.trained.evaluation import figures, steps_to_keep
from tidegate.trained.figures import KNOWN
from tidegate.trained.metrics import chooser, primary
from tidegate.trained.settings import CompleteSettings
from tidegate.trained.weights import weights_of
from tidegate.training.checkpoint import AGAIN, Checkpoint
from tidegate.training.gate_log import GateLog
from tidegate.training.journal import Journal
from tidegate.training.progress import Silent
from tidegate.training.resolve import class_weights
from tidegate.training.threads import Threads
from tidegate.training.updates import ByKernels, Sliced, key_of, updates_of
from tidegate.workers import here

WARM_UP = 0.05  # share of the cosine schedule in which the learning rate climbs: Adam's first steps are its wildest
FEW_SEQUENCES = 100  # that validate: with fewer, it is drawn by lot which epoch has the best accuracy
CHECKPOINT_SECONDS = 300.0  # within a long epoch: what a power cut can cost at most
# By which figure epochs were chosen before checkpoints said so, where that is no longer the default. (Of classes it still is.)
CHOSE_EARLIER = {"labels": "micro_f1", "number": "rmse"}


@dataclass
class State:
    """Where training stands; with the weights, Adam's state and torch's random state it is all of a checkpoint."""

    epoch: int = 0
    step: int = 0  # batches of this epoch that are done
    loss: float = 0.0  # summed over these
    targets: int = 0
    lr: float = 0.0  # of the last batch
    seconds: float = 0.0  # spent on this epoch so far
    best_epoch: int = 0  # the one that is kept
    best: list[float] = field(default_factory=list)  # the best that `rank_of` gave
    chosen_by: str = ""  # the figure of the validation rows that `rank_of` reads
    latest: bool = False  # of the epochs that these rows can't tell from the best one, the latest is kept: `tolerance`
    tolerance: float = 0.0  # how far below the best one that is
    factor: float = 1.0  # of the learning rate, schedule="plateau"
    rested: int = 0  # epochs since the last cut or the best one, schedule="plateau"
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class Loop:
    """The training of one model. What stays as it is over its epochs stands here; where it is, in `state`.

    settings: complete ones (see `resolve.complete`). journal: what is written, and from where an earlier training goes on.
    begun: the model has weights of another run; they are scored as epoch 0, and kept where no epoch is better.
    """

    def __init__(
        self,
        model: SequenceModel,
        pre: Preprocessing,
        source: BatchSource,
        settings: CompleteSettings,
        *,
        journal: Journal,
        progress: Silent,
        begun: bool = False,
    ) -> None:
        self.begun, self._saved_at = begun, 0.0
        self.model, self.pre, self.source, self.settings = model, pre, source, settings
        self.journal, self.progress = journal, progress
        by = chooser(pre.target, pre.horizon, settings.choose_by)
        of_sequences = settings.choose_by == "auto" and by == "accuracy" and pre.per == "sequence"
        self.judging = int((source.all_targets(VALID) != MISSING_CLASS).sum()) if of_sequences else 0
        self.state = State(chosen_by=by, latest=0 < self.judging < FEW_SEQUENCES)
        self.task = TASKS[pre.target.task]
        weights = class_weights(settings, pre.target)
        self.weights = None if weights is None else torch.tensor(weights, device=source.device)
        self.validated = source.has_targets(VALID)
        self.update = updates_of(model, source, self.task, self.weights, settings)
        self.optimizer = self.update.optimizer
        # (Where other threads make other bits, their number stays.)
        road = self.update.road if isinstance(self.update, Sliced) else self.update
        any_threads = CELLS[settings.cell].any_threads and isinstance(road, ByKernels)
        self.threads = Threads(torch.get_num_threads()) if any_threads else None
        self.gate_log = GateLog(source, settings.seed) if settings.log_gates else None
        self._best: Mapping[str, Tensor] | None = None
        self.workers = here()

    def run(self, title: str) -> State:
        """Train, and leave the model with the weights of its best epoch.

        Raises Interrupted after Ctrl-C, TrainingFailed at a NaN loss, DiskError where the disk is full.
        """
        rng = self._take_up()
        state, settings = self.state, self.settings
        if not state.finished or not self._over():
            state.finished = False
            batches = self.batches()
            self.progress.begin(title, settings.epochs * len(batches), state.epoch * len(batches) + state.step)
            try:
                forked = torch.random.fork_rng(devices=_cuda(self.source))
                with _stop_signal() as stopped, forked, self.threads or contextlib.nullcontext():
                    self.workers.watch(stopped, self._due)
                    if self.begun and not state.history:
                        self._score_beginning()
                    self._epochs(rng, stopped)
            finally:
                self.progress.end()
            state.finished = True
            self._checkpoint()
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self.model.zero_grad(set_to_none=True)  # what is left holds no gradients of the last batch
        self.model.requires_grad_(True).eval()
        return state

    def _over(self) -> bool:
        """Whether no epoch is left to train: all are done, or too many were no better."""
        state, settings = self.state, self.settings
        rested = settings.patience and self.validated and state.epoch - state.best_epoch >= settings.patience
        return state.epoch >= settings.epochs or bool(rested)

    def _take_up(self) -> dict[str, Tensor] | None:
        """Go on where an earlier training stopped; its random state."""
        last = self.journal.last()
        self.workers.meet()  # the first one has written the settings, and may have removed another run
        self.workers.same("checkpoint", "none" if last is None else _place(last[0].state))
        if last is None:
            return None
        checkpoint, name = last
        checkpoint.put_into(self.model, self.optimizer, name)
        self.update.carried = checkpoint.carried
        earlier = CHOSE_EARLIER.get(self.task.name, self.state.chosen_by)
        self.state = _state_of({"chosen_by": earlier} | checkpoint.state, self.settings, name)
        if not self.state.finished:
            _check_random_state(checkpoint.random, name)
        self._check_carried(name)
        self._best = self.journal.best()
        return checkpoint.random

    def _check_carried(self, name: str) -> None:
        """Raises RunError where the states of a checkpoint are not those that the batch before left."""
        parts, spec, step = self.update.carried, self.model.spec, self.state.step
        good = not parts
        if self.settings.carry_state and step:
            rows = sum(len(arguments[0]) for arguments in self.batches()[step - 1 : step])
            shape = (spec.states, rows, spec.hidden_size)
            good = len(parts) == len(CELLS[spec.cell].state) and all(part.shape == shape for part in parts)
        if not good or any(part.dtype != torch.float32 for part in parts):
            raise RunError(f"{name} is damaged (the states that are carried on). {AGAIN}")
        self.update.carried = tuple(part.to(self.source.device) for part in parts)

    def _epochs(self, rng: dict[str, Tensor] | None, stopped: threading.Event) -> None:
        state, settings = self.state, self.settings
        while state.epoch < settings.epochs:
            torch.manual_seed(_mix(settings.seed, state.epoch))
            if rng is not None and state.step:  # go on inside an epoch; a new one has its own seed
                _set_random_state(rng)
            rng = None
            if not self.epoch(self.batches(), stopped):
                raise Interrupted
            self.close_epoch()
            if self._over() and state.epoch < settings.epochs:
                break
            self._checkpoint()
            if self._stops(stopped) and state.epoch < settings.epochs:
                raise Interrupted

    def _stops(self, stopped: threading.Event) -> bool:
        """Whether training is to stop here: of several workers, all do after the same update."""
        return self.workers.stopping if self.workers.size > 1 else stopped.is_set()

    def _due(self) -> bool:
        """Whether it is time for a checkpoint inside an epoch."""
        return time.perf_counter() - self._saved_at > CHECKPOINT_SECONDS

    def epoch(self, batches: Sequence[tuple[Tensor, ...]], stopped: threading.Event) -> bool:
        """Train on the rest of an epoch's batches; False when it was interrupted (and saved)."""
        self.model.train()
        state = self.state
        began = time.perf_counter() - state.seconds
        self._saved_at = time.perf_counter()
        keys = _mix(self.settings.seed, state.epoch)
        for arguments in batches[state.step :]:
            state.lr = self.settings.lr * factor(self.settings, state, len(batches))
            if self.threads:
                self.threads.begin()
            total, count = self.update(arguments, state.lr, key_of(keys, state.step))
            if self.threads:
                self.threads.end(int(arguments[1].sum()))
            state.step += 1
            if not math.isfinite(total):
                raise TrainingFailed(
                    f"The loss became {total} in epoch {state.epoch + 1}, batch {state.step}. "
                    f"Try a smaller learning rate (lr, --lr) or stronger clipping (clip, --clip){self.journal.kept}."
                )
            state.loss += total
            state.targets += count
            self.progress.step(state.loss / max(state.targets, 1))
            state.seconds = time.perf_counter() - began
            due = self.workers.saving if self.workers.size > 1 else self._due()
            stops = self._stops(stopped)
            if due or stops:
                self._checkpoint()
                self._saved_at = time.perf_counter()
                if stops:
                    return False
        return True

    def _score_beginning(self) -> None:
        """Epoch 0: the weights of another run, with which this training begins."""
        row: dict[str, float] = {"epoch": 0, "lr": math.nan, "train_loss": math.nan}
        self.state.best = self._judge(row)
        self._best = weights_of(self.model)
        self.journal.keep_best(self.model)
        self.state.history.append(row)
        self.journal.keep_history(self.state.history)
        if self.validated:
            self.progress.epoch(f"before the first epoch  {self._told(row)}")

    def close_epoch(self) -> None:
        """Validate, keep the weights if they are the best so far, print and record the epoch."""
        state, settings = self.state, self.settings
        row: dict[str, float] = {
            "epoch": state.epoch + 1,
            "lr": state.lr,
            "train_loss": state.loss / max(state.targets, 1),
        }
        rank = self._judge(row)
        best = not state.best or rank > state.best
        state.epoch += 1
        if best:
            state.best, state.rested = rank, 0
            state.tolerance = tolerance(rank[0], self.judging) if state.latest else 0.0
        else:
            state.rested += 1
            if settings.schedule == "plateau" and state.rested >= rests(settings):
                state.factor, state.rested = state.factor / 2, 0
        # (best_epoch is 0 while the weights of another run are the best: those are kept unless an epoch is better.)
        as_good = state.latest and state.best_epoch > 0 and rank[0] >= state.best[0] - state.tolerance
        if best or as_good:
            state.best_epoch = state.epoch
            self._best = weights_of(self.model)
            self.journal.keep_best(self.model)
        state.history.append(row)
        state.step, state.loss, state.targets, state.seconds = 0, 0.0, 0, 0.0
        self.update.carried = ()
        self.journal.keep_history(state.history)
        width = len(str(settings.epochs))
        text = f"epoch {state.epoch:>{width}}/{settings.epochs}  loss {row['train_loss']:.4f}"
        text += f"  {self._told(row)}" if self.validated else ""
        mark = "" if not self.validated else "  best so far" if best else "  as good as the best" if as_good else ""
        self.progress.epoch(f"{text}  {row['seconds']:.1f} s{mark}")

    def _told(self, row: Mapping[str, float]) -> str:
        name, _ = primary(self.pre.target, self.pre.horizon, self.settings.choose_by)
        return f"valid loss {row['valid_loss']:.4f}  {name} {row['valid_' + name]:.4f}"

    def _judge(self, row: dict[str, float]) -> list[float]:
        """Score the validation rows into a row of the history; how good that is."""
        state = self.state
        began = time.perf_counter()
        if self.validated:
            # Of classes the loss is all that probabilities would add; numbers have none.
            chances = self.task.kind == "label"
            keep = steps_to_keep(self.pre, self.source, VALID)
            figured = figures(self.model, self.pre, self.source, VALID, chances=chances, keep=keep)
            row["valid_loss"] = figured.loss
            row |= {f"valid_{k}": v for k, v in figured.scores.summary.items()}
            rank = rank_of(state.chosen_by, row)
        else:
            rank = [row["epoch"], 0.0]  # nothing to choose by: the last epoch is taken
        gates = self.gate_log.row(self.model) if self.gate_log else {}
        row["seconds"] = state.seconds + time.perf_counter() - began
        row |= gates
        return rank

    def batches(self) -> list[tuple[Tensor, ...]]:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, 2, self.state.epoch])
        if settings.carry_state:
            assert settings.window is not None  # (see `resolve.complete`)
            return self.source.training_lanes(TRAIN, settings.batch_size, settings.window, rng)
        return self.source.training_batches(TRAIN, settings.batch_size, settings.window, rng)

    def _checkpoint(self) -> None:
        random = _random_state(self.source)
        state = asdict(self.state)
        self.journal.checkpoint(Checkpoint.of(self.model, self.optimizer, random, state, self.update.carried))
        self.workers.meet()  # one writes, and its disk may be slow


def _place(state: Mapping[str, Any]) -> str:
    return f"one of epoch {state.get('epoch')}, batch {state.get('step')}"


def _state_of(values: dict[str, Any], settings: CompleteSettings, name: str) -> State:
    """Where an earlier training stood. Raises RunError where a checkpoint's file doesn't say that."""
    try:
        check(State, values)
        state = State(**values)
        for good, what in (
            # (Weights of another run, with which a training began, are scored as epoch 0.)
            (sum(row.get("epoch") != 0 for row in state.history) == state.epoch, "the number of epochs"),
            (state.epoch <= settings.epochs, "the number of epochs"),
            (0 <= state.best_epoch <= state.epoch and state.step >= 0 and state.rested >= 0, "a count"),
            (len(state.best) in (0, 2), "the best epoch's figures"),
            (state.chosen_by == "loss" or state.chosen_by in KNOWN, "the figure that chooses"),
            (all({"epoch", "train_loss", "seconds"} <= {*row} for row in state.history), "the history"),
            (all(map(math.isfinite, (state.loss, state.lr, state.seconds, state.factor))), "a figure"),
        ):
            if not good:
                raise Damaged(f"{what} can't be right")
    except (Damaged, TypeError) as error:
        raise RunError(f"{name} is damaged ({error}). {AGAIN}") from error
    return state


def _check_random_state(state: dict[str, Tensor], name: str) -> None:
    """Raises RunError where torch would not take it."""
    try:
        torch.Generator().set_state(state["cpu"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise RunError(f"{name} is damaged (the state of the random numbers: {cut(str(error))}). {AGAIN}") from error


def rank_of(name: str, row: Mapping[str, float]) -> list[float]:
    """How good an epoch is, by the figure of that name in its row of the history; more is better, as lists compare."""
    figure = row[f"valid_{name}"]
    figure = figure if KNOWN[name].more_is_better else -figure
    # The loss decides between equal scores: accuracies of small sets often tie. NaN would compare with nothing.
    return [-math.inf if math.isnan(figure) else figure, -row["valid_loss"]]


def rests(settings: CompleteSettings) -> int:
    """After how many epochs that were no better schedule="plateau" halves the learning rate."""
    return max(2, (settings.patience or 30) // 5)


def tolerance(accuracy: float, count: int) -> float:
    """How far below this one an accuracy over the same `count` sequences may lie without saying that a model is worse: a
    standard error, and at least one sequence (of two models that differ on one alone, neither is the better one).

    The rule of one standard error of Breiman et al. 1984 (Classification and Regression Trees, section 3.4.3).
    """
    rounding = 1e-9  # 6/7 is no less than 1 - 1/7
    return max(math.sqrt(accuracy * (1 - accuracy) / count), 1 / count) + rounding


def factor(settings: CompleteSettings, state: State, batches: int) -> float:
    """The learning rate at this step, as a share of lr."""
    if settings.schedule == "cosine":
        done = (state.epoch + state.step / batches) / settings.epochs
        if done < WARM_UP:
            return (done + 1 / (batches * settings.epochs)) / (WARM_UP + 1 / (batches * settings.epochs))
        return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
    return state.factor


def _mix(seed: int, epoch: int) -> int:
    """One number from two, so that seed 0, epoch 1 and seed 1, epoch 0 draw differently."""
    return int(np.random.SeedSequence([seed, 3, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _random_state(source: BatchSource) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if source.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(source.device)
    return state


def _set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _cuda(source: BatchSource) -> list[int]:
    return [source.device.index or 0] if source.device.type == "cuda" else []


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one interrupts at once, as usual.

    A signal that the process was started to ignore (`nohup`, `make &`) stays ignored.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only: whoever runs us elsewhere has their own way to stop
        return
    previous: dict[Any, Any] = {}

    def stop(number: int, frame: Any) -> None:
        event.set()
        for one, handler in previous.items():
            signal.signal(one, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            continue
        previous[number] = signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
