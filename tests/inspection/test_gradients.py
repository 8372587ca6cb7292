"""How far back gradients reach: measured as they are, of cells that were trained alike, and told as they are."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.tables import read_table, write_table
from tidegate.errors import DataError, RunError, SettingsError
from tidegate.inspection.gradients import (
    Reach,
    Unrolled,
    make_plan,
    measure,
    measure_gradients,
    relative_gradients,
    unrolled,
)
from tidegate.inspection.gradients import plan as plans
from tidegate.model.tasks import TASKS
from tidegate.trained.rows import batch_source
from tidegate.training import Interrupted, TrainSettings, load, train
from tidegate.training.progress import Silent
from tidegate.training.resolve import build, complete, model_spec

pytestmark = pytest.mark.usefixtures("ctrl_c")

CELLS = ["gru", "lstm", "rnn"]
SHAPES = [(1, False), (2, False), (1, True), (3, True)]
TORCH = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


def prepared(frame: pl.DataFrame, **settings):
    """A new model (larger weights than a new one has, so that every gate matters), its source and its plan."""
    chosen = TrainSettings.make(**(ROLES | {"hidden_size": 5} | settings))
    pre, data = fit_preprocessing(read_table(frame), chosen, chosen.seed)
    source = batch_source(data, pre, torch.device("cpu"))
    model = build(model_spec(chosen, pre, data), pre, complete(chosen, data), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.6)
    return model, pre, source, make_plan(model.spec, source, None, "the rows")


def one_sequence(model, source, piece):
    """What the core reads of a piece, [T, 1, I] in float64."""
    steps = slice(piece.start, piece.end)
    double = copy.deepcopy(model).double().eval()
    return double, double.encode(source.numbers[steps, None].double(), source.codes[steps, None]).detach()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("layers", "both"), SHAPES)
def test_the_unrolled_pass_is_the_core(signals, cell, layers, both):
    model, _, source, plan = prepared(signals, cell=cell, num_layers=layers, bidirectional=both)
    core = Unrolled(model)
    for piece in plan[:3]:
        double, encoded = one_sequence(model, source, piece)
        lengths = torch.tensor([piece.length])
        output, state = double.core(encoded)
        x, states, backward = core.read(encoded, lengths)
        chain = core.forward(x, tuple(torch.zeros_like(v[0]) for v in states))
        H = model.spec.hidden_size
        for k, own in enumerate(states):  # of h, and of an LSTM's c
            assert torch.allclose(torch.stack([s[k] for s in chain]), own, rtol=0, atol=1e-12)
        assert torch.allclose(states[0], output[..., :H], rtol=0, atol=1e-12)
        if cell == "lstm":
            assert torch.allclose(states[1][-1], state[1][-2 if both else -1], rtol=0, atol=1e-12)
        if both:
            assert torch.allclose(backward, output[..., H:], rtol=0, atol=1e-12)


def by_restarting(model, pre, source, piece, t, pooled_last=False):
    """|dL/dh_{t-k}| and |dL/dc_{t-k}| another way: torch's layer begun anew from the state of t - k as its h_0."""
    double, encoded = one_sequence(model, source, piece)
    spec = model.spec
    H, top = spec.hidden_size, spec.num_layers - 1
    weights = {k: v.double() for k, v in model.core.state_dict().items()}
    kind = TORCH[spec.cell]
    x = encoded
    if top:
        below = kind(x.shape[-1], H, top, bidirectional=spec.bidirectional, dtype=torch.float64)
        below.load_state_dict({k: v for k, v in weights.items() if f"_l{top}" not in k})
        x = below(x)[0].detach()
    forward = kind(x.shape[-1], H, dtype=torch.float64)
    forward.load_state_dict({k[:-1] + "0": v for k, v in weights.items() if k.endswith(f"_l{top}")})
    backward = double.core(encoded)[0][0 if spec.per == "sequence" else t, :, H:].detach()
    y = source.all_targets(None)[piece.sequence if spec.per == "sequence" else piece.start + t]
    sizes: dict[str, list[float]] = {"h": [], "c": []}
    for k in range(t + 1):
        _, state = forward(x[: t - k + 1])
        state = [v.detach()[0].requires_grad_() for v in (state if spec.cell == "lstm" else (state,))]
        h = state[0]
        if spec.cell == "lstm":  # h is made of c, so that dL/dc goes through both
            share = (state[0] / torch.tanh(state[1])).detach()
            made = share * torch.tanh(state[1])
        for name, leaf in zip("hc", state, strict=False):
            begin = [made if name == "c" else h, *state[1:]]
            if k:
                hx = tuple(v[None] for v in begin)
                end = forward(x[t - k + 1 : t + 1], hx if spec.cell == "lstm" else hx[0])[0][-1]
            else:
                end = begin[0]
            read = torch.cat([end, backward], dim=-1)
            read = torch.cat([read] * (3 if spec.pooling == "last+max+mean" else 1), dim=-1)
            scores = double.head(read).unflatten(-1, (max(spec.horizon, 1), spec.outputs))
            if spec.residual is not None:
                scores = scores + source.numbers[piece.start + t, list(spec.residual)].double()
            loss = TASKS[pre.target.task].loss_sum(scores, (y if y.dtype == torch.int64 else y.double())[None])[0]
            sizes[name].append(float(torch.autograd.grad(loss, leaf)[0].norm()))
    return sizes


