"""Example of a user-defined method, used by studies/own_method.yaml."""

import torch
from torch import nn
from torch.nn import functional as F

import modmix


class Gate(modmix.Method):
    """Gated sum: projected features, weighted by a softmax gate computed from all features."""

    def __init__(self, features, classes, *, width: int = 32):
        super().__init__(features, classes)
        self.values = nn.ModuleList(nn.Linear(size, width) for size in features.values())
        self.gates = nn.Linear(sum(features.values()), len(features))
        self.head = nn.Linear(width, classes)

    def forward(self, features):
        parts = [features[name] for name in self.modalities]
        gates = self.gates(torch.cat(parts, dim=-1)).softmax(-1).split(1, dim=-1)
        values = [value(part).tanh() for value, part in zip(self.values, parts)]
        return self.head(sum(gate * value for gate, value in zip(gates, values)))

    def loss(self, outputs, target_B):
        return F.cross_entropy(outputs, target_B, reduction="none")
