"""The training loop: Adam over shuffled batches, the best epoch kept, every epoch repeatable.

All that is random in epoch e (order, windows, dropout, noise) is drawn from generators seeded by (seed, e). So a
run repeats exactly, and one that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tidegate.data.batches import BatchSource
from tidegate.data.preprocessing import Preprocessing
from tidegate.data.sequences import TRAIN, VALID
from tidegate.errors import TidegateError
from tidegate.files import write_text
from tidegate.model import SequenceModel
from tidegate.training.checkpoint import load_checkpoint, save_checkpoint, save_model
from tidegate.training.evaluation import judge, run_model
from tidegate.training.gate_log import GateLog
from tidegate.training.metrics import loss_sum, primary
from tidegate.training.progress import Silent
from tidegate.training.settings import CompleteSettings

WARM_UP = 0.05  # share of the cosine schedule in which the learning rate climbs: Adam's first steps are its wildest
CHECKPOINT_SECONDS = 300.0  # within a long epoch: what a power cut can cost at most


class Interrupted(TidegateError):
    """Training was stopped by Ctrl-C (or SIGTERM) and can go on."""


class TrainingFailed(TidegateError):
    """The loss is no longer a number."""


@dataclass
class State:
    """Where training stands; with the weights, Adam's state and torch's random state it is all of a checkpoint."""

    epoch: int = 0
    step: int = 0  # batches of this epoch that are done
    loss: float = 0.0  # summed over these
    targets: int = 0
    lr: float = 0.0  # of the last batch
    seconds: float = 0.0  # spent on this epoch so far
    best_epoch: int = 0
    best: list[float] = field(default_factory=list)  # what `_better` compares
    factor: float = 1.0  # of the learning rate, schedule="plateau"
    rested: int = 0  # epochs since the last cut or the best one, schedule="plateau"
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: SequenceModel,
    pre: Preprocessing,
    source: BatchSource,
    settings: CompleteSettings,
    folder: Path,
    progress: Silent,
    title: str,
) -> State:
    """Train `model` and leave its best weights in folder/model.safetensors, its history in folder/metrics.csv.

    settings: complete ones (see `resolve.complete`). An earlier checkpoint in the folder is taken up.
    Raises Interrupted after Ctrl-C, TrainingFailed at a NaN loss, DiskError where the disk is full.
    """
    fused = source.device.type in {"cpu", "cuda"}  # one kernel for all weights: half the time of an Adam step here
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    optimizer = kind(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)
    path = folder / "checkpoints" / "last.safetensors"
    state, rng = State(), None
    if path.exists():
        rng, saved = load_checkpoint(path, model, optimizer)
        state = State(**saved)
        if state.finished:
            return state
    validated = source.has_targets(VALID)
    gate_log = GateLog(source, settings.seed) if settings.log_gates else None
    batches = _epoch_batches(source, settings, state.epoch)
    progress.begin(title, settings.epochs * len(batches), state.epoch * len(batches) + state.step)
    try:
        with _stop_signal() as stopped, torch.random.fork_rng(devices=_cuda(source)):
            while state.epoch < settings.epochs:
                batches = _epoch_batches(source, settings, state.epoch)
                torch.manual_seed(_mix(settings.seed, state.epoch))
                if rng is not None and state.step:  # go on inside an epoch; a new one has its own seed
                    _set_random_state(rng)
                rng = None
                done = _one_epoch(model, pre, source, settings, optimizer, batches, state, progress, stopped, path)
                if not done:
                    raise Interrupted
                _close_epoch(model, pre, source, settings, state, validated, folder, progress, gate_log)
                if settings.patience and validated and state.epoch - state.best_epoch >= settings.patience:
                    break
                save_checkpoint(path, model, optimizer, _random_state(source), asdict(state))
                if stopped.is_set() and state.epoch < settings.epochs:
                    raise Interrupted
    finally:
        progress.end()
    state.finished = True
    save_checkpoint(path, model, optimizer, _random_state(source), asdict(state))
    return state


def _one_epoch(model, pre, source, settings, optimizer, batches, state: State, progress, stopped, path) -> bool:
    """Train on the rest of an epoch's batches; False when it was interrupted (and saved)."""
    model.train()
    parameters = list(model.parameters())
    began = time.perf_counter() - state.seconds
    saved_at = time.perf_counter()
    for arguments in batches[state.step :]:
        rate = settings.lr * _factor(settings, state, len(batches))
        for group in optimizer.param_groups:
            group["lr"] = rate
        state.lr = rate
        batch = source.training_batch(arguments)
        scores, _ = model(batch.numbers, batch.codes, batch.lengths)
        loss, count = loss_sum(scores, batch.y, pre.target.task)
        optimizer.zero_grad(set_to_none=True)
        (loss / count.clamp(min=1)).backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        state.step += 1
        total, n = float(loss.detach()), int(count)
        if not math.isfinite(total):
            raise TrainingFailed(
                f"The loss became {total} in epoch {state.epoch + 1}, batch {state.step}. "
                "Try a smaller learning rate (lr, --lr) or stronger clipping (clip, --clip); the best epoch so far is kept."
            )
        state.loss += total
        state.targets += n
        progress.step(state.loss / max(state.targets, 1))
        state.seconds = time.perf_counter() - began
        late = time.perf_counter() - saved_at > CHECKPOINT_SECONDS
        if late or stopped.is_set():
            save_checkpoint(path, model, optimizer, _random_state(source), asdict(state))
            saved_at = time.perf_counter()
            if stopped.is_set():
                return False
    return True


