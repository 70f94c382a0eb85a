"""U-Net (Ronneberger et al., 2015) with padding and BatchNorm, and with a 1x1 that fuses what the skip connections
concatenate, as later ones have it; half the paper's channels."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS = (32, 64, 128, 256, 512)


def conv_bn(cin: int, cout: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU(inplace=True))


def double(cin: int, cout: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(cin, cout, 3), conv_bn(cout, cout, 3))


class Up(nn.Module):
    """Twice the size, half the channels; the skip connection joins by a concatenation and a 1x1."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(cin, cout, 2, 2)
        self.fuse = conv_bn(2 * cout, cout, 1)
        self.convs = double(cout, cout)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(self.fuse(torch.cat((skip, self.up(x)), dim=1)))


class UNet(nn.Module):
    """Images to a map of class scores of the same size."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        pairs = list(pairwise(CHANNELS))
        self.inc = double(3, CHANNELS[0])
        self.downs = nn.ModuleList(double(cin, cout) for cin, cout in pairs)
        self.ups = nn.ModuleList(Up(cin, cout) for cout, cin in reversed(pairs))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(CHANNELS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.inc(x)]
        for down in self.downs:
            features.append(down(self.pool(features[-1])))
        x = features.pop()
        for up in self.ups:
            x = up(x, features.pop())
        return self.head(x)
