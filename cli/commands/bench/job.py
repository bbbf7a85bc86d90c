"""`featcache bench job`: the whole job beside a tutorial's loop and other tools."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from featcache.system.units import seconds_text, size_text
from featcache_cli.console import note, out, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.bench.job import JobBenchmark


def add(benches: Commands) -> None:
    about = "measure the whole job, from csv files to a compared head, beside other tools"
    example = "featcache bench job --rows 1000 --peer-python peers/bin/python"
    parser = add_command(benches, "job", about, example, run)
    add_flag(parser, "--rows", "train rows; a quarter of them is measured, too", 1000, least=40)
    names = "of tutorial, sentence-transformers, setfit; none for none (default: all)"
    add_flag(parser, "--peers", names, metavar="A,B,...")
    python = "the Python of an environment with the peers (default: this one)"
    add_flag(parser, "--peer-python", python, metavar="FILE")
    add_flag(parser, "--peer-steps", "training steps of SetFit that are measured", 20, least=1)
    add_settings(parser, "backbone", "data", "features", "head", "")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    from featcache.bench.job import PEERS, bench_job

    asked = None if args.peers == "none" else args.peers or ",".join(PEERS)
    result = bench_job(
        settings,
        rows=args.rows,
        peers=[name.strip() for name in asked.split(",")] if asked else [],
        peer_python=args.peer_python or sys.executable,
        peer_steps=args.peer_steps,
        on_progress=lambda now: note(f"measuring: {now.stage}", quiet=args.quiet),
    )
    print_result(args, result, lambda: show(result))
    return 0


def show(result: JobBenchmark) -> None:
    """A line for each contender and number of rows."""
    console = out()
    shown = table("contender", ">train rows", ">seconds", ">peak memory", "computed")
    before = ""
    for cost in result.costs:
        if before and cost.contender != before:
            shown.add_section()
        before = cost.contender
        memory = "" if cost.peak_bytes is None else size_text(cost.peak_bytes)
        computed = cost.computed or "no, measured"
        shown.add_row(cost.contender, f"{cost.rows:,}", seconds_text(cost.seconds), memory, computed)
    console.print(shown)
    console.print("seconds: of whole processes, from their start to their end", style="dim")
    for name, reason in result.unavailable.items():
        console.print(f"left out: {name} ({reason})", style="dim")
