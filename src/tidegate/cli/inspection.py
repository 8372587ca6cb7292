"""`tidegate inspect`: the gates of a run on a person's own data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidegate.model.cells import gated

if TYPE_CHECKING:
    from tidegate.run import Run

app = typer.Typer(add_completion=False)
_ELSE = "Also write"


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=f"Folder of a run with the cell {' or '.join(gated())}.")],
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="A table with the run's columns; the target may be absent.")
    ],
    sequence: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Which sequence: its group, or the number of its row where each row is one. Default: the first.",
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Show only the steps A to B, counted from 1. Default: all, thinned out where there are many.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The page to write. Default: gates.html (gradients.html with --gradients).",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_A",
            help="Another run to show on the left of RUN, on the same sequence: --compare RUN_A RUN_B TABLE.",
        ),
    ] = None,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients",
            help="Show how the gradient fades back through time in the GRU, and in an LSTM and a plain RNN of the same size, which are trained for it the first time.",
        ),
    ] = False,
    count_steps: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Count the units' statistics over so many steps of the table, in whole sequences evenly chosen. Default: 20,000.",
        ),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=_ELSE, help="The heat maps as a picture.")
    ] = None,
    json_: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            rich_help_panel=_ELSE,
            help="The numbers: inputs, predictions, what they lean on, units.",
        ),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_ELSE, help="Every gate: a row for each layer, step and unit."),
    ] = None,
) -> None:
    """Show what a run's gates do on a sequence of a table, step by step: one page for a browser, which needs no network.

    Example: tidegate inspect runs/sensors sensors.csv --sequence pump-7 -o gates.html
    """
    from tidegate.cli._runs import open_run
    from tidegate.errors import SettingsError

    page = out or Path("gradients.html" if gradients else "gates.html")
    _check(page, table, {"--png": png, "--json": json_, "--parquet": parquet})
    opened = open_run(run, table)
    if gradients:
        for name, value in {
            "--sequence": sequence,
            "--steps": steps,
            "--compare": compare,
            "--count-steps": count_steps,
        }.items():
            if value is not None:
                raise SettingsError(
                    f"{name} and --gradients don't go together: gradients are measured over many sequences. Leave one out."
                )
        from tidegate.inspection import measure_gradients

        _write(measure_gradients(opened, table), page, png, json_, parquet)
        return
    if compare is not None:
        for name, file in {"--png": png, "--json": json_, "--parquet": parquet}.items():
            if file is not None:
                raise SettingsError(
                    f"{name} holds the numbers of one run; with --compare there are two. Leave one of the options out."
                )
        from tidegate.inspection import write_page

        views = [_look(one, table, sequence, steps, count_steps) for one in (open_run(compare), opened)]
        write_page(page, views)
        for view in views:
            typer.echo(view)
        typer.echo(f"{page}: open it in a browser.")
        return
    _write(_look(opened, table, sequence, steps, count_steps), page, png, json_, parquet)


def _look(run: Run, table: str, sequence: str | None, steps: str | None, count_steps: str | None) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    from tidegate.errors import SettingsError

    counting: dict[str, int | None] = {}
    if count_steps is not None:
        if count_steps != "all" and not (count_steps.isdecimal() and int(count_steps) > 0):
            raise SettingsError(f"--count-steps {count_steps}: expected a number of steps, or all.")
        counting["most_counted"] = None if count_steps == "all" else int(count_steps)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("counting", total=1.0)
        return run.inspect(
            table,
            sequence,
            steps=steps,
            **counting,
            on_progress=lambda share: bar.update(task, completed=share),
        )


def _check(page: Path, table: str, others: dict[str, Path | None]) -> None:
    """Every file can be what its name says, and none is the table."""
    from tidegate.errors import SettingsError

    wanted = {"--out": ((".html", ".htm"), page), "--png": ((".png",), others["--png"]), "--json": ((".json",), others["--json"]),
              "--parquet": ((".parquet", ".pq"), others["--parquet"])}  # fmt: skip
    for name, (suffixes, file) in wanted.items():
        if file is None:
            continue
        if file.suffix.lower() not in suffixes:
            kind = {"--out": "a page; for others see --png, --json and --parquet"}.get(name, "a file of that kind")
            raise SettingsError(
                f"{name} {file}: expected a name that ends in {suffixes[0]}: this option writes {kind}."
            )
        try:
            same = file.exists() and Path(table).exists() and file.samefile(table)
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise SettingsError(f"{name} {file}: {error.strerror}. Choose another name.") from None
        if same:
            raise SettingsError(f"{name} {file} is the table itself. Write to another file.")


def _write(found: Any, page: Path, png: Path | None, json_: Path | None, parquet: Path | None) -> None:
    """An Inspection or a GradientFlow in every form that was asked for."""
    import json
    import warnings

    from tidegate.data.tables import write_table
    from tidegate.files import replacing, write_text

    found.write_html(page)
    if png is not None:
        with replacing(png) as temporary, warnings.catch_warnings(record=True) as told:
            warnings.filterwarnings("always", "Glyph .* missing")
            found.plot().savefig(temporary, format="png", dpi=110)
        if any("Glyph" in str(warning.message) for warning in told):
            typer.echo(
                f"Warning: {png}: no font here has all of its letters. Install one that has them (Debian: fonts-noto-cjk).",
                err=True,
            )
    if json_ is not None:
        write_text(json_, json.dumps(found.to_dict(), ensure_ascii=False) + "\n")
    if parquet is not None:
        write_table(found.to_frame(), parquet)
    typer.echo(found)
    written = ", ".join(str(file) for file in (png, json_, parquet) if file is not None)
    typer.echo(f"{page}: open it in a browser.{f' Also written: {written}.' if written else ''}")
