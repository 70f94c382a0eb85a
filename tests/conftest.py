"""Fixtures of all tests: devices, seeds, and the two implementations of the contract."""

from __future__ import annotations

import os

import pytest
import torch

import pointwise_ext as pw

# oneDNN's bf16 convolution for AMX writes beyond its buffers backward of 270001 channels (PyTorch 2.13), which tests
# compare with. Read at its first use.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False")
    return request.param


@pytest.fixture(params=["kernels", "reference"])
def conv(request: pytest.FixtureRequest):
    """pointwise_conv as users call it, and the specification: the contract holds for both."""
    return pw.pointwise_conv if request.param == "kernels" else pw.reference.pointwise_conv


@pytest.fixture
def kernels() -> None:
    """For tests of the operators themselves, which an extension that is not built cannot run."""
    from pointwise_ext import _ops

    if not _ops.loaded:
        pytest.skip(f"the extension is not loaded: {_ops.load_error}")
