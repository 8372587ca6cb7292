"""Two hosts on one machine: network namespaces with names of their own, joined by a cable (a veth pair). Needs Linux, root and iproute2."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

NAMES = ("node1", "node2")
_INSIDE = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


class Hosts:
    """A program on a host sees the other one by its name, and one network card, eth0."""

    def __init__(self, names: Path) -> None:
        self._names = names
        self._space = {name: f"tidegate-{os.getpid()}-{name}" for name in NAMES}

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` on a host."""
        inside = ["unshare", "--uts", "--mount", "sh", "-c", _INSIDE, "sh", host, str(self._names), *words]
        return ["ip", "netns", "exec", self._space[host], *inside]

    def plug(self, host: str, up: bool) -> None:
        """Put a host's cable in, or pull it."""
        _ip("-n", self._space[host], "link", "set", "eth0", "up" if up else "down")

    def limit(self, mbit: int) -> None:
        """Let no more than so many Mbit/s pass, one way (a token bucket of 32 KB)."""
        for space in self._space.values():
            how = ["tbf", "rate", f"{mbit}mbit", "burst", "32kb", "latency", "400ms"]
            _run("ip", "netns", "exec", space, "tc", "qdisc", "replace", "dev", "eth0", "root", *how)

    def sent(self, host: str) -> int:
        """Bytes that a host has sent so far, headers and all."""
        told = _run("ip", "-n", self._space[host], "-s", "-j", "link", "show", "eth0")
        return int(json.loads(told)[0]["stats64"]["tx"]["bytes"])


def missing() -> str | None:
    """Why there can't be two hosts here; None where there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "two hosts on one machine need root"
    if not all(map(shutil.which, ("ip", "tc", "unshare"))):
        return "two hosts on one machine need iproute2 and util-linux (Debian: apt install iproute2)"
    if subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, check=False).returncode:
        return "this container may not make network namespaces"
    return None


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as undo:
        names = Path(folder) / "hosts"
        addresses = {name: f"10.0.7.{k}" for k, name in enumerate(NAMES, 1)}
        names.write_text("".join(f"{a} {name}\n" for name, a in {"localhost": "127.0.0.1", **addresses}.items()))
        names.chmod(0o644)
        hosts = Hosts(names)
        for name in NAMES:
            _ip("netns", "add", hosts._space[name])
            undo.callback(_ip, "netns", "delete", hosts._space[name])
        first, second = hosts._space.values()
        _ip("-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
        for name, space in hosts._space.items():
            _ip("-n", space, "address", "add", f"{addresses[name]}/24", "dev", "eth0")
            for card in ("lo", "eth0"):
                _ip("-n", space, "link", "set", card, "up")
        yield hosts


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
