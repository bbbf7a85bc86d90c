"""`featcache bench import`: an import of vectors beside a copy of their file."""

from __future__ import annotations

import argparse

from featcache.system.units import size_text
from featcache_cli.console import note, out, print_result
from featcache_cli.options import Commands, add_command, add_flag, add_settings, settings_of


def add(benches: Commands) -> None:
    about = "measure an import of vectors beside a copy of their file"
    parser = add_command(benches, "import", about, "featcache bench import --json", run)
    add_flag(parser, "--rows", "made-up vectors", 1_000_000, least=2)
    add_flag(parser, "--width", "numbers in each", 768, least=1)
    add_flag(parser, "--dtype", "of the numbers", "float32", choices=("float16", "float32"))
    add_settings(parser, "paths")


def run(args: argparse.Namespace) -> int:
    from featcache.bench.imports import bench_import

    result = bench_import(
        settings_of(args), rows=args.rows, width=args.width, dtype=args.dtype,
        on_progress=lambda now: note(f"measuring: {now.stage}", quiet=args.quiet),
    )  # fmt: skip
    took = result.seconds
    lines = (
        f"an import takes {result.ratio:.2f} times as long as a copy of the {size_text(result.bytes)}",
        f"copy {took['copy']:.2f} s, import {took['import']:.2f} s, the same again {took['again']:.2f} s",
    )
    print_result(args, result, lambda: out().print("\n".join(lines)))
    return 0
