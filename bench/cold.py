"""Cold timing: every call takes other images, and writes another result, than the last 3 caches' worth of calls."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import torch

from bench.measure import Run
from bench.operands import Problem

_CPUS = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_UNKNOWN = 64 << 20  # where the system does not tell: past what most desktops have
_MOST_SETS = {"cpu": 8192, "cuda": 256}  # a CUDA graph has a node for each


def last_level_cache(device: str, cpus: Path = _CPUS) -> int:
    """Bytes of a GPU's L2, or of all of a CPU's last-level caches together."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    last: dict[str, tuple[int, int]] = {}  # the CPUs that share it -> (level, bytes)
    for folder in cpus.glob("cpu[0-9]*/cache/index*"):
        level, size, shared = ((folder / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
        last[shared] = max(last.get(shared, (0, 0)), (int(level), int(size[:-1]) * _UNITS[size[-1]]))
    deepest = max((level for level, _ in last.values()), default=0)
    return sum(size for level, size in last.values() if level == deepest) or _UNKNOWN


def image_sets(problem: Problem) -> int:
    """How many sets of images are rotated through: 1 when warm. The weights stay the same, as in a model."""
    if not problem.cold:
        return 1
    return max(2, min(_MOST_SETS[problem.device], 3 * last_level_cache(problem.device) // problem.image_bytes + 1))


def keeping(run: Run, sets: int) -> Run:
    """Keeps each result until its turn comes again, so that outputs rotate as inputs do."""
    kept: deque[object] = deque(maxlen=sets)
    return run if sets == 1 else lambda: kept.append(run())
