"""What an update does beside the recurrence: held against PyTorch in float64, on every instruction set and any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.helpers.native import FLOAT_ISAS, on_threads
from tidegate.ops import update
from tidegate.ops.gru import native
from tidegate.ops.gru.native import kernels


@pytest.fixture(params=FLOAT_ISAS, autouse=True)
def isa(request):
    before = native.kernels.isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    assert torch.allclose(ours.double(), exact, rtol=2e-5, atol=2e-6), (ours - exact).abs().max()


# ------------------------------------------------------------------------------------------------ the loss

SIZES = [(1, 1, 1), (7, 1, 3), (23, 2, 16), (40, 1, 73), (9, 3, 33)]  # rows, values ahead, scores of each


def targets(kind: int, rows: int, K: int, W: int) -> torch.Tensor:
    """A third of them missing, and of some rows all."""
    generator = torch.Generator().manual_seed(rows + W)
    missing = torch.rand(rows, K, generator=generator) < 0.3
    if kind == update.CLASSES:
        y = torch.randint(W, (rows, K), generator=generator)
        return torch.where(missing, torch.where(torch.rand(rows, K, generator=generator) < 0.5, -100, -103), y)
    y = torch.rand(rows, K, W, generator=generator)
    y = (y < 0.4).float() if kind == update.LABELS else 3 * y
    y[missing] = torch.nan
    y[..., 0][torch.rand(rows, K, generator=generator) < 0.2] = torch.nan
    return y


def exact_loss(kind: int, scores: torch.Tensor, y: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor:
    """In float64. scores [rows, K, W]."""
    if kind == update.CLASSES:
        weight = None if class_weights is None else class_weights.double()
        ignored = y.clamp(min=-100).flatten()
        return functional.cross_entropy(scores.flatten(0, 1), ignored, weight, ignore_index=-100, reduction="sum")
    known = ~torch.isnan(y)
    y = torch.where(known, y, 0).double()
    each = (
        functional.binary_cross_entropy_with_logits(scores, y, reduction="none")
        if kind == update.LABELS
        else (scores - y) ** 2
    )
    return torch.where(known, each, 0).sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("rows", "K", "W"), SIZES)
@pytest.mark.parametrize("kind", [update.CLASSES, update.LABELS, update.NUMBERS])
def test_the_loss_and_its_gradient_are_those_of_autograd_in_float64(kind, rows, K, W, weighted):
    if weighted and kind == update.LABELS:
        return  # neither classes to weigh nor a last value to start from
    y = targets(kind, rows, K, W)
    all_scores = 4 * normal(rows, K * W)
    all_scores[0] *= 30  # scores that leave float32's exp far behind
    scored = update.scored_rows(y, rows)
    there = y >= 0 if kind == update.CLASSES else ~torch.isnan(y)
    assert scored.targets == int(there.sum())
    assert scored.rows.tolist() == [r for r in range(rows) if there[r].any()]
    class_weights = 0.5 + torch.arange(W) / W if weighted and kind == update.CLASSES else None
    numbers, residual = None, None
    exact = all_scores.double().requires_grad_()
    shown = exact.view(rows, K, W)
    if weighted and kind == update.NUMBERS:
        numbers, residual = normal(rows, W + 2), torch.arange(W) + 1
        shown = shown + numbers[:, residual].double().unsqueeze(1)
    expected = exact_loss(kind, shown, y, class_weights)
    expected.backward()
    scores = all_scores[scored.rows]
    scale = 1 / max(scored.targets, 1)
    loss = update.loss(
        kind,
        scores,
        scored.rows,
        y,
        ahead=K,
        scale=scale,
        class_weights=class_weights,
        numbers=numbers,
        residual=residual,
    )
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    assert exact.grad is not None
    close(scores, exact.grad[scored.rows] * scale)


def test_a_score_that_is_no_number_makes_the_loss_none():
    for kind, y in (
        (update.CLASSES, torch.zeros(2, 1, dtype=torch.int64)),
        (update.LABELS, torch.zeros(2, 1, 20)),
        (update.NUMBERS, torch.zeros(2, 1, 20)),
    ):
        for bad in (torch.nan, torch.inf):
            scores = normal(2, 20)
            scores[1, 19] = bad
            loss = update.loss(kind, scores, torch.arange(2), y, ahead=1, scale=1.0)
            assert not torch.isfinite(torch.tensor(loss)), kind


# ------------------------------------------------------------------------------------------------ dropout


def test_dropout_keeps_its_share_of_values_scaled_up_and_backward_has_the_same_mask():
    drop = update.Dropout(None, 0.3, 99)
    x = torch.ones(500, 201)
    y = drop.forward(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)  # 4 standard deviations
    assert (y == 0).float().mean(dim=0).sub(0.3).abs().max() < 0.1  # of each column, and of each row
    assert (y == 0).float().mean(dim=1).sub(0.3).abs().max() < 0.17
    neighbours = [((y[1:] == 0) & (y[:-1] == 0)).float().mean(), ((y[:, 1:] == 0) & (y[:, :-1] == 0)).float().mean()]
    assert neighbours == pytest.approx([0.09, 0.09], abs=0.005)
    assert torch.equal(drop.backward(x, 500), y)
    assert torch.equal(drop.forward(x), y)
    others = [drop._replace(key=key).forward(x) for key in (98, 100, 2**64 - 1)]
    for other in others:
        assert ((other == 0) & (y == 0)).float().mean().item() == pytest.approx(0.09, abs=0.005)


def test_dropout_of_some_rows_takes_these_and_gives_the_others_no_gradient():
    x, rows = normal(9, 37), torch.tensor([0, 3, 4, 8])
    drop = update.Dropout(rows, 0.0, 1)
    assert torch.equal(drop.forward(x), x[rows])
    d = drop.backward(normal(4, 37, seed=1), 9)
    assert torch.equal(d[rows], normal(4, 37, seed=1))
    assert not d[[1, 2, 5, 6, 7]].any()
    some = drop._replace(rate=0.5)
    assert torch.equal(some.forward(x) / x[rows], some.backward(torch.ones(4, 37), 9)[rows])


# ------------------------------------------------------------------------------------------------ the encoder


def encoding(rates: bool = False, learned=(True, True)) -> update.Encoding:
    weights = [normal(11, 5), normal(4, 33)]
    given = [torch.tensor([0.0, *[rate] * (len(w) - 1)]) for w, rate in zip(weights, (0.4, 0.0), strict=True)]
    return update.Encoding(weights, given if rates else [], learned)


def batch_of_words(T: int, B: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.stack([torch.randint(n, (T, B), generator=generator) for n in (11, 4)], dim=-1)
    return normal(T, B, 3, seed=seed), codes


def test_the_encoder_and_its_gradients_are_those_of_embeddings_side_by_side():
    ours = encoding()
    exact = [w.double().requires_grad_() for w in ours.weights]
    for seed, (T, B) in enumerate([(6, 5), (1, 2), (4, 1)]):  # what an earlier batch left must not stay
        numbers, codes = batch_of_words(T, B, seed)
        found = ours.forward(numbers, codes, 0.0, 5)
        expected = torch.cat([numbers, *(functional.embedding(codes[..., k], w) for k, w in enumerate(exact))], dim=-1)
        assert torch.equal(found.double(), expected)
        d = normal(T, B, found.size(-1), seed=7)
        ours.backward(d)
        for w, (got, want) in enumerate(
            zip(ours.gradients, torch.autograd.grad(expected, exact, d.double()), strict=True)
        ):
            assert got is not None, w
            close(got, want)


def test_dropout_acts_on_vectors_and_never_on_numbers_and_their_gradients_have_its_mask():
    ours = encoding()
    numbers, codes = batch_of_words(40, 9)
    plain, dropped = ours.forward(numbers, codes, 0.0, 5), ours.forward(numbers, codes, 0.5, 5)
    assert torch.equal(dropped[..., :3], numbers)
    kept = dropped[..., 3:] != 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(dropped[..., 3:][kept], 2 * plain[..., 3:][kept])
    d = torch.ones_like(dropped)
    ours.backward(d)
    mask = 2.0 * kept.double()
    for k, (gradient, part) in enumerate(zip(ours.gradients, mask.split([5, 33], dim=-1), strict=True)):
        expected = torch.zeros(ours.weights[k].shape, dtype=torch.float64).index_add_(
            0, codes[..., k].flatten(), part.flatten(0, 1)
        )
        assert gradient is not None
        close(gradient, expected)


def test_a_word_is_read_as_unknown_as_often_as_its_rate_says_and_then_the_unknown_one_learns():
    ours = encoding(rates=True)
    numbers, codes = batch_of_words(200, 40)
    found = ours.forward(numbers, codes, 0.0, 3)
    unknown = (found[..., 3:8] == ours.weights[0][0]).all(dim=-1)
    assert unknown[codes[..., 0] > 0].float().mean().item() == pytest.approx(0.4, abs=0.025)
    assert torch.equal(found[..., 8:], ours.weights[1][codes[..., 1]])  # of the other column no word is
    ours.backward(torch.ones_like(found))
    assert ours.gradients[0] is not None
    assert ours.gradients[0][0, 0].item() == unknown.sum().item()


def test_a_frozen_embedding_has_no_gradient():
    ours = encoding(learned=(False, True))
    numbers, codes = batch_of_words(3, 4)
    ours.backward(torch.ones_like(ours.forward(numbers, codes, 0.0, 3)))
    assert ours.gradients[0] is None
    assert ours.gradients[1] is not None
    assert ours.gradients[1].any()


# ------------------------------------------------------------------------------------------------ Adam

SHAPES = [(1,), (3, 7), (64, 80), (4097,)]


def updates(clip: float, weight_decay: float, count: int = 40):
    """Weights and moments after some updates: ours, and torch's in float64."""
    ours = [normal(*shape) for shape in SHAPES]
    first, second = ([torch.zeros_like(w) for w in ours] for _ in range(2))
    exact = [w.double().requires_grad_() for w in ours]
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    torchs = kind(exact, lr=0.01, weight_decay=weight_decay)
    for k in range(count):
        gradients = [normal(*shape, seed=k) for shape in SHAPES]
        for w, g in zip(exact, gradients, strict=True):
            w.grad = g.double()
        if clip:
            torch.nn.utils.clip_grad_norm_(exact, clip)
        torchs.param_groups[0]["lr"] = lr = 0.01 / (1 + k)
        torchs.step()
        update.adam(
            ours, first, second, gradients, [k + 1.0] * len(ours), lr=lr, beta1=0.9, beta2=0.999, eps=1e-8,
            weight_decay=weight_decay, clip=clip,
        )  # fmt: skip
    return (ours, first, second), (exact, torchs)


