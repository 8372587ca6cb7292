"""Sequences of different lengths, three ways: padded with lengths, nested, packed. All give the same numbers, and
padding costs no time.

Who is speaking? Each utterance has 7 to 29 frames of 12 numbers, and one of nine speakers (real data: Japanese Vowels).
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence

import tidegate

table = tidegate.datasets.read("japanese_vowels")
frames = [name for name in table.columns if name not in ("utterance", "frame", "speaker", "split")]
sequences, speakers, is_training = [], [], []
for utterance in table.partition_by("utterance", maintain_order=True):
    sequences.append(torch.tensor(utterance[frames].to_numpy(), dtype=torch.float32))  # [steps, 12]
    speakers.append(utterance["speaker"][0])
    is_training.append(utterance["split"][0] != "test")
names = sorted(set(speakers))
speaker = torch.tensor([names.index(s) for s in speakers])
is_training = torch.tensor(is_training)

lengths = torch.tensor([len(s) for s in sequences])  # in any order; zeros would be allowed
x = pad_sequence(sequences, batch_first=True, padding_value=float("nan"))  # [B, T, 12]: padding is never read

torch.manual_seed(0)
gru = tidegate.GRU(12, 64, batch_first=True, bidirectional=True)
head = nn.Linear(2 * 64, len(names))
optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=0.01)


def scores(which):
    # h_n is the state at each sequence's own end: [directions, B, 64].
    _, h_n = gru(x[which], lengths=lengths[which])
    return head(h_n.transpose(0, 1).flatten(1))


for epoch in range(1, 31):
    loss = nn.functional.cross_entropy(scores(is_training), speaker[is_training])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"epoch {epoch:2d}  loss {loss.item():.4f}")

with torch.no_grad():
    right = scores(~is_training).argmax(1) == speaker[~is_training]
    print(f"{right.double().mean():.3f} of {len(right)} utterances that it never heard are given to the right speaker")

    padded, h_n = gru(x, lengths=lengths)  # [B, T, 128], 0 past each end
    nested, _ = gru(torch.nested.nested_tensor(sequences, layout=torch.jagged))  # [B, steps of each, 128]
    packed, _ = gru(pack_sequence(sequences, enforce_sorted=False))
    alone = [gru(s)[0] for s in sequences]
    for b, output in enumerate(alone):
        assert torch.equal(padded[b, : lengths[b]], output)
        assert torch.equal(nested[b], output)
    # A PackedSequence lists the first steps of all, then the second ...: of the longest utterance, its first row.
    assert torch.equal(packed.data[0], alone[lengths.argmax()][0])
    print("padded, nested, packed or alone: every output has the same bits")
