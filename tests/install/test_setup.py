"""setup.py: each decision, each message, and what goes into the source archive and the wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TORCH = "PyTorch 2.13.0"


def load_setup():
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup = load_setup()
NVCC = setup.Nvcc("/opt/cuda/bin/nvcc", (13, 0), "/opt/cuda")


@pytest.mark.parametrize(
    ("env", "torch_cuda", "nvcc", "cuda", "reason"),
    [
        ({}, "13.0", NVCC, True, "/opt/cuda/bin/nvcc is of CUDA 13.0"),
        ({}, "13.2", NVCC, True, "has CUDA 13.2"),
        ({"FORCE_CUDA": "1"}, "13.0", NVCC, True, "has CUDA 13.0"),
        ({"FORCE_CUDA": "0"}, None, None, False, "built without CUDA"),
        ({}, None, NVCC, False, "built without CUDA"),
        ({}, "13.0", None, False, "no nvcc"),
        ({"FORCE_CPU": "1"}, "13.0", NVCC, False, "FORCE_CPU is set"),
        ({"FORCE_CPU": "1"}, "12.6", NVCC, False, "FORCE_CPU is set"),
    ],
)
def test_decides_for_or_against_cuda(env, torch_cuda, nvcc, cuda, reason):
    decided, said = setup.decide_cuda(env, TORCH, torch_cuda, nvcc)
    assert decided is cuda
    assert reason in said


@pytest.mark.parametrize(
    ("env", "torch_cuda", "nvcc", "words"),
    [
        ({"FORCE_CPU": "1", "FORCE_CUDA": "1"}, "13.0", NVCC, ["FORCE_CPU and FORCE_CUDA"]),
        ({"FORCE_CUDA": "1"}, None, NVCC, [TORCH, "without CUDA"]),
        ({"FORCE_CUDA": "1", "CUDA_HOME": "/none"}, "13.0", None, ["nvcc was not found", "/none", "CUDA toolkit 13.0"]),
        ({}, "12.6", NVCC, ["CUDA 12.6", "CUDA 13.0", TORCH, "/opt/cuda/bin/nvcc", "FORCE_CPU=1"]),
    ],
)
def test_stops_with_plain_words(env, torch_cuda, nvcc, words):
    with pytest.raises(SystemExit) as stop:
        setup.decide_cuda(env, TORCH, torch_cuda, nvcc)
    assert all(word in str(stop.value) for word in words)


@pytest.mark.parametrize(
    ("version", "archs"),
    [
        ((11, 8), "8.0;9.0+PTX"),
        ((12, 4), "8.0;9.0+PTX"),
        ((12, 8), "8.0;9.0+PTX;10.0;12.0"),
        ((13, 0), "8.0;9.0+PTX;10.0;12.0"),
    ],
)
def test_default_architectures_are_those_of_the_toolkit(version, archs):
    assert setup.default_archs(version) == archs


def test_default_architectures_share_the_newest_ptx():
    assert setup.gencode("8.0;9.0+PTX;12.0") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_90,code=sm_120",
    ]


def fake_nvcc(folder: Path, release: str, top: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "nvcc"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in --version) echo "Cuda compilation tools, release {release}, V{release}.88";;\n'
        f'*) echo "#\\$ TOP={top}/bin/.." >&2;; esac\n'
    )
    script.chmod(0o755)
    return script


def test_finds_the_toolkit_behind_a_script_on_path(tmp_path):
    toolkit = tmp_path / "cuda-12.8"
    (toolkit / "bin").mkdir(parents=True)
    script = fake_nvcc(tmp_path / "links", "12.8", toolkit)
    env = {"PATH": os.pathsep.join([str(script.parent), os.environ["PATH"]])}
    assert setup.find_nvcc(env) == setup.Nvcc(str(script), (12, 8), str(toolkit))


def test_cuda_home_comes_before_path(tmp_path):
    script = fake_nvcc(tmp_path / "mine/bin", "13.1", tmp_path / "mine")
    fake_nvcc(tmp_path / "other", "12.8", tmp_path)
    env = {"CUDA_HOME": str(tmp_path / "mine"), "PATH": str(tmp_path / "other")}
    assert setup.find_nvcc(env) == setup.Nvcc(str(script), (13, 1), str(tmp_path / "mine"))


def test_cuda_home_without_nvcc_is_not_replaced_by_another():
    assert setup.find_nvcc({"CUDA_HOME": "/none", "PATH": os.environ["PATH"]}) is None


def test_one_openmp_runtime():
    cxx, link = setup.compile_flags({})
    assert "-fopenmp" in cxx
    assert "-O3" in cxx
    assert link == []


def test_debug_and_sanitizer_flags():
    assert {"-O0", "-g"} <= set(setup.compile_flags({"DEBUG": "1"})[0])
    for sanitizer in setup.SANITIZERS:
        cxx, link = setup.compile_flags({"PW_SANITIZE": sanitizer})
        assert f"-fsanitize={sanitizer}" in cxx
        assert link == [f"-fsanitize={sanitizer}"]
    assert "-fno-sanitize-recover=undefined" in setup.compile_flags({"PW_SANITIZE": "undefined"})[0]
    with pytest.raises(SystemExit, match="PW_SANITIZE is 'adress', expected one of address"):
        setup.compile_flags({"PW_SANITIZE": "adress"})


def test_nvcc_threads():
    assert setup.nvcc_flags({"NVCC_THREADS": "4"})[-2:] == ["--threads", "4"]
    assert "--threads" not in setup.nvcc_flags({})


def test_every_source_is_compiled():
    units = {str(f.relative_to(ROOT)) for ext in ("cpp", "cu") for f in (ROOT / "csrc").rglob(f"*.{ext}")}
    units = {unit for unit in units if not unit.startswith("csrc/emulate/")}
    assert set(setup.sources(cuda=True)) == units
    assert set(setup.sources(cuda=False)) == {unit for unit in units if not unit.startswith("csrc/cuda/")}


def test_what_it_was_built_for_is_recorded():
    facts = json.loads((ROOT / "pointwise_ext/_build_info.json").read_text())
    assert facts["torch"] == torch.__version__
    assert facts["cuda"] in (None, torch.version.cuda)
    assert bool(facts["archs"]) == (facts["cuda"] is not None)
    assert "-fopenmp" in facts["flags"]
    assert facts["compiler"]
    assert importlib.util.find_spec("pointwise_ext._C")


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a build reads, for commands that write beside their sources."""
    target = tmp_path / "checkout"
    target.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile"):
        shutil.copy(ROOT / name, target)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
    for name in ("csrc", "pointwise_ext", "tests", "bench"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    return target


def run_setup(checkout: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=checkout,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def test_missing_compiler_is_named(checkout):
    result = run_setup(checkout, "build_ext", CXX="no-such-c++")
    assert result.returncode != 0
    assert "No C++ compiler: no-such-c++ is not on PATH" in result.stderr


def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment whose Python finds no torch."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_missing_torch_prints_the_commands(checkout, tmp_path):
    result = run_setup(checkout, "build_ext", **without_torch(tmp_path))
    assert result.returncode != 0
    assert f"{sys.executable} -m pip install --no-build-isolation ." in result.stderr


def test_source_archive_is_complete_and_needs_no_torch(checkout, tmp_path):
    result = run_setup(checkout, "-q", "sdist", **without_torch(tmp_path))
    assert result.returncode == 0, result.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    for folder in ("csrc", "pointwise_ext", "tests", "bench"):
        files = {str(f.relative_to(checkout)) for f in (checkout / folder).rglob("*") if f.is_file()}
        assert files <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_build_info.json"))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_wheel_from_the_source_archive(checkout, tmp_path):
    result = run_setup(checkout, "-q", "sdist")
    assert result.returncode == 0, result.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(tmp_path), str(archive)]
    subprocess.run(built, check=True, env={**os.environ, "FORCE_CPU": "1"})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 10e6
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    assert {"pointwise_ext/__init__.py", "pointwise_ext/py.typed", "pointwise_ext/_build_info.json"} <= set(names)
    assert [name for name in names if name.startswith("pointwise_ext/_C.") and name.endswith(".so")]
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", "from pointwise_ext import _C; print(_C.__file__, _C.cpu_capability())"]
    seen = subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert str(site) in seen.stdout
