"""Every Mermaid text that Tidegate emits, drawn by Mermaid itself in a browser.

A new kind of diagram goes into `diagrams()`; a new kind of line in one, into `written()`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.browser import Watch
from tidegate.gates.diagram import Column, ModelShape, StepValues, flow_diagram, sequence_diagram

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Diagram(NamedTuple):
    name: str
    text: str
    given: tuple[str, ...] = ()  # names of a user's that must be read in the picture, each a line of its own


def diagrams() -> list[Diagram]:
    """One of each that we emit."""
    return [*steps(), *models(), *hostile_models(), *random_models(), *in_pages()]


def steps() -> Iterator[Diagram]:
    for reset, layers, bidirectional in product(("after", "before"), (1, 3), (False, True)):
        name = f"step-{reset}-{layers}{'-bidirectional' if bidirectional else ''}"
        yield Diagram(name, sequence_diagram(10, 20, layers, bidirectional, reset))
    yield Diagram("step-large", sequence_diagram(123456, 1234567, 1000))
    for reset, v in product(("after", "before"), (-0.0004, 12.3456, -7.0)):
        values = StepValues("unit 3 of layer 1, forward in time, at step 2 of 9", v, -v, 2 * v, 0.5, -0.5, v, -0.25)
        yield Diagram(f"values-{reset}-{v}", sequence_diagram(10, 20, reset=reset, values=values))
    for kind, name in HOSTILE.items():
        values = StepValues(f"at step 2 of 9 ({name})", *[0.5] * 7)
        yield Diagram(
            f"values-hostile-{kind}", sequence_diagram(10, 20, values=values), (" ".join(values.where.split()),)
        )


def numbers(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "number", 1) for name in names)


def models() -> Iterator[Diagram]:
    many = numbers(*(f"column{i}" for i in range(40)))
    mixed = (Column("load", "number and mask", 2), Column("place", "category, 1,204 entries", 16))
    speaker = (Column("speaker", "class", 9),)
    shapes = {
        "smallest": ModelShape(numbers("x"), numbers("y"), 1),
        "classes": ModelShape(mixed, speaker, 20, num_layers=2),
        "bidirectional": ModelShape(mixed, speaker, 20, num_layers=3, bidirectional=True),
        "lstm": ModelShape(mixed, speaker, 20, cell="lstm"),
        "rnn": ModelShape(mixed, speaker, 20, cell="rnn", bidirectional=True),
        "no-recurrence": ModelShape(mixed, speaker, 20, cell="none"),
        "last": ModelShape(mixed, speaker, 20, per="sequence", pooling="last"),
        "mean": ModelShape(mixed, speaker, 20, per="sequence", pooling="mean"),
        "max": ModelShape(mixed, speaker, 20, per="sequence", pooling="max", bidirectional=True),
        "next": ModelShape(mixed, numbers("load"), 20, horizon=1),
        "forecast": ModelShape(mixed, numbers("load", "wind"), 20, horizon=24, residual=True),
        "twelve": ModelShape(many[:12], many[:12], 20),
        "forty": ModelShape(many, many, 1024),
        "deep": ModelShape(numbers("x"), numbers("y"), 20, num_layers=16),
    }
    for name, shape in shapes.items():
        yield Diagram(f"model-{name}", flow_diagram(shape))


HOSTILE = {
    "script": "<script>alert(1)</script>",
    "handler": "<img src=x onerror=alert(1)>",
    "link": "<a href='javascript:alert(1)'>here</a>",
    "closing": '"]; click',
    "click": 'x0"]\n    click x0 call alert(1)',
    "formula": "$$x$$",
    "style": "style fill:#f00;",
    "style-line": "style x0 fill:#f00,stroke:#f00;",
    "class-definition": "classDef default fill:#f00;",
    "class": "x0:::danger",
    "end": "end",
    "subgraph": "subgraph x0",
    "directive": "%%{init: {'theme': 'forest', 'securityLevel': 'loose'}}%%",
    "comment": "%% all of this",
    "front-matter": "---\nconfig:\n  theme: forest\n---",
    "shape": "@{ shape: circle, img: 'https://example.invalid/x.png' }",
    "entities": "&lt;b&gt; &#35; #35; #quot;",
    "markdown": "**bold** _slanted_ `code`",
    "list": "1. first",
    "bullet": "- first",
    "arrows": "a --> b ~~~ c ==> d",
    "emoji": "👩‍🔬 🌊",
    "chinese": "门控循环单元",
    "arabic": "بوابة التحديث",
    "accents": "e\u0301te\u0301 Größe",
    "blanks": " \t\n ",
    "empty": "",
    "long-word": "x" * 300,
    "long-sentence": "gate " * 60,
}


def hostile_model(name: str, *names: str) -> Diagram:
    inputs = tuple(Column(name, name, 2) for name in names)
    outputs = tuple(Column(name, name, 3) for name in names)
    return Diagram(name, flow_diagram(ModelShape(inputs, outputs, 4)), tuple(map(as_read, names)))


def as_read(name: str) -> str:
    """A column's name as it should stand in the picture: a long one without its middle."""
    name = " ".join(name.split())
    return (name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}") or "(no name)"


