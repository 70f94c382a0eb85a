"""What nvcc made of the kernels: products on the tensor cores, wide copies, sums that stay in registers, PTX."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cuda_build.conftest import ROOT, Build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


@dataclass(frozen=True)
class Usage:
    """What ptxas -v says of one kernel."""

    kernel: str
    target: str
    stack: int
    spill_stores: int
    spill_loads: int
    registers: int

    def __str__(self) -> str:
        spilled = f"{self.stack} bytes of stack, {self.spill_stores + self.spill_loads} of spills"
        return f"{self.target}: {self.kernel}: {self.registers} registers, {spilled}"


def parse_usage(text: str) -> list[Usage]:
    pattern = (
        r"Compiling entry function '(\S+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, text, re.DOTALL)
    full = subprocess.check_output(["c++filt", *(f[0] for f in found)], text=True).splitlines()
    names = [re.sub(r"^void |\(pw::.*|\(int\)", "", name) for name in full]
    return [Usage(name, target, *map(int, n)) for name, (_, target, *n) in zip(names, found, strict=True)]


def test_shared_memory(tmp_path: Path) -> None:
    lean = "LeanShared<LeanTraits<MmaTraits<{}, false, {}, {}>, true>>::Plain"
    mma = "GemmMma<MmaTraits<{}, false, {}, 2, 2, 32>>::Shared"
    blocks = {  # that a multiprocessor is to hold of a kernel
        "GemmFma<float, 128>::Shared": 2,
        "GemmFma<float, 64>::Shared": 2,
        "GemmFma<double, 64>::Shared": 2,
        "ActivationGradShared<float>": 4,
        "ActivationGradShared<double>": 2,
    }
    for dtype, majors in itertools.product(("bf16", "float"), ("true, true", "true, false", "false, false")):
        for warps in ("2, 4, 64", "2, 4, 32", "4, 2, 32"):
            blocks[lean.format(dtype, majors, warps)] = 2
        for warps, n in (("2, 2, 32", 4), ("1, 4, 32", 3), ("4, 1, 32", 3)):
            blocks[lean.format(dtype, majors, warps)] = n
        blocks[mma.format(dtype, majors)] = 4
    # With a mask no less than without.
    blocks |= {name.replace("::Plain", "::Masked"): n for name, n in blocks.items() if "Lean" in name}
    lines = [f'std::printf("%zu {name}\\n", sizeof({name}));' for name in blocks]
    source = tmp_path / "sizes.cpp"
    source.write_text(
        "\n".join(
            ["#include <cstdio>", '#include "cuda/launch.cuh"', "using namespace pw;", "int main() {", *lines, "}"]
        )
    )
    command = ["g++", "-std=c++17", "-w", f"-I{ROOT / 'csrc'}", str(source), "-o", str(tmp_path / "sizes")]
    subprocess.run(command, check=True)
    text = subprocess.check_output([tmp_path / "sizes"], text=True)
    print(f"\n{text}")
    sizes = dict(line.split(" ", 1)[::-1] for line in text.splitlines())
    # Of a multiprocessor, one KiB for each block is the system's: 228 KiB on sm_90; 164 on sm_80, which holds one less.
    for name, n in blocks.items():
        block = int(sizes[name]) + 1024
        assert n * block <= 228 << 10, name
        assert max(n - 1, 1) * block <= 164 << 10, name
        assert block <= 100 << 10, f"{name}: a block of sm_86 to sm_120 has 99 KiB"


def test_usage_is_read() -> None:
    text = """ptxas info    : Compiling entry function '_ZN2pw6reduceIfEEvi' for 'sm_80'
ptxas info    : Function properties for _ZN2pw6reduceIfEEvi
    16 bytes stack frame, 24 bytes spill stores, 44 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 16 bytes cumulative stack size"""
    assert parse_usage(text) == [Usage("pw::reduce<float>", "sm_80", 16, 24, 44, 80)]


def test_nothing_spills(cuda_build: Build) -> None:
    usages = parse_usage(cuda_build.log)
    print("", *usages, sep="\n")
    count = {target: sum(usage.target == target for usage in usages) for target in cuda_build.targets()}
    assert set(count.values()) == {2 * 38 + 61 + 3}, count  # 16-bit types, float32, float64
    # The largest tile, whose sums take half of the registers there are, keeps a few values on the stack between steps.
    largest = "2, 4, 64>"
    most = {u: 0 if largest not in u.kernel else 48 if "<float" in u.kernel else 16 for u in usages}
    spilled = [str(usage) for usage in usages if usage.stack > most[usage]]
    assert not spilled, "\n".join(spilled)


def tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: of the toolkit, or of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm."""
    packaged = [str(path) for path in Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/bin")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(packaged))


def dump(binary: Path, *arguments: str) -> str:
    if not (tool("cuobjdump") and tool("nvdisasm")):
        pytest.skip("cuobjdump or nvdisasm is not installed")
    path = os.pathsep.join([str(Path(str(tool("nvdisasm"))).parent), os.environ["PATH"]])
    command = [str(tool("cuobjdump")), *arguments, str(binary)]
    return subprocess.check_output(command, text=True, env=os.environ | {"PATH": path})


@pytest.mark.parametrize(
    ("dtype", "product"), [("bf16", "HMMA.16816.F32.BF16"), ("f16", "HMMA.16816.F32 "), ("f32", "HMMA.1688.F32.TF32")]
)
def test_instructions(dtype: str, product: str, cuda_build: Build) -> None:
    """Products on the tensor cores, copies of 16 bytes past the registers, sums that stay in registers."""
    most = 16 if dtype == "f32" else 3  # of the largest tile
    unit = next(path for path in cuda_build.objects() if path.stem == f"launch_{dtype}")
    for target in cuda_build.targets():
        text = dump(unit, "-sass", "-arch", target)
        functions = dict(re.findall(r"Function : (\S+)(.*?)(?=Function : |\Z)", text, re.DOTALL))
        kernels = {name: code for name, code in functions.items() if re.search("gemm_(mma|lean)", name)}
        assert len(kernels) == (18 + 15 + 3 + 9 + 9 + 3 if dtype == "f32" else 18 + 15 + 3)
        for name, code in kernels.items():
            assert code.count(product) >= 16, (target, name)
            assert "LDGSTS.E.BYPASS.128" in code, (target, name)
            assert "LDSM" in code or dtype == "f32", (target, name)
            assert len(re.findall(r"\bSTL\b", code)) <= (most if "Li2ELi4ELi64" in name else 0), (target, name)


def test_ptx(cuda_build: Build) -> None:
    """For GPUs that come after those of today."""
    (ptx,) = (arch.removesuffix("+PTX").replace(".", "") for arch in cuda_build.archs if arch.endswith("+PTX"))
    for unit in cuda_build.objects():
        assert f".sm_{ptx}.ptx" in dump(unit, "-lptx"), unit.name


def test_wheel_is_small(cuda_build: Build) -> None:
    (library,) = (cuda_build.tree / "pointwise_ext").glob("_C*.so")
    size = len(zlib.compress(library.read_bytes()))  # as a wheel holds it
    print(f"\n{library.stat().st_size / 1e6:.1f} MB, {size / 1e6:.1f} in a wheel")
    assert size < 10e6
