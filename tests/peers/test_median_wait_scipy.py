"""The product-limit estimate behind memory lengths, held against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import CensoredData, ecdf

from tidegate.gates.statistics import median_wait

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("seed", range(20))
def test_the_median_of_cut_off_waits_is_scipy_s(seed):

    rng = np.random.default_rng(seed)
    waits = rng.geometric(rng.uniform(0.03, 0.5), size=rng.integers(1, 80))
    ends = rng.integers(1, 30, size=len(waits))
    over, unfinished = waits[waits <= ends], ends[waits > ends]
    data = CensoredData(uncensored=over, right=unfinished)
    survival = ecdf(data).sf
    below = survival.quantiles[survival.probabilities <= 0.5 + 1e-12]
    expected = below[0] if below.size else np.inf
    columns = [np.bincount(v, minlength=40)[:, None] for v in (over, unfinished)]
    assert median_wait(*columns).tolist() == [expected]