@pytest.mark.parametrize("clip", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_clipping_and_adam_are_those_of_torch_in_float64(clip, weight_decay):
    (ours, first, second), (exact, torchs) = updates(clip, weight_decay)
    for k, w in enumerate(exact):
        close(ours[k], w.detach())
        close(first[k], torchs.state[w]["exp_avg"])
        close(second[k], torchs.state[w]["exp_avg_sq"])


def test_a_weight_without_a_gradient_stays_and_packed_copies_hear_of_the_others():
    weights = [torch.ones(5), torch.ones(5)]
    moments = [[torch.zeros(5) for _ in weights] for _ in range(2)]
    before = [w._version for w in weights]
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
    update.adam(weights, *moments, [None, torch.ones(5)], [0.0, 1.0], **options)
    assert torch.equal(weights[0], torch.ones(5))
    assert (weights[1] < 1).all()
    assert weights[1]._version > before[1]


def test_moments_of_a_weight_whose_gradient_stays_away_become_0_and_no_denormal_numbers():
    w, m, v = torch.ones(100), torch.full((100,), 1e-37), torch.full((100,), 1e-30)
    for k in range(60):
        update.adam(
            [w],
            [m],
            [v],
            [torch.zeros(100)],
            [k + 1.0],
            lr=0.0,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            clip=1.0,
        )
    assert not m.any()
    assert (torch.tensor([1e-39]) * 0.5 != 0).all()  # the caller's own arithmetic is as it was


# ------------------------------------------------------------------------------------------------ threads


def everything() -> list[torch.Tensor]:
    """What so many values give that several threads share them."""
    drop = update.Dropout(torch.arange(1, 3001), 0.2, 4)
    x = normal(3001, 130)
    read = drop.forward(x)
    out = [read, drop.backward(read, 3001)]
    for kind in (update.CLASSES, update.LABELS, update.NUMBERS):
        y = targets(kind, 3001, 1, 65)
        scores = normal(3001, 65)
        scored = update.scored_rows(y, 3001)
        scores = scores[scored.rows]
        loss = update.loss(kind, scores, scored.rows, y, ahead=1, scale=0.1)
        out += [scores, torch.tensor(loss, dtype=torch.float64)]
    words = encoding(rates=True)
    numbers, codes = batch_of_words(300, 41)
    out.append(words.forward(numbers, codes, 0.3, 9))
    words.backward(out[-1])
    out += [g for g in words.gradients if g is not None]
    weights, first, second = ([torch.ones(n) for n in (200_001, 17, 90_000)] for _ in range(3))
    update.adam(
        weights, first, second, [normal(w.numel()) for w in weights], [3.0] * 3, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8,
        weight_decay=0.0, clip=1.0,
    )  # fmt: skip
    return [*out, *weights, *first, *second]


def test_all_of_it_has_the_same_bits_on_any_number_of_threads():
    alone = on_threads(1, everything)
    for n in (2, 3, 5):
        for k, (ours, theirs) in enumerate(zip(on_threads(n, everything), alone, strict=True)):
            assert torch.equal(ours, theirs), (n, k)
