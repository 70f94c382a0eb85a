"""Ways for a tensor to lie in memory. All but "expanded" are views into a larger buffer of NaN."""

from __future__ import annotations

import torch
from torch import Tensor

LAYOUTS = (
    "contiguous",
    "misaligned",
    "sliced",
    "strided",
    "channels_last",
    "channels_last_sliced",
    "permuted",
    "expanded",
)


def place(t: Tensor, layout: str, *, spatial: int = 2, device: str = "cpu") -> Tensor:
    """A tensor equal to `t`, laid out as named; for "expanded", `t` must be the same in every sample of its batch."""
    t = t.to(device)
    channel = t.dim() - 1 - spatial
    if layout == "contiguous" or t.dim() == 0:
        return t.contiguous()
    if layout == "misaligned":  # one element behind an aligned address
        return _fill(torch.full((t.numel() + 1,), torch.nan, dtype=t.dtype, device=device)[1:].view(t.shape), t)
    if layout == "sliced":
        return _fill(_inside(t.shape, t), t)
    if layout == "strided":
        last = max(t.shape[-1], 1)
        return _fill(_inside((*t.shape[:-1], 2 * last), t)[..., ::2][..., : t.shape[-1]], t)
    if t.dim() < 2:
        return t.contiguous()
    if layout == "channels_last":
        return t.movedim(channel, -1).clone(memory_format=torch.contiguous_format).movedim(-1, channel)
    if layout == "channels_last_sliced":
        inner = t.movedim(channel, -1)
        return _fill(_inside(inner.shape, t).movedim(-1, channel), t)
    if layout == "permuted":  # outermost dimension innermost, the others in reverse
        return (
            t.permute(*reversed(range(t.dim())))
            .clone(memory_format=torch.contiguous_format)
            .permute(*reversed(range(t.dim())))
        )
    if layout == "expanded":
        return t[:1].contiguous().expand(t.shape) if channel == 1 and t.shape[0] else t.contiguous()
    raise ValueError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")


def _inside(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A view of this shape with a margin of one NaN on every side."""
    buffer = torch.full([s + 2 for s in shape], torch.nan, dtype=like.dtype, device=like.device)
    return buffer[tuple(slice(1, 1 + s) for s in shape)]


def _fill(view: Tensor, t: Tensor) -> Tensor:
    return view.copy_(t)