CASES = [
    *({"cell": cell, "num_layers": layers, "bidirectional": both} for cell in CELLS for layers, both in SHAPES),
    *({"cell": cell, "per": "sequence", "pooling": "max"} for cell in CELLS),
    {"per": "sequence", "pooling": "last", "bidirectional": False},
    {"per": "sequence", "pooling": "last+max+mean"},
    {"target": ("x", "w"), "horizon": 1, "residual": True},
]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_gradients_are_those_of_torchs_layer_begun_anew_at_every_step(signals, settings):
    # Several classes or numbers, so that what else the head reads turns the direction of dL/dh.
    several = pl.col("colour").last().over("device") if "per" in settings else pl.col("label")
    frame = signals.with_columns(label=several, w=pl.col("x").sin() * 3)
    model, pre, source, plan = prepared(frame, **settings)
    found = relative_gradients(model, pre, source, None, plan)
    assert set(found) == ({"h", "c"} if model.spec.cell == "lstm" else {"h"})
    assert len(plan) == 24
    for i in (0, 7, 23):
        (t,) = plan[i].at
        sizes = by_restarting(model, pre, source, plan[i], t)
        for name, ratios in found.items():
            expected = np.array(sizes[name]) / sizes[name][0]
            assert np.allclose(ratios[i, : t + 1], expected, rtol=1e-9, atol=1e-14)
            assert np.isnan(ratios[i, t + 1 :]).all()


def test_a_finite_difference_of_the_loss_agrees(signals):
    model, pre, source, plan = prepared(signals)
    ratios = relative_gradients(model, pre, source, None, plan)["h"][0]
    (t,) = plan[0].at
    double, encoded = one_sequence(model, source, plan[0])
    y = source.all_targets(None)[plan[0].start + t]

    def size(k: int) -> float:
        h = double.core(encoded[: t - k + 1])[1]
        slopes = []
        for j in range(h.shape[-1]):
            ends = []
            for e in (1e-5, -1e-5):
                moved = h.clone()
                moved[0, 0, j] += e
                end = double.core(encoded[t - k + 1 : t + 1], moved)[0][-1] if k else moved[0]
                ends.append(float(TASKS["class"].loss_sum(double.head(end)[:, None], y[None])[0]))
            slopes.append((ends[0] - ends[1]) / 2e-5)
        return float(np.linalg.norm(slopes))

    with torch.no_grad():
        for k in (1, 2, t):
            assert ratios[k] == pytest.approx(size(k) / size(0), rel=1e-5)


