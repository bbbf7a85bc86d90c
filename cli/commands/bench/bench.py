"""`featcache bench`: speed beside the machine's limit and beside peers, measured in one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.runs.run import choose_run
from featcache.system.documents import json_document
from featcache_cli.commands.bench import scale as bench_scale
from featcache_cli.console import err, note, out, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.bench.extract import ExtractBenchmark
    from featcache.bench.heads import HeadsBenchmark
    from featcache.settings import Settings
    from featcache.system.progress import OnProgress


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "speed beside the machine's limit and beside peers, in one run"
    parser = add_command(commands, "bench", about, "featcache bench extract\nfeatcache bench heads")
    benches = parser.add_subparsers(metavar="{extract,heads,store,finetune,serve,scale}", required=True)
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
    about = "measure training above the cut beside training everything"
    tuning = add_command(
        benches, "finetune", about, "featcache bench finetune --epochs 3 --view last/mean --max-length 256"
    )
    tuning.add_argument(
        "--parts", default="top2,top4,all", metavar="A,B,...", help="of top2, top4, all (default: all three)"
    )
    _add_count(tuning, "--steps", 12, "timed steps of each")
    tuning.add_argument(
        "--epochs",
        type=int,
        default=0,
        metavar="N",
        help="train that long and score on test, too (default: 0)",
    )
    tuning.add_argument("--view", metavar="VIEW", help="last/POOLING (default: the first of --views)")
    add_settings(tuning, "backbone", "data", "features", "paths", "")
    tuning.set_defaults(run=run_finetune)
    about = "measure the server beside a naive one on the same model"
    server = add_command(benches, "serve", about, "featcache bench serve --run linear-last-mean-1")
    server.add_argument(
        "--run", dest="run_name", metavar="RUN", help="a run (default: the best by validation)"
    )
    _add_count(server, "--rows", 256, "texts of the train split to ask for")
    server.add_argument("--seconds", type=float, default=20.0, metavar="X", help="of each load (default: 20)")
    add_settings(server, "data", "paths", "")
    server.set_defaults(run=run_serve)
    bench_scale.add(benches)


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
    from featcache.bench.extract import bench_extract

    result = bench_extract(settings, texts, peers=_peers(args.peers), on_progress=_noted(args))
    if args.json:
        print_json(json_document(result))
    else:
        show_extract(result)
    return 0


def run_heads(args: argparse.Namespace) -> int:
    _require_counts(args, "rows", "width", "epochs")
    if args.rows < 100:
        raise UsageError(f"--rows {args.rows}: at least 100, or both classes may not be there")
    note("loading torch", quiet=args.quiet)
    from featcache.bench.heads import bench_heads

    result = bench_heads(rows=args.rows, width=args.width, epochs=args.epochs, on_progress=_noted(args))
    if args.json:
        print_json(json_document(result))
    else:
        show_heads(result)
    return 0


def run_store(args: argparse.Namespace) -> int:
    _require_counts(args, "texts", "rows")
    settings = settings_of(args)
    texts = _texts(settings, args.texts)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.store import bench_store

    result = bench_store(settings, texts, rows=args.rows, on_progress=_noted(args))
    if args.json:
        print_json(json_document(result))
        return 0
    encoded, read = f"{result.texts:,} texts", f"{result.rows:,} rows"
    out().print(f"commits and checksums: {result.commit_overhead:.2%} of encoding {encoded}")
    out().print(f"verification: {result.read_overhead:.2%} of a first pass over {read}")
    return 0


def run_finetune(args: argparse.Namespace) -> int:
    _require_counts(args, "steps")
    if args.epochs < 0:
        raise UsageError(f"--epochs {args.epochs}: 0 or more")
    if args.view:
        args.views = args.view
    epochs, args.epochs = args.epochs, None  # no setting of heads is meant
    settings = settings_of(args)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.finetune import bench_finetune

    parts = tuple(part.strip() for part in args.parts.split(","))
    result = bench_finetune(settings, parts, steps=args.steps, epochs=epochs, on_progress=_noted(args))
    if args.json:
        print_json(json_document(result))
        return 0
    columns = [("trained", "left"), ("seconds an epoch", "right"), ("share of the GEMM peak", "right")]
    shown = table([*columns, ("test accuracy", "right")])
    for part, seconds in result.epoch_seconds.items():
        share, accuracy = result.share_of_peak.get(part), result.test_accuracy.get(part)
        shown.add_row(
            part, f"{seconds:.1f}", f"{share:.2f}" if share else "", f"{accuracy:.4f}" if accuracy else ""
        )
    out().print(shown)
    return 0


def run_serve(args: argparse.Namespace) -> int:
    _require_counts(args, "rows")
    if not 0 < args.seconds < 3600:
        raise UsageError(f"--seconds {args.seconds}: above 0 and below 3600")
    settings = settings_of(args)
    run = choose_run(Path(settings.paths.reports_dir), args.run_name)
    texts = _texts(settings, args.rows)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.serve import bench_serve

    result = bench_serve(run.folder, texts, seconds=args.seconds, on_progress=_noted(args))
    if args.json:
        print_json(json_document(result))
        return 0
    out().print(
        f"faster than a naive server: {result.ratio_1:.2f}x at 1 client, {result.ratio_32:.2f}x at 32"
    )
    out().print(f"slowest hundredth at 32 clients: {result.p99_ms_32:.0f} ms; errors: {result.errors}")
    return 0


def _noted(args: argparse.Namespace) -> OnProgress:
    return lambda now: note(f"measuring: {now.stage}", quiet=args.quiet)


def _texts(settings: Settings, rows: int) -> list[str]:
    """`rows` texts spread evenly over the train split, so that their lengths are its lengths."""
    import numpy as np

    from featcache.data.split import load_splits

    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    return split.texts(np.unique(np.linspace(0, len(split) - 1, min(rows, len(split))).astype(int)))


def _peers(asked: str | None) -> Sequence[str]:
    from featcache.bench.peers import PEERS

    if asked is None:
        return tuple(PEERS)
    names = [] if asked == "none" else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peers: no peer {name!r}", hint=f"there are: {', '.join(PEERS)}")
    return names


def show_extract(result: ExtractBenchmark) -> None:
    """Ratios first, then absolute figures, then the machine."""
    ours, peak = result.featcache, result.gemm_peak_gflops
    columns = [("featcache is faster than", "left"), ("by", "right"), ("texts/s", "right")]
    shown = table([*columns, ("useful GFLOP/s", "right")])
    for name, ratio in result.ratios.items():
        peer = result.peers[name]
        shown.add_row(name, f"{ratio:.1f}x", f"{peer.texts_per_s:.1f}", f"{peer.useful_gflops:.0f}")
    shown.add_section()
    mine = f"featcache, {ours.dtype}, {ours.packing}"
    shown.add_row(mine, "", f"{ours.texts_per_s:.1f}", f"{ours.useful_gflops:.0f}", style="bold")
    console = out()
    console.print(shown)
    console.print(
        f"share of the GEMM peak ({peak:.0f} GFLOP/s, {ours.dtype}): {ours.share_of_peak:.2f}; "
        f"lowest cosine to float32: {ours.min_cosine_vs_fp32:.6f}"
    )
    about = result.machine
    versions = ", ".join(f"{name} {number}" for name, number in about.versions.items())
    console.print(
        f"{about.device}, {about.threads} threads, {', '.join(about.flags)}; {versions}", style="dim"
    )
    for name, reason in result.unavailable.items():
        err().print(f"left out: {name} ({reason})", style="dim")


RATIOS = {
    "tutorial_over_one_head": "one head: faster than the tutorial's loop by",
    "tutorial_x64_over_heads_64": "64 heads: faster than 64 such loops by",
    "heads_64_over_one_head": "64 heads cost as much as one head times",
    "sklearn_over_exact_C0.01": "exact, C = 0.01: faster than scikit-learn's lbfgs by",
    "sklearn_over_exact_C1": "exact, C = 1: faster than scikit-learn's lbfgs by",
    "exact_path_20_over_exact_C1": "a path of 20 penalties costs as much as one fit times",
}


def show_heads(result: HeadsBenchmark) -> None:
    """Ratios first, then seconds."""
    console = out()
    shown = table([("ratio", "left"), ("", "right")])
    for name, text in RATIOS.items():
        shown.add_row(text, f"{result.ratios[name]:.1f}x")
    console.print(shown)
    shown = table([("what", "left"), ("seconds", "right"), ("objective", "right")])
    for name, seconds in result.seconds.items():
        loss = result.losses.get(name)
        shown.add_row(name, f"{seconds:.2f}", f"{loss:.6f}" if loss is not None else "")
    console.print(shown)
    shape, about = result.shape, result.machine
    versions = ", ".join(f"{name} {number}" for name, number in about.versions.items())
    console.print(
        f"{shape.rows:,} x {shape.width} made-up features, {shape.classes} classes, "
        f"batch {shape.batch_size}, {shape.epochs} epochs; {about.cpu}, {about.threads} threads; "
        f"{versions}",
        style="dim",
    )
