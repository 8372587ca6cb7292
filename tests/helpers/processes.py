"""Programs that run apart from the tests."""

from __future__ import annotations

import subprocess
import sys

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


def without(blocked: set[str], code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python where these packages can't be imported."""
    command = [sys.executable, "-c", BLOCK.format(blocked=blocked) + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
