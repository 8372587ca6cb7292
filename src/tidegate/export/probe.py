"""Made-up sequences of a run, what the model says of them, and the sentence that tells how far a written file is from it.

Every format is checked with these before it is written: the runtimes on `batch`, C's self-test on `sequences`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from tidegate.errors import SettingsError, TidegateError

if TYPE_CHECKING:
    from tidegate.data.preprocessing import Preprocessing
    from tidegate.export.parts import Parts
    from tidegate.model import SequenceModel

ALLOWED = (
    1e-3  # difference to Tidegate's at which a file is not written: rounding alone was at most 5e-6 in all our tests
)


@dataclass(frozen=True)
class Probe:
    """Sequences as `tidegate.export` describes them; B of up to T steps.

    values float64 [B, T, F], of which some are missing, bool [B, T, F]; texts [B, T, C], None where missing; codes int64 [B, T, C];
    lengths int64 [B]; h_0 float32 [layers*D, B, H], None: as the model begins by itself.
    """

    preprocessing: Preprocessing
    values: np.ndarray
    missing: np.ndarray
    texts: np.ndarray
    codes: np.ndarray
    lengths: np.ndarray
    h_0: np.ndarray | None

    @property
    def numbers(self) -> np.ndarray:
        """float64 [B, T, F], NaN where missing."""
        return np.where(self.missing, np.nan, self.values)

    @property
    def inside(self) -> np.ndarray:
        """[B, T], which steps there are."""
        return np.arange(self.values.shape[1]) < self.lengths[:, None]

    def rows(self, values: np.ndarray) -> np.ndarray:
        """values [B, T, ...] -> [rows, ...]: the steps that there are, one sequence after the other. What a sequence has once,
        [B, 1, ...], stays as it is.
        """
        return values[self.inside] if self.preprocessing.per == "step" else values

    def inputs(self, missing_text: str) -> dict[str, np.ndarray]:
        """What a program takes, by name; which of them it takes the contract says."""
        tokens = np.where(self.texts == None, missing_text, self.texts)  # noqa: E711 (of each element)
        every = {"numbers": self.numbers, "tokens": tokens, "codes": self.codes, "lengths": self.lengths}
        return every if self.h_0 is None else every | {"h_0": self.h_0}

    def scores(self, model: SequenceModel, real: torch.dtype = torch.float32) -> np.ndarray:
        """What the model gives in evaluation: [rows, K, outputs], or [B, 1, outputs] a sequence. The model stays as it is."""
        model = copy.deepcopy(model).cpu().to(real).eval()
        numbers, codes = (torch.from_numpy(v).transpose(0, 1) for v in (self._encoded(), self.codes))
        state = None if self.h_0 is None else torch.from_numpy(self.h_0).to(real)
        with torch.no_grad():
            scores = model(numbers.to(real), codes, torch.from_numpy(self.lengths), state)[0]
        return self.rows((scores.transpose(0, 1) if self.preprocessing.per == "step" else scores).numpy())

    def _encoded(self) -> np.ndarray:
        """float32 [B, T, F + masks]: the numbers as the model reads them."""
        columns = self.preprocessing.numbers
        means, stds = _means_and_stds(columns)
        encoded = np.nan_to_num((self.numbers - means) / stds).astype(np.float32)
        mask = np.isnan(self.numbers[..., [k for k, c in enumerate(columns) if c.mask]]).astype(np.float32)
        return np.concatenate([encoded, mask], axis=-1)


def batch(parts: Parts) -> Probe:
    """A padded batch that begins at a state of its own, the same for a run at every call."""
    pre, spec = parts.preprocessing, parts.spec
    rng = np.random.default_rng(0)
    lengths = np.array([7, 1, 4])
    shape = (len(lengths), int(lengths.max()))
    values = _values(pre, shape, rng)
    missing = rng.random(values.shape) < 0.2
    texts, codes = np.empty((*shape, len(pre.tokens)), object), np.zeros((*shape, len(pre.tokens)), np.int64)
    for k, column in enumerate(pre.tokens):
        codes[..., k] = rng.integers(0, column.size, shape)
        texts[..., k] = np.array([None, *column.vocabulary], object)[codes[..., k]]
    h_0 = rng.uniform(-1, 1, (spec.states, len(lengths), spec.hidden_size)).astype(np.float32)
    return Probe(pre, values, missing, texts, codes, lengths, h_0)


def sequences(parts: Parts, *, longest_text: int) -> Probe:
    """Sequences that begin as the model does, with unknown words, words in capitals, and numbers that a float32 holds.

    longest_text: bytes of the longest text.
    """
    pre = parts.preprocessing
    rng = np.random.default_rng(0)
    lengths = np.array([1, 7, 24])
    rows = int(lengths.sum())
    values = _values(pre, (rows,), rng)
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32).astype(np.float64)
    values = np.where(np.isfinite(rounded), rounded, values)
    missing = rng.random(values.shape) < 0.15
    texts, codes = np.empty((rows, len(pre.tokens)), object), np.zeros((rows, len(pre.tokens)), np.int64)
    for k, column in enumerate(pre.tokens):
        texts[:, k], codes[:, k] = _texts(column.vocabulary, column.kind, rows, longest_text, rng)
    values, missing, texts, codes = (_padded(each, lengths) for each in (values, missing, texts, codes))
    return Probe(pre, values, missing, texts, codes, lengths, None)


def _means_and_stds(columns: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c.mean for c in columns]), np.array([c.std for c in columns])


def _values(pre: Preprocessing, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """float64 [*shape, F], in the units of the table."""
    means, stds = _means_and_stds(pre.numbers)
    return means + stds * rng.standard_normal((*shape, len(pre.numbers)))


def _texts(
    vocabulary: Sequence[str], kind: str, rows: int, longest: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Texts of a column, of the vocabulary, unknown and missing ones, and their codes."""
    known = [code for code, text in enumerate(vocabulary, 1) if len(text.encode()) <= longest]
    choices: list[tuple[str | None, int]] = [(None, 0), ("not in the vocabulary, surely", 0)]
    if known:
        some = rng.choice(len(known), min(len(known), rows), replace=False)
        choices += [(vocabulary[known[i] - 1], known[i]) for i in some]
    chosen = [choices[i] for i in rng.permutation(np.resize(np.arange(len(choices)), rows))]
    texts = [text for text, _ in chosen]
    if kind == "words":  # A to Z may come in capitals
        texts = [t.capitalize() if t is not None and t.isascii() else t for t in texts]
    return np.array(texts, object), np.array([code for _, code in chosen])