def hostile_models() -> Iterator[Diagram]:
    for kind, name in HOSTILE.items():
        yield hostile_model(f"hostile-{kind}", name)


# ﬂ, °, ¶ and ß are left out: ﬂ° and ¶ß are what Mermaid itself writes for & and ; while it works. Control
# characters are left out too: HTML reads their numbers as other characters.
MARKS = "\"'`<>[](){}|\\/&#;:,.!?=+-_*~^%$@ \t\n0aZéя中한👾\u200b\u202e\ufe0f\u0301"
WORDS = """
    #35; &amp; &#60; %%{ }%% $$ --> --- === -.-> ::: ~~~ <br/> <br> <b> </p> <!-- ``` @{ [[ (( ([ </style> ]]> 1. 2)
    end style class classDef click href call default linkStyle subgraph direction graph flowchart TD accTitle:
    javascript: url(
"""
SHARDS = [*MARKS, *WORDS.split()]


def random_models(seed: int = 11, count: int = 12, columns: int = 6) -> Iterator[Diagram]:
    rng = random.Random(seed)
    for i in range(count):
        names = ["".join(rng.choices(SHARDS, k=rng.randint(1, 12))) for _ in range(columns)]
        yield hostile_model(f"random-{i}", *names)


def in_pages() -> Iterator[Diagram]:
    for page in [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        blocks = re.findall(r"^```mermaid\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for i, block in enumerate(blocks):
            yield Diagram(f"{page.relative_to(ROOT)}-{i}", block)


def written(text: str) -> tuple[list[str], int, int]:
    """The lines of all labels as a person should read them, the number of boxes, and of arrows."""
    labels, boxes, arrows = [], 0, 0
    head, *lines = text.splitlines()
    assert head in ("sequenceDiagram", "flowchart TD")
    for line in lines:
        if label := re.fullmatch(r" {4}(?:participant \w+ as |Note over [\w,]+: )(.+)", line):
            labels.append(label[1])
        elif label := re.fullmatch(r" {4}\w+->>\w+: (.+)", line):
            labels.append(label[1])
            arrows += 1
        elif label := re.fullmatch(r' {4}subgraph \w+\["(.+)"\]', line):
            labels.append(label[1])
        elif label := re.fullmatch(r' {4}\w+(?:\["(.+)"\]|\(\["(.+)"\]\))', line):
            labels.append(label[1] or label[2])
            boxes += 1
        elif re.fullmatch(r" {4}\w+ --> \w+", line):
            arrows += 1
        else:
            assert line == "    end", f"a line that written() doesn't know: {line}"
    lines = [line for label in labels for line in label.split("<br/>")]
    return [re.sub(r"#(\d+);", lambda code: chr(int(code[1])), line) for line in lines], boxes, arrows


def bare(lines: list[str] | tuple[str, ...]) -> set[str]:
    """Without what can't be seen: a name's own invisible space, and the one that parts two dollars."""
    return {re.sub(r"\s+", " ", line.replace("\u200b", "")).strip() for line in lines}


# ---- drawing


@pytest.fixture(scope="module")
def sheet(open_page: Callable[[], Watch]) -> Watch:
    pinned = json.loads((HERE / "package.json").read_text())["dependencies"]["mermaid"]
    package = HERE / "node_modules" / "mermaid" / "package.json"
    found = json.loads(package.read_text())["version"] if package.exists() else None
    if found != pinned:
        pytest.fail(
            f"tests/browser needs mermaid {pinned}, found {found}: "
            "make test-browser, or npm ci --ignore-scripts in tests/browser.",
            pytrace=False,
        )
    watch = open_page()
    watch.page.goto((HERE / "mermaid.html").as_uri())
    return watch


@pytest.fixture
def draw(sheet: Watch) -> Iterator[Callable[..., dict[str, Any]]]:
    """draw(text, theme="default"): what `draw` in mermaid.html says of the picture."""
    yield lambda text, theme="default": sheet.page.evaluate("([text, theme]) => draw(text, theme)", [text, theme])
    sheet.check()


every_diagram = pytest.mark.parametrize("diagram", diagrams(), ids=lambda diagram: diagram.name)


@every_diagram
def test_mermaid_draws_every_label_as_a_person_should_read_it(draw, diagram):
    drawn = draw(diagram.text)
    kind = "sequence" if diagram.text.startswith("sequenceDiagram") else "flowchart-v2"
    assert (drawn["kind"], drawn["role"]) == (kind, kind)  # the picture of a syntax error has the role "error"
    lines, boxes, arrows = written(diagram.text)
    assert bare(drawn["lines"]) == bare(lines)
    assert bare(diagram.given) <= bare(drawn["lines"])
    assert (drawn["boxes"], drawn["arrows"]) == (boxes, arrows)


@every_diagram
def test_no_name_brings_anything_into_the_picture_but_itself(draw, diagram):
    drawn = draw(diagram.text)
    assert drawn["dangers"] == []
    assert drawn["config"] == {}
    if drawn["boxes"]:
        assert drawn["looks"] == ["node default"]
        assert drawn["fills"] == ["rgb(236, 236, 255)"]


LOOKED_AT = [
    "step-after-1",
    "step-before-3-bidirectional",
    "step-large",
    "values-after-12.3456",
    "values-hostile-script",
    "model-bidirectional",
    "model-forecast",
    "model-forty",
    "hostile-script",
    "hostile-chinese",
    "hostile-emoji",
    "hostile-formula",
    "hostile-long-word",
    "hostile-long-sentence",
    "random-0",
]


@pytest.mark.parametrize("theme", ["default", "dark"])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_every_label_lies_within_its_box(draw, sheet, shot, name, theme):
    (diagram,) = (d for d in diagrams() if d.name == name)
    drawn = draw(diagram.text, theme)
    shot(sheet.page, f"mermaid/{name}-{theme}")
    assert drawn["spilt"] == []


def test_the_diagrams_of_the_docs_are_among_them():
    pages = [f"docs/{name}.md" for name in ("gru-explained", "how-a-gru-works", "how-a-gru-works.zh-CN")]
    assert {f"{page}-0" for page in pages} <= {d.name for d in in_pages()}


@pytest.mark.parametrize(
    "broken", ["flowchart TD\n    x0[a", "sequenceDiagram\n    X->>", "flowchart TD\n    end --> x"]
)
def test_a_text_that_mermaid_cannot_read_is_an_error(draw, broken):
    """Else the tests above would be green whatever we emit."""
    with pytest.raises(Exception, match="Parse error"):
        draw(broken)