@pytest.mark.parametrize(("cell", "which"), [("gru", "h"), ("lstm", "c"), ("rnn", "h")])
def test_a_cell_set_by_hand_keeps_what_it_must_of_the_gradient(cell, which):
    model, pre, source, plan = prepared(signal_table(groups=3, least=30, most=30), cell=cell)
    H, p = 5, dict(model.core.named_parameters())
    with torch.no_grad():
        for weight in p.values():
            weight.zero_()
        if cell == "rnn":
            p["weight_hh_l0"].copy_(1.25 * torch.eye(H))  # around h = 0 tanh is the identity: it explodes as 1.25^k
        else:  # z, or the forget gate, is 0.9 at every step
            p["bias_ih_l0"][H : 2 * H] = float(np.log(9))
    ratios = relative_gradients(model, pre, source, None, plan)[which]
    k = np.arange(ratios.shape[1])
    assert ratios.shape[1] == 30
    assert np.allclose(np.nanmedian(ratios, axis=0), (1.25 if cell == "rnn" else 0.9) ** k, rtol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_what_lies_further_back_than_is_shown_still_counts(cell, monkeypatch):
    model, pre, source, plan = prepared(signal_table(groups=5, least=20, most=30), cell=cell, num_layers=2)
    whole = relative_gradients(model, pre, source, None, plan)
    for module in (plans, unrolled):
        monkeypatch.setattr(module, "FARTHEST", 7)
    monkeypatch.setattr(unrolled, "_VALUES_AT_ONCE", 400)  # many small batches
    cut = relative_gradients(model, pre, source, None, plan)
    for name, ratios in cut.items():
        assert ratios.shape[1] == 8
        assert np.allclose(ratios, whole[name][:, :8], rtol=1e-9)


def test_predictions_are_the_last_of_each_sequence_and_more_of_a_few_long_ones(signals, monkeypatch):
    _, _, source, plan = prepared(signals)
    assert [p.at for p in plan] == [(n - 1,) for n in source.data.lengths]
    _, _, _, plan = prepared(signal_table(groups=300))
    assert len(plan) == 200
    monkeypatch.setattr(plans, "FARTHEST", 3)
    _, _, source, plan = prepared(signal_table(groups=200))
    assert [p.at for p in plan] == [(n - 1,) for n in source.data.lengths]
    monkeypatch.undo()
    _, _, source, plan = prepared(signal_table(groups=4, least=300, most=400))
    assert [len(p.at) for p in plan] == [50] * 4
    for p, n in zip(plan, source.data.lengths, strict=True):
        assert p.at[0] == 200
        assert p.at[-1] == n - 1
        assert p.length == n


def test_a_prediction_without_a_gradient_is_left_out_and_counted(tmp_path, table):
    run = train(table, out=tmp_path / "run", **(QUICK | ROLES | {"target": "x", "features": "colour"}))
    measured = measure_gradients(run, table, progress=False)
    assert (measured.unmoved, measured.predictions) == (0, 4)
    assert "left out" not in measured.place
    found = measure.relative_gradients

    def one_gone(*arguments):
        ratios = found(*arguments)
        ratios["h"][1] = np.nan
        return ratios

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "relative_gradients", one_gone)
        measured = measure_gradients(run, table, progress=False)
    assert (measured.unmoved, measured.predictions, measured.sequences) == (1, 3, 3)
    assert "1 more were left out" in measured.place


def test_a_step_without_a_target_makes_no_prediction(signals):
    frame = signals.with_columns(
        label=pl.when(pl.col("t") < pl.col("t").max().over("device") - 1).then("label").otherwise(None)
    )
    model, pre, source, plan = prepared(frame)
    assert [p.at for p in plan] == [(n - 3,) for n in source.data.lengths]
    assert np.isfinite(relative_gradients(model, pre, source, None, plan)["h"][:, 0]).all()


def test_a_step_whose_class_training_never_saw_makes_no_prediction(signals):
    last = pl.col("t") == pl.col("t").max().over("device")
    test = pl.col("device").is_in(["d3", "d7"])
    frame = signals.with_columns(
        s=pl.when(test).then(pl.lit("test")).otherwise(pl.lit("train")),
        label=pl.when(test & last).then(pl.lit("new")).otherwise("label"),
    )
    model, pre, source, plan = prepared(frame, split="s")
    devices = signals["device"].unique(maintain_order=True).to_list()
    back = [2 if devices[p.sequence] in ("d3", "d7") else 1 for p in plan]
    assert [p.at for p in plan] == [(n - b,) for n, b in zip(source.data.lengths, back, strict=True)]
    assert np.isfinite(relative_gradients(model, pre, source, None, plan)["h"][:, 0]).all()


