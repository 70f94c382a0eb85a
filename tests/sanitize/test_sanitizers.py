"""The CPU extension under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, a process for each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sanitize.build import ROOT, build, compiler
from tests.sanitize.planted import OPERANDS
from tests.test_cpu_kernels import ALL

TESTS = [f"tests/test_{name}.py" for name in ("forward", "autograd", "random", "threads", "cpu_kernels")]
TESTS += ["tests/test_cpu_plans.py::test_chunks_of_pixels_in_every_layout"]
PYTEST = ["pytest", "-q", "-x", "-s", "-p", "no:cacheprovider"]


def shared(library: str) -> str:
    path = subprocess.check_output([*compiler(), f"-print-file-name={library}"], text=True).strip()
    if not os.path.isabs(path):
        pytest.skip(f"{' '.join(compiler())} has no {library}")
    return path


def require(sanitizer: str, folder: Path) -> None:
    """Skips where the compiler, or the system, cannot run a program with this sanitizer."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    program = folder / "empty"
    for command in ([*compiler(), f"-fsanitize={sanitizer}", str(source), "-o", str(program)], [program]):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"{' '.join(compiler())} -fsanitize={sanitizer} does not work here: {result.stderr[:300]}")


def start(copy: Path, *module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command, variables = [sys.executable, "-m", *module], {**os.environ, **environment}
    return subprocess.run(command, cwd=copy, env=variables, capture_output=True, text=True, check=False)


def run(copy: Path, *module: str, **environment: str) -> None:
    result = start(copy, *module, **environment)
    said = result.stdout + result.stderr
    report = re.search(r"(?m)^.*(?:(?:ERROR|WARNING): \w+Sanitizer|runtime error).*", said)
    begin = max(0, report.start() - 500) if report else -6000
    assert result.returncode == 0, f"exit status {result.returncode}\n{said[begin:][:12000]}"


def with_address() -> dict[str, str]:
    # Python itself is not instrumented, so that the sanitizer has to be loaded before it; leaks are Python's own.
    # The C++ runtime goes with it, for exceptions thrown by torch to be seen.
    return {"LD_PRELOAD": f"{shared('libasan.so')} {shared('libstdc++.so')}", "ASAN_OPTIONS": "detect_leaks=0"}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_address_sanitizer(tmp_path: Path) -> None:
    require("address", tmp_path)
    run(build("address"), *PYTEST, *TESTS, OMP_NUM_THREADS="2", **with_address())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_undefined_behaviour_sanitizer(tmp_path: Path) -> None:
    require("undefined", tmp_path)
    run(build("undefined"), *PYTEST, *TESTS, UBSAN_OPTIONS="print_stacktrace=1", OMP_NUM_THREADS="2")


def planted(copy: Path, *case: object, **environment: str) -> str:
    """What is said of a call with one wrong operand, which only a sanitizer can notice."""
    result = start(copy, "tests.sanitize.planted", *map(str, case), **environment)
    assert bool(result.returncode) != ("the call returned" in result.stdout), result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kernels", ALL)
def test_address_sanitizer_notices_a_byte_too_few(kernels: str, tmp_path: Path) -> None:
    require("address", tmp_path)
    copy, variables = build("address"), {**with_address(), "POINTWISE_EXT_CPU": kernels}
    cases = [("float32", "contiguous"), ("bfloat16", "channels_last")]  # a process for each
    assert "the call returned" in planted(copy, "input", 0, 0, *cases[0], **variables)
    for operand in OPERANDS:
        for case in cases:
            assert "ERROR: AddressSanitizer" in planted(copy, operand, 1, 0, *case, **variables), (operand, *case)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_undefined_behaviour_sanitizer_notices_a_byte_too_far(tmp_path: Path) -> None:
    require("undefined", tmp_path)
    copy = build("undefined")
    assert "the call returned" in planted(copy, "bias", 0, 0, "float32", "contiguous")
    assert "misaligned address" in planted(copy, "bias", 0, 1, "float32", "contiguous")


def openmp_runtime() -> str:
    """The one that torch has loaded here."""
    mapped = Path("/proc/self/maps").read_text().split()
    return next((name for name in mapped if "libgomp" in name), "") or pytest.skip("torch does not use GNU OpenMP")


@pytest.fixture(scope="module")
def thread_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The copy, and the environment that a process in it needs."""
    folder = tmp_path_factory.mktemp("thread")
    require("thread", folder)
    openmp = folder / "openmp.so"
    source = str(ROOT / "tests/sanitize/openmp.cpp")
    command = [*compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-fsanitize=thread", source, "-o", str(openmp)]
    subprocess.run(command, check=True)
    libraries = [shared("libtsan.so"), shared("libstdc++.so"), str(openmp), openmp_runtime()]
    options = {
        "ignore_noninstrumented_modules": 1,  # torch and Python
        "die_after_fork": 0,
        "exitcode": 66,
        "suppressions": "tests/sanitize/thread.supp",
    }
    joined = " ".join(f"{name}={value}" for name, value in options.items())
    return build("thread"), {"LD_PRELOAD": " ".join(libraries), "TSAN_OPTIONS": joined}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_thread_sanitizer_with_concurrent_calls(thread_build: tuple[Path, dict[str, str]]) -> None:
    copy, environment = thread_build
    run(copy, *PYTEST, "tests/test_threads.py", **environment)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", ALL)
def test_thread_sanitizer_with_all_kernels(name: str, thread_build: tuple[Path, dict[str, str]]) -> None:
    copy, environment = thread_build
    run(copy, "tests.sanitize.threads", POINTWISE_EXT_CPU=name, **environment)


def test_sanitizers_are_told_of_every_masked_access() -> None:
    used = re.compile(r"\b_mm\d*_(?:mask\w*(?:load|store)|stream|\w*gather|\w*scatter)\w*")
    found = {name for f in (ROOT / "csrc/cpu").iterdir() for name in used.findall(f.read_text())}
    told = set(re.findall(r"#define (_mm\w+)", (ROOT / "tests/sanitize/masked.h").read_text()))
    assert found
    assert found <= told, "add these to tests/sanitize/masked.h, as g++ does not instrument them"
