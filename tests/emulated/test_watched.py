"""All cases again, in a process of their own: operands beside forbidden pages, and builds with sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.emulated.build import ROOT

pytestmark = pytest.mark.emulated


CASES = ["tests/emulated/test_cases.py"]
# Under sanitizers a case takes ten times as long: those whose memory accesses others do not have.
ALIKE = "activation or any_order or products_make or same_bits or (stays and not bfloat16)"
FEW = ["-k", f"(bfloat16 or not float16) and not ({ALIKE})"]


def run_cases(*chosen: str, **environment: str) -> None:
    """Runs the cases; a crash of that process is a failure here."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *CASES, *chosen]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=1700
    )
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout[-6000:]}{result.stderr[-6000:]}"


def runtime(name: str) -> str:
    return subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()


@pytest.mark.parametrize("side", ["end", pytest.param("start", marks=pytest.mark.slow)])
def test_nothing_beyond_the_operands_is_read(side: str, emulated_ops) -> None:
    run_cases(PW_EMULATED_GUARD=side)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sanitizers() -> None:
    # Python itself is not instrumented, so that the sanitizer has to be loaded before it; leaks are Python's own.
    # The C++ runtime goes with it, for exceptions thrown by torch to be seen.
    run_cases(
        *FEW,
        PW_EMULATED_SANITIZE="1",
        LD_PRELOAD=f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        ASAN_OPTIONS="detect_leaks=0:halt_on_error=1",
        UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1",
    )
