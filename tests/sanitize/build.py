"""Builds a copy of the package with one sanitizer; ninja leaves alone what has not changed since the last time."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("csrc", "pointwise_ext", "tests")


def compiler() -> list[str]:
    """The one setup.py uses."""
    from torch.utils.cpp_extension import get_cxx_compiler

    return get_cxx_compiler().split()


def sources(root: Path) -> set[Path]:
    """Relative to `root`, without what a build and Python leave there."""
    found = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    kept = [path for path in found if path.suffix not in (".so", ".pyc") and path.name != "_build_info.json"]
    return {path.relative_to(root) for path in kept} | {Path(name) for name in FILES}


def copy_changes(copy: Path) -> bool:
    """Makes the sources of the copy equal to those here; says whether they were not."""
    wanted = sources(ROOT)
    gone = sources(copy) - wanted
    changed = [f for f in wanted if not (copy / f).exists() or not filecmp.cmp(ROOT / f, copy / f, shallow=False)]
    for file in gone:
        (copy / file).unlink()
    for file in changed:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, copy / file)  # as of now, for ninja to see that it is new
    return bool(gone or changed)


def build(sanitizer: str) -> Path:
    """The folder of a copy of the sources, built in place: what is imported there is instrumented."""
    import torch

    copy = ROOT / "build" / f"sanitize-{sanitizer}"
    copy.mkdir(parents=True, exist_ok=True)
    built, tools = copy / "built_with", f"{sys.executable} {torch.__version__} {' '.join(compiler())}"
    with (copy / "one_at_a_time").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not copy_changes(copy) and built.exists() and built.read_text() == tools:
            return copy
        built.unlink(missing_ok=True)
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        environment = {**os.environ, "PW_SANITIZE": sanitizer, "FORCE_CPU": "1", "FORCE_CUDA": "0"}
        result = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        said = f"{result.stdout[-6000:]}{result.stderr[-6000:]}"
        assert result.returncode == 0, f"exit status {result.returncode}\n{said}"
        built.write_text(tools)
    return copy
