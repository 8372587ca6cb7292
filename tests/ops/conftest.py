import pytest
import torch

from tests.helpers.native import FLOAT_ISAS, ISAS
from tidegate.ops.gru import native


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors here are tiny: on a busy machine a second thread costs seconds and gains nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _chosen(name):
    before = native.isa()
    assert native.set_isa(name)
    yield name
    native.set_isa(before)


@pytest.fixture(params=FLOAT_ISAS)
def every_isa(request):
    yield from _chosen(request.param)


@pytest.fixture(params=ISAS)
def every_narrow_isa(request):
    """With those that differ in bfloat16 and 8 bits alone."""
    yield from _chosen(request.param)
