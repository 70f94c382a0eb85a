"""What a run leaves behind: rows, the facts about the machine they hold for, CSV and JSON."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from pointwise_ext.explain import cpu_kernels

PEER_PACKAGES = ("torch", "numpy", "onnxruntime", "openvino")


def threads_word(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


class Setting(NamedTuple):
    """What a class is measured in. `threads` 0: of a GPU, where they do not matter."""

    mode: str
    dtype: str
    layout: str
    threads: int
    cache: str

    def __str__(self) -> str:
        words = [*self[:3], threads_word(self.threads) if self.threads else "", "cold" if self.cache == "cold" else ""]
        return " ".join(filter(None, words))


@dataclass(frozen=True)
class Row:
    """One contestant on one problem. Times in microseconds per call."""

    suite: str
    klass: str
    layer: str
    mode: str
    dtype: str
    layout: str
    name: str
    median_us: float
    low_us: float
    high_us: float
    gflops: float
    floor_us: float
    bound: str  # what the floor is made of: "compute" or "memory"; "host" rows have no floor
    cache: str = "warm"  # buffers "warm" in the caches, or "cold": rotated past them
    timer: str = "cpu"
    peak_bytes: int = 0  # of one call, in PyTorch's allocator; 0 where a runtime has its own
    threads: int = 0

    @property
    def setting(self) -> Setting:
        return Setting(self.mode, self.dtype, self.layout, self.threads, self.cache)

    @property
    def problem(self) -> tuple[str, Setting]:
        """What is computed; rows that share it are comparable."""
        return (self.layer, self.setting)

    @property
    def spread(self) -> float:
        return (self.high_us - self.low_us) / self.median_us


@dataclass
class Results:
    row: ClassVar[type] = Row
    environment: dict[str, str]
    ceilings: dict[str, float]
    rows: list[Row]
    absent: list[str] = field(default_factory=list)  # "peer: reason (problems it concerns)"

    @property
    def judged(self) -> list[Row]:
        """The rows that goals, plot and README are about: those with the most threads."""
        most = max((row.threads for row in self.rows), default=0)
        return [row for row in self.rows if row.threads == most]

    def save(self, stem: Path) -> list[Path]:
        """Writes `stem`.json (everything) and `stem`.csv (the rows, below the facts as comments)."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        as_json, as_csv = (stem.with_name(stem.name + suffix) for suffix in (".json", ".csv"))
        facts = asdict(self)
        rows = [
            {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in facts.pop("rows")
        ]
        head = json.dumps({**facts, "rows": []}, indent=1).removesuffix("[]\n}")
        as_json.write_text(head + "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n}\n")  # a row a line
        with as_csv.open("w", newline="") as file:
            for key, value in {**self.environment, **self.ceilings}.items():
                file.write(f"# {key}: {value}\n")
            for line in self.absent:
                file.write(f"# absent: {line}\n")
            writer = csv.DictWriter(file, [f.name for f in fields(self.row)])
            writer.writeheader()
            writer.writerows(rows)
        return [as_json, as_csv]

    @classmethod
    def load(cls, path: Path) -> Results:
        """Also of runs from before rows had threads."""
        data = json.loads(path.read_text())
        facts = data["environment"]
        default = {"threads": int(facts["threads"]) if facts["device"] == "cpu" else 0}
        return cls(facts, data["ceilings"], [cls.row(**{**default, **row}) for row in data["rows"]], data["absent"])


def geomean(values: Iterable[float]) -> float:
    """Geometric mean; nan of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def slug(text: str) -> str:
    """Fit for a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def environment(device: str, label: str, contestant: str) -> dict[str, str]:
    """The facts without which no number means anything."""
    versions = {}
    for package in PEER_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    facts = {
        "label": label,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "measured": contestant,
        "device": device,
        "CPU": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "kernels": next((name for name, _ in cpu_kernels()), "none"),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **versions,
    }
    if device == "cuda":
        facts |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    return facts
