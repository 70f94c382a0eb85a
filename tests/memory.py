"""Skips a test that this machine has not the memory for."""

from __future__ import annotations

import os

import pytest


def require(needed: int) -> None:
    """Skip unless `needed` bytes are free."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < needed:
        pytest.skip(f"{needed / 2**30:.0f} GiB of memory needed, {free / 2**30:.0f} GiB are free")
