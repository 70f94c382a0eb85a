"""The extension builds, links and loads against a PyTorch with CUDA, on a machine without a GPU."""

from __future__ import annotations

import pytest

from tests.cuda_build.conftest import Build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

CHECK = """
import torch, pointwise_ext as pw
from pointwise_ext import _C, _ops
assert _C.has_cuda()
for op in ("conv", "conv_saved", "conv_out", "conv_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pointwise_ext::{op}", "CUDA"), op
x, w = torch.randn(2, 8, 5, 5), torch.randn(4, 8, 1, 1)
torch.testing.assert_close(pw.pointwise_conv(x, w), torch.nn.functional.conv2d(x, w))
print(_ops.build_info())
"""


def test_builds_links_and_loads(cuda_build: Build) -> None:
    said = cuda_build.run("-W", "error", "-c", CHECK)
    assert str(cuda_build.archs) in said
    print(said)