def _close_epoch(
    model, pre, source, settings, state: State, validated: bool, folder: Path, progress, gate_log: GateLog | None
) -> None:
    """Validate, keep the weights if they are the best so far, print and record the epoch."""
    name, more_is_better = primary(pre.target, pre.horizon)
    row: dict[str, float] = {
        "epoch": state.epoch + 1,
        "lr": state.lr,
        "train_loss": state.loss / max(state.targets, 1),
    }
    began = time.perf_counter()
    if validated:
        outcome = run_model(model, pre, source, VALID)
        row["valid_loss"] = outcome.loss
        row |= {f"valid_{k}": v for k, v in judge(pre, source, VALID, outcome.values).summary.items()}
        figure = row[f"valid_{name}"]
        # The loss decides between equal scores: accuracies of small sets often tie.
        rank = [figure if more_is_better else -figure, -outcome.loss]
    else:
        rank = [float(state.epoch), 0.0]  # nothing to choose by: the last epoch is taken
    gates = gate_log.row(model) if gate_log else {}
    row["seconds"] = state.seconds + time.perf_counter() - began
    row |= gates
    better = not state.best or rank > state.best
    state.epoch += 1
    if better:
        state.best, state.best_epoch, state.rested = rank, state.epoch, 0
        save_model(model, folder / "model.safetensors")
    else:
        state.rested += 1
        if settings.schedule == "plateau" and state.rested >= max(2, (settings.patience or 30) // 5):
            state.factor, state.rested = state.factor / 2, 0
    state.history.append(row)
    state.step, state.loss, state.targets, state.seconds = 0, 0.0, 0, 0.0
    _write_history(folder / "metrics.csv", state.history)
    width = len(str(settings.epochs))
    text = f"epoch {state.epoch:>{width}}/{settings.epochs}  loss {row['train_loss']:.4f}"
    if validated:
        text += f"  valid loss {row['valid_loss']:.4f}  {name} {row['valid_' + name]:.4f}"
    progress.epoch(f"{text}  {row['seconds']:.1f} s{'  best so far' if better and validated else ''}")


def _factor(settings: CompleteSettings, state: State, batches: int) -> float:
    """The learning rate at this step, as a share of lr."""
    if settings.schedule == "cosine":
        done = (state.epoch + state.step / batches) / settings.epochs
        if done < WARM_UP:
            return (done + 1 / (batches * settings.epochs)) / (WARM_UP + 1 / (batches * settings.epochs))
        return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
    return state.factor


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, out.getvalue())


def read_history(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def _epoch_batches(source: BatchSource, settings: CompleteSettings, epoch: int) -> list[tuple[torch.Tensor, ...]]:
    rng = np.random.default_rng([settings.seed, 2, epoch])
    return source.training_batches(TRAIN, settings.batch_size, settings.window, rng)


def _mix(seed: int, epoch: int) -> int:
    """One number from two, so that seed 0, epoch 1 and seed 1, epoch 0 draw differently."""
    return int(np.random.SeedSequence([seed, 3, epoch]).generate_state(1, np.uint64)[0] >> 1)


def _random_state(source: BatchSource) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if source.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(source.device)
    return state


def _set_random_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _cuda(source: BatchSource) -> list[int]:
    return [source.device.index or 0] if source.device.type == "cuda" else []


@contextlib.contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one interrupts at once, as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only: whoever runs us elsewhere has their own way to stop
        return
    previous: dict[Any, Any] = {}

    def stop(number, frame):
        event.set()
        for one, handler in previous.items():
            signal.signal(one, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
