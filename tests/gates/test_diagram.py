"""The diagrams' text: who is in them, who sends what to whom and in which order, and that no name breaks them.

Mermaid's own parser (11.17) took every case below, drawn in a browser, when this was written.
"""

import doctest
import math
import random
import re
from dataclasses import replace

import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import tidegate
from tests.helpers.tables import QUICK
from tidegate.cli.diagram import app, shape_of
from tidegate.errors import RunError, SettingsError
from tidegate.gates import diagram
from tidegate.gates.diagram import Column, ModelShape, StepValues, escape, flow_diagram, sequence_diagram
from tidegate.model.cells import CELLS
from tidegate.ops.gru.reference import gru_cell


def numbers(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "number", 1) for name in names)


def labels(text: str) -> dict[str, list[str]]:
    """Each box's lines."""
    found = re.findall(r'^ {4}(\w+)(?:\["(.*)"\]|\(\["(.*)"\]\))$', text, re.MULTILINE)
    return {name: (square or round_).split("<br/>") for name, square, round_ in found}


def arrows(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^ {4}(\w+) --> (\w+)$", text, re.MULTILINE)


def parameters(text: str, part: str) -> int:
    said = [line for name, box in labels(text).items() if name.startswith(part) for line in box]
    return sum(int(line.split()[0].replace(",", "")) for line in said if line.endswith("parameters"))


# ---- one step


def test_the_participants_are_input_update_reset_candidate_and_state_with_their_sizes():
    participants = re.findall(r"^ {4}participant (\w) as (.+)$", sequence_diagram(10, 20), re.MULTILINE)
    assert participants == [
        ("X", "Input x (10)"),
        ("Z", "Update gate z (20)"),
        ("R", "Reset gate r (20)"),
        ("C", "Candidate n (20)"),
        ("H", "Hidden state h (20)"),
    ]


def test_each_message_is_sent_after_what_it_needs_is_known():
    sent = re.findall(r"^ {4}(\w)->>(\w): (.+)$", sequence_diagram(10, 20), re.MULTILINE)
    assert sent == [
        ("X", "Z", "x"),
        ("H", "Z", "h"),
        ("X", "R", "x"),
        ("H", "R", "h"),
        ("X", "C", "x"),
        ("R", "C", "r·(W_hn h + b_hn)"),
        ("C", "H", "n"),
        ("Z", "H", "z"),
    ]


def test_every_line_is_one_that_mermaid_knows_and_no_text_holds_a_mark_that_ends_it():
    for text in (sequence_diagram(10, 20), sequence_diagram(1, 1, 3, True, "before")):
        head, *lines = text.splitlines()
        assert head == "sequenceDiagram"
        known = r" {4}(participant [XZRCH] as |[XZRCH]->>[XZRCH]: |Note over [XZRCH](,[XZRCH])?: )[^#;:%]+"
        assert [line for line in lines if not re.fullmatch(known, line)] == []
        assert text.endswith("\n")


@pytest.mark.parametrize("reset", ["after", "before"])
def test_the_equations_in_the_notes_compute_the_step(reset):
    """The notes are taken at their word: read as arithmetic, at H = 1, they must give the reference's numbers."""
    rng = torch.Generator().manual_seed(3)
    w_i, w_h = (torch.randn(3, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    b_i, b_h = (torch.randn(3, generator=rng, dtype=torch.float64) for _ in range(2))
    x, h = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    values = {"σ": torch.sigmoid, "tanh": torch.tanh, "x": x, "h": h}
    for i, gate in enumerate("rzn"):
        values |= {f"W_i{gate}": w_i[i, 0], f"W_h{gate}": w_h[i, 0], f"b_i{gate}": b_i[i], f"b_h{gate}": b_h[i]}
    text = sequence_diagram(1, 1, reset=reset)
    for name, equation in re.findall(r"^ {4}Note over [ZRCH]: (\w'?) = (.+?)(?:<br/>.*)?$", text, re.MULTILINE):
        python = re.sub(r"(W_\w\w) (\w|\()", r"\1 * \2", equation).replace("·", "*")
        values[name] = eval(python, {}, values)
    expected = float(gru_cell(x.view(1, 1), h.view(1, 1), w_i, w_h, b_i, b_h, reset=reset))
    assert float(values["h'"]) == pytest.approx(expected, abs=1e-12)
    z, n = float(values["z"]), float(values["n"])
    assert abs(expected - (z * n + (1 - z) * float(h))) > 1e-3  # the other convention would have shown


def test_where_the_reset_gate_multiplies_is_told_by_the_message_and_by_the_note():
    after, before = sequence_diagram(2, 3), sequence_diagram(2, 3, reset="before")
    assert "R->>C: r·(W_hn h + b_hn)\n" in after
    assert "tanh(W_in x + b_in + r·(W_hn h + b_hn))" in after
    assert "R->>C: r·h\n" in before
    assert "tanh(W_in x + b_in + W_hn (r·h) + b_hn)" in before


def test_further_layers_and_the_other_direction_are_notes_at_the_end():
    plain = sequence_diagram(10, 20)
    both = sequence_diagram(10, 20, num_layers=3, bidirectional=True)
    assert both.startswith(plain)
    more = both[len(plain) :].splitlines()
    assert len(more) == 2
    assert "layer 1 of 3" in more[0]
    assert "from its last step to its first" in more[1]


# ---- a whole model


def test_a_row_flows_through_features_layer_and_head_to_the_prediction():
    text = flow_diagram(ModelShape(numbers("a", "b"), (Column("y", "class", 3),), hidden_size=20))
    assert text.splitlines()[0] == "flowchart TD"
    assert arrows(text) == [
        ("x0", "features"),
        ("x1", "features"),
        ("features", "layer1forward"),
        ("layer1forward", "head"),
        ("head", "y0"),
    ]
    boxes = labels(text)
    assert boxes["x1"] == ["b", "number, 1 value"]
    assert boxes["features"][1] == "2 values"
    assert boxes["layer1forward"][:3] == ["GRU layer 1", "from first step to last", "2 → 20 hidden units"]
    assert boxes["head"][:2] == ["linear head", "20 → 3"]
    assert boxes["y0"] == ["y", "class, 3 values"]


def test_two_layers_in_both_directions_read_both_outputs_of_the_layer_below():
    shape = ModelShape(numbers("a"), numbers("y"), 7, num_layers=2, bidirectional=True, per="sequence", pooling="max")
    text = flow_diagram(shape)
    assert arrows(text) == [
        ("x0", "features"),
        ("features", "layer1forward"),
        ("features", "layer1backward"),
        ("layer1forward", "joined1"),
        ("layer1backward", "joined1"),
        ("joined1", "layer2forward"),
        ("joined1", "layer2backward"),
        ("layer2forward", "joined2"),
        ("layer2backward", "joined2"),
        ("joined2", "summary"),
        ("summary", "head"),
        ("head", "y0"),
    ]
    boxes = labels(text)
    assert boxes["layer2backward"][2] == "14 → 7 hidden units"
    assert boxes["summary"][0] == "maximum over the steps"
    assert boxes["head"][1] == "14 → 1"


def test_a_head_that_reads_three_summaries_is_three_times_as_wide():
    text = flow_diagram(ModelShape(numbers("a"), numbers("y"), 7, per="sequence", pooling="last+max+mean"))
    assert labels(text)["summary"][0] == "last step, maximum and mean over the steps"
    assert labels(text)["head"][:3] == ["linear head", "21 → 1", "22 parameters"]


def test_without_a_recurrence_the_head_reads_the_features():
    text = flow_diagram(ModelShape(numbers("a", "b"), numbers("y"), 20, cell="none"))
    assert ("features", "head") in arrows(text)
    assert labels(text)["head"][1] == "2 → 1"
    assert "layer" not in text


def test_a_forecast_says_how_far_it_sees():
    shape = {"inputs": numbers("a"), "outputs": numbers("y"), "hidden_size": 4}
    assert labels(flow_diagram(ModelShape(**shape, horizon=1)))["y0"][-1] == "the next step"
    assert labels(flow_diagram(ModelShape(**shape, horizon=5)))["y0"][-1] == "the next 5 steps"
    assert "next" not in flow_diagram(ModelShape(**shape))


def test_the_head_gives_all_steps_of_a_forecast_at_once_and_adds_the_value_now_where_it_is_residual():
    shape = {"inputs": numbers("a"), "outputs": numbers("y", "w"), "hidden_size": 4, "horizon": 5}
    assert labels(flow_diagram(ModelShape(**shape)))["head"] == ["linear head", "4 → 10", "50 parameters"]
    assert labels(flow_diagram(ModelShape(**shape, residual=True)))["head"][-1] == "plus the value now"


def test_the_parameters_are_as_many_as_the_module_has():
    shape = ModelShape(numbers(*"abcde"), (Column("y", "class", 4),), 7, num_layers=3, bidirectional=True)
    text = flow_diagram(shape)
    in_torch = torch.nn.GRU(5, 7, num_layers=3, bidirectional=True)
    assert parameters(text, "layer") == sum(p.numel() for p in in_torch.parameters())
    assert parameters(text, "head") == sum(p.numel() for p in torch.nn.Linear(14, 4).parameters())


@pytest.mark.parametrize(("cell", "options"), [(cell, {}) for cell in CELLS] + [("gru", {"layer_norm": True})])
def test_the_parameters_of_a_run_are_those_of_its_core(signals, cell, options):
    sizes = QUICK | {"num_layers": 3, "bidirectional": True, "cell": cell, "epochs": 1}
    run = tidegate.train(signals, target="label", group="device", time="t", out=False, **sizes, **options)
    text = flow_diagram(shape_of(run))
    core = run.model.core
    assert parameters(text, "layer") == (0 if core is None else sum(p.numel() for p in core.parameters()))
    assert parameters(text, "head") == sum(p.numel() for p in run.model.head.parameters())
    assert cell == "none" or f"{CELLS[cell].title} layer 2" in text


def test_many_columns_are_drawn_as_the_first_and_the_number_of_the_rest():
    names = [f"o{i}" for i in range(17)]
    boxes = labels(flow_diagram(ModelShape(numbers(*names), numbers(*names), 8)))
    assert [boxes[f"x{i}"][0] for i in range(12)] == [*names[:11], "6 more columns"]
    assert boxes["x11"][1] == boxes["y11"][1] == "6 values"
    assert "x12" not in boxes
    assert boxes["features"][1] == "17 values"
    twelve = labels(flow_diagram(ModelShape(numbers(*names[:12]), numbers("y"), 8)))
    assert [twelve[f"x{i}"][0] for i in range(12)] == names[:12]


NASTY = [
    'a "quoted" [x]; #1',
    "style:#x; {b} (c) |d| end",
    "<b>&amp;</b> `code`",
    "$$x$$",
    "back\\slash %% --> ~~~",
    "classDef a:#b;c",
    "line\nbreak\ttab",
    "(((",
    "",
]


@pytest.mark.parametrize("name", NASTY)
def test_no_column_name_breaks_the_diagram(name):
    text = flow_diagram(ModelShape((Column(name, name, 2),), (Column(name, name, 3),), 4))
    plain = flow_diagram(ModelShape((Column("a", "b", 2),), (Column("c", "d", 3),), 4))
    assert arrows(text) == arrows(plain)
    assert labels(text).keys() == labels(plain).keys()
    for box in ("x0", "y0"):
        assert re.fullmatch(r"(\w|[ .,()\u200b-]|#\d+;)+", labels(text)[box][0])
        assert back(labels(text)[box][0]) == (" ".join(name.split()) or "(no name)")


def back(label: str) -> str:
    """What Mermaid shows for a label."""
    return re.sub(r"#(\d+);", lambda code: chr(int(code[1])), label).replace("\u200b", "")


def test_letters_of_any_language_stay_as_they_are():
    assert escape("Größe 温度 é_1-2.5") == "Größe 温度 é_1-2.5"


def test_dollars_never_stand_side_by_side():
    assert "#36;#36;" not in escape("$$x$$ $$$$")
    assert back(escape("$$x$$ $$$$")) == "$$x$$ $$$$"
    assert escape("$") == "#36;"


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(diagram)
    assert result.attempted >= 2
    assert result.failed == 0


# ---- the command


def run_command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_prints_the_step_of_a_gru_with_10_inputs_and_20_units_by_default():
    assert run_command() == sequence_diagram(10, 20)


def test_the_command_draws_the_sizes_it_is_given():
    assert run_command(
        "--input-size", 3, "--hidden-size", 5, "--num-layers", 2, "--bidirectional", "--reset", "before"
    ) == (sequence_diagram(3, 5, 2, True, "before"))
    flow = run_command("--kind", "flow", "--input-size", 3, "--hidden-size", 5, "--output-size", 4, "--per", "sequence")
    assert labels(flow)["layer1forward"][2] == "3 → 5 hidden units"
    assert labels(flow)["head"][1] == "5 → 4"
    assert "summary" in labels(flow)


def test_the_command_writes_a_file_plain_or_fenced_for_markdown(tmp_path):
    assert run_command("-o", tmp_path / "step.mmd") == f"Wrote {tmp_path / 'step.mmd'}\n"
    assert (tmp_path / "step.mmd").read_text(encoding="utf-8") == sequence_diagram(10, 20)
    run_command("--out", tmp_path / "step.md")
    assert (tmp_path / "step.md").read_text(encoding="utf-8") == f"```mermaid\n{sequence_diagram(10, 20)}```\n"


def test_a_run_and_sizes_together_are_an_error(tmp_path):
    with pytest.raises(SettingsError, match=r"--hidden-size.*leave out the one or the other"):
        CliRunner().invoke(app, [str(tmp_path), "--hidden-size", "3"], catch_exceptions=False)


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    rng = random.Random(0)
    rows = [
        {"s": s, "t": t, "load [%]": rng.random() if t else None, "place": rng.choice("abc"), "y": rng.random()}
        for s in range(20)
        for t in range(5)
    ]
    return pl.DataFrame(rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"target": "place", "bidirectional": True, "num_layers": 2},
        {"target": "y", "horizon": 3},
        {"target": "y", "horizon": 1, "residual": False, "cell": "lstm"},
        {"target": "place", "cell": "none"},
    ],
    ids=["classes", "forecast", "lstm", "none"],
)
def test_a_run_is_drawn_with_the_columns_and_the_parameters_it_has(table, tmp_path, settings):
    run_folder = tmp_path / "run"
    options = {"group": "s", "time": "t", "hidden_size": 6, "epochs": 1, "baselines": False, "progress": False}
    model = tidegate.train(table, out=run_folder, **options | settings).model
    text = run_command(run_folder, "--kind", "flow")
    boxes = labels(text)
    drawn = {back(box[0]): box[1] for name, box in boxes.items() if re.fullmatch(r"x\d", name)}
    assert drawn["load [%]"] == "number and mask, 2 values"
    assert ("place" in drawn) == (settings["target"] == "y")
    if "place" in drawn:
        assert drawn["place"].startswith("category, 4 entries, ")
    assert boxes["y0"][0] == settings["target"]
    core = 0 if model.core is None else sum(p.numel() for p in model.core.parameters())
    assert parameters(text, "layer") == core
    assert parameters(text, "head") == sum(p.numel() for p in model.head.parameters())
    assert ("plus the value now" in boxes["head"]) == (model.spec.residual is not None)


def test_the_step_of_a_run_has_its_sizes_and_an_lstm_has_no_gru_step(table, tmp_path):
    options = {"target": "y", "features": "load [%]", "group": "s", "time": "t", "epochs": 1, "baselines": False}
    tidegate.train(table, out=tmp_path / "gru", hidden_size=6, progress=False, **options)
    assert run_command(tmp_path / "gru") == sequence_diagram(2, 6)
    tidegate.train(table, out=tmp_path / "lstm", hidden_size=6, cell="lstm", progress=False, **options)
    with pytest.raises(SettingsError, match=r"is 'lstm'\. Use --kind flow"):
        CliRunner().invoke(app, [str(tmp_path / "lstm")], catch_exceptions=False)


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError):
        CliRunner().invoke(app, [str(tmp_path)], catch_exceptions=False)


