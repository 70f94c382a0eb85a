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
FIRST = {"lean": "lean", "gemm_lean": "lean", "gemm_fma": "fma", "gate": "gates"}
FIRST |= {"activation_grad": "grad", "backward_mma": "backward", "": "mma"}  # "": all others
BARRIER = "sync_threads();"
# name: file, the text that is replaced (once in the file), and by what
COMMON = {
    "off_by_one_predicate": ("offsets.cuh", "start + i < axis.count() ?", "start + i <= axis.count() ?"),
    "mma_missing_barrier": ("gemm_mma.cuh", f"{BARRIER}  // the stage is complete", "// the stage is complete"),
    "backward_missing_barrier": ("backward_mma.cuh", f"{BARRIER}  // X has been read", "// X has been read"),
    "mma_wrong_wait": ("gemm_mma.cuh", "copy_async_wait<kStages - 2>();", "copy_async_wait<kStages - 1>();"),
}
OTHERS = {
    "missing_barrier": ("gemm_fma.cuh", f"{BARRIER}  // the stage is complete", "// the stage is complete"),
    "wrong_wait": ("gemm_fma.cuh", "copy_async_wait<0>();", "copy_async_wait<1>();"),
    "gate_missing_barrier": ("gemm_mma.cuh", f"{BARRIER}  // dZ is complete", "// dZ is complete"),
    "mask_of_fewer_lanes": ("mma_output.cuh", "join_lanes<32 / RUN>", "join_lanes<16 / RUN>"),
    "mask_beyond_the_end": ("gate.cuh", "side[x] != kOutside && depth[k]", "depth[k]"),
    "lean_missing_barrier": ("gemm_lean.cuh", f"{BARRIER}  // the stage is complete", "// the stage is complete"),
    "lean_wrong_wait": ("gemm_lean.cuh", "copy_async_wait<kStages - 2>();", "copy_async_wait<kStages - 1>();"),
    "lean_gate_missing_barrier": ("gemm_lean.cuh", f"{BARRIER}  // dZ is complete", "// dZ is complete"),
    "lean_rows_beyond_the_end": ("lean_stream.cuh", "offset[i] = x < count ?", "offset[i] = x <= count ?"),
    "lean_values_beyond_the_end": ("lean_stream.cuh", "outer() + i * kRows) < left;", "outer() + i * kRows) <= left;"),
    "lean_mask_beyond_the_end": ("lean_stream.cuh", "x >= count) return nullptr;", "x > count) return nullptr;"),
    "lean_weight_of_one_step": ("lean_shared.cuh", "first_a)[a_stays ? step : stage]", "first_a)[a_stays ? 0 : stage]"),
    "lean_store_beyond_the_end": ("lean_output.cuh", "if (!there || m >= lean_count", "if (!there || m > lean_count"),
    "lean_rows_not_there": ("lean_output.cuh", "sync_warp();  // the rows are there", "// the rows are there"),
    "lean_rows_overwritten": ("lean_output.cuh", "sync_warp();  // the rows have been", "// the rows have been"),
    "lean_bias_of_the_last_tile": ("lean_output.cuh", "if (first == bias_from) return;", "if (bias_table) return;"),
    "lean_lost_sums": ("gemm_lean.cuh", " || step + 1 == steps", ""),
    "lean_nested_dimensions": ("lean_stream.cuh", "+ outer * outer_step;", "+ outer * inner_step;"),
    "lean_pixels_of_the_next_image": ("lean_stream.cuh", "if (inner < size) return;", "if (inner <= size) return;"),
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
    "weight_of_one_step": ("gemm_mma.cuh", "[stays ? step : stage]", "[stays ? 0 : stage]"),
    "weight_of_other_channels": ("work.cuh", "n_first ? n0 != selected.n0 : m0 != selected.m0", "false"),
    "weight_beside_the_stages": ("gemm_mma.cuh", "int(stage_bytes(g))", "int(sizeof(Shared))"),
    "mma_lost_sums": ("gemm_mma.cuh", " || step + 1 == steps", ""),
    "mma_wrong_fragment": ("mma.cuh", "tile.at(x + row + below, k + right)", "tile.at(x + row + right, k + below)"),
    "gate_of_another_stage": ("gemm_mma.cuh", "gated().saved_a.stage[stage]);", "gated().saved_a.stage[0]);"),
    "gate_of_other_strides": ("gemm_mma.cuh", "saved.row, shared.work.m0", "s.a.row, shared.work.m0"),
    "gate_of_other_steps": ("gemm_mma.cuh", "? &saved.col : &saved.row;", "? &s.a.col : &s.b.row;"),
    "nested_dimensions": ("offsets.cuh", "steps.step[d];\n    index", "steps.step[0];\n    index"),
    "long_division": ("offsets.cuh", "int bit = 62", "int bit = 52"),
    "gate_read_too_wide": ("access.h", "if (saved.data && g.gate_on_a())", "if (!saved.data)"),
    "mask_of_the_next_stage": ("gemm_mma.cuh", "masked().mask[stage]);", "masked().mask[0]);"),
    "mask_of_another_half_step": ("gate.cuh", "Tile::kAlongK ? skip : 0", "0"),
    "mask_of_columns_beyond": ("epilogue.cuh", "i < count && passes(", "passes("),
    "mask_stored_beyond_the_end": ("mma_output.cuh", "if (inside && x % 32 == 0)", "if (x % 32 == 0)"),
    "backward_of_another_stage": (
        "backward_mma.cuh",
        "Stage& to = shared.stage[step % 2]",
        "Stage& to = shared.stage[0]",
    ),
    "backward_mask_of_another_step": ("backward_mma.cuh", "int((first + step) * kPixels % 32)", "0"),
    "backward_stored_beyond_the_end": ("backward_mma.cuh", "left < N ? int(left) : N", "N"),
    "backward_weight_beyond": ("backward_mma.cuh", "o < out_count && i < in_count ?", "o < out_count ?"),
    "mask_of_shares": ("reduce.cuh", "join_lanes<32>", "join_lanes<16>"),
    "row_sums_barrier": ("mma_output.cuh", f"{BARRIER}  // all parts of a row", "// all parts of a row"),
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


def planted(tmp_path: Path, name: str, old: str, new: str) -> subprocess.CompletedProcess:
    """Runs kernel_check.cpp, which passes with the kernels as they are (test_emulator.py), with one text replaced."""
    csrc, program = tmp_path / "csrc", tmp_path / "check"
    shutil.copytree(ROOT / "csrc", csrc, ignore=shutil.ignore_patterns("*.cpp", "cpu"))
    kernel = csrc / "cuda" / name
    kernel.write_text(kernel.read_text().replace(old, new))
    compile = ["g++", "-std=c++17", "-Og", "-w", f"-I{csrc}", str(HERE / "kernel_check.cpp"), "-o", str(program)]
    subprocess.run(compile, check=True)
    first = next(check for start, check in FIRST.items() if name.startswith(start))
    result = subprocess.run([program, first], capture_output=True, text=True, check=False, timeout=120)
    assert "no check" not in result.stdout
    return result


@pytest.mark.parametrize("bug", COMMON)
def test_common_bug_is_caught(bug: str, tmp_path: Path) -> None:
    assert planted(tmp_path, *COMMON[bug]).returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("bug", OTHERS)
def test_other_bug_is_caught(bug: str, tmp_path: Path) -> None:
    assert planted(tmp_path, *OTHERS[bug]).returncode != 0
