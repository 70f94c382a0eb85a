"""The emulator must notice what it is there for: kernels with one planted mistake each fail kernel_check.cpp."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.emulated.build import ROOT

pytestmark = pytest.mark.emulated

HERE = Path(__file__).parent
# Which check runs first, by the start of the file's name.
FIRST = {"lean": "lean", "gemm_lean": "lean", "gemm_fma": "fma"}
FIRST |= {"activation_grad": "grad", "": "mma"}  # "": all others
# What only float's kernels have; the others are checked without them, which compiles in half the time.
FLOAT = ("gemm_fma.cuh", "lost_sums")
BARRIER = "sync_threads();"
# name: file, the text that is replaced (once in the file), and by what
COMMON = {
    "off_by_one_predicate": ("offsets.cuh", "start + i < axis.count() ?", "start + i <= axis.count() ?"),
    "mma_missing_barrier": ("gemm_mma.cuh", f"{BARRIER}  // the stage is complete", "// the stage is complete"),
    "mma_wrong_wait": ("gemm_mma.cuh", "copy_async_wait<kStages - 2>();", "copy_async_wait<kStages - 1>();"),
}
OTHERS = {
    "missing_barrier": ("gemm_fma.cuh", f"{BARRIER}  // the stage is complete", "// the stage is complete"),
    "wrong_wait": ("gemm_fma.cuh", "copy_async_wait<0>();", "copy_async_wait<1>();"),
    "mask_of_fewer_lanes": ("mma_output.cuh", "join_lanes<32 / RUN>", "join_lanes<16 / RUN>"),
    "lean_missing_barrier": ("gemm_lean.cuh", f"{BARRIER}  // the stage is complete", "// the stage is complete"),
    "lean_wrong_wait": (
        "gemm_lean.cuh",
        "copy_async_wait<Traits::kStages - 2>();",
        "copy_async_wait<Traits::kStages - 1>();",
    ),
    "lean_gate_missing_barrier": ("gemm_lean.cuh", f"{BARRIER}  // dZ is complete", "// dZ is complete"),
    "lean_rows_beyond_the_end": ("lean_stream.cuh", "along > 0 && i * kRows < left", "along > 0 && i * kRows <= left"),
    "lean_values_beyond_the_end": (
        "lean_stream.cuh",
        "left > 0 && i * kRows < along",
        "left > 0 && i * kRows <= along",
    ),
    "lean_mask_beyond_the_end": ("lean_stream.cuh", "row < rows &&", "row <= rows &&"),
    "lean_rows_of_one_image": (
        "lean_stream.cuh",
        "axis.offset(steps, x + by)",
        "by * steps.inner + axis.offset(steps, x)",
    ),
    "lean_weight_of_one_step": ("lean_shared.cuh", "{uint32_t(stages), 0, uint32_t(tile)}", "{uint32_t(stages), 0, 0}"),
    "lean_store_beyond_the_end": ("lean_output.cuh", "if (y < rows) run.store", "if (y <= rows) run.store"),
    "lean_finish_beyond_the_end": ("lean_output.cuh", "m + y < l.m.count;", "m + y <= l.m.count;"),
    "lean_rows_not_there": ("lean_output.cuh", "sync_warp();  // the rows are there", "// the rows are there"),
    "lean_parts_in_one_place": ("lean_output.cuh", "slab + i % 2 * 1024", "slab"),
    "lean_part_not_there": ("lean_output.cuh", "sync_warp();  // the part's rows are", "// the part's rows are"),
    "lean_part_overwritten": ("lean_output.cuh", "sync_warp();  // the part's rows have", "// the part's rows have"),
    "lean_bias_of_the_first_tile": ("lean_output.cuh", "l.groups.bias, w.group) + first;", "l.groups.bias, w.group);"),
    "lean_bits_of_the_lower_halves": ("lean_output.cuh", "(bits | bits >> 15)", "(bits | bits >> 16)"),
    "lean_of_the_first_group": ("lean.h", "group = shares.divide(split), split", "split"),
    "lean_narrow_tail": ("lean_stream.cuh", "first + i < axis.count ?", "first + i <= axis.count ?"),
    "lean_row_sums_barrier": ("lean_output.cuh", f"{BARRIER}  // all parts of a row", "// all parts of a row"),
    "lean_mask_of_the_next_stage": (
        "gemm_lean.cuh",
        "plain().a[stage], Shared::masked().mask[stage]",
        "plain().a[stage], Shared::masked().mask[0]",
    ),
    "lean_values_of_the_last_step": ("lean.h", "rest ? int(rest)", "rest ? 1"),
    "lean_lost_sums": ("gemm_lean.cuh", " || step + 1 == steps", ""),
    "lean_nested_dimensions": ("lean.h", "in_row + row * steps.outer;", "in_row + row * steps.inner;"),
    "lean_division": ("lean.h", "+ by - 1) / by", ") / by"),
    "lean_pixels_of_the_next_image": ("lean_stream.cuh", "ends = inner >= size", "ends = inner > size"),
    "barrier_before_first_load": ("gemm_fma.cuh", f"{BARRIER}\n    start_load(0);", "start_load(0);"),
    "barrier_before_output": ("gemm_fma.cuh", f"{BARRIER}  // the stages' memory", "// the stages' memory"),
    "barrier_before_write": ("gemm_fma.cuh", f"{BARRIER}\n#pragma unroll 1", "#pragma unroll 1"),
    "barrier_after_write": ("gemm_fma.cuh", f"{BARRIER}  // the part has been read", "// the part has been read"),
    "store_beyond_the_end": ("gemm_fma.cuh", "if (m >= m_count ||", "if (m > m_count ||"),
    "barrier_after_selection": ("work.cuh", f"}}\n  {BARRIER}\n}}", "}\n}"),
    "mma_barrier_before_output": ("gemm_mma.cuh", f"{BARRIER}  // the stages' memory", "// the stages' memory"),
    "mma_barrier_before_write": ("mma_output.cuh", f"{BARRIER}\n      if (run == kRun)", "if (run == kRun)"),
    "mma_barrier_after_write": ("mma_output.cuh", f"{BARRIER}  // the part has been read", "// the part has been read"),
    "mma_store_beyond_the_end": ("mma_output.cuh", "inside = m < m_count &&", "inside = m <= m_count &&"),
    "mma_copy_beyond_the_end": ("operand.cuh", "int(left < V ? left : V)", "V"),
    "mma_barrier_ahead": ("gemm_mma.cuh", f"{BARRIER}  // the tables are filled", "// the tables are filled"),
    "mma_lost_sums": ("gemm_mma.cuh", " || step + 1 == steps", ""),
    "mma_wrong_fragment": ("mma.cuh", "Tile::offset(row + below, right)", "Tile::offset(row + right, below)"),
    "nested_dimensions": ("offsets.cuh", "steps.step[d];\n    index", "steps.step[0];\n    index"),
    "long_division": ("offsets.cuh", "int bit = 62", "int bit = 52"),
    "mask_of_columns_beyond": ("epilogue.cuh", "i < count && passes(", "passes("),
    "mask_stored_beyond_the_end": ("mma_output.cuh", "if (inside && x % 32 == 0)", "if (x % 32 == 0)"),
    "mask_of_shares": ("reduce.cuh", "join_lanes<32>", "join_lanes<16>"),
    "row_sums_lost": ("reduce.cuh", "if (n == g.n.count()) {", "if (n == -1) {"),
    "parts_of_a_sum": ("reduce.cuh", f"{BARRIER}  // all parts are there", "// all parts are there"),
    "run_beyond_the_end": ("epilogue.cuh", "if (i < count) to[i] = v[i];", "to[i] = v[i];"),
    "tables_of_the_last_segment": ("position.cuh", "k = 0, table ^= 1;", "k = 0;"),
    "lost_share": ("reduce.cuh", "s < end; ++s", "s < end - 1; ++s"),
    "grad_pixel_beyond_the_end": ("activation_grad.cuh", "p0 + p >= pixels ||", "p0 + p > pixels ||"),
    "grad_barrier_before_read": ("activation_grad.cuh", f"{BARRIER}\n#pragma unroll 2", "#pragma unroll 2"),
    "grad_barrier_after_read": ("activation_grad.cuh", f"{BARRIER}  // the tables", "// the tables"),
    "grad_barrier_after_sums": ("activation_grad.cuh", f"{BARRIER}  // the sums", "// the sums"),
}


@pytest.mark.parametrize("bug", COMMON | OTHERS)
def test_bug_has_a_place(bug: str) -> None:
    name, old, _ = (COMMON | OTHERS)[bug]
    assert (ROOT / "csrc" / "cuda" / name).read_text().count(old) == 1, "adapt this test to the kernel"


def planted(tmp_path: Path, bug: str) -> subprocess.CompletedProcess:
    """Runs kernel_check.cpp, which passes with the kernels as they are (test_emulator.py), with one text replaced."""
    name, old, new = (COMMON | OTHERS)[bug]
    csrc, program = tmp_path / "csrc", tmp_path / "check"
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("*.cpp", "cpu"))
    kernel = csrc / "cuda" / name
    kernel.write_text(kernel.read_text().replace(old, new))
    flags = ["-std=c++17", "-Og", "-w", f"-I{csrc}"]
    if not any(float_alone in f"{name} {bug}" for float_alone in FLOAT):
        flags.append("-DPW_BF16_ALONE")
    subprocess.run(["g++", *flags, str(HERE / "kernel_check.cpp"), "-o", str(program)], check=True)
    first = next(check for start, check in FIRST.items() if name.startswith(start))
    result = subprocess.run([program, first], capture_output=True, text=True, check=False, timeout=300)
    assert "no check" not in result.stdout
    return result


@pytest.mark.parametrize("bug", COMMON)
def test_common_bug_is_caught(bug: str, tmp_path: Path) -> None:
    assert planted(tmp_path, bug).returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("bug", OTHERS)
def test_other_bug_is_caught(bug: str, tmp_path: Path) -> None:
    assert planted(tmp_path, bug).returncode != 0
