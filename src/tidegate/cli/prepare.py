"""`tidegate prepare`: its options are the fields of PrepareSettings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tidegate.cli.train import with_settings
from tidegate.trained.settings import PrepareSettings

app = typer.Typer(add_completion=False)
_STORE = "The store"


def _command(
    tables: Annotated[
        str,
        typer.Argument(
            metavar="TABLES",
            help="A folder of Parquet, Arrow or CSV files, a pattern ('data/*.parquet') or a file: one table, in the order of the names.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="STORE", help="Folder to make.", rich_help_panel=_STORE)],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the store that is there.", rich_help_panel=_STORE)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=_STORE)] = False,
    **settings: Any,
) -> None:
    """Arrange a table that is larger than memory on disk, for tidegate train.

    Example: tidegate prepare 'data/*.parquet' -o data.store --target label --group device --time t
    """
    from tidegate.training.prepared import prepare

    given = {name: value for name, value in settings.items() if value is not None and value != []}
    prepare(tables, out, overwrite=overwrite, progress=not quiet, **given)


app.command()(with_settings(_command, PrepareSettings.model_fields))
