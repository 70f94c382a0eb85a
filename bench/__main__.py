"""python -m bench: times pointwise_ext against its peers (layers), then shows it at work on real images (real).

python -m bench models: whole networks, eager, fused and compiled.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import goals, goals_cuda, models, models_report, report
from bench.allocator import keep_freed_memory
from bench.host import host_rows
from bench.measure import BUSY, Effort, OtherLoad
from bench.networks import NETWORKS
from bench.operands import DTYPES
from bench.peers import EXTENSION_LOADED, OURS
from bench.plot import plot
from bench.readme import BEGIN, END, MODELS, check_markers, link, replace_between, update
from bench.real import real
from bench.registry import COMPILE, Roster
from bench.results import Results, device_name, environment, slug
from bench.roofline import ceilings, peak_flops
from bench.run import Bench, problems, run_all
from bench.suites import LAYOUTS, MODES, SUITES
from bench.summary import changes, regressions

ROOT = Path(__file__).parent
QUICK = Effort(rounds=7, sample_ms=2.0, limit_s=2.0)


def parser() -> argparse.ArgumentParser:
    def some_of(choices):
        def parse(text: str) -> list[str]:
            unknown = [item for item in text.split(",") if item not in choices]
            if unknown:
                raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; known: {', '.join(choices)}")
            return text.split(",")

        return parse

    def counts(text: str) -> list[int]:
        items = [str(torch.get_num_threads()) if item == "all" else item for item in text.split(",")]
        if not all(item.isdecimal() and int(item) for item in items):
            raise argparse.ArgumentTypeError(f"got '{text}', expected numbers above 0 or all, such as 1,all")
        return sorted({int(item) for item in items})

    p = argparse.ArgumentParser(prog="python -m bench", description=__doc__, allow_abbrev=False)
    commands = ["all", "layers", "real", "models"]
    p.add_argument("command", nargs="?", choices=commands, default="all", help="[all: layers, then real]")
    p.add_argument("--quick", action="store_true", help="representatives of each suite, under 2 minutes on 2 cores")
    p.add_argument("--suite", type=some_of(SUITES), default=list(SUITES), metavar="A,B", help=", ".join(SUITES))
    p.add_argument("--mode", type=some_of(MODES), help="forward, backward, step [forward; --quick: and backward]")
    p.add_argument("--dtype", type=some_of(DTYPES), help="fp32, bf16, fp16 [fp32,bf16]")
    p.add_argument("--layout", type=some_of(LAYOUTS), default=list(LAYOUTS), help="nchw, nhwc [both]")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--cold", action="store_true", help="rotate images past 3x the last-level cache [warm]")
    p.add_argument("--compile", choices=COMPILE, default="no", help="time torch.compile too (seconds per layer)")
    p.add_argument("--threads", type=counts, metavar="1,all", help="numbers of CPU threads [all: PyTorch's default]")
    p.add_argument("--rounds", type=int, help="samples of each contestant [15; --quick: 7]")
    p.add_argument("--sample-ms", type=float, help="least length of a sample [5; --quick: 2]")
    p.add_argument("--label", help="first part of the result files' names [quick or full]")
    p.add_argument("--output", type=Path, default=ROOT / "results", help="folder of the result files [bench/results]")
    p.add_argument("--from", dest="stored", type=Path, metavar="JSON", help="report on a stored run, measure nothing")
    p.add_argument("--compare", type=Path, metavar="JSON", help="compare class by class with a stored run")
    p.add_argument("--fail-if-regression", action="store_true", help="exit 1 if a class fell behind --compare")
    p.add_argument("--tolerance", type=float, default=0.1, help="loss that counts as a regression [0.1]")
    p.add_argument("--goals", action="store_true", help="print the goals, on CPU or on an H200, and which are met")
    m = p.add_argument_group(
        "models",
        "With --mode forward,step [both], --dtype [fp32], --layout [both], --threads, --rounds [9], --label, --quick "
        "(two small networks, batch 1, not compiled). What is measured replaces its like in the result file, and all "
        "of the file is reported, so that a run can be done in pieces. On 2 cores a network, batch, layout and mode "
        "takes 1 to 15 s, and each compiler 20 to 90 s more, unless its cache has the network.",
    )
    m.add_argument("--network", type=some_of(NETWORKS), default=list(NETWORKS), metavar="A,B", help=", ".join(NETWORKS))
    m.add_argument("--batch", type=counts, metavar="1,8", help="images at a time [1,8]")
    m.add_argument("--no-compile", action="store_true", help="leave torch.compile out, with and without our backend")
    m.add_argument("--freezing", action="store_true", help="torch.compile with folded, packed weights too")
    p.add_argument("--update-readme", nargs="?", type=Path, const=ROOT.parent / "README.md", metavar="README")
    return p


def measure_layers(args: argparse.Namespace, console: Console) -> Results:
    """Times everything asked for, with a progress bar."""
    default = QUICK if args.quick else Effort()
    effort = replace(default, rounds=args.rounds or default.rounds, sample_ms=args.sample_ms or default.sample_ms)
    modes = args.mode or (["forward", "backward"] if args.quick else ["forward"])
    threads = (args.threads or [torch.get_num_threads()]) if args.device == "cpu" else [0]
    dtypes = args.dtype or ["fp32", "bf16"]
    asked = (args.suite, modes, dtypes, args.layout, args.quick)
    where = [{"device": args.device, "threads": count, "cold": args.cold} for count in threads]
    todo = [problem for place in where for problem in problems(*asked, **place)]
    roster = Roster(args.compile, threads[-1])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("the machine's ceilings", total=len(todo))
        ceilings(args.device, dtypes, threads)  # leaves the most threads set
        facts = environment(args.device, args.label, OURS) | {"freed memory": args.freed_memory}
        bench = Bench(effort, roster)
        rows = run_all(bench, todo, lambda name: progress.update(task, description=name, advance=1))
        facts["load by others"] = f"{bench.others.share:.0%} of the CPUs"
        if "tiny" in args.suite:
            progress.update(task, description="host time")
            for dtype in dtypes:
                rows += host_rows(dtype, args.device, effort)
    if bench.others.share > BUSY:
        console.print(f"[yellow]Others took {facts['load by others']} meanwhile: measure again when it is quiet.[/]")
    absent = [f"{name}: {reason} ({count} of {len(todo)} problems)" for (name, reason), count in roster.absent.items()]
    return Results(facts, ceilings(args.device, dtypes, threads), rows, absent)


def layers(args: argparse.Namespace, console: Console) -> int:
    if args.stored:
        results = Results.load(args.stored)
        stem = args.stored.with_suffix("")
    else:
        results = measure_layers(args, console)
        stem = args.output / f"{args.label}.{slug(device_name(args.device))}"
        results.save(stem)
    picture = plot(results, stem.with_name(stem.name + ".png"))
    report.print_results(console, results)
    console.print(f"written: {stem}.json, .csv and .png", highlight=False)
    if args.goals:
        on_gpu = results.environment["device"] == "cuda"
        judge, title = (goals_cuda, report.GOALS_CUDA) if on_gpu else (goals, report.GOALS)
        verdicts = judge.verdicts(results)
        report.print_goals(console, verdicts, title)
        report.print_limits(console, verdicts)
        report.print_behind(console, judge.behind(results))
    if args.update_readme:
        update(args.update_readme, results, picture)
    if not args.compare:
        return 0
    found = changes(results.rows, Results.load(args.compare).rows)
    report.print_changes(console, found, args.tolerance)
    worse = regressions(found, args.tolerance)
    for change in worse:
        console.print(f"[red]regression[/]: {change.klass} {change.setting} lost {1 - change.ratio:.0%}")
    return int(bool(worse) and args.fail_if_regression)


def measure_models(args: argparse.Namespace, stem: Path, console: Console) -> models.ModelResults:
    """Setup by setup; the result file is up to date after each."""
    networks = [name for name in args.network if not args.quick or name in models.QUICK]
    modes = [mode for mode in args.mode or models.MODES if mode in models.MODES]
    batches = args.batch or ([1] if args.quick else models.BATCHES)
    where = {"device": args.device, "threads": torch.get_num_threads() if args.device == "cpu" else 0}
    todo = models.setups(networks, batches, args.layout, args.dtype or ["fp32"], modes, **where)
    effort = replace(models.EFFORT, rounds=args.rounds or models.EFFORT.rounds)
    results = models.stored(stem.with_name(stem.name + ".json"), environment(args.device, stem.name, OURS))
    results.environment["freed memory"] = args.freed_memory
    others, results.absent = OtherLoad(), []
    for setup in todo:
        console.print(str(setup), highlight=False, style="dim")
        who = models.contestants(not (args.no_compile or args.quick), args.freezing, setup.mode)
        found = list(models.measure(setup, who, effort, others))
        results.add([row for row in found if not isinstance(row, str)])
        results.absent += [line for line in found if isinstance(line, str)]
        results.environment["load by others"] = f"{others.share:.0%} of the CPUs"
        peak, now = f"{setup.dtype} GFLOP/s", peak_flops(setup.dtype, setup.device, setup.threads)
        results.ceilings[peak] = max(results.ceilings.get(peak, 0.0), round(now / 1e9, 1))
        results.save(stem)
    return results


def whole_models(args: argparse.Namespace, console: Console) -> int:
    """Returns 1 where an answer was wrong."""
    if args.stored:
        results, stem = models.ModelResults.load(args.stored), args.stored.with_suffix("")
    else:
        stem = args.output / (args.label or f"models.{slug(device_name(args.device))}")
        results = measure_models(args, stem, console)
    picture = models_report.plot(results, stem.with_name(stem.name + ".png"))
    models_report.print_models(console, results)
    console.print(f"written: {stem}.json, .csv and .png", highlight=False)
    if args.update_readme:
        text = models_report.markdown(results, link(args.update_readme, picture))
        replace_between(args.update_readme, text, *MODELS)
    return int(any(models.WRONG in line for line in results.absent))


def main(argv: list[str] | None = None) -> int:
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.command != "models":
        args.label = args.label or ("quick" if args.quick else "full")
    if args.device == "cuda" and not torch.cuda.is_available():
        arguments.error("--device cuda: this PyTorch sees no GPU; leave --device out to measure the CPU")
    # What a report needs is checked before minutes of measuring.
    if args.fail_if_regression and not args.compare:
        arguments.error("--fail-if-regression needs --compare JSON, the run to compare with")
    for path in (args.stored, args.compare, args.update_readme):
        if path and not path.is_file():
            arguments.error(f"there is no file {path}")
    if args.update_readme:
        try:
            check_markers(args.update_readme, *(MODELS if args.command == "models" else (BEGIN, END)))
        except ValueError as error:
            arguments.error(str(error))
    if args.threads:
        torch.set_num_threads(max(args.threads))
    args.freed_memory = keep_freed_memory()
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not EXTENSION_LOADED:
        console.print("[yellow]The extension is not loaded: what is measured is the reference in plain PyTorch.[/]")
    if args.command == "models":
        return whole_models(args, console)
    failed = 0 if args.command == "real" else layers(args, console)
    if args.command == "real" or (args.command == "all" and not args.stored):
        failed |= real(console, args.output, args.device)
    return failed


if __name__ == "__main__":
    sys.exit(main())
