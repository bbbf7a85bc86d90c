"""`featcache cache ls | info | verify | gc | export | rm`: look at the cache, check it, and remove files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import CacheError, UsageError
from featcache_cli.commands.cache import listing, upkeep, verify
from featcache_cli.options import Commands, add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.cache.cache import Cache

ACTIONS = {
    "ls": ("list the cache files", "featcache cache ls"),
    "info": ("all that is known of cache files", "featcache cache info train-3f2a91c07b44.h5"),
    "verify": (
        "check every byte of cache files, and fresh features against cached ones",
        "featcache cache verify\nfeatcache cache verify 3f2a91 --reencode 32",
    ),
    "gc": (
        "remove files that nothing uses, files that are too old, and the oldest ones above a size",
        "featcache cache gc --max-size 10GB --older-than 30d --dry-run",
    ),
    "export": (
        "write a view as numpy arrays or a parquet table",
        "featcache cache export 3f2a91 --view last/cls --output train.parquet",
    ),
    "rm": ("remove cache files", "featcache cache rm train-3f2a91c07b44.h5"),
}
NAMES = "paths, file names, or beginnings of fingerprints"


def add(commands: Commands) -> None:
    about = "list, describe, check, export or remove cache files"
    parser = add_command(commands, "cache", about, "featcache cache ls\nfeatcache cache verify")
    actions = parser.add_subparsers(metavar="{" + ",".join(ACTIONS) + "}", required=True)
    for name, (what, example) in ACTIONS.items():
        action = add_command(actions, name, what, example, run)
        if name in ("info", "verify", "rm"):
            every = "every cache file" + (" (the default)" if name == "verify" else "")
            action.add_argument("files", nargs="*", metavar="FILE", help=NAMES)
            action.add_argument("--all", action="store_true", help=every)
        elif name == "export":
            action.add_argument("file", metavar="FILE", help="path, file name, or beginning of a fingerprint")
        if name in ("verify", "gc", "export"):
            {"verify": verify.add_verify, "gc": upkeep.add_gc, "export": upkeep.add_export}[name](action)
        add_settings(action, "paths")
        action.set_defaults(action=name)


def run(args: argparse.Namespace) -> int:
    from featcache.cache.cache import Cache
    from featcache.system.stores import is_remote

    named_dir = settings_of(args).paths.cache_dir
    if args.action == "gc" and is_remote(named_dir):
        hint = "remove its files with featcache cache rm; FEATCACHE_MIRROR_SIZE limits the copies here"
        raise UsageError("cache gc works on folders, not on stores", hint=hint)
    cache = Cache.open(named_dir)
    if cache.folder.exists() and not cache.folder.is_dir():
        raise UsageError(f"--cache-dir {named_dir} is not a folder")
    if args.action == "gc":
        return upkeep.gc(cache.folder, args)
    paths = cache.paths()
    if args.action == "export":
        if args.file in {path.name for path in cache.states_paths()}:
            raise UsageError(f"{args.file} holds token states", hint="only views of features can be exported")
        return upkeep.export(cache, _find(args.file, paths, elsewhere=True), args)
    paths += cache.states_paths()
    if args.action == "ls":
        return listing.list_files(cache, paths, args)
    if args.action == "verify" and not args.files:
        return verify.verify(cache, paths, args)
    if not args.files and not args.all:
        hint = "name a file that featcache cache ls lists, or give --all"
        raise UsageError(f"{args.parser.prog}: no files are named", hint=hint)
    elsewhere = args.action != "rm"
    named = list(dict.fromkeys(_find(name, paths, elsewhere=elsewhere) for name in args.files))
    does: dict[str, Callable[[Cache, list[Path], argparse.Namespace], int]] = {
        "info": listing.show_files, "verify": verify.verify, "rm": upkeep.remove_files,
    }  # fmt: skip
    return does[args.action](cache, paths if args.all else named, args)


def _find(name: str, paths: list[Path], *, elsewhere: bool) -> Path:
    """The one file meant by a path, a file name or the beginning of a fingerprint.

    Args:
        elsewhere: accept any cache file that exists, in this cache folder or not.
    """
    if not name.strip():
        raise UsageError("an empty name is not a cache file")
    same = [path for path in paths if path == Path(name) or path.absolute() == Path(name).absolute()]
    if same:
        return same[0]
    found = [path for path in paths if path.name == name or path.stem.rpartition("-")[2].startswith(name)]
    if not found and elsewhere and Path(name).suffix == ".h5" and Path(name).exists():
        return Path(name)
    if len(found) != 1:
        known = ", ".join(path.name for path in (found or paths)[:5]) or "none"
        what = "several cache files begin with" if found else "no cache file"
        raise CacheError(f"{what} {name!r}", hint=f"there are: {known}")
    return found[0]
