"""What every test with another program begins with."""

import pytest


@pytest.fixture(autouse=True)
def no_log_level_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX sets it when it is imported, for its own sake, and programs that a test starts would take it for the user's wish."""
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)


@pytest.fixture(scope="module")
def openvino():
    import openvino

    return openvino
