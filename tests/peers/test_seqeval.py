"""Span F1 held against seqeval, the usual program for it."""

from __future__ import annotations

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score

from tidegate.trained.metrics import span_scores

TAGS = ["O", "B-x", "I-x", "B-y", "I-y", "B-z", "I-z"]


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(50))
def test_span_figures_equal_seqevals_on_random_tags(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, size=30)
    sequence = np.repeat(np.arange(30), lengths)
    truth = rng.integers(0, len(TAGS), lengths.sum())
    # Mostly right, so that there are spans to find.
    predicted = np.where(rng.random(lengths.sum()) < 0.8, truth, rng.integers(0, len(TAGS), lengths.sum()))
    cuts = np.cumsum(lengths)[:-1]
    as_words = lambda tags: [[TAGS[t] for t in part] for part in np.split(tags, cuts)]  # noqa: E731
    ours, _ = span_scores(TAGS, predicted, truth, sequence)
    arguments = as_words(truth), as_words(predicted)
    assert ours["span_f1"] == pytest.approx(f1_score(*arguments))
    assert ours["span_precision"] == pytest.approx(precision_score(*arguments))
    assert ours["span_recall"] == pytest.approx(recall_score(*arguments))
