"""What changes the recurrence of a run goes with it into every file, or is refused with the formats that would do."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import tidegate
from tests.helpers.compiling import STRICT, Library, compile_c, header_of, name_of, run_program
from tests.helpers.runs import CASES_OF, batch_of, folder_of, run_of, sensors, table_of
from tests.helpers.tables import QUICK
from tidegate.errors import SettingsError, TidegateError
from tidegate.export import TARGETS, take_apart
from tidegate.export import pt2 as target
from tidegate.run import load

OPTIONS = ["reset before", "layer norm", "zoneout", "learned start", "every option"]
OPTIONS += ["reset before both ways", "learned start both ways", "every option both ways"]


# ------------------------------------------------------------------------------------------------ C


@pytest.mark.long
@pytest.mark.parametrize("flags", [("-O2",), ("-O1", "-DTIDEGATE_NO_MATH"), ("-O3", "-ffast-math")], ids=str)
@pytest.mark.parametrize("bits", ["", "8"])
def test_the_self_tests_pass_with_every_option(tmp_path: Path, flags: tuple[str, ...], bits: str) -> None:
    for case in OPTIONS:
        source = header_of(case, bits).with_name(f"{name_of(case)}_test.c")
        done = run_program(compile_c(source, tmp_path / "a", *STRICT, *flags))
        assert done.returncode == 0, done.stdout


CHANGES = {
    "every option": [
        ("sigmoid", r"a\[u\] \+ b\[u\]\)", "a[u] - b[u])"),
        ("what the reset gate lets through", r"a\[u\] \* h\[u\]", "h[u]"),
        ("the candidate's gain", r"g_hh \+ 2 \* EVERY_OPTION_HIDDEN", "g_hh"),
        ("variance", r"squares / \(float\)count", "squares"),
        ("epsilon", r"\+ 1e-05f", "+ 0.1f"),
        ("zoneout", r"0\.2f \* \(1\.0f - z\)", "0.21f * (1.0f - z)"),
        ("the start", r"every_option_initial\[l \*", "0.9f * every_option_initial[l *"),
    ],
    "every option both ways": [
        ("the second start", r"\(2 \* l \+ backwards\) \*", "(2 * l) *"),
        ("a gain", r"layer->g_ih, layer->b_ih, 2", "layer->g_hh, layer->b_ih, 2"),
    ],
    "reset before": [("the candidate's bias", r"layer->b_hh \+ 2 \* RESET_BEFORE_HIDDEN", "layer->b_hh")],
}


@pytest.mark.parametrize("case", CHANGES)
def test_the_self_test_fails_where_an_option_is_computed_otherwise(tmp_path: Path, case: str) -> None:
    name = name_of(case)
    header = header_of(case).read_text(encoding="utf-8")
    shutil.copy(header_of(case).with_name(f"{name}_test.c"), tmp_path)
    for what, pattern, by in CHANGES[case]:
        changed, count = re.subn(pattern, by, header)
        assert count, what
        (tmp_path / f"{name}.h").write_text(changed, encoding="utf-8")
        done = run_program(compile_c(tmp_path / f"{name}_test.c", tmp_path / "a", "-O0", "-w"))
        assert (done.returncode, "WRONG" in done.stdout) == (1, True), what


def test_the_largest_state_may_be_far_below_where_states_without_a_learned_start_are(tmp_path: Path) -> None:
    settings = {"target": "whole", "group": "device", "time": "t", "per": "sequence", "pooling": "max"}
    options = {"features": ["x"], "bidirectional": False, "learn_initial_state": True, "epochs": 1}
    run = tidegate.train(sensors(), out=tmp_path / "run", **QUICK | settings | options)
    with torch.no_grad():
        run.model.core.initial_h.fill_(-9.0)
        for weight, value in (("weight_ih_l0", 0.0), ("weight_hh_l0", 0.0), ("bias_ih_l0", 9.0)):
            getattr(run.model.core, weight)[8:16] = value  # z is near 1, so that the state stays there
    run.export("c", tmp_path / "m.h")
    library = Library(tmp_path, {"m": run})
    batch = batch_of(run, sensors(), [0])
    found = library.drive("m", run, batch.numbers[0], batch.codes[0], batch.h_0[:, 0])
    assert found["h_n"].max() < -2
    np.testing.assert_allclose(found["scores"], batch.scores, rtol=1e-5)


ROOTS = """
#include <stdio.h>
#include <math.h>
#define TIDEGATE_NO_MATH
#include "layer_norm.h"
int main(void) {
  double worst = 0.0;
  uint32_t bits;
  for (bits = 0x00800000u; bits < 0x7f000000u; bits += 4093) {
    const float x = layer_norm_float_of(bits);
    const float right = (float)(1.0 / sqrt((double)x));
    const double unit = (double)(nextafterf(right, 2.0f * right) - right);
    worst = fmax(worst, fabs((double)layer_norm_one_over_root(x) - 1.0 / sqrt((double)x)) / unit);
  }
  printf("%.3f", worst);
  return 0;
}
"""


def test_the_headers_own_root_keeps_its_bound(tmp_path: Path) -> None:
    header = header_of("layer norm")
    (stated,) = re.findall(
        r"at most (\d) units in the last place off\. \*/\n  float y", header.read_text(encoding="utf-8")
    )
    shutil.copy(header, tmp_path)
    (tmp_path / "r.c").write_text(ROOTS, encoding="utf-8")
    worst = float(run_program(compile_c(tmp_path / "r.c", tmp_path / "a", "-std=c99", "-O2")).stdout)
    assert 0.4 < worst <= float(stated)


# ------------------------------------------------------------------------------------------------ the learned start


@pytest.mark.long
@pytest.mark.parametrize("name", ["learned start", "learned start both ways"])
def test_the_description_has_the_learned_state_to_the_last_bit(name: str, tmp_path: Path) -> None:
    run = run_of(name)
    told = json.loads(take_apart(run).to_json())["initial_h"]
    np.testing.assert_array_equal(np.array(told, np.float32), run.model.core.initial_h.detach().numpy())
    assert "initial_h" not in take_apart(run_of("class")).description
    note = "The state that sequences begin at is learned: as h_0 give, for each of them, what tidegate.json has as initial_h."
    assert note in run.export("pt2", tmp_path / "run.pt2").notes
    assert note not in run_of("class").export("pt2", tmp_path / "class.pt2").notes


@pytest.mark.long
def test_fed_as_h_0_it_gives_what_predict_gives(tmp_path: Path) -> None:
    run, frame = run_of("learned start"), table_of("learned start")
    extra = {"tidegate.json": ""}
    program = torch.export.load(run.export("pt2", tmp_path / "run.pt2").path, extra_files=extra).module()
    about = json.loads(extra["tidegate.json"])
    batch = batch_of(run, frame)
    h_0 = torch.tensor(about["initial_h"])[:, None].repeat(1, len(batch.lengths), 1)
    given = {name: torch.from_numpy(getattr(batch, name)) for name in ("numbers", "codes", "lengths")}
    found = program(**given, h_0=h_0)["prediction"][..., 0].detach().numpy()
    ours = run.predict(frame)["prediction"].to_list()
    assert [about["target"]["classes"][k] for k in found[batch.inside]] == _in_order_of(batch, run, frame, ours)


def _in_order_of(batch, run, frame: pl.DataFrame, values: list[str]) -> list[str]:
    """Values of a table's rows as a batch has them: sequence by sequence."""
    from tidegate.data.tables import Table

    rows = run.preprocessing.apply(Table(frame, "table"), with_target=False).rows
    return [values[k] for k in rows]


