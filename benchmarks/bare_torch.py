"""The question's training as a bare torch script, with torch's defaults: the benchmarks' peer."""

import sys

import numpy as np
import torch

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
random = np.random.default_rng(0)
X = torch.tensor(random.normal(size=(1096, 4)))
y = torch.tensor((random.random((1096, 1)) < 0.5).astype(np.float64))
model = torch.nn.Linear(4, 1).double()
with torch.no_grad():
    model.weight.zero_()
    model.bias.zero_()
criterion = torch.nn.BCELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1)
for _ in range(steps):
    loss = criterion(torch.sigmoid(model(X)), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(float(loss.detach()), model.weight.tolist())
