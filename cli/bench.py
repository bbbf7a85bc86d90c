"""`featcache bench`: speed beside the machine's limit and beside peers, measured in one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache_cli.console import err, note, out, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.config import Settings


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        commands,
        "bench",
        "measure extraction beside the machine's limit and beside peers, in one run",
        "featcache bench extract --rows 192 --max-length 350\n"
        "featcache bench extract --peers sentence_transformers_bf16",
    )
    parser.add_argument("what", choices=("extract",), metavar="{extract}")
    parser.add_argument(
        "--rows", type=int, default=192, metavar="N", help="texts of the train split (default: 192)"
    )
    parser.add_argument("--peers", metavar="A,B,...", help="only these peers; 'none' for none (default: all)")
    add_settings(parser, "backbone", "data", "features", "")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.rows < 1:
        raise UsageError(f"--rows {args.rows}: at least 1")
    settings = settings_of(args)
    texts = _texts(settings, args.rows)
    note("loading torch", quiet=args.quiet)
    from featcache.bench import bench_extract

    result = bench_extract(
        settings,
        texts,
        peers=_peers(args.peers),
        report=lambda what: note(f"measuring: {what}", quiet=args.quiet),
    )
    if args.json:
        print_json(result)
    else:
        show(result)
    return 0


def _texts(settings: Settings, rows: int) -> list[str]:
    """`rows` texts spread evenly over the train split, so that their lengths are its lengths."""
    import numpy as np

    from featcache.sources import load_splits

    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    return split.texts(np.unique(np.linspace(0, len(split) - 1, min(rows, len(split))).astype(int)))


def _peers(asked: str | None) -> Sequence[str]:
    from featcache.peers import PEERS

    if asked is None:
        return tuple(PEERS)
    names = [] if asked == "none" else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peers: no peer {name!r}", hint=f"there are: {', '.join(PEERS)}")
    return names


def show(result: dict[str, Any]) -> None:
    """Ratios first, then absolute figures, then the machine."""
    ours, peak = result["featcache"], result["gemm_peak_gflops"]
    columns = [("featcache is faster than", "left"), ("by", "right"), ("texts/s", "right")]
    shown = table([*columns, ("useful GFLOP/s", "right")])
    for name, ratio in result["ratios"].items():
        peer = result["peers"][name]
        shown.add_row(name, f"{ratio:.1f}x", f"{peer['texts_per_s']:.1f}", f"{peer['useful_gflops']:.0f}")
    shown.add_section()
    mine = f"featcache, {ours['dtype']}, {ours['packing']}"
    shown.add_row(mine, "", f"{ours['texts_per_s']:.1f}", f"{ours['useful_gflops']:.0f}", style="bold")
    console = out()
    console.print(shown)
    console.print(
        f"share of the GEMM peak ({peak:.0f} GFLOP/s, {ours['dtype']}): {ours['share_of_peak']:.2f}; "
        f"lowest cosine to float32: {ours['min_cosine_vs_fp32']:.6f}"
    )
    about = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    console.print(
        f"{about['device']}, {about['threads']} threads, {', '.join(about['flags'])}; {versions}", style="dim"
    )
    for name, reason in result["unavailable"].items():
        err().print(f"left out: {name} ({reason})", style="dim")
