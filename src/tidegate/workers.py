"""Several processes that share one training, evaluation or prediction, on one machine or on more, by torch.distributed.

torchrun starts them, or `tidegate train --workers N`. A process takes part within `joined()`, and `here()` says what it is there:
alone, or one of several. What they exchange are arrays and JSON, never pickles.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tidegate import shared_memory
from tidegate.errors import SettingsError, WorkerLost
from tidegate.processes import boot, can_be_asked, is_there, me

WAIT = timedelta(seconds=float(os.environ.get("TIDEGATE_WAIT", "60")))
"""How long a worker that is silent counts as there. (Only tools/faults.py, which pulls cables, sets another one.)"""
BEAT = min(1.0, WAIT.total_seconds() / 10)  # seconds between two signs of life
SOON, START = 2 * WAIT, timedelta(minutes=30)
"""How long the first ones wait for the others to come: where one command started all of them, and where programs may do something else
first.
"""
GRACE = 3.0  # seconds in which workers that are still there say so
LOOK = 0.05  # seconds between two looks
_all_gather: Callable[[Tensor, Tensor], Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Its name from PyTorch 2.13 on, and before."""
LAST_WORDS = 0.3  # seconds until those who ask for the ends of others have asked
LASTING, SPOKEN = "tidegate/lasting", "spoken"
SMALL = 2**18  # bytes that every worker sends to every other one at once, instead of in two rounds


