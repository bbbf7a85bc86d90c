"""`featcache bench scale`: several workers, a Ray cluster, plans and memory, beside one process."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.system.units import seconds_text
from featcache_cli.console import note, out, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.bench.scale import ScaleBenchmark

NAMES = {"one": "one process", "workers": "--workers", "ray": "--engine ray"}


def add(benches: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "measure several workers and Ray beside one process, and plans beside what happens"
    parser = add_command(
        benches,
        "scale",
        about,
        "featcache bench scale --json\nfeatcache bench scale --engines workers --seconds 60",
    )
    parser.add_argument(
        "--seconds", type=float, default=180.0, metavar="X", help="that one process takes (default: 180)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers, or actors (default: 2)")
    parser.add_argument(
        "--engines", default="workers,ray", metavar="A,B", help="of workers, ray; none (default: both)"
    )
    parser.add_argument(
        "--plan-rows", metavar="N,...", help="rows to check plans at; none (default: 1000,4000,9000)"
    )
    parser.add_argument(
        "--large-rows", type=int, metavar="N",
        help="rows of a sharded cache, 64 wide, whose reading is watched; 0: none (default: 20,000,000)",
    )  # fmt: skip
    add_settings(parser, "backbone", "data", "features", "paths", "")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.seconds < 86400:
        raise UsageError(f"--seconds {args.seconds}: 1 to 86400")
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.scale import LARGE_ROWS, PLANNED, bench_scale

    engines = [] if args.engines == "none" else [name.strip() for name in args.engines.split(",")]
    result = bench_scale(
        settings,
        seconds=args.seconds,
        workers=args.workers,
        engines=engines,
        planned=PLANNED if args.plan_rows is None else _rows(args.plan_rows),
        large_rows=LARGE_ROWS if args.large_rows is None else args.large_rows,
        on_progress=lambda now: note(f"measuring: {now.stage}", quiet=args.quiet),
    )
    if args.json:
        print_json(result.to_json())
    else:
        show(result)
    return 0


def _rows(text: str) -> list[int]:
    try:
        return [] if text == "none" else [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--plan-rows {text}", hint="numbers with commas between, or none") from None


def show(result: ScaleBenchmark) -> None:
    """Seconds of each way, then plans, then memory."""
    console = out()
    if times := result.engines:
        shown = table(
            [("extraction by", "left"), ("took", "right"), ("texts/s", "right"), ("one / this", "right")]
        )
        for name, seconds in times.seconds.items():
            rate, ratio = times.texts_a_second[name], times.seconds["one"] / seconds
            shown.add_row(NAMES[name], seconds_text(seconds), f"{rate:.1f}", f"{ratio:.2f}")
        console.print(shown)
        console.print(f"{times.rows:,} texts", style="dim")
        for pair, same in times.same_bytes.items():
            console.print(f"{pair}: {'the same bytes' if same else 'other bits'}", style="dim")
    if result.plans:
        shown = table([("planned", "left"), ("said", "right"), ("took", "right"), ("off by", "right")])
        for one in result.plans:
            said, took = seconds_text(one.planned), seconds_text(one.measured)
            shown.add_row(f"{one.rows:,} rows", said, took, f"{one.error:.1%}")
        console.print(shown)
    if result.rss_mb is not None:
        console.print(f"{result.large_rows:,} rows in shards: {result.rss_mb:,.0f} MB resident")
