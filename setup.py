"""Builds pointwise_ext._C: for the CPU always, for CUDA where torch and a CUDA toolkit allow it.

Needs no GPU and no network. Names, versions and settings of tools are in pyproject.toml; the environment variables
read here are listed in README.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent
# By PW_SANITIZE, the flags that go with it.
SANITIZERS = {
    # Checks are called: inlined, they take g++ three times as long to compile.
    "address": [
        "-include",
        str(ROOT / "tests/sanitize/masked.h"),
        "--param",
        "asan-instrumentation-with-call-threshold=0",
    ],
    "thread": ["-include", str(ROOT / "tests/sanitize/masked.h")],
    # Tests AMX's kernels too, on processors that have AVX-512 alone.
    "undefined": ["-fno-sanitize-recover=undefined", "-DPW_EMULATE_AMX"],
}
# The first toolkit that compiles for each architecture. One per major version: its code runs on every later minor.
ARCHS = {"8.0": (11, 0), "9.0": (11, 8), "10.0": (12, 8), "12.0": (12, 8)}
NEWEST_PTX = "9.0"  # the newest whose instructions the kernels use

TORCH_MISSING = f"""
PyTorch is not installed for {sys.executable}, or pip is hiding it in an isolated build.
Install PyTorch first, then build against it without isolation:
    {sys.executable} -m pip install torch "setuptools>=70.1" ninja
    {sys.executable} -m pip install --no-build-isolation .
"""
COMPILER_MISSING = """
No C++ compiler: {cxx} is not on PATH.
Install one (Debian, Ubuntu: apt install g++) or name one in CXX, then build again.
"""
TORCH_HAS_NO_CUDA = """
FORCE_CUDA=1, but {torch} was built without CUDA.
Install a CUDA build of PyTorch, or unset FORCE_CUDA to build for the CPU only.
"""
HEADERS_MISSING = """
Python's headers are missing: no {path}.
Install them (Debian, Ubuntu: apt install python3-dev), then build again.
"""
NVCC_MISSING = """
FORCE_CUDA=1, but nvcc was not found: neither in CUDA_HOME (now: {home}) nor on PATH.
Install the CUDA toolkit {cuda}, set CUDA_HOME to its folder, or unset FORCE_CUDA to build for the CPU only.
"""
CUDA_MISMATCH = """
CUDA versions differ: PyTorch was built with CUDA {cuda}, nvcc is of CUDA {nvcc}; their major versions must agree.
    PyTorch: {torch}
    nvcc:    {path}
Install the CUDA toolkit {cuda} and set CUDA_HOME to it, or a PyTorch for CUDA {nvcc}, or set FORCE_CPU=1.
"""
SETUPTOOLS_OLD = """
setuptools {got} is too old, 70.1 or newer is needed:
    {python} -m pip install --upgrade setuptools
