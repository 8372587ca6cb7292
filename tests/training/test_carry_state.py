"""--carry-state: windows of a sequence follow each other in training, and the state is handed on, detached."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

import tidegate
from tests.helpers.native import on_threads
from tests.helpers.tables import QUICK, signal_table
from tests.helpers.training import ROLES, StopAfter, same_weights
from tidegate.data.fitting import fit_preprocessing
from tidegate.data.sequences import TRAIN
from tidegate.data.settings import DataSettings
from tidegate.data.tables import read_table, write_table
from tidegate.errors import RunError, SettingsError
from tidegate.model.cells import CELLS, parts_of
from tidegate.trained.rows import batch_source
from tidegate.trained.settings import TrainSettings
from tidegate.training import Interrupted, train
from tidegate.training.checkpoint import load_checkpoint
from tidegate.training.journal import Journal
from tidegate.training.lanes import Lanes
from tidegate.training.loop import Loop
from tidegate.training.progress import Silent
from tidegate.training.resolve import build, complete, model_spec
from tidegate.training.updates import ByKernels, ByTorch

pytestmark = pytest.mark.usefixtures("ctrl_c")
# Sequences of 12 to 40 steps in windows of 7, four side by side.
TOLD = QUICK | ROLES | {"carry_state": True, "window": 7, "batch_size": 4, "epochs": 3}
STATES = "the states that are carried on"
LAST = "checkpoints/last.safetensors"
EXACT = {"dropout": 0.0, "word_dropout": 0.0}
CORES = {
    "GRU": {},
    "two layers": {"num_layers": 2},
    "layer norm and a learned state": {"layer_norm": True, "learn_initial_state": True, "reset": "before"},
    "minGRU": {"cell": "mingru", "learn_initial_state": True},
    "LSTM": {"cell": "lstm", "num_layers": 2},
    "plain RNN": {"cell": "rnn"},
}
ROADS = {"kernels": ByKernels, "torch": ByTorch}


@pytest.fixture(autouse=True)
def no_onednn():
    """It makes the LSTM of every new number of steps a program of its own first, which takes most of the time here."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.fixture(scope="module")
def long_table() -> pl.DataFrame:
    return signal_table(groups=16, seed=4, least=12, most=40)


