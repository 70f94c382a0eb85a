"""A bottleneck network on scikit-learn's digits, trained with PointwiseConv2d and, from the same seed, nn.Conv2d."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pointwise_ext as pw
from bench.measure import Timing, no_garbage_collection, peak_memory

SEED, BATCH, LEARNING_RATE, WEIGHT_DECAY = 0, 64, 0.03, 1e-3
COLOURS = ("#0072B2", "#D55E00")


class Bottleneck(nn.Module):
    """relu(x + expand(relu(3x3(relu(reduce(x))))))"""

    def __init__(self, channels: int, middle: int, fused: bool) -> None:
        super().__init__()
        self.reduce = pointwise(channels, middle, fused)
        self.spatial = nn.Conv2d(middle, middle, 3, padding=1)
        self.expand = pointwise(middle, channels, fused)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(F.relu(self.spatial(self.reduce(x))), residual=x)


class PlainPointwise(nn.Conv2d):
    """nn.Conv2d + ReLU with PointwiseConv2d's way of taking inputs and a residual."""

    def forward(self, *inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1))
        return F.relu(y if residual is None else y + residual)


def pointwise(cin: int, cout: int, fused: bool) -> nn.Conv2d:
    return pw.PointwiseConv2d(cin, cout, activation="relu") if fused else PlainPointwise(cin, cout, 1)


class DigitsNet(nn.Module):
    """All three uses in 8x8 images: two bottlenecks, a projection, a concatenation with what it was projected from."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.blocks = nn.Sequential(Bottleneck(64, 32, fused), Bottleneck(64, 32, fused))
        self.project, self.merge = pointwise(64, 32, fused), pointwise(96, 64, fused)
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(F.max_pool2d(self.merge(self.project(x), x), 2).flatten(1))


@dataclass
class Training:
    """The loss of every step, the accuracy on images never trained on, and what a step costs."""

    accuracy: float = 0.0
    losses: list[float] = field(default_factory=list)
    step: Timing = field(default_factory=lambda: Timing(0, 0, 0))
    peak_bytes: int = 0


class Trainer:
    def __init__(self, fused: bool, device: str, steps: int) -> None:
        torch.manual_seed(SEED)
        self.net = DigitsNet(fused).to(device)
        self.optimizer = torch.optim.SGD(self.net.parameters(), LEARNING_RATE, 0.9, weight_decay=WEIGHT_DECAY)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.device, self.losses, self.microseconds = device, [], []

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.net(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def timed_step(self, images: Tensor, labels: Tensor) -> None:
        begin = time.perf_counter()
        self.losses.append(self.step(images, labels).item())  # item() waits for a GPU
        self.schedule.step()
        self.microseconds.append((time.perf_counter() - begin) * 1e6)

    def finish(self, images: Tensor, labels: Tensor, batch: tuple[Tensor, Tensor]) -> Training:
        with torch.inference_mode():
            accuracy = (self.net(images).argmax(1) == labels).float().mean().item()
        peak = peak_memory(lambda: self.step(*batch), self.device)
        return Training(accuracy, self.losses, Timing.of(self.microseconds), peak)


def digits(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on (four fifths of the 1797), and to test on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    split = train_test_split(data.images, data.target, test_size=0.2, random_state=SEED, stratify=data.target)
    train, test = (torch.from_numpy(images).float()[:, None].to(device) for images in split[:2])
    mean, deviation = train.mean(), train.std()
    train, test = (train - mean) / deviation, (test - mean) / deviation
    return train, test, *(torch.from_numpy(labels).to(device) for labels in split[2:])


def train_both(device: str, epochs: int) -> tuple[Training, Training]:
    """Trains the plain and the fused network on the same batches, taking turns step by step, so that times compare."""
    images, test_images, labels, test_labels = digits(device)
    steps = epochs * -(-len(images) // BATCH)
    trainers = [Trainer(fused, device, steps) for fused in (False, True)]
    order = torch.Generator().manual_seed(SEED)
    with no_garbage_collection():
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=order).to(device).split(BATCH):
                down, right = torch.randint(
                    -1, 2, (2,), generator=order
                ).tolist()  # a shift: else accuracy ends at 97 %
                shifted = images[batch].roll((down, right), (2, 3))
                for trainer in trainers:
                    trainer.timed_step(shifted, labels[batch])
    last = (images[:BATCH], labels[:BATCH])
    plain, fused = (trainer.finish(test_images, test_labels, last) for trainer in trainers)
    return plain, fused


def plot_losses(plain: Training, fused: Training, path: Path) -> Path:
    """Both loss curves over each other, and their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (curves, differences) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(2, 1))
    curves.plot(plain.losses, color=COLOURS[0], linewidth=3, alpha=0.6, label="nn.Conv2d + ReLU")
    curves.plot(fused.losses, color=COLOURS[1], linewidth=1, linestyle="--", label="PointwiseConv2d")
    curves.set(
        ylabel="training loss", yscale="log", title="The same seed, the same batches: digits, bottleneck network"
    )
    curves.legend()
    differences.plot([abs(a - b) for a, b in zip(plain.losses, fused.losses, strict=True)], color="black")
    differences.set(xlabel="step", ylabel="absolute difference")
    for axis in (curves, differences):
        axis.grid(alpha=0.3)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
