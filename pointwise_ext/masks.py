"""One bit for each element of an activation's output, which CUDA's backward passes read instead of the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32))


def keeps_mask(dtype: torch.dtype, padding: Sequence[int], groups: int, activation: str, alpha: float) -> bool:
    """Whether CUDA's forward pass in training leaves a mask (csrc/mask.cpp has the same rule)."""
    one_bit = activation in ("relu", "relu6") or (activation == "leaky_relu" and alpha >= 0)
    return one_bit and groups == 1 and dtype in _DTYPES and not any(padding)


def mask_size(y: Tensor, batched: bool) -> tuple[int, ...]:
    """Of the mask of y: (Cout, words) where bits are pixels, (N, pixels of one, words) where they are channels."""
    batch, channels, pixels = y.shape[0] if batched else 1, y.shape[int(batched)], 1
    for size in y.shape[int(batched) + 1 :]:
        pixels *= size
    if y.stride(int(batched)) == 1 and channels > 1:
        return batch, pixels, (channels + 31) // 32
    return channels, (batch * pixels + 31) // 32


def is_mask(saved: Tensor) -> bool:
    """Of all that a forward pass saves, only masks are integers."""
    return saved.dtype == torch.int32


def expand_mask(mask: Tensor, dy: Tensor, batched: bool) -> Tensor:
    """1 where the gradient passes and 0 elsewhere, like dy: the derivative of 1 and 0 is that of the output."""
    if not batched:
        return expand_mask(mask, dy[None], batched=True)[0]
    bits = ((mask[..., None] >> torch.arange(32, dtype=mask.dtype, device=mask.device)) & 1).flatten(-2).to(dy.dtype)
    batch, channels, *size = dy.shape
    if mask.dim() == 2:
        return bits[:, : dy[:, 0].numel()].reshape(channels, batch, *size).movedim(0, 1)
    return bits[..., :channels].reshape(batch, *size, channels).movedim(-1, 1)
