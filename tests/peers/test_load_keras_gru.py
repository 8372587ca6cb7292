"""`tidegate.load_keras_gru`: from files and models that the real Keras made, the same numbers."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import tidegate
from tests.helpers.conversions import H, I, kinds
from tests.helpers.runs import run_of
from tidegate import keras_models
from tidegate.errors import SettingsError

pytestmark = pytest.mark.peers

T, B = 7, 3
# Rounding alone: over every kind of stack it was at most 5.4e-7 in float32.
ATOL = 2e-6


@pytest.fixture(scope="module")
def keras():
    return keras_models.import_keras("this test", tensorflow=True)


def x_of(width=I, seed=0):
    return np.random.default_rng(seed).standard_normal((B, T, width), dtype=np.float32)


def spread(model, seed=1):
    """With biases that count, as Keras' own are zeros."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.standard_normal(w.shape, dtype=np.float32) * 0.7 for w in model.get_weights()])
    return model


def one_layer(keras, kind, **options):
    gru = keras.layers.GRU(
        H, use_bias=kind["bias"], reset_after=kind["reset"] == "after", return_sequences=True, **options
    )
    return keras.layers.Bidirectional(gru) if kind["bidirectional"] else gru


def plain(keras, *layers):
    return spread(keras.Sequential([keras.Input((None, I)), *layers]))


def assert_same(layer, model, width=I):
    """To the bit of what each computes: the layer's output is what the model gives."""
    x = x_of(width)
    found = layer(torch.from_numpy(x))[0].detach().numpy()
    np.testing.assert_allclose(found, np.asarray(model(x)), rtol=0, atol=ATOL)


@kinds(layers=(1, 2))
def test_a_file_of_keras_gives_the_numbers_of_keras(keras, tmp_path, kind):
    model = plain(keras, *[one_layer(keras, kind) for _ in range(kind["num_layers"])])
    model.save(tmp_path / "model.keras")
    layer = tidegate.load_keras_gru(tmp_path / "model.keras")
    assert_same(layer, model)
    assert {name: getattr(layer, name) for name in kind} == kind
    assert layer.batch_first


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_an_h5_file_does_too(keras, tmp_path):
    model = plain(keras, keras.layers.GRU(H, return_sequences=True))
    model.save(tmp_path / "model.h5")
    assert_same(tidegate.load_keras_gru(str(tmp_path / "model.h5")), model)


def test_a_model_or_a_layer_does_too(keras):
    gru = keras.layers.GRU(H, return_sequences=True)
    model = plain(keras, gru)
    for source in (model, gru):
        assert_same(tidegate.load_keras_gru(source), model)


def test_what_stands_around_the_stack_and_what_acts_in_training_alone_is_read_past(keras):
    gru = lambda **options: keras.layers.GRU(H, return_sequences=True, dropout=0.2, **options)  # noqa: E731
    model = plain(
        keras,
        keras.layers.Dense(4),
        gru(),
        keras.layers.Dropout(0.3),
        gru(recurrent_dropout=0.1),
        keras.layers.SpatialDropout1D(0.2),
        gru(name="top"),
        keras.layers.Dense(2),
    )
    layer = tidegate.load_keras_gru(model)
    assert layer.num_layers == 3
    inner = keras.Model(model.layers[0].output, model.get_layer("top").output)
    assert_same(layer, inner, width=4)


def test_a_last_layer_without_sequences_gives_our_last_output(keras):
    both = keras.layers.Bidirectional(keras.layers.GRU(H))
    model = plain(keras, both)
    output, h_n = tidegate.load_keras_gru(model)(torch.from_numpy(x_of()))
    assert output.shape == (B, T, 2 * H)
    np.testing.assert_allclose(torch.cat([*h_n], -1).detach(), np.asarray(model(x_of())), rtol=0, atol=ATOL)


def two_stacks(keras):
    """One reads numbers, the other words; the second one's top stands above a Dense layer."""
    numbers, words = keras.Input((None, I), name="numbers"), keras.Input((None,), dtype="int32", name="words")
    a = keras.layers.GRU(H, return_sequences=True, name="low")(numbers)
    a = keras.layers.GRU(H, return_sequences=True, name="high")(a)
    b = keras.layers.GRU(H, return_sequences=True, name="of_words")(keras.layers.Embedding(9, 4)(words))
    c = keras.layers.GRU(H, return_sequences=True, name="top")(keras.layers.Dense(6)(b))
    return spread(keras.Model([numbers, words], [a, b, c]))


