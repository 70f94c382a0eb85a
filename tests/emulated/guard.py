"""Tensors that end, or begin, at a page that must not be touched: reading one byte beyond them stops the process."""

from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE = 0


def guarded(t: Tensor, at_end: bool) -> Tensor:
    """A copy of `t` with its strides, whose last element (at_end) or first element lies beside a forbidden page."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    if span == 0:
        return t
    nbytes = span * t.element_size()
    pages = -(-nbytes // PAGE) * PAGE
    access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANON
    start = _libc.mmap(None, pages + 2 * PAGE, access, kind, -1, 0)
    for forbidden in (start, start + PAGE + pages):
        if _libc.mprotect(forbidden, PAGE, _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    first = start + PAGE + (pages - nbytes if at_end else 0)
    memory = (ctypes.c_char * nbytes).from_address(first)  # stays mapped: a test process is short-lived
    flat = torch.frombuffer(memory, dtype=t.dtype)
    flat.copy_(t.as_strided((span,), (1,)))
    return flat.as_strided(t.shape, t.stride())
