"""python -m bench real: the README's three uses on a photograph and on digits, and networks trained on digits: one of
PointwiseConv2d, and one of plain PyTorch that is fused afterwards.

Every image ships inside scikit-learn. A fixed random 3x3 layer makes 64 feature channels of an image, as a network's
first layer would; what is compared with nn.Conv2d is real activations, not noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import pointwise_ext as pw
from bench.folding import Folding, fold
from bench.measure import Effort, Timing, host_sample, interleave
from bench.report import ratio, time
from bench.training import Training, plot_losses, train_both

EFFORT = Effort(rounds=7, sample_ms=5.0)
TOLERANCE = 1e-5  # of the largest output: both sides compute in fp32
ACCURACY, LOSS_TOLERANCE = 0.97, 1e-2


class Uses(nn.Module):
    """The three uses with nn.Conv2d: y = relu(W x + b), of a concatenation, and a bottleneck with a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(64, 32, 1)
        self.merge = nn.Conv2d(96, 64, 1)
        self.reduce, self.spatial, self.expand = (
            nn.Conv2d(64, 32, 1),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.Conv2d(32, 64, 1),
        )

    def calls(self, x: Tensor, small: Tensor) -> dict[str, Callable[[], Tensor]]:
        def bottleneck() -> Tensor:
            middle = F.relu_(self.spatial(F.relu_(self.reduce(x))))
            return F.relu_(self.expand(middle).add_(x))

        return {
            "64 -> 32": lambda: F.relu_(self.project(x)),
            "concat 32 + 64 -> 64": lambda: F.relu_(self.merge(torch.cat([small, x], 1))),
            "bottleneck 64 -> 32 -> 3x3 -> 64": bottleneck,
        }


class FusedUses(nn.Module):
    """The same on PointwiseConv2d, sharing the parameters."""

    def __init__(self, plain: Uses) -> None:
        super().__init__()
        fused = pw.PointwiseConv2d.from_conv
        self.project, self.merge = fused(plain.project, activation="relu"), fused(plain.merge, activation="relu")
        self.reduce, self.expand = fused(plain.reduce, activation="relu"), fused(plain.expand, activation="relu")
        self.spatial = plain.spatial

    def calls(self, x: Tensor, small: Tensor) -> dict[str, Callable[[], Tensor]]:
        return {
            "64 -> 32": lambda: self.project(x),
            "concat 32 + 64 -> 64": lambda: self.merge(small, x),
            "bottleneck 64 -> 32 -> 3x3 -> 64": lambda: self.expand(F.relu_(self.spatial(self.reduce(x))), residual=x),
        }


def pictures() -> dict[str, Tensor]:
    """(N, 3 or 1, H, W) in 0..1: one photograph of 427 x 640 pixels, and 32 digits enlarged to 28 x 28."""
    from sklearn.datasets import load_digits, load_sample_image

    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    digits = torch.from_numpy(load_digits().images[:32]).float()[:, None] / 16
    return {"photograph": photo, "32 digits": F.interpolate(digits, size=28, mode="bilinear")}


@dataclass(frozen=True)
class Compared:
    picture: str
    use: str
    layout: str
    shape: tuple[int, ...]
    error: float  # largest difference over the largest output
    plain: Timing
    fused: Timing


def compare_uses(device: str, effort: Effort = EFFORT) -> list[Compared]:
    """Each use on each picture in both layouts: the outputs' difference, and the two times, interleaved."""
    torch.manual_seed(0)
    rows = []
    for picture, image in pictures().items():
        stem = nn.Conv2d(image.shape[1], 64, 3, stride=4 if picture == "photograph" else 1, padding=1).to(device)
        plain = Uses().to(device)
        fused = FusedUses(plain)
        for layout, memory_format in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
            with torch.inference_mode():
                x = F.relu(stem(image.to(device))).contiguous(memory_format=memory_format)
                small = F.relu(plain.project(x))
                ours = fused.calls(x, small)
                for use, call in plain.calls(x, small).items():
                    want, got = call(), ours[use]()
                    error = ((got - want).abs().max() / want.abs().max()).item()
                    samples = {"plain": _synchronised(call, device), "fused": _synchronised(ours[use], device)}
                    samples = {name: host_sample(run, effort, device) for name, run in samples.items()}
                    timing = interleave(samples, effort)
                    rows.append(Compared(picture, use, layout, tuple(x.shape), error, timing["plain"], timing["fused"]))
    return rows


