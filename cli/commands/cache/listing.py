"""`featcache cache ls | info`: what the cache files are."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import CacheError
from featcache.system.units import age_text, seconds_text, size_text
from featcache.translation.language import gettext as _
from featcache.translation.language import noted
from featcache.translation.sentences import translated
from featcache_cli.console import columns, note, out, print_result, table

if TYPE_CHECKING:
    from featcache.cache.cache import Cache
    from featcache.cache.local import FileFacts
    from featcache.cache.record import Provenance
    from featcache.fingerprint import EncoderDocument, EndpointPart, VectorsPart

LOST = noted("not known: its record is lost, or of an earlier featcache")
CUT = {
    "left": noted("{count:,} truncated to {longest} tokens, on the left"),
    "right": noted("{count:,} truncated to {longest} tokens, on the right"),
    "middle": noted("{count:,} truncated to {longest} tokens, in the middle"),
}


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
    shown = table(*columns("dataset/model, split-fingerprint", ">rows", ">size", ">age", "views"))
    shown.columns[0].min_width = max(len(Path(about.path).name) for about in described) + 2
    for about in described:
        path, rows, content = Path(about.path), _("damaged"), _("see featcache cache info")
        folder = "/".join(path.parts[-4:-2] if about.kind == "states" else path.parts[-3:-1])
        if isinstance(about, ListedStates):
            rows, content = f"{about.rows:,}", _("states before block {cut}", cut=about.cut)
        elif isinstance(about, ListedFeatures):
            rows, content = f"{about.rows:,}", ", ".join(about.views)
        shown.add_row(
            f"{folder}\n  {path.name}", rows, size_text(about.bytes), age_text(about.age_seconds), content
        )
    if len(described) > 1:
        files = _("{count} files", count=len(described))
        shown.add_row(files, "", size_text(sum(about.bytes for about in described)))
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
    size = _("{size}, {age} old", size=size_text(about.bytes), age=age_text(about.age_seconds))
    if not isinstance(about, ListedSealedFile):
        return [(_("file"), about.path), (_("status"), translated(about.status)), (_("size"), size)]
    encoder = about.encoder
    sealed = "sealed (check its bytes: featcache cache verify {begins})"
    first = [
        (_("file"), about.path),
        (_("status"), _(sealed, begins=about.fingerprint[:6])),
        (_("size"), size),
        (_("split"), _("{split}, {rows:,} rows", split=_(about.split), rows=about.rows)),
    ]
    if encoder.vectors is not None and isinstance(about, ListedFeatures):
        return [*first, *_facts_of_vectors(about, encoder.vectors), (_("fingerprint"), about.fingerprint)]
    files = [f"{name} {digest[:12]}" for name, digest in encoder.files.items()]
    server = encoder.endpoint
    return [
        *first,
        (_("texts"), _truncated(about)),
        *(_facts_of_features(about) if isinstance(about, ListedFeatures) else []),
        *(_facts_of_states(about) if isinstance(about, ListedStates) else []),
        (_("weights"), "\n".join(files) or _("none")) if server is None else _endpoint(server),
        (_("fingerprint"), about.fingerprint),
    ]


def _truncated(about: ListedSealedFile) -> str:
    """How many texts were truncated, to what length, and where."""
    encoder = about.encoder
    if encoder.endpoint is not None:
        return _("whole, as far as the server reads them")
    said = CUT[encoder.truncation_side]
    if encoder.long_text == "head-tail":
        said = CUT["middle"]
    return _(said, count=about.truncated, longest=encoder.max_length)


def _facts_of_vectors(about: ListedFeatures, part: VectorsPart) -> list[tuple[str, str]]:
    made, lost = about.made, _("not known: the record is lost")
    said = "{name}, {width:,} numbers each, {storage}"
    return [
        (_("labels"), ", ".join(about.label_names) or _("none, or numbers")),
        (_("vectors"), _(said, name=part.name, width=part.width, storage=about.encoder.dtype.storage)),
        (_("made by"), part.model or _("not said (--describe-model)")),
        (_("read from"), made.vectors or (_("memory") if made.created else lost)),
        (_("dataset"), made.dataset or lost),
        (_("imported"), _("{date} on {host}", date=made.created, host=made.host) if made.created else lost),
    ]


def _endpoint(server: EndpointPart) -> tuple[str, str]:
    """The server that made the vectors of a file."""
    said = _(
        "{model} at {address}, {width:,} numbers a vector",
        model=server.model, address=server.address, width=server.width,
    )  # fmt: skip
    return _("endpoint"), f"{said}, --revision {server.revision}" if server.revision else said


def _facts_of_states(about: ListedStates) -> list[tuple[str, str]]:
    states = "of {tokens:,} tokens before block {cut}, for featcache finetune"
    return [(_("states"), _(states, tokens=about.tokens, cut=about.cut))]


def _facts_of_features(about: ListedFeatures) -> list[tuple[str, str]]:
    made, encoder = about.made, about.encoder
    lost, dtype, model = _("not known: the record is lost"), encoder.dtype, made.model
    if made.model and made.commit:
        model = _("{model} at {commit}", model=made.model, commit=made.commit)
    local = encoder.endpoint is None
    types = "{compute} computed, {storage} stored" if local else "{storage} stored"
    facts = [
        (_("views"), ", ".join(about.views)),
        (_("labels"), ", ".join(about.label_names) or _("none, or numbers")),
        (_("dataset"), made.dataset or lost),
        (_("model"), model or lost),
        (_("prompt"), repr(encoder.prompt) if encoder.prompt else _("none")),
        (_("numbers"), _(types, compute=dtype.compute, storage=dtype.storage)),
        (_("run"), about.computed if local else _("by a server")),
        *([(_("unknown"), _unknown(made.unknown_tokens))] if local else []),
    ]
    if made.created is not None:
        effort = "{date} on {host}, {seconds} for {texts:,} texts encoded"
        about_it = {"date": made.created, "host": made.host, "seconds": seconds_text(made.seconds or 0.0)}
        versions = [f"{name} {number}" for name, number in (made.versions or {}).items()]
        facts.append((_("made"), _(effort, texts=made.encoded or 0, **about_it)))
        facts.append((_("with"), ", ".join(versions)))
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
        return _(LOST)
    padded = f" ({made.packing_note})" if made.packing_note else ""
    fused, ran = ", ".join(made.fused) or _("none"), "{packing}, {dtype} on {device}; faster modules: {fused}"
    return _(ran, packing=made.packing + padded, dtype=made.dtype, device=made.device, fused=fused)


def _unknown(share: float | None) -> str:
    """The share of tokens that the model's vocabulary does not have."""
    if share is None:
        return _(LOST)
    return _("{share:.1%} of the tokens are not in the model's vocabulary", share=share)
