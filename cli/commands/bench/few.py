"""`featcache bench few`: accuracies and seconds with a few rows of each class, beside SetFit."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.system.units import seconds_text
from featcache_cli.commands.bench.quality import SETS_HELP, sets_of
from featcache_cli.console import note, out, print_result, table
from featcache_cli.options import (
    Commands,
    add_command,
    add_flag,
    add_settings,
    settings_of,
    whole_numbers,
)

if TYPE_CHECKING:
    from featcache.bench.few import FewBenchmark, FewRow


def add(benches: Commands) -> None:
    about = "measure accuracies and seconds with few labels beside SetFit"
    example = "featcache bench few --sets r8 --rows-per-class 8,16 --seeds 3"
    parser = add_command(benches, "few", about, example, run)
    add_flag(parser, "--sets", SETS_HELP, metavar="A,B,...")
    add_flag(parser, "--rows-per-class", "rows of each class", "8,16,64", metavar="N,...")
    add_flag(parser, "--seeds", "draws of the rows, counted from --seed", 5, least=1)
    add_flag(parser, "--methods", "which methods", "auto,contrastive,setfit", metavar="A,B,...")
    add_flag(parser, "--test-rows", "so many test rows, drawn once (default: all)", kind=int, least=1)
    python = "the Python of an environment with setfit (default: this one)"
    add_flag(parser, "--peer-python", python, metavar="FILE")
    add_flag(parser, "--peer-steps", "training steps of SetFit (default: its own number)", kind=int, least=1)
    add_settings(parser, "backbone", "data", "features", "head", "paths", "")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.few import FewPlan, bench_few

    plan = FewPlan(
        sizes=tuple(whole_numbers(args.rows_per_class, "--rows-per-class")),
        seeds=args.seeds,
        methods=tuple(part.strip() for part in args.methods.split(",")),
        test_rows=args.test_rows,
        peer_python=args.peer_python or sys.executable,
        peer_steps=args.peer_steps or -1,
    )
    with tempfile.TemporaryDirectory(prefix="featcache-sets-") as folder:
        sets = sets_of(args.sets, settings.data, Path(folder))
        result = bench_few(settings, sets, plan, on_progress=lambda now: note(now.stage, quiet=args.quiet))
    print_result(args, result, lambda: show(result))
    return 0


def show(result: FewBenchmark) -> None:
    """A line for each method and number of rows a class: means over the draws."""
    console = out()
    found: dict[tuple[str, int, str], list[FewRow]] = {}
    for row in result.rows:
        found.setdefault((row.data, row.rows_per_class, row.method), []).append(row)
    shown = table("data", ">rows a class", "method", ">draws", ">accuracy", ">sd", ">seconds")
    for (data, size, method), rows in found.items():
        accuracies = [100 * row.accuracy for row in rows]
        spread = f"{statistics.stdev(accuracies):.1f}" if len(rows) > 1 else "-"
        seconds = seconds_text(statistics.mean(row.seconds for row in rows))
        shown.add_row(
            data, str(size), method, str(len(rows)), f"{statistics.mean(accuracies):.1f}", spread, seconds
        )
    console.print(shown)
    tested = ", ".join(f"{count:,} of {name}" for name, count in result.test_rows.items())
    console.print(f"accuracy: mean over the draws, on test rows: {tested}", style="dim")
    console.print("seconds: of learning, from the texts of the drawn rows on; models are loaded", style="dim")
    for method, reason in result.left_out.items():
        console.print(f"left out: {method} ({reason})", style="dim")
