"""What the CUDA plans predict for an H200: the launches of each layer, their traffic and time; needs no GPU.

The model (csrc/cuda/model.h) chooses tiles by these times; no GPU has confirmed them. Printed is how near its floors
the forward pass would come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from bench import goals_cuda, report
from bench.peers import OURS
from bench.results import Row
from bench.suites import LAYOUTS, SUITES, Layer

BATCHES = (1, 32, 256)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_MEMORY_BYTES_PER_US = 4.3e6  # of an H200, as in model.h
_FLOPS_PER_US = {"bf16": 790e6, "fp32": 395e6}  # of its tensor cores; fp32 as TF32


@dataclass(frozen=True)
class Launch:
    """One kernel of one call. Bytes of device memory count every operand once; of the cache, what tiles read."""

    layer: str
    what: str  # mode, dtype, layout
    kernel: str
    product: str  # M x N x K, or ""
    blocks: int
    memory_bytes: float
    cache_bytes: float
    microseconds: float


def layers() -> Iterator[Layer]:
    for suite in ("uses", "resnet50", "mobilenetv2"):
        seen = {replace(layer, batch=1) for layer in SUITES[suite]}
        for layer in SUITES[suite]:
            if layer in seen:  # once for all batches, in the network's order
                yield from (replace(layer, batch=batch) for batch in BATCHES)


def launches(layer: Layer, dtype: str, layout: str, backward: bool, tf32: bool = False) -> list[Launch]:
    """The kernels of a forward or backward pass with bias and ReLU; tensors are never touched."""
    from pointwise_ext import _C

    order = torch.channels_last if layout == "nhwc" else torch.contiguous_format

    def image(channels: int, size: int) -> torch.Tensor:
        return torch.empty(layer.batch, channels, size, size, dtype=DTYPES[dtype], memory_format=order)

    inputs = [image(channels, layer.size) for channels in layer.channels]
    weight = torch.empty(layer.out_channels, layer.in_channels, 1, 1, dtype=DTYPES[dtype])
    residual = image(layer.out_channels, layer.out_size) if layer.residual else None
    gradients = [backward] * (len(inputs) + 2) if backward else []
    options = ([layer.stride], [0], 1, "relu", 0.0, 0.0, tf32, gradients)
    bias = torch.empty(layer.out_channels, dtype=DTYPES[dtype])
    rows = _C.predict_cuda(inputs, weight, bias, residual, *options)
    what = f"{'backward' if backward else 'forward'} {dtype} {layout}"
    return [
        Launch(layer.name, what, kernel, f"{m}x{n}x{k}" if m else "", blocks, memory, cache, time)
        for kernel, m, n, k, blocks, memory, cache, time in rows
    ]


def row(layer: Layer, dtype: str, layout: str) -> Row:
    """A forward pass as if it had been measured, fp32 as TF32."""
    time = sum(launch.microseconds for launch in launches(layer, dtype, layout, False, tf32=True))
    memory = layer.elements("forward") * DTYPES[dtype].itemsize / _MEMORY_BYTES_PER_US
    compute = layer.flops("forward") / _FLOPS_PER_US[dtype]
    what = (layer.suite, layer.klass, layer.name, "forward", dtype, layout, OURS)
    bound = "compute" if compute > memory else "memory"
    return Row(*what, time, time, time, layer.flops("forward") / time / 1e3, max(memory, compute), bound, timer="model")


def write(path: Path) -> int:
    """Writes the table as CSV; returns its number of rows."""
    header = "layer,what,kernel,MxNxK,blocks,device memory MB,read by tiles MB,memory us,predicted us"
    lines = [header]
    for layer in layers():
        for dtype in DTYPES:
            for layout in ("nchw", "nhwc"):
                for backward in (False, True):
                    for r in launches(layer, dtype, layout, backward):
                        alone = r.memory_bytes / _MEMORY_BYTES_PER_US
                        numbers = (r.memory_bytes / 1e6, r.cache_bytes / 1e6, alone, r.microseconds)
                        text = ",".join(f"{number:.4g}" for number in numbers)
                        lines.append(f'{r.layer},{r.what},"{r.kernel}",{r.product},{r.blocks},{text}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return len(lines) - 1


if __name__ == "__main__":
    target = Path(__file__).parent / "results" / "predicted.H200.csv"
    print(f"{write(target)} launches: {target}")
    every = {layer.name: layer for layer in layers()}
    rows = [row(layer, dtype, layout) for layer in every.values() for dtype in DTYPES for layout in LAYOUTS]
    verdicts = goals_cuda.floors(rows, every)
    report.print_goals(Console(width=120), verdicts, "Goals on an H200, if predictions were times: got (wanted)")
