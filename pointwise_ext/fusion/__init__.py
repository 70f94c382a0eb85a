"""Fusing whole models: fuse(model), what it did (fusion_report), and the same for torch.compile (backend)."""

from .fuse import fuse
from .report import FusionReport, fusion_report

__all__ = ["FusionReport", "fuse", "fusion_report"]
