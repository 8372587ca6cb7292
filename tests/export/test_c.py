"""C headers compute what the run computes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.compiling import Library, name_of
from tests.helpers.runs import CASES, batch_of, run_of, table_of
from tidegate.export import take_apart
from tidegate.export.c.weights import Weights
from tidegate.run import Run

# By their names: to open the runs here would train them while pytest collects.
FORWARD = [name for name in CASES if "both ways" not in name]
WITH_TEXT = [name for name in CASES if name not in ("numbers alone", "one number", "forecast", "forecast of two")]


def hold_against_python(library: Library, case: str, run: Run, most: float, h_0: bool = False) -> None:
    """Every sequence of the case's table, one by one."""
    spec, task = run.model.spec, run.preprocessing.target.task
    layers, H = spec.num_layers * (2 if spec.bidirectional else 1), spec.hidden_size
    frame = table_of(case)
    count = batch_of(run, frame).numbers.shape[0]
    state = np.random.default_rng(3).uniform(-1, 1, (layers, count, H)).astype(np.float32) if h_0 else None
    batch = batch_of(run, frame, h_0=state)
    for b, length in enumerate(batch.lengths):
        got = library.drive(name_of(case), run, batch.numbers[b, :length], batch.codes[b, :length], batch.h_0[:, b])
        at = (b, slice(0, length)) if spec.per == "step" else (slice(b, b + 1),)
        scores = batch.scores[at]
        np.testing.assert_allclose(got["scores"], scores, rtol=0, atol=most)
        if not spec.bidirectional:
            np.testing.assert_allclose(got["h_n"], batch.h_n[:, b], rtol=0, atol=most)
        if batch.probabilities is not None:
            np.testing.assert_allclose(got["probabilities"], batch.probabilities[at], rtol=0, atol=most)
        if task == "class":
            sure = np.abs(np.diff(np.sort(scores, axis=-1)[..., -2:], axis=-1)[..., 0]) > 4 * most
            assert sure.mean() > 0.5
            np.testing.assert_array_equal(got["prediction"][..., 0][sure], batch.prediction[at][sure])
        elif task == "labels":
            sure = np.abs(scores) > 4 * most
            np.testing.assert_array_equal(got["prediction"][sure], batch.prediction[at][sure])
        else:
            apart = np.abs(got["prediction"] - batch.prediction[at]) / np.array(run.preprocessing.target.stds)
            assert apart.max() <= most


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_the_header_computes_what_the_run_computes(library: Library, case: str) -> None:
    hold_against_python(library, case, run_of(case), 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_so_does_the_header_with_its_own_exp_and_tanh(without_math: Library, case: str) -> None:
    hold_against_python(without_math, case, run_of(case), 1e-5)


def rounded(case: str) -> Run:
    """The run with the weights that the 8-bit header has."""
    run = run_of(case)
    run.model = Weights(take_apart(run), int8=True).model
    return run


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_8_bit_weights_compute_what_a_model_with_these_weights_computes(library_8: Library, case: str) -> None:
    hold_against_python(library_8, case, rounded(case), 1e-5)


# Where a pool is part of the state, hidden[] alone does not go on: the next test cuts such sequences.
@pytest.mark.long
@pytest.mark.parametrize("case", [name for name in FORWARD if name not in ("sequence max", "sequence mean")])
def test_a_sequence_can_go_on_from_a_state_that_was_kept(library: Library, case: str) -> None:
    hold_against_python(library, case, run_of(case), 1e-5, h_0=True)


@pytest.mark.parametrize("case", FORWARD)
def test_a_sequence_in_pieces_gives_what_it_gives_whole(library: Library, case: str) -> None:
    run = run_of(case)
    batch = batch_of(run, table_of(case))
    b = int(batch.lengths.argmax())
    numbers, codes = batch.numbers[b, : batch.lengths[b]], batch.codes[b, : batch.lengths[b]]
    whole = library.drive(name_of(case), run, numbers, codes, batch.h_0[:, b])
    for piece in (1, 3):
        pieces = library.drive(name_of(case), run, numbers, codes, batch.h_0[:, b], piece)
        for key in whole:
            np.testing.assert_allclose(pieces[key], whole[key], rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("case", WITH_TEXT)
def test_texts_get_the_codes_that_python_gives_them(library: Library, case: str) -> None:
    tokens = run_of(case).preprocessing.tokens
    assert tokens
    for column, token in enumerate(tokens):
        for k, text in enumerate(token.vocabulary):
            assert library.find(name_of(case), column, text.encode()) == k + 1
            assert library.find(name_of(case), column, text.encode() + b"!") == 0
            assert library.find(name_of(case), column, text.encode()[:-1]) == 0
        for nothing in (b"", b"\xff", b"\x01", None):
            assert library.find(name_of(case), column, nothing) == 0


def test_words_are_found_in_capitals_and_categories_only_as_they_are(library: Library) -> None:
    words = run_of("words").preprocessing.tokens[0]
    code = words.vocabulary.index("song") + 1
    assert {library.find("words", 0, text) for text in (b"song", b"Song", b"SONG")} == {code}
    assert library.find("words", 0, "Größe".encode()) == words.vocabulary.index("größe") + 1
    assert library.find("class", 0, b"B b") > 0
    assert library.find("class", 0, b"b b") == 0


def test_a_value_that_is_no_number_counts_as_missing(library: Library) -> None:
    run = run_of("class")
    batch = batch_of(run, table_of("class"))
    numbers, codes, state = batch.numbers[0, :4].copy(), batch.codes[0, :4], batch.h_0[:, 0]
    out = []
    for value in (np.nan, -np.nan, np.inf, -np.inf, 1e300):
        numbers[1, :] = value
        out.append(library.drive("class", run, numbers, codes, state)["scores"])
    assert np.isfinite(out[0]).all()
    for other in out[1:]:
        np.testing.assert_array_equal(other, out[0])
    numbers[1, :] = [c.mean for c in run.preprocessing.numbers]  # the same zeros, but not said to be missing
    assert np.abs(library.drive("class", run, numbers, codes, state)["scores"] - out[0]).max() > 1e-3


def test_a_code_that_is_none_counts_as_unknown(library: Library) -> None:
    run = run_of("class")
    batch = batch_of(run, table_of("class"))
    codes = batch.codes[0, :3].copy()
    out = []
    for code in (0, -1, 7, 10**9, -(2**31)):
        codes[:, 0] = code
        out.append(library.drive("class", run, batch.numbers[0, :3], codes, batch.h_0[:, 0])["scores"])
    for other in out[1:]:
        np.testing.assert_array_equal(other, out[0])


@pytest.mark.parametrize(("case", "classes"), [("class", ["down", "up"]), ("whole-number classes", ["3", "4", "5"])])
def test_classes_have_their_names(library: Library, case: str, classes: list[str]) -> None:
    assert [library.class_text(name_of(case), k) for k in range(len(classes))] == classes


def test_yes_and_no_are_true_and_false(library: Library) -> None:
    assert [library.class_text("yes_no", k) for k in (0, 1)] == ["false", "true"]
