"""The recurrence as ONNX operators: its own GRU as far as it reaches, else a Scan of the equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tidegate import convert
from tidegate.export.onnx.graph import Graph
from tidegate.export.parts import array
from tidegate.nn import GRU
from tidegate.ops.gru.equations import NORM_EPSILON


def recur(graph: Graph, core: GRU, x: str, h_0: str) -> tuple[str, str]:
    """The whole stack on x [T, B, I] from h_0 [layers*D, B, H]: output [T, B, D*H], and h_n.

    The operator's own input for lengths is left empty: OpenVINO pays no heed to it where shapes are open (its pull request
    10710), and ONNX does not say what becomes of the state of a sequence with no steps. In place of it each direction
    runs forwards over all T steps, the second one over sequences that are turned round within their lengths, so that
    padding always comes last; and the state after n steps is entry n of [h_0, h_1 ... h_T].
    """
    plain = not core.layer_norm and not core.zoneout and core.all_weights[0][0].dtype == torch.float32
    run = operator if plain else scan
    runs = [[array(w) for w in weights] for weights in core.all_weights]
    D = len(runs) // core.num_layers
    axis_1 = graph.constant("gru/axis_1", np.array([1], np.int64))
    zero, one = (graph.constant(f"gru/{n}", np.array(n, np.int64)) for n in (0, 1))
    # [B, 2]: which entry of [T + 1, B, H] is the last state of each sequence
    batch = graph.add("Squeeze", "gru/B", graph.add("Shape", "gru/batch", "lengths"))
    rows = graph.add("Unsqueeze", "gru/row", graph.add("Range", "gru/rows", zero, batch, one), axis_1)
    at = graph.add("Concat", "gru/last", graph.add("Unsqueeze", "gru/steps", "lengths", axis_1), rows, axis=1)

    starts = [h_0]
    if len(runs) > 1:
        each = graph.constant("gru/each", np.ones(len(runs), np.int64))
        starts = graph.add_several("Split", [f"gru/{_place_of(k, D)}/h_0" for k in range(len(runs))], h_0, each, axis=0)
    ends = []
    for k in range(core.num_layers):
        outputs = []
        for d in range(D):
            me = f"gru/{_place_of(k * D + d, D)}"
            turned = x if d == 0 else _turned(graph, f"{me}/turned", x)
            states = run(graph, core, me, runs[k * D + d], turned, starts[k * D + d])
            all_states = graph.add("Concat", f"{me}/states", starts[k * D + d], states, axis=0)
            h_n = graph.add("GatherND", f"{me}/last_state", all_states, at)
            end = f"{me}/h_n" if len(runs) > 1 else "h_n"
            ends.append(graph.add("Unsqueeze", end, h_n, graph.constant("gru/axis_0", np.array([0], np.int64))))
            outputs.append(states if d == 0 else _turned(graph, f"{me}/output", states))
        x = outputs[0] if D == 1 else graph.add("Concat", f"gru/{k}/output", *outputs, axis=2)
    return x, ends[0] if len(ends) == 1 else graph.add("Concat", "h_n", *ends, axis=0)


def start(bidirectional: bool, begins: str = "zeros") -> str:
    """What h_0 is, in words."""
    # A sequence that is read in both directions has no later chunk to hand a state on to.
    return f"the state to begin with: {begins}" + ("" if bidirectional else ", or an earlier h_n")


def _place_of(run: int, D: int) -> str:
    """The name of a layer and direction."""
    return f"{run // D}" if D == 1 else f"{run // D}/{('forth', 'back')[run % D]}"


def _turned(graph: Graph, name: str, x: str) -> str:
    return graph.add("ReverseSequence", name, x, "lengths", time_axis=0, batch_axis=1)


def operator(graph: Graph, core: GRU, me: str, weights: Sequence[np.ndarray], x: str, h_0: str) -> str:
    """All states [T, B, H] of one layer and direction, by ONNX's GRU."""
    gru = convert.layer_to_onnx([weights], reset=core.reset)
    W, R = graph.constant(f"{me}/W", gru.W), graph.constant(f"{me}/R", gru.R)
    B = "" if gru.B is None else graph.constant(f"{me}/B", gru.B)
    Y = graph.add("GRU", f"{me}/Y", x, W, R, B, "", h_0, **gru.attributes)
    return graph.add("Squeeze", f"{me}/steps", Y, graph.constant("gru/axis_1", np.array([1], np.int64)))


