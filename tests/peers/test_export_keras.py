"""The real Keras loads the file of every kind of run, knows nothing of Tidegate, and gives the run's numbers."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import tidegate
from tests.helpers import runs
from tests.helpers.exported import file_of, model_of
from tests.helpers.runs import CASES_OF, MANY, ONE, THREE, batch_of, folder_of, run_of, table_of
from tidegate import keras_models
from tidegate.errors import SettingsError, TidegateError
from tidegate.export import keras as target
from tidegate.export import take_apart

pytestmark = pytest.mark.peers

# Rounding alone: over the whole grid Keras was at most 3.9e-6 away. In units of the table the same times the standard
# deviation.
ATOL = 1e-5
CASES = CASES_OF["keras"]


@pytest.fixture(scope="module")
def keras():
    return keras_models.import_keras("this test", tensorflow=True)


def inputs(batch):
    """As a model takes them: the states batch first."""
    given = runs.inputs(batch, "numbers", "tokens", "lengths", "h_0")
    return given | {"h_0": batch.h_0.swapaxes(0, 1)}


def call(model, given):
    import tensorflow

    return {k: v.numpy() for k, v in model({k: tensorflow.constant(v) for k, v in given.items()}).items()}


def assert_same(found, batch, run):
    goal = run.preprocessing.target
    found = found | {"h_n": found["h_n"].swapaxes(0, 1)}
    if goal.task == "class":
        number = {c.encode() if isinstance(c, str) else c: k for k, c in enumerate(goal.classes)}
        found["prediction"] = np.vectorize(number.__getitem__)(found["prediction"])
    runs.assert_same(found, batch, run, ATOL)


@pytest.mark.parametrize("sequences", [ONE, THREE, MANY], ids=["one", "three", "many"])
@pytest.mark.parametrize("name", CASES)
def test_keras_gives_the_numbers_of_the_run(keras, name, sequences):
    run = run_of(name)
    batch = batch_of(run, table_of(name), sequences)
    assert_same(call(model_of(name), inputs(batch)), batch, run)


@pytest.mark.parametrize("name", CASES)
def test_a_given_state_is_where_keras_begins(keras, name):
    run = run_of(name)
    state = np.random.default_rng(3).standard_normal(batch_of(run, table_of(name), THREE).h_0.shape, dtype=np.float32)
    batch = batch_of(run, table_of(name), THREE, state)
    assert_same(call(model_of(name), inputs(batch)), batch, run)


@pytest.mark.parametrize("name", ["class", "labels", "both ways", "sequence mean", "sequence last both ways"])
def test_one_step_of_one_sequence_is_enough(keras, name):
    run = run_of(name)
    batch = batch_of(run, table_of(name).group_by("device", maintain_order=True).head(1), ONE)
    assert batch.numbers.shape[:2] == (1, 1)
    assert_same(call(model_of(name), inputs(batch)), batch, run)


@pytest.mark.parametrize("name", ["class", "labels", "forecast of two", "words"])
def test_pieces_with_the_state_handed_on_equal_the_whole(keras, name):
    batch = batch_of(run_of(name), table_of(name), MANY)
    given, T = inputs(batch), int(batch.lengths.max())
    right = call(model_of(name), given)
    lengths, state, pieces = given["lengths"], given["h_0"], []
    for start, stop in ((0, 1), (1, 4), (4, T)):
        steps = {k: given[k][:, start:stop] for k in ("numbers", "tokens") if k in given}
        left = lengths.clip(start, stop) - start  # 0 where it has ended
        found = call(model_of(name), {**steps, "lengths": left, "h_0": state})
        state = found["h_n"]
        pieces.append(found["scores"])
    inside = batch.inside
    np.testing.assert_allclose(np.concatenate(pieces, axis=1)[inside], right["scores"][inside], rtol=0, atol=ATOL)
    np.testing.assert_allclose(state, right["h_n"], rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", ["labels", "both ways", "sequence max", "sequence mean both ways"])
def test_padding_may_hold_anything(keras, name):
    run = run_of(name)
    batch = batch_of(run, table_of(name), MANY)
    beyond = ~batch.inside
    assert beyond.any()
    batch.numbers[beyond] = np.resize([np.nan, np.inf, 1e300], batch.numbers[beyond].shape)
    batch.tokens[beyond] = "ä"
    assert_same(call(model_of(name), inputs(batch)), batch, run)


def test_a_missing_value_an_infinite_one_and_one_too_far_for_float32_read_as_the_mean(keras):
    run = run_of("one number")
    batch = batch_of(run, table_of("one number"), THREE)
    found = []
    for value in (run.preprocessing.numbers[0].mean, np.nan, np.inf, -np.inf, 1e300):
        batch.numbers[:, 0] = value
        found.append(call(model_of("one number"), inputs(batch))["scores"])
    assert np.isfinite(found[0]).all()
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", ["class", "both ways", "sequence mean"])
def test_predict_in_batches_gives_the_same_as_one_call(keras, name):
    """Which it can only as the states have the batch first."""
    import tensorflow

    run = run_of(name)
    batch = batch_of(run, table_of(name), MANY)
    batches = tensorflow.data.Dataset.from_tensor_slices(inputs(batch)).batch(7)
    assert_same(model_of(name).predict(batches, verbose=0), batch, run)


WITHOUT_TIDEGATE = """
import os, sys
os.environ["KERAS_BACKEND"] = "tensorflow"
class Hidden:  # (a None in sys.modules is a torch to SciPy, which Keras imports)
    def find_spec(name, *_):
        if name.split(".")[0] in ("tidegate", "torch"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden)
