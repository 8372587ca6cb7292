"""`tidegate example`: the real data sets that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="List or write the real data sets that come with Tidegate.", no_args_is_help=True, add_completion=False
)


@app.command("list")
def list_() -> None:
    """Show the data sets: name, rows, sequences, task and licence."""
    from rich.console import Console
    from rich.table import Table

    from tidegate import datasets

    head = ("name", "rows", "sequences", "task", "licence", "title")
    rows = [
        (d.name, f"{d.rows:,}", f"{d.sequences:,}", d.task, d.licence, d.title)
        for d in map(datasets.describe, datasets.names())
    ]
    console = Console()
    if console.is_terminal:
        table = Table()
        for name in head:
            table.add_column(name, justify="right" if name in ("rows", "sequences") else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print("Write one into a folder: [bold]tidegate example write NAME DIR[/bold]")
    else:  # plain lines for a pipe: no frame, no colours, nothing cut off at a terminal's width
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command("write")
def write(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `tidegate example list` shows.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write into; made if need be.")],
) -> None:
    """Write a data set into a folder: the table, a note on it, and its licence."""
    from tidegate import datasets

    paths = datasets.write(name, folder)
    dataset = datasets.describe(name)
    for path in paths:
        typer.echo(f"{path}  {path.stat().st_size:,} bytes")
    typer.echo(f"{dataset.title}: {dataset.rows:,} rows. {dataset.licence}. Credit and columns are in {paths[1].name}.")
    typer.echo(f"Next: {dataset.command(paths[0])}")
