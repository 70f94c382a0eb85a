"""The host's time for one call on a tiny layer (8 -> 8 channels, 4x4), where nothing but overhead is left."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import pointwise_ext as pw
from bench.measure import Effort, host_sample, interleave
from bench.operands import DTYPES
from bench.peers import EAGER, OURS
from bench.results import Row

MODES = ("inference", "training forward")
FUNCTION = "function"
# how it is called -> who
FORMS = {FUNCTION: OURS, "module": OURS, "nn.Sequential": EAGER, "module, 4 + 4": OURS, "nn.Sequential of cat": EAGER}


def _calls(dtype: torch.dtype, device: str) -> dict[str, Callable[[], Tensor]]:
    x = torch.randn(1, 8, 4, 4, dtype=dtype, device=device)
    eager = nn.Sequential(nn.Conv2d(8, 8, 1, dtype=dtype, device=device), nn.ReLU(inplace=True))
    module = pw.PointwiseConv2d(8, 8, activation="relu", dtype=dtype, device=device)
    function, weight, bias = pw.pointwise_conv, module.weight, module.bias
    halves = x.split(4, 1)
    calls = (
        lambda: function(x, weight, bias, activation="relu"),
        lambda: module(x),
        lambda: eager(x),
        lambda: module(*halves),
        lambda: eager(torch.cat(halves, 1)),
    )
    return dict(zip(FORMS, calls, strict=True))


def host_rows(dtype: str, device: str, effort: Effort) -> list[Row]:
    """Function, module and nn.Conv2d + ReLU, one and two inputs, in inference and in the forward pass of training."""
    rows = []
    threads = torch.get_num_threads() if device == "cpu" else 0
    for mode in MODES:
        with torch.inference_mode(mode == "inference"):
            calls = _calls(DTYPES[dtype], device)
            samples = {form: host_sample(call, effort, device) for form, call in calls.items()}
            timings = interleave(samples, effort)
        for form, t in timings.items():
            what = ("host", "host", form, mode, dtype, "nchw", FORMS[form])
            rows.append(Row(*what, t.median, t.low, t.high, 0.0, 0.0, "host", threads=threads))
    return rows
