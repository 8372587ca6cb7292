"""Many sessions in one long row of steps: `resets` marks where each begins, and the memory starts anew there.

Logs come like this, and so do episodes in reinforcement learning: one after the other, of any length. The task here
needs both the memory and the marks: is the sum of a session's numbers, from its first step to this one, above zero?
"""

from itertools import pairwise

import torch
from torch import nn

import tidegate

torch.manual_seed(0)
x = torch.randn(16, 120, 1)  # [B, T, I]: 16 logs of 120 steps, a number a step
begins = torch.rand(16, 120) < 0.1  # [B, T]: a new session every ten steps or so, at other places in each log
begins[:, 0] = True


def sums_of_sessions(x, begins):
    total, sums = torch.zeros(len(x)), []
    for x_t, begins_t in zip(x[:, :, 0].T, begins.T, strict=True):
        total = torch.where(begins_t, 0.0, total) + x_t
        sums.append(total)
    return torch.stack(sums, dim=1)


labels = (sums_of_sessions(x, begins) > 0).float()  # [B, T]


def accuracy_after_training(resets):
    torch.manual_seed(1)
    gru, head = tidegate.GRU(1, 32, batch_first=True), nn.Linear(32, 1)
    optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=0.01)
    for _ in range(150):
        scores = head(gru(x, resets=resets)[0]).squeeze(-1)
        loss = nn.functional.binary_cross_entropy_with_logits(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ((scores > 0) == labels.bool()).double().mean().item(), gru


plain, _ = accuracy_after_training(resets=None)
accuracy, gru = accuracy_after_training(resets=begins)
print(f"without resets {plain:.3f} of the steps are right, with resets {accuracy:.3f}")

with torch.no_grad():  # the sessions of the first log, each run alone: the same bits
    output, _ = gru(x[0], resets=begins[0])
    starts = [*begins[0].nonzero().flatten().tolist(), x.size(1)]
    for start, end in pairwise(starts):
        assert torch.equal(output[start:end], gru(x[0, start:end])[0])
    print(f"the {len(starts) - 1} sessions of the first log, one by one: the same bits")

    # A stream comes in parts. The state goes on from part to part, and resets inside of a part work as ever.
    state, parts = None, []
    for first in range(0, x.size(1), 50):
        part = slice(first, first + 50)
        y, state = gru(x[:, part], state, resets=begins[:, part])
        parts.append(y)
    assert torch.equal(torch.cat(parts, dim=1), gru(x, resets=begins)[0])
    print("cut into parts of 50 steps, the state handed on: the same bits")
