"""The benchmark's tools: every command once with tiny settings, and the judgements it makes on made-up rows."""

from __future__ import annotations

import json
import time
import weakref
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench import goals_cuda, roofline
from bench.__main__ import main
from bench.cold import image_sets, keeping, last_level_cache
from bench.goals import behind, verdicts
from bench.measure import QUIET_S, Effort, OtherLoad, Timing, interleave, peak_memory, settled
from bench.operands import Problem, make_operands
from bench.peers import EAGER, OURS, Peer, eager, ours
from bench.readme import BEGIN, END, update
from bench.registry import Roster
from bench.results import Results, Row
from bench.run import Bench, timed
from bench.suites import CUDA_LAYERS, LAYERS
from bench.summary import changes, duels, means, regressions

TINY = ["layers", "--suite", "tiny", "--rounds", "1", "--sample-ms", "0.1"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run over the smallest suite with 1 and 2 threads, stored."""
    folder, before = tmp_path_factory.mktemp("results"), torch.get_num_threads()
    try:
        assert main([*TINY, "--threads", "1,2", "--output", str(folder), "--label", "test", "--goals"]) == 0
    finally:
        torch.set_num_threads(before)
    (path,) = folder.glob("test.*.json")
    return path


def row(name: str, microseconds: float, klass: str = "28x28, batch 1", layer: str | None = None, **more) -> Row:
    layer = layer or next(name for name, x in LAYERS.items() if x.klass == klass)
    fields = {"mode": "forward", "dtype": "fp32", "layout": "nchw", **more}
    low, high = 0.9 * microseconds, 1.1 * microseconds
    return Row("uses", klass, layer, name=name, median_us=microseconds, low_us=low, high_us=high, gflops=1.0,
               floor_us=1.0, bound="memory", **fields)  # fmt: skip


def results_of(*rows: Row, **facts: str) -> Results:
    return Results({"device": "cpu", "threads": "1", **facts}, {}, list(rows))


def test_a_run_leaves_json_csv_and_picture(stored: Path) -> None:
    results = Results.load(stored)
    assert {OURS, EAGER} <= {r.name for r in results.rows}
    assert all(r.median_us > 0 for r in results.rows)
    assert {r.threads for r in results.rows} == {1, 2}
    assert {r.threads for r in results.judged} == {2}
    assert {r.cache for r in results.rows} == {"warm"}
    assert {"date", "CPU", "torch", "threads"} <= set(results.environment)
    assert f"# torch: {torch.__version__}" in stored.with_suffix(".csv").read_text()
    assert stored.with_suffix(".png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("mode", ["backward", "step"])
def test_training_modes(mode: str, tmp_path: Path) -> None:
    assert main([*TINY, "--mode", mode, "--dtype", "fp32", "--layout", "nchw", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    rows = [r for r in Results.load(path).rows if r.suite != "host"]
    assert {r.mode for r in rows} == {mode}
    assert min(r.peak_bytes for r in rows) > 0


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_cold_and_half_precision(dtype: str, tmp_path: Path) -> None:
    arguments = [
        "--cold",
        "--mode",
        "forward,backward",
        "--dtype",
        dtype,
        "--layout",
        "nhwc",
        "--output",
        str(tmp_path),
    ]
    assert main([*TINY, *arguments]) == 0
    (path,) = tmp_path.glob("*.json")
    rows = [r for r in Results.load(path).rows if r.suite != "host"]
    assert {(r.mode, r.dtype, r.cache) for r in rows} == {("forward", dtype, "cold"), ("backward", dtype, "cold")}


def test_cold_calls_rotate_through_images_past_the_cache() -> None:
    layer = next(x for x in LAYERS.values() if x.klass == "28x28, batch 1")
    problem = Problem(layer, "forward", "fp32", "nchw", cold=True)
    assert image_sets(problem) * problem.image_bytes > 3 * last_level_cache("cpu")
    operands = make_operands(problem, sets=3)
    run = timed(lambda: operands.input, operands)
    seen = [run() for _ in range(4)]
    assert seen[0] is seen[3]
    assert len({id(x) for x in seen}) == 3


def test_cold_calls_find_no_memory_that_was_just_freed() -> None:
    results = [torch.zeros(8) for _ in range(3)]
    alive = [weakref.ref(result) for result in reversed(results)]
    keep = keeping(results.pop, sets=2)
    states = []
    for _ in range(3):
        keep()
        states.append([result() is not None for result in alive])
    assert states == [[True, True, True], [True, True, True], [False, True, True]]


def test_the_last_level_caches_of_all_sockets_count(tmp_path: Path) -> None:
    for cpu, index, level, size, shared in [
        (0, 0, "1", "32K", "0"), (0, 3, "3", "16384K", "0-1"), (1, 3, "3", "16384K", "0-1"), (2, 3, "3", "16M", "2"),
    ]:  # fmt: skip
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(value + "\n")
    assert last_level_cache("cpu", tmp_path) == 32 << 20
    assert last_level_cache("cpu", tmp_path / "none") > 0


def test_peak_memory_is_of_everything_alive_at_once() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(1000)
        second = first + first
        del first
        return second + second

    assert peak_memory(run, "cpu") == 8000


def test_a_missing_peer_is_named_with_its_reason(stored: Path) -> None:
    assert any(line.startswith("torch.compile: slow to prepare") for line in Results.load(stored).absent)


def test_a_peer_with_a_wrong_answer_is_reported_and_not_timed() -> None:
    roster = Roster()
    wrong = Peer("wrong", lambda operands: lambda: eager(operands)() + 1)
    roster.peers = [Peer(OURS, ours), Peer(EAGER, eager), wrong]
    layer = next(x for x in LAYERS.values() if x.suite == "tiny")
    rows = Bench(Effort(rounds=1, sample_ms=0.1), roster).run(Problem(layer, "forward", "fp32", "nchw"))
    assert [r.name for r in rows] == [OURS, EAGER]
    ((name, reason),) = roster.absent
    assert name == "wrong"
    assert "tolerance" in reason


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("klass", ["tiny", "28x28 bottleneck, batch 1"])
def test_other_runtimes_give_the_right_answer(klass: str, dtype: str, layout: str, cold: bool) -> None:
    layer = next(x for x in LAYERS.values() if x.klass == klass)
    problem, roster = Problem(layer, "forward", dtype, layout, cold=cold), Roster()
    roster.peers = [peer for peer in roster.present(problem) if peer.spins]
    if not roster.peers:
        pytest.skip("neither ONNX Runtime nor OpenVINO is installed")
    roster.absent.clear()
    rows = Bench(Effort(rounds=1, sample_ms=0.1), roster).run(problem)
    assert [r.name for r in rows] == [peer.name for peer in roster.peers], roster.absent


def test_what_others_disturb_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Used and available seconds before and after each attempt, and own: others take 2, 3 and then 0.1 of 10 seconds.
    load, clock = OtherLoad(), iter([(0, 0), (3, 10), (3, 10), (7, 20), (7, 20), (8.1, 30)])
    own, results = iter([0, 1, 1, 2, 2, 3]), iter("abc")
    monkeypatch.setattr(load, "_seconds", lambda: next(clock))
    monkeypatch.setattr(time, "process_time", lambda: next(own))
    assert load.undisturbed(lambda: next(results)) == "c"
    assert load.share == pytest.approx(0.01)
    clock, own = iter([(0, 0), (3, 10)]), iter([0, 1])
    assert load.undisturbed(lambda: "again", attempts=1) == "again"
    assert load.share == pytest.approx(0.105)
    used, available = OtherLoad()._seconds()
    assert 0 <= used <= available


@pytest.mark.parametrize("count", range(1, 10))
def test_nobody_always_follows_the_same_contestant(count: int) -> None:
    names = [str(i) for i in range(count)]
    order: list[str] = []
    samples = {name: lambda name=name: order.append(name) or 1.0 for name in names}
    assert interleave(samples, Effort(rounds=count)) == dict.fromkeys(names, Timing(1.0, 1.0, 1.0))
    assert sorted(order) == sorted(names * count)
    pairs = Counter(pairwise(order))
    assert max(pairs.values(), default=0) <= (2 if count > 2 else count)


def test_idle_threads_of_other_runtimes_get_time_to_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    used = iter([0.0, 0.012, 0.012, 0.016, 0.016, 0.017])  # CPU seconds before and after each wait: the third is quiet
    monkeypatch.setattr(time, "sleep", events.append)
    monkeypatch.setattr(time, "process_time", lambda: next(used))
    assert settled(lambda: events.append("sample") or 7.0, lambda: events.append("wake"), spins=True)() == 7.0
    assert events[0] == 0.01
    assert set(events[1:-4]) == {"wake"}
    assert events[-4:] == ["sample", QUIET_S, QUIET_S, QUIET_S]


def test_ratios_and_geometric_means() -> None:
    first, second = [name for name, x in LAYERS.items() if x.klass == "28x28, batch 1"][:2]
    rows = [row(OURS, 10, layer=first), row(EAGER, 40, layer=first), row("F.linear", 20, layer=first)]
    rows += [row(OURS, 10, layer=second), row(EAGER, 10, layer=second)]
    mean = means(duels(rows))[0]
    assert mean.count == 2
    assert mean.vs_eager == pytest.approx(2.0)  # of 4 and 1
    assert mean.vs_best == pytest.approx(2**0.5)  # of 2 and 1
    assert mean.worst == pytest.approx(1.0)


@pytest.mark.parametrize(("ours_us", "word"), [(10.0, "met"), (50.0, "missed")])
def test_goals(ours_us: float, word: str) -> None:
    rows = [row(OURS, ours_us), row(EAGER, 60.0)]
    rows += [replace(r, mode="backward") for r in rows]
    found = {(v.what, v.dtype, v.layout): v.word for v in verdicts(results_of(*rows))}
    assert found["28x28, batch 1", "fp32", "nchw"] == word
    assert found["backward, 28x28, batch 1", "fp32", "nchw"] == word
    assert found["28x28, batch 1", "fp32", "nhwc"] == "not measured"
    assert found["ResNet-50, batch 1", "fp32", "nchw"] == "not measured"


@pytest.mark.parametrize(("peer_us", "beyond"), [(1.6, 1), (2.0, 0)])
def test_a_missed_goal_tells_how_near_the_floor_both_are(peer_us: float, beyond: int) -> None:
    rows = results_of(row(OURS, 4.0), row(EAGER, peer_us))  # the floor is 1 us, the goal 1.7 times the peer's speed
    missed = next(v for v in verdicts(rows) if v.what == "28x28, batch 1")
    assert (missed.of_floor, missed.best_of_floor) == pytest.approx((0.25, 1 / peer_us))
    assert (missed.floors, missed.beyond) == (1, beyond)


def test_the_ceiling_is_no_lower_than_what_a_contestant_reached() -> None:
    layer = max(LAYERS.values(), key=lambda layer: layer.flops("forward"))
    problem = Problem(layer, "forward", "fp32", "nchw", threads=3)
    least = roofline.floor(problem).microseconds
    roofline.saw(problem, 1e15)
    assert roofline.peak_flops("fp32", "cpu", 3) == 1e15
    assert roofline.floor(problem).microseconds < least
    assert roofline.floor(problem).bound == "memory"


@pytest.mark.parametrize(("ours_us", "word"), [(47.8 / 0.95 + 2.5, "met"), (100.0, "missed")])
def test_goals_on_a_gpu(ours_us: float, word: str) -> None:
    """A floor, a launch, and the ratio to eager; cold rows are judged where there are some."""
    name = "resnet50 256x64->64 56x56"
    ours, theirs = (
        replace(row(who, us, CUDA_LAYERS[name].klass, name), suite="resnet50", dtype="bf16", floor_us=47.8)
        for who, us in ((OURS, ours_us), (EAGER, 160.0))
    )
    warm = [replace(ours, median_us=1.0), replace(theirs, median_us=1.0)]
    cold = [replace(r, cache="cold") for r in (ours, theirs)]
    found = {(v.what, v.dtype, v.layout): v for v in goals_cuda.verdicts(results_of(*warm, *cold))}
    floor = found[f"share of the floor, {goals_cuda.MEMORY}", "bf16", "nchw"]
    assert (floor.word, floor.got) == (word, pytest.approx(47.8 / (ours_us - 2.5)))
    over_eager = found[f"ResNet-50 forward over {EAGER}", "bf16", "nchw"]
    assert (over_eager.word, over_eager.got) == (word, pytest.approx(160 / ours_us))
    assert found[f"ResNet-50 forward over {EAGER}", "bf16", "nhwc"].word == "not measured"
    assert found[f"share of the floor, {goals_cuda.ODD}", "bf16", "nchw"].word == "not measured"


def test_goals_are_judged_with_the_most_threads() -> None:
    slow = [row(OURS, 100.0, threads=1), row(EAGER, 60.0, threads=1)]
    rows = results_of(*slow, row(OURS, 10.0, threads=2), row(EAGER, 60.0, threads=2))
    assert next(v.got for v in verdicts(rows) if v.what == "28x28, batch 1") == pytest.approx(6.0)
    assert behind(rows) == []
    (duel,) = behind(results_of(*slow))
    assert duel.best.name == EAGER


@pytest.mark.parametrize(("peak", "word"), [(1.0, "met"), (2.0, "missed")])
def test_a_copy_of_a_strided_input_misses_a_goal(peak: float, word: str) -> None:
    layer = next(x for x in LAYERS.values() if x.stride == 2)
    rows = results_of(row(OURS, 1.0, layer.klass, layer.name, peak_bytes=int(peak * 4 * layer.outputs)))
    assert next(v.word for v in verdicts(rows) if "peak memory" in v.what) == word


@pytest.mark.parametrize(
    ("kernels", "word"), [("avx512", "met"), ("avx512_bf16", "not measured"), ("amx", "not measured")]
)
def test_fp16_is_compared_with_bf16_without_its_instructions(kernels: str, word: str) -> None:
    rows = results_of(row(OURS, 11.0, dtype="bf16"), row(OURS, 10.0, dtype="fp16"), kernels=kernels)
    assert next(v.word for v in verdicts(rows) if v.dtype == "fp16") == word


@pytest.mark.parametrize(("microseconds", "behind"), [(10.0, 0), (10.5, 0), (20.0, 2)])
def test_regressions(microseconds: float, behind: int) -> None:
    before = [row(OURS, 10.0), row(EAGER, 30.0)]
    now = [row(OURS, microseconds), row(EAGER, 30.0)]
    assert len(regressions(changes(now, before), tolerance=0.1)) == behind  # the class, and all of them


def test_compare_fails_on_a_regression_only(stored: Path, tmp_path: Path) -> None:
    arguments = ["layers", "--from", str(stored), "--fail-if-regression", "--compare"]
    assert main([*arguments, str(stored)]) == 0
    results = Results.load(stored)
    results.rows = [replace(r, median_us=r.median_us / 3) if r.name == OURS else r for r in results.rows]
    faster = results.save(tmp_path / "faster")[0]
    assert main([*arguments, str(faster)]) == 1


def test_readme_is_updated_between_its_markers(stored: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    picture = tmp_path / "pictures" / "run.png"
    update(readme, Results.load(stored), picture)
    once = readme.read_text()
    assert once.startswith(f"above\n{BEGIN}\n")
    assert once.endswith(f"{END}\nbelow\n")
    assert "old" not in once
    assert "| tiny | 1 |" in once
    assert "(pictures/run.png)" in once
    update(readme, Results.load(stored), picture)
    assert readme.read_text() == once


def test_readme_without_markers_is_refused(stored: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("nothing here\n")
    with pytest.raises(ValueError, match="needs the line"):
        update(readme, Results.load(stored), tmp_path / "run.png")
    assert readme.read_text() == "nothing here\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "resnet51"], "known: "),
        (["--threads", "1,many"], "expected numbers above 0"),
        (["--fail-if-regression"], "needs --compare"),
        (["--compare", "nowhere.json"], "there is no file"),
        (["--update-readme", __file__], "needs the line"),
    ],
)
def test_bad_arguments_are_refused_before_measuring(arguments, words, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["layers", *arguments])
    assert words in capsys.readouterr().err


def test_stored_json_is_plain_and_old_ones_load(stored: Path, tmp_path: Path) -> None:
    data = json.loads(stored.read_text())
    assert data["rows"][0]["median_us"] > 0
    for old in data["rows"]:  # as runs were stored before rows had threads
        del old["threads"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert {r.threads for r in Results.load(path).rows} == {2}
