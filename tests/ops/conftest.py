import pytest
import torch

from tests.helpers.native import ISAS
from tidegate.ops.gru import native


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors here are tiny: on a busy machine a second thread costs seconds and gains nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ISAS)
def every_isa(request):
    before = native.isa()
    assert native.set_isa(request.param)
    yield request.param
    native.set_isa(before)
