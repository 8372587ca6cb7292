"""The rooms of the house: every import leads down, and no module is imported by what it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tidegate

ROOT = Path(tidegate.__file__).parent
# From the ground up. A room may import itself and what stands above it in this list; where `may` says less, only that.
ROOMS = [
    "base", "ops", "gates", "nn", "data", "convert", "model", "trained", "report", "training", "tuning", "streaming", "inspection",
    "export", "run", "bench", "cli",
]  # fmt: skip
HOMES = {
    **dict.fromkeys(
        [
            "",
            "default_memory",
            "default_threads",
            "documents",
            "errors",
            "files",
            "pages",
            "processes",
            "shared_memory",
            "workers",
            "_lazy",
        ],
        "base",
    ),
    "backends": "ops",
    "datasets": "data",
    "keras_models": "convert",
    "__main__": "cli",
}
# What a room needs although it might take more.
ONLY = {
    "nn": {"base", "ops", "gates"},
    "data": {"base"},
    "convert": {"base", "ops", "gates", "nn"},
    "report": {"base", "gates", "data", "model", "trained"},
    "streaming": {"base", "ops", "data", "model", "trained"},
    "tuning": {"base", "data", "model", "trained", "report", "training"},
    "export": {"base", "ops", "nn", "data", "convert", "model", "trained"},
    "bench": {"base", "ops", "gates", "nn", "convert"},
}
# Room -> the only part of it that may train.
TRAINS = {"inspection": "tidegate.inspection.gradients"}
MOST_POSITIONAL = 6
# They take the place of torch.nn.GRU, whose seven arguments come in this order.
DROP_INS = {("tidegate.nn.gru", "__init__"), ("tidegate.nn.mingru", "__init__"), ("tidegate.nn.layouts", "__init__")}


def name_of(path: Path) -> str:
    parts = ("tidegate", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
    place = [*module.split("."), ""][1]
    return HOMES.get(place, place)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a module, inside of functions too, but for what only a type checker imports."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from nodes(other)
            continue
        yield child
        yield from nodes(child)


def imports(module: str) -> set[str]:
    """The modules of the package that one imports, wherever in it. (Names that `_lazy` hands out are text, not imports.)"""
    found = set()
    for node in nodes(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                found.add(longer if longer in MODULES else str(node.module))
    return {name for name in found if name in MODULES} - {module}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_room_and_its_imports_lead_down(module):
    room = room_of(module)
    assert room in ROOMS, f"{module} stands in no room of ROOMS"
    below = set(ROOMS[: ROOMS.index(room) + 1])
    allowed = ONLY.get(room, below) | {room}
    assert allowed <= below | {room}
    wrong = {name for name in imports(module) if room_of(name) not in allowed}
    assert not wrong, f"{module} ({room}) imports {', '.join(sorted(wrong))}"
    if room in TRAINS and not module.startswith(TRAINS[room]):
        assert not {name for name in imports(module) if room_of(name) == "training"}, module


def test_no_module_is_imported_by_what_it_imports():
    try:
        TopologicalSorter({module: imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_no_function_takes_more_than_six_arguments_by_place():
    found = [
        f"{module}.{node.name} takes {len(arguments)}"
        for module, tree in MODULES.items()
        if room_of(module) not in {"ops", "cli"}
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (module, node.name) not in DROP_INS
        if len(arguments := [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")])
        > MOST_POSITIONAL
    ]
    assert found == []
