"""What every test here needs: a GPU, and operators built for it. Without them the tests are skipped and say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from pointwise_ext.info import why_no_cuda


@pytest.fixture(autouse=True)
def cuda_kernels() -> Iterator[None]:
    """Skips where the CUDA kernels cannot run; memory that nobody has written is NaN, and float32 means float32."""
    reason = why_no_cuda()
    if reason is not None:
        pytest.skip(f"the CUDA kernels cannot run: {reason}")
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def force(cuda_kernels) -> Iterator[Callable]:
    """Decides parts of the plans until the test ends."""
    from pointwise_ext import _C

    yield _C.force_cuda_plan
    _C.force_cuda_plan()
