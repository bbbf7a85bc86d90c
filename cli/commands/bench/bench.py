"""`featcache bench`: measure speed beside the machine's limit and beside peers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.runs.run import choose_run
from featcache.system.units import HOUR
from featcache_cli.commands.bench import few, imports, job, label, quality, scale
from featcache_cli.console import err, note, out, print_result, table
from featcache_cli.options import (
    Commands,
    add_command,
    add_flag,
    add_settings,
    settings_of,
    whole_numbers,
)

if TYPE_CHECKING:
    from featcache.bench.extract import ExtractBenchmark
    from featcache.bench.finetune import FinetuneBenchmark
    from featcache.bench.heads.measure import HeadsBenchmark
    from featcache.bench.timing import Machine
    from featcache.settings import Settings
    from featcache.system.progress import OnProgress


def add(commands: Commands) -> None:
    about = "measure speed beside the machine's limit and beside peers"
    parser = add_command(commands, "bench", about, "featcache bench extract\nfeatcache bench heads")
    names = "extract, heads, store, finetune, serve, scale, quality, few, job, label, import"
    benches = parser.add_subparsers(metavar="BENCH", help=names, required=True)
    own = (_add_extract, _add_heads, _add_store, _add_finetune, _add_serve)
    for add_bench in (*own, scale.add, quality.add, few.add, job.add, label.add, imports.add):
        add_bench(benches)


def _add_extract(benches: Commands) -> None:
    about = "measure extraction beside the machine's limit and beside peers"
    example = "featcache bench extract --rows 192 --max-length 350\n"
    example += "featcache bench extract --peers sentence_transformers_bf16"
    parser = add_command(benches, "extract", about, example, run_extract)
    add_flag(parser, "--rows", "texts of the train split", 192, least=1)
    names = "only these peers; 'none' for none (default: those usual here)"
    add_flag(parser, "--peers", names, metavar="A,B,...")
    python = "the Python of an environment with the peers (default: this one)"
    add_flag(parser, "--peer-python", python, metavar="FILE")
    add_flag(parser, "--beside", "also measure beside N busy processes", 0, least=0)
    share = "also the share of time outside the model for texts of N tokens: 20,50,128,350"
    add_flag(parser, "--lengths", share, metavar="N,...")
    add_settings(parser, "backbone", "data", "features", "paths", "")


def _add_heads(benches: Commands) -> None:
    about = "measure heads beside a tutorial's loop and scikit-learn"
    parser = add_command(benches, "heads", about, "featcache bench heads", run_heads)
    add_flag(parser, "--rows", "made-up rows; enough that each class has some", 9600, least=100)
    add_flag(parser, "--width", "features of a row", 768, least=1)
    add_flag(parser, "--epochs", "epochs", 100, least=1)
    add_flag(parser, "--device", "cuda or cuda:N: measure heads there, too, beside the CPU")


def _add_store(benches: Commands) -> None:
    about = "measure what commits, checksums and verification cost"
    parser = add_command(benches, "store", about, "featcache bench store --json", run_store)
    add_flag(parser, "--texts", "texts of the train split", 1024, least=1)
    add_flag(parser, "--rows", "rows of the file that is read", 1_000_000, least=1)
    add_settings(parser, "backbone", "data", "features", "")


def _add_finetune(benches: Commands) -> None:
    about = "measure training the highest blocks beside training everything"
    example = "featcache bench finetune --epochs 3 --view last/mean --max-length 256"
    parser = add_command(benches, "finetune", about, example, run_finetune)
    add_flag(parser, "--parts", "of top2, top4, all", "top2,top4,all", metavar="A,B,...")
    add_flag(parser, "--steps", "timed steps of each", 12, least=1)
    add_flag(parser, "--epochs", "also train for N epochs and score on test", 0, least=0)
    add_flag(parser, "--view", "last/POOLING (default: the first of --views)")
    add_settings(parser, "backbone", "data", "features", "paths", "")


def _add_serve(benches: Commands) -> None:
    about = "measure the server beside a naive one on the same model"
    parser = add_command(benches, "serve", about, "featcache bench serve --run linear-last-mean-1", run_serve)
    add_flag(parser, "--run", "a run (default: the best by validation)", dest="run_name", metavar="RUN")
    add_flag(parser, "--rows", "texts of the train split to ask for", 256, least=1)
    add_flag(parser, "--seconds", "of each load", 20.0)
    add_settings(parser, "data", "paths", "")


def run_extract(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    texts = _texts(settings, args.rows)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.extract import bench_extract

    result = bench_extract(
        settings, texts, peers=_peers(args.peers), peer_python=args.peer_python or sys.executable,
        beside=args.beside, lengths=whole_numbers(args.lengths, "--lengths") if args.lengths else (),
        on_progress=_noted(args),
    )  # fmt: skip
    print_result(args, result, lambda: show_extract(result))
    return 0


def run_heads(args: argparse.Namespace) -> int:
    note("loading torch", quiet=args.quiet)
    from featcache.bench.heads.measure import bench_heads

    result = bench_heads(
        rows=args.rows, width=args.width, epochs=args.epochs, device=args.device, on_progress=_noted(args)
    )
    print_result(args, result, lambda: show_heads(result))
    return 0


def run_store(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    texts = _texts(settings, args.texts)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.store import bench_store

    result = bench_store(settings, texts, rows=args.rows, on_progress=_noted(args))
    encoded, read = f"{result.texts:,} texts", f"{result.rows:,} rows"
    lines = (
        f"commits and checksums: {result.commit_overhead:.2%} of encoding {encoded}",
        f"verification: {result.read_overhead:.2%} of a first pass over {read}",
    )
    print_result(args, result, lambda: out().print("\n".join(lines)))
    return 0


def run_finetune(args: argparse.Namespace) -> int:
    settings = settings_of(args, {"views": args.view})
    note("loading torch", quiet=args.quiet)
    from featcache.bench.finetune import bench_finetune

    parts = tuple(part.strip() for part in args.parts.split(","))
    result = bench_finetune(settings, parts, steps=args.steps, epochs=args.epochs, on_progress=_noted(args))
    print_result(args, result, lambda: show_finetune(result))
    return 0


def run_serve(args: argparse.Namespace) -> int:
    if not 0 < args.seconds < HOUR:
        raise UsageError(f"--seconds {args.seconds}: above 0 and below {HOUR:.0f}")
    settings = settings_of(args)
    run = choose_run(Path(settings.paths.reports_dir), args.run_name)
    texts = _texts(settings, args.rows)
    note("loading torch", quiet=args.quiet)
    from featcache.bench.serve import bench_serve

    result = bench_serve(run.folder, texts, seconds=args.seconds, on_progress=_noted(args))
    ratios = f"{result.ratio_1:.2f}x at 1 client, {result.ratio_32:.2f}x at 32"
    lines = (
        f"faster than a naive server: {ratios}",
        f"slowest hundredth at 32 clients: {result.p99_ms_32:.0f} ms; errors: {result.errors}",
    )
    print_result(args, result, lambda: out().print("\n".join(lines)))
    return 0


def _noted(args: argparse.Namespace) -> OnProgress:
    return lambda now: note(f"measuring: {now.stage}", quiet=args.quiet)


def _texts(settings: Settings, rows: int) -> list[str]:
    """`rows` texts spread evenly over the train split, so that their lengths are its lengths."""
    import numpy as np

    from featcache.data.split import load_splits

    split = load_splits(settings.data, ["train"], seed=settings.seed)["train"]
    return split.texts(np.unique(np.linspace(0, len(split) - 1, min(rows, len(split))).astype(int)))


def _peers(asked: str | None) -> Sequence[str] | None:
    from featcache.bench.peers.encoding import PEERS

    if asked is None:
        return None
    names = [] if asked == "none" else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peers: no peer {name!r}", hint=f"there are: {', '.join(PEERS)}")
    return names


def show_extract(result: ExtractBenchmark) -> None:
    """Ratios first, then absolute figures, then the machine."""
    ours, peak = result.featcache, result.gemm_peak_gflops
    shown = table("featcache is faster than", ">by", ">texts/s", ">useful GFLOP/s", ">cosine")
    for name, ratio in sorted(result.ratios.items(), key=lambda item: -item[1]):
        peer = result.peers[name]
        cosine = "" if peer.min_cosine_vs_fp32 is None else f"{peer.min_cosine_vs_fp32:.4f}"
        shown.add_row(name, f"{ratio:.2f}x", f"{peer.texts_per_s:.1f}", f"{peer.useful_gflops:.0f}", cosine)
    shown.add_section()
    mine = f"featcache, {ours.dtype}, {ours.packing}"
    shown.add_row(
        mine, "", f"{ours.texts_per_s:.1f}", f"{ours.useful_gflops:.0f}", f"{ours.min_cosine_vs_fp32:.4f}",
        style="bold",
    )  # fmt: skip
    console = out()
    console.print(shown)
    console.print(
        f"share of the GEMM peak ({peak:.0f} GFLOP/s, {ours.dtype}): {ours.share_of_peak:.2f}; "
        "cosine: the lowest with float32"
    )
    if result.lengths:
        shown = table(">tokens a text", ">texts/s", ">time outside the model", ">tokenising")
        for one in result.lengths:
            shares = f"{one.outside_model:.1%}", f"{one.tokenizing:.1%}"
            shown.add_row(f"{one.tokens:.1f}", f"{one.texts_per_s:.1f}", *shares)
        console.print(shown)
        console.print("tokenising: alone, in a thread ahead of the model", style="dim")
    if others := result.beside:
        speed = f"{others.texts_per_s:.1f} texts/s, {others.slower_by:.1f} times slower than alone"
        console.print(f"beside {others.processes} busy processes: {speed}")
    about = result.machine
    flags = ", ".join(about.flags)
    console.print(f"{about.device}, {about.threads} threads, {flags}; {_versions(about)}", style="dim")
    if result.peer_versions:
        console.print(f"peers: {_named(result.peer_versions)}", style="dim")
    for name, reason in result.unavailable.items():
        err().print(f"left out: {name} ({reason})", style="dim")


RATIOS = {
    "tutorial_over_one_head": "one head: faster than the tutorial's loop by",
    "tutorial_x64_over_heads_64": "64 heads: faster than 64 such loops by",
    "heads_64_over_one_head": "64 heads cost as much as one head times",
    "sklearn_over_exact_C0.01": "exact, C = 0.01: faster than scikit-learn's lbfgs by",
    "sklearn_over_exact_C1": "exact, C = 1: faster than scikit-learn's lbfgs by",
    "exact_path_20_over_exact_C1": "a path of 20 penalties costs as much as one fit times",
    "sklearn_path_20_over_chosen_penalty": "choosing among 20 penalties: faster than scikit-learn's path by",
}


def show_heads(result: HeadsBenchmark) -> None:
    """Ratios first, then seconds."""
    console = out()
    shown = table("ratio", ">")
    for name, text in RATIOS.items():
        shown.add_row(text, f"{result.ratios[name]:.1f}x")
    console.print(shown)
    shown = table("what", ">seconds", ">objective")
    for name, seconds in result.seconds.items():
        loss = result.losses.get(name)
        shown.add_row(name, f"{seconds:.2f}", f"{loss:.6f}" if loss is not None else "")
    console.print(shown)
    if (there := result.on_device) is not None:
        shown = table("head", ">CPU, s", f">{there.device}, s", ">faster by", ">logits apart")
        for one in there.heads:
            faster = f"{one.cpu_seconds / one.device_seconds:.1f}x"
            shown.add_row(
                one.head, f"{one.cpu_seconds:.2f}", f"{one.device_seconds:.2f}", faster, f"{one.apart:.1e}"
            )
        console.print(shown)
    shape, about = result.shape, result.machine
    console.print(
        f"{shape.rows:,} x {shape.width} made-up features, {shape.classes} classes, "
        f"batch {shape.batch_size}, {shape.epochs} epochs; {about.cpu}, {about.threads} threads; "
        f"{_versions(about)}",
        style="dim",
    )


def show_finetune(result: FinetuneBenchmark) -> None:
    """Seconds, tokens a second, share of the peak and accuracy of each trained part."""
    shown = table("trained", ">seconds an epoch", ">tokens/s", ">share of the GEMM peak", ">test accuracy")
    for part, seconds in result.epoch_seconds.items():
        rate, share = result.tokens_per_second.get(part), result.share_of_peak.get(part)
        accuracy = result.test_accuracy.get(part)
        shown.add_row(
            part,
            f"{seconds:.1f}",
            f"{rate:,.0f}" if rate else "",
            f"{share:.2f}" if share else "",
            f"{accuracy:.4f}" if accuracy else "",
        )
    out().print(shown)


def _versions(machine: Machine) -> str:
    return _named(machine.versions)


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())
