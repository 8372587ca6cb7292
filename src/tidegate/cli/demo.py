"""`tidegate demo`"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)
SENTENCE = "play a song by nina simone on spotify"
# Fewer epochs than the defaults, so that the tour ends within two minutes on two cores.
RECIPE: dict[str, Any] = {"target": "slots", "features": "words", "split": "split", "epochs": 8}


@app.command()
def demo(
    sentence: Annotated[
        str | None, typer.Argument(metavar="[SENTENCE]", help="A command to label, such as 'book a table for two'.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the data and the run.")] = Path("tidegate-demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training sentences.")] = RECIPE["epochs"],
    seed: Annotated[int, typer.Option(min=0, help="Repeats the tour exactly.")] = 0,
) -> None:
    """The whole tour on real data: a GRU learns to mark the slots in spoken commands (SNIPS, a label a word).

    Trains, scores the model beside the baselines, and labels your own sentence. Under two minutes; nothing is fetched.
    """
    began = time.perf_counter()
    from tidegate import datasets, load, train
    from tidegate.cli._threads import within_the_quota

    run_folder = out / "run"
    paths = datasets.write("snips", out)
    frame = datasets.read("snips")
    typer.echo(
        f"1. The data: {frame.height:,} spoken commands in {paths[0]}, a label for every word (CC0, Sonos). One of them:\n"
    )
    first = frame.row(0, named=True)
    typer.echo(_marked(first["words"], first["slots"]))

    options = " ".join(f"--{k} {v}" for k, v in (RECIPE | {"epochs": epochs}).items())
    typer.echo(
        f"\n2. Train. The command for it:\n\n   tidegate train {paths[0]} {options} --seed {seed} --out {run_folder}\n"
    )
    within_the_quota()
    train(paths[0], out=run_folder, overwrite=run_folder.exists(), seed=seed, **(RECIPE | {"epochs": epochs}))

    typer.echo("\n3. Use it. The words of a sentence, each with the slot that the model gives it:\n")
    run = load(run_folder)
    interactive = sentence is None and sys.stdin.isatty() and sys.stdout.isatty()
    _label(run, sentence or SENTENCE)
    typer.echo(f"\nThe tour took {time.perf_counter() - began:.0f} s.")
    while interactive:
        try:
            typed = input("\nType a command of your own (or nothing to end): ").strip()
        except EOFError:  # Ctrl-D
            break
        if not typed:
            break
        _label(run, typed)
    steps = {
        f"tidegate inspect {run_folder} {paths[0]}": "what the gates do, word by word (writes gates.html)",
        f"{_opener()}{run_folder / 'report.html'}": "the curves, and the figures slot by slot",
        f"tidegate predict {run_folder} {paths[0]} -o labelled.parquet": "the whole table, labelled",
        f"tidegate export {run_folder} --to c -o snips.h": "the model as one C header (also for ONNX, Keras, PyTorch alone)",
        "tidegate example list": "four more real data sets",
        "tidegate train YOUR.csv --target COLUMN --group COLUMN": "your own table",
        f"tidegate diagram {run_folder} --kind flow": "the model as a picture (Mermaid)",
    }
    program = _program()
    steps = {command.replace("tidegate ", f"{program} ", 1): what for command, what in steps.items()}
    width = max(len(command) for command in steps)
    typer.echo("\n4. What to try next")
    for command, what in steps.items():
        typer.echo(f"   {command:<{width}}  {what}")


def _program() -> str:
    """How this program can be called again: by its name where the shell finds it, else by its path (`make demo`)."""
    called = Path(sys.argv[0])
    if shutil.which("tidegate") or called.name != "tidegate":
        return "tidegate"
    return os.path.relpath(called)


def _opener() -> str:
    """What shows a page in a browser here, before its path; nothing where that is left to the reader."""
    program = {"darwin": "open", "win32": "start"}.get(sys.platform, "xdg-open")
    return f"{program} " if program == "start" or shutil.which(program) else ""


def _label(run, sentence: str) -> None:
    # Cut as the data set was: words, and every other mark by itself.
    words = re.findall(r"\w+|[^\w\s]", sentence)
    if words:
        labelled = run.predict({"words": [words]})
        typer.echo(_marked(words, labelled["prediction"][0].to_list()))


def _marked(words: list[str], slots: list[str]) -> str:
    """Words over their slots, in columns."""
    widths = [max(len(w), len(s)) for w, s in zip(words, slots, strict=True)]
    shown = ["·" if s == "O" else s for s in slots]
    rows = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (words, shown)
    ]
    return "\n".join("   " + row for row in rows)
