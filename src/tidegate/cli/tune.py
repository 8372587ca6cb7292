"""`tidegate tune`: what is searched, and every setting of a training that may be fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tidegate.cli.train import with_settings
from tidegate.trained.settings import TrainSettings

app = typer.Typer(add_completion=False)
_SEARCH = "The search"
# A trial begins anew, without a baseline and without a log.
_NOT_HERE = {"from_run", "freeze", "baselines", "log_gates"}


def _command(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="TABLE", help="CSV, Parquet, JSON lines or Arrow file. A study that is there knows its own."
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where the trials are kept: a file, or a database (sqlite:///FILE, postgresql://...). If it is there, the search goes on. Several processes and machines may share it.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            help="How many trials there are to be in the study in all, finished or pruned, by all processes together. (default: 30)",
            rich_help_panel=_SEARCH,
            show_default=False,
        ),
    ] = None,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Stop after this time: 2h, 90m, 1h30m.", rich_help_panel=_SEARCH),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="What is searched in place of the default space: hidden_size=32..256, lr=0.001..0.02:log, reset=after,before. May be repeated; --search default keeps the default space beside.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    study_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Name of the study in a database. (default: tidegate)", rich_help_panel=_SEARCH
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with settings, and search, trials, study, time_limit. Options take precedence.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="Train nothing: write the report of the study as it stands.", rich_help_panel=_SEARCH
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Folder of the report. Default: beside the file of the study.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.", rich_help_panel=_SEARCH)] = False,
    **settings: Any,
) -> None:
    """Search for settings with Optuna: many trainings, compared by their validation rows. Test rows are not looked at.

    The options below fix a setting; those that are left out and in the space are searched.

    Example: tidegate tune sensors.csv --target label --group device --time t --trials 30 --study tune.study
    """
    from tidegate.errors import SettingsError

    given = {name: value for name, value in settings.items() if value is not None and value != []}
    if report:
        _report(study, study_name, out, [*(["TABLE"] if table else []), *given], quiet)
        return
    if study is None and config is None:
        raise SettingsError("No study: name the file in which the trials are kept, such as --study tune.study.")
    from tidegate.cli._threads import within_the_quota
    from tidegate.tuning import tune

    within_the_quota()
    tune(
        table,
        study=study,
        trials=trials,
        time_limit=time_limit,
        search=search or None,
        study_name=study_name,
        config=config,
        report=out,
        progress=not quiet,
        **given,
    )


def _report(study: str | None, study_name: str | None, out: Path | None, given: list[str], quiet: bool) -> None:
    from tidegate.errors import SettingsError
    from tidegate.tuning import open_study, write_report

    if study is None:
        raise SettingsError("--report needs the study: --study FILE.")
    if given:
        raise SettingsError(
            f"--report trains nothing, so it takes no {given[0]}. Name the study alone: --report --study {study}"
        )
    tuned = open_study(study, study_name)
    page = write_report(tuned, out)
    if not quiet:
        typer.echo(f"{tuned}\n\nReport: {page}")


app.command()(with_settings(_command, {k: v for k, v in TrainSettings.model_fields.items() if k not in _NOT_HERE}))
