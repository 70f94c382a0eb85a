"""Builds the emulated operators once per set of flags; torch's ninja build leaves alone what has not changed."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "csrc/conv.cpp",
    "csrc/shape.cpp",
    "csrc/cuda/launch.cpp",
    "tests/emulated/kernels.cpp",
    "tests/emulated/ops.cpp",
)
SANITIZERS = {
    "": [],
    "address": ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1"],
    "undefined": ["-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-g1"],
}


def load_emulated_ops(sanitizer: str) -> None:
    """Registers torch.ops.pointwise_ext_emulated; `sanitizer` is "", "address" or "undefined"."""
    from torch.utils.cpp_extension import load

    name = f"pointwise_ext_emulated_{sanitizer or 'plain'}"
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MAX_JOBS", "2")
    load(
        name=name,
        sources=[str(ROOT / source) for source in SOURCES],
        extra_cflags=["-O1", "-Wno-unknown-pragmas", *SANITIZERS[sanitizer]],
        extra_ldflags=SANITIZERS[sanitizer][:1],
        build_directory=str(folder),
        is_python_module=False,
    )
