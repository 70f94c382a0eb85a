"""Every kernel compiles for the oldest and the newest GPU and as PTX, and keeps all it has in registers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TARGETS = {"sm_80": "arch=compute_80,code=sm_80", "sm_90a": "arch=compute_90a,code=sm_90a"}
PTX = "arch=compute_90,code=compute_90"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")]


@dataclass(frozen=True)
class Usage:
    """What ptxas -v says of one kernel."""

    kernel: str
    stack: int
    spill_stores: int
    spill_loads: int
    registers: int

    def __str__(self) -> str:
        spilled = f"{self.stack} bytes of stack, {self.spill_stores + self.spill_loads} of spills"
        return f"{self.kernel}: {self.registers} registers, {spilled}"


def compile_unit(unit: Path, code: str, output: Path, *flags: str) -> tuple[str, float]:
    """What nvcc prints, and the seconds it took."""
    start = time.monotonic()
    command = ["nvcc", "-std=c++17", "-O3", f"-gencode={code}", *flags, str(unit), "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr, time.monotonic() - start


def parse_usage(text: str) -> list[Usage]:
    pattern = (
        r"Compiling entry function '(\S+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    found = re.findall(pattern, text, re.DOTALL)
    full = subprocess.check_output(["c++filt", *(f[0] for f in found)], text=True).splitlines()
    names = [re.sub(r"^void |\(pw::.*|\(int\)", "", name) for name in full]
    return [Usage(name, *map(int, numbers)) for name, (_, *numbers) in zip(names, found, strict=True)]


def test_shared_memory(tmp_path: Path) -> None:
    large = "GemmMma<MmaTraits<{}, {}, {}, 2, 4, 64>>::Shared"
    small = "GemmMma<MmaTraits<{}, {}, {}, {}, 32>>::Shared"
    blocks = {  # that a multiprocessor is to hold of a kernel
        "GemmFma<float, 128>::Shared": 2,
        "GemmFma<float, 64>::Shared": 2,
        "GemmFma<double, 64>::Shared": 2,
        "ActivationGradShared<float>": 4,
        "ActivationGradShared<double>": 2,
    }
    for majors in ("true, true", "true, false", "false, false"):
        blocks |= {large.format(t, "false", majors): 2 for t in ("bf16", "float")}
        for warps in ("2, 4", "4, 2"):
            blocks |= {small.format(t, "false", majors, warps): 2 for t in ("bf16", "float")}
        for warps in ("2, 2", "1, 4", "4, 1"):
            blocks |= {small.format(t, "false", majors, warps): 4 for t in ("bf16", "float")}
    # With a gate as blocks_held() of plan.h counts: less where the gate is on a tile's long side.
    gated = {"2, 2": 4, "1, 4": 3, "4, 1": 3, "2, 4": 2, "4, 2": 2, "2, 4, 64": 2}
    for majors in ("true, true", "true, false", "false, false"):
        for warps, n in gated.items():
            name = (large if warps.count(",") == 2 else small).replace("2, 4, 64", "{}")
            blocks |= {name.format(t, "false", majors, warps).replace("::S", "::GatedS"): n for t in ("bf16", "float")}
    backward = "BackwardMma<bf16, {}, {}>::Shared"
    blocks |= {backward.format(m, rooms): 1 for m in ("true", "false") for rooms in ("64, 256", "256, 64", "128, 128")}
    # With a mask no less than without.
    blocks |= {
        name.replace("::S", "::MaskedS"): n for name, n in blocks.items() if "GemmMma" in name and "Gated" not in name
    }
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
    assert parse_usage(text) == [Usage("pw::reduce<float>", 16, 24, 44, 80)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_no_spill(unit: Path, target: str, tmp_path: Path) -> None:
    text, seconds = compile_unit(unit, TARGETS[target], tmp_path / "unit.o", "-c", "-Xptxas", "-v")
    usages = parse_usage(text)
    print(f"\n{unit.name} for {target}: {seconds:.1f} s", *usages, sep="\n  ")
    assert len(usages) >= 3, text
    spilled = [usage for usage in usages if usage.stack or usage.spill_stores or usage.spill_loads]
    assert not spilled, "\n".join(map(str, spilled))


def tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: of the toolkit, or of the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm."""
    packaged = [str(path) for path in Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/bin")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(packaged))


@pytest.mark.skipif(not (tool("cuobjdump") and tool("nvdisasm")), reason="cuobjdump or nvdisasm is not installed")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("dtype", "product"), [("bf16", "HMMA.16816.F32.BF16"), ("f16", "HMMA.16816.F32 ")])
def test_instructions(dtype: str, product: str, target: str, tmp_path: Path) -> None:
    """Products on the tensor cores, copies of 16 bytes past the registers, nothing in local memory."""
    compile_unit(ROOT / "csrc" / "cuda" / f"launch_{dtype}.cu", TARGETS[target], tmp_path / "unit.o", "-c")
    path = os.pathsep.join([str(Path(str(tool("nvdisasm"))).parent), os.environ["PATH"]])
    text = subprocess.check_output(
        [str(tool("cuobjdump")), "-sass", str(tmp_path / "unit.o")], text=True, env=os.environ | {"PATH": path}
    )
    functions = dict(re.findall(r"Function : (\S+)(.*?)(?=Function : |\Z)", text, re.DOTALL))
    kernels = {name: code for name, code in functions.items() if "gemm_mma" in name or "backward_mma" in name}
    assert len(kernels) == 18 + 6
    for name, code in kernels.items():
        assert code.count(product) >= 16, name
        assert "LDGSTS.E.BYPASS.128" in code, name
        assert "LDSM" in code, name
        assert not re.search(r"\b(LDL|STL)\b", code), name


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_ptx(unit: Path, tmp_path: Path) -> None:
    compile_unit(unit, PTX, tmp_path / "unit.ptx", "-ptx")
    assert ".target sm_90" in (tmp_path / "unit.ptx").read_text()
