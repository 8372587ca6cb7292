"""The layer under torch's own samples for its modules: `ModuleInfo` of nn.GRU and nn.GRUCell, with our
classes in place.

torch ships the samples (`torch.testing._internal.common_modules`) but not the test file that drives them, so
the driver is here. It makes the checks of torch's that mean something for a recurrent layer, on every sample,
every back end, in training and in evaluation. Left out: memory formats and in-place variants (there are
none).
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_leaves, tree_map

import tidegate
from tests.helpers.layers import BACKENDS

INFOS = {info.module_cls: info for info in module_db if info.module_cls in (nn.GRU, nn.GRUCell)}
OURS = {nn.GRU: tidegate.GRU, nn.GRUCell: tidegate.GRUCell}
TRAINING = [True, False]


def samples(theirs, dtype=torch.float64, requires_grad=False, training=True):
    """torch's samples, and for GRU its packed ones too, which its own list leaves out."""
    options = {"device": "cpu", "dtype": dtype, "requires_grad": requires_grad, "training": training}
    torch.manual_seed(0)
    found = list(INFOS[theirs].module_inputs_func(INFOS[theirs], **options))
    if theirs is nn.GRU:
        found = list(INFOS[theirs].module_inputs_func(INFOS[theirs], **options, with_packed_sequence=True))
        assert any(isinstance(s.forward_input.args[0], PackedSequence) for s in found)
    assert found
    return found


def made(theirs, backend, sample, dtype=torch.float64, training=True, **more):
    args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
    return OURS[theirs](*args, **kwargs, dtype=dtype, backend=backend, **more).train(training)


def called(module, sample):
    return module(*sample.forward_input.args, **sample.forward_input.kwargs)


def tensors(tree):
    """All floating tensors in it, whatever holds them."""
    return [v for v in tree_leaves(tree) if isinstance(v, torch.Tensor) and v.is_floating_point()]


@pytest.fixture(
    params=[(m, b, t) for m in OURS for b in BACKENDS for t in TRAINING],
    ids=lambda p: f"{p[0].__name__}-{p[1]}-{'train' if p[2] else 'eval'}",
)
def case(request):
    return request.param


@pytest.mark.one_in(5)
def test_forward_gives_what_torch_and_its_reference_function_give(case):
    theirs, backend, training = case
    for dtype in (torch.float32, torch.float64):
        for sample in samples(theirs, dtype):
            ours = made(theirs, backend, sample, dtype, training)
            other = theirs(*sample.constructor_input.args, **sample.constructor_input.kwargs, dtype=dtype)
            other.load_state_dict(ours.state_dict())
            result = called(ours, sample)
            torch.testing.assert_close(tensors(result), tensors(called(other.train(training), sample)))
            if not isinstance(sample.forward_input.args[0], PackedSequence):  # torch's function takes no packed one
                expected = sample.reference_fn(ours, *sample.forward_input.args, **sample.forward_input.kwargs)
                torch.testing.assert_close(tensors(result), tensors(expected))


def test_device_and_dtype_reach_every_parameter(case):
    theirs, backend, training = case
    for sample in samples(theirs):
        for device in ("cpu", "meta"):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                module = made(theirs, backend, sample, dtype, training, device=device)
                assert {(p.device.type, p.dtype) for p in module.parameters()} == {(device, dtype)}
        with torch.device("meta"):
            assert {p.device.type for p in made(theirs, backend, sample).parameters()} == {"meta"}


@pytest.mark.one_in(5)
def test_to_and_to_empty_keep_the_parameters_and_the_gradients_in_step(case):
    theirs, backend, training = case
    for sample in samples(theirs):
        module = made(theirs, backend, sample, training=training)
        ids = [id(p) for p in module.parameters()]
        sum(v.sum() for v in tensors(called(module, sample))).backward()
        assert module.to(torch.float32) is module
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in module.parameters())
        assert [id(p) for p in module.parameters()] == ids
        module.to(device="meta", dtype=torch.float64)
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
        module.to_empty(device="cpu").reset_parameters()
        assert all(v.isfinite().all() for v in tensors(called(module, sample)))


