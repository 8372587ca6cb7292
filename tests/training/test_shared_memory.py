"""What workers of one machine show each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tidegate import shared_memory
from tidegate.shared_memory import Door, Neighbours

pytestmark = pytest.mark.skipif(not shared_memory.available(), reason="memory without a name is Linux'")


def met(size: int) -> list[Neighbours]:
    doors = [Door(rank, size, seconds=20) for rank in range(size)]
    paths = [door.path for door in doors]
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda door: door.neighbours(paths), doors))
    for door in doors:
        door.close()
    return found


def test_each_sees_the_values_and_messages_of_all_whatever_their_sizes():
    size, rounds = 3, 40

    def values(rank: int, turn: int) -> torch.Tensor:
        return torch.arange(counts(turn)[rank], dtype=torch.float32) + 1000 * rank + turn

    def counts(turn: int) -> list[int]:
        return [(7 + 3 * rank) * (1 + turn * turn) for rank in range(size)]

    def run(neighbours: Neighbours) -> bool:
        right = True
        for turn in range(rounds):
            found, messages = neighbours.exchange(
                values(neighbours.rank, turn), counts(turn), f"{neighbours.rank} {turn}".encode()
            )
            right &= all(torch.equal(row, values(k, turn)) for k, row in enumerate(found))
            right &= messages == [f"{k} {turn}".encode() for k in range(size)]
        return right

    some = met(size)
    with ThreadPoolExecutor(size) as pool:
        assert list(pool.map(run, some)) == [True] * size
    for one in some:
        one.close()


def test_the_end_of_one_is_noticed_by_the_others_at_once():
    some = met(3)
    errors: list[Exception] = []

    def run(neighbours: Neighbours) -> None:
        try:
            neighbours.tell(b"")
        except ConnectionError as error:
            errors.append(error)

    waiting = [threading.Thread(target=run, args=[one]) for one in some[:2]]
    for one in waiting:
        one.start()
    some[2].close()
    for one in waiting:
        one.join(10)
    assert len(errors) == 2
    for one in some[:2]:
        one.close()


def test_one_that_does_not_answer_is_not_waited_for_without_end():
    doors = [Door(rank, 2, seconds=0.2) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda door: door.neighbours([d.path for d in doors]), doors)
    with pytest.raises(TimeoutError):
        one.tell(b"")
    for some in (*doors, one, other):
        some.close()
