"""What processes of one machine show each other: memory that all can read, and a socket from each to each.

torch.distributed has no shared memory on the CPU: gloo sends everything through the network's code, also from a process to its
neighbour. Here a process writes its numbers where the others read them, and a short message tells them so. The end of a process
closes its sockets, which the others notice at once.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

BYTES = 4  # of a float32
SIZE = struct.Struct("<q")


def available() -> bool:
    """Whether this system has memory without a name (Linux)."""
    return hasattr(os, "memfd_create") and hasattr(socket, "send_fds")


class Slot:
    """A row of float32 numbers that one process writes and others read. It grows as needed; what isn't written takes no memory."""

    def __init__(self, file: int, *, own: bool) -> None:
        self.file, self._own = file, own
        self._all = torch.empty(0)

    def numbers(self, n: int) -> Tensor:
        """The first n of them [n]. All processes ask for as many, the one that writes first."""
        if n > self._all.numel():
            size = 2 * n * BYTES
            if self._own:
                os.ftruncate(self.file, size)
            self._all = torch.frombuffer(mmap.mmap(self.file, size), dtype=torch.float32)
        return self._all[:n]

    def close(self) -> None:
        """What was read stays."""
        if self.file >= 0:
            os.close(self.file)
        self.file = -1


class Neighbours:
    """The processes of one machine, of which this is number `rank`.

    files: of each process the memory that it writes to, in turns.
    """

    def __init__(self, rank: int, sockets: Mapping[int, socket.socket], files: Sequence[Sequence[int]]) -> None:
        self.rank, self._sockets = rank, sockets
        self._slots = [[Slot(file, own=k == rank) for file in some] for k, some in enumerate(files)]
        self._turn = 0

    def exchange(self, values: Tensor, counts: Sequence[int], message: bytes) -> tuple[list[Tensor], list[bytes]]:
        """The values and the message of every process. values: flat; counts: how many each process has.

        The values found are where the others wrote them: not to be written to, and there until the next call. Raises
        ConnectionError where a process has ended, TimeoutError where it doesn't answer.
        """
        slots = [some[self._turn % len(some)] for some in self._slots]
        self._turn += 1
        slots[self.rank].numbers(counts[self.rank]).copy_(values)
        messages = self.tell(message)
        return [slot.numbers(n) for slot, n in zip(slots, counts, strict=True)], messages

    def tell(self, message: bytes) -> list[bytes]:
        """The message of every process, as soon as all have sent theirs."""
        for other in self._sockets.values():
            other.sendall(SIZE.pack(len(message)) + message)
        return [message if k == self.rank else _received(self._sockets[k]) for k in range(len(self._slots))]

    def close(self) -> None:
        for other in self._sockets.values():
            other.close()
        for slot in itertools.chain(*self._slots):
            slot.close()


def _received(other: socket.socket) -> bytes:
    (length,) = SIZE.unpack(_exactly(other, SIZE.size))
    return _exactly(other, length)


def _exactly(other: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = other.recv(count - len(data))
        if not more:
            raise ConnectionResetError("a neighbour has closed its connection")
        data += more
    return data


SLOTS = 2  # of a process, in turns: others may still read one when it writes the next, but not the one after that


class Door:
    """Where the others find this process: a socket in a folder that only its user can enter."""

    def __init__(self, rank: int, size: int, seconds: float) -> None:
        """seconds: how long to wait for another one's message."""
        self.rank, self.size, self._seconds = rank, size, seconds
        self._folder = tempfile.TemporaryDirectory(prefix="tidegate-worker-")
        self.path = str(Path(self._folder.name) / "door")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.settimeout(seconds)
        self._listening.bind(self.path)
        self._listening.listen(size)

    def neighbours(self, paths: Sequence[str]) -> Neighbours:
        """Connect with all others. paths: of all doors. Raises OSError where that fails."""
        with contextlib.ExitStack() as undo:
            sockets: dict[int, socket.socket] = {}
            for k in range(self.rank):
                sockets[k] = other = undo.enter_context(socket.socket(socket.AF_UNIX))
                other.settimeout(self._seconds)
                other.connect(paths[k])
                other.sendall(SIZE.pack(self.rank))
            for _ in range(self.rank + 1, self.size):
                other = undo.enter_context(self._listening.accept()[0])
                other.settimeout(self._seconds)
                (k,) = SIZE.unpack(_exactly(other, SIZE.size))
                sockets[k] = other
            files = {self.rank: [os.memfd_create("tidegate") for _ in range(SLOTS)]}
            for other in sockets.values():
                socket.send_fds(other, [b"."], files[self.rank])
            for k, other in sockets.items():
                files[k] = socket.recv_fds(other, 1, SLOTS, socket.MSG_CMSG_CLOEXEC)[1]
            undo.pop_all()
        return Neighbours(self.rank, sockets, [files[k] for k in range(self.size)])

    def close(self) -> None:
        self._listening.close()
        with contextlib.suppress(OSError):
            self._folder.cleanup()