def scan(graph: Graph, core: GRU, me: str, weights: Sequence[np.ndarray], x: str, h_0: str) -> str:
    """The same by a Scan over the steps, from the equations in `tidegate.ops.gru.equations`."""
    H, real = core.hidden_size, weights[0].dtype
    w_ih, w_hh, *more = weights
    b_ih, b_hh = (more.pop(0), more.pop(0)) if core.bias else (None, None)
    g_ih, g_hh = more or (None, None)
    gates_x = _sums(graph, f"{me}/of_x", x, w_ih, b_ih, g_ih)  # [T, B, 3H]: it needs no state, so all steps at once

    body = Graph(graph)
    h_prev, x_t = f"{me}/h_prev", f"{me}/gates_x"
    body.input(h_prev, real, ["B", H])
    body.input(x_t, real, ["B", 3 * H])
    sizes = graph.constant("gru/rz_n", np.array([2 * H, H], np.int64))
    x_rz, x_n = body.add_several("Split", [f"{me}/x_rz", f"{me}/x_n"], x_t, sizes, axis=-1)
    h_rz = _sum(body, f"{me}/h_rz", h_prev, *_rows(0, 2 * H, w_hh, b_hh, g_hh))
    rz = body.add("Sigmoid", f"{me}/rz", body.add("Add", f"{me}/sum_rz", x_rz, h_rz))
    halves = graph.constant("gru/r_z", np.array([H, H], np.int64))
    r, z = body.add_several("Split", [f"{me}/r", f"{me}/z"], rz, halves, axis=-1)
    of_n = _rows(2 * H, 3 * H, w_hh, b_hh, g_hh)
    if core.reset == "after":
        h_n = body.add("Mul", f"{me}/reset", r, _sum(body, f"{me}/h_n_of", h_prev, *of_n))
    else:
        h_n = _sum(body, f"{me}/h_n_of", body.add("Mul", f"{me}/reset", r, h_prev), *of_n)
    n = body.add("Tanh", f"{me}/n", body.add("Add", f"{me}/sum_n", x_n, h_n))
    one, keep = graph.constant("gru/unit", np.array(1, real)), z
    if core.zoneout:  # in evaluation every unit keeps the part p of its state in any case: z + p (1 - z)
        part = graph.constant("gru/zoneout", np.array(core.zoneout, real))
        zoned = body.add("Mul", f"{me}/zoned", part, body.add("Sub", f"{me}/not_z", one, z))
        keep = body.add("Add", f"{me}/keep", z, zoned)
    new = body.add("Mul", f"{me}/new", body.add("Sub", f"{me}/not_kept", one, keep), n)
    h_t = body.add("Add", f"{me}/h_t", new, body.add("Mul", f"{me}/old", keep, h_prev))
    body.output(h_t, real, ["B", H])
    body.output(body.add("Identity", f"{me}/of_step", h_t), real, ["B", H])

    start = graph.add("Squeeze", f"{me}/start", h_0, graph.constant("gru/axis_0", np.array([0], np.int64)))
    names = [f"{me}/end", f"{me}/steps"]
    return graph.add_several("Scan", names, start, gates_x, body=body.graph(me), num_scan_inputs=1)[1]


def _rows(first: int, end: int, *stacked: np.ndarray | None) -> list[np.ndarray | None]:
    return [None if v is None else v[first:end] for v in stacked]


def _sums(graph: Graph, name: str, v: str, w: Any, b: Any, g: Any) -> str:
    """W v + b for all gates; with layer norm r and z are normalised together, and n by itself."""
    if g is None:
        return _sum(graph, name, v, w, b, None)
    H = len(w) // 3
    parts = [
        _sum(graph, f"{name}_{gates}", v, *_rows(first, end, w, b, g))
        for gates, first, end in (("rz", 0, 2 * H), ("n", 2 * H, 3 * H))
    ]
    return graph.add("Concat", name, *parts, axis=-1)


def _sum(graph: Graph, name: str, v: str, w: Any, b: Any, g: Any) -> str:
    """W v + b, or g * normalised(W v) + b."""
    product = graph.add("MatMul", f"{name}/product", v, graph.constant(f"{name}/W", np.ascontiguousarray(w.T)))
    bias = None if b is None else graph.constant(f"{name}/b", b)
    if g is not None:
        gain = graph.constant(f"{name}/gain", g)
        given = [product, gain] if bias is None else [product, gain, bias]
        return graph.add("LayerNormalization", name, *given, axis=-1, epsilon=NORM_EPSILON)
    return product if bias is None else graph.add("Add", name, product, bias)
