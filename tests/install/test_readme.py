"""Every Python example of the README runs, in order, as one reader's session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("error", "ignore:.*LeafSpec.*:FutureWarning")  # of PyTorch's own run_decompositions
def test_examples_run():
    assert len(EXAMPLES) >= 5
    session: dict = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), session)
    equivalent = re.search(r"\*\*Equivalent to:\*\* `(.+?)`", README)
    assert equivalent
    torch.testing.assert_close(session["y"], eval(equivalent[1], session))


def test_environment_variables_are_listed():
    used = set(re.findall(r'"((?:FORCE|TORCH_CUDA|CUDA|MAX|NVCC|PW)_[A-Z_]+|DEBUG)"', (ROOT / "setup.py").read_text()))
    for unit in (ROOT / "csrc").rglob("*.cpp"):
        used |= set(re.findall(r'getenv\("([A-Z_]+)"\)', unit.read_text()))
    assert {"FORCE_CPU", "CUDA_HOME", "DEBUG", "POINTWISE_EXT_CPU"} <= used
    assert used - {"CUDA_PATH"} <= set(re.findall(r"`([A-Z_]+)", README))
