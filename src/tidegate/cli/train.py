"""`tidegate train`: its options are the fields of TrainSettings and RepeatSettings, so that no list of them exists twice."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tidegate.cli._workers import Workers, shared_out
from tidegate.trained.settings import RepeatSettings, TrainSettings

app = typer.Typer(add_completion=False)
# Column names may repeat an option (--target a --target b); everything else is one value.
_RUN = "The run"


def _command(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="TABLE",
            help="CSV, Parquet, JSON lines or Arrow file; a folder of such files, or a pattern ('data/*.parquet'); or a store of tidegate prepare.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. Default: runs/NAME, after the name of the table.", rich_help_panel=_RUN),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with these settings. Options take precedence.", rich_help_panel=_RUN)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, or named in place of TABLE, where it stopped. With larger --epochs or --patience, a finished run goes on, too.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in --out.", rich_help_panel=_RUN)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=_RUN)] = False,
    workers: Workers = None,
    **settings: Any,
) -> None:
    """Train a GRU on a table of sequences and write a run folder with a report.

    Example: tidegate train sensors.csv --target label --group device --time t
    """
    from tidegate.cli._threads import within_the_quota
    from tidegate.run import train

    within_the_quota()
    given = {name: value for name, value in settings.items() if value is not None and value != []}
    with shared_out(workers):
        train(table, out=out, config=config, resume=resume, overwrite=overwrite, progress=not quiet, **given)


def _option_type(annotation: Any) -> tuple[Any, list[str], str | None]:
    """What typer is to parse for a field: its type, extra names for a flag, and the metavar."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _option_type(get_args(annotation)[0])
    if origin in (Union, UnionType):
        inner = [a for a in get_args(annotation) if a is not NoneType]
        return _option_type(inner[0])
    if origin is tuple:
        return list[str], [], "COLUMN"
    if origin is Literal:
        return str, [], "[" + "|".join(get_args(annotation)) + "]"
    return annotation, [], None


def with_settings(function: Any, settings: Mapping[str, FieldInfo]) -> Any:
    """Give `function` an option for each of these fields of settings in place of its **settings."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for name, field in settings.items():
        kind, _, metavar = _option_type(field.annotation)
        flag = "--" + name.replace("_", "-")
        default = field.default
        shown = ",".join(f"{d:g}" for d in default) if isinstance(default, tuple) and default else default
        help_ = field.description or ""
        if shown not in (None, (), False, ""):
            help_ += f" (default: {shown})"
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        names = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
        if extra["option"]:
            names.insert(0, f"--{extra['option']}")
        option = typer.Option(
            *names,
            help=help_,
            metavar=str(extra["metavar"]) or metavar,
            rich_help_panel=str(extra["panel"]),
            show_default=False,
        )
        optional = kind | None
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[optional, option]
            )
        )

    def command(**given: Any) -> None:
        function(**given)

    command.__doc__ = function.__doc__
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


app.command()(with_settings(_command, TrainSettings.model_fields | RepeatSettings.model_fields))