@pytest.fixture
def path(tmp_path, long_table):
    write_table(long_table, tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def loop_of(frame, road=None, monkeypatch=None, **more) -> Loop:
    settings = TOLD | EXACT | more
    settings.pop("progress")
    if road is not None:
        monkeypatch.setattr("tidegate.training.loop.updates_of", road)
    chosen = TrainSettings.make(**settings)
    reading = {k: v for k, v in settings.items() if k in DataSettings.model_fields}
    pre, data = fit_preprocessing(read_table(frame), DataSettings.make(**reading), 0)
    full, cpu = complete(chosen, data), torch.device("cpu")
    model = build(model_spec(chosen, pre, data), pre, full, cpu)
    for name, weight in model.named_parameters():
        if name.endswith("initial_h"):  # learned, and not zero
            weight.data.copy_(torch.linspace(0.1, 0.9, weight.numel()).view(weight.shape))
    model.train()
    return Loop(model, pre, batch_source(data, pre, cpu), full, journal=Journal(), progress=Silent())


def stretch_before(loop: Loop, start: int, limit: int) -> int:
    """Where the stretch of training rows began that has this step and ends at `limit`."""
    (found,) = [first for first, last in loop.source.data.segments(TRAIN) if first <= start and last == limit]
    return int(found)


# --- held against PyTorch alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("road", ROADS)
def test_training_is_that_of_a_plain_loop_over_torchs_own_layer_with_the_state_detached(
    monkeypatch, long_table, road, cell
):
    """The loop knows no batch: one row after the other, without padding, each with the state that is kept by its number."""
    loop = loop_of(long_table, ROADS[road], monkeypatch, cell=cell)
    model, source = loop.model, loop.source
    layer = (nn.GRU if cell == "gru" else nn.LSTM)(model.spec.input_width, model.spec.hidden_size)
    layer.load_state_dict(model.core.state_dict())
    embedding, head = (
        nn.Embedding.from_pretrained(model.embeddings[0].weight.detach().clone(), freeze=False),
        nn.Linear(8, 2),
    )
    head.load_state_dict(model.head.state_dict())
    learned = [*embedding.parameters(), *layer.parameters(), *head.parameters()]
    adam = torch.optim.Adam(learned, lr=0.01)
    states: dict[int, object] = {}
    carried = 0
    for arguments in loop.batches():
        ours, _ = loop.update(arguments, 0.01, 1)
        loss, count = torch.zeros(()), 0
        for row, (start, length, _, _, fresh) in enumerate(zip(*(a.tolist() for a in arguments), strict=True)):
            steps = slice(start, start + length)
            x = torch.cat([source.numbers[steps], embedding(source.codes[steps, 0])], dim=-1)
            output, state = layer(x, None if fresh else states[row])
            states[row] = state.detach() if cell == "gru" else tuple(s.detach() for s in state)
            loss = loss + cross_entropy(head(output), source.y[steps], reduction="sum")
            count += length
            carried += not fresh
        adam.zero_grad()
        (loss / count).backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        adam.step()
        assert ours == pytest.approx(loss.item(), rel=1e-5)
    assert carried > 20
    for theirs, found in zip(learned, model.parameters(), strict=True):
        assert torch.allclose(found, theirs, atol=2e-5)


@pytest.mark.parametrize("name", CORES)
def test_the_gradient_is_that_of_autograd_from_the_state_at_the_end_of_all_earlier_windows(long_table, name):
    """The weights stay as they are here, so the state of a window is that after one call over all that comes before it."""
    loop = loop_of(long_table, **CORES[name])
    model, source = loop.model, loop.source
    learned = [*model.parameters()]
    compared, before = 0, ()
    for arguments in loop.batches():
        starts, lengths, limits, _, fresh = arguments
        batch = source.training_batch(arguments)
        lanes = Lanes.of(model, arguments, before)
        loss, count, found = loop.update.gradients(batch.numbers, batch.codes, lengths, batch.y, 3, lanes)
        before = lanes.after
        expected = torch.zeros(())
        for row, (start, length, limit) in enumerate(
            zip(starts.tolist(), lengths.tolist(), limits.tolist(), strict=True)
        ):
            first, state = stretch_before(loop, start, limit), None
            assert (first == start) == bool(fresh[row])
            if first < start:
                with torch.no_grad():
                    state = run(model, source, first, start)[1]
            scores, state = run(model, source, start, start + length, state)
            expected = expected + loop.task.loss_sum(scores, batch.y[:length, row : row + 1], None)[0]
            for part, left in zip(parts_of(state), lanes.after, strict=True):
                assert torch.allclose(part[:, 0], left[:, row], atol=1e-6)
                assert not left.requires_grad
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        exact = torch.autograd.grad(expected / count, learned, allow_unused=True)
        for ours, theirs in zip(found, exact, strict=True):
            assert (ours is None or not ours.any()) == (theirs is None)
            if theirs is not None:
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        compared += int((~fresh).sum())
    assert compared > 20


def run(model, source, first: int, last: int, state=None):
    steps = slice(first, last)
    return model(source.numbers[steps, None], source.codes[steps, None], torch.tensor([last - first]), state)


def test_rows_of_a_batch_may_be_computed_some_at_a_time(long_table):
    loop = loop_of(long_table)
    before = ()
    for arguments in loop.batches()[:4]:
        batch = loop.source.training_batch(arguments)
        rows, half = len(batch.lengths), len(batch.lengths) // 2
        whole, parts = (Lanes.of(loop.model, arguments, before) for _ in range(2))
        loop.update.gradients(batch.numbers, batch.codes, batch.lengths, batch.y, 3, whole)
        for a, b in ((0, half), (half, rows)):
            loop.update.gradients(
                *(v[:, a:b].contiguous() for v in (batch.numbers, batch.codes)),
                batch.lengths[a:b],
                batch.y[:, a:b].contiguous(),
                3,
                parts.rows(a, b),
            )
        assert torch.equal(whole.after[0], parts.after[0])
        before = whole.after
    assert Lanes(None, (), ()).rows(1, 2).begin(loop.model) is None


@pytest.mark.parametrize("name", CORES)
def test_both_roads_end_at_the_same_weights_and_other_ones_than_without_a_state(monkeypatch, long_table, name):
    ours = loop_of(long_table, **CORES[name])
    assert isinstance(ours.update, ByKernels)
    torchs = loop_of(long_table, ByTorch, monkeypatch, **CORES[name])
    alone = loop_of(long_table, ByTorch, monkeypatch, **CORES[name])
    for arguments in ours.batches():
        for loop in (ours, torchs):
            loop.update(arguments, 0.01, 1)
        alone.update(arguments[:4], 0.01, 1)
    differ = 0.0
    for key, value in ours.model.state_dict().items():
        assert torch.allclose(value, torchs.model.state_dict()[key], atol=1e-4), key
        differ = max(differ, float((value - alone.model.state_dict()[key]).abs().max()))
    assert differ > 1e-3


# --- bits -------------------------------------------------------------------------------------------------------


def without_seconds(rows):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in rows]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("batches", [1, 2, 7, 12, 13, 20, 30])
@pytest.mark.parametrize("core", ["GRU", "layer norm and a learned state", "LSTM"])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, path, batches, core):
    told = TOLD | CORES[core] | {"baselines": batches == 7}
    whole = train(path, out=tmp_path / "whole", **told)
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "cut", **(told | {"progress": StopAfter(batches)}))
    resumed = train(out=tmp_path / "cut", resume=True, progress=False)
    assert same_weights(whole, resumed)
    assert without_seconds(resumed.history) == without_seconds(whole.history)