def test_of_several_stacks_an_argument_says_which(keras):
    model = two_stacks(keras)
    with pytest.raises(SettingsError) as caught:
        tidegate.load_keras_gru(model)
    assert "found 3 stacks" in str(caught.value)
    for said in ("layers=['low', 'high']", "layers=['of_words']", "layers=['top']"):
        assert said in str(caught.value)
    x = x_of()
    right = np.asarray(model([x, np.zeros((B, T), np.int32)])[0])
    found = tidegate.load_keras_gru(model, layers=["low", "high"])(torch.from_numpy(x))[0]
    np.testing.assert_allclose(found.detach(), right, rtol=0, atol=ATOL)
    above = tidegate.load_keras_gru(model, layers="top")
    assert (above.input_size, above.num_layers) == (6, 1)


def test_a_stack_that_forks_is_two(keras):
    x = keras.Input((None, I))
    low = keras.layers.GRU(H, return_sequences=True, name="low")(x)
    sides = [keras.layers.GRU(H, name=name)(low) for name in ("left", "right")]
    with pytest.raises(SettingsError, match=r"layers=\['low', 'left'\]; layers=\['low', 'right'\]"):
        tidegate.load_keras_gru(keras.Model(x, sides))


def test_a_path_through_a_model_within_the_model_is_one_stack(keras):
    encoder = keras.Sequential(
        [keras.Input((None, I)), keras.layers.GRU(H, return_sequences=True, name="gru")], name="encoder"
    )
    for top in (plain(keras, encoder, keras.layers.GRU(H, return_sequences=True, name="gru")), None):
        x = keras.Input((None, I))
        again = keras.layers.GRU(H, return_sequences=True, name="gru")
        model = top or spread(keras.Model(x, again(encoder(x))))
        for layers in (None, ["encoder/gru", "gru"]):
            assert_same(tidegate.load_keras_gru(model, layers=layers), model)
        assert tidegate.load_keras_gru(model, "encoder/gru").input_size == I


def written(keras, H=H):
    """A model with a call of its own, which nobody sees into."""

    class Written(keras.Model):
        def __init__(self):
            super().__init__()
            self.low = keras.layers.GRU(H, return_sequences=True, name="low")
            self.high = keras.layers.GRU(H, return_sequences=True, name="high")
            sides = [keras.layers.GRU(H, return_sequences=True, name=name) for name in "ab"]
            self.graph = keras.Sequential([keras.Input((None, H)), *sides], name="graph")

        def call(self, x):
            return self.graph(self.high(x[..., ::-1] + self.low(x)))

    model = Written()
    model(np.zeros((B, T, H), np.float32))
    return spread(model)


def test_of_a_model_that_is_no_graph_one_layer_or_a_graph_within_can_be_taken(keras):
    model = written(keras)
    with pytest.raises(SettingsError, match=r"layers=\['low'\]; layers=\['high'\]"):
        tidegate.load_keras_gru(model)
    with pytest.raises(
        SettingsError, match=r"'low' is in a Written, which is no graph, .* layers='low' and layers='high'"
    ):
        tidegate.load_keras_gru(model, ["low", "high"])
    assert tidegate.load_keras_gru(model, "high").num_layers == 1
    assert_same(tidegate.load_keras_gru(model, ["graph/a", "graph/b"]), model.graph, width=H)


def test_a_graph_with_a_call_of_its_own_is_none(keras):
    class Turned(keras.Model):
        def call(self, x):
            return super().call(x[:, ::-1])

    x = keras.Input((None, I))
    low = keras.layers.GRU(H, return_sequences=True, name="low")(x)
    with pytest.raises(SettingsError, match="found 2 stacks"):
        tidegate.load_keras_gru(Turned(x, keras.layers.GRU(H, name="high")(low)))


