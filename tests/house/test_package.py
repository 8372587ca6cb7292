"""The front page: what is there, and what it says when a part is not installed."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate

EXTRAS = ["polars", "pydantic", "typer", "rich", "safetensors", "torchmetrics", "yaml", "jinja2"]
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS})); "  # None makes their import fail


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_public_name_is_there():
    for name in tidegate.__all__:
        assert getattr(tidegate, name) is not None
        assert name in dir(tidegate)
    with pytest.raises(AttributeError, match="has no attribute 'LSTM'"):
        tidegate.LSTM  # noqa: B018


def test_the_layer_needs_torch_and_numpy_alone():
    done = run(WITHOUT + "import tidegate, torch; print(tidegate.GRU(3, 4)(torch.zeros(2, 1, 3))[0].shape)")
    assert "torch.Size([2, 1, 4])" in done.stdout, done.stderr


@pytest.mark.long
def test_what_needs_more_says_how_to_get_it():
    for name in ("train", "load", "TrainSettings", "Run"):
        done = run(WITHOUT + f"import tidegate; tidegate.{name}")
        assert "pip install 'tidegate[train]'" in done.stderr.splitlines()[-1], done.stderr
    done = run(WITHOUT + "from tidegate.cli import main; sys.exit(main(['--help']))")
    assert done.returncode == 1
    assert "pip install 'tidegate[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_layer_and_a_run_load_neither_torchs_compiler_nor_torchmetrics():
    done = run(
        "import sys, tidegate; tidegate.GRU, tidegate.load; print({'torch._dynamo', 'torchmetrics'} & {*sys.modules})"
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_the_installed_version_is_the_one_in_the_package():
    assert importlib.metadata.version("tidegate") == tidegate.__version__


@pytest.mark.long
def test_train_stays_a_function_whatever_is_imported_first():
    code = "import tidegate.trained.settings, tidegate.training.trainer, tidegate; print(callable(tidegate.train))"
    assert run(code).stdout.strip() == "True"


def test_the_package_never_reads_outside_itself():
    root = Path(tidegate.__file__).parent
    for path in root.rglob("*.py"):
        assert "../shared" not in path.read_text(encoding="utf-8"), path


TESTS = Path(__file__).parents[1]
# What `pip install tidegate[train,test]` brings, as it is imported.
INSTALLED = {
    "expecttest", "functorch", "hypothesis", "jinja2", "matplotlib", "numpy", "polars", "pydantic", "pytest", "rich", "safetensors", "torch",
    "torchmetrics", "typer", "yaml",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """What a file of the tests imports at its top, what its helpers import with it."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "tests.helpers":
            names |= {f"tests.helpers.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    for name in [name for name in names if name.startswith("tests.helpers.")]:
        names |= imported(TESTS.parent.joinpath(*name.split(".")).with_suffix(".py"))
    return names


def test_make_test_imports_nothing_but_what_it_installs(pytestconfig: pytest.Config) -> None:
    """CI has all extras at once, and would not notice."""
    apart = {Path(folder).name for folder in pytestconfig.getoption("ignore")}
    beyond = {}
    for path in TESTS.rglob("*.py"):
        if path.relative_to(TESTS).parts[0] not in apart:
            roots = {name.split(".")[0] for name in imported(path)} - {"tidegate", "tests"}
            if others := roots - set(sys.stdlib_module_names) - INSTALLED:
                beyond[str(path.relative_to(TESTS))] = others
    assert beyond == {}