"""


@dataclass(frozen=True)
class Nvcc:
    path: str
    version: tuple[int, int]
    home: str  # the toolkit's folder, with include/ and lib64/

    @property
    def release(self) -> str:
        return "{}.{}".format(*self.version)


def enabled(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").strip().lower() not in ("", "0", "off", "no", "false")


def find_nvcc(env: Mapping[str, str]) -> Nvcc | None:
    """The nvcc of CUDA_HOME (or CUDA_PATH), else the one on PATH, else that of /usr/local/cuda."""
    home = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    path = shutil.which("nvcc", path=f"{home}/bin" if home else env.get("PATH"))
    path = path or (None if home else shutil.which("/usr/local/cuda/bin/nvcc"))
    if path is None:
        return None
    found = re.search(r"release (\d+)\.(\d+)", run(path, "--version"))
    if found is None:
        return None
    # nvcc on PATH may be a script or a link outside of its toolkit: ask it where it lives, in words like `#$ TOP=...`.
    top = re.search(r"^#\$ TOP=(.+)$", run(path, "--dryrun", "-x", "cu", os.devnull), re.MULTILINE)
    home = home or (top and os.path.realpath(top[1])) or str(Path(path).resolve().parents[1])
    return Nvcc(path, (int(found[1]), int(found[2])), home)


def decide_cuda(env: Mapping[str, str], torch: str, torch_cuda: str | None, nvcc: Nvcc | None) -> tuple[bool, str]:
    """Whether to build for CUDA, and why. Raises SystemExit, in plain words, for a build that cannot work."""
    force = enabled(env, "FORCE_CUDA")
    if enabled(env, "FORCE_CPU"):
        if force:
            raise SystemExit("FORCE_CPU and FORCE_CUDA are both set; unset one of them.")
        return False, "FORCE_CPU is set"
    if torch_cuda is None:
        if force:
            raise SystemExit(TORCH_HAS_NO_CUDA.format(torch=torch))
        return False, f"{torch} was built without CUDA"
    if nvcc is None:
        if force:
            raise SystemExit(NVCC_MISSING.format(home=env.get("CUDA_HOME", "not set"), cuda=torch_cuda))
        return False, f"no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda ({torch} would want CUDA {torch_cuda})"
    if nvcc.version[0] != int(torch_cuda.split(".")[0]):
        raise SystemExit(CUDA_MISMATCH.format(cuda=torch_cuda, nvcc=nvcc.release, torch=torch, path=nvcc.path))
    return True, f"{torch} has CUDA {torch_cuda}, {nvcc.path} is of CUDA {nvcc.release}"


def default_archs(nvcc_version: tuple[int, int]) -> str:
    """TORCH_CUDA_ARCH_LIST for a toolkit: one architecture per GPU generation it knows, and PTX for later ones."""
    archs = [arch for arch, since in ARCHS.items() if nvcc_version >= since]
    return ";".join(f"{arch}+PTX" if arch == NEWEST_PTX else arch for arch in archs)


def gencode(archs: str) -> list[str]:
    """nvcc's flags for default_archs(). All code since 9.0 is assembled from one PTX, a fifth faster."""
    flags = []
    for arch in archs.split(";"):
        name = arch.removesuffix("+PTX")
        ptx = min(name, NEWEST_PTX, key=float).replace(".", "")
        flags.append(f"-gencode=arch=compute_{ptx},code=sm_{name.replace('.', '')}")
        if arch != name:
            flags.append(f"-gencode=arch=compute_{ptx},code=compute_{ptx}")
    return flags


