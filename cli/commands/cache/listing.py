"""`featcache cache ls | info`: what the cache files are."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import CacheError
from featcache.system.units import age_text, seconds_text, size_text
from featcache_cli.console import note, out, print_result, table

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.cache.local import FileFacts
    from featcache.cache.record import Provenance
    from featcache.fingerprint import EncoderDocument


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """What is known of any cache file; a file that cannot be read is only that.

    Attributes:
        path: its URL if a store has it.
        kind: `features` or `states`.
        status: `sealed`, or what is wrong with it.
    """

    path: str
    kind: str
    bytes: int = 0
    age_seconds: float = 0.0
    status: str


@dataclass(frozen=True, kw_only=True)
class ListedSealedFile(ListedFile):
    """What features and token states have in common."""

    split: str
    rows: int
    fingerprint: str
    truncated: int
    encoder: EncoderDocument


@dataclass(frozen=True, kw_only=True)
class ListedFeatures(ListedSealedFile):
    """A file of features; `computed` is how the backbone was run, `made` what its record says."""

    views: tuple[str, ...]
    label_names: tuple[str, ...]
    computed: str
    made: Provenance


@dataclass(frozen=True, kw_only=True)
class ListedStates(ListedSealedFile):
    """A file of token states before the block `cut`."""

    tokens: int
    cut: int


def list_files(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    """`cache ls`."""
    described = [_describe(cache, path) for path in paths]
    print_result(args, {"files": described}, lambda: _show_list(described))
    if not described:
        note(
            "the cache is empty; fill it with: featcache extract --all-splits", quiet=args.quiet or args.json
        )
    return 0


def _show_list(described: list[ListedFile]) -> None:
    if not described:
        return
    shown = table("dataset/model, split-fingerprint", ">rows", ">size", ">age", "views")
    shown.columns[0].min_width = max(len(Path(about.path).name) for about in described) + 2
    for about in described:
        path, rows, content = Path(about.path), "damaged", "see cache info"
        folder = "/".join(path.parts[-4:-2] if about.kind == "states" else path.parts[-3:-1])
        if isinstance(about, ListedStates):
            rows, content = f"{about.rows:,}", f"states before block {about.cut}"
        elif isinstance(about, ListedFeatures):
            rows, content = f"{about.rows:,}", ", ".join(about.views)
        shown.add_row(
            f"{folder}\n  {path.name}", rows, size_text(about.bytes), age_text(about.age_seconds), content
        )
    if len(described) > 1:
        shown.add_row(f"{len(described)} files", "", size_text(sum(about.bytes for about in described)))
    out().print(shown)


def show_files(cache: Cache, paths: list[Path], args: argparse.Namespace) -> int:
    """`cache info`; the exit code says whether all files are sealed."""
    described = [_describe(cache, path) for path in paths]
    print_result(args, {"files": described}, lambda: _show_info(described))
    return 0 if all(isinstance(about, ListedSealedFile) for about in described) else CacheError.exit_code


def _show_info(described: list[ListedFile]) -> None:
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


def _facts(about: ListedFile) -> list[tuple[str, str]]:
    """What `info` prints of a file, by name."""
    size = f"{size_text(about.bytes)}, {age_text(about.age_seconds)} old"
    if not isinstance(about, ListedSealedFile):
        return [("file", about.path), ("status", about.status), ("size", size)]
    encoder = about.encoder
    where = "in the middle" if encoder.long_text == "head-tail" else f"on the {encoder.truncation_side}"
    files = [f"{name} {digest[:12]}" for name, digest in encoder.files.items()]
    return [
        ("file", about.path),
        ("status", f"sealed (check its bytes: featcache cache verify {about.fingerprint[:6]})"),
        ("size", size),
        ("split", f"{about.split}, {about.rows:,} rows"),
        ("texts", f"{about.truncated:,} truncated to {encoder.max_length} tokens, {where}"),
        *(_facts_of_features(about) if isinstance(about, ListedFeatures) else []),
        *(_facts_of_states(about) if isinstance(about, ListedStates) else []),
        ("weights", "\n".join(files) or "none"),
        ("fingerprint", about.fingerprint),
    ]


def _facts_of_states(about: ListedStates) -> list[tuple[str, str]]:
    return [("states", f"of {about.tokens:,} tokens before block {about.cut}, for featcache finetune")]


def _facts_of_features(about: ListedFeatures) -> list[tuple[str, str]]:
    made, encoder = about.made, about.encoder
    lost, dtype = "not known: the record is lost", encoder.dtype
    commit = f" at {made.commit}" if made.commit else ""
    facts = [
        ("views", ", ".join(about.views)),
        ("labels", ", ".join(about.label_names) or "none, or numbers"),
        ("dataset", made.dataset or lost),
        ("model", (made.model or lost) + commit),
        ("prompt", repr(encoder.prompt) if encoder.prompt else "none"),
        ("numbers", f"{dtype.compute} computed, {dtype.storage} stored"),
        ("run", about.computed),
        ("unknown", _unknown(made.unknown_tokens)),
    ]
    if made.created is not None:
        effort = f"{seconds_text(made.seconds or 0.0)} for {made.encoded or 0:,} texts encoded"
        versions = [f"{name} {number}" for name, number in (made.versions or {}).items()]
        facts.append(("made", f"{made.created} on {made.host}, {effort}"))
        facts.append(("with", ", ".join(versions)))
    return facts


def _describe(cache: Cache, path: Path) -> ListedFile:
    """What `ls` and `info` show of a file; the status of a damaged one is its error."""
    from featcache.cache.catalog import is_states

    kind = "states" if is_states(path) else "features"
    found: FileFacts | None = None
    try:
        found = cache.facts(path)
        return _states(path, found) if kind == "states" else _features(cache, path, found)
    except CacheError as error:
        status = error.what
    except OSError as error:  # removed just now, or a broken link
        status = f"cannot read {path}: {error.strerror or error}"
    if found is None:
        return ListedFile(path=str(path), kind=kind, status=status)
    return ListedFile(path=found.place, kind=kind, bytes=found.bytes, age_seconds=_age(found), status=status)


def _age(found: FileFacts) -> float:
    return max(time.time() - found.modified, 0.0)


def _features(cache: Cache, path: Path, found: FileFacts) -> ListedFeatures:
    file = cache.file(path)
    made = file.record.made
    return ListedFeatures(
        path=found.place,
        kind="features",
        bytes=file.sealed.nbytes,
        age_seconds=_age(found),
        status="sealed",
        split=file.split,
        rows=file.rows,
        fingerprint=file.fingerprint,
        truncated=file.truncated,
        encoder=file.document.encoder,
        views=file.views,
        label_names=file.document.labels.names,
        computed=_computed(made),
        made=made,
    )


def _states(path: Path, found: FileFacts) -> ListedStates:
    from featcache.cache.sealed_file import SealedFile
    from featcache.fingerprint import StatesDocument

    file = SealedFile(path)
    try:
        document = StatesDocument.from_json(file.description.document)
        return ListedStates(
            path=found.place,
            kind="states",
            bytes=found.bytes,
            age_seconds=_age(found),
            status="sealed",
            split=file.description.split,
            rows=document.rows.count,
            fingerprint=file.description.fingerprint,
            truncated=int(file.column("truncated").sum()),
            encoder=document.encoder,
            tokens=int(file.column("offsets")[-1]),
            cut=document.cut,
        )
    except (KeyError, ValueError) as error:
        raise CacheError(
            f"{path} contains no token states: {error}", hint="remove it: featcache cache rm"
        ) from error


def _computed(made: Provenance) -> str:
    """How the backbone was run: `packed, bfloat16 on cpu; faster modules: ...`."""
    if made.packing is None or made.dtype is None or made.fused is None:
        return "not known: its record is lost, or of an earlier featcache"
    padded = f" ({made.packing_note})" if made.packing_note else ""
    fused = ", ".join(made.fused) or "none"
    return f"{made.packing}{padded}, {made.dtype} on {made.device}; faster modules: {fused}"


def _unknown(share: float | None) -> str:
    """The share of tokens that the model's vocabulary does not have."""
    if share is None:
        return "not known: the record is lost, or of an earlier featcache"
    return f"{share:.1%} of the tokens are not in the model's vocabulary"
