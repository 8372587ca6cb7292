"""The tables of docs/speed.md, docs/quality.md and other pages, made from the raw numbers under benchmarks/results/.

    python benchmarks/figures.py

The tests under tests/docs compare the pages with what this prints, and the README's promises with the raw numbers.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
REACH = {
    "snips": ("SNIPS, a slot a word", "span F1", "LSTM type .873 to .888 (Goo et al. 2018, another split)"),
    "japanese_vowels": ("Japanese Vowels, speaker", "accuracy", "no GRU row known"),
    "mnist1d": ("MNIST-1D, digit", "accuracy", "GRU .91, CNN .94, people .96 (arXiv:2011.14439)"),
    "occupancy": ("Occupancy, a row", "accuracy", "CT-GRU .914, LSTM .932 (arXiv:2006.04439)"),
    "cheetah": (
        "Half-cheetah, next step",
        "MSE, lower is better",
        "LSTM 2.500, CT-GRU 3.014, LTC 2.308 (arXiv:2006.04439)",
    ),
}
ELSEWHERE = {
    "jsb": (
        "JSB chorales, the keys of the next step",
        "NLL a step, lower is better",
        "GRU 8.54 (arXiv:1412.3555), 8.43 (arXiv:1803.01271); LSTM 8.67 (arXiv:1412.3555)",
    ),
    "ewt": (
        "English-EWT, a part of speech a word",
        "accuracy",
        "a pretrained transformer .969 (UD 2.5, model card of explosion/en_udv25_englishewt_trf); no GRU row known",
    ),
    "conll2000": (
        "CoNLL-2000, chunks, from words alone",
        "span F1",
        "a network without other data .903 (Collobert et al. 2011, table 4)",
    ),
}
MODELS = {"gru", "same head, no recurrence", "published recipe", "seconds"}


def read(name: str) -> tuple[str, list[dict[str, str]]]:
    """The machine line and the rows of a results file."""
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return file.readline().removeprefix("# ").strip(), list(csv.DictReader(file))


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def elsewhere() -> str:
    rows = read("reach_elsewhere")[1]
    lines = [
        "| data | figure | GRU, defaults | seeds | published | command |",
        "| --- | --- | ---: | --- | --- | --- |",
    ]
    for data, (title, figure, published) in ELSEWHERE.items():
        values = [float(row["value"]) for row in rows if row["data"] == data and row["what"] == "gru"]
        if not values:
            continue
        mean = spread(values) if len(values) > 1 else f"{values[0]:.3f}"
        seeds = f"{len(values)}: {', '.join(f'{v:.3f}' for v in values)}"
        command = f"`benchmarks/reach_elsewhere.py {data} PATH`"
        lines.append(f"| {title} | {figure} | **{mean}** | {seeds} | {published} | {command} |")
    return "\n".join(lines)


def reach() -> str:
    rows = read("reach")[1]
    lines = [
        "| data | figure | GRU, defaults | same head, no recurrence | best rule of thumb | published |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for data, (title, figure, published) in REACH.items():
        values: dict[str, list[float]] = {}
        for row in rows:
            if row["data"] == data:
                values.setdefault(row["what"], []).append(float(row["value"]))
        better = min if data == "cheetah" else max
        rule = better((k for k in values if k not in MODELS), key=lambda k: statistics.mean(values[k]))
        if "published recipe" in values:
            published += f"; its recipe run here {spread(values['published recipe'])}"
        lines.append(
            f"| {title} | {figure} | **{spread(values['gru'])}** | {spread(values['same head, no recurrence'])} "
            f"| {statistics.mean(values[rule]):.3f} ({rule}) | {published} |"
        )
    return "\n".join(lines)


def small_sets() -> str:
    """Of each small set the defaults beside what was kept before and the best naive baseline, and where they are below it by more
    than their own spread."""
    by_set: dict[str, dict[str, list[float]]] = {}
    for row in read("small_sets")[1]:
        by_set.setdefault(row["data"], {}).setdefault(row["what"], []).append(float(row["value"]))
    seeds = min(len(values["gru"]) for values in by_set.values())
    lines = [
        f"| data | figure | GRU, defaults ({seeds} seeds) | best epoch alone | best baseline | nearest sequence |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for data, values in by_set.items():
        numbers = "training mean" in values
        baselines = [k for k in values if k not in {"gru", "best epoch alone", "nearest sequence", "seconds"}]
        best = (min if numbers else max)(baselines, key=lambda k: statistics.mean(values[k]))
        gru, other = values["gru"], statistics.mean(values[best])
        behind = (1 if numbers else -1) * (statistics.mean(gru) - other)
        mark = ", worse" if behind > statistics.stdev(gru) else ""
        nearest = f"{values['nearest sequence'][0]:.3f}" if "nearest sequence" in values else "lengths differ"
        lines.append(
            f"| {data} | {'RMSE, lower is better' if numbers else 'accuracy'} | **{spread(gru)}**{mark} "
            f"| {spread(values['best epoch alone'])} | {spread(values[best])} ({best}) | {nearest} |"
        )
    return "\n".join(lines)


def cost() -> str:
    lines = ["| what | measured | aim | command |", "| --- | ---: | ---: | --- |"]
    for row in read("train_step")[1]:
        lines.append(
            f"| a step of `tidegate train` over the same step by hand with `torch.nn.GRU`: {row['case']} | {row['ratio']} x | 1.25 x | `benchmarks/train_step.py` |"
        )
    for row in read("layer_overhead")[1]:
        if "=" not in row["case"]:  # plain options: the rest is in the raw numbers
            what = f'a call of `tidegate.GRU(backend="torch")` over one of `nn.GRU`: {row["case"]}'
            lines.append(f"| {what} | {row['ratio']} x | 1 x | `benchmarks/layer_overhead.py` |")
    for row in read("table_to_sequences")[1]:
        what = f"a million Parquet rows of ten numbers, {row['rows']}, become sequences"
        figures = row["seconds (median)"] + " s, " + row["memory over the table's"] + " x its memory"
        lines.append(f"| {what} | {figures} | 2 s, 3 x | `benchmarks/table_to_sequences.py` |")
    aims = {"tidegate --help": "0.3 s", "import tidegate, after import torch": "0.05 s"}
    for row in read("start_up")[1]:
        if row["what"] in aims:
            lines.append(
                f"| `{row['what']}` | {row['seconds (median)']} s | {aims[row['what']]} | `benchmarks/start_up.py` |"
            )
    return "\n".join(lines)


def _speeds(kind: str) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    """The rows of a kind: shape -> threads -> peer -> row."""
    speeds: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    for row in read("layer_speed")[1]:
        if row["kind"] == kind and row["status"] == "ok":
            shape = " ".join(row[name] for name in ("B", "T", "I", "H", "layers"))
            speeds.setdefault(shape, {}).setdefault(row["threads"], {})[row["peer"]] = row
    return speeds


def _us(row: dict[str, str]) -> str:
    us = float(row["median_us"])
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def _share(shape: str, threads: str) -> float:
    """Our training's share of the peak: one core's, as measured on one thread, times the threads. (The peak that was
    measured on two in the same run is the lower one where something else was at work just then.)
    """
    by_threads = _speeds("train")[shape]
    one, ours = by_threads["1"]["tidegate"], by_threads[threads]["tidegate"]
    faster = float(one["median_us"]) / float(ours["median_us"])
    return float(one["share_of_peak"]) * faster / int(threads)


def _ratio(peers: dict[str, dict[str, str]], name: str) -> float:
    """How many times as long as Tidegate that peer takes. Below 1 it is the faster one."""
    return float(peers[name]["median_us"]) / float(peers["tidegate"]["median_us"])


def _fastest(peers: dict[str, dict[str, str]], others: tuple[str, ...]) -> str:
    return min((name for name in others if name in peers), key=lambda name: _ratio(peers, name))


def _times(peers: dict[str, dict[str, str]], others: tuple[str, ...]) -> str:
    """How many times as long the fastest of the others takes, and its name."""
    name = _fastest(peers, others)
    return f"{_ratio(peers, name):.2f} x {_NAMES[name]}"


_NAMES = {
    "torch": "torch.nn.GRU", "torch-cell": "torch.nn.GRUCell", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO",
    "jax": "JAX", "keras": "Keras", "keras-xla": "Keras XLA",
}  # fmt: skip


_TRAINED_ELSEWHERE = ("jax", "keras", "keras-xla")


def over_the_fastest() -> list[float]:
    """Every comparison of docs/speed.md with the fastest other program: how many times as long it takes as Tidegate.

    Training is compared with the programs of others that train; `over_torch` has torch.nn.GRU.
    """
    ratios = []
    for kind, others in (("forward", tuple(_NAMES)), ("step", tuple(_NAMES)), ("train", _TRAINED_ELSEWHERE)):
        for by_threads in _speeds(kind).values():
            ratios += [_ratio(peers, _fastest(peers, others)) for peers in by_threads.values()]
    return ratios


def over_torch() -> list[float]:
    """How many times as long torch.nn.GRU takes as Tidegate to train, for every shape and number of threads."""
    return [_ratio(peers, "torch") for by_threads in _speeds("train").values() for peers in by_threads.values()]


def forward_speed() -> str:
    lines = [
        "| B T I H layers | 1 thread | the fastest other | 2 threads | the fastest other |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind, called in (("forward", ""), ("step", ", `layer.step`")):
        for shape, by_threads in _speeds(kind).items():
            cells = [shape + called]
            for threads in ("1", "2"):
                peers = by_threads[threads]
                cells += [f"{_us(peers['tidegate'])} us", _times(peers, tuple(_NAMES))]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def train_speed() -> str:
    lines = [
        "| B T I H layers | 1 thread | `torch.nn.GRU` | JAX, Keras | of the peak | 2 threads | `torch.nn.GRU` "
        "| JAX, Keras | of the peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shape, by_threads in _speeds("train").items():
        cells = [shape]
        for threads in ("1", "2"):
            peers = by_threads[threads]
            cells += [
                f"{_us(peers['tidegate'])} us",
                f"{_ratio(peers, 'torch'):.2f} x",
                _times(peers, _TRAINED_ELSEWHERE),
                f"{_share(shape, threads):.0%}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


# What we set out for: times as fast as torch.nn.GRU, forward and backward.
AIMS = {
    "5 7 10 20 1": 7, "1 100 40 64 1": 20, "32 50 32 64 1": 6, "32 100 64 128 1": 4, "64 32 32 128 1": 3,
    "64 128 128 256 1": 2.3, "16 256 256 512 2": 2.5, "128 100 64 128 2": 2.8, "8 200 512 1024 1": 3.5,
}  # fmt: skip


def bounds() -> str:
    """Training over torch.nn.GRU: the aim, what was reached, and what a kernel at the peak would reach."""
    lines = [
        "| B T I H layers | aim | 1 thread | at the peak | 2 threads | at the peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for shape, by_threads in _speeds("train").items():
        cells = [shape, f"{AIMS[shape]} x"]
        for threads in ("1", "2"):
            ratio = _ratio(by_threads[threads], "torch")
            cells += [f"{ratio:.2f} x", f"{ratio / _share(shape, threads):.1f} x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def extras_cost() -> str:
    """What lengths, resets and the other recurrences cost: of the plain call's time, on 1 and 2 threads."""
    lines = ["| call | 1 thread | 2 threads | aim |", "| --- | ---: | ---: | ---: |"]
    by_call: dict[str, dict[str, dict[str, str]]] = {}
    for row in read("extras_cost")[1]:
        by_call.setdefault(row["call"], {})[row["threads"]] = row
    for call, rows in by_call.items():
        cells = [
            f"{row['ms']} ms" if call.startswith("plain") else f"{row['of the plain call']} x" for row in rows.values()
        ]
        aim = rows["1"]["aim"]
        lines.append(f"| {call} | {' | '.join(cells)} | {f'{aim} x' if aim else ''} |")
    return "\n".join(lines)