# ---- with numbers

V = StepValues("step 3", 0.5, -1.25, 2.0, 0.75, -0.4, 1.5, -0.6)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_the_numbers_in_a_diagram_are_those_of_the_equations(reset):
    text = sequence_diagram(4, 8, reset=reset, values=V)
    r, z = (1 / (1 + math.exp(-v)) for v in (0.5 - 1.25, 2.0 + 0.75))
    n = math.tanh(-0.4 + (r * 1.5 if reset == "after" else 1.5))
    h = (1 - z) * n + z * -0.6
    for value in (r, z, n, h):
        assert f" = {value:.3f}\n".replace("-", "−") in text
    assert "Note over X,H: step 3\n" in text


def test_a_diagram_with_numbers_speaks_of_its_own_layer_and_direction_alone():
    text = sequence_diagram(16, 8, 3, True, values=replace(V, backward=True))
    assert "of the step before it, which this direction reads next" in text
    assert "this is layer 1" not in text
    assert "second set of weights" not in text
    assert "the h of the next one" in sequence_diagram(16, 8, 3, True, values=V)


def test_a_long_name_loses_its_middle():
    (box,) = labels(flow_diagram(ModelShape(numbers("a" * 50 + "z" * 50), numbers("y"), 4)))["x0"][:1]
    assert box == "a" * 40 + escape("…") + "z" * 19
