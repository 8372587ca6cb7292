"""`tidegate evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tidegate.cli._runs import Weights
from tidegate.cli._workers import Workers, shared_out

app = typer.Typer(add_completion=False)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table with the run's columns, the target included.")],
    rows: Annotated[
        str,
        typer.Option(
            metavar="[auto|all|train|valid|test]",
            help="Which rows to score. auto: test where the table has the run's split column or is the one it was trained on, else all.",
        ),
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences at a time; never changes the figures.")
    ] = None,
    weights: Weights = None,
    workers: Workers = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Score a run on a table, beside the naive baselines on the same rows."""
    from tidegate.cli._runs import open_run

    with shared_out(workers) as leads:
        result = open_run(run, table, weights=weights, costs=False).evaluate(table, rows=rows, batch_size=batch_size)
    if not leads:
        return
    if json_:
        import json

        from tidegate.pages import jsonable

        typer.echo(json.dumps(jsonable(result.to_dict()), indent=1))
    else:
        typer.echo(str(result))
