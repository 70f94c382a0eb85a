"""Masks in plain PyTorch, for tests to compare with: of which outputs the gradient passes, a bit for each."""

from __future__ import annotations

import torch
from torch import Tensor

from pointwise_ext.masks import mask_size


def passes(y: Tensor, activation: str) -> Tensor:
    """Where the gradient of y = activation(z) is dy itself, as a boolean; NaN is no number below or above another."""
    if activation == "leaky_relu":
        return y > 0
    return ~(y <= 0) & ~((y >= 6) & (activation == "relu6"))


def mask_of(y: Tensor, activation: str, batched: bool = True) -> Tensor:
    """The mask that a forward pass leaves beside the output y, in int32."""
    size = mask_size(y, batched)
    bits = passes(y, activation) if batched else passes(y, activation)[None]
    rows = bits.movedim(1, 0).flatten(1) if len(size) == 2 else bits.movedim(1, -1).flatten(1, -2)
    padded = torch.zeros(*rows.shape[:-1], size[-1] * 32, dtype=torch.int64)
    padded[..., : rows.shape[-1]] = rows
    words = (padded.unflatten(-1, (-1, 32)) << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
