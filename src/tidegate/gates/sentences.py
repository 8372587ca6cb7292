"""What the gates of a layer did, in plain sentences, each with the definition behind its words."""

from __future__ import annotations

import numpy as np

from tidegate.gates.statistics import NEAR, STILL, UnitStatistics

MEMORY = (
    "Memory length: after how many steps half of what a unit holds is forgotten. What is in the state is multiplied by the "
    "update gate z at every step; the length is the first step at which the product of these is at most 1/2, as a median over all steps."
)
ZONEOUT = " Zoneout keeps a part p of the state in any case: z counts as p + (1 - p) z."
UPDATE = "Update gate z: 1 keeps the old state, 0 replaces it by the candidate."
RESET = "Reset gate r: how much of the old state the candidate gets to see; at 0 it looks at the input alone."
CANDIDATE = "Candidate n: what the unit would write; the state moves towards it as far as the update gate lets it."
STATE = "State h: the unit's memory after the step, and its output."
SHUT_OPEN = (
    f"Shut: below {NEAR:g}. Open: above {1 - NEAR:g}. A gate that is mostly one or the other is called saturated."
)


def described(s: UnitStatistics, steps_of: str = "") -> list[tuple[str, str]]:
    """(sentence, definition) pairs. steps_of: what was counted, in words; "" for "N steps of M sequences".

    >>> import torch
    >>> from tidegate.gates.statistics import Counter
    >>> from tidegate.gates.gates import Gates
    >>> counter, gate = Counter(), torch.full((40, 1, 8), 0.9)        # 0.9 to the power of 7 is a little less than 1/2
    >>> counter.add(Gates(gate, gate, gate, gate, torch.rand(40, 1, 8)))
    >>> for sentence, _ in described(counter.result()):
    ...     print(sentence)
    8 units: 8 remember over 5 steps.
    The middle one of all units remembers 7 steps (counted over 40 steps of 1 sequence).
    The update gate is open in 0% of all steps and shut in 0%; the reset gate is open in 0% and shut in 0%.
    """
    kinds = s.kinds()
    long, parts = s.long, []
    told = [
        ("long memory", f"{{}} remember over {_count(long, 'step')}"),
        ("never forgets", "{} never forget"),
        ("short memory", f"{{}} remember 2 to {long:,} steps"),
        ("follows the input", "{} follow the input"),
        ("still", "{} never move"),
        ("unknown", "{} in sequences of a single step, which say nothing of memory"),
    ]
    for kind, words in told:
        count = kinds.count(kind)
        if count:
            text = words.format(f"{count:,}")
            parts.append(text if count > 1 else _singular(text))
    first = f"{_count(s.units, 'unit')}: {'; '.join(parts)}."
    memory = MEMORY + ZONEOUT * bool(s.zoneout)
    definition = (
        f"{memory} Over {long:,} steps: half is left for longer. Follows the input: half is gone a step later. Never forgets: not once was "
        f"half forgotten within any stretch counted (the longest has {_count(s.longest, 'step')}). Never moves: the state stays within {STILL:g} of "
        "itself; such a unit is dead weight."
    )
    counted = steps_of or f"{_count(s.steps, 'step')} of {_count(s.sequences, 'sequence')}"
    middle = float(np.sort(s.memory_length_steps)[(s.units - 1) // 2])
    second = f"The middle one of all units remembers {_memory(middle, s.longest)} (counted over {counted})."
    gates = f"The update gate is open in {_share(s.update_near_1)} of all steps and shut in {_share(s.update_near_0)}"
    if s.reset_near_0 is None or s.reset_near_1 is None:
        shares = (f"{gates}.", f"{UPDATE} {SHUT_OPEN}")
    else:
        reset = f"the reset gate is open in {_share(s.reset_near_1)} and shut in {_share(s.reset_near_0)}"
        shares = (f"{gates}; {reset}.", f"{UPDATE} {RESET} {SHUT_OPEN}")
    if s.longest < 2:
        return [(first, memory), shares]
    return [(first, definition), (second, memory), shares]


def _memory(memory: float, longest: int) -> str:
    """A memory length in words: "1 step", "12 steps", or that it is longer than what was seen."""
    if np.isinf(memory):
        return f"longer than the {_count(max(longest - 1, 0), 'step')} that can be seen"
    return _count(int(memory), "step")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _singular(text: str) -> str:
    for many, one in (("remember", "remembers"), ("never forget", "never forgets"), ("follow ", "follows "), ("move", "moves")):  # fmt: skip
        text = text.replace(many, one)
    return text


def _share(of_units: np.ndarray) -> str:
    share = float(of_units.mean())
    if 0 < share < 0.005:
        return "under 1%"
    return "over 99%" if 0.995 <= share < 1 else f"{share:.0%}"
