"""docs/from-torch.md tells the truth: its Python runs, and what it says of each habit that no other test holds is so."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import tidegate
from tests.helpers.pages import ROOT, blocks

TEXT = (ROOT / "docs" / "from-torch.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_the_python_of_the_page_runs_as_written():
    code = "\n".join(blocks(TEXT, "python"))
    assert code.count("assert") >= 3
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_habit_has_an_answer():
    rows = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("| ")]
    habits = [row for row in rows if row[0].strip() not in ("habit", "---")]
    assert len(habits) >= 40
    for row in habits:
        assert len(row) == 3, row
        assert row[0].strip(), row
        assert row[1].strip() or row[2].strip(), row


def pair(**options):
    torch.manual_seed(1)
    theirs, ours = nn.GRU(4, 5, **options), tidegate.GRU(4, 5, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_a_change_through_data_is_seen_by_neither_and_hurts_long_calls_of_ours_alone():
    def gradients(layer, change):
        x = torch.randn(40, 100, 4, generator=torch.Generator().manual_seed(0))
        output, _ = layer(x)
        loss = output.sum()
        change(output)
        return torch.autograd.grad(loss, [*layer.parameters()])

    for layer, hurt in zip(pair(), (False, True), strict=True):
        expected, found, noticed = (
            gradients(layer, change)
            for change in (lambda v: None, lambda v: v.data.zero_(), lambda v: v.detach().zero_())
        )
        assert hurt != all(torch.allclose(a, b, rtol=1e-3) for a, b in zip(expected, found, strict=True))
        for a, b in zip(expected, noticed, strict=True):
            torch.testing.assert_close(a, b)


def test_what_is_no_longer_there_is_told_by_name():
    theirs, ours = pair()
    assert hasattr(theirs, "_flat_weights")
    assert not hasattr(ours, "_flat_weights")
    assert [w.shape for w in ours.all_weights[0]] == [w.shape for w in theirs._flat_weights]
    for make in (
        lambda: tidegate.GRU(4, 5, 1, True, False, 0.0, False, "cpu"),
        lambda: tidegate.GRU(4, 5, proj_size=2),
    ):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(ValueError, match="proj_size"):
        nn.GRU(4, 5, proj_size=2)


def test_no_steps_are_an_empty_output():
    theirs, ours = pair()
    output, h_n = ours(torch.zeros(0, 2, 4), torch.ones(1, 2, 5))
    assert output.shape == (0, 2, 5)
    assert torch.equal(h_n, torch.ones(1, 2, 5))
    with pytest.raises(RuntimeError):
        theirs(torch.zeros(0, 2, 4))


def test_nn_gru_has_no_vmap():
    theirs, ours = pair()
    xs = torch.randn(2, 6, 3, 4)
    assert torch.func.vmap(lambda x: ours(x)[0])(xs).shape == (2, 6, 3, 5)
    with pytest.raises(RuntimeError):
        torch.func.vmap(lambda x: theirs(x)[0])(xs)
