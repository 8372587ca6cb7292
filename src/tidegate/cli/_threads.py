"""With how many threads a command computes."""

from __future__ import annotations

_before: list[int] = []  # torch's number, ahead of a command that took fewer


def within_the_quota() -> None:
    """Until this command ends, no more threads than the container grants processors, where nobody asked for a number.

    A program that imports Tidegate keeps the number that PyTorch has.
    """
    import torch

    from tidegate.default_threads import default_threads

    there = torch.get_num_threads()
    count = default_threads(there).count
    if count < there:
        _before.append(there)
        torch.set_num_threads(count)


def put_back() -> None:
    """As it was: for programs that run a command without a process of its own."""
    if _before:
        import torch

        torch.set_num_threads(_before[0])
        _before.clear()
