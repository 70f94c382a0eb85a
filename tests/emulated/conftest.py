"""The emulated operators, built once per run; PW_EMULATED_SANITIZE and PW_EMULATED_GUARD choose what watches them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.emulated.build import load_emulated_ops


@pytest.fixture(scope="session")
def emulated_ops():
    load_emulated_ops(sanitized=bool(os.environ.get("PW_EMULATED_SANITIZE")))
    return torch.ops.pointwise_ext_emulated


@pytest.fixture
def emulated(emulated_ops) -> Iterator[Callable]:
    """pointwise_conv by the CUDA kernels on the emulator; memory that nobody has written is NaN."""
    from tests.emulated.emulated import conv

    emulated_ops.set_schedule(False, 0)
    emulated_ops.set_tuning(-1, 0, False, False)
    torch.use_deterministic_algorithms(True)
    assert bool(torch.empty(64).isnan().all())
    yield conv
    torch.use_deterministic_algorithms(False)
