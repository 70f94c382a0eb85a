"""ShuffleNet 1x with 3 groups (Zhang et al., 2017): its 1x1 convolutions are grouped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))  # (output channels, how many units), the first of each with stride 2


def shuffle(x: Tensor, groups: int) -> Tensor:
    """The channels of all groups by turns."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Unit(nn.Module):
    """relu(x + branch(x)); with stride 2 relu(concat(average pool of x, branch(x))).

    The branch: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1. The network's first 1x1 has too few channels to group.
    """

    def __init__(self, cin: int, cout: int, stride: int, first_groups: int) -> None:
        super().__init__()
        self.stride, width = stride, cout // 4
        if stride == 2:
            cout -= cin  # the pooled input makes up the rest
        self.conv1 = nn.Conv2d(cin, width, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, cout, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(cout)
        self.pool = nn.AvgPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.depthwise(shuffle(y, GROUPS)))
        y = self.bn3(self.conv3(y))
        return torch.relu(x + y if self.stride == 1 else torch.cat([self.pool(x), y], 1))


class ShuffleNet(nn.Module):
    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        units: list[nn.Module] = []
        channels = 24
        for cout, count in STAGES:
            for i in range(count):
                units.append(Unit(channels, cout, 2 if i == 0 else 1, GROUPS if units else 1))
                channels = cout
        self.units = nn.Sequential(*units)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.units(self.stem(x)).mean((2, 3)))
