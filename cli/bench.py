"""`featcache bench`: speed beside the machine's limit and beside peers, measured in one run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from featcache.errors import UsageError
from featcache_cli.console import err, note, out, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.config import Settings


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "speed beside the machine's limit and beside peers, in one run"
    parser = add_command(commands, "bench", about, "featcache bench extract\nfeatcache bench heads")
    benches = parser.add_subparsers(metavar="{extract,heads,store}", required=True)
    extract = add_command(
        benches,
        "extract",
        "measure extraction beside the machine's limit and beside peers",
        "featcache bench extract --rows 192 --max-length 350\n"
        "featcache bench extract --peers sentence_transformers_bf16",
    )
    _add_count(extract, "--rows", 192, "texts of the train split")
    extract.add_argument(
        "--peers", metavar="A,B,...", help="only these peers; 'none' for none (default: all)"
    )
    add_settings(extract, "backbone", "data", "features", "")
    extract.set_defaults(run=run_extract)
    heads = add_command(
        benches, "heads", "measure heads beside a tutorial's loop and scikit-learn", "featcache bench heads"
    )
    for flag, default, what in (
        ("--rows", 9600, "made-up rows"), ("--width", 768, "features of a row"), ("--epochs", 100, "epochs"),
    ):  # fmt: skip
        _add_count(heads, flag, default, what)
    heads.set_defaults(run=run_heads)
    about = "measure what commits, checksums and verification cost"
    store = add_command(benches, "store", about, "featcache bench store --json")
    _add_count(store, "--texts", 1024, "texts of the train split")
    _add_count(store, "--rows", 1_000_000, "rows of the file that is read")
    add_settings(store, "backbone", "data", "features", "")
    store.set_defaults(run=run_store)


def _add_count(parser: argparse.ArgumentParser, flag: str, default: int, what: str) -> None:
    parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{what} (default: {default})")


def _require_counts(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} {getattr(args, name)}: at least 1")


def run_extract(args: argparse.Namespace) -> int:
    _require_counts(args, "rows")
    settings = settings_of(args)
    texts = _texts(settings, args.rows)
    note("loading torch", quiet=args.quiet)
    from featcache.bench_extract import bench_extract

    result = bench_extract(settings, texts, peers=_peers(args.peers), report=_report(args))
    if args.json:
        print_json(result)
    else:
        show_extract(result)
    return 0


def run_heads(args: argparse.Namespace) -> int:
    _require_counts(args, "rows", "width", "epochs")
    if args.rows < 100:
        raise UsageError(f"--rows {args.rows}: at least 100, or both classes may not be there")
    note("loading torch", quiet=args.quiet)
    from featcache.bench_heads import bench_heads

    result = bench_heads(rows=args.rows, width=args.width, epochs=args.epochs, report=_report(args))
    if args.json:
        print_json(result)
    else:
        show_heads(result)
    return 0


def run_store(args: argparse.Namespace) -> int:
    _require_counts(args, "texts", "rows")
    settings = settings_of(args)
    texts = _texts(settings, args.texts)
    note("loading torch", quiet=args.quiet)
    from featcache.bench_store import bench_store

    result = bench_store(settings, texts, rows=args.rows, report=_report(args))
    if args.json:
        print_json(result)
        return 0
    encoded, read = f"{result['texts']:,} texts", f"{result['rows']:,} rows"
    out().print(f"commits and checksums: {result['commit_overhead']:.2%} of encoding {encoded}")
    out().print(f"verification: {result['read_overhead']:.2%} of a first pass over {read}")
    return 0


def _report(args: argparse.Namespace) -> Callable[[str], None]:
    return lambda what: note(f"measuring: {what}", quiet=args.quiet)


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


def show_extract(result: dict[str, Any]) -> None:
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


RATIOS = {
    "tutorial_over_one_head": "one head: faster than the tutorial's loop by",
    "tutorial_x64_over_heads_64": "64 heads: faster than 64 such loops by",
    "heads_64_over_one_head": "64 heads cost as much as one head times",
    "sklearn_over_exact_C0.01": "exact, C = 0.01: faster than scikit-learn's lbfgs by",
    "sklearn_over_exact_C1": "exact, C = 1: faster than scikit-learn's lbfgs by",
    "exact_path_20_over_exact_C1": "a path of 20 penalties costs as much as one fit times",
}


def show_heads(result: dict[str, Any]) -> None:
    """Ratios first, then seconds."""
    console = out()
    shown = table([("ratio", "left"), ("", "right")])
    for name, text in RATIOS.items():
        shown.add_row(text, f"{result['ratios'][name]:.1f}x")
    console.print(shown)
    shown = table([("what", "left"), ("seconds", "right"), ("objective", "right")])
    for name, seconds in result["seconds"].items():
        loss = result["losses"].get(name)
        shown.add_row(name, f"{seconds:.2f}", f"{loss:.6f}" if loss is not None else "")
    console.print(shown)
    shape, about = result["shape"], result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    console.print(
        f"{shape['rows']:,} x {shape['width']} made-up features, {shape['classes']} classes, "
        f"batch {shape['batch_size']}, {shape['epochs']} epochs; {about['cpu']}, {about['threads']} threads; "
        f"{versions}",
        style="dim",
    )
