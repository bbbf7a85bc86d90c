"""`featcache cache verify | gc | export`: the actions of `cache` that take more than a look."""

from __future__ import annotations

import argparse
import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import CacheError, FeatcacheError, UsageError
from featcache.system.units import parse_age, parse_size, size_text
from featcache_cli.console import note, out, print_json
from featcache_cli.options import add_settings, settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.cache.upkeep import Collected, Verdict
    from featcache.extraction.drift import Drift, Reencoder


# -- verify ---------------------------------------------------------------------------------------


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reencode",
        type=int,
        metavar="N",
        help="also encode N rows of each file again, from the data source, and compare",
    )
    # What changes a feature is the file's; only where model and texts are to be found may be said.
    add_settings(parser, "backbone", "data", "", without=("dtype",))


def verify(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    """Check files one by one; damage to one keeps no other from being checked."""
    from featcache.cache.catalog import is_states
    from featcache.cache.upkeep import verify as check
    from featcache.extraction.drift import Reencoder

    if args.reencode is not None and args.reencode < 1:
        raise UsageError(f"--reencode {args.reencode}: at least 1")
    reencoder = Reencoder(settings_of(args), args.model) if args.reencode else None
    documents = []
    with Meter(quiet=args.quiet) as meter:
        for path in paths:
            verdict = check(path, partial(meter.step, f"verify {path.stem}"), cache.file)
            about = _document(verdict)
            if reencoder is not None and verdict.ok and not is_states(path):
                about["reencoded"] = _reencoded(cache, path, reencoder, args.reencode, meter)
                about["ok"] = about["reencoded"]["ok"]
            documents.append(about)
    if args.json:
        print_json({"files": documents, "ok": all(about["ok"] for about in documents)})
    else:
        _show_verified(documents, quiet=args.quiet)
    return 0 if all(about["ok"] for about in documents) else CacheError.exit_code


def _document(verdict: Verdict) -> dict[str, Any]:
    return {
        "path": str(verdict.path),
        "ok": verdict.ok,
        "bytes": verdict.bytes,
        "damage": list(verdict.damage),
    }


def _reencoded(cache: Cache, path: Path, reencoder: Reencoder, count: int, meter: Meter) -> dict[str, Any]:
    """What encoding again found, or why it could not be done."""
    try:
        drifts = reencoder.drift(cache.file(path), count, meter.step)
    except FeatcacheError as error:
        return {"ok": False, "error": error.what, "hint": error.hint, "views": []}
    return {
        "ok": all(drift.ok for drift in drifts),
        "error": None,
        "hint": None,
        "views": [_drift(drift) for drift in drifts],
    }


def _drift(drift: Drift) -> dict[str, Any]:
    """As JSON has it: it knows no NaN and no infinity."""
    values = dataclasses.asdict(drift)
    for name in ("absolute", "relative", "cosine"):
        values[name] = values[name] if math.isfinite(values[name]) else None
    return {**values, "ok": drift.ok}


def _show_verified(documents: list[dict[str, Any]], *, quiet: bool) -> None:

    console = out()
    for about in documents:
        name = Path(about["path"]).name
        if about["damage"]:
            console.print(f"damaged  {name}", style="bold red", soft_wrap=True)
        else:
            console.print(f"ok       {name}  {size_text(about['bytes'])}", soft_wrap=True)
        for text in about["damage"]:
            console.print(f"         {text}", soft_wrap=True)
        _show_drifts(about.get("reencoded"))
    bad = sum(not about["ok"] for about in documents)
    damaged = any(about["damage"] for about in documents)
    note(f"{len(documents)} files checked, {bad or 'none'} not as they should be", quiet=quiet)
    if damaged:
        note("remove what is damaged with featcache cache rm, then extract (or finetune) again", quiet=quiet)


def _show_drifts(about: dict[str, Any] | None) -> None:
    if about is None:
        return
    console = out()
    if about["error"]:
        console.print(f"         not encoded again: {about['error']}", style="bold red", soft_wrap=True)
        for line in (about["hint"] or "").splitlines():
            console.print(f"         {line}", soft_wrap=True)
    for drift in about["views"]:
        absolute, relative, cosine = (
            "not a number" if drift[name] is None else f"{drift[name]:.{digits}}"
            for name, digits in (("absolute", "2g"), ("relative", "2g"), ("cosine", "6f"))
        )
        text = f"{drift['rows']:,} rows, off by {absolute} ({relative} of a row), cosine {cosine}"
        how = "drifted " if not drift["ok"] else "agrees  "
        style = None if drift["ok"] else "bold red"
        console.print(f"{how} {drift['view']}: {text}", style=style, soft_wrap=True)


# -- gc -------------------------------------------------------------------------------------------


def add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-size", metavar="SIZE", help="remove the oldest until the rest fits, e.g. 500MB, 10GB"
    )
    parser.add_argument(
        "--older-than", metavar="AGE", help="remove what was made longer ago, e.g. 12h, 30d, 8w"
    )
    parser.add_argument("--dry-run", action="store_true", help="remove nothing, only say what would be")