# ------------------------------------------------------------------------------------------------ what is refused


REFUSED = [(to, name) for to, cases in CASES_OF.items() for name in OPTIONS if name not in cases]


@pytest.mark.parametrize(("to", "name"), REFUSED)
def test_a_core_that_a_format_cant_compute_is_refused_with_the_formats_that_do(
    to: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(
        SettingsError, match=rf"^to='{to}': the core of .* has no .* compute .*; or train a run without\.$"
    ) as said:
        run_of(name).export(to, tmp_path / f"m{TARGETS[to].suffix}")
    named = set(re.findall(r"to='(\w+)'", str(said.value))) - {to}
    assert named == {other for other in TARGETS if name in CASES_OF[other]}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cell", ["lstm", "rnn", "none"])
@pytest.mark.parametrize("to", TARGETS)
def test_a_cell_that_no_format_has_is_refused_with_what_would_do(cell: str, to: str, tmp_path: Path) -> None:
    settings = {"target": "label", "group": "device", "time": "t", "features": ["x"], "cell": cell, "epochs": 1}
    run = tidegate.train(sensors(), out=False, **QUICK | settings)
    said = rf"is '{cell}'; what is exported are GRUs\. Train one with cell='gru'.*predict over tables, stream row by row\.$"
    with pytest.raises(SettingsError, match=said):
        run.export(to, tmp_path / f"m{TARGETS[to].suffix}")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ looked at before it is written


@pytest.mark.long
def test_an_archive_that_gives_other_numbers_is_not_written(tmp_path: Path) -> None:
    parts = take_apart(run_of("labels"))
    said = target.write(parts, tmp_path / "right.pt2").notes[-1]
    assert said.startswith(
        f"Checked with PyTorch {torch.__version__}: on made-up sequences its scores differ from Tidegate's"
    )
    wrong = dataclasses.replace(parts, head_bias=parts.head_bias + np.float32(0.01))
    with pytest.raises(TidegateError, match=r"Nothing was written: PyTorch .*its scores differ .* more than 0\.001"):
        target.write(wrong, tmp_path / "wrong.pt2")
    assert [p.name for p in tmp_path.iterdir()] == ["right.pt2"]


@pytest.mark.long
def test_a_run_whose_own_scores_are_no_numbers_is_refused(tmp_path: Path) -> None:
    run = load(folder_of("number"))
    with torch.no_grad():
        run.model.head.bias.fill_(torch.nan)
    with pytest.raises(SettingsError, match="NaN or infinite already in Tidegate"):
        run.export("pt2", tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
