"""`tidegate doctor`"""

from __future__ import annotations

import importlib.metadata
import platform

import typer

app = typer.Typer(add_completion=False)
PARTS = ("torch", "numpy", "polars", "pydantic", "typer", "rich", "safetensors", "torchmetrics", "pyyaml", "jinja2")


@app.command()
def doctor() -> None:
    """Say what is installed, which devices there are and which back end the GRU takes on each."""
    import torch

    import tidegate
    from tidegate import backends
    from tidegate.default_threads import default_threads
    from tidegate.ops.gru import native

    typer.echo(
        f"tidegate {tidegate.__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    for name in PARTS:
        try:
            typer.echo(f"  {name:<13} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            typer.echo(f"  {name:<13} not installed (pip install 'tidegate[train]' brings it)")
    typer.echo(f"CPU: {torch.backends.cpu.get_cpu_capability()}")
    typer.echo(f"threads: {default_threads(torch.get_num_threads())}")
    missing = native.missing()
    if missing is None:
        typer.echo(f"native back end: {native.isa()}; this processor can: {', '.join(native.isas())}")
    else:
        typer.echo(
            f"native back end: not there, as {missing}. On a CPU the GRU then runs PyTorch's loop, several times slower "
            "in training and inference, and its numbers change with the batch. Install a C++ compiler "
            "(GCC or Clang) and run: pip install --force-reinstall --no-deps tidegate"
        )
    if torch.cuda.is_available():
        typer.echo(f"CUDA: {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        typer.echo("MPS: there")
    typer.echo(f"tidegate.GRU: {backends.explain()}")
