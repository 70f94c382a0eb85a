"""tests/gpu without a GPU: the extension as it was built, on a CUDA runtime that runs its PTX on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cuda_build.conftest import ROOT, Build
from tests.cuda_build.test_nvcc import tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def toolkit_headers() -> str:
    said = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=True)
    top = re.search(r"^#\$ TOP=(.+)$", said.stderr, re.MULTILINE)
    assert top, said.stderr
    return f"{top[1]}/include"


@pytest.fixture(scope="module")
def nominal_gpu(cuda_build: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment that gives PyTorch a GPU in name only."""
    if not tool("cuobjdump"):
        pytest.skip("cuobjdump is not installed")
    folder = tmp_path_factory.mktemp("runtime")
    # PyTorch links the driver's library of this name too.
    library = folder / "libcuda.so.1"
    flags = ["-std=c++17", "-O3", "-march=native", "-Wall", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    source = str(ROOT / "tests" / "ptx" / "runtime.cpp")
    command = ["g++", *flags, f"-Wl,-soname,{library.name}", f"-I{toolkit_headers()}", source, "-o", str(library)]
    subprocess.run(command, check=True)
    ptx = folder / "ptx"
    ptx.mkdir()
    (extension,) = (cuda_build.tree / "pointwise_ext").glob("_C*.so")
    subprocess.run([str(tool("cuobjdump")), "-xptx", "all", str(extension)], cwd=ptx, check=True, capture_output=True)
    assert len(list(ptx.glob("*.ptx"))) == len(cuda_build.objects())
    # Every tensor has memory of its own, so that what lies beside it is not touched unseen.
    return {"LD_PRELOAD": str(library), "PW_PTX": str(ptx), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def run(build: Build, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = [build.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = os.environ | environment
    return subprocess.run(command, cwd=build.tree, env=environment, capture_output=True, text=True, check=False)


def passed(result: subprocess.CompletedProcess) -> int:
    print(result.stdout[-3000:])
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    found = re.search(r"(\d+) passed", result.stdout)
    return int(found[1]) if found else 0


def test_kernels(cuda_build: Build, nominal_gpu: dict[str, str]) -> None:
    workers = os.environ.get("MAX_JOBS", "2")
    assert passed(run(cuda_build, nominal_gpu, "-n", workers, "-k", "not host_time", "tests/gpu")) > 300


def test_host_time(cuda_build: Build, nominal_gpu: dict[str, str]) -> None:
    """Printed, of kernels that are not run and memory that is kept."""
    environment = {"LD_PRELOAD": nominal_gpu["LD_PRELOAD"]}
    assert passed(run(cuda_build, environment, "-s", "-k", "host_time", "tests/gpu")) == 1


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        (r"cp\.async\.wait_group 0;", "cp.async.wait_group 1;", "error nan"),
        (r"bar\.sync\s+0;", "", "error nan"),
        (r"(stmatrix\S+ \[\S+\], \{\S+) (\S+) (\S+)", r"\1 \3 \2", "error"),
        (r"(cp\.async\.cg\.shared\.global \[\S+\], \[)(%rd\d+)\]", r"\1\2+2]", "misaligned access"),
        (r"(st\.global\.v4\.u32\s+\[%rd\d+)", r"\1+1048576", "access beyond memory"),
    ],
    ids=["not waited for", "no barrier", "rows exchanged", "misaligned", "out of bounds"],
)
def test_wrong_kernels_are_found(
    pattern: str, replacement: str, said: str, cuda_build: Build, nominal_gpu: dict[str, str], tmp_path: Path
) -> None:
    found = 0
    for ptx in Path(nominal_gpu["PW_PTX"]).glob("*.ptx"):
        wrong, count = re.subn(pattern, replacement, ptx.read_text())
        (tmp_path / ptx.name).write_text(wrong)
        found += count
    assert found
    case = "tests/gpu/test_cases.py::test_case[contiguous-64_to_256-bfloat16]"
    result = run(cuda_build, nominal_gpu | {"PW_PTX": str(tmp_path)}, case)
    assert result.returncode != 0
    assert said in result.stdout, result.stdout[-3000:]