import keras, numpy, tensorflow
given = {k: tensorflow.constant(v) for k, v in numpy.load(sys.argv[2], allow_pickle=True).items()}
found = keras.saving.load_model(sys.argv[1], safe_mode=True)(given)
numpy.savez(sys.argv[3], **{k: v.numpy() for k, v in found.items()})
"""


def test_keras_alone_loads_and_runs_it_in_safe_mode(tmp_path):
    run = run_of("both ways")
    batch = batch_of(run, table_of("both ways"), THREE)
    np.savez(tmp_path / "in.npz", **inputs(batch))
    command = [
        sys.executable,
        "-c",
        WITHOUT_TIDEGATE,
        file_of("both ways", "keras"),
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same(dict(np.load(tmp_path / "out.npz", allow_pickle=True)), batch, run)


def test_the_description_is_in_the_file():
    with zipfile.ZipFile(file_of("words", "keras")) as archive:
        assert json.loads(archive.read("tidegate.json")) == take_apart(run_of("words")).description


def test_that_words_are_wanted_in_lower_case_is_said(keras, tmp_path):
    said = "Words (words) are compared as they come: give them in lower case."
    assert said in str(run_of("words").export("keras", tmp_path / "run.keras"))
    assert "Words" not in str(run_of("class").export("keras", tmp_path / "run.keras"))


TERMINAL = """
import os, resource, signal, sys, tidegate
from tidegate.cli import main
print(tidegate.load(sys.argv[1]).export('keras', sys.argv[2]), 'KERAS_BACKEND' in os.environ or 'TF_CPP_MIN_LOG_LEVEL' in os.environ)
import keras
keras.saving.load_model(sys.argv[2])
print('said by the program', file=sys.stderr)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # as `ulimit -f 8` sets it: the disk is full
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.exit(main(['export', sys.argv[1], '--to', 'keras', '-o', sys.argv[3]]))
"""


def test_writing_and_loading_leave_the_terminal_alone_and_a_full_disk_is_said_and_nothing_is_left(tmp_path):
    whole, cut = tmp_path / "run.keras", tmp_path / "full" / "run.keras"
    cut.parent.mkdir()
    command = [sys.executable, "-c", TERMINAL, folder_of("both ways"), whole, cut]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    quiet, error = done.stderr.split("said by the program\n")
    assert (quiet, done.returncode) == ("", 2), done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert "numbers, tokens, lengths, h_0; h_0 and h_n are [B, layers*D, H].\n" in done.stdout
    assert done.stdout.endswith(" False\n")
    assert f"{cut} could not be written: the disk is full" in " ".join(error.split()), error
    assert not list(cut.parent.iterdir())


def test_of_what_is_said_during_the_import_only_the_greetings_are_dropped(capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    with keras_models._without_tensorflow_greetings():
        os.write(2, b"I0000 00:00:1 port.cc:153] oneDNN is on.\nE0000 00:00:1 trouble.cc:1] it burns\n")
    assert capfd.readouterr().err == "E0000 00:00:1 trouble.cc:1] it burns\n"


def test_without_a_stderr_the_import_goes_through():
    code = (
        "import os, sys, tidegate.keras_models as m\n"
        "sys.stderr = None\n"
        "with m._without_tensorflow_greetings(): os.write(2, b'it burns')\n"
        "os.close(2)\n"
        "print(m.import_keras('it').__name__, os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "keras None\n", "it burns\n")


def test_a_log_level_that_the_user_chose_stays(monkeypatch):
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    with keras_models._without_tensorflow_greetings():
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"


def test_keras_trains_the_model_on(keras):
    import tensorflow

    run = run_of("both ways")
    batch = batch_of(run, table_of("both ways"), MANY)
    model = keras.saving.load_model(file_of("both ways", "keras"))
    model.compile("adam", loss={"scores": keras.losses.SparseCategoricalCrossentropy(from_logits=True)})
    truth, counts = {"scores": batch.prediction * 0}, {"scores": batch.inside.astype(np.float32)[..., None]}
    batches = tensorflow.data.Dataset.from_tensor_slices((inputs(batch), truth, counts)).batch(24)
    before = [w.numpy() for w in model.trainable_weights]
    losses = model.fit(batches, epochs=3, verbose=0).history["loss"]
    assert losses[2] < losses[1] < losses[0]
    changed = [not np.array_equal(old, w.numpy()) for old, w in zip(before, model.trainable_weights, strict=True)]
    assert (
        len(changed) == len(list(run.model.parameters())) - 4
    )  # of each layer and direction one bias, [2, 3H], for two
    assert all(changed)


def with_vocabulary(parts, words):
    """The parts with other words in the first column of categories."""
    first, *others = parts.preprocessing.features
    assert len(first.vocabulary) == len(words)
    features = (dataclasses.replace(first, vocabulary=tuple(words)), *others)
    return dataclasses.replace(parts, preprocessing=dataclasses.replace(parts.preprocessing, features=features))


def test_any_text_may_be_a_word(keras, tmp_path):
    parts = take_apart(run_of("categories alone"))
    words = ["[UNK]", "a\nb", "", "[[UNK]]", " ", "\u2028"]
    done = target.write(with_vocabulary(parts, words), tmp_path / "run.keras")
    said = "The empty text is a value of its own in some columns. Give a missing one as '[[[UNK]]]' in kind."
    assert said in done.notes
    model = keras.saving.load_model(tmp_path / "run.keras")
    codes = keras.Model(model.inputs, model.get_layer("codes_0").output)
    tokens = np.array([[[word, "x"] for word in [*words, "[[[UNK]]]", "never seen"]]], dtype=object)
    given = {"tokens": tokens, "lengths": np.array([8]), "h_0": np.zeros((1, 1, 8), np.float32)}
    import tensorflow

    found = codes({k: tensorflow.constant(v) for k, v in given.items()}).numpy()
    assert found.tolist() == [[1, 2, 3, 4, 5, 6, 0, 0]]


def test_that_the_empty_text_is_a_value_is_said_once_whatever_the_columns_are_called(keras, tmp_path):
    parts = take_apart(run_of("categories alone"))
    one, two = parts.preprocessing.features
    words = ("", *one.vocabulary[1:])
    features = (dataclasses.replace(one, name="a\nb", vocabulary=words), dataclasses.replace(two, vocabulary=("",)))
    parts = dataclasses.replace(parts, preprocessing=dataclasses.replace(parts.preprocessing, features=features))
    notes = [note for note in target.write(parts, tmp_path / "run.keras").notes if "empty text" in note]
    assert len(notes) == 1
    assert notes[0].endswith(r"Give a missing one as '[UNK]' in a\nb, '[UNK]' in colour.")


def test_a_column_that_was_empty_in_training_is_all_unknown(keras, tmp_path):
    parts = take_apart(run_of("categories alone"))
    kind, colour = parts.preprocessing.features
    parts = dataclasses.replace(
        parts,
        preprocessing=dataclasses.replace(
            parts.preprocessing, features=(kind, dataclasses.replace(colour, vocabulary=()))
        ),
        embeddings=[parts.embeddings[0], parts.embeddings[1][:1]],
    )
    target.write(parts, tmp_path / "run.keras")
    batch = batch_of(run_of("categories alone"), table_of("categories alone"), THREE)
    batch.tokens[..., 1] = [["", "never seen"][t % 2] for t in range(batch.tokens.shape[1])]
    right = call(model_of("categories alone"), inputs(batch))["scores"]
    found = call(keras.saving.load_model(tmp_path / "run.keras"), inputs(batch))["scores"]
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("options", [{"reset": "before"}, {"bias": False}, {"recurrent_dropout": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["class", "sequence last both ways"])
def test_what_keras_has_of_a_layer_of_ours_is_carried_over(keras, tmp_path, name, options):
    run = run_of(name)
    old = run.model.core
    sizes = {k: getattr(old, k) for k in ("input_size", "hidden_size", "num_layers", "bidirectional")}
    run.model.core = tidegate.GRU(**sizes, **options).eval()
    run.export("keras", tmp_path / "run.keras")
    batch = batch_of(run, table_of(name), THREE)
    assert_same(call(keras.saving.load_model(tmp_path / "run.keras"), inputs(batch)), batch, run)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer_norm": True}, "layer_norm=True"),
        ({"zoneout": 0.2}, "zoneout=0.2"),
    ],
)
def test_what_keras_gru_can_not_do_is_named_and_nothing_is_written(tmp_path, options, said):
    parts = take_apart(run_of("class"))
    core = tidegate.GRU(parts.core.input_size, parts.core.hidden_size, **options).eval()
    with pytest.raises(
        SettingsError, match=rf"the core of .*has no {said}\. to='onnx' and to='c' compute it; or train"
    ):
        target.write(dataclasses.replace(parts, core=core), tmp_path / "run.keras")
    assert not list(tmp_path.iterdir())


def test_a_file_that_was_there_stays_if_writing_fails(keras, tmp_path, monkeypatch):
    (tmp_path / "run.keras").write_text("an earlier one")
    parts = copy.copy(take_apart(run_of("class")))
    monkeypatch.setattr(type(parts), "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        target.write(parts, tmp_path / "run.keras")
    assert [p.name for p in tmp_path.iterdir()] == ["run.keras"]
    assert (tmp_path / "run.keras").read_text() == "an earlier one"


@pytest.mark.parametrize(
    ("before", "error", "said"),
    [
        (
            "sys.modules['tensorflow'] = None",
            "PackageMissingError",
            "to='keras' needs tensorflow, which is not installed: pip install 'tidegate[keras]'",
        ),
        (
            "sys.modules['tensorflow'] = sys.modules['keras'] = None",
            "PackageMissingError",
            "to='keras' needs keras and tensorflow, which are not installed: pip install 'tidegate[keras]'",
        ),
        (
            "import os; os.environ['KERAS_BACKEND'] = 'torch'",
            "SettingsError",
            "here it runs on 'torch'. Start Python anew with KERAS_BACKEND=tensorflow.",
        ),
    ],
    ids=["no TensorFlow", "neither", "another back end"],
)
def test_what_is_missing_is_said_with_what_to_do(tmp_path, before, error, said):
    code = f"import sys; {before}; import tidegate; tidegate.load(sys.argv[1]).export('keras', sys.argv[2])"
    command = [sys.executable, "-c", code, folder_of("class"), tmp_path / "run.keras"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said in done.stderr.splitlines()[-1], done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"tidegate.errors.{error}")
    assert not list(tmp_path.iterdir())


def test_a_file_that_gives_other_numbers_is_not_written(keras, tmp_path):
    parts = take_apart(run_of("labels"))
    said = target.write(parts, tmp_path / "right.keras").notes[-1]
    assert said.startswith(f"Checked with Keras {keras.__version__} on TensorFlow ")
    wrong = dataclasses.replace(parts, head_bias=parts.head_bias + np.float32(0.01))
    with pytest.raises(TidegateError, match=r"Nothing was written: Keras .*its scores differ .* more than 0\.001"):
        target.write(wrong, tmp_path / "wrong.keras")
    assert [p.name for p in tmp_path.iterdir()] == ["right.keras"]
