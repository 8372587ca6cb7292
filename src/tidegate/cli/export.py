"""`tidegate export`: a run for another program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tidegate.export import TARGETS

app = typer.Typer(add_completion=False)
_C, _ONNX = "With --to c", "With --to onnx"


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run with the cell gru.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar=f"[{'|'.join(TARGETS)}]",
            help=" ".join(f"{name}: {target.line}." for name, target in TARGETS.items()),
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help=f"File to write: {', '.join(target.suffix for target in TARGETS.values())}. Default: the name of the run's folder, here.",
        ),
    ] = None,
    codes: Annotated[
        bool,
        typer.Option(
            "--codes",
            rich_help_panel=_ONNX,
            help="Take words and categories, and give classes, as their numbers in a JSON file beside it: for programs that know no text, such as OpenVINO.",
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            rich_help_panel=_C,
            help="Store weights as 8-bit numbers, a scale a row, a quarter of the size; says what that costs in accuracy.",
        ),
    ] = False,
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            metavar="TABLE",
            rich_help_panel=_C,
            help="With --int8: the table whose test rows tell the accuracy. Default: the one of the training, where it still lies.",
        ),
    ] = None,
) -> None:
    """Write a run for a program without Tidegate, with the same numbers.

    Example: tidegate export runs/sensors --to onnx -o sensors.onnx
    """
    from tidegate.cli._runs import open_run

    options: dict[str, Any] = {}
    if codes:
        options["codes"] = True
    if int8:
        options["int8"] = True
    if table is not None:
        options["table"] = table
    typer.echo(open_run(run).export(to, out, **options))
