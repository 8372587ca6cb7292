"""`tidegate diagram`: a GRU step or a whole model as a Mermaid diagram."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from tidegate.gates.diagram import ModelShape, StepValues
    from tidegate.gates.gates import Equations
    from tidegate.run import Run

app = typer.Typer(add_completion=False)


@app.command()
def diagram(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder; its sizes are drawn.")] = None,
    kind: Annotated[
        Literal["sequence", "flow"],
        typer.Option(help="sequence: one step inside a GRU layer. flow: from the columns to the prediction."),
    ] = "sequence",
    input_size: Annotated[int | None, typer.Option(min=1, help="Features a step; 10 if not given.")] = None,
    hidden_size: Annotated[int | None, typer.Option(min=1, help="Hidden units; 20 if not given.")] = None,
    num_layers: Annotated[int | None, typer.Option(min=1, help="Layers; 1 if not given.")] = None,
    bidirectional: Annotated[bool | None, typer.Option("--bidirectional", help="Read in both directions.")] = None,
    output_size: Annotated[int | None, typer.Option(min=1, help="Class scores or values; 2 if not given.")] = None,
    per: Annotated[
        Literal["step", "sequence"] | None,
        typer.Option(help="Predict for each step or once a sequence; step if not given."),
    ] = None,
    reset: Annotated[
        Literal["after", "before"] | None,
        typer.Option(
            help="Where the reset gate multiplies: after the matrix product (torch, Keras; the default) or before."
        ),
    ] = None,
    values: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="STEP", help="Put in the numbers of this step (from 1) of a real sequence; needs RUN."
        ),
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="With --values: the table to take it from. Default: the one RUN was trained on.")
    ] = None,
    sequence: Annotated[
        str | None, typer.Option(metavar="ID", help="With --values: which sequence. Default: the first.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="With --values: the layer and direction: l0, l0_reverse, l1 ... Default: l0.")
    ] = None,
    unit: Annotated[
        int | None,
        typer.Option(min=0, help="With --values: the unit, from 0. Default: the one that remembers longest."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write to this file instead of printing; in .md it is a fenced block."),
    ] = None,
) -> None:
    """Print a Mermaid diagram of a GRU step or of a whole model, from a run or from sizes given as options.

    GitHub, GitLab and many editors draw it where it stands in a block fenced as mermaid.
    """
    from dataclasses import replace

    from tidegate.errors import SettingsError
    from tidegate.gates.diagram import Column, ModelShape, flow_diagram, sequence_diagram
    from tidegate.gates.gates import Equations

    sizes = {
        "input-size": input_size,
        "hidden-size": hidden_size,
        "num-layers": num_layers,
        "bidirectional": bidirectional,
        "output-size": output_size,
        "per": per,
        "reset": reset,
    }
    given = [f"--{name}" for name, value in sizes.items() if value is not None]
    opened = None
    if run is not None:
        if given:
            raise SettingsError(
                f"{', '.join(given)}: the sizes come from the run {run}; leave out the one or the other."
            )
        from tidegate.run import load

        opened = load(run)
        shape = shape_of(opened)
    else:
        shape = ModelShape(
            inputs=(Column("x", "input", input_size or 10),),
            outputs=(Column("prediction", "scores", output_size or 2),),
            hidden_size=hidden_size or 20,
            num_layers=num_layers or 1,
            bidirectional=bool(bidirectional),
            per=per or "step",
        )
    chosen = None
    if values is not None:
        if opened is None or kind == "flow":
            raise SettingsError(
                "--values shows a step of a run's layer: name the run folder, and leave --kind flow out."
            )
        if not (layer or "l0").startswith("l0"):  # its input is the output of the layer below
            shape = replace(shape, inputs=(Column("layer below", "", shape.hidden_size * (1 + shape.bidirectional)),))
        chosen = _step_values(opened, table, sequence, values, layer or "l0", unit)
    elif any(value is not None for value in (table, sequence, layer, unit)):
        raise SettingsError(
            "--table, --sequence, --layer and --unit say where the numbers of --values STEP come from. Add it, or leave them out."
        )
    if kind == "flow":
        text = flow_diagram(shape)
    else:
        equations = _equations(opened) if opened is not None else Equations(reset=reset or "after")
        text = sequence_diagram(
            shape.input_size,
            shape.hidden_size,
            shape.num_layers,
            shape.bidirectional,
            equations.reset,
            chosen,
            layer_norm=equations.layer_norm,
            zoneout=equations.zoneout,
        )
    if out is None:
        typer.echo(text, nl=False)
        return
    from tidegate.files import write_text

    write_text(out, f"```mermaid\n{text}```\n" if out.suffix.lower() in (".md", ".markdown") else text)
    typer.echo(f"Wrote {out}")


def _step_values(
    run: Run, table: str | None, sequence: str | None, step: int, layer: str, unit: int | None
) -> StepValues:
    from tidegate.errors import SettingsError

    if table is None and run.source is None:
        raise SettingsError(f"{run.name} was trained on a table in memory: name one with --table.")
    found = run.inspect(table or run.source, sequence, steps=(step, step))
    return found.step_values(step, layer, unit)


def _equations(run: Run) -> Equations:
    """Those of the run's core. Raises SettingsError where it has no gates."""
    from tidegate.errors import SettingsError
    from tidegate.model.cells import CELLS

    cell = run.model.spec.cell
    if not CELLS[cell].gates:
        raise SettingsError(
            f"The sequence diagram shows a GRU step; the cell of {run.name} is {cell!r}. Use --kind flow."
        )
    core: Any = run.model.core
    equations: Equations = core.equations
    return equations


def shape_of(run: Run) -> ModelShape:
    """The sizes of a run's model, with the names of its columns."""
    from tidegate.gates.diagram import Column, ModelShape
    from tidegate.model.cells import CELLS
    from tidegate.model.tasks import TASKS

    preprocessing, spec = run.preprocessing, run.model.spec
    numbers = [Column(c.name, "number and mask" if c.mask else "number", 1 + c.mask) for c in preprocessing.numbers]
    tokens = [
        Column(c.label, f"{c.kind}, {c.size:,} entries", dim)
        for c, dim in zip(preprocessing.tokens, spec.embedding_dims, strict=True)
    ]
    target = preprocessing.target
    task = TASKS[target.task]
    width = task.column_width(target)
    return ModelShape(
        inputs=(*numbers, *tokens),
        outputs=tuple(Column(name, task.kind, width) for name in target.names),
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        bidirectional=spec.bidirectional,
        cell=spec.cell,
        per=spec.per,
        pooling=spec.pooling,
        horizon=spec.horizon,
        residual=spec.residual is not None,
        title=CELLS[spec.cell].title,
        layer_parameters=tuple(
            sum(p.numel() for name, p in run.model.named_parameters() if name.endswith(f"_l{k}"))
            for k in range(spec.num_layers)
        ),
    )
