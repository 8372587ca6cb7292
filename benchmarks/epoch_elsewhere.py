"""An epoch of `tidegate train` beside Keras' `fit` on TensorFlow, jit on and off, and a loop in flax with optax, in turns.

    pip install 'tidegate[train]' jax flax optax keras tensorflow
    python benchmarks/epoch_elsewhere.py [--rounds 5] [--threads 1]

All have the same model, batches, loss, clipping and Adam; only ours reads rare words as unknown. The other programs get the padded
arrays ready-made; ours cuts its batches within its time. Recurrences of theirs skip padding only where both directions are read:
elsewhere padding can't reach a step that counts. A process of each lives from beginning to end, on as many cores as it has threads,
and they take turns of some batches; the first turn, which compiles, doesn't count. A turn's figure is wall time a batch, and the
ratio is the median over the rounds of theirs over ours beside it. Nothing else should run. Writes
benchmarks/results/epoch_elsewhere.csv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from common import Worker, machine, markdown, save
from epoch import CASES, MAKE

SRC = Path(__file__).resolve().parents[1] / "src"
SMALL = 5  # times that a turn runs through all batches of a set without a count of its own

PINNED = r"""
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
"""

# Each answers [case, batches of a turn, times] with the wall microseconds of a batch.
OURS = r"""
loops = {}
def turn(name, count, times):
    if name not in loops:
        loops[name] = make(name)
    loop, batches, by = loops[name]
    some = batches[:count]
    began = time.perf_counter()
    for _ in range(times):
        loop.state = State(chosen_by=by)
        loop.epoch(some, threading.Event())
    return 1e6 * (time.perf_counter() - began) / len(some) / times
"""

# What the others train on: the padded arrays of the first batches, [T, B, ...].
ARRAYS = r"""
def arrays(name, count):
    loop, batches, _ = make(name)
    found = []
    for arguments in batches[:count]:
        batch = loop.source.training_batch(arguments)
        found.append([batch.numbers.numpy(), batch.codes.numpy(), batch.y.squeeze(2).numpy(), batch.lengths.numpy()])
    return loop.model.spec, loop.settings, found
"""

KERAS = r"""
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
tf.config.threading.set_inter_op_parallelism_threads(int(sys.argv[1]))
import keras
jit = sys.argv[2] == "jit"


def model_of(name, count):
    spec, settings, found = arrays(name, count)
    words = bool(spec.vocabularies)
    layers, gru = keras.layers, keras.layers.GRU(spec.hidden_size, return_sequences=True)
    of_classes = found[0][2].dtype == np.int64
    if words:
        x = given = keras.Input((None,), dtype="int32")
        x = layers.Embedding(spec.vocabularies[0] + 1, spec.embedding_dims[0], mask_zero=spec.bidirectional)(x)
        x = layers.Dropout(settings.dropout)(x)
    else:
        x = given = keras.Input((None, spec.number_width))
    x = (layers.Bidirectional(gru) if spec.bidirectional else gru)(x)
    y = layers.Dense(spec.outputs)(layers.Dropout(settings.dropout)(x))
    model = keras.Model(given, y)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if of_classes else "mse"
    model.compile(keras.optimizers.Adam(settings.lr, global_clipnorm=settings.clip or None), loss, jit_compile=jit)
    batches = []
    for numbers, codes, y, lengths in found:
        inside = np.arange(len(y))[:, None] < lengths
        x = np.where(inside, codes[..., 0] + 1, 0).astype(np.int32) if words else numbers
        # A target that isn't there weighs 0.
        there = inside & (y >= 0 if of_classes else ~np.isnan(y).any(-1))
        y = np.where(there, y, 0) if of_classes else np.where(there[..., None], y, 0).astype(np.float32)
        batches.append(tuple(np.ascontiguousarray(a.swapaxes(0, 1)) for a in (x, y, there.astype(np.float32))))
    known = tf.data.experimental.assert_cardinality(len(batches))
    kinds = tuple(tf.TensorSpec([None, None, *a.shape[2:]], a.dtype) for a in batches[0])
    return model, tf.data.Dataset.from_generator(lambda: batches, output_signature=kinds).apply(known).cache(), len(batches)


models = {}
def turn(name, count, times):
    if name not in models:
        models[name] = model_of(name, count)
    model, batches, number = models[name]
    began = time.perf_counter()
    model.fit(batches, epochs=times, shuffle=False, verbose=0)
    return 1e6 * (time.perf_counter() - began) / number / times
