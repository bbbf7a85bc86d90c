"""`featcache cache ls | info | verify | gc | export | rm`: what lies in the cache."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import CacheError, UsageError
from featcache.system.units import age_text, seconds_text, size_text
from featcache_cli.commands.cache import upkeep as cache_upkeep
from featcache_cli.console import note, out, print_error, print_json, table
from featcache_cli.options import add_command, add_settings, settings_of

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.cache.catalog import CacheFile
    from featcache.cache.record import Provenance

ACTIONS = {
    "ls": ("list the cache files", "featcache cache ls"),
    "info": ("all that is known of cache files", "featcache cache info train-3f2a91c07b44.h5"),
    "verify": (
        "check every byte of cache files, and fresh features against cached ones",
        "featcache cache verify\nfeatcache cache verify 3f2a91 --reencode 32",
    ),
    "gc": (
        "remove what nobody will use, what is too old, and the oldest beyond a size",
        "featcache cache gc --max-size 10GB --older-than 30d --dry-run",
    ),
    "export": (
        "write a view as numpy arrays or a parquet table",
        "featcache cache export 3f2a91 --view last/cls --output train.parquet",
    ),
    "rm": ("remove cache files", "featcache cache rm train-3f2a91c07b44.h5"),
}
NAMES = "paths, file names, or beginnings of fingerprints"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "list, describe, check, export or remove cache files"
    parser = add_command(commands, "cache", about, "featcache cache ls\nfeatcache cache verify")
    actions = parser.add_subparsers(metavar="{" + ",".join(ACTIONS) + "}", required=True)
    for name, (what, example) in ACTIONS.items():
        action = add_command(actions, name, what, example)
        if name in ("info", "verify", "rm"):
            every = "every cache file" + (" (the default)" if name == "verify" else "")
            action.add_argument("files", nargs="*", metavar="FILE", help=NAMES)
            action.add_argument("--all", action="store_true", help=every)
        elif name == "export":
            action.add_argument("file", metavar="FILE", help="path, file name, or beginning of a fingerprint")
        if name in ("verify", "gc", "export"):
            getattr(cache_upkeep, f"add_{name}")(action)
        add_settings(action, "paths")
        action.set_defaults(run=run, action=name)


def run(args: argparse.Namespace) -> int:
    from featcache.cache.cache import Cache
    from featcache.system.stores import is_remote

    named_dir = settings_of(args).paths.cache_dir
    if args.action == "gc" and is_remote(named_dir):
        hint = "its files: featcache cache rm; what is fetched of them keeps to FEATCACHE_MIRROR_SIZE"
        raise UsageError("cache gc looks after folders, not after stores", hint=hint)
    cache = Cache.open(named_dir)
    if cache.folder.exists() and not cache.folder.is_dir():
        raise UsageError(f"--cache-dir {named_dir} is no folder")
    if args.action == "gc":
        return cache_upkeep.gc(cache.folder, args)
    paths = cache.paths()
    if args.action == "export":
        if args.file in {path.name for path in cache.states_paths()}:
            raise UsageError(f"{args.file} holds token states", hint="views of features can be exported")
        return cache_upkeep.export(cache, _find(args.file, paths, elsewhere=True), args)
    paths += cache.states_paths()
    if args.action == "ls":
        return _list(cache, paths, args)
    if args.action == "verify" and not args.files:
        return cache_upkeep.verify(cache, paths, args)
    if not args.files and not args.all:
        hint = "name it as featcache cache ls shows it, or say --all"
        raise UsageError(f"{args.parser.prog}: which file?", hint=hint)
    elsewhere = args.action != "rm"
    named = list(dict.fromkeys(_find(name, paths, elsewhere=elsewhere) for name in args.files))
    does: dict[str, Callable[[Cache, list[Path], argparse.Namespace], int]] = {
        "info": _info, "verify": cache_upkeep.verify, "rm": _remove,
    }  # fmt: skip
    return does[args.action](cache, paths if args.all else named, args)


def _find(name: str, paths: list[Path], *, elsewhere: bool) -> Path:
    """The one file meant by a path, a file name or the beginning of a fingerprint.

    With `elsewhere`, any path will do that is there, in this cache folder or not.
    """
    if not name.strip():
        raise UsageError("an empty name is no cache file")
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


def _describe(cache: Cache, path: Path) -> dict[str, Any]:
    """What `ls` and `info` show of a file; a damaged one is said to be so."""
    from featcache.cache.catalog import is_states

    kind = "states" if is_states(path) else "features"
    about: dict[str, Any] = {"path": str(path), "kind": kind, "bytes": 0, "age_seconds": 0.0}
    try:
        found = cache.facts(path)
        age = max(time.time() - found.modified, 0.0)
        about |= {"path": found.place, "bytes": found.bytes, "age_seconds": age}
        about |= _states(path) if kind == "states" else _features(cache.file(path))
        about["status"] = "sealed"
    except CacheError as error:
        about["status"] = error.what
    except OSError as error:  # just being removed; a link that leads nowhere
        about["status"] = f"cannot read {path}: {error.strerror or error}"
    return about


def _features(file: CacheFile) -> dict[str, Any]:
    return {
        "bytes": file.sealed.nbytes,
        "split": file.split,
        "rows": file.rows,
        "views": list(file.views),
        "fingerprint": file.fingerprint,
        "truncated": file.truncated,
        "label_names": list(file.document.labels.names),
        "encoder": file.document.encoder.to_json(),
        "computed": _computed(file.record.made),
        "made": file.record.made.to_json(),
    }


def _states(path: Path) -> dict[str, Any]:
    from featcache.cache.sealed_file import SealedFile

    file = SealedFile(path)
    try:
        document = file.meta["document"]
        return {
            "split": file.meta["split"],
            "rows": document["rows"]["count"],
            "tokens": int(file.column("offsets")[-1]),
            "cut": document["cut"],
            "fingerprint": file.meta["fingerprint"],
            "truncated": int(file.column("truncated").sum()),
            "encoder": document["encoder"],
        }
    except (KeyError, TypeError) as error:
        raise CacheError(f"{path} holds no states") from error


def _computed(made: Provenance) -> str:
    """How the backbone was run, in a sentence: `packed, bfloat16 on cpu; faster modules: ...`."""
    if made.packing is None or made.dtype is None or made.fused is None:
        return "not known: its record is lost, or of an earlier featcache"
    padded = f" ({made.packing_note})" if made.packing_note else ""
    fused = ", ".join(made.fused) or "none"
    return f"{made.packing}{padded}, {made.dtype} on {made.device}; faster modules: {fused}"


def _list(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:

    described = [_describe(cache, path) for path in paths]
    if args.json:
        print_json({"files": described})
        return 0
    if not described:
        note("the cache is empty; fill it with: featcache extract --all-splits", quiet=args.quiet)
        return 0
    numbers = [("rows", "right"), ("size", "right"), ("age", "right")]
    shown = table([("dataset/model, split-fingerprint", "left"), *numbers, ("views", "left")])
    shown.columns[0].min_width = max(len(Path(about["path"]).name) for about in described) + 2
    for about in described:
        path = Path(about["path"])
        sealed = about["status"] == "sealed"
        shown.add_row(
            "/".join(path.parts[-4:-2] if about["kind"] == "states" else path.parts[-3:-1])
            + "\n  "
            + path.name,
            f"{about['rows']:,}" if sealed else "damaged",
            size_text(about["bytes"]),
            age_text(about["age_seconds"]),
            _held(about) if sealed else "see cache info",
        )
    if len(described) > 1:
        shown.add_row(f"{len(described)} files", "", size_text(sum(about["bytes"] for about in described)))
    out().print(shown)
    return 0


def _held(about: dict[str, Any]) -> str:
    return f"states before block {about['cut']}" if about["kind"] == "states" else ", ".join(about["views"])


def _info(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    described = [_describe(cache, path) for path in paths]
    if args.json:
        print_json({"files": described})
    else:
        for number, about in enumerate(described):
            if number:
                out().print()
            _show_info(about)
    return 0 if all(about["status"] == "sealed" for about in described) else CacheError.exit_code


def _show_info(about: dict[str, Any]) -> None:
    """One file as two columns, the second as wide as the terminal lets it be."""
    from rich.table import Table

    shown = Table.grid(padding=(0, 2))
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column(overflow="fold")
    for name, value in _facts(about):
        shown.add_row(name, value)
    out().print(shown)


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:

    size = f"{size_text(about['bytes'])}, {age_text(about['age_seconds'])} old"
    if about["status"] != "sealed":
        return [("file", about["path"]), ("status", about["status"]), ("size", size)]
    encoder = about["encoder"]
    where = (
        "in the middle" if encoder.get("long_text") == "head-tail" else f"on the {encoder['truncation_side']}"
    )
    files = [f"{name} {digest[:12]}" for name, digest in encoder.get("files", {}).items()]
    return [
        ("file", about["path"]),
        ("status", f"sealed (its bytes: featcache cache verify {about['fingerprint'][:6]})"),
        ("size", size),
        ("split", f"{about['split']}, {about['rows']:,} rows"),
        ("texts", f"{about['truncated']:,} cut at {encoder['max_length']} tokens, {where}"),
        *(_facts_of_states(about) if about["kind"] == "states" else _facts_of_features(about)),
        ("weights", "\n".join(files) or "none"),
        ("fingerprint", about["fingerprint"]),
    ]


def _facts_of_states(about: dict[str, Any]) -> list[tuple[str, str]]:
    return [("states", f"of {about['tokens']:,} tokens before block {about['cut']}, for featcache finetune")]


def _facts_of_features(about: dict[str, Any]) -> list[tuple[str, str]]:
    made, encoder = about["made"], about["encoder"]
    commit = f" at {made['commit']}" if made.get("commit") else ""
    dtype = encoder["dtype"]
    facts = [
        ("views", ", ".join(about["views"])),
        ("labels", ", ".join(about["label_names"]) or "none"),
        ("dataset", str(made.get("dataset", "not known: the record is lost"))),
        ("model", str(made.get("model", "not known: the record is lost")) + commit),
        ("prompt", repr(encoder["prompt"]) if encoder["prompt"] else "none"),
        ("numbers", f"{dtype['compute']} computed, {dtype['storage']} stored"),
        ("run", about["computed"]),
    ]
    if "created" in made:
        facts.append(("made", f"{made['created']} on {made.get('host')}, {_effort(made)}"))
        versions = made.get("versions", {})
        facts.append(("with", ", ".join(f"{name} {number}" for name, number in versions.items())))
    return facts


def _effort(made: dict[str, Any]) -> str:
    """`12.3 s for 9,600 texts`: what the making took."""
    return f"{seconds_text(made.get('seconds', 0.0))} for {made.get('encoded', 0):,} texts encoded"


def _remove(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    from featcache.cache.shards import cache_bytes

    removed, freed, refused = [], 0, 0
    for path in paths:
        try:
            size = cache_bytes(path) if path.exists() else cache.facts(path).bytes
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
