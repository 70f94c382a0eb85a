"""Fused 1x1 convolutions: y = activation(conv1x1(concat(inputs), weight) + bias + residual) in one pass over y."""

from . import reference
from .decompositions import decompositions
from .explain import explain
from .functional import pointwise_conv
from .fusion import FusionReport, fuse, fusion_report
from .info import info
from .modules import PointwiseConv1d, PointwiseConv2d, PointwiseConv3d

__version__ = "0.1.0"

__all__ = [
    "FusionReport",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
    "decompositions",
    "explain",
    "fuse",
    "fusion_report",
    "info",
    "pointwise_conv",
    "reference",
]
