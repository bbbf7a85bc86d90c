"""`featcache bench label`: how many labels each strategy needs, and how long a person waits."""

from __future__ import annotations

import argparse
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
    from featcache.bench.labelling.simulate import LabellingBenchmark


def add(benches: Commands) -> None:
    about = "simulate labelling: labels that each strategy needs beside random texts"
    example = (
        "featcache bench label --sets r8 --seeds 3\nfeatcache bench label --waits 10000,100000 --seeds 0"
    )
    parser = add_command(benches, "label", about, example, run)
    add_flag(parser, "--sets", SETS_HELP, metavar="A,B,...")
    strategies = "which strategies (default: all of them); random is always measured"
    add_flag(parser, "--strategies", strategies, metavar="A,B,...")
    add_flag(parser, "--shapes", "classes as it is, halved, or both", "as it is,halved", metavar="A,B")
    add_flag(parser, "--seeds", "sessions of each, counted from --seed; 0: none", 10, least=0)
    described = "toml file with a description of each label: mixed is measured with them, too"
    add_flag(parser, "--describe", described, metavar="FILE")
    waits = "also measure the wait for the next text with so many made-up texts"
    add_flag(parser, "--waits", waits, metavar="N,...")
    add_settings(parser, "backbone", "data", "features", "paths", "")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.labelling.latency import measure_waits
    from featcache.bench.labelling.simulate import LabellingPlan, bench_label
    from featcache.labelling.describe import read_descriptions
    from featcache.labelling.strategies import STRATEGIES

    waits = measure_waits(whole_numbers(args.waits, "--waits")) if args.waits else {}
    plan = LabellingPlan(
        strategies=_names(args.strategies) if args.strategies else tuple(STRATEGIES),
        seeds=max(args.seeds, 1),
        shapes=_names(args.shapes),
        descriptions=read_descriptions(Path(args.describe)) if args.describe else None,
    )
    with tempfile.TemporaryDirectory(prefix="featcache-sets-") as folder:
        sets = sets_of(args.sets, settings.data, Path(folder)) if args.seeds else {}
        result = bench_label(
            settings, sets, plan, waits, on_progress=lambda now: note(now.stage, quiet=args.quiet)
        )
    print_result(args, result, lambda: show(result))
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def show(result: LabellingBenchmark) -> None:
    """A line for each strategy on each set, the fewest labels first."""
    console = out()
    shown = table(
        "data", ">texts", ">classes", "strategy", ">labels", ">of seeds", ">of random's", ">covered"
    )
    for row in sorted(result.rows, key=lambda one: (one.data, one.labels)):
        shown.add_row(
            row.data, f"{row.texts:,}", str(row.classes), row.strategy, f"{row.labels:,.0f}",
            f"{row.low:,.0f}-{row.high:,.0f}", f"{row.ratio_to_random:.2f}", f"{row.covered:.1%}",
        )  # fmt: skip
    if result.rows:
        console.print(shown)
        console.print("labels: for 95 % of the macro F1 of all labels, mean over the seeds", style="dim")
        console.print("covered: estimates whose 95 % interval holds the true accuracy", style="dim")
    for texts, seconds in result.seconds.items():
        console.print(f"from an answer to the next text, p95 with {texts} texts: {seconds_text(seconds)}")
