"""More epochs for a training that has begun or ended: what may change on `resume`, and what that means for its bits."""

from __future__ import annotations

from pathlib import Path

from tidegate.errors import RunError, SettingsError
from tidegate.trained import Resolved, TrainSettings
from tidegate.trained.folder import CONFIG, read_history
from tidegate.trained.repeats import holds_repeats
from tidegate.trained.settings import CompleteSettings
from tidegate.training.journal import CHECKPOINTS, LAST
from tidegate.training.loop import State, factor, rests
from tidegate.training.resolve import patience_for

GROW = ("epochs", "patience")  # what may change beside threads, which `trainer` looks at, and where the rows lie


def check_changes(chosen: TrainSettings, asked: TrainSettings, resolved: Resolved) -> None:
    """Raises SettingsError where a setting that can't change was given, or where epochs or patience would shrink."""
    changed = [name for name in TrainSettings.model_fields if getattr(asked, name) != getattr(chosen, name)]
    for name in changed:
        if name not in ("threads", "memory", "store", *GROW):
            raise SettingsError(
                f"{name} can't change on resume (the run began with {getattr(chosen, name)!r}). Leave it out, or start a new run."
            )
    epochs = resolved.epochs if asked.epochs is None else asked.epochs
    if epochs < resolved.epochs:
        done = "" if resolved.epochs_run is None else f" ({resolved.epochs_run} are done)"
        raise SettingsError(
            f"epochs={epochs}, but the run was to have {resolved.epochs}{done}. Say more, or start a new run with fewer."
        )
    patience = patience_for(asked.patience, epochs)
    if 0 < patience < (resolved.patience or float("inf")):
        raise SettingsError(
            f"patience={patience}, but the run began with {resolved.patience}{'' if resolved.patience else ' (never stop)'}. On resume it can "
            "only grow; start a new run for a smaller one."
        )


def check_finished(folder: Path, asked: TrainSettings, resolved: Resolved) -> None:
    """Raises RunError where a finished run has nothing to go on with under these settings, or nothing to go on from."""
    epochs = resolved.epochs if asked.epochs is None else asked.epochs
    patience = patience_for(asked.patience, epochs)
    if (epochs, patience) == (resolved.epochs, resolved.patience):
        raise RunError(
            f"{folder} is finished; there is nothing to resume. For more epochs on the same table say how many in all, above "
            f"{resolved.epochs} (--epochs){_stopped(resolved)}; on another table start from its weights (--from). For a new run choose "
            "another folder or overwrite it."
        )
    done, best = resolved.epochs_run or 0, resolved.best_epoch or 0
    if not (folder / CHECKPOINTS / LAST).is_file():
        raise RunError(
            f"{folder} has no {CHECKPOINTS}/{LAST}, without which it can't go on as if it had not ended: it was removed, or the run was "
            f"saved from memory. To begin anew with its weights: tidegate train TABLE --from {folder}"
        )
    if patience and resolved.chosen_by and done - best >= patience:
        raise RunError(
            f"{folder} stopped after epoch {done}, as {patience} epochs were no better than epoch {best}, and would stop there with "
            f"epochs={epochs} too. Say a larger patience as well, or 0 for never (--patience 0)."
        )
    if done >= epochs:
        raise RunError(f"{folder} has done all of its {done} epochs. Say how many there are to be in all (--epochs).")


def check_alone(folder: Path, asked: TrainSettings, resolved: Resolved) -> None:
    """Raises RunError where one of several runs would get other epochs than the others, whose report has the figures of all."""
    now = (asked.epochs or resolved.epochs, patience_for(asked.patience, asked.epochs or resolved.epochs))
    if now != (resolved.epochs, resolved.patience) and holds_repeats(folder.resolve().parent):
        raise RunError(
            f"{folder} is one of several runs, and the report of {folder.resolve().parent} has the figures of all: it can't have more epochs "
            f"than the others. Train it alone in a folder of its own: tidegate train --config {folder / CONFIG} --epochs {now[0]} --out NEW"
        )


def _stopped(resolved: Resolved) -> str:
    done = resolved.epochs_run or 0
    return (
        f", or a patience above {resolved.patience} (--patience), as it stopped after epoch {done}"
        if done < resolved.epochs
        else ""
    )


def told(folder: Path, resolved: Resolved, before: CompleteSettings, now: CompleteSettings) -> str:
    """Whether the training that goes on is the one that these settings would have made from the start, to the bit.

    before, now: the settings of the run so far and from here on.
    """
    done = int(history[-1]["epoch"]) if (history := read_history(folder)) else 0
    within = not resolved.finished and (folder / CHECKPOINTS / LAST).is_file()  # perhaps in its first epoch
    text = f"Goes on after epoch {done}, to {now.epochs} at most"
    if (done or within) and now.schedule == "cosine" and now.epochs != before.epochs:
        share = factor(now, State(epoch=done), 1)
        return (
            f"{text}. The cosine schedule is that of {now.epochs} epochs from here on: the learning rate goes on at {now.lr * share:.2g} "
            f"({share:.0%} of lr). One training of {now.epochs} epochs would have had other learning rates before, so its weights would differ."
        )
    if done and now.schedule == "plateau" and rests(now) != rests(before):
        return (
            f"{text}. From here on the learning rate is halved after {rests(now)} epochs that were no better, before after {rests(before)}, as "
            "that follows the patience. The weights of one training would differ."
        )
    return f"{text}, to the bit as if that had been asked for from the start."


def complete_of(settings: TrainSettings, resolved: Resolved) -> CompleteSettings:
    """The settings of a run as it worked them out, with the epochs and the patience that `settings` say."""
    epochs = resolved.epochs if settings.epochs is None else settings.epochs
    found = {
        "window": resolved.window,
        "batch_size": resolved.batch_size,
        "epochs": epochs,
        "patience": patience_for(settings.patience, epochs),
    }
    return CompleteSettings(**(settings.model_dump() | found))
