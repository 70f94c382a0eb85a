"""The extension builds, links and loads against a PyTorch with CUDA, on a machine without a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("PW_CUDA_PYTHON", "")
ARCHS = "8.0;9.0a"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="PW_CUDA_PYTHON does not name a Python whose torch has CUDA"),
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH"),
]

CHECK = """
import torch, pointwise_ext as pw
from pointwise_ext import _C, _ops
assert _C.has_cuda()
assert _ops.build_info()["archs"] == ["8.0", "9.0a"]
for op in ("conv", "conv_saved", "conv_out", "conv_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pointwise_ext::{op}", "CUDA"), op
x, w = torch.randn(2, 8, 5, 5), torch.randn(4, 8, 1, 1)
torch.testing.assert_close(pw.pointwise_conv(x, w), torch.nn.functional.conv2d(x, w))
print(_ops.build_info())
"""


def test_builds_links_and_loads(tmp_path: Path) -> None:
    tree = tmp_path / "source"
    ignore = shutil.ignore_patterns("build", "*.so", ".git", ".venv*", "__pycache__", "_build_info.json")
    shutil.copytree(ROOT, tree, ignore=ignore)
    environment = os.environ | {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": ARCHS}
    environment.setdefault("MAX_JOBS", "2")

    def run(*command: str) -> str:
        result = subprocess.run(
            [PYTHON, *command], cwd=tree, env=environment, capture_output=True, text=True, check=False
        )
        text = result.stdout + result.stderr
        assert result.returncode == 0, text[-6000:]
        return text

    built = run("setup.py", "build_ext", "--inplace")
    assert "pointwise_ext: CUDA: yes" in built
    assert ARCHS in built
    print(run("-W", "error", "-c", CHECK))