def compile_flags(env: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Flags for the C++ compiler and for the linker. The C++ standard is the one torch adds itself."""
    # -fopenmp for the compiler only: linked in, it would load a second OpenMP runtime beside torch's.
    # Optimizing, g++ 12 takes its own intrinsics for uninitialized, 2,000 times.
    cxx, link = ["-fopenmp", "-fvisibility=hidden", "-Wall", "-Wno-maybe-uninitialized"], []
    sanitizer = env.get("PW_SANITIZE")
    if sanitizer:
        if sanitizer not in SANITIZERS:
            raise SystemExit(f"PW_SANITIZE is {sanitizer!r}, expected one of {', '.join(SANITIZERS)}.")
        # -g1 is enough for lines in reports.
        cxx += ["-O1", "-g1", "-UNDEBUG", "-fno-omit-frame-pointer"]
        sanitize = f"-fsanitize={sanitizer}"
        return [*cxx, sanitize, *SANITIZERS[sanitizer]], [sanitize]
    if enabled(env, "DEBUG"):
        return [*cxx, "-O0", "-g", "-UNDEBUG"], link
    return [*cxx, "-O3", "-g0"], link


def nvcc_flags(env: Mapping[str, str]) -> list[str]:
    flags = ["-O0", "-g"] if enabled(env, "DEBUG") else ["-O3"]
    flags += ["-Xfatbin=-compress-all", "-Xcompiler=-fvisibility=hidden,-fopenmp"]  # a tenth of the size
    return [*flags, "--threads", env["NVCC_THREADS"]] if env.get("NVCC_THREADS") else flags


def sources(cuda: bool) -> list[str]:
    patterns = ["*.cpp", "cpu/*.cpp"] + (["cuda/*.cpp", "cuda/*.cu"] if cuda else [])
    return sorted(str(f.relative_to(ROOT)) for p in patterns for f in (ROOT / "csrc").glob(p))


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


def build_with_torch() -> dict:
    """Decides everything; returns what setup() needs."""
    import torch

    env, name = os.environ, f"PyTorch {torch.__version__}"
    # pip puts ninja beside Python, also where its environment is not the active one.
    env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env.get("PATH", os.defpath)])
    nvcc = find_nvcc(env)
    cuda, reason = decide_cuda(env, name, torch.version.cuda, nvcc)
    archs, device = "", nvcc_flags(env)
    if cuda and nvcc:
        # torch reads it when cpp_extension is imported.
        env["CUDA_HOME"] = nvcc.home
        archs = env.get("TORCH_CUDA_ARCH_LIST", "").strip()
        arch_reason = "from TORCH_CUDA_ARCH_LIST" if archs else f"default for CUDA {nvcc.release}"
        if not archs:
            archs = default_archs(nvcc.version)
            device += gencode(archs)
    from torch.utils import cpp_extension

    compiler = cpp_extension.get_cxx_compiler()
    cxx, link = compile_flags(env)
    ninja = cpp_extension.is_ninja_available()
    decisions = [f"CUDA: {'yes' if cuda else 'no'}: {reason}"]
    if cuda:
        decisions.append(f"CUDA architectures: {archs} ({arch_reason}), toolkit in {nvcc.home}")
    decisions.append(f"C++: {compiler} {' '.join(cxx)}")
    decisions.append("ninja: " + ("yes, MAX_JOBS=" + env.get("MAX_JOBS", "all cores") if ninja else "no, one job"))
    extension = (cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension)(
        "pointwise_ext._C",
        sources(cuda),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("WITH_CUDA", None)] if cuda else [],
        extra_compile_args={"cxx": cxx, "nvcc": device},
        extra_link_args=link,
    )

    class Build(cpp_extension.BuildExtension):
        def run(self) -> None:
            if shutil.which(compiler.split()[0]) is None:
                raise SystemExit(COMPILER_MISSING.format(cxx=compiler))
            header = Path(sysconfig.get_path("include"), "Python.h")
            if not header.exists():
                raise SystemExit(HEADERS_MISSING.format(path=header))
            for line in decisions:
                print(f"pointwise_ext: {line}", flush=True)
            super().run()
            facts = {
                "torch": torch.__version__,
                "cuda": torch.version.cuda if cuda else None,
                "archs": archs.replace(" ", ";").split(";") if cuda else [],
                "compiler": run(*compiler.split(), "--version").splitlines()[0],
                "flags": list(dict.fromkeys(cxx + link + (device if cuda else []))),
                "cxx11abi": torch.compiled_with_cxx11_abi(),
                "python": platform.python_version(),
            }
            target = Path(self.get_ext_fullpath(extension.name)).with_name("_build_info.json")
            target.write_text(json.dumps(facts, indent=2) + "\n")

    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build.with_options(use_ninja=ninja)}}


def build_without_torch() -> dict:
    """Source archives and metadata work; a build stops with the command to type."""
    from setuptools.command.build_ext import build_ext

    class TorchMissing(build_ext):
        def run(self) -> None:
            raise SystemExit(TORCH_MISSING)

    extension = setuptools.Extension("pointwise_ext._C", sources(cuda=False))
    return {"ext_modules": [extension], "cmdclass": {"build_ext": TorchMissing}}


if __name__ == "__main__":
    # 64 installs in editable mode from pyproject.toml, 70.1 makes wheels without the package `wheel`.
    needed = (64, 0) if importlib.util.find_spec("wheel") else (70, 1)
    if tuple(map(int, setuptools.__version__.split(".")[:2])) < needed:
        raise SystemExit(SETUPTOOLS_OLD.format(got=setuptools.__version__, python=sys.executable))
    known = build_with_torch() if importlib.util.find_spec("torch") else build_without_torch()
    setuptools.setup(license="MIT", **known)
