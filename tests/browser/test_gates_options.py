"""The page in a browser for runs whose recurrence isn't torch's: what its script computes is what the layer did."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.helpers.tables import QUICK, signal_table
from tidegate.inspection import Inspection
from tidegate.training import train

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOWN = 0.0005 + 0.001  # half of the last digit printed, and what 16 bits a number may lose
RUNS: dict[str, dict[str, Any]] = {
    "before": {"reset": "before"},
    "norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.25, "learn_initial_state": True},
    "minGRU": {"cell": "mingru", "learn_initial_state": True},
    "all": {"reset": "before", "layer_norm": True, "zoneout": 0.25, "learn_initial_state": True, "bidirectional": True},
}
READ = """() => {
  const texts = (query) => [...document.querySelectorAll(query)].map((e) => e.textContent);
  return {
    values: Object.fromEntries([...document.querySelectorAll(".cell g")].map((g) => [g.querySelector(".small").textContent, g.querySelector(".value").textContent])),
    edges: texts(".cell .edge"), equations: texts(".equation")[0], told: texts(".halves p")[0], maps: texts(".row.map .label .term"),
    heads: texts(".units th"), legend: texts(".row.tall:not(.map) .line").length, header: texts("header p")[0],
  };
}"""
FIELDS = {"r": "reset", "z": "update", "n": "candidate", "h′": "hidden"}
KNOWN = {
    "sigma": lambda v: 1 / (1 + math.exp(-v)),
    "tanh": math.tanh,
    "g": lambda v: v + 0.5 if v >= 0 else 1 / (1 + math.exp(-v)),
    "__builtins__": {},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Inspection, str]]:
    """made(name): an inspection of a small run with these options, and the address of its page."""
    folder, kept = tmp_path_factory.mktemp("options"), {}

    def get(name: str) -> tuple[Inspection, str]:
        if name not in kept:
            table = signal_table(8, most=12)
            roles = {"target": "label", "group": "device", "time": "t", "num_layers": 2}
            run = train(table, out=False, **{**QUICK, **roles, **RUNS[name]})
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for weight in run.model.core.parameters():
                    weight.add_(0.6 * torch.randn(weight.shape, generator=generator))
            found, path = run.inspect(table, "d3"), folder / f"{name}.html"
            found.write_html(path)
            kept[name] = found, path.as_uri()
        return kept[name]

    return get


@pytest.fixture
def page(open_page) -> Iterator[Page]:
    watch = open_page()
    yield watch.page
    watch.check()
    watch.page.context.close()


def places(found: Inspection) -> Iterator[tuple[int, int, int]]:
    for k, layer in enumerate(found.layers):
        yield from ((k, u, t) for u, t in ((0, 0), (layer.statistics.units - 1, found.steps - 1), (3, 2)))


def read_at(page: Page, found: Inspection, k: int, unit: int, t: int) -> dict[str, Any]:
    page.evaluate(
        "hash => new Promise((done) => { addEventListener('hashchange', () => setTimeout(done), { once: true }); location.hash = hash; })",
        f"layer={found.layers[k].name}&unit={unit}&step={t + found.first}&again={k}{unit}{t}",
    )
    return page.evaluate(READ)


def number(text: str) -> float:
    return float(text.replace("−", "-"))


@pytest.mark.parametrize("name", RUNS)
def test_the_page_shows_the_gates_of_the_layer_and_equations_that_add_up(made, page, name):
    found, address = made(name)
    page.goto(address)
    form = found.layers[0].equations
    for k, unit, t in places(found):
        layer, now = found.layers[k], read_at(page, found, k, unit, t)
        there = {left: getattr(layer.gates, field) for left, field in FIELDS.items()}
        there = {left: float(values[t, unit]) for left, values in there.items() if values is not None}
        lines = [
            line for line in now["equations"].splitlines() if "=" in line and ":" not in line and "where" not in line
        ]
        assert [line[:2].strip() for line in lines[::2]] == [*there]
        for line, value in zip(lines[1::2], there.values(), strict=True):
            _, formula, shown = line.replace("−", "-").replace("·", "*").replace("σ", "sigma").split("=")
            assert eval(formula, KNOWN) == pytest.approx(float(shown), abs=0.004), line
            assert float(shown) == pytest.approx(value, abs=SHOWN), line
        values = {head.split()[-1]: number(v) for head, v in now["values"].items() if head != "input x"}
        assert values == pytest.approx({**there, "h": float(layer.before[t, unit])}, abs=SHOWN)
        keep = there["z"] + form.zoneout * (1 - there["z"])
        shares = [keep, 1 - keep, *([there["r"]] if "r" in there else [])]
        printed = [int(re.search(r"\d+", text).group()) for text in now["edges"]]
        assert printed == pytest.approx([100 * share for share in shares], abs=1.1)
        assert ("r " in now["told"].split("at this step:")[1]) == ("r" in there)


@pytest.mark.parametrize("name", RUNS)
def test_the_equations_are_named_after_the_options(made, page, name):
    found, address = made(name)
    page.goto(address)
    form, now = found.layers[0].equations, page.evaluate(READ)
    symbols = now["equations"]
    if form.reset is not None:
        assert ("(r·h)" in symbols) == (form.reset == "before")
        assert ("LN(W_ir x) + b_ir" in symbols) == form.layer_norm
    assert ("LN: layer norm" in symbols) == form.layer_norm
    assert ("p·h + (1 − p)·((1 − z)·n + z·h)" in symbols) == bool(form.zoneout)
    assert ("p = 0.25" in symbols) == bool(form.zoneout)
    assert ("layer norm" in now["header"]) == form.layer_norm
    assert ("zoneout 0.25" in now["header"]) == bool(form.zoneout)


@pytest.mark.parametrize("name", RUNS)
def test_there_is_a_map_a_line_and_a_column_for_each_gate_there_is(made, page, name):
    found, address = made(name)
    page.goto(address)
    now, reset = page.evaluate(READ), found.layers[0].equations.reset
    gates = ["update gate z", *(["reset gate r"] if reset else []), "candidate n", "state h"]
    assert now["maps"] == gates
    assert [head for head in now["heads"] if head[0] in "zr" and head != "range of h"] == [
        "z open", "z shut", *(["r open", "r shut"] if reset else [])
    ]  # fmt: skip
    assert now["legend"] == len(gates)


@pytest.mark.parametrize("name", RUNS)
def test_pictures_of_runs_with_options_are_kept_for_people_to_look_at(made, page, shot, name):
    page.goto(made(name)[1])
    shot(page, f"gates-{name}")