def test_every_batch_of_an_epoch_may_be_the_last_one_before_an_interruption(tmp_path, path):
    told = TOLD | {"epochs": 1, "hidden_size": 3}
    whole = train(path, out=False, **told)
    count = len(loop_of(path).batches())
    assert count > 10
    for batches in range(1, count):
        with pytest.raises(Interrupted):
            train(path, out=tmp_path / str(batches), **(told | {"progress": StopAfter(batches)}))
        assert len(load_checkpoint(tmp_path / str(batches) / LAST).carried) == 1
        assert same_weights(whole, train(out=tmp_path / str(batches), resume=True, progress=False))


@pytest.mark.parametrize("core", ["GRU", "two layers", "minGRU"])
def test_the_weights_are_the_same_on_any_number_of_threads(long_table, core):
    told = TOLD | CORES[core] | {"out": False, "hidden_size": 40}
    one, two, three = (on_threads(n, lambda: train(long_table, **told)) for n in (1, 2, 3))
    assert same_weights(one, two)
    assert same_weights(one, three)


@pytest.mark.parametrize("first", [ByTorch, ByKernels])
def test_a_run_goes_on_by_the_other_road(tmp_path, path, monkeypatch, first):
    told = TOLD | EXACT
    whole = train(path, out=False, **told)
    with monkeypatch.context() as patched:
        patched.setattr("tidegate.training.loop.updates_of", first)
        with pytest.raises(Interrupted):
            train(path, out=tmp_path / "run", **(told | {"progress": StopAfter(5)}))
    monkeypatch.setattr("tidegate.training.loop.updates_of", ByKernels if first is ByTorch else ByTorch)
    run = train(out=tmp_path / "run", resume=True, progress=False)
    for key, value in run.model.state_dict().items():
        assert torch.allclose(value, whole.model.state_dict()[key], atol=1e-4), key