def no_stacks(keras):
    """Models on [B, T, H] with several GRUs, names of them, and why these are no stack."""
    L = keras.layers
    gru = lambda name, **options: L.GRU(H, return_sequences=True, name=name, **options)  # noqa: E731
    x, h_0 = keras.Input((None, H)), keras.Input((H,))
    low, last = gru("low", return_state=True)(x)
    shared = gru("shared")
    of_x = gru("of_x")
    inner = keras.Input((None, H)), keras.Input((H,))
    decoder = keras.Model(inner, gru("dec")(inner[0], initial_state=inner[1]), name="decoder")
    return {
        "a layer between": (keras.Model(x, gru("high")(L.Dense(H, name="mid")(low))), ["low", "high"], r"stands mid \(Dense\)"),
        "an operation between": (keras.Model(x, gru("high")(low[:, ::-1])), ["low", "high"], r"stands \S+ \(GetItem\)"),
        "a way past": (keras.Model(x, gru("high")(L.Add(name="sum")([x, low]))), ["low", "high"], r"stands sum \(Add\)"),
        "turned": (keras.Model(x, gru("high")(low)), ["high", "low"], r"'high' reads 'low'.* from below: layers=\['low', 'high'\]"),
        "twice": (keras.Model(x, gru("high")(low)), ["low", "low"], r"'low' stands in it twice"),
        "beside": (keras.Model(x, L.Add()([gru("high")(x), low])), ["low", "high"], r"'high' doesn't read 'low'"),
        "a state": (keras.Model(x, gru("high")(low, initial_state=last)), ["low", "high"], r"'high' begins with a state"),
        "of its input": (keras.Model(x, gru("high")(low, initial_state=x[:, 0])), ["low", "high"], r"'high' begins with a state"),
        "a constant": (
            keras.Model(x, gru("high")(low, initial_state=keras.ops.ones((B, H)))), ["low", "high"], "begins with a state",
        ),
        "a state read": (
            keras.Model(x, gru("high")(L.RepeatVector(T)(last))), ["low", "high"], r"stands the last state of low, repeat_vec",
        ),
        "within": (keras.Model(x, [decoder([low, last])]), ["low", "decoder/dec"], r"stands decoder "),
        "noise always": (keras.Model(x, gru("high")(L.Dropout(0.5, name="noise")(low, training=True))), ["low", "high"], "noise"),
        "shared": (keras.Model(x, gru("top")(shared(shared(x)))), ["shared", "top"], r"'shared' is called 2 times .* layers='shared'"),
        "read twice": (keras.Model([x, h_0], [gru("up")(of_x(x)), of_x(low)]), ["of_x", "up"], "'of_x' is called 2 times"),
    }  # fmt: skip


NO_STACKS = [
    "a layer between", "an operation between", "a way past", "turned", "twice", "beside", "a state", "of its input",
    "a constant", "a state read", "within", "noise always", "shared", "read twice",
]  # fmt: skip


@pytest.mark.parametrize("what", NO_STACKS)
def test_names_that_are_no_piece_of_one_stack_are_refused_with_what_lies_between(keras, what):
    every = no_stacks(keras)
    assert set(every) == set(NO_STACKS)
    model, names, said = every[what]
    with pytest.raises(SettingsError, match=said) as caught:
        tidegate.load_keras_gru(model, names)
    if what != "turned":
        assert f"layers={names!r}" not in str(caught.value).split(". ", 1)[1]
        with pytest.raises(SettingsError) if what != "twice" else contextlib.nullcontext():
            tidegate.load_keras_gru(model)
    for name in names:
        assert tidegate.load_keras_gru(model, name).num_layers == 1


def test_a_layer_that_every_call_of_reads_the_same_may_be_called_often(keras):
    encoder = keras.Sequential(
        [keras.Input((None, I)), *(keras.layers.GRU(H, return_sequences=True) for _ in range(2))], name="encoder"
    )
    a, b = keras.Input((None, I)), keras.Input((None, I))
    model = spread(keras.Model([a, b], keras.layers.Subtract()([encoder(a), encoder(b)])))
    assert_same(tidegate.load_keras_gru(model), encoder)


def test_what_does_nothing_between_two_layers_is_passed_through(keras):
    L = keras.layers
    gru = lambda: L.GRU(H, return_sequences=True)  # noqa: E731
    model = plain(keras, gru(), L.Identity(), gru(), L.Activation("linear"), gru())
    assert_same(tidegate.load_keras_gru(model), model)
    with pytest.raises(SettingsError, match="found 2 stacks"):
        tidegate.load_keras_gru(plain(keras, gru(), L.Activation("tanh"), gru()))


