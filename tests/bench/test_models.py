"""python -m bench models: a tiny run, the file that grows with every piece, and verdicts on made-up rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import folding
from bench.__main__ import main
from bench.measure import Effort, OtherLoad
from bench.models import BACKEND, EAGER, FUSED, INDUCTOR, ModelResults, ModelRow, Setup, measure, stored
from bench.models_bound import bounds
from bench.models_report import markdown, plot, verdicts
from bench.pointwise_part import pointwise_convolutions, pointwise_work
from bench.readme import MODELS

TINY = ["models", "--network", "SqueezeNet", "--batch", "1", "--layout", "nchw", "--rounds", "1", "--no-compile"]
FACTS = {"device": "cpu", "CPU": "one", "GPU": "none", "threads": "2", "torch": "2", "measured": "us", "date": "today"}


def row(name: str, microseconds: float, network: str = "ResNet-50", **more) -> ModelRow:
    fields = {"batch": 1, "layout": "nchw", "dtype": "fp32", "mode": "forward", "device": "cpu", "threads": 2, **more}
    return ModelRow(network, **fields, name=name, median_us=microseconds, low_us=microseconds, high_us=microseconds,
                    peak_bytes=1, error=0.0, fused=36, pointwise=36, prepare_s=1.0)  # fmt: skip


def results(*rows: ModelRow) -> ModelResults:
    return ModelResults(FACTS, {}, list(rows))


def test_a_run_in_two_pieces_leaves_one_file_and_a_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(["above", *MODELS, "below", ""]))
    arguments = [*TINY, "--output", str(tmp_path), "--label", "test", "--update-readme", str(readme)]
    assert main([*arguments, "--mode", "forward"]) == 0
    assert main([*arguments, "--mode", "step"]) == 0
    found = ModelResults.load(tmp_path / "test.json")
    assert {(r.mode, r.name) for r in found.rows} == {(m, n) for m in ("forward", "step") for n in (EAGER, FUSED)}
    assert all(r.median_us > 0 and r.peak_bytes > 0 for r in found.rows)
    fused = next(r for r in found.rows if (r.name, r.mode) == (FUSED, "forward"))
    assert fused.fused == 17
    assert 0 < fused.pointwise_share < 1
    assert 0 < fused.pointwise_floor_us < fused.median_us
    assert found.ceilings["fp32 GFLOP/s"] > 0
    assert (tmp_path / "test.png").read_bytes()[1:4] == b"PNG"
    assert "| SqueezeNet |" in readme.read_text()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_wrong_or_failing_contestant_is_named_and_not_timed(dtype: str) -> None:
    def fails(model):
        raise ValueError("no such compiler")

    class Wrong:
        def __init__(self, model):
            self.model = model

        def __call__(self, x):
            y = self.model(x)
            return y + 0.1 * y.abs().max()

    who = {EAGER: lambda model: model, "wrong": Wrong, "failing": fails}
    found = list(measure(Setup("SqueezeNet", 1, "nchw", dtype), who, Effort(1, 0.1), OtherLoad()))
    lines = [line for line in found if isinstance(line, str)]
    assert [r.name for r in found if isinstance(r, ModelRow)] == [EAGER]
    assert "tolerance" in lines[0]
    assert "no such compiler" in lines[1]


def test_a_setup_measured_again_replaces_all_its_rows() -> None:
    run = results(row(EAGER, 10.0), row(FUSED, 5.0), row(EAGER, 70.0, batch=8))
    run.add([row(FUSED, 4.0), row(EAGER, 9.0)])
    assert [(r.name, r.batch, r.median_us) for r in run.rows] == [(EAGER, 8, 70.0), (FUSED, 1, 4.0), (EAGER, 1, 9.0)]


def test_a_run_of_another_processor_is_not_continued(tmp_path: Path) -> None:
    results(row(EAGER, 10.0)).save(tmp_path / "run")
    assert len(stored(tmp_path / "run.json", FACTS).rows) == 1
    assert stored(tmp_path / "run.json", {**FACTS, "CPU": "another"}).rows == []
    assert stored(tmp_path / "none.json", FACTS).rows == []


@pytest.mark.parametrize(("fused_us", "word"), [(5.0, "met"), (9.0, "missed")])
def test_goals_compare_the_better_layouts(fused_us: float, word: str) -> None:
    """Eager's 10 us are of channels_last; its NCHW is slower, and does not count."""
    rows = [row(EAGER, 50.0), row(EAGER, 10.0, layout="nhwc"), row(FUSED, fused_us), row(INDUCTOR, 8.0)]
    rows += [row(FUSED, 9.9, layout="nhwc"), row(BACKEND, fused_us - 1.0)]
    found = {v.what: v for v in verdicts(rows)}
    assert found["ResNet-50, batch 1: fused over eager"].word == word
    assert found["ResNet-50, batch 1: fused over eager"].got == pytest.approx(10.0 / fused_us)
    assert found[f"all: {FUSED} over {INDUCTOR}"].word == word
    assert found["worst of all, nhwc: fused over eager, steps too"].got == pytest.approx(10.0 / 9.9)


def test_the_bound_of_a_missed_goal() -> None:
    """Of 9 us fused, a third in 1x1 convolutions, which cannot take less than 2."""
    fused = replace(row(FUSED, 9.0), pointwise_share=1 / 3, pointwise_floor_us=2.0)
    run = results(row(EAGER, 10.0), fused, row(EAGER, 50.0, layout="nhwc"), row(EAGER, 10.0, "U-Net"))
    (bound,) = bounds(run, verdicts(run.rows))
    assert (bound.inside, bound.least) == pytest.approx((3.0, 2.0))
    assert (bound.at_floor, bound.free) == pytest.approx((10 / 8, 10 / 6))
    assert list(bounds(results(row(EAGER, 10.0), replace(fused, median_us=5.0)), verdicts(run.rows[:1]))) == []


def test_the_work_of_1x1_convolutions_alone_counts() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1, groups=2), nn.Conv2d(6, 8, 3))
    assert pointwise_convolutions(model) == 1
    (work,) = pointwise_work(model, lambda: model(torch.zeros(2, 4, 5, 5)), "fp32", "cpu", 2)
    assert work.flops == 2 * (2 * 6 * 25) * 2
    assert work.bytes == 4 * (2 * 4 * 25 + 6 * 2 + 2 * 6 * 25)


def test_table_and_picture_without_a_compiler(tmp_path: Path) -> None:
    run = results(row(EAGER, 10.0), row(FUSED, 5.0), replace(row(FUSED, 5.0), batch=8))
    text = markdown(run, "picture.png")
    assert "| ResNet-50 | 36 of 36 | 2.00x | - |" in text
    assert plot(run, tmp_path / "run.png").exists()


def test_a_trained_network_keeps_its_accuracy() -> None:
    """One epoch: the statistics of its BatchNorms are real ones, whether or not it is good."""
    run = folding.fold("cpu", epochs=1)
    assert run.complaints == []
    assert run.before > 0.5