# --- files ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_with_states_has_a_version_of_its_own_and_any_other_is_as_before(tmp_path, path):
    for name, told in {"carried": {}, "not": {"carry_state": False}}.items():
        with pytest.raises(Interrupted):
            train(path, out=tmp_path / name, **(TOLD | told | {"progress": StopAfter(3)}))
    version, arrays = header_of(tmp_path / "carried" / LAST)
    assert (version, [a for a in arrays if "carried" in a]) == (2, ["carried.0"])
    version, arrays = header_of(tmp_path / "not" / LAST)
    assert (version, [a for a in arrays if "carried" in a]) == (1, [])
    train(out=tmp_path / "carried", resume=True, progress=False)
    assert header_of(tmp_path / "carried" / LAST)[0] == 1  # between epochs there is nothing to carry


def header_of(path):
    with safe_open(path, framework="pt") as file:
        version = file.metadata()["tidegate"].split('"version": ')[1][0]
        return int(version), [*file.keys()]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda t: t.pop("carried.0"), STATES),
        (lambda t: t.update({"carried.1": t["carried.0"].clone()}), STATES),
        (lambda t: t.update({"carried.0": t["carried.0"][:, :2].contiguous()}), STATES),
        (lambda t: t.update({"carried.0": t["carried.0"].double()}), STATES),
        (lambda t: t.update({"carried.0": t.pop("carried.0").flatten()}), STATES),
        (lambda t: t.update({"carried.7": t.pop("carried.0")}), "an array 'carried.7'"),
    ],
)
def test_a_checkpoint_whose_states_do_not_fit_is_refused(tmp_path, path, damage, what):
    with pytest.raises(Interrupted):
        train(path, out=tmp_path / "run", **(TOLD | {"progress": StopAfter(3)}))
    with safe_open(tmp_path / "run" / LAST, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(tmp_path / "run" / LAST)
    damage(tensors)
    save_file(tensors, tmp_path / "run" / LAST, metadata=header)
    with pytest.raises(RunError, match=rf"last\.safetensors is damaged \({what}"):
        train(out=tmp_path / "run", resume=True, progress=False)


def test_a_run_and_its_report_say_that_the_state_was_carried(tmp_path, path):
    line = "Training carries the state from window to window (7 steps), 4 sequences side by side."
    train(path, out=tmp_path / "run", **TOLD)
    run = tidegate.load(tmp_path / "run")
    assert run.resolved.lanes == 4
    assert line in run.resolved.lines()
    assert line in (tmp_path / "run/report.md").read_text()
    assert line in (tmp_path / "run/report.html").read_text()
    assert "carry_state: true" in (tmp_path / "run/config.yaml").read_text()
    assert (
        train(path, out=False, **(TOLD | {"batch_size": 100})).resolved.lanes
        == 12
        == len(loop_of(path, batch_size=100).batches()[0][0])
    )
    one = train(path, out=False, **(TOLD | {"batch_size": 1, "epochs": 1}))
    assert any("one sequence at a time." in text for text in one.resolved.lines())
    train(path, out=tmp_path / "independent", **(TOLD | {"carry_state": False}))
    assert "lanes" not in (tmp_path / "independent/config.yaml").read_text()
    assert "carries the state" not in (tmp_path / "independent/report.md").read_text()


# --- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"bidirectional": True}, r"bidirectional=True reads from the last step, too\. Leave one of the two out"),
        ({"per": "sequence"}, r"with per='sequence' sequences are read whole\. Leave one of the two out"),
        ({"cell": "none"}, r"cell='none' has no state\. Leave one of the two out"),
        ({"window": 60}, r"the longest has \d\d rows, a window 60\. Say a smaller window, or leave carry_state out"),
        ({"window": None}, r"the longest has \d\d rows, a window 128\. Say a smaller window"),
    ],
)
def test_where_no_state_can_be_handed_on_a_sentence_says_so_before_any_work(tmp_path, path, told, message):
    with pytest.raises(SettingsError, match=message):
        train(path, out=tmp_path / "run", **(TOLD | told))
    assert not (tmp_path / "run").exists()


