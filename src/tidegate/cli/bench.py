"""`tidegate bench`"""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tidegate.bench.measure import Row

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[forward|train|step]",
            help="Measure this kind alone; repeatable. train: forward+backward. step: one time step a call.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="B,T,I,H,layers", help="Measure this shape in place of the grid; repeatable."),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Numbers of threads. Default: 1, and one for every core (that the CPU quota of a container grants).",
        ),
    ] = None,
    peers: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Compare with these alone. Default: all that are installed.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Turns of every peer in a cell; 7 if not given, 3 with --quick.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer rounds, and only the grid's cells of under some 50 ms a call.")
    ] = False,
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Also write the raw rows, the machine in the first line."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
) -> None:
    """Time the GRU layer on this machine beside torch.nn.GRU, ONNX Runtime, OpenVINO, JAX and Keras.

    Every peer is held against a float64 run first; one whose numbers are wrong is not timed. Nothing else should run
    meanwhile: the whole grid takes a quarter of an hour or more, --quick some minutes.

    Example: tidegate bench --kind forward --shape 32,50,32,64,1 --threads 1
    """
    from tidegate.bench.machine import machine
    from tidegate.bench.shapes import KINDS, Shape, cells
    from tidegate.errors import SettingsError, nearest

    # Everything that was given is looked at before anything is measured.
    for word in kind or ():
        if word not in KINDS:
            raise SettingsError(f"--kind {word}: expected one of {', '.join(KINDS)}.{nearest(word, KINDS)}")
    chosen = cells([k for k in KINDS if not kind or k in kind], [Shape.parse(s) for s in shape or ()], quick)
    numbers = _threads(threads)
    if csv is not None and csv.is_dir():
        raise SettingsError(f"--csv {csv}: this is a folder, expected the name of a file.")

    from tidegate.bench.launch import BenchError, run
    from tidegate.bench.measure import Row
    from tidegate.bench.peers import PEERS
    from tidegate.bench.report import OURS, csv_text, raw, render
    from tidegate.files import write_text

    names = _peers(peers)
    able = [n for n in names if not PEERS[n].missing()]
    line = machine(" and ".join(map(str, numbers)))
    rounds = rounds or (3 if quick else 7)
    typer.echo(f"{line}\n{', '.join(dict.fromkeys(PEERS[n].version() for n in able))}; rounds: {rounds}")
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > 0.5:
        typer.echo(f"The load is {busy:.1f}: if other programs are at work, these times will mislead.", err=True)
    rows: list[Row] = []
    about: list[str] = []
    stopped: BaseException | None = None
    shown = _Progress(len(numbers))
    try:
        for i, n in enumerate(numbers):
            with closing(run(chosen, able, n, rounds)) as events:
                for event in events:
                    if "row" in event:
                        rows.append(Row(**event["row"]))
                    elif "cell" in event:
                        shown.at(f"{_counted(n)}: {event['cell']}", i + event["done"])
                    else:
                        about.append(_about(event, n))
    except (KeyboardInterrupt, BenchError) as error:
        stopped = error  # what was measured until then is shown all the same
    finally:
        shown.end()
    if rows:
        typer.echo("\n".join([*about, "", render(rows, markdown)]))
    typer.echo()
    for packages in dict.fromkeys(PEERS[n].packages for n in names if n not in able):
        peer = ", ".join(n for n in names if PEERS[n].packages == packages)
        typer.echo(f"Not installed: {peer}. To compare with it: pip install {' '.join(packages)}")
    if isinstance(stopped, BenchError):
        raise stopped
    if stopped is not None:
        typer.echo("Interrupted: what is shown is all that was measured.", err=True)
        raise typer.Exit(130)
    if csv is not None:
        write_text(csv, csv_text(line, raw(rows)))
        typer.echo(f"Wrote {csv}")
    bad = [row for row in rows if row.peer == OURS and row.status != "ok"]
    if bad:
        raise BenchError(f"Tidegate itself has no figure in {len(bad)} of its cells; the notes above say why.")


def _threads(text: str | None) -> list[int]:
    from tidegate.bench.machine import cores, processors
    from tidegate.default_threads import cpu_quota
    from tidegate.errors import SettingsError

    if text is None:
        quota, _ = cpu_quota()
        return sorted({1, cores() if quota is None else max(1, min(cores(), int(quota)))})
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise SettingsError(f"--threads {text}: expected whole numbers from 1 on, with commas between, such as 1,2.")
    have = len(processors())
    if max(numbers) > have:
        raise SettingsError(f"--threads {text}: this process may run on {have} processors only.")
    return list(dict.fromkeys(numbers))


def _peers(text: str | None) -> list[str]:
    """The names to compare, Tidegate among them. One asked for by name must be installed."""
    from tidegate.bench.peers import PEERS
    from tidegate.errors import SettingsError, nearest

    if text is None:
        return list(PEERS)
    asked = [word.strip() for word in text.split(",")]
    for name in asked:
        if name not in PEERS:
            raise SettingsError(f"--peers: unknown peer {name!r}; known are {', '.join(PEERS)}.{nearest(name, PEERS)}")
        if PEERS[name].missing():
            raise SettingsError(
                f"--peers: {name} is not installed. Install it with: pip install {' '.join(PEERS[name].packages)}"
            )
    return [name for name in PEERS if name in asked or name == "tidegate"]


def _about(event: dict[str, Any], threads: int) -> str:
    """What a measuring process says of itself at first."""
    chosen = f"{event['backend']!r}" + (f" ({event['isa']})" if event["backend"] == "native" else "")
    if event["peak_gflops"] is None:
        return f"{_counted(threads)}: tidegate runs {chosen}; no share of the peak is shown, as {event['no_peak']}"
    peak = f"the peak is {event['peak_gflops']:.0f} GFLOP/s (multiply-adds in registers)"
    return f"{_counted(threads)}: tidegate runs {chosen}; {peak}"


def _counted(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"


class _Progress:
    """On standard error: a bar with the time left on a terminal, else a line for each cell.

    The bar is drawn only when a measuring process says something, which it does ahead of a pause: a thread that draws
    ten times a second would run on the processors that are being measured.
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.label = ""
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (
                BarColumn(20),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("left, {task.description}"),
            )
            self.bar = Progress(
                *columns, console=self.console, transient=True, auto_refresh=False, speed_estimate_period=600
            )
            self.task = self.bar.add_task("starting", total=total)
            self.bar.start()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def at(self, label: str, done: float) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=label, refresh=True)
        elif label != self.label:
            self.say(label)
        self.label = label

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
