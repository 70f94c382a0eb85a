"""The emulator's own promises: barriers, schedules, shared memory, asynchronous copies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.emulated.build import ROOT, SANITIZE

pytestmark = pytest.mark.emulated


PROGRAMS = [
    ("emulator_check", []),
    ("emulator_check", SANITIZE),
    ("kernel_check", []),  # the kernels under sanitizers: test_watched.py
    pytest.param("kernel_check", ["-DPW_BF16_ALONE"], marks=pytest.mark.slow),  # as most planted bugs
]


@pytest.mark.parametrize(("program", "more"), PROGRAMS)
def test_program(program: str, more: list[str], tmp_path: Path) -> None:
    source = Path(__file__).with_name(f"{program}.cpp")
    flags = ["-std=c++17", "-O1", "-w", *more, f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *flags, str(source), "-o", str(tmp_path / program)], check=True)
    result = subprocess.run([tmp_path / program], capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
