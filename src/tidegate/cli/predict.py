"""`tidegate predict`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.cli._runs import Weights
from tidegate.cli._workers import Workers, shared_out

app = typer.Typer(add_completion=False)
_SCALE = "More rows than memory"


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="A table with the run's columns; the target may be absent. A folder or a pattern ('in/*.parquet') is one table, too.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|FOLDER/",
            help="File to write: its suffix says CSV, Parquet, JSON lines or Arrow. Or a folder (it is there, its name ends in /, or it has no suffix and there are several tables): files of at most 1,048,576 rows, of the kind of the tables, in the order of the rows.",
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
    part: Annotated[
        str | None,
        typer.Option(
            "--part",
            metavar="I/N",
            help="Predict the part I of N of the sequences, counted from 1, into a folder that all parts share.",
            rich_help_panel=_SCALE,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="The most memory that the process may take, such as 2GB: by default four fifths of what the machine, or its container, has. A table that needs more is read and predicted by the piece.",
            rich_help_panel=_SCALE,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Begin anew in a folder that has predictions. Without it, whole files of the same run and tables are kept.",
            rich_help_panel=_SCALE,
        ),
    ] = False,
) -> None:
    """Write the table's rows with a run's `prediction` added."""
    from tidegate.cli._runs import open_run
    from tidegate.training.progress import Printed, Silent

    with shared_out(workers) as leads:
        written = open_run(run, table, weights=weights)._predict_to(
            table,
            out,
            part=part,
            memory=memory,
            probabilities=probabilities,
            batch_size=batch_size,
            weights=None,
            overwrite=overwrite,
            progress=Printed() if leads else Silent(),
        )
    if leads:
        typer.echo(written)