def gc(cache_dir: Path, args: argparse.Namespace) -> int:
    from featcache.cache.upkeep import collect

    size = None if args.max_size is None else parse_size(args.max_size, "--max-size")
    age = None if args.older_than is None else parse_age(args.older_than, "--older-than")
    made = collect(cache_dir, max_size=size, older_than=age, dry_run=args.dry_run)
    if args.json:
        print_json(_collected(made, dry_run=args.dry_run))
    else:
        _show_collected(made, dry_run=args.dry_run, quiet=args.quiet)
    return CacheError.exit_code if made.kept else 0


def _collected(made: Collected, *, dry_run: bool) -> dict[str, Any]:
    removed = [
        {"path": str(part.path), "kind": part.kind, "bytes": part.bytes, "why": removal.why}
        for removal in made.removed
        for part in removal.parts
    ]
    return {
        "dry_run": dry_run,
        "removed": removed,
        "bytes": made.bytes,
        "bytes_left": made.bytes_before - made.bytes,
        "busy": [str(path) for path in made.busy],
        "kept": [{"path": str(path), "why": why} for path, why in made.kept],
    }


def _show_collected(made: Collected, *, dry_run: bool, quiet: bool) -> None:

    console = out()
    word = "would remove" if dry_run else "removed"
    for removal in made.removed:
        named = [part.path.name for part in removal.parts if part.kind not in ("lock", "shard")]
        count = sum(part.kind == "shard" for part in removal.parts)
        names = ", ".join([*named, *([f"{count} shards"] if count else [])])
        console.print(f"{word} {names or removal.parts[0].path.name}", soft_wrap=True)
        console.print(f"  {size_text(removal.bytes)}, {removal.why}", soft_wrap=True)
    for path in made.busy:
        console.print(f"left {path.name}: a writer is at work on it", soft_wrap=True)
    for path, why in made.kept:
        console.print(f"could not remove {path.name}: {why}", style="bold red", soft_wrap=True)
    left = size_text(made.bytes_before - made.bytes)
    freed = "would be freed" if dry_run else "freed"
    note(f"{size_text(made.bytes)} {freed}, {left} left", quiet=quiet)


# -- export ---------------------------------------------------------------------------------------


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--view", metavar="VIEW", help="which view (default: the only one)")
    parser.add_argument("--output", metavar="FILE", required=True, help="x.npy or x.parquet")
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def export(cache: Cache, path: Path, args: argparse.Namespace) -> int:
    from featcache.cache.export_arrays import export as write

    with Meter(quiet=args.quiet) as meter:
        made = write(
            cache.file(path),
            Path(args.output),
            view=args.view,
            force=args.force,
            report=partial(meter.step, f"export {path.stem}"),
        )
    if args.json:
        files = [str(each) for each in made.paths]
        print_json({"view": made.view, "shape": list(made.shape), "files": files, "bytes": made.bytes})
        return 0
    for each in made.paths:
        out().print(str(each), soft_wrap=True)
    rows, width = made.shape
    note(f"{made.view}: {rows:,} rows of {width:,} numbers, {size_text(made.bytes)}", quiet=args.quiet)
    return 0
