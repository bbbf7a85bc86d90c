"""`featcache cache verify`: every byte of cache files, and fresh features against cached ones."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import CacheError, FeatcacheError
from featcache.system.units import size_text
from featcache_cli.console import note, out, print_result
from featcache_cli.options import add_flag, add_settings, settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.extraction.drift import Reencoder


def add_verify(parser: argparse.ArgumentParser) -> None:
    rows = "also encode N rows of each file again, from the data source, and compare"
    add_flag(parser, "--reencode", rows, kind=int, least=1)
    # What changes a feature is written in the file; flags only tell where model and texts are.
    add_settings(parser, "backbone", "data", "", without=("dtype",))


def verify(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    """Check files one by one, all of them even if some are damaged."""
    from featcache.cache.catalog import is_states
    from featcache.cache.verify import verify as check
    from featcache.extraction.drift import Reencoder

    trust = bool(args.trust_remote_code)
    reencoder = Reencoder(settings_of(args), args.model, trust_any=trust) if args.reencode else None
    documents: list[dict[str, Any]] = []
    with Meter(quiet=args.quiet) as meter:
        for path in paths:
            verdict = check(path, meter, cache.file)
            about: dict[str, Any] = {
                "path": str(path), "ok": verdict.ok, "bytes": verdict.bytes, "damage": verdict.damage,
            }  # fmt: skip
            if reencoder is not None and verdict.ok and not is_states(path):
                about["reencoded"] = _reencoded(cache, path, reencoder, args.reencode, meter)
                about["ok"] = about["reencoded"]["ok"]
            documents.append(about)
    ok = all(about["ok"] for about in documents)
    print_result(args, {"files": documents, "ok": ok}, lambda: _show_verified(documents, quiet=args.quiet))
    return 0 if ok else CacheError.exit_code


def _reencoded(cache: Cache, path: Path, reencoder: Reencoder, count: int, meter: Meter) -> dict[str, Any]:
    """What encoding again has shown, or why it could not be done."""
    from featcache.system.documents import tidied

    try:
        drifts = reencoder.drift(cache.file(path), count, meter)
    except FeatcacheError as error:
        return {"ok": False, "error": error.what, "hint": error.hint, "views": []}
    return {
        "ok": all(drift.ok for drift in drifts),
        "error": None,
        "hint": None,
        "views": [{**asdict(tidied(drift)), "ok": drift.ok} for drift in drifts],  # without NaN
    }


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
    note(f"{len(documents)} files checked, {bad or 'none'} of them damaged or changed", quiet=quiet)
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