"""

FLAX = r"""
import jax, optax
import jax.numpy as jnp
from flax import linen as nn


class Model(nn.Module):
    spec: object
    dropout: float

    @nn.compact
    def __call__(self, x, lengths):
        spec = self.spec
        drop = nn.Dropout(self.dropout, deterministic=False)
        if spec.vocabularies:
            x = drop(nn.Embed(spec.vocabularies[0], spec.embedding_dims[0])(x))
        rnn = lambda: nn.RNN(nn.GRUCell(spec.hidden_size), time_major=True)
        if spec.bidirectional:
            x = nn.Bidirectional(rnn(), rnn(), time_major=True)(x, seq_lengths=lengths)
        else:
            x = rnn()(x)
        return nn.Dense(spec.outputs)(drop(x))


def model_of(name, count):
    spec, settings, found = arrays(name, count)
    of_classes = found[0][2].dtype == np.int64
    model = Model(spec, settings.dropout)
    batches = []
    for numbers, codes, y, lengths in found:
        inside = np.arange(len(y))[:, None] < lengths
        there = inside & (y >= 0 if of_classes else ~np.isnan(y).any(-1))
        y = np.where(there, y, 0).astype(np.int32) if of_classes else np.where(there[..., None], y, 0)
        x = codes[..., 0].astype(np.int32) if spec.vocabularies else numbers
        batches.append(jax.device_put((x, lengths.astype(np.int32), y, there.astype(np.float32))))
    key = jax.random.key(0)
    params = model.init({"params": key, "dropout": key}, *batches[0][:2])
    adam = optax.adam(settings.lr)
    optimiser = optax.chain(optax.clip_by_global_norm(settings.clip), adam) if settings.clip else adam

    def loss_of(params, key, x, lengths, y, weight):
        scores = model.apply(params, x, lengths, rngs={"dropout": key})
        if of_classes:
            loss = optax.softmax_cross_entropy_with_integer_labels(scores, y)
        else:
            loss = ((scores - y) ** 2).mean(-1)
        return (loss * weight).sum() / jnp.maximum(weight.sum(), 1)

    @jax.jit
    def update(params, state, key, *batch):
        key, own = jax.random.split(key)
        loss, gradients = jax.value_and_grad(loss_of)(params, own, *batch)
        changes, state = optimiser.update(gradients, state)
        return optax.apply_updates(params, changes), state, key, loss

    return update, [params, optimiser.init(params), key], batches


models = {}
def turn(name, count, times):
    if name not in models:
        models[name] = model_of(name, count)
    update, state, batches = models[name]
    began = time.perf_counter()
    for _ in range(times):
        total = 0.0
        for batch in batches:
            *state[:], loss = update(*state, *batch)
            total = total + loss
        float(total)
    return 1e6 * (time.perf_counter() - began) / len(batches) / times
"""

ANSWER = r"""
print(json.dumps("ready"), file=out, flush=True)
for line in sys.stdin:
    print(json.dumps(turn(*json.loads(line))), file=out, flush=True)
"""

SCRIPTS = {
    "tidegate": (OURS, ""),
    "Keras": (ARRAYS + KERAS, "no"),
    "Keras, jit": (ARRAYS + KERAS, "jit"),
    "flax": (ARRAYS + FLAX, ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    workers = {}
    for name, (script, option) in SCRIPTS.items():
        lines = PINNED + MAKE + script + ANSWER
        workers[name] = Worker(SRC, lines, str(given.threads), option, threads=given.threads)
        workers[name].hear()
    rows: list[dict[str, Any]] = []
    for title, (case, count) in CASES.items():
        turns: dict[str, list[float]] = {name: [] for name in workers}
        for k in range(given.rounds + 1):
            print(f"{title}: round {k} of {given.rounds}", file=sys.stderr, flush=True)
            for name, worker in workers.items():
                taken = worker.ask([case, count, 1 if count else SMALL])
                if k:
                    turns[name].append(taken)
        ours = turns.pop("tidegate")
        row: dict[str, Any] = {"case": title, "threads": given.threads, "us a batch": round(statistics.median(ours))}
        for name, theirs in turns.items():
            row[name] = round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2)
        rows.append(row)
    save("epoch_elsewhere", rows)
    print(f"{machine()}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