def _padded(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """rows [rows, N], one sequence after the other -> [B, T, N]."""
    padded = np.zeros((len(lengths), int(lengths.max()), rows.shape[1]), rows.dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = rows
    return padded


# ------------------------------------------------------------------------------------------------ a file beside the model


class Runtime(NamedTuple):
    """What a file was run with. package: what pip calls it."""

    name: str
    package: str


def checked(parts: Parts, probe: Probe, runtime: Runtime, scores: np.ndarray) -> str:
    """How far a file's scores are from the model's, in a sentence. Raises as `compared` does."""
    model = parts.run.model
    return compared(runtime, probe.rows(scores), probe.scores(model), probe.scores(model, torch.float64))


def rounding(expected: np.ndarray, exact: np.ndarray) -> float:
    """How far float32 is from float64, or the share where a value is above 1."""
    return float((np.abs(exact - expected) / np.maximum(1, np.abs(expected))).max())


def compared(runtime: Runtime, found: np.ndarray, expected: np.ndarray, exact: np.ndarray, what: str = "scores") -> str:
    """The difference in a sentence. exact: what is expected, from float64: where the model itself makes much of rounding, so
    may the file. Raises TidegateError for a file that computes something else, SettingsError where the model gives no numbers."""
    if not np.isfinite(expected).all():
        raise SettingsError(
            f"On made-up sequences the {what} are NaN or infinite already in Tidegate. Look for such weights, and train again."
        )
    difference = rounding(expected, found)
    if not difference <= max(ALLOWED, 20 * rounding(expected, exact)):  # nor NaN
        raise _wrong(runtime, f"its {what} differ from Tidegate's by up to {difference:.1g}, more than {ALLOWED:g}")
    return f"Checked with {runtime.name}: on made-up sequences its {what} differ from Tidegate's by at most {difference:.1g}."


@contextlib.contextmanager
def running(runtime: Runtime) -> Iterator[None]:
    """Whatever a runtime raises becomes a TidegateError: a file that doesn't run is not written."""
    try:
        yield
    except Exception as error:  # the runtimes' own kinds
        raise _wrong(runtime, f"stopped: {error}") from error


def _wrong(runtime: Runtime, what: str) -> TidegateError:
    return TidegateError(
        f"Nothing was written: {runtime.name} ran the file on made-up sequences, and {what}. Try another version of it (pip "
        f"install --upgrade {runtime.package}); if it stays so, please report it, with what `tidegate doctor` says."
    )
