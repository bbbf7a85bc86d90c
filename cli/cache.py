"""`featcache cache ls | info | rm`: what lies in the cache."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from featcache.errors import CacheError, UsageError
from featcache_cli.console import note, out, print_json, seconds_text, table
from featcache_cli.options import add_command, add_settings, settings_of


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "list, describe or remove cache files"
    parser = add_command(commands, "cache", about, "featcache cache ls\nfeatcache cache rm 3f2a91")
    actions = parser.add_subparsers(metavar="{ls,info,rm}", required=True)
    for name, what in (
        ("ls", "list the cache files"),
        ("info", "all that is known of cache files"),
        ("rm", "remove cache files"),
    ):
        example = f"featcache cache {name}" + (" train-3f2a91c07b44.h5" if name != "ls" else "")
        action = add_command(actions, name, what, example)
        if name != "ls":
            names = "paths, file names, or beginnings of fingerprints"
            action.add_argument("files", nargs="*", metavar="FILE", help=names)
            action.add_argument("--all", action="store_true", help="every cache file")
        add_settings(action, "paths")
        action.set_defaults(run=run, action=name)


def run(args: argparse.Namespace) -> int:
    from featcache.store import cache_paths

    paths = cache_paths(Path(settings_of(args).paths.cache_dir))
    if args.action == "ls":
        return _list(paths, args)
    if not args.files and not args.all:
        hint = "name it as featcache cache ls shows it, or say --all"
        raise UsageError(f"{args.parser.prog}: which file?", hint=hint)
    chosen = paths if args.all else list(dict.fromkeys(_find(name, paths) for name in args.files))
    return _info(chosen, args) if args.action == "info" else _remove(chosen, args)


def _find(name: str, paths: list[Path]) -> Path:
    """The one file meant by a path, a file name or the beginning of a fingerprint."""
    if not name.strip():
        raise UsageError("an empty name is no cache file")
    if Path(name) in paths:
        return Path(name)
    found = [path for path in paths if path.name == name or path.stem.rpartition("-")[2].startswith(name)]
    if len(found) != 1:
        known = ", ".join(path.name for path in (found or paths)[:5]) or "none"
        what = "several cache files begin with" if found else "no cache file"
        raise CacheError(f"{what} {name!r}", hint=f"there are: {known}")
    return found[0]


def _describe(path: Path) -> dict[str, Any]:
    """What `ls` and `info` show of a file; a damaged one is said to be so."""
    from featcache.store import CacheFile

    about: dict[str, Any] = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "age_seconds": time.time() - path.stat().st_mtime,
    }
    try:
        file = CacheFile(path)
        about |= {
            "split": file.split,
            "rows": file.rows,
            "views": list(file.views),
            "fingerprint": file.fingerprint,
            "truncated": file.truncated,
            "label_names": file.document["labels"]["names"],
            "encoder": file.document["encoder"],
            "computed": _computed(file.record.get("made", {})),
            "made": file.record.get("made", {}),
            "status": "sealed",
        }
    except CacheError as error:
        about["status"] = error.what
    return about


def _computed(made: dict[str, Any]) -> str:
    """How the backbone was run, in a sentence: `packed, bfloat16 on cpu; faster modules: ...`."""
    if not {"packing", "dtype", "fused"} <= set(made):
        return "not known: its record is lost, or of an earlier featcache"
    padded = f" ({made['packing_note']})" if made["packing_note"] else ""
    fused = ", ".join(made["fused"]) or "none"
    return f"{made['packing']}{padded}, {made['dtype']} on {made['device']}; faster modules: {fused}"


def _list(paths: list[Path], args: argparse.Namespace) -> int:
    from featcache.files import size_text

    described = [_describe(path) for path in paths]
    if args.json:
        print_json({"files": described})
        return 0
    if not described:
        note("the cache is empty; fill it with: featcache extract --all-splits", quiet=args.quiet)
        return 0
    numbers = [("rows", "right"), ("size", "right"), ("age", "right")]
    shown = table([("file", "left"), *numbers, ("views", "left")])
    shown.columns[0].min_width = max(len(Path(about["path"]).name) for about in described) + 2
    for about in described:
        path = Path(about["path"])
        sealed = about["status"] == "sealed"
        shown.add_row(
            "/".join(path.parts[-3:-1]) + "\n  " + path.name,
            f"{about['rows']:,}" if sealed else "damaged",
            size_text(about["bytes"]),
            seconds_text(about["age_seconds"]),
            ", ".join(about["views"]) if sealed else "see featcache cache info",
        )
    out().print(shown)
    return 0


def _info(paths: list[Path], args: argparse.Namespace) -> int:
    described = [_describe(path) for path in paths]
    if args.json:
        print_json({"files": described})
    else:
        for about in described:
            out().print(json.dumps(about, indent=1, ensure_ascii=False), soft_wrap=True)
    return 0 if all(about["status"] == "sealed" for about in described) else CacheError.exit_code


def _remove(paths: list[Path], args: argparse.Namespace) -> int:
    from featcache.files import size_text
    from featcache.store import remove

    freed = sum(path.stat().st_size for path in paths)
    for path in paths:
        remove(path)
        note(f"removed {path}", quiet=args.quiet)
    note(f"{len(paths)} files, {size_text(freed)} freed", quiet=args.quiet)
    if args.json:
        print_json({"removed": [str(path) for path in paths], "bytes": freed})
    return 0
