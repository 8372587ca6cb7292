"""How a command opens the run that it was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tidegate.run import Run

Weights = Annotated[
    str | None,
    typer.Option(
        metavar="[int8|bf16]",
        help="Run with the core's weights rounded to 8 bits or to bfloat16: less memory and time; says what it costs.",
    ),
]
"""The option --weights of the commands that run a run."""


def open_run(folder: Path, table: str | None = None, *, weights: str | None = None, costs: bool = True) -> Run:
    """The run, with a note on standard error where its training isn't finished; and the threads that it may take.

    weights: what --weights says; where that is something, costs: what it costs goes to standard error. table: the
    argument after the run, where the command has one. Raises SettingsError where the two were swapped.
    """
    from tidegate.cli._threads import within_the_quota
    from tidegate.errors import SettingsError
    from tidegate.run import Ensemble, QuantisedRun, load
    from tidegate.trained.folder import CONFIG, REPEATS
    from tidegate.trained.trained import unfinished

    if table is not None and not folder.is_dir() and any((Path(table) / name).is_file() for name in (CONFIG, REPEATS)):
        raise SettingsError(f"{table} is the run and {folder} the table: name the run first, {table} {folder}.")
    run = load(folder)
    within_the_quota()
    if not run.resolved.finished:
        typer.echo(unfinished(run), err=True)
    if weights is None:
        return run
    run = run.quantized(weights)
    if costs:
        members = run.members if isinstance(run, Ensemble) else [run]
        for member in members:
            assert isinstance(member, QuantisedRun)
            typer.echo(f"{member.name}: {member.cost()}" if len(members) > 1 else str(member.cost()), err=True)
    return run
