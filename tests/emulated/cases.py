"""The problems that every CUDA kernel is checked with: on the emulator here, on a GPU by tests/gpu."""

from __future__ import annotations

from dataclasses import replace

from pointwise_ext.activations import ACTIVATIONS
from tests.layouts import LAYOUTS
from tests.problem import Problem

DTYPES = ("float32", "float64", "float16", "bfloat16")
# More than one large tile and several steps along k, with a tail on every side.
BASE = Problem(channels=(35,), out_channels=70, batch=2, size=(7, 7), activation="relu")
PARAMETERS = {"clamp": ("clamp", -0.5, 0.75), "leaky_relu": ("leaky_relu", -0.2)}


def _cases() -> dict[str, Problem]:
    cases = {}
    for dtype in DTYPES:
        for layout in LAYOUTS:
            cases[f"{dtype}-{layout}"] = replace(BASE, dtype=dtype, layout=layout)
        # Small integers: every sum is exact, so that the result must be equal.
        cases[f"{dtype}-exact"] = replace(BASE, dtype=dtype, integers=True, residual=True)
        cases[f"{dtype}-long_sum"] = replace(BASE, dtype=dtype, channels=(300,), out_channels=10, batch=1)
    for name in ACTIVATIONS:
        problem = replace(BASE, channels=(16,), out_channels=24, activation=PARAMETERS.get(name, name), residual=True)
        cases[f"activation-{name}"] = problem
        cases[f"activation-{name}-float16"] = replace(problem, dtype="float16", layout="channels_last")
    for layout in ("contiguous", "channels_last"):
        base = replace(BASE, layout=layout, activation="silu")
        cases |= {
            f"{layout}-linear": replace(base, activation=None),
            f"{layout}-no_bias": replace(base, bias=False),
            f"{layout}-residual": replace(base, residual=True),
            f"{layout}-hw196": replace(base, channels=(24,), size=(14, 14)),
            f"{layout}-hw1": replace(base, size=(1, 1), batch=5),
            f"{layout}-3_to_10": replace(base, channels=(3,), out_channels=10),
            f"{layout}-one_channel": replace(base, channels=(1,), out_channels=1),
            f"{layout}-sources_3_61": replace(base, channels=(3, 61), out_channels=20),
            f"{layout}-sources_8": replace(base, channels=(1, 17, 2, 16, 5, 33, 7, 4), out_channels=20),
            f"{layout}-stride": replace(base, stride=2),
            f"{layout}-stride-bfloat16": replace(  # vectors of 16 bytes, and in channels_last rows of two dimensions
                base, channels=(24,), out_channels=40, batch=3, size=(8, 32), stride=2, dtype="bfloat16"
            ),
            f"{layout}-padding": replace(base, padding=1, residual=True),
            f"{layout}-stride_padding": replace(base, stride=(2, 3), padding=(1, 2)),
            f"{layout}-groups": replace(base, channels=(24,), out_channels=12, groups=4),
            f"{layout}-depthwise": replace(base, channels=(12,), out_channels=12, groups=12, residual=True),
            f"{layout}-groups_across_sources": replace(base, channels=(7, 17), out_channels=6, groups=2),
            f"{layout}-large_tiles": replace(base, channels=(20,), out_channels=150, batch=3, size=(11, 12)),
            f"{layout}-large_tiles-bfloat16": replace(
                base, channels=(20,), out_channels=150, batch=3, size=(11, 12), dtype="bfloat16"
            ),
            f"{layout}-64_to_256-bfloat16": replace(base, channels=(64,), out_channels=256, dtype="bfloat16"),
            f"{layout}-128_to_128-bfloat16": replace(
                base, channels=(128,), out_channels=128, size=(4, 12), dtype="bfloat16"
            ),
            f"{layout}-weight_transposed": replace(base, weight_layout="permuted"),
            f"{layout}-1d": replace(base, size=(49,)),
            f"{layout}-3d": replace(base, size=(3, 4, 5), padding=1),
            f"{layout}-unbatched": replace(base, batch=None),
            f"{layout}-no_channels": replace(base, channels=(0,), residual=True),
            f"{layout}-empty_batch": replace(base, batch=0),
            f"{layout}-empty_size": replace(base, size=(0, 7)),
        }
    return cases


CASES = _cases()
# Whose dZ nobody asks for as such, so that products may make it of dY themselves.
GATED = {
    name: replace(problem, residual=False)
    for name, problem in CASES.items()
    if problem.dtype != "float64" and 0 not in (*problem.channels, problem.batch, *problem.size)
}
