"""`tidegate predict`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.cli._runs import Weights
from tidegate.cli._workers import Workers, shared_out

app = typer.Typer(add_completion=False)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="A table with the run's columns; the target may be absent.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="File to write: its suffix says CSV, Parquet, JSON lines or Arrow."
        ),
    ],
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add a column p_CLASS for each class or label.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences at a time; never changes the result.")
    ] = None,
    weights: Weights = None,
    workers: Workers = None,
) -> None:
    """Write the table's rows with a run's `prediction` added."""
    from tidegate.cli._runs import open_run
    from tidegate.data.tables import SUFFIXES, unknown_suffix, write_table
    from tidegate.data.texts import listed
    from tidegate.errors import DataError

    if out.suffix.lower() not in SUFFIXES:
        raise unknown_suffix(out)
    if out.exists() and Path(table).exists() and out.samefile(table):
        raise DataError(f"{out} is the table itself. Write the predictions to another file.")
    with shared_out(workers) as leads:
        frame = open_run(run, table, weights=weights).predict(table, probabilities=probabilities, batch_size=batch_size)
        if leads:
            write_table(frame, out)
    if leads:
        typer.echo(
            f"{out}: {frame.height:,} rows with {listed([c for c in frame.columns if c.startswith('prediction')])}."
        )
