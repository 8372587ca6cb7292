"""What is counted of the gates, held against plain loops, published figures and cases with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tidegate.gates.gates import Gates
from tidegate.gates.sentences import described
from tidegate.gates.statistics import Counter, UnitStatistics, median_wait


def gates(update: torch.Tensor, reset: torch.Tensor | None = None, hidden: torch.Tensor | None = None) -> Gates:
    reset = torch.rand_like(update) if reset is None else reset
    hidden = torch.rand_like(update) if hidden is None else hidden
    return Gates(reset, update, torch.zeros_like(update), torch.zeros_like(update), hidden)


def counted(update: torch.Tensor, lengths=None, resets=None, **options) -> UnitStatistics:
    counter = Counter(**options)
    counter.add(gates(update), None if lengths is None else torch.tensor(lengths), resets)
    return counter.result()


def by_hand(update: np.ndarray, lengths: list[int], reverse: bool) -> np.ndarray:
    """Memory lengths by loops: every wait followed step by step, the product-limit estimate over a list of waits."""
    out = []
    for u in range(update.shape[2]):
        waits = []
        for b, length in enumerate(lengths):
            z = update[:length, b, u][:: -1 if reverse else 1]
            for t in range(length - 1):
                left, k = 1.0, 0
                while t + k + 1 < length and left > 0.5:
                    k += 1
                    left *= z[t + k]
                waits.append((k, left <= 0.5))
        survival, median = 1.0, math.inf
        for k in sorted({k for k, over in waits if over}):
            risk = sum(wait >= k for wait, _ in waits)
            survival *= 1 - sum(wait == k and over for wait, over in waits) / risk
            if survival <= 0.5 + 1e-12:
                median = k
                break
        out.append(median)
    return np.array(out, dtype=float)


@pytest.mark.parametrize("z", [0.01, 0.3, 0.5, 0.500001, 0.6, math.sqrt(0.5), 0.9, 0.99, 0.5 ** (1 / 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_gate_forgets_half_after_the_steps_that_its_power_needs(z, dtype):
    update = torch.full((300, 1, 1), z, dtype=dtype)
    (found,) = counted(update).memory_length_steps
    z = update[0].item()  # in float32 not quite the z above
    assert found == next(k for k in range(1, 300) if z**k <= 0.5 * (1 + 1e-7))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_memory_lengths_are_those_of_plain_loops(seed, reverse):
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in rng.integers(0, 24, 7)] + [1, 24]
    update = rng.random((24, len(lengths), 6)) ** np.array([0.02, 0.1, 0.3, 0.6, 1, 3])
    found = counted(torch.tensor(update), lengths, reverse=reverse).memory_length_steps
    np.testing.assert_array_equal(found, by_hand(update, lengths, reverse))
    assert len(set(found)) >= 3


def test_the_median_of_waits_is_that_of_the_published_leukemia_trial():
    # Remissions in weeks, Freireich et al. 1963, Blood 21; "+" in the paper: still in remission. The medians are 23 and 8.
    treated = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    control = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23], []
    columns = [np.stack([np.bincount(w, minlength=40) for w in kind]) for kind in zip(treated, control, strict=True)]
    assert median_wait(columns[0].T, columns[1].T).tolist() == [23, 8]


def test_a_median_is_reached_where_exactly_half_is_left():
    over = np.array([[0, 0], [1, 1], [1, 1], [0, 2]])
    assert median_wait(over, np.zeros_like(over)).tolist() == [1, 2]


def test_what_is_added_in_parts_is_what_is_added_at_once():
    update = torch.rand(9, 5, 4, dtype=torch.float64) ** 0.2
    lengths = [9, 4, 0, 1, 7]
    together = Counter()
    whole, parts = gates(update), Counter()
    together.add(whole, torch.tensor(lengths))
    for b, length in enumerate(lengths):  # the short ones come without their padding
        parts.add(Gates(*(v[:length, b : b + 1] for v in whole)))
    ours, theirs = together.result(), parts.result()
    for name, value in ours.columns().items():
        if name.endswith("mean"):  # sums in another order
            np.testing.assert_allclose(value, theirs.columns()[name], rtol=1e-14)
        else:
            np.testing.assert_array_equal(np.array(value), np.array(theirs.columns()[name]), err_msg=name)
    assert (ours.steps, ours.sequences, ours.longest) == (theirs.steps, theirs.sequences, theirs.longest) == (21, 4, 9)


def test_padding_is_not_counted():
    update = torch.rand(9, 2, 4, dtype=torch.float64)
    spoilt = update.clone()
    spoilt[3:, 1] = torch.nan
    alone, padded = Counter(), Counter()
    alone.add(gates(*3 * [update[:3, 1:]]))
    padded.add(gates(*3 * [spoilt[:, 1:]]), torch.tensor([3]))
    for name, value in alone.result().columns().items():
        np.testing.assert_array_equal(np.array(value), np.array(padded.result().columns()[name]), err_msg=name)


def test_a_reset_ends_every_memory():
    update = torch.full((30, 1, 1), 0.999)
    assert counted(update).memory_length_steps[0] == math.inf
    resets = torch.zeros(30, 1, dtype=torch.bool)
    resets[::5] = True
    assert (
        counted(update, resets=resets).memory_length_steps[0] == 3
    )  # waits of 1 to 5 steps, and the last ones cut off
    assert not counted(update, resets=resets).never_forgot[0]


def test_a_direction_that_reads_backwards_is_new_before_the_step_at_which_a_session_begins():
    update, resets = torch.full((9, 1, 1), 0.999), torch.zeros(9, 1, dtype=torch.bool)
    resets[0] = True  # nothing lies before it: backwards it ends no memory, forwards there was none
    assert counted(update, resets=resets, reverse=True).never_forgot[0]
    assert counted(update, resets=resets).never_forgot[0]
    resets[0], resets[1] = False, True  # backwards the last wait, from step 1 to step 0, ends
    assert not counted(update, resets=resets, reverse=True).never_forgot[0]
    resets[1], resets[8] = False, True
    assert not counted(update, resets=resets, reverse=False).never_forgot[0]
    assert counted(update[:8], resets=resets[:8], reverse=True).never_forgot[0]


def test_zoneout_keeps_its_share_whatever_the_gate_says():
    # 0.2 + 0.8 * 0.3 of the state stays
    assert counted(torch.full((99, 1, 1), 0.3), zoneout=0.2).memory_length_steps[0] == 1
    assert counted(torch.full((99, 1, 1), 0.3), zoneout=0.9).memory_length_steps[0] == math.ceil(
        math.log(0.5) / math.log(0.9 + 0.1 * 0.3)
    )


def test_shares_means_and_ranges_are_those_of_the_values():
    values = torch.tensor([0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.2, 0.01])[:, None, None]
    counter = Counter()
    counter.add(gates(values, 1 - values, 2 * values - 1))
    s = counter.result()
    assert s.update_near_0[0] == s.reset_near_1[0] == 2 / 8  # 0.1 itself is not below 0.1
    assert s.update_near_1[0] == s.reset_near_0[0] == 2 / 8
    assert s.update_mean[0] == pytest.approx(values.mean())
    assert s.reset_mean[0] == pytest.approx(1 - values.mean())
    assert (s.low[0], s.high[0]) == pytest.approx((-0.98, 0.98))


def test_units_are_called_what_they_do():
    T = 60
    z = torch.tensor([0.999, 0.99, 0.95, 0.8, 0.1]).expand(T, 1, 5).clone()
    z[30, 0, 1] = 0.0  # keeps long, but forgets all once
    hidden = torch.linspace(-1, 1, T)[:, None, None].expand(T, 1, 5).clone()
    hidden[..., 3] = 0.5
    counter = Counter()
    counter.add(gates(z, hidden=hidden))
    s = counter.result()
    assert s.memory_length_steps.tolist() == [math.inf, 23, 14, 4, 1]
    assert s.kinds() == ["never forgets", "long memory", "short memory", "still", "follows the input"]
    assert s.long == 20  # one unit in twenty, here one, holds on for longer
    assert s.order.tolist() == [0, 1, 2, 3, 4]
    assert described(s)[0][0] == (
        "5 units: 1 remembers over 20 steps; 1 never forgets; 1 remembers 2 to 20 steps; 1 follows the input; 1 never moves."
    )


def test_half_a_state_that_is_gone_at_once_follows_the_input_and_has_no_longer_wait():
    s = counted(torch.zeros(10, 2, 3))
    assert s.kinds() == ["follows the input"] * 3
    assert (s.memory_length_steps == 1).all()


def test_sequences_of_one_step_say_nothing_about_memory():
    s = counted(torch.rand(1, 5, 3))
    assert np.isinf(s.memory_length_steps).all()
    assert not s.never_forgot.any()


def test_a_counter_of_nothing_says_so():
    counter = Counter()
    counter.add(gates(torch.rand(0, 3, 4)))
    counter.add(gates(torch.rand(5, 2, 4)), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="No step"):
        counter.result()
