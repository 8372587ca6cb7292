"""A first GRU: five sequences of seven steps, and a label 0 or 1 for every step.

The same layer in Keras: keras.layers.GRU(20, return_sequences=True)
"""

import torch
from torch import nn

import tidegate


class StepClassifier(nn.Module):
    def __init__(self, input_size=10, hidden_size=20, classes=2):
        super().__init__()
        self.gru = tidegate.GRU(input_size, hidden_size, num_layers=1, batch_first=True)
        # The GRU returns 20 hidden values a step: its memory, each between -1 and 1. We want a score for each
        # of 2 classes. A linear layer turns the 20 values into 2 scores, which may be of any size.
        self.head = nn.Linear(hidden_size, classes)

    def forward(self, x):
        output, last_state = self.gru(x)  # [5, 7, 20]: the state of every step; [1, 5, 20]: the last one
        return self.head(output), last_state


torch.manual_seed(0)
x = torch.randn(5, 7, 10)  # 5 sequences, 7 steps each, 10 numbers a step
# Is the sum of the first number, up to this step, above zero? The step alone can't tell: it takes memory.
labels = (x[:, :, 0].cumsum(dim=1) > 0).long()  # [5, 7], each 0 or 1

model = StepClassifier()
cross_entropy = nn.CrossEntropyLoss()  # takes the raw scores; the softmax is inside
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
for epoch in range(1, 101):
    scores, _ = model(x)  # [5, 7, 2]
    loss = cross_entropy(scores.flatten(0, 1), labels.flatten())  # all 35 steps side by side
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"epoch {epoch:3d}  loss {loss.item():.4f}")
