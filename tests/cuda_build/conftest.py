"""One build of the extension for all tests here, against a PyTorch with CUDA, for every architecture it has by default.

It needs no GPU. PW_CUDA_PYTHON names the Python whose torch has CUDA; PW_CUDA_ARCHS other architectures.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Build:
    python: str
    tree: Path  # a copy of the sources, built in place
    archs: list[str]  # as in TORCH_CUDA_ARCH_LIST
    log: str
    seconds: float

    def run(self, *arguments: str) -> str:
        command = [self.python, *arguments]
        result = subprocess.run(command, cwd=self.tree, capture_output=True, text=True, check=False)
        assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
        return result.stdout

    def targets(self) -> list[str]:
        """sm_80, sm_90a, ..."""
        return ["sm_" + arch.removesuffix("+PTX").replace(".", "") for arch in self.archs]

    def objects(self) -> list[Path]:
        """What nvcc made of csrc/cuda/*.cu."""
        units = {unit.stem for unit in (ROOT / "csrc" / "cuda").glob("*.cu")}
        found = [path for path in self.tree.glob("build/temp*/**/*.o") if path.stem in units]
        assert len(found) == len(units)
        return sorted(found)


@pytest.fixture(scope="session")
def cuda_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    python = os.environ.get("PW_CUDA_PYTHON")
    if not python:
        pytest.skip("PW_CUDA_PYTHON does not name a Python whose torch has CUDA")
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    tree = tmp_path_factory.mktemp("cuda") / "source"
    ignore = shutil.ignore_patterns("build", "*.so", ".git", ".venv*", "__pycache__", "_build_info.json")
    shutil.copytree(ROOT, tree, ignore=ignore)
    environment = os.environ | {"FORCE_CUDA": "1", "NVCC_APPEND_FLAGS": "-Xptxas -v"}
    environment |= {"TORCH_CUDA_ARCH_LIST": os.environ.get("PW_CUDA_ARCHS", "")}
    environment.setdefault("MAX_JOBS", "2")
    start = time.monotonic()
    command = [python, "setup.py", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    log, seconds = result.stdout + result.stderr, time.monotonic() - start
    errors = "\n".join(line for line in log.splitlines() if "error" in line)
    assert result.returncode == 0, f"{errors}\n{log[-6000:]}"
    assert "pointwise_ext: CUDA: yes" in log
    said = next(line for line in log.splitlines() if "CUDA architectures: " in line)
    archs = said.split("architectures: ")[1].split()[0].split(";")
    print(f"\nbuilt for {', '.join(archs)} in {seconds:.0f} s with MAX_JOBS={environment['MAX_JOBS']}")
    return Build(python, tree, archs, log, seconds)
