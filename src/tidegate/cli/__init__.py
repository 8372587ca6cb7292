"""The command line. Each command has a file of its own here; this one is their table of contents.

Only the command that runs is imported, so that `tidegate --help` answers without loading torch.
A command's file holds `app`, a `typer.Typer`; its function's docstring is its help text.
"""

from __future__ import annotations

import importlib
import sys

# name -> what it does, in one line; the file is tidegate/cli/NAME.py, but for those in FILES
COMMANDS = {
    "train": "Train a GRU on a table of sequences and write a run folder.",
    "prepare": "Arrange a table that is larger than memory on disk, for train.",
    "tune": "Search for settings: many trials, compared by their validation rows.",
    "evaluate": "Score a run on a table, beside the naive baselines.",
    "predict": "Add a run's predictions to the rows of a table.",
    "example": "List or write the real data sets that come with Tidegate.",
    "inspect": "Show what a run's gates do on a sequence of a table, step by step.",
    "stream": "Read rows from standard input as they come and answer each with a prediction.",
    "export": "Write a run for ONNX Runtime, Keras, PyTorch alone or a C compiler.",
    "diagram": "Print a Mermaid diagram of a GRU step or of a whole model.",
    "bench": "Time the GRU layer on this machine beside other programs' GRUs.",
    "doctor": "Say what is installed and which back end runs where.",
    "demo": "The whole tour on real data, in under two minutes.",
}
FILES = {"inspect": "inspection"}  # a file called inspect.py would hide Python's own from whoever runs it as a script


def main(argv: list[str] | None = None) -> int:
    """Run `tidegate ARGV` and return its exit status: 0 done, 1 failed, 2 a user's mistake, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    if debug:
        argv.remove("--debug")
    try:
        return _main(argv, debug)
    except KeyboardInterrupt:  # also while Python still loads what the command needs
        if debug:
            raise
        print("Interrupted.", file=sys.stderr)
        return 130


def _main(argv: list[str], debug: bool) -> int:
    try:
        from tidegate.cli._group import build
    except ModuleNotFoundError as error:
        print(
            f"Error: the command line needs {error.name!r}, which is not installed. "
            "Install it with: pip install 'tidegate[train]'",
            file=sys.stderr,
        )
        return 1
    return build(COMMANDS, lambda name: importlib.import_module(f"tidegate.cli.{FILES.get(name, name)}"))(argv, debug)
