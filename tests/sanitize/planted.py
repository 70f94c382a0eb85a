"""One call with an operand that is not what it claims to be, for the sanitizers to notice:

python -m tests.sanitize.planted NAME SHORT_BY MOVED_BY DTYPE LAYOUT
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

import pointwise_ext as pw
from pointwise_ext import _ops

OPERANDS = ("input", "weight", "bias", "residual", "out")
SIZES = {
    "input": (1, 19, 7, 7),
    "weight": (21, 19, 1, 1),
    "bias": (21,),
    "residual": (1, 21, 7, 7),
    "out": (1, 21, 7, 7),
}


def allocated(size: tuple[int, ...], dtype: torch.dtype, layout: str, short_by: int, moved_by: int) -> Tensor:
    """A tensor in a block of its own, of `short_by` bytes less than it needs, that starts `moved_by` bytes into it."""
    malloc = ctypes.CDLL(None).malloc
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    count, bytes_ = torch.Size(size).numel(), torch.Size(size).numel() * dtype.itemsize
    start = malloc(bytes_ - short_by + moved_by) + moved_by
    ctypes.memset(start, 0, bytes_ - short_by)
    flat = torch.frombuffer((ctypes.c_char * bytes_).from_address(start), dtype=dtype, count=count)
    if layout == "channels_last" and len(size) == 4:
        return flat.view(size[0], *size[2:], size[1]).movedim(-1, 1)
    return flat.view(size)


if __name__ == "__main__":
    name, short_by, moved_by, dtype, layout = sys.argv[1:]
    assert _ops.loaded, _ops.load_error
    torch.set_num_threads(1)
    tensors = {
        key: allocated(
            size, getattr(torch, dtype), layout, *((int(short_by), int(moved_by)) if key == name else (0, 0))
        )
        for key, size in SIZES.items()
    }
    pw.pointwise_conv(**tensors, activation="relu")
    print("the call returned")
