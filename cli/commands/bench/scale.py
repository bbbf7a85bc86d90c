"""`featcache bench scale`: several workers, a Ray cluster, plans and memory, beside one process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.system.units import DAY, seconds_text
from featcache_cli.console import note, out, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of, whole_numbers

if TYPE_CHECKING:
    from featcache.bench.scale import ScaleBenchmark

NAMES = {"one": "one process", "workers": "--workers", "ray": "--engine ray"}


def add(benches: Commands) -> None:
    about = "measure several workers and Ray beside one process, and plans beside what happens"
    example = "featcache bench scale --json\nfeatcache bench scale --engines workers --seconds 60"
    parser = add_command(benches, "scale", about, example, run)
    add_flag(parser, "--seconds", "that one process takes", 180.0)
    add_flag(parser, "--workers", "workers, or actors", 2)
    add_flag(parser, "--engines", "of workers, ray; none for neither", "workers,ray", metavar="A,B")
    rows = "rows to check plans at; none (default: 1000,4000,9000)"
    add_flag(parser, "--plan-rows", rows, metavar="N,...")
    large = "rows, 64 wide, of a sharded cache whose reading is measured; 0: none (default: 20,000,000)"
    add_flag(parser, "--large-rows", large, kind=int)
    add_settings(parser, "backbone", "data", "features", "paths", "")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.seconds < DAY:
        raise UsageError(f"--seconds {args.seconds}: 1 to {DAY:.0f}")
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.scale import LARGE_ROWS, PLANNED, bench_scale

    engines = [] if args.engines == "none" else [name.strip() for name in args.engines.split(",")]
    planned: Sequence[int] = PLANNED
    if args.plan_rows is not None:
        planned = () if args.plan_rows == "none" else whole_numbers(args.plan_rows, "--plan-rows")
    result = bench_scale(
        settings,
        seconds=args.seconds,
        workers=args.workers,
        engines=engines,
        planned=planned,
        large_rows=LARGE_ROWS if args.large_rows is None else args.large_rows,
        on_progress=lambda now: note(f"measuring: {now.stage}", quiet=args.quiet),
    )
    print_result(args, result.to_json(), lambda: show(result))
    return 0


def show(result: ScaleBenchmark) -> None:
    """Seconds of each way, then plans, then memory."""
    console = out()
    if times := result.engines:
        shown = table("extraction by", ">took", ">texts/s", ">one / this")
        for name, seconds in times.seconds.items():
            rate, ratio = times.texts_a_second[name], times.seconds["one"] / seconds
            shown.add_row(NAMES[name], seconds_text(seconds), f"{rate:.1f}", f"{ratio:.2f}")
        console.print(shown)
        console.print(f"{times.rows:,} texts", style="dim")
        for pair, same in times.same_bytes.items():
            console.print(f"{pair}: {'the same bytes' if same else 'other bits'}", style="dim")
    if result.plans:
        shown = table("planned", ">plan", ">took", ">off by")
        for one in result.plans:
            plan, took = seconds_text(one.planned), seconds_text(one.measured)
            shown.add_row(f"{one.rows:,} rows", plan, took, f"{one.error:.1%}")
        console.print(shown)
    if result.rss_mb is not None:
        console.print(f"{result.large_rows:,} rows in shards: {result.rss_mb:,.0f} MB resident")