def test_repr_and_str_are_those_of_torch(case):
    theirs, backend, training = case
    for sample in samples(theirs):
        other = theirs(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        assert repr(made(theirs, "auto", sample, training=training)) == str(other)
        assert repr(made(theirs, backend, sample, training=training)) == repr(other)[:-1] + f", backend={backend!r})"


@pytest.mark.one_in(5)
def test_pickle_deepcopy_and_state_dict_carry_the_module_over(case):
    theirs, backend, training = case
    for sample in samples(theirs):
        module = made(theirs, backend, sample, training=training)
        expected = tensors(called(module, sample))
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        fresh = made(theirs, backend, sample, training=training)
        assert any(not torch.equal(a, b) for a, b in zip(tensors(called(fresh, sample)), expected, strict=True))
        buffer2 = io.BytesIO()
        torch.save(module.state_dict(), buffer2)
        buffer2.seek(0)
        fresh.load_state_dict(torch.load(buffer2, weights_only=True))
        for other in (
            pickle.loads(pickle.dumps(module)),
            torch.load(buffer, weights_only=False),
            copy.deepcopy(module),
            fresh,
        ):
            assert other.training is training
            for a, b in zip(tensors(called(other, sample)), expected, strict=True):
                assert torch.equal(a, b)


def _strided(v):
    """The same values, no two neighbours in memory."""
    if not isinstance(v, torch.Tensor) or not v.is_floating_point() or v.dim() == 0:
        return v
    wide = v.detach().repeat_interleave(2, dim=-1)
    return wide[..., ::2].requires_grad_(v.requires_grad)


@pytest.mark.one_in(5)
def test_non_contiguous_tensors_give_the_same_values_and_gradients(case):
    theirs, backend, training = case
    for sample in samples(theirs, requires_grad=True):
        module = made(theirs, backend, sample, training=training)
        results = []
        for change_inputs, change_weights in ((False, False), (True, False), (False, True), (True, True)):
            other = copy.deepcopy(module)
            if change_weights:
                for name, p in list(other.named_parameters()):
                    setattr(other, name, nn.Parameter(_strided(p)))
                    assert not getattr(other, name).is_contiguous()
            args = sample.forward_input.args
            if change_inputs:
                args = tree_map(_strided, list(args))
                assert not tensors(args)[0].is_contiguous()
            leaves = tensors(list(args)) + list(other.parameters())
            outputs = tensors(other(*args))
            upstream = [torch.linspace(-1, 1, v.numel(), dtype=v.dtype).reshape(v.shape) for v in outputs]
            if change_inputs:
                upstream = [_strided(v) for v in upstream]
            results.append([*outputs, *torch.autograd.grad(outputs, leaves, upstream)])
        for result in results[1:]:
            torch.testing.assert_close(result, results[0])


def _check_gradients(check, theirs, backend, every, **options):
    for sample in samples(theirs, requires_grad=True)[::every]:
        module = made(theirs, backend, sample)
        names = [name for name, _ in module.named_parameters()]
        packed = isinstance(sample.forward_input.args[0], PackedSequence)
        given = [v.detach().requires_grad_() for v in tensors(list(sample.forward_input.args))]

        def run(*leaves, module=module, names=names, packed=packed, given=given, sample=sample):
            args = list(leaves[: len(given)])
            if packed:
                args[0] = sample.forward_input.args[0]._replace(data=args[0])
            weights = dict(zip(names, leaves[len(given) :], strict=True))
            return tuple(tensors(torch.func.functional_call(module, weights, tuple(args))))

        assert check(run, (*given, *[p.detach().requires_grad_() for p in module.parameters()]), **options)


# Finite differences take long: of GRU's samples this step, which has no factor in common with the samples'
# periods, visits every option (dense and packed, one way and both, with and without bias).
@pytest.mark.one_in(5)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("theirs", OURS)
def test_gradients_are_right_by_finite_differences(theirs, backend):
    _check_gradients(torch.autograd.gradcheck, theirs, backend, every=7 if theirs is nn.GRU else 1)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("theirs", OURS)
def test_second_gradients_are_right_by_finite_differences(theirs, backend):
    every = 7 if theirs is nn.GRU else 1
    _check_gradients(torch.autograd.gradgradcheck, theirs, backend, every, fast_mode=True)


def test_training_and_evaluation_differ_where_there_is_dropout(case):
    theirs, backend, _ = case
    if theirs is nn.GRUCell:
        assert not hasattr(tidegate.GRUCell(3, 4), "dropout")
        return
    for sample in samples(theirs):
        module = made(theirs, backend, sample, dropout=0.5)
        a, b = called(module.eval(), sample), called(module, sample)
        torch.testing.assert_close(tensors(a), tensors(b), rtol=0, atol=0)
        assert (tensors(called(module.train(), sample))[0] - tensors(a)[0]).abs().max() > 1e-6


# torch's samples for the errors of GRUCell are those of RNNCell, whose third argument is a nonlinearity;
# torch's GRUCell takes the word as a truth value for `bias` and fails at the call. Ours refuses it when it is
# made.
def _slips(args):
    return any(isinstance(a, str) for a in args[2:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("theirs", OURS)
def test_errors_are_of_the_type_that_torch_raises(theirs, backend):
    tried = dict.fromkeys(ModuleErrorEnum, 0)
    for dtype in (torch.float32, torch.float64):
        for error in INFOS[theirs].module_error_inputs_func(
            INFOS[theirs], device="cpu", dtype=dtype, requires_grad=False, training=True
        ):
            sample = error.module_error_input
            args, kwargs = sample.constructor_input.args, dict(sample.constructor_input.kwargs)
            if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR or _slips(args):
                wanted = TypeError if _slips(args) and theirs is nn.GRUCell else error.error_type
                with pytest.raises(wanted):
                    OURS[theirs](*args, **kwargs, backend=backend)
            else:
                kwargs.setdefault("dtype", dtype)
                module = OURS[theirs](*args, **kwargs, backend=backend)
                with pytest.raises(error.error_type):
                    called(module, sample)
            tried[error.error_on] += 1
    assert tried[ModuleErrorEnum.CONSTRUCTION_ERROR if theirs is nn.GRU else ModuleErrorEnum.FORWARD_ERROR] > 0