def cell_loop() -> str:
    """A loop over single steps in training, beside torch.nn.GRUCell."""
    names = list(read("cell_loop")[1][0])
    lines = [f"| {' | '.join(names)} |", "| ---: | --- | ---: | ---: | ---: | ---: |"]
    return "\n".join(lines + [f"| {' | '.join(row.values())} |" for row in read("cell_loop")[1]])


def bfloat16() -> str:
    """Training under autocast to bfloat16."""
    rows = read("bfloat16")[1]
    lines = ["| B T I H layers | threads | bf16 | float32 | `nn.GRU`, bf16 | `nn.GRU` | error | its error |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        others = [row[name] for name in ("float32", "nn.GRU, bf16", "nn.GRU", "error", "error of nn.GRU, bf16")]
        lines.append(f"| {row['B T I H layers']} | {row['threads']} | {row['bf16 ms']} ms | {' | '.join(others)} |")
    return "\n".join(lines)


def epoch() -> str:
    """A batch of `tidegate train` beside Keras and flax."""
    lines = [
        "| model and batches | Tidegate | Keras | Keras, jit | flax and optax |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in read("epoch_elsewhere")[1]:
        others = [f"{row[name]} x" for name in ("Keras", "Keras, jit", "flax")]
        lines.append(f"| {row['case']} | {int(row['us a batch']):,} us | {' | '.join(others)} |")
    return "\n".join(lines)


def busy() -> str:
    """Forward and backward beside busy processes, over one thread of ours beside none."""
    rows = read("busy")[1]
    lines = ["| B T I H | busy processes | 1 thread | 2 threads | `nn.GRU`, 1 thread | `nn.GRU`, 2 threads |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        by = cells.setdefault((row["B T I H"], row["busy processes"]), {})
        by[row["program"], row["threads"]] = f"{float(row['over one thread of ours, quiet']):.2f} x"
    for cell, by in cells.items():
        values = [by.get((name, threads), "") for name in ("tidegate", "torch.nn.GRU") for threads in ("1", "2")]
        lines.append(f"| {' | '.join([*cell, *values])} |")
    return "\n".join(lines)


def quantised() -> str:
    """Weights in 8 bits and bfloat16: how many times as fast as float32, and the error of each."""
    lines = [
        "| call | B T I H | threads | float32 | int8 | bf16 | torch int8 | error: int8 | bf16 | torch int8 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    cells: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in read("quantised")[1]:
        cells.setdefault((row["call"], row["B T I H"], row["threads"]), {})[row["weights"]] = row
    for cell, by in cells.items():
        others = [by[name] for name in ("int8", "bf16", "torch int8")]
        times = [f"{row['times as fast as float32']} x" for row in others]
        values = [*cell, f"{float(by['float32']['us']):,.0f} us", *times, *(row["error"] for row in others)]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


# Of docs/ship.md: what each format carries and where it ends.
CARRIES = {
    "Tidegate: `stream.push`, the model": ("everything", "needs Tidegate; models that read both ways can't stream"),
    "ONNX, ONNX Runtime": (
        "columns to predictions in words; states in and out; metadata",
        "words in lower case; at least one sequence and one step",
    ),
    "ONNX, OpenVINO": ("the same with `--codes`: text stays in a JSON beside it", "computes in float32, inputs too"),
    "Keras on TensorFlow": (
        "columns to predictions in words; can be trained on",
        "states batch first; TensorFlow alone",
    ),
    "pt2, PyTorch alone": (
        "numbers and codes to classes' numbers; can be trained on",
        "no text; PyTorch's compilers but for AOTInductor",
    ),
    "C": (
        "columns to predictions in words, names, its own test",
        "`float` or `double` numbers; one sequence at a time",
    ),
    "C, TIDEGATE_NO_MATH": ("the same without <math.h>", "the same"),
    "C, 8-bit weights": ("the same in a quarter of the size", "the export reports what it costs on the test rows"),
}


def ship() -> str:
    """For each format: what it carries, its limits, the biggest difference and latencies."""
    lines = [
        "| format | carries | limits | biggest difference of a score | one step | 100 steps |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in read("ship")[1]:
        difference = row["biggest difference"] or "0"
        times = f"{row['one step us']} us | {float(row['100 steps us']):,.0f} us"
        lines.append(f"| {row['target']} | {' | '.join(CARRIES[row['target']])} | {difference} | {times} |")
    return "\n".join(lines)


def stream_speed() -> str:
    lines = ["| what | median | aim |", "| --- | ---: | ---: |"]
    for row in read("stream_speed")[1]:
        unit = " x" if row["what"].endswith("times") else " us"
        lines.append(f"| {row['what']} | {row['median us']}{unit} | {row['aim']} |")
    return "\n".join(lines)


def stream_memory() -> str:
    lines = [
        "| rows | how | rows a second | after 10,000 rows | most | at the end |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in read("stream_memory")[1]:
        memory = " | ".join(f"{row[name]} MB" for name in ("MB after 10,000 rows", "most MB", "MB at the end"))
        lines.append(f"| {row['rows']} | {row['how']} | {row['rows a second']} | {memory} |")
    return "\n".join(lines)


def c_step() -> str:
    names = list(read("c_step")[1][0])
    lines = [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]
    return "\n".join(lines + [f"| {' | '.join(row.values())} |" for row in read("c_step")[1]])


def scale() -> str:
    """A table larger than the memory allowed, beside a smaller one in memory."""
    lines = [
        "| | rows | memory allowed | seconds | thousand rows/s | peak, MB | of it anonymous, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {' | '.join(row.values())} |" for row in read("scale")[1]]
    return "\n".join(lines)


def fuzz() -> str:
    """For each reader: how many inputs it was given, and what came of them."""
    sums: dict[str, dict[str, int]] = {}
    reads: dict[str, str] = {}
    for row in read("fuzz")[1]:
        name = row["target"]
        reads[name] = row["reads"]
        before = sums.setdefault(name, dict.fromkeys(("inputs", "taken", "refused", "failed", "ended", "seconds"), 0))
        sums[name] = {what: count + int(row[what]) for what, count in before.items()}
    sums["**all**"] = {what: sum(one[what] for one in sums.values()) for what in next(iter(sums.values()))}
    lines = [
        "| target | what it reads | inputs | taken | refused | failed | ended | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, counts in sums.items():
        lines.append(f"| {name} | {reads.get(name, '')} | {' | '.join(f'{count:,}' for count in counts.values())} |")
    return "\n".join(lines)


def faults() -> str:
    """For each case: how many rounds there were, what was done in them, and how many ended otherwise than they should."""
    names = ("rounds", "faults", "starts", "wrong")
    sums: dict[str, dict[str, int]] = {}
    about: dict[str, str] = {}
    for row in read("faults")[1]:
        before = sums.setdefault(row["case"], dict.fromkeys(names, 0))
        sums[row["case"]] = {name: before[name] + int(row[name]) for name in names}
        about[row["case"]] = row["about"]
    sums["**all**"] = {name: sum(one[name] for one in sums.values()) for name in names}
    lines = [
        "| case | what happens | rounds | faults | commands | wrong |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case, counts in sums.items():
        lines.append(f"| {case} | {about.get(case, '')} | {' | '.join(f'{n:,}' for n in counts.values())} |")
    return "\n".join(lines)


def link() -> str:
    """What two workers on two hosts exchange in a step, and how long that takes."""
    lines = [
        "| model | a step of one process | link | bytes sent | packets | an exchange |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in read("link")[1]:
        us, step = float(row["us an exchange"]), float(row["us a step of one process"])
        lines.append(
            f"| {row['case']} | {step / 1000:.1f} ms | {row['link']} | {int(row['bytes sent']):,} | {float(row['packets sent']):.0f} "
            f"| {us / 1000:.2f} ms |"
        )
    return "\n".join(lines)


SMALL = 2**18  # of tidegate.workers
OF_MANY = ("1 Gbit/s", (2, 8, 64, 1000))


def on_paper(workers: int, parameters: int) -> tuple[int, int]:
    """The bytes that a worker sends in an exchange, and after how many rounds of messages it ends: as tidegate.workers does it.

    Of gradients of float32, a slice a worker, with three numbers in float64 beside them. gloo gathers along a ring.
    """
    numbers = 24
    if workers == 2 or 4 * parameters * workers <= SMALL:
        return (workers - 1) * (4 * parameters + numbers), workers - 1
    chunk = 4 * -(-parameters // workers)
    return (workers - 1) * (2 * chunk + numbers), 1 + workers - 1


def many_workers() -> str:
    """A model of the exchange of more workers: so many bytes at the price of a byte, so many rounds at the price of a round."""
    name, counts = OF_MANY
    rows = [row for row in read("link")[1] if row["link"] == name]
    most, least = (pick(rows, key=lambda row: int(row["bytes sent"])) for pick in (max, min))
    us, sent = ([float(row[what]) for row in (most, least)] for what in ("us an exchange", "bytes sent"))
    a_byte = (us[0] - us[1]) / (sent[0] - sent[1])
    a_round = us[1] - sent[1] * a_byte
    lines = [
        f"One round takes {a_round / 1000:.2f} ms, a byte {1000 * a_byte:.1f} ns ({8 / a_byte:.0f} Mbit/s).",
        "",
        "| model, a batch a worker | workers | bytes a worker sends | rounds | an exchange | computing, of the whole time |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        step = float(row["us a step of one process"])
        for workers in counts:
            bytes_sent, rounds = on_paper(workers, int(row["parameters"]))
            took = rounds * a_round + bytes_sent * a_byte
            cells = [row["case"], f"{workers:,}", f"{bytes_sent:,}", f"{rounds:,}", f"{took / 1000:.1f} ms"]
            lines.append(f"| {' | '.join(cells)} | {step / (step + took):.0%} |")
    return "\n".join(lines)


CARRIED = {
    "held": "held, accuracy",
    "asked later": "asked later, accuracy",
    "occupancy": "Occupancy, accuracy",
    "cheetah": "Half-cheetah, MSE, lower is better",
}


def workers() -> str:
    rows = read("workers")[1]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))[1:]  # (the first is what the others are beside)
    lines = [
        f"| an update of | µs, 2 threads | {' | '.join(kinds)} | exchange, µs |",
        f"| --- | ---: |{' ---: |' * (len(kinds) + 1)}",
    ]
    for case in dict.fromkeys(row["case"] for row in rows):
        of = {row["kind"]: row for row in rows if row["case"] == case}
        first, *others = of.values()
        ratios = " | ".join(f"{float(row['over 2 threads']):.2f}" for row in others)
        lines.append(f"| {case} | {int(first['us an update']):,} | {ratios} | {int(others[-1]['us exchanging']):,} |")
    return "\n".join(lines)


def carry_state() -> str:
    """Of each set and window: independent windows, the state carried, whole sequences and baselines; seconds an epoch."""
    rows = read("carry_state")[1]

    def of(data: str, what: str, window: str | None = None) -> list[dict[str, str]]:
        return [r for r in rows if r["data"] == data and r["what"] == what and window in (None, r["window"])]

    def value(found: list[dict[str, str]]) -> str:
        return spread([float(row["value"]) for row in found]) if found else ""

    lines = [
        "| data | window | independent windows | state carried | whole sequences | same head, no recurrence | rule of thumb "
        "| CPU seconds an epoch: independent, carried |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for data, title in CARRIED.items():
        rule = next(what for what in ("majority class", "last value") if of(data, what))
        naive = f"{statistics.mean(float(r['value']) for r in of(data, rule)):.3f} ({rule})"
        for window in ("32", "128"):
            both = [of(data, what, window) for what in ("independent windows", "state carried")]
            seconds = [statistics.median(float(r["CPU seconds an epoch"]) for r in found) for found in both]
            cells = [*map(value, both), value(of(data, "whole sequences")), value(of(data, "same head, no recurrence"))]
            lines.append(f"| {title} | {window} | {' | '.join(cells)} | {naive} | {seconds[0]:.2f}, {seconds[1]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    tables = (
        reach,
        elsewhere,
        small_sets,
        forward_speed,
        train_speed,
        bounds,
        cost,
        cell_loop,
        bfloat16,
        quantised,
        extras_cost,
        ship,
        stream_speed,
        stream_memory,
        c_step,
        scale,
        workers,
        fuzz,
        faults,
        link,
        many_workers,
        carry_state,
    )
    print(*(table() for table in tables), sep="\n\n")
