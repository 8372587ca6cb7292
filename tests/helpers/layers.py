"""What the tests of the layers share: back ends, pairs of layers with equal weights, gradients."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import tidegate

BACKENDS = ["native", "torch", "reference"]
EXACT = {"torch"}  # these must give the bits of torch.nn.GRU
OURS = ["native", "reference"]  # the back ends that can do everything
HALF_TYPES = [torch.bfloat16, torch.float16]
# Back ends, and the half types that they compute in float32.
IN_FLOAT32 = [(name, dtype) for name in OURS for dtype in HALF_TYPES if (name, dtype) != ("native", torch.bfloat16)]
FORMS = {
    "torch's": {},
    "before": {"reset": "before"},
    "layer_norm": {"layer_norm": True},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": 0.3},
    "learned": {"learn_initial_state": True},
    "all": {
        "reset": "before",
        "layer_norm": True,
        "recurrent_dropout": 0.4,
        "zoneout": 0.3,
        "learn_initial_state": True,
        "checkpoint_every": 2,
    },
}


def pair(backend, *args, seed=0, spread=1.0, **options):
    """`tidegate.GRU` and `torch.nn.GRU` with the same weights: normal, so that no gate is like another."""
    torch.manual_seed(seed)
    theirs = nn.GRU(*args, **options)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, spread * p.size(-1) ** -0.5 if p.dim() == 2 else 0.5)
    ours = tidegate.GRU(*args, **options, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(kind, T, B, I, *, batch_first=False, dtype=torch.float32, seed=1):
    """An input for the layer; `kind`: batched, unbatched, sorted or unsorted (the last two packed)."""
    torch.manual_seed(seed)
    if kind == "unbatched":
        return torch.randn(T, I, dtype=dtype)
    x = torch.randn(T, B, I, dtype=dtype)
    if kind == "batched":
        return x.transpose(0, 1).contiguous() if batch_first else x
    lengths = [1 + (T - 1) * k // max(1, B - 1) for k in range(B)]  # 1 ... T
    lengths = sorted(lengths, reverse=True) if kind == "sorted" else lengths[1:] + lengths[:1]
    return pack_padded_sequence(x, lengths, enforce_sorted=kind == "sorted")


def state(kind, B, H, runs, *, dtype=torch.float32, seed=2):
    torch.manual_seed(seed)
    return torch.randn((runs, H) if kind == "unbatched" else (runs, B, H), dtype=dtype)


def values_and_gradients(layer, x, h_0=None, *, seed=3):
    """By name: output, h_n, and the gradients of x, h_0 and all weights for random upstream gradients."""
    data = (x.data if isinstance(x, PackedSequence) else x).detach().clone().requires_grad_()
    x = x._replace(data=data) if isinstance(x, PackedSequence) else data
    leaves = {"d_x": data}
    if h_0 is not None:
        h_0 = leaves["d_h_0"] = h_0.detach().clone().requires_grad_()
    leaves |= {f"d_{name}": p for name, p in layer.named_parameters()}

    output, h_n = layer(x, h_0)
    assert isinstance(output, PackedSequence) == isinstance(x, PackedSequence)
    if isinstance(output, PackedSequence):
        for ours, given in zip(output[1:], x[1:], strict=True):
            assert ours is given or torch.equal(ours, given)
        output = output.data
    torch.manual_seed(seed)
    # drawn in float64 and rounded, so that every dtype gets the same ones
    d_output = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    d_h_n = torch.randn(h_n.shape, dtype=torch.float64).to(h_n.dtype)
    gradients = torch.autograd.grad([output, h_n], list(leaves.values()), [d_output, d_h_n])
    return {"output": output.detach(), "h_n": h_n.detach(), **dict(zip(leaves, gradients, strict=True))}


def error(value, exact):
    """The root mean square error, as a part of the exact value's own root mean square."""
    assert value.shape == exact.shape
    assert value.isfinite().all()
    exact = exact.double()
    return ((value.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def errors(values, exact, dtype):
    """By name: the error of each value, all of which must have this dtype."""
    assert values.keys() == exact.keys()
    assert {v.dtype for v in values.values()} == {dtype}
    return {name: error(values[name], exact[name]) for name in exact}


def assert_at_most_twice(ours, theirs):
    """The root mean square of our errors is at most twice that of torch's.

    It takes many errors to say so: torch can be exactly right about a single small tensor by chance.
    """
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) >= 3
    mine, its = (sum(e * e for e in es) ** 0.5 for es in (ours, theirs))
    assert mine <= 2 * its, f"our error is {mine / its:.2f} times torch's"


def cells(backend, *args, seed=0, **options):
    """Our cell and torch's, with the same weights."""
    torch.manual_seed(seed)
    theirs = nn.GRUCell(*args, **options)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(0, 0.5)
    ours = tidegate.GRUCell(*args, **options, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def layer_of(*args, seed=0, **options):
    """With random weights everywhere, gains and first states included, and no gate like another."""
    torch.manual_seed(seed)
    layer = tidegate.GRU(*args, **options)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.normal_(0, p.size(-1) ** -0.5 if p.dim() == 2 else 0.5)
            if name.startswith("weight_ln"):
                p.add_(1)
    return layer


def jagged(sequences):
    return torch.nested.nested_tensor(list(sequences), layout=torch.jagged, requires_grad=True)
