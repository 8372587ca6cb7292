"""Word features: the shape and the suffix of a word, read beside the word itself, each with a vocabulary of its own.

A word that training never saw has no vector. Its suffix and its capitals mostly have one, and tell much about it (Collobert et
al. 2011, Natural Language Processing (Almost) from Scratch, JMLR 12; of unknown words: Brants 2000, TnT).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import polars as pl

SUFFIX = 3  # characters
UNSEEN = 0.01  # share of a new text's words that training never saw, from which on word features are read
_RUNS = re.compile(r"(X|x|d)\1+")


def shape(word: str) -> str:
    """Capitals as X, small letters (and those of scripts without either) as x, digits as d, each run of them once, and the rest as it is.

    >>> [shape(word) for word in ("GRU", "Nina", "iPhone", "e-mail", "3.14", "1990s")]
    ['X', 'Xx', 'xXx', 'x-x', 'd.d', 'dx']
    """
    kinds = ["X" if c.isupper() else "d" if c.isdigit() else "x" if c.isalpha() else c for c in word]
    return _RUNS.sub(r"\1", "".join(kinds))


def suffix(word: str) -> str:
    """The last three characters, in lower case.

    >>> suffix("Recurrent"), suffix("a")
    ('ent', 'a')
    """
    return word[-SUFFIX:].lower()


FEATURES: dict[str, Callable[[str], str]] = {"shape": shape, "suffix": suffix}
"""By the kind of the token column that holds it."""


def feature_values(words: pl.Series, kind: str) -> pl.Series:
    """A feature of each word of a column; of a missing one none."""
    different = words.drop_nulls().unique()
    of = pl.Series([FEATURES[kind](word) for word in different], dtype=pl.String)
    return words.replace_strict(different, of, default=None, return_dtype=pl.String)


def unseen_share(counts: Sequence[int]) -> float:
    """How many words of a new text training will not have seen, as a share: those that it saw once (Good 1953, Turing's estimate).

    counts: how often training saw each of its words.

    >>> unseen_share([7, 2, 1])
    0.1
    """
    return sum(count == 1 for count in counts) / max(1, sum(counts))
