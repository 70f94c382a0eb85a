"""What every test here needs: a GPU, and operators built for it. Without them the tests are skipped and say why."""

from __future__ import annotations

import pytest
import torch

import pointwise_ext as pw


@pytest.fixture(autouse=True)
def cuda_kernels():
    """Skips where the CUDA kernels cannot run; memory that nobody has written is NaN, and float32 means float32."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is False")
    if not torch._C._dispatch_has_kernel_for_dispatch_key("pointwise_ext::conv", "CUDA"):
        pytest.skip("pointwise_ext was built without CUDA; `python -m pointwise_ext` tells why")
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield pw
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = tf32
