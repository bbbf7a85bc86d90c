"""`featcache cache gc | export | rm`: remove cache files, or write what is in one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import CacheError
from featcache.system.units import parse_age, parse_size, size_text
from featcache.translation.language import gettext as _
from featcache.translation.language import listed
from featcache.translation.sentences import translated
from featcache_cli.console import note, out, print_error, print_json, print_result
from featcache_cli.options import add_flag
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.cache.gc import Collected


def add_gc(parser: argparse.ArgumentParser) -> None:
    size = "remove the oldest files until the rest fits, e.g. 500MB, 10GB"
    add_flag(parser, "--max-size", size, metavar="SIZE")
    age = "remove files that were made longer ago, e.g. 12h, 30d, 8w"
    add_flag(parser, "--older-than", age, metavar="AGE")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be removed")


def gc(cache_dir: Path, args: argparse.Namespace) -> int:
    from featcache.cache.gc import collect

    size = None if args.max_size is None else parse_size(args.max_size, "--max-size")
    age = None if args.older_than is None else parse_age(args.older_than, "--older-than")
    made = collect(cache_dir, max_size=size, older_than=age, dry_run=args.dry_run)
    document = _collected(made, dry_run=args.dry_run)
    print_result(args, document, lambda: _show_collected(made, dry_run=args.dry_run, quiet=args.quiet))
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
    for removal in made.removed:
        named = [part.path.name for part in removal.parts if part.kind not in ("lock", "shard")]
        count = sum(part.kind == "shard" for part in removal.parts)
        names = listed([*named, *([_("{count} shards", count=count)] if count else [])])
        said = "would remove {names}" if dry_run else "removed {names}"
        console.print(_(said, names=names or removal.parts[0].path.name), soft_wrap=True)
        size, why = size_text(removal.bytes), translated(removal.why)
        console.print(_("  {size}, {why}", size=size, why=why), soft_wrap=True)
    for path in made.busy:
        console.print(_("left {name}: a writer is at work on it", name=path.name), soft_wrap=True)
    for path, why in made.kept:
        refused = _("could not remove {name}: {why}", name=path.name, why=translated(why))
        console.print(refused, style="bold red", soft_wrap=True)
    left = size_text(made.bytes_before - made.bytes)
    freed = "would be freed" if dry_run else "freed"
    note(f"{size_text(made.bytes)} {freed}, {left} left", quiet=quiet)


def add_export(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--view", "which view (default: the only one)")
    add_flag(parser, "--output", "x.npy or x.parquet", metavar="FILE", required=True)
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def export(cache: Cache, path: Path, args: argparse.Namespace) -> int:
    from featcache.cache.export_arrays import export as write

    with Meter(quiet=args.quiet) as meter:
        made = write(
            cache.file(path),
            Path(args.output),
            view=args.view,
            force=args.force,
            on_progress=meter,
        )
    files = [str(each) for each in made.paths]
    document = {"view": made.view, "shape": list(made.shape), "files": files, "bytes": made.bytes}
    print_result(args, document, lambda: out().print("\n".join(files), soft_wrap=True))
    rows, width = made.shape
    numbers = f"{rows:,} rows of {width:,} numbers"
    note(f"{made.view}: {numbers}, {size_text(made.bytes)}", quiet=args.quiet or args.json)
    return 0


def _bytes_of(cache: Cache, path: Path) -> int:
    """Of the features, here or in the store; 0 where they are gone or a link leads nowhere."""
    from featcache.cache.shards import cache_bytes

    try:
        return cache_bytes(path) if path.exists() else cache.facts(path).bytes
    except OSError:
        return 0


def remove_files(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    removed, freed, refused = [], 0, 0
    for path in paths:
        try:
            size = _bytes_of(cache, path)
            cache.remove(path)
        except CacheError as error:  # the others still go
            print_error(error)
            refused = error.exit_code
            continue
        removed.append(str(path))
        freed += size
        note(f"removed {path}", quiet=args.quiet)
    note(f"{len(removed)} files, {size_text(freed)} freed", quiet=args.quiet)
    if args.json:
        print_json({"removed": removed, "bytes": freed})
    return refused