def _synchronised(call: Callable[[], Tensor], device: str) -> Callable[[], object]:
    if device == "cpu":
        return call

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def print_uses(console: Console, rows: list[Compared]) -> None:
    table = Table(title="Three uses on real images, fp32", title_justify="left")
    for column in ("image", "features", "use", "layout"):
        table.add_column(column)
    for column in ("largest error", "nn.Conv2d + ReLU", "pointwise_ext", "faster"):
        table.add_column(column, justify="right")
    for row in rows:
        error = f"{row.error:.1e}" if row.error <= TOLERANCE else f"[red]{row.error:.1e}[/]"
        shape = "x".join(map(str, row.shape))
        times = time(row.plain.median), time(row.fused.median), ratio(row.plain.median / row.fused.median)
        table.add_row(row.picture, shape, row.use, row.layout, error, *times)
    console.print(table)


def print_training(console: Console, plain: Training, fused: Training) -> None:
    table = Table(title=f"A bottleneck network trained on the digits, {len(plain.losses)} steps", title_justify="left")
    table.add_column("layers")
    for column in ("test accuracy", "last loss", "time per step", "faster", "peak memory of a step"):
        table.add_column(column, justify="right")
    for name, run in (("nn.Conv2d + ReLU", plain), ("PointwiseConv2d", fused)):
        speed = ratio(plain.step.median / run.step.median)
        cells = (
            f"{run.accuracy:.2%}",
            f"{run.losses[-1]:.5f}",
            time(run.step.median),
            speed,
            f"{run.peak_bytes / 1e6:.2f} MB",
        )
        table.add_row(name, *cells)
    console.print(table)


def print_folding(console: Console, run: Folding) -> None:
    console.print(
        f"A BatchNorm network trained on the digits in {run.seconds:.0f} s: accuracy on {run.images} held-out images "
        f"{run.before:.2%}; after fuse, with {run.fused} of {run.pointwise} 1x1 convolutions fused, {run.after:.2%}; "
        f"largest difference of the logits {run.difference:.1e} of the largest.",
        highlight=False,
    )


def real(console: Console, output: Path, device: str = "cpu", epochs: int = 10) -> int:
    """Prints the tables and draws the loss curves; returns 1 when an answer is wrong or training is not as good."""
    rows = compare_uses(device)
    print_uses(console, rows)
    plain, fused = train_both(device, epochs)
    print_training(console, plain, fused)
    folding = fold(device, epochs)
    print_folding(console, folding)
    difference = max(abs(a - b) for a, b in zip(plain.losses, fused.losses, strict=True))
    output.mkdir(parents=True, exist_ok=True)
    picture = plot_losses(plain, fused, output / "digits-loss.png")
    console.print(f"largest difference of the two loss curves: {difference:.1e}; drawn in {picture}", highlight=False)
    complaints = [f"{row.use} on {row.picture}: off by {row.error:.1e}" for row in rows if not row.error <= TOLERANCE]
    complaints += folding.complaints
    if fused.accuracy <= ACCURACY:
        complaints.append(f"accuracy {fused.accuracy:.2%}, wanted above {ACCURACY:.0%}")
    if not difference <= LOSS_TOLERANCE:
        complaints.append(f"the loss curves differ by {difference:.1e}, wanted at most {LOSS_TOLERANCE:.0e}")
    for complaint in complaints:
        console.print(f"[red]{complaint}[/]", highlight=False)
    return int(bool(complaints))