class Alone:
    """The only process. The interface of `Group`."""

    rank, size = 0, 1
    stopping = False
    """Whether a worker was told to stop, as of the last `total`; of one alone it is always False: it asks its own event."""
    saving = False
    """Whether the first worker has a checkpoint to write, likewise."""
    restarted = False
    """Whether torchrun started these workers anew, after some had failed."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Whether this worker does the task of that number, where tasks are dealt out."""
        return number % self.size == self.rank

    def told(self, value: Any) -> list[Any]:
        """The value of every worker, as JSON knows it, in the order of their ranks."""
        return [value]

    def meet(self) -> None:
        """Wait for all, who may take their time: machines may be unlike, and only one writes. What they exchange they wait for no
        longer than `WAIT`, so they meet first where one may be late.
        """

    def same(self, what: str, value: Any) -> None:
        """Raises SettingsError where this is not the same for all workers."""

    def gather(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """The arrays of every worker: as many of each, alike but for the length of the first axis."""
        return [[*arrays]]

    def total(self, shards: int, partial: Callable[[int, int], Partial]) -> Partial:
        """The sum of all slices, as `tree_sum(0, shards)` has it. partial(first, last): that of this worker's slices first ... last - 1."""
        return partial(0, shards)

    def watch(self, stopped: threading.Event | None, due: Callable[[], bool]) -> None:
        """Let the others know, with each `total`, whether this event is set; and the first one, whether a checkpoint is due."""

    def another_speaks(self) -> bool:
        """Whether one before this one is there to say what went wrong."""
        return False

    def speaks(self) -> None:
        """Let the launcher know that this one says what went wrong."""

    def note(self, what: str) -> None:
        """Let workers that torchrun starts anew know that this has happened."""

    def noted(self, what: str) -> bool:
        """Whether these workers, or others before them, have noted that, as the first one sees it."""
        return False


class Partial:
    """What some slices of a batch add up to: gradients in a row [P], and numbers [N] in float64."""

    def __init__(self, gradients: Tensor, numbers: np.ndarray, *, kept: bool = False) -> None:
        """kept: the gradients are another worker's, too, and aren't written to."""
        self.gradients, self.numbers, self._kept = gradients, numbers, kept

    def add(self, other: Partial) -> Partial:
        found = torch.add(self.gradients, other.gradients, out=None if self._kept else self.gradients)
        return Partial(found, self.numbers + other.numbers)


def tree_sum(first: int, last: int, known: Callable[[int, int], Partial | None]) -> Partial:
    """The sum of slices first ... last - 1: that of their halves, and so on, so that it depends on nothing but the slices.

    known: what some slices add up to, or None where that is still to be added up.
    """
    found = known(first, last)
    if found is not None:
        return found
    middle = (first + last) // 2
    return tree_sum(first, middle, known).add(tree_sum(middle, last, known))


def subtrees(shards: int, first: int, last: int) -> list[tuple[int, int]]:
    """The fewest sums on the way of `tree_sum(0, shards)` that hold slices first ... last - 1 and no others.

    >>> subtrees(8, 0, 4), subtrees(6, 2, 4)
    ([(0, 4)], [(2, 3), (3, 4)])
    """

    def within(low: int, high: int) -> list[tuple[int, int]]:
        if high <= first or last <= low:
            return []
        if first <= low and high <= last:
            return [(low, high)]
        middle = (low + high) // 2
        return within(low, middle) + within(middle, high)

    return within(0, shards)


class Group(Alone):
    """One of several workers."""

    def __init__(
        self, rank: int, size: int, store: dist.Store, lasting: dist.Store, *, restarted: bool, hosts: bool
    ) -> None:
        """store: of these workers alone; lasting: also of those that torchrun started before them."""
        self.rank, self.size, self._store, self._lasting = rank, size, store, lasting
        self.restarted, self._hosts = restarted, hosts
        self._out_of_reach = False  # the store: who hosts it is gone, its machine, or the network
        self._stopped: threading.Event | None = None
        self._due: Callable[[], bool] = bool
        self._people: list[dict[str, Any]] = []
        self._there: set[int] | None = None  # after others were lost: who isn't
        self._places = itertools.count()  # where they `meet`
        self._left = threading.Event()
        self._neighbours: shared_memory.Neighbours | None = None  # all workers, where they are on one machine

    def begin(self) -> None:
        """Meet the others. Raises WorkerLost where some don't come, SettingsError where their versions differ."""
        from tidegate import __version__

        self._store.set(f"beat/{self.rank}", "first")
        threading.Thread(target=self._beat, name="tidegate-beat", daemon=True).start()
        self._people = self.told(
            me() | {"machine": _machine(), "tidegate": __version__, "torch": str(torch.__version__)}
        )
        for name in ("tidegate", "torch"):
            self.same(f"version of {name}", self._people[self.rank][name])
        if self._people[0]["machine"] and len({about["machine"] for about in self._people}) == 1:
            self._neighbours = self._side_by_side()

    def _side_by_side(self) -> shared_memory.Neighbours | None:
        """The workers of this machine, or None where one of them can't have what that takes: all then send everything by gloo."""
        door, found = None, None
        with contextlib.suppress(OSError):
            door = shared_memory.Door(self.rank, self.size, WAIT.total_seconds())
        paths = self.told(door.path if door is not None else "")
        with contextlib.suppress(OSError):
            found = door.neighbours(paths) if door is not None and all(paths) else None
        met = all(self.told(found is not None))
        if door is not None:
            door.close()
        if found is not None and not met:
            found.close()
        return found if met else None

    def who(self, rank: int) -> str:
        """A worker, for a message."""
        about = self._people[rank] if self._people else None
        return f"worker {rank} of {self.size}" + (
            f" (host {about['host']}, process {about['process']})" if about else ""
        )

    def meet(self) -> None:
        with self._meeting():
            self._wait_for_all(f"met/{next(self._places)}")

    def same(self, what: str, value: Any) -> None:
        values = self.told(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise SettingsError(
                    f"All workers need the same {what}: {self.who(0)} has {values[0]}, and {self.who(rank)} has {other}."
                )

    # --- what is exchanged ------------------------------------------------------------------------------------

    def told(self, value: Any) -> list[Any]:
        return [json.loads(data) for data in self._bytes_of_all(json.dumps(value).encode())]

    def gather(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        found: list[list[np.ndarray]] = [[] for _ in range(self.size)]
        for array in arrays:
            for k, data in enumerate(self._bytes_of_all(np.ascontiguousarray(array).tobytes())):
                found[k].append(np.frombuffer(data, dtype=array.dtype).reshape(-1, *array.shape[1:]))
        return found

    def _bytes_of_all(self, data: bytes) -> list[bytes]:
        with self._meeting():
            sizes = self._rows_of_all(torch.tensor([len(data)])).ravel()
            longest = max(1, int(sizes.max()))
            mine = torch.zeros(longest, dtype=torch.uint8)
            mine[: len(data)] = _as_tensor(data)
            everything = self._rows_of_all(mine)
        return [everything[k, : int(n)].numpy().tobytes() for k, n in enumerate(sizes)]

    def _rows_of_all(self, mine: Tensor) -> Tensor:  # [n] -> [workers, n]
        everything = mine.new_empty(self.size * mine.numel())
        _all_gather(everything, mine)
        return everything.view(self.size, -1)

    def watch(self, stopped: threading.Event | None, due: Callable[[], bool]) -> None:
        self._stopped, self._due = stopped, due

    def _wishes(self) -> float:
        """1 where this worker was told to stop, and 2 more where a checkpoint is due."""
        stopped = self._stopped is not None and self._stopped.is_set()
        return float(stopped) + 2 * self._due()

    def total(self, shards: int, partial: Callable[[int, int], Partial]) -> Partial:
        each = shards // self.size
        trees = [subtrees(shards, k * each, (k + 1) * each) for k in range(self.size)]
        own = [partial(first, last) for first, last in trees[self.rank]]
        told = np.stack([p.numbers for p in own]).ravel()
        numbers = np.append(told, self._wishes())
        gradients = own[0].gradients[None] if len(own) == 1 else torch.stack([p.gradients for p in own])
        with self._meeting():
            if self._neighbours is not None and gradients.is_cpu:
                found, all_numbers = self._by_memory(self._neighbours, shards, gradients, numbers, trees)
            elif self.size == 2 or gradients.nbytes * self.size <= SMALL:
                parts, all_numbers = self._by_gathering(gradients, numbers, [len(t) for t in trees])
                found = _along_the_tree(shards, trees, parts)
            else:
                found, all_numbers = self._in_chunks(shards, gradients, numbers, trees)
        self.stopping = any(int(row[-1]) & 1 for row in all_numbers)
        self.saving = bool(int(all_numbers[0][-1]) & 2)
        width = len(own[0].numbers)
        leaves = {
            tree: row[k * width : (k + 1) * width]
            for row, some in zip(all_numbers, trees, strict=True)
            for k, tree in enumerate(some)
        }
        none = torch.empty(0)
        of_all = tree_sum(0, shards, lambda *tree: Partial(none, leaves[tree]) if tree in leaves else None)
        return Partial(found, of_all.numbers)

    def _by_memory(
        self, neighbours: shared_memory.Neighbours, shards: int, gradients: Tensor, numbers: np.ndarray, trees: Sequence[Sequence[tuple[int, int]]],
    ) -> tuple[Tensor, list[np.ndarray]]:  # fmt: skip
        """Each reads the partial sums of the others where they lie: all of them, or one chunk and then the sums of all chunks."""
        P = gradients.size(1)
        counts = [len(t) for t in trees]
        lying, messages = neighbours.exchange(gradients.ravel(), [n * P for n in counts], numbers.tobytes())
        parts = [values.view(n, P) for values, n in zip(lying, counts, strict=True)]
        all_numbers = [np.frombuffer(message) for message in messages]
        if self.size == 2 or gradients.nbytes * self.size <= SMALL:
            return _along_the_tree(shards, trees, parts, kept=True), all_numbers
        ends = [k * P // self.size for k in range(self.size + 1)]
        first, last = ends[self.rank : self.rank + 2]
        chunk = _along_the_tree(shards, trees, [part[:, first:last] for part in parts], kept=True)
        chunks, _ = neighbours.exchange(chunk, [b - a for a, b in itertools.pairwise(ends)], b"")
        return torch.cat(chunks), all_numbers

    def _by_gathering(
        self, gradients: Tensor, numbers: np.ndarray, counts: Sequence[int]
    ) -> tuple[list[Tensor], list[np.ndarray]]:
        """Everybody's partial sums to everybody, in one round."""
        P = gradients.size(1)
        everything, all_numbers = self._with_numbers(gradients, max(counts) * P, numbers, counts)
        return [everything[k, : n * P].view(n, P) for k, n in enumerate(counts)], all_numbers

    def _with_numbers(
        self, values: Tensor, room: int, numbers: np.ndarray, counts: Sequence[int]
    ) -> tuple[Tensor, list[np.ndarray]]:
        """The values of all [workers, room], and their numbers, which go along as the bytes of twice as many float32. counts: of
        partial sums a worker.
        """
        width = (len(numbers) - 1) // counts[self.rank]  # the last one is of the worker, the others of its sums
        mine = values.new_zeros(room + 2 * (max(counts) * width + 1))
        mine[: values.numel()] = values.ravel()
        end = torch.from_numpy(numbers).view(torch.float32)
        mine[-len(end) :] = end
        everything = self._rows_of_all(mine)
        return everything[:, :room], [_numbers_in(everything[k], n * width + 1) for k, n in enumerate(counts)]

    def _in_chunks(
        self, shards: int, gradients: Tensor, numbers: np.ndarray, trees: Sequence[Sequence[tuple[int, int]]]
    ) -> tuple[Tensor, list[np.ndarray]]:
        """Each worker adds up one chunk of the gradients, of all slices, and sends the sum to all: twice the gradients a worker, however
        many there are.
        """
        P = gradients.size(1)
        chunk = -(-P // self.size)
        padded = gradients.new_zeros(len(gradients), self.size * chunk)
        padded[:, :P] = gradients
        counts = [len(t) for t in trees]
        received = gradients.new_empty(sum(counts) * chunk)
        dist.all_to_all_single(
            received, padded.view(len(gradients), self.size, chunk).transpose(0, 1).contiguous().ravel(),
            [n * chunk for n in counts], [len(gradients) * chunk] * self.size,
        )  # fmt: skip
        parts = [part.view(-1, chunk) for part in received.split([n * chunk for n in counts])]
        everything, all_numbers = self._with_numbers(_along_the_tree(shards, trees, parts), chunk, numbers, counts)
        return everything.reshape(-1)[:P], all_numbers

    # --- signs of life ----------------------------------------------------------------------------------------

    def _beat(self) -> None:
        """Say again and again that this worker is there, whatever it does meanwhile. On a thread and a connection of its own."""
        with contextlib.suppress(RuntimeError, dist.DistError):
            own: Any = self._store  # (its stub doesn't know all of it)
            store = own.clone()
            for beat in itertools.count():
                store.set(f"beat/{self.rank}", str(beat))
                if self._left.wait(BEAT):
                    return

    def _wait_for_all(self, place: str) -> None:
        """Wait until all are at this place in the store, as long as signs of life come from each. Raises RuntimeError where none does."""
        failures: list[Exception] = []
        answered = [time.monotonic()]

        def wait() -> None:
            try:
                self._store.add(place, 1)
                heard: dict[int, tuple[bytes, float]] = {}
                pause, looked = LOOK / 64, time.monotonic()
                while self._store.add(place, 0) < self.size:
                    answered[0] = time.monotonic()
                    if answered[0] - looked > BEAT:
                        looked = answered[0]
                        self._listen(heard, looked)
                    time.sleep(pause)
                    pause = min(LOOK, 1.2 * pause)
            except dist.DistNetworkError:
                pass  # whoever hosts the store has been killed, and these workers are about to be told; what they exchange goes on
            except (RuntimeError, dist.DistError) as error:
                failures.append(error)

        waiting = threading.Thread(target=wait, name="tidegate-workers", daemon=True)
        waiting.start()
        while waiting.is_alive():  # without a network the store doesn't answer for many minutes
            waiting.join(BEAT)
            if waiting.is_alive() and time.monotonic() - answered[0] > WAIT.total_seconds():
                self._out_of_reach = True
                raise RuntimeError("the place where the workers meet doesn't answer")
        if failures:
            raise failures[0]

    def _listen(self, heard: dict[int, tuple[bytes, float]], now: float) -> None:
        """Look for signs of life of the others. heard: the last one of each, and when it was new. Raises RuntimeError where one has ended
        or is silent.
        """
        for rank, about in enumerate(self._people):
            if rank != self.rank:
                beat = self._store.get(f"beat/{rank}")
                if rank not in heard or heard[rank][0] != beat:
                    heard[rank] = beat, now
                silent = now - heard[rank][1] > WAIT.total_seconds()
                if silent or (can_be_asked(about) and not is_there(about)) or self._said(rank):
                    raise RuntimeError(f"no sign of life from {self.who(rank)}")

    # --- what goes wrong --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _meeting(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, dist.DistError, ConnectionError, TimeoutError) as error:
            raise WorkerLost(self._lost(error)) from error

    def _lost(self, error: Exception) -> str:
        """Who is no longer there, and what those said who ended with a sentence."""
        # Those that wait for us alone notice only once our connections are closed: frames of torch's hold them.
        traceback.clear_frames(error.__traceback__)
        self._close_connections()
        ends = self._ends()
        self._there = {*ends}
        for rank, end in ends.items():
            if end and rank != self.rank:
                return f"{self.who(rank).capitalize()} stopped: {end}"
        gone = [rank for rank in range(self.size) if rank not in ends]
        if gone and self.rank in gone:  # the place where they met is gone, and the first worker had it
            gone = [0]
        if self._out_of_reach:
            here = self._people[self.rank]["host"] if self._people else None
            gone = [rank for rank, about in enumerate(self._people) if about["host"] != here]
        if not gone:
            return f"The workers lost each other ({str(error).splitlines()[0]})."
        if self._out_of_reach:
            names = " and ".join(self.who(rank) for rank in gone[:3]) + (" and others" if gone[3:] else "")
            return f"{self.who(self.rank).capitalize()} can't reach {names}: the network failed, or a machine did."
        names = " and ".join(self.who(rank) for rank in gone).capitalize()
        if len(gone) > 1:
            return f"{names} are gone: they were killed, or their machine or the network failed."
        return f"{names} is gone: it was killed, or its machine or the network failed."

    def _ends(self) -> dict[int, str]:
        """What the workers that are still there say, a sentence or '', after they have had some time for it."""
        found: dict[int, str] = {}

        def ask() -> bool:
            self._say("")
            until = time.monotonic() + GRACE
            while len(found) < self.size and time.monotonic() < until:
                for k in range(self.size):
                    if k not in found and self._said(k):
                        found[k] = self._store.get(f"end/{k}").decode()
                time.sleep(LOOK)
            return True

        self._ask(ask)
        return dict(found)

    def _ask(self, question: Callable[[], bool], seconds: float = 2 * GRACE) -> bool:
        """The answer of the store, or False where there is none in time: without a network, a socket waits for many minutes."""
        if self._out_of_reach:
            return False
        answers: list[bool] = []

        def ask() -> None:
            with contextlib.suppress(RuntimeError, dist.DistError):
                answers.append(question())

        asking = threading.Thread(target=ask, name="tidegate-workers", daemon=True)
        asking.start()
        asking.join(seconds + GRACE)
        self._out_of_reach = not answers
        return bool(answers) and answers[0]

    def _said(self, rank: int) -> bool:
        return bool(self._store.check([f"end/{rank}"]))

    def _say(self, sentence: str) -> bool:
        if not self._said(self.rank):
            self._store.set(f"end/{self.rank}", sentence)
        return True

    def end(self, sentence: str) -> None:
        """Tell the others why this worker ends."""
        self._ask(lambda: self._say(sentence))

    def leave(self) -> None:
        """Part from the others. Who hosts the place where they meet stays until they have heard of each other's ends."""
        self._left.set()
        if self._hosts:
            self._ends()
            time.sleep(LAST_WORDS)
        self._close_connections()

    def _close_connections(self) -> None:
        if self._neighbours is not None:
            self._neighbours.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def speaks(self) -> None:
        def tell() -> bool:
            self._lasting.set(SPOKEN, "")
            return True

        self._ask(tell)

    def note(self, what: str) -> None:
        self._lasting.set(f"noted/{what}", "")

    def noted(self, what: str) -> bool:
        return bool(self.told(self.leads and bool(self._lasting.check([f"noted/{what}"])))[0])

    def another_speaks(self) -> bool:
        def ask() -> bool:
            until = time.monotonic() + 2 * GRACE
            while not any(map(self._said, range(self.rank))) and time.monotonic() < until:
                time.sleep(LOOK)
            return any(map(self._said, range(self.rank)))

        if self._there is not None and not self._out_of_reach:
            return min(self._there, default=self.rank) < self.rank
        if self.rank and self._ask(ask):
            return True
        *before, own = [about["host"] for about in self._people[: self.rank + 1]] or [None]
        return self._out_of_reach and own in before


def _along_the_tree(
    shards: int, trees: Sequence[Sequence[tuple[int, int]]], parts: Sequence[Tensor], *, kept: bool = False
) -> Tensor:
    """The sum of everybody's partial sums. parts: of each worker [its subtrees, ...]; they are written to unless they are kept."""
    leaves = {tree: row for some, part in zip(trees, parts, strict=True) for tree, row in zip(some, part, strict=True)}
    none = np.zeros(0)
    known = {tree: Partial(row, none, kept=kept) for tree, row in leaves.items()}
    return tree_sum(0, shards, lambda *tree: known.get(tree)).gradients


def _as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))


def _numbers_in(row: Tensor, count: int) -> np.ndarray:
    return row[-2 * count :].cpu().clone().view(torch.float64).numpy()


def _machine() -> str:
    """The same for processes that can share memory and see each other's files and networks; '' where that can't be known."""
    try:
        known = shared_memory.available() and boot() is not None
        return f"{platform.node()} {boot()} {os.readlink('/proc/self/ns/net')}" if known else ""
    except OSError:
        return ""


# --- taking part ----------------------------------------------------------------------------------------------------

_here: Alone = Alone()
_meetings = itertools.count()  # of this process: a program may train several times


def here() -> Alone:
    """What this process is: one alone, or within `joined` one of several."""
    return _here


def asked() -> bool:
    """Whether torchrun, or our own `--workers`, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def one_spoke(store: dist.Store) -> bool:
    """Whether a worker has said, or is about to say, what went wrong. store: where they met."""
    return bool(dist.PrefixStore(LASTING, store).check([SPOKEN]))


def workers_here() -> int:
    """How many of the workers are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if asked() else 1


@contextlib.contextmanager
def joined(within: timedelta = START) -> Iterator[Alone]:
    """Take part where several were started, for as long as the block runs; else the block is alone. within: how long the others are
    waited for.

    Raises WorkerLost where the others don't come or are lost on the way; SettingsError where their versions differ, or where the
    program has called `torch.distributed.init_process_group` itself.
    """
    global _here
    if not asked() or isinstance(_here, Group):
        yield _here
        return
    group = _met(within)
    try:
        group.begin()
        _here = group
        yield group
        group.end("")
    except BaseException as error:
        group.end(str(error) if not isinstance(error, KeyboardInterrupt) else "it was interrupted.")
        raise
    finally:
        _here = Alone()
        group.leave()


def _met(within: timedelta) -> Group:
    if dist.is_initialized():
        raise SettingsError(
            "This program has called torch.distributed.init_process_group, and Tidegate's workers need a group of their own. Train before "
            "that call, after destroy_process_group, or in a process that torchrun didn't start."
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun or our launcher

    def met() -> Group:
        store = dist.TCPStore(
            host, port, size, is_master=rank == 0 and not hosted, timeout=within, wait_for_workers=False
        )
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        place, again = _gathered(store, rank, size, restarts, next(_meetings), within)
        own = dist.PrefixStore(f"tidegate/{place}", store)
        kinds = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(kinds, store=own, rank=rank, world_size=size, timeout=WAIT)
        lasting = dist.PrefixStore(LASTING, store)
        return Group(rank, size, own, lasting, restarted=again, hosts=rank == 0 and not hosted)

    try:
        return _in_time(met, within + WAIT)
    except (RuntimeError, dist.DistError) as error:
        raise WorkerLost(
            f"Worker {rank} of {size} couldn't meet the others at {host}:{port} ({str(error).splitlines()[0]})."
        ) from error


def _in_time(work: Callable[[], Group], limit: timedelta) -> Group:
    """What `work` returns. Raises RuntimeError where that takes too long: without a network, a socket waits for many minutes."""
    ends: list[Group | BaseException] = []

    def run() -> None:
        try:
            ends.append(work())
        except BaseException as error:
            ends.append(error)

    working = threading.Thread(target=run, name="tidegate-workers", daemon=True)
    working.start()
    working.join(limit.total_seconds())
    end = ends[0] if ends else RuntimeError("no answer")
    if isinstance(end, BaseException):
        raise end
    return end


def _gathered(
    store: dist.Store, rank: int, size: int, restarts: int, meeting: int = 0, within: timedelta = START
) -> tuple[str, bool]:
    """A place in the store for these workers alone, and whether others were there before them. restarts: that torchrun
    counted here; meeting: which one of this process.

    torchrun starts workers anew while the last ones are still ending, with the same store, and only the machine on which one failed
    counts it (TORCHELASTIC_RESTART_COUNT). So each worker has a name of its own. The first one lists those who are there until all
    of them have seen themselves in its list.
    """
    me = secrets.token_hex(8)
    until = time.monotonic() + within.total_seconds()
    key = f"tidegate/workers/{meeting}"
    store.set(f"{key}/{rank}", f"{me} {restarts}")
    times = store.add(f"{key}/times", 1) if rank == 0 else 0
    while time.monotonic() < until:
        if rank == 0:
            there = [store.get(f"{key}/{k}").decode().split() for k in range(size)]
            again = times > 1 or any(int(count) for _, count in there)
            names = [name for name, _ in there]
            store.set(f"{key}/list", json.dumps([names, again]))
            if size == 1 or store.check([f"{key}/seen/{me}/{name}" for name in names[1:]]):
                store.set(f"{key}/all/{me}", "")
                return me, again
        elif store.check([f"{key}/list"]):
            names, again = json.loads(store.get(f"{key}/list"))
            if me in names:  # else it is that of workers before these
                store.set(f"{key}/seen/{names[0]}/{me}", "")
                if store.check([f"{key}/all/{names[0]}"]):
                    return names[0], again
        time.sleep(LOOK)
    raise WorkerLost(
        f"Worker {rank} of {size} waited {within.total_seconds() / 60:.0f} minutes for the others, who didn't come."
    )