def test_the_window_has_the_default_of_128_and_epochs_count_the_longest_stretch():
    frame = signal_table(groups=9, least=130, most=160)
    frame = pl.concat([frame, signal_table(groups=1, least=6_000, most=6_000).with_columns(device=pl.lit("long"))])
    split = pl.when(pl.col("device") == "d0").then(pl.lit("valid")).otherwise(pl.lit("train"))
    settings = TrainSettings.make(**ROLES, split="split", carry_state=True, batch_size=8)
    _, data = fit_preprocessing(read_table(frame.with_columns(split=split)), settings, 0)
    full = complete(settings, data)
    assert full.window == 128
    assert full.epochs == round(2_000 / 47)  # windows of the long one; the others fit beside it
    assert complete(settings.model_copy(update={"carry_state": False}), data).epochs > 2 * full.epochs


def test_lists_are_read_forwards_then_and_a_run_that_reads_both_ways_cannot_be_gone_on_from(long_table):
    lists = long_table.group_by("device", maintain_order=True).agg("x", "label")
    told = {k: v for k, v in TOLD.items() if k not in ("group", "time")} | {"out": False, "epochs": 1}
    run = train(lists, **told)
    assert run.resolved.bidirectional is False
    both = train(lists, **(told | {"carry_state": False}))
    assert both.resolved.bidirectional is True
    with pytest.raises(SettingsError, match=r"the model of .* reads from the last step, too\. Leave carry_state out"):
        train(lists, from_run=both, carry_state=True, window=7, out=False, progress=False)


def test_cells_without_a_state_are_trained_on_independent_windows():
    settings = TrainSettings(target="label", carry_state=True)
    assert settings.with_cell("none").carry_state is False
    assert all(settings.with_cell(name).carry_state for name, row in CELLS.items() if row.state)


def test_bfloat16_carries_a_state_of_float32(long_table):
    loop = loop_of(long_table, precision="bf16", hidden_size=16)
    for arguments in loop.batches()[:3]:
        loop.update(arguments, 0.01, 1)
    (state,) = loop.update.carried
    assert state.dtype == torch.float32
    assert not torch.equal(state, state.bfloat16().float())
    assert train(long_table, precision="bf16", out=False, **TOLD).resolved.finished


def test_marks_of_many_windows_ago_are_learned_sooner_with_the_state():
    """The label of a step is the sign of the last mark, 40 to 120 steps apart; of windows of 4 steps, few have one."""
    rng, frames = np.random.default_rng(0), []
    for g in range(40):
        at = np.cumsum(np.append(0, rng.integers(40, 120, 6)))
        signs, steps = rng.choice([-1.0, 1.0], 7), np.arange(240)
        last = signs[np.searchsorted(at, steps, side="right") - 1]
        frames.append(
            pl.DataFrame(
                {
                    "device": [f"d{g}"] * 240,
                    "t": steps,
                    "mark": np.where(np.isin(steps, at), last, 0.0),
                    "x": rng.standard_normal(240),
                    "label": np.where(last > 0, "up", "down"),
                }
            )
        )
    told = TOLD | {"out": False, "window": 4, "epochs": 8, "batch_size": 8, "dropout": 0.0, "lr": 0.01}
    with_state, without = (
        train(pl.concat(frames), **(told | {"carry_state": carry})).results.model.summary["accuracy"]
        for carry in (True, False)
    )
    assert with_state > 0.98
    assert without < 0.95


def test_a_road_of_windows_alone_carries_nothing(long_table):
    loop = loop_of(long_table, carry_state=False)
    for arguments in loop.batches():
        loop.update(arguments, 0.01, 1)
        assert loop.update.carried == ()


def test_the_kernels_cut_what_pytorch_cuts(long_table):
    loop = loop_of(long_table, target=["x"], horizon=3)
    for arguments in loop.batches():
        batch = loop.source.training_batch(arguments)
        found = ByKernels.cut(SimpleNamespace(source=loop.source), arguments)
        for ours, theirs in zip(found, (batch.numbers, batch.codes, batch.y), strict=True):
            assert torch.allclose(ours.double(), theirs.double(), rtol=0, atol=0, equal_nan=True)
