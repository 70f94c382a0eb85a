"""What fuse() did with every 1x1 convolution of a model, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.fx import GraphModule

KEY = "pointwise_ext_fusion"


@dataclass(frozen=True)
class Fused:
    """A 1x1 convolution that pointwise_ext computes now."""

    where: str  # its name in the model
    pattern: str  # what one call computes, such as "conv + bn + add + relu"
    shape: str  # "64 -> 256, stride 2"
    note: str = ""  # why it takes in no more


@dataclass(frozen=True)
class Left:
    """A 1x1 convolution that stays what it was."""

    where: str
    reason: str


@dataclass
class FusionReport:
    fused: list[Fused] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)  # other convolutions that BatchNorm was folded into
    packed: list[str] = field(default_factory=list)  # other convolutions that infer on packed copies of their weights

    @property
    def share(self) -> float:
        """Of the model's 1x1 convolutions, those that were fused; 1.0 where there are none."""
        count = len(self.fused) + len(self.left)
        return len(self.fused) / count if count else 1.0

    def __str__(self) -> str:
        rows = [("convolution", "channels", "one call computes", "and no more, since")]
        rows += [(f.where, f.shape, f.pattern, f.note) for f in self.fused]
        rows += [(left.where, "", "left as it is", left.reason) for left in self.left]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows]
        count = len(self.fused) + len(self.left)
        head = f"{len(self.fused)} of {count} 1x1 convolutions fused"
        if self.folded:
            head += f", BatchNorm folded into {len(self.folded)} larger"
        if self.packed:
            head += f", {len(self.packed)} larger with packed weights"
        return "\n".join([head, *(lines if count else [])])


def attach(model: nn.Module, report: FusionReport) -> None:
    """Where copies of the model (of a GraphModule: its meta) and pickles (its attributes) keep it."""
    if isinstance(model, GraphModule):
        model.meta[KEY] = report
    setattr(model, KEY, report)


def fusion_report(model: nn.Module) -> FusionReport:
    """What :func:`pointwise_ext.fuse` did with each 1x1 convolution of the model it returned.

    Returns:
        its `fused` and `left`, lists of what and why; `share`, the part that was fused; ``print`` shows a table.

    Raises:
        ValueError: `model` is not what fuse returned.
    """
    report = getattr(model, KEY, None) or getattr(model, "meta", {}).get(KEY)
    if report is None:
        raise ValueError(
            f"model is a {type(model).__name__} without a report, expected what pointwise_ext.fuse returned"
        )
    return report