def test_the_activations_may_be_kerases_operations(keras):
    ops = keras.ops
    model = plain(
        keras, keras.layers.GRU(H, activation=ops.tanh, recurrent_activation=ops.sigmoid, return_sequences=True)
    )
    assert_same(tidegate.load_keras_gru(model), model)


def test_wrong_arguments_are_named(keras):
    model = plain(keras, keras.layers.GRU(H))
    for layers in (5, [5], {"gru"}):
        with pytest.raises(TypeError, match=r"layers is .*, expected a name of a layer, a list of names, or None"):
            tidegate.load_keras_gru(model, layers)
    with pytest.raises(SettingsError, match="device='nope' can't be used here"):
        tidegate.load_keras_gru(model, device="nope")


@pytest.mark.parametrize("name", ["class", "labels", "both ways", "sequence last both ways"])
def test_our_own_file_comes_back_as_the_core_of_the_run(tmp_path, name):
    run = run_of(name)
    run.export("keras", tmp_path / "run.keras")
    layer = tidegate.load_keras_gru(tmp_path / "run.keras")
    assert layer.state_dict().keys() == run.model.core.state_dict().keys()
    for key, value in run.model.core.state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


def test_the_device_is_the_one_asked_for(keras):
    assert tidegate.load_keras_gru(plain(keras, keras.layers.GRU(H)), device="meta").weight_ih_l0.is_meta


def custom(keras):
    class Mine(keras.layers.GRU):
        pass

    return Mine


def wrong(keras):
    """What can't be loaded, and what is said."""
    GRU, Bidirectional = keras.layers.GRU, keras.layers.Bidirectional
    both = lambda **options: Bidirectional(GRU(H, **options), name="g")  # noqa: E731
    mixed = Bidirectional(GRU(H), backward_layer=GRU(H, go_backwards=True, activation="relu"), name="g")
    lstm = Bidirectional(GRU(H), backward_layer=keras.layers.LSTM(H, go_backwards=True), name="g")
    turned = Bidirectional(GRU(H, go_backwards=True), backward_layer=GRU(H), name="g")
    summed = Bidirectional(GRU(H), merge_mode="sum", name="g")
    backwards = r"layer 'g' has go_backwards=True in its direction 0\. "
    return {
        "activation": ([GRU(H, activation="relu", name="g")], r"layer 'g' has activation='relu', a tidegate.GRU has 'tanh'"),
        "gates": ([GRU(H, recurrent_activation="hard_sigmoid", name="g")], r"recurrent_activation='hard_sigmoid', .* 'sigmoid'"),
        "activation both ways": ([both(activation="relu")], r"layer 'g' has activation='relu'"),
        "activation backwards": ([mixed], r"layer 'g' has activation='relu'"),
        "backwards": ([GRU(H, go_backwards=True, name="g")], backwards + r"Set layer\.go_backwards = False here, and turn x"),
        "turned": ([turned], backwards + r"Make Bidirectional of a layer that goes forwards"),
        "merged": ([summed], r"layer 'g' has merge_mode='sum'; .* 'concat'"),
        "another second": ([lstm], r"its second direction is a LSTM, expected a GRU"),
        "backwards wider": (
            [Bidirectional(GRU(H), backward_layer=GRU(H + 1, go_backwards=True), name="g")],
            r"layer 'g' has units=5 forwards and 6 backwards",
        ),
        "backwards reset": (
            [Bidirectional(GRU(H), backward_layer=GRU(H, go_backwards=True, reset_after=False), name="g")],
            r"layer 'g' has reset_after=True forwards and False backwards",
        ),
        "backwards biased": (
            [Bidirectional(GRU(H), backward_layer=GRU(H, go_backwards=True, use_bias=False), name="g")],
            r"layer 'g' has use_bias=True forwards and False backwards",
        ),
        "none": ([keras.layers.LSTM(H, name="l")], r"no keras\.layers\.GRU .* has l \(LSTM\)"),
        "a subclass": ([custom(keras)(H, name="m")], r"no keras\.layers\.GRU .* has m \(Mine\)"),
        "sizes": (
            [GRU(H, return_sequences=True, name="a"), GRU(H + 1, name="b")],
            r"layer 'b' has units=6, layer 'a' has 5\. .* one by one, layers='a' and layers='b'",
        ),
        "resets": (
            [GRU(H, return_sequences=True, use_bias=False, name="a"), GRU(H, use_bias=False, reset_after=False, name="b")],
            r"layer 'b' has reset_after=False, layer 'a' has True",
        ),
        "ways": (
            [Bidirectional(GRU(H, return_sequences=True), name="a"), GRU(H, name="b")],
            r"layer 'b' has bidirectional=False, layer 'a' has True",
        ),
    }  # fmt: skip


