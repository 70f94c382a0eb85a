"""What is installed here: versions, built for and found, and which kernels can run."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from . import _ops
from .explain import cpu_kernels, why_no_kernels

_FOLDER = Path(__file__).parent


def why_no_cuda() -> str | None:
    """Why no CUDA kernel can run here, or None."""
    reason = why_no_kernels("cuda")
    if reason is None and not torch.cuda.is_available():
        reason = "no CUDA device is visible" if torch.version.cuda else "this torch has no CUDA"
    return reason


def info() -> str:
    """Versions, what the extension was built for and found, and each kernel or why there is none, as text."""
    from . import __version__

    facts = _ops.build_info() or {}
    devices = [
        "{} (sm_{}{})".format(torch.cuda.get_device_name(i), *torch.cuda.get_device_capability(i))
        for i in range(torch.cuda.device_count())
    ]
    rows = [
        ("version", f"{__version__} in {_FOLDER}"),
        ("extension", "loaded" if _ops.loaded else f"not loaded: {_ops.load_error}"),
        ("Python", _built_and_found(facts.get("python"), platform.python_version())),
        ("torch", _built_and_found(facts.get("torch"), torch.__version__)),
        ("CUDA", _built_and_found(facts.get("cuda"), torch.version.cuda)),
        ("CUDA archs", " ".join(facts.get("archs", [])) or "none"),
        ("CUDA devices", ", ".join(devices) or "none"),
        ("compiler", f"{facts.get('compiler', 'unknown')}: {' '.join(facts.get('flags', []))}"),
        ("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        *((f"cpu {name}", state) for name, state in cpu_kernels() or [("gemm", _available(why_no_kernels("cpu")))]),
        ("cuda fma", _available(why_no_cuda())),
        ("reference", "available, in plain PyTorch"),
    ]
    return "\n".join(f"{name:<16} {value}" for name, value in rows)


def _built_and_found(built: str | None, found: str | None) -> str:
    return f"built for {built or 'none'}, found {found or 'none'}"


def _available(reason: str | None) -> str:
    return "available" if reason is None else f"not available: {reason}"
