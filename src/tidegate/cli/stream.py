"""`tidegate stream`: rows from standard input, a prediction for each as it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.cli._runs import Weights

app = typer.Typer(add_completion=False)
_STATE, _TIME = "The state", "Late rows"


@app.command()
def stream(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that reads forwards in time.")],
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="COLUMN",
            help="Column(s) that say whose row it is, as a list (a,b) or one by one: each device, user or session has a state of its own. Default: the run's group columns, where the first row has them; else all rows are one sequence.",
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Answers hold a p_CLASS for each class or label.")
    ] = False,
    only_last: Annotated[
        bool,
        typer.Option("--only-last", help="One answer a key, its last, when the input ends or the key is forgotten."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first bad row instead of answering it with its error.")
    ] = False,
    weights: Weights = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            rich_help_panel=_TIME,
            help="Column that says when a row happened, a number or a date such as 2026-11-23 14:05:00. A row whose time is not after the last one of its key is late or repeated; answers hold the line and the time of their row.",
        ),
    ] = None,
    date_order: Annotated[
        str,
        typer.Option(
            metavar="[auto|dmy|mdy]",
            rich_help_panel=_TIME,
            help="How times such as 01/02/2026 are read: dmy has the day first, mdy the month. auto: as in the training.",
        ),
    ] = "auto",
    late: Annotated[
        str,
        typer.Option(
            metavar="[error|take]",
            rich_help_panel=_TIME,
            help="What becomes of such a row: an error, and the state stays as it was; or take it all the same.",
        ),
    ] = "error",
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            rich_help_panel=_STATE,
            help="Take up the states in FILE, if it is there, and keep them in it. Given the same input again, goes on after the rows it has taken in.",
        ),
    ] = None,
    save_every: Annotated[
        int,
        typer.Option("--save-every", metavar="N", min=1, rich_help_panel=_STATE, help="Keep the states every N rows."),
    ] = 1000,
    new_rows: Annotated[
        bool,
        typer.Option(
            "--new-rows",
            rich_help_panel=_STATE,
            help="The input holds the rows after those that FILE has taken in, not the same ones again.",
        ),
    ] = False,
    max_keys: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, rich_help_panel=_STATE, help="Forget the key not heard of for longest beyond N keys."
        ),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", rich_help_panel=_STATE, help="Forget keys not heard of for so long."),
    ] = None,
) -> None:
    """Read rows from standard input as they come, CSV with a header or JSON lines, and answer each with a line of JSON.

    A bad row is answered with its error, and changes no state.

    Example: tail -n +1 -f sensors.csv | tidegate stream runs/sensors --key device --state sensors.state
    """
    import os
    import sys

    from tidegate.cli._runs import open_run
    from tidegate.data.lines import RowLines
    from tidegate.data.texts import listed
    from tidegate.errors import Interrupted, SettingsError
    from tidegate.streaming.answers import Answers

    if new_rows and state is None:
        raise SettingsError("--new-rows says how to go on from --state FILE. Name the file, or leave --new-rows out.")
    opened = open_run(run, weights=weights)
    pre = opened.preprocessing
    lines = RowLines(sys.stdin.buffer, pre, key=key, group=pre.group, time=time, **opened.settings.reading)
    answers = Answers(
        opened,
        lines,
        sys.stdout.buffer,
        state=state,
        save_every=save_every,
        new_rows=new_rows,
        only_last=only_last,
        strict=strict,
        probabilities=probabilities,
        time=time,
        date_order=date_order,
        late=late,
        max_keys=max_keys,
        ttl=ttl,
    )
    if sys.stdin.isatty():
        columns = listed(answers.stream.columns)
        typer.echo(
            f"Reading rows from the terminal: a CSV header with {columns}, or a JSON object a line; Ctrl-D ends.",
            err=True,
        )
    try:
        counts = answers.all()
    except BrokenPipeError:
        # Whoever read the answers is gone: end as other programs in a pipe do. The file holds the last save.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    told = f"{counts.rows:,} row{'s' * (counts.rows != 1)}"
    if counts.skipped:
        told += f" after the {counts.skipped:,} that {state} had taken in"
    if counts.bad:
        told += f", {counts.bad:,} of them bad"
    if counts.late:
        told += f" ({counts.late:,} late or repeated)"
    keys = len(answers.stream)
    told += f"; {keys:,} key{'s' * (keys != 1)}." if lines.key else "."
    if counts.stopped:
        raise Interrupted(f"Stopped: {told}" + (f" {state} holds the states." if state else ""))
    typer.echo(told, err=True)
