from __future__ import annotations

import pytest

from tests.helpers.inspection_runs import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(kind): a run of that kind and its table, made once."""
    made = {}

    def get(kind: str):
        if kind not in made:
            made[kind] = train(kind, tmp_path_factory.mktemp("runs") / kind.replace(" ", "_"))
        return made[kind]

    return get
