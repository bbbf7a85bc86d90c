"""`featcache cache verify`: every byte of cache files, and fresh features against cached ones."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import CacheError, FeatcacheError
from featcache.system.units import size_text
from featcache.translation.language import gettext as _
from featcache.translation.sentences import translated
from featcache_cli.console import note, out, print_result
from featcache_cli.options import add_flag, add_settings, settings_of
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.extraction.drift import Drift, Reencoder


@dataclass(frozen=True)
class ReencodedView:
    """A `Drift` as JSON has it: numbers that are no numbers are None."""

    view: str
    rows: int
    absolute: float | None
    relative: float | None
    cosine: float | None
    ok: bool


@dataclass(frozen=True)
class ReencodedFile:
    """What encoding rows of a file again has shown, or why it could not be done."""

    ok: bool
    views: tuple[ReencodedView, ...] = ()
    error: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class VerifiedFile:
    """The result for one file; `reencoded` is None where its rows were not encoded again."""

    path: str
    ok: bool
    bytes: int
    damage: tuple[str, ...]
    reencoded: ReencodedFile | None = None


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
    from featcache.system.documents import plain_document

    trust = bool(args.trust_remote_code)
    reencoder = Reencoder(settings_of(args), args.model, trust_any=trust) if args.reencode else None
    found: list[VerifiedFile] = []
    with Meter(quiet=args.quiet) as meter:
        for path in paths:
            verdict, reencoded = check(path, meter, cache.file), None
            if reencoder is not None and verdict.ok and not is_states(path):
                reencoded = _reencoded(cache, path, reencoder, args.reencode, meter)
            ok = verdict.ok and (reencoded is None or reencoded.ok)
            found.append(VerifiedFile(str(path), ok, verdict.bytes, verdict.damage, reencoded))
    ok = all(about.ok for about in found)
    document = {"files": [plain_document(about) for about in found], "ok": ok}
    print_result(args, document, lambda: _show_verified(found, quiet=args.quiet))
    return 0 if ok else CacheError.exit_code


def _reencoded(cache: Cache, path: Path, reencoder: Reencoder, count: int, meter: Meter) -> ReencodedFile:
    try:
        drifts = reencoder.drift(cache.file(path), count, meter)
    except FeatcacheError as error:
        return ReencodedFile(False, error=error.what, hint=error.hint)
    return ReencodedFile(all(drift.ok for drift in drifts), tuple(map(_view, drifts)))


def _view(drift: Drift) -> ReencodedView:
    from featcache.system.documents import tidied

    found = tidied(drift)
    return ReencodedView(found.view, found.rows, found.absolute, found.relative, found.cosine, ok=drift.ok)


def _show_verified(found: list[VerifiedFile], *, quiet: bool) -> None:
    console = out()
    for about in found:
        name = Path(about.path).name
        if about.damage:
            console.print(_("damaged  {name}", name=name), style="bold red", soft_wrap=True)
        else:
            size = size_text(about.bytes)
            console.print(_("ok       {name}  {size}", name=name, size=size), soft_wrap=True)
        for text in about.damage:
            console.print(f"         {translated(text)}", soft_wrap=True)
        if about.reencoded is not None:
            _show_drifts(about.reencoded)
    bad = sum(not about.ok for about in found)
    damaged = any(about.damage for about in found)
    note(f"{len(found)} files checked, {bad or 'none'} of them damaged or changed", quiet=quiet)
    if damaged:
        note("remove what is damaged with featcache cache rm, then extract (or finetune) again", quiet=quiet)


def _show_drifts(about: ReencodedFile) -> None:
    console = out()
    if about.error:
        again = _("         not encoded again: {error}", error=translated(about.error))
        console.print(again, style="bold red", soft_wrap=True)
        for line in (about.hint or "").splitlines():
            console.print(f"         {translated(line)}", soft_wrap=True)
    for drift in about.views:
        absolute, relative, cosine = (
            _("not a number") if value is None else f"{value:.{digits}}"
            for value, digits in ((drift.absolute, "2g"), (drift.relative, "2g"), (drift.cosine, "6f"))
        )
        same = "agrees   {view}: {rows:,} rows, off by {absolute} ({relative} of a row), cosine {cosine}"
        other = "drifted  {view}: {rows:,} rows, off by {absolute} ({relative} of a row), cosine {cosine}"
        found = {"absolute": absolute, "relative": relative, "cosine": cosine}
        text = _(same if drift.ok else other, view=drift.view, rows=drift.rows, **found)
        console.print(text, style=None if drift.ok else "bold red", soft_wrap=True)