WRONG = [
    "activation", "gates", "activation both ways", "activation backwards", "backwards", "turned", "merged",
    "another second", "backwards wider", "backwards reset", "backwards biased", "none", "a subclass", "sizes", "resets", "ways",
]  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_no_layer_of_ours_computes_is_named(keras, what):
    assert set(wrong(keras)) == set(WRONG)
    layers, said = wrong(keras)[what]
    with pytest.raises(SettingsError, match=said):
        tidegate.load_keras_gru(plain(keras, *layers))


def test_names_that_lead_nowhere_are_answered(keras):
    model = two_stacks(keras)
    for layers, said in (
        ("hihg", r"'hihg' isn't there\. Did you mean 'high'\? The GRUs are .*'low', 'high'"),
        ("dense", r"'.*' isn't there"),
        ([], "layers is empty"),
        (["low", "top"], r"'top' doesn't read 'low'"),
        (next(layer.name for layer in model.layers if "embedding" in layer.name), r"is a Embedding, no GRU"),
    ):
        with pytest.raises(SettingsError, match=said):
            tidegate.load_keras_gru(model, layers=layers)


def test_a_layer_without_weights_says_so(keras):
    with pytest.raises(SettingsError, match=r"layer 'g' has no weights yet"):
        tidegate.load_keras_gru(keras.layers.GRU(H, name="g"))


def test_other_sources_are_told_what_is_expected(keras, tmp_path):
    with pytest.raises(TypeError, match=r"source is of type torch\.nn\..*GRU, expected the path"):
        tidegate.load_keras_gru(torch.nn.GRU(I, H))
    with pytest.raises(SettingsError, match=r"there is no file .*nothing\.keras"):
        tidegate.load_keras_gru(tmp_path / "nothing.keras")
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(SettingsError, match=rf"Keras {keras.__version__} can't read .*text\.keras: .* give the model"):
        tidegate.load_keras_gru(tmp_path / "text.keras")


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_h5_files_are_not_read_by_a_keras_that_would_run_what_stands_in_them(keras, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_text("no model")
    for version, said in (("3.11.2", r"CVE-2025-9905.*pip install 'tidegate\[keras\]'"), ("3.11.3", "can't read")):
        monkeypatch.setattr(keras, "__version__", version)
        with pytest.raises(SettingsError, match=said):
            tidegate.load_keras_gru(path)


def test_an_error_of_keras_that_says_nothing_is_named(keras, tmp_path, monkeypatch):
    (tmp_path / "model.keras").write_text("no model")

    def fails(*_, **__):
        raise KeyError

    monkeypatch.setattr(keras.saving, "load_model", fails)
    with pytest.raises(SettingsError, match=r"can't read .*model\.keras: KeyError\. Where"):
        tidegate.load_keras_gru(tmp_path / "model.keras")


@pytest.mark.parametrize("hidden", ["tensorflow", "keras"])
def test_keras_alone_is_enough_as_pytorch_carries_it(keras, tmp_path, hidden):
    plain(keras, keras.layers.GRU(H)).save(tmp_path / "model.keras")
    code = (
        f"import sys, os; sys.modules['{hidden}'] = None\n"
        "import tidegate; print(tidegate.load_keras_gru(sys.argv[1]), os.environ.get('KERAS_BACKEND'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.keras"], capture_output=True, text=True, check=False
    )
    if hidden == "tensorflow":
        assert done.stdout.strip() == f"GRU({I}, {H}, batch_first=True) None", done.stderr
    else:
        said = "PackageMissingError: load_keras_gru needs keras, which is not installed: pip install 'tidegate[keras]'"
        assert said in done.stderr.splitlines()[-1]
