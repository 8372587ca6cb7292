"""How `tidegate` finds its commands, and how an error becomes a sentence and an exit status."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tidegate.cli._threads import put_back
from tidegate.errors import BackendWarning, DataWarning, Interrupted, TidegateError, UserError

running: list[str] = []
"""The arguments of the command that runs: those of the workers it starts."""
HELP = "Gated recurrent units (GRU): from a table of sequences to a trained model."
EPILOG = "Every command has its own --help. --debug, anywhere, shows the traceback of an error."


def build(commands: dict[str, str], load: Callable[[str], ModuleType]) -> Callable[[list[str], bool], int]:
    """A function that runs a command line and returns its exit status."""

    class Commands(TyperGroup):
        """Knows each command by its name and one line; imports the file of the one that is run."""

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            name, stub, rest = super().resolve_command(ctx, args)
            if name is None or stub is None:
                return name, stub, rest
            real = typer.main.get_command(load(name).app)
            real.name = name
            return name, real, rest

        # Ctrl-C while the arguments are read, which loads a good deal, and while the command runs: typer would end without a word.
        def make_context(self, *args: Any, **kwargs: Any) -> Any:
            with _interruptible():
                return super().make_context(*args, **kwargs)

        def invoke(self, ctx: Any) -> Any:
            with _interruptible():
                return super().invoke(ctx)

    app = typer.Typer(
        cls=Commands,
        help=HELP,
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, line in commands.items():
        app.command(name, help=line)(_stub)
    group = typer.main.get_command(app)

    def run(argv: list[str], debug: bool) -> int:
        running[:] = argv + (["--debug"] if debug else [])
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                group.main(args=argv, prog_name="tidegate", standalone_mode=True)
        except SystemExit as exit_:
            return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except UserError as error:
            return _say(error, 2, debug)
        except TidegateError as error:
            interrupted = isinstance(error, Interrupted)
            return _say(error, 130 if interrupted else 1, debug, "" if interrupted else "Error: ")
        except Exception as error:
            if debug:
                raise
            print(
                f"Error: {type(error).__name__}: {error}\nThis should not happen. Repeat the command with --debug to see where.",
                file=sys.stderr,
            )
            return 1
        finally:
            put_back()
        return 0

    return run


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("Interrupted.") from None


def _say(error: TidegateError, status: int, debug: bool, prefix: str = "Error: ") -> int:
    if debug:
        raise error
    print(f"{prefix}{error}", file=sys.stderr)
    return status


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings speak of a table or of this installation, not of a line of code."""
    if issubclass(category, DataWarning | BackendWarning):
        print(f"Warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)


def _show_version(value: bool) -> None:
    if value:
        from tidegate import __version__

        typer.echo(f"tidegate {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    pass


def _stub() -> None:
    """Stands in the list of commands; the real one is loaded when it runs."""
