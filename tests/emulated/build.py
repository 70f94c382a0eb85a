"""Builds the emulated operators once per set of flags; torch's ninja build leaves alone what has not changed."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "csrc/backward.cpp",
    "csrc/conv.cpp",
    "csrc/mask.cpp",
    "csrc/shape.cpp",
    "csrc/cuda/launch.cpp",
    "tests/emulated/kernels.cpp",
    "tests/emulated/ops.cpp",
)
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]


def load_emulated_ops(sanitized: bool) -> None:
    """Registers torch.ops.pointwise_ext_emulated."""
    from torch.utils.cpp_extension import load

    name = f"pointwise_ext_emulated_{'sanitized' if sanitized else 'plain'}"
    flags = SANITIZE if sanitized else []
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    # pip puts ninja beside Python, also where its environment is not the active one.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    os.environ.setdefault("MAX_JOBS", "2")
    with (folder / "one_at_a_time").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)  # torch's own lock, which a build that was killed leaves behind
        load(
            name=name,
            sources=[str(ROOT / source) for source in SOURCES],
            extra_cflags=["-O1", "-Wno-unknown-pragmas", *flags],
            extra_ldflags=flags[:1],
            build_directory=str(folder),
            is_python_module=False,
        )