def test_a_very_long_sequence_is_read_from_a_bounded_way_back(monkeypatch):
    monkeypatch.setattr(plans, "MOST_STEPS", 50)
    _, _, source, plan = prepared(
        signal_table(groups=1, least=90, most=90), bidirectional=True, split=(0.5, 0.25, 0.25)
    )
    assert [(p.start, p.end, p.at[-1]) for p in plan] == [(40, 90, 49)]
    assert len(source.data.rows) == 90


# --- the three runs ------------------------------------------------------------------------------------------


class Heard(Silent):
    def __init__(self):
        self.notes: list[str] = []
        self.batches = 0

    def step(self, loss: float) -> None:
        self.batches += 1

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def trained(self) -> list[str]:
        found = (re.match(r"Training an? (.+?) of the same size", note) for note in self.notes)
        return [match[1] for match in found if match]


@pytest.fixture
def table(tmp_path, signals):
    path = tmp_path / "t.parquet"
    write_table(signals, path)
    return path


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_other_cells_are_trained_once_alike_and_kept(tmp_path, table, signals):
    run = train(table, out=tmp_path / "run", log_gates=True, **(QUICK | ROLES | {"seed": 3, "baselines": True}))
    heard = Heard()
    flow = measure_gradients(run, table, progress=heard)
    assert heard.trained == ["LSTM", "plain RNN"]
    assert any("done once and kept in" in note for note in heard.notes)
    assert [c.folder for c in flow.cells.values()] == [
        run.folder,
        run.folder / "other_cells/lstm",
        run.folder / "other_cells/rnn",
    ]
    alone = train(table, out=tmp_path / "alone", **(QUICK | ROLES | {"seed": 3, "cell": "lstm"}))
    assert weights(alone.folder) == weights(run.folder / "other_cells/lstm")
    assert not (run.folder / "other_cells/lstm/no_memory").exists()
    for cell, one in flow.cells.items():
        if cell != "rnn":
            assert one.score == {"gru": run, "lstm": alone}[cell].results.model.summary["accuracy"]
        assert one.scored_on == "the test rows of t.parquet"
    again = Heard()
    assert measure_gradients(run, table, progress=again).to_dict() == flow.to_dict()
    assert again.notes == []


@pytest.mark.long
def test_a_half_trained_cell_is_gone_on_with_and_one_that_no_longer_fits_is_replaced(tmp_path, table, signals):
    settings = QUICK | ROLES | {"epochs": 3, "batch_size": 4}
    run = train(table, out=tmp_path / "run", **settings)
    with pytest.raises(Interrupted, match=r"while training the LSTM.*The same command goes on with it"):
        measure_gradients(run, table, progress=StopAfter(5))
    heard = Heard()
    measure_gradients(run, table, progress=heard)
    assert "Going on with it" in heard.notes[0]
    alone = Heard()
    straight = train(table, out=tmp_path / "straight", **(settings | {"cell": "lstm", "progress": alone}))
    assert heard.batches == 2 * alone.batches - 5  # of both, less what was done before
    assert weights(run.folder / "other_cells/lstm") == weights(straight.folder)
    lstm = run.folder / "other_cells/lstm"
    text = (lstm / "config.yaml").read_text()
    for stale in (text.replace("seed: 0", "seed: 1"), re.sub(r"table_sha256: \w+", "table_sha256: abc", text)):
        assert stale != text
        (lstm / "config.yaml").write_text(stale)
        heard = Heard()
        measure_gradients(run, table, progress=heard)
        assert heard.trained == ["LSTM"]
        assert weights(lstm) == weights(straight.folder)


def test_another_table_is_measured_while_the_runs_own_trains(tmp_path, table):
    run = train(table, out=tmp_path / "run", **(QUICK | ROLES))
    other = tmp_path / "u.parquet"
    write_table(signal_table(groups=9, seed=5), other)
    flow = measure_gradients(run, other, progress=False)
    assert (flow.what, flow.predictions) == ("all rows of u.parquet", 9)
    assert flow.cells["rnn"].scored_on == "the test rows of t.parquet"


