"""A network with BatchNorm, trained on the digits in plain PyTorch, before and after fuse has folded it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pointwise_ext as pw
from bench.pointwise_part import pointwise_convolutions
from bench.training import BATCH, SEED, digits

LOGIT_TOLERANCE = 1e-4  # of the largest logit: fp32, folded weights


class InvertedResidual(nn.Module):
    """MobileNetV2's block: x + project(depthwise(expand(x))), with BatchNorm behind every convolution."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class PlainDigitsNet(nn.Module):
    """Two such blocks, a concatenation with what went into them, a 1x1 and the classes: no module of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = nn.Sequential(InvertedResidual(32, 96), InvertedResidual(32, 96))
        self.merge, self.norm = nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.merge(torch.cat([x, self.blocks(x)], 1))))
        return self.head(F.max_pool2d(x, 2).flatten(1))


@dataclass(frozen=True)
class Folding:
    """Accuracy on images never trained on, and the largest difference of two logits over the largest logit."""

    images: int
    before: float
    after: float
    difference: float
    fused: int
    pointwise: int
    seconds: float  # of training

    @property
    def complaints(self) -> list[str]:
        found = []
        if self.before != self.after:
            found.append(f"accuracy was {self.before:.2%} and is {self.after:.2%} after fuse")
        if not self.difference <= LOGIT_TOLERANCE:
            found.append(f"logits differ by {self.difference:.1e}, wanted at most {LOGIT_TOLERANCE:.0e}")
        if self.fused < self.pointwise:
            found.append(f"{self.fused} of {self.pointwise} 1x1 convolutions were fused")
        return found


def train(device: str, epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network in eval mode, and the images and labels to test it on."""
    images, test_images, labels, test_labels = digits(device)
    torch.manual_seed(SEED)
    network = PlainDigitsNet().to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, epochs * -(-len(images) // BATCH))
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).to(device).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval(), test_images, test_labels


def fold(device: str, epochs: int) -> Folding:
    begin = time.perf_counter()
    network, images, labels = train(device, epochs)
    seconds = time.perf_counter() - begin
    fast = pw.fuse(network)
    with torch.inference_mode():
        want, got = network(images), fast(images)
    before, after = ((logits.argmax(1) == labels).float().mean().item() for logits in (want, got))
    difference = ((got - want).abs().max() / want.abs().max()).item()
    fused = len(pw.fusion_report(fast).fused)
    return Folding(len(images), before, after, difference, fused, pointwise_convolutions(network), seconds)
