"""Every Python example of the README runs, in order, as one reader's session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("error")
def test_examples_run():
    assert len(EXAMPLES) >= 5
    session: dict = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), session)
    equivalent = re.search(r"\*\*Equivalent to:\*\* `(.+?)`", README)
    assert equivalent
    torch.testing.assert_close(session["y"], eval(equivalent[1], session))


def test_variables_of_the_build_are_listed():
    build = (Path(__file__).resolve().parents[2] / "setup.py").read_text()
    used = set(re.findall(r'"((?:FORCE|TORCH_CUDA|CUDA|MAX|NVCC|PW)_[A-Z_]+|DEBUG)"', build)) - {"CUDA_PATH"}
    listed = set(re.findall(r"^\| `([A-Z_]+)", README, re.MULTILINE))
    assert {"FORCE_CPU", "CUDA_HOME", "DEBUG"} <= used
    assert used <= listed