def test_without_the_table_of_the_training_it_says_what_to_do(tmp_path, table, signals):
    run = train(table, out=tmp_path / "run", **(QUICK | ROLES))
    write_table(signal_table(seed=5), table)
    with pytest.raises(
        SettingsError, match=r"t\.parquet has changed since.*Bring the file back, or name it as the table"
    ):
        measure_gradients(run, table, progress=False)
    table.unlink()
    with pytest.raises(SettingsError, match=r"t\.parquet is not there any more"):
        measure_gradients(run, signals, progress=False)
    assert not (run.folder / "other_cells").exists()
    moved = tmp_path / "moved.parquet"
    write_table(signals, moved)  # the same bytes under another name
    assert measure_gradients(run, moved, progress=False).predictions > 0


def test_a_run_on_a_table_in_memory_takes_that_table_again_and_no_other(tmp_path, signals):
    run = train(signals, out=tmp_path / "run", **(QUICK | ROLES))
    with pytest.raises(SettingsError, match="trained on a table in memory, and the table is another one"):
        measure_gradients(run, signals.with_columns(pl.col("x") * 2), progress=False)
    measure_gradients(run, signals, progress=False)
    heard = Heard()
    measure_gradients(run, signals, progress=heard)
    assert heard.notes == []


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_a_run_of_another_cell_has_a_gru_trained_beside_it(tmp_path, table, cell):
    run = train(table, out=tmp_path / "run", cell=cell, **(QUICK | ROLES))
    flow = measure_gradients(run, table, progress=False)
    assert list(flow.cells) == CELLS
    assert flow.cells[cell].folder == run.folder
    assert (run.folder / "other_cells/gru/model.safetensors").is_file()


def test_runs_that_have_no_gradient_to_follow_are_refused(tmp_path, table, signals):
    bare = train(table, out=tmp_path / "bare", cell="none", **(QUICK | ROLES))
    with pytest.raises(SettingsError, match="cell='none': without a recurrence no gradient goes back"):
        measure_gradients(bare, table, progress=False)
    run = train(table, out=tmp_path / "run", **(QUICK | ROLES))
    with pytest.raises(DataError, match="has a step before it"):
        measure_gradients(run, signals.filter(pl.col("t") == 0), progress=False)
    (run.folder / "results.json").unlink()
    with pytest.raises(RunError, match="is not finished"):
        measure_gradients(load(run.folder), table, progress=False)


# --- what is told --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    path = folder / "<b>t&.parquet"
    frame = signal_table(groups=40).with_columns(
        label=pl.when(pl.col("label") == "up").then(pl.lit("<script>alert(1)</script>")).otherwise("label")
    )
    write_table(frame.rename({"label": "<i>y</i>"}), path)
    run = train(
        path, out=folder / "<u>run", log_gates=True, **(QUICK | ROLES | {"target": "<i>y</i>", "num_layers": 2})
    )
    return measure_gradients(run, path, progress=False)


def told(flow, *, scores=None, medians=None):
    """The flow with other figures."""
    cells = {}
    for cell, one in flow.cells.items():
        h = one.h if medians is None else dataclasses.replace(one.h, median=np.array(medians[cell]))
        score = one.score if scores is None else scores[cell]
        cells[cell] = dataclasses.replace(one, h=h, score=score)
    return dataclasses.replace(flow, cells=cells)


def test_frame_dictionary_and_table_hold_the_same_figures(flow):
    frame, values = flow.to_frame(), flow.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert frame.group_by("cell", "state", maintain_order=True).len()["len"].to_list() == [len(flow.counts)] * 4
    gru = frame.filter((pl.col("cell") == "gru") & (pl.col("state") == "h"))
    assert gru["median"].to_list() == values["cells"]["gru"]["h"]["median"]
    assert gru["predictions"].to_list() == values["predictions_that_reach"]
    assert (frame["lower_quartile"] <= frame["median"]).all()
    assert (frame["median"] <= frame["upper_quartile"]).all()
    assert gru["median"][0] == 1.0
    assert flow.counts[0] == flow.predictions == values["predictions"]
    text = str(flow)
    for flow_ in flow.cells.values():
        assert f"{flow_.parameters:,}" in text
    assert values["cells"]["rnn"]["c"] is None


