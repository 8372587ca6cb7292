"""The mean of a figure over several runs, its spread, and whether it tells two models apart. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

SURE = 0.95  # the level of the interval


class Spread(NamedTuple):
    """mean and sd, the sample standard deviation (divided by n - 1), of n figures; NaN where too few are there."""

    mean: float
    sd: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of the values that are numbers.

    >>> spread([1.0, 2.0, 4.0, float("nan")])
    Spread(mean=2.3333333333333335, sd=1.5275252316519468, n=3)
    """
    there = [v for v in values if not math.isnan(v)]
    n = len(there)
    mean = math.fsum(there) / n if n else math.nan
    if n < 2 or not math.isfinite(mean):
        return Spread(mean, math.nan, n)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in there) / (n - 1)), n)


def margin(differences: Sequence[float], ratio: float) -> float:
    """How far the mean of paired differences may lie from what it stands for: half of its 95 % interval.

        t · √((1/n + ratio) · s²)      t: the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom
                                       s: the sample standard deviation of the n differences

    ratio: scored rows over training rows where the runs draw these anew, as then their training rows overlap and their figures
    are not independent: the corrected resampled t-test of Nadeau and Bengio (Inference for the Generalization Error, Machine
    Learning 52, 2003); for cross-validation, Bouckaert and Frank 2004. 0 where all runs have the same rows: the ordinary paired
    t-test. NaN with fewer than two differences.
    """
    s = spread(differences)
    if s.n < 2:
        return math.nan
    return student_quantile((1 + SURE) / 2, s.n - 1) * math.sqrt((1 / s.n + ratio) * s.sd**2)


def student_quantile(p: float, freedom: int) -> float:
    """Student's t with that many degrees of freedom (1 or more) stays below it with probability p, 1/2 <= p < 1.

    >>> [round(student_quantile(0.975, n), 3) for n in (1, 2, 4, 9, 30)]
    [12.706, 4.303, 2.776, 2.262, 2.042]
    """
    low, high = 0.0, 1.0
    while _below(high, freedom) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(middle, freedom) < p else (low, middle)
    return high


def _below(t: float, freedom: int) -> float:
    """The probability of a value below t >= 0: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = 1.0, 1.0
    odd = freedom % 2
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if not odd:
        return 0.5 + sine * total / 2
    within = angle if freedom == 1 else angle + sine * cosine * total
    return 0.5 + within / math.pi
