"""`featcache cache ls | info`: what the cache files are."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import CacheError
from featcache.system.units import age_text, seconds_text, size_text
from featcache_cli.console import note, out, print_result, table

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.cache.catalog import CacheFile
    from featcache.cache.record import Provenance


def list_files(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    """`cache ls`."""
    described = [_describe(cache, path) for path in paths]
    print_result(args, {"files": described}, lambda: _show_list(described))
    if not described:
        note(
            "the cache is empty; fill it with: featcache extract --all-splits", quiet=args.quiet or args.json
        )
    return 0


def _show_list(described: list[dict[str, Any]]) -> None:
    if not described:
        return
    shown = table("dataset/model, split-fingerprint", ">rows", ">size", ">age", "views")
    shown.columns[0].min_width = max(len(Path(about["path"]).name) for about in described) + 2
    for about in described:
        path, states = Path(about["path"]), about["kind"] == "states"
        folder = "/".join(path.parts[-4:-2] if states else path.parts[-3:-1])
        rows, content = "damaged", "see cache info"
        if about["status"] == "sealed":
            rows = f"{about['rows']:,}"
            content = f"states before block {about['cut']}" if states else ", ".join(about["views"])
        shown.add_row(
            f"{folder}\n  {path.name}",
            rows,
            size_text(about["bytes"]),
            age_text(about["age_seconds"]),
            content,
        )
    if len(described) > 1:
        shown.add_row(f"{len(described)} files", "", size_text(sum(about["bytes"] for about in described)))
    out().print(shown)


def show_files(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    """`cache info`; the exit code says whether all files are sealed."""
    described = [_describe(cache, path) for path in paths]
    print_result(args, {"files": described}, lambda: _show_info(described))
    return 0 if all(about["status"] == "sealed" for about in described) else CacheError.exit_code


def _show_info(described: list[dict[str, Any]]) -> None:
    """Each file as two columns, the second as wide as the terminal allows."""
    from rich.table import Table

    for number, about in enumerate(described):
        if number:
            out().print()
        shown = Table.grid(padding=(0, 2))
        shown.add_column(no_wrap=True, style="bold")
        shown.add_column(overflow="fold")
        for name, value in _facts(about):
            shown.add_row(name, value)
        out().print(shown)


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    """What `info` prints of a file, by name."""
    size = f"{size_text(about['bytes'])}, {age_text(about['age_seconds'])} old"
    if about["status"] != "sealed":
        return [("file", about["path"]), ("status", about["status"]), ("size", size)]
    encoder = about["encoder"]
    side = encoder["truncation_side"]
    where = "in the middle" if encoder.get("long_text") == "head-tail" else f"on the {side}"
    files = [f"{name} {digest[:12]}" for name, digest in encoder.get("files", {}).items()]
    states = f"of {about.get('tokens', 0):,} tokens before block {about.get('cut')}, for featcache finetune"
    return [
        ("file", about["path"]),
        ("status", f"sealed (check its bytes: featcache cache verify {about['fingerprint'][:6]})"),
        ("size", size),
        ("split", f"{about['split']}, {about['rows']:,} rows"),
        ("texts", f"{about['truncated']:,} truncated to {encoder['max_length']} tokens, {where}"),
        *([("states", states)] if about["kind"] == "states" else _facts_of_features(about)),
        ("weights", "\n".join(files) or "none"),
        ("fingerprint", about["fingerprint"]),
    ]


def _facts_of_features(about: dict[str, Any]) -> list[tuple[str, str]]:
    made, encoder = about["made"], about["encoder"]
    lost, dtype = "not known: the record is lost", encoder["dtype"]
    commit = f" at {made['commit']}" if made.get("commit") else ""
    facts = [
        ("views", ", ".join(about["views"])),
        ("labels", ", ".join(about["label_names"]) or "none"),
        ("dataset", str(made.get("dataset", lost))),
        ("model", str(made.get("model", lost)) + commit),
        ("prompt", repr(encoder["prompt"]) if encoder["prompt"] else "none"),
        ("numbers", f"{dtype['compute']} computed, {dtype['storage']} stored"),
        ("run", about["computed"]),
    ]
    if "created" in made:
        effort = f"{seconds_text(made.get('seconds', 0.0))} for {made.get('encoded', 0):,} texts encoded"
        versions = [f"{name} {number}" for name, number in made.get("versions", {}).items()]
        facts.append(("made", f"{made['created']} on {made.get('host')}, {effort}"))
        facts.append(("with", ", ".join(versions)))
    return facts


def _describe(cache: Cache, path: Path) -> dict[str, Any]:
    """What `ls` and `info` show of a file; the status of a damaged one is its error."""
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
    except OSError as error:  # removed just now, or a broken link
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
        raise CacheError(f"{path} contains no token states") from error


def _computed(made: Provenance) -> str:
    """How the backbone was run: `packed, bfloat16 on cpu; faster modules: ...`."""
    if made.packing is None or made.dtype is None or made.fused is None:
        return "not known: its record is lost, or of an earlier featcache"
    padded = f" ({made.packing_note})" if made.packing_note else ""
    fused = ", ".join(made.fused) or "none"
    return f"{made.packing}{padded}, {made.dtype} on {made.device}; faster modules: {fused}"