def test_a_plain_rnn_that_does_as_well_is_said_to(flow):
    for scores in ({"gru": 0.9, "lstm": 0.9, "rnn": 0.9}, {"gru": 0.9, "lstm": 0.9, "rnn": 0.95}):
        assert "The plain RNN does as well here as the GRU or better" in str(told(flow, scores=scores))
    ahead = str(told(flow, scores={"gru": 0.9, "lstm": 0.9, "rnn": 0.7}))
    assert "The GRU is ahead of the plain RNN by 0.2000 in accuracy" in ahead
    assert "does as well" not in ahead
    less = dataclasses.replace(told(flow, scores={"gru": 0.5, "lstm": 0.5, "rnn": 0.7}), more_is_better=False)
    assert "The GRU is ahead" in str(less)


def test_sentences_say_what_the_medians_are(flow):
    K = len(flow.counts)
    k = np.arange(K)
    curves = {"gru": 0.8**k, "lstm": 0.9**k, "rnn": 0.3**k}
    text = str(told(flow, medians=curves))
    assert "10 steps back the plain RNN's gradient is 0.0000059 of what it was, the GRU's 0.11, the LSTM's 0.35" in text
    assert (
        "Half of it is gone after 1 step in the plain RNN, after 4 steps in the GRU, after 7 steps in the LSTM" in text
    )
    assert "after 6 steps in the plain RNN, not within" in text
    assert "None of the three explodes." in text
    rnn = flow.cells["rnn"]
    some = dataclasses.replace(rnn, h=dataclasses.replace(rnn.h, ever_above=0.125))
    now_and_then = str(dataclasses.replace(told(flow, medians=curves), cells=flow.cells | {"rnn": some}))
    assert "explodes as a median; in single predictions it does: 12.5% of them (plain RNN)" in now_and_then
    assert "no more of the gradient that far back" not in text
    assert "no more of the gradient that far back" in str(told(flow, medians=curves | {"gru": 0.2**k}))
    explodes = str(told(flow, medians=curves | {"rnn": 2.0**k}))
    assert "The plain RNN's gradient explodes" in explodes
    assert "None of the three explodes" not in explodes


def test_few_predictions_are_told_to_be_few(flow):
    def of(n: int) -> str:
        return str(dataclasses.replace(flow, predictions=n, counts=np.full_like(flow.counts, n)))

    assert "may be chance." not in of(20)
    assert "Only 19 predictions could be measured" in of(19)
    assert "Only 1 prediction could be measured" in of(1)


def test_the_first_step_with_no_more_than_a_share_left_is_found():
    reach = Reach(np.zeros(5), np.array([1.0, 2.0, 0.5, 0.6, 0.01]), np.ones(5), 4, 0.0)
    assert [reach.left_after(s) for s in (0.5, 0.1)] == [2, None]  # the fifth is not among those shown
    assert (reach.largest, reach.exploded) == (2.0, False)
    assert dataclasses.replace(reach, median=np.array([1.0, 11.0, 1, 1, 1])).exploded


def test_the_page_is_one_file_without_scripts_network_or_unescaped_names(flow, tmp_path):
    path = tmp_path / "page.html"
    flow.write_html(path)
    html = path.read_text()
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=|url\(|@import", html)
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    for raw in ("<b>t&", "<i>y</i>", "<u>run"):
        assert raw not in html
    for escaped in ("&lt;b&gt;t&amp;", "&lt;i&gt;y", "&lt;u&gt;run"):
        assert escaped in html
    for text, _ in flow.sentences:
        assert text.replace("'", "&#39;").split("<")[0] in html
    assert html.count("<polygon") == 4  # a band a curve
    assert 'aria-label="Mean update gate z"' in html  # logged while training
    assert "prefers-color-scheme" in html
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_the_figure_has_a_line_a_curve_on_a_log_scale(flow, tmp_path):
    figure = flow.plot()
    (axis,) = figure.axes
    assert axis.get_yscale() == "log"
    assert len(axis.lines) == 4
    assert len({line.get_linestyle() for line in axis.lines} | {str(line._dash_pattern) for line in axis.lines}) >= 4
    figure.savefig(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 10_000
