"""What is asked of the tests themselves."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_test_skips_itself_where_a_package_is_missing():
    """It would pass where nobody has the package. What needs one of another extra is in tests/peers or tests/browser."""
    word = "import" + "orskip"
    assert [path.name for path in TESTS.rglob("*.py") if re.search(word, path.read_text(encoding="utf-8"))] == []
