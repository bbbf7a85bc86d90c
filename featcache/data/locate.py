"""Where a source is: files by split, as paths or URLs, a `save_to_disk` folder, or a hub id."""

from __future__ import annotations

import itertools
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from featcache.data.formats.archive import only_file, open_zip
from featcache.data.formats.class_folder import class_folders, entries, folder_hash, is_class_folder
from featcache.data.formats.lines import DataPath, reading
from featcache.data.formats.open import DATA_ENDINGS, is_data_file, kind_of
from featcache.data.formats.parquet import is_saved_dataset
from featcache.errors import SourceError, closest
from featcache.fingerprint import fingerprint
from featcache.settings import DataSettings
from featcache.system.downloads import fetched
from featcache.system.hashes import changed_files, current_hash
from featcache.system.stores import is_remote, opened, shown
from featcache.translation.language import noted

SPLITS = (noted("train"), noted("validation"), noted("test"))
_ALIASES = {
    **{name: name for name in SPLITS},
    **dict.fromkeys(("dev", "val", "valid", "eval"), "validation"),
}
_LOCAL_ENDINGS = (*DATA_ENDINGS, ".gz", ".zip")
HERE = "write it as it is seen from this folder"
MOST_NAMES = 1000  # of a folder, among which one that is like a mistyped one is looked for
_SHARD = re.compile(r"(?P<split>.+?)(-\d{5}-of-\d{5}(-[0-9a-f]+)?)?")


def split_name(name: str) -> str | None:
    """The one of `SPLITS` that `name` means: validation for "dev", None for "foo"."""
    return _ALIASES.get(name.lower())


def used_as(name: str, data: DataSettings) -> str | None:
    """The one of `SPLITS` as which a split of the source is used; None for one that is not."""
    if data.test_split is not None:
        wanted = data.test_split.lower()
        if name.lower() == wanted or (split_name(name) or name) == split_name(wanted):
            return "test"
        return None if split_name(name) == "test" else split_name(name)
    return split_name(name)


class SourceLocation(NamedTuple):
    """Where a source is: files by split, a `save_to_disk` folder, or a hub id."""

    files: Mapping[str, list[DataPath]] = MappingProxyType({})
    folder: Path | None = None
    hub_id: str = ""
    config: str | None = None
    splits: tuple[str, ...] = ()  # as far as known without loading; none for a hub id


def locate(data: DataSettings) -> SourceLocation:
    """Where the source of `data` is; files named by a URL are fetched, no file is read.

    Raises:
        SourceError: a file or folder does not exist, has no file of a split, or cannot be fetched.
        UsageError: a URL is of an unknown kind, or its driver is not installed.
    """
    if data.data_files:
        return _data_files(data.data_files)
    if is_remote(data.dataset):
        here = _here(data.dataset)
        if kind_of(here) == "zip":
            return _zip(here)
        return SourceLocation(files={"train": [here]}, splits=("train",))
    path = Path(data.dataset).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if kind_of(path) == "zip":
            return _zip(path)
        return SourceLocation(files={"train": [_readable(path)]}, splits=("train",))
    name = data.dataset
    local = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    if local or name.lower().endswith(_LOCAL_ENDINGS):
        hint = _name_that_may_be_meant(path) or f"{HERE}, or give a hub id such as lansinuote/ChnSentiCorp"
        raise SourceError(f"no such file or folder: {name}", hint=hint)
    hub_id, _, config = name.partition(":")
    return SourceLocation(hub_id=hub_id, config=config or None)


def source_name(data: DataSettings) -> str:
    """The name of a source for people, and of its folder in the cache."""
    if data.data_files:
        return Path(next(iter(data.data_files.values()))).resolve().parent.name or "files"
    path = Path(data.dataset)
    return path.resolve().name if path.exists() else data.dataset


def _data_files(data_files: Mapping[str, str]) -> SourceLocation:
    files: dict[str, list[DataPath]] = {}
    for key, value in data_files.items():
        split = split_name(key)
        if split is None:
            raise SourceError(f"--data-files: unknown split {key!r}", hint=f"splits are: {', '.join(SPLITS)}")
        if split in files:
            raise SourceError(
                f"--data-files names the {split} split twice",
                hint="one file a split: train=A,validation=B,test=C",
            )
        path = _here(value)
        if not path.exists():
            raise SourceError(
                f"no such file: {value} (--data-files {key}=...)", hint=_name_that_may_be_meant(path) or HERE
            )
        if kind_of(path) == "zip":
            files[split] = [only_file(path, is_data_file)]
        else:
            files[split] = [path if is_class_folder(path) else _readable(path)]
    return SourceLocation(files=files, splits=tuple(files))


def _name_that_may_be_meant(path: Path) -> str | None:
    """A question for an entry of the folder whose name is like that of a path that is not there."""
    try:
        names = [entry.name for entry in itertools.islice(path.parent.iterdir(), MOST_NAMES)]
    except OSError:
        return None
    close = closest(path.name, names)
    return f"did you mean {path.with_name(close)}?" if close else None


def _here(text: str) -> Path:
    """The local file for a path or a URL, which is fetched."""
    if not is_remote(text):
        return Path(text).expanduser()
    name = opened(text, SourceError).name
    if not is_data_file(Path(name)) and kind_of(Path(name)) != "zip":
        raise SourceError(
            f"{shown(text)}: unknown file type",
            hint="name files, not folders, of a store: --data-files train=URL,test=URL; "
            f"they end in one of: {' '.join(DATA_ENDINGS)}",
        )
    return fetched(text)


def _zip(path: Path) -> SourceLocation:
    """What a zip file has: files by split, class folders, or one file."""
    top = open_zip(path)
    files = _files_in(top)
    if not files:
        files = {"train": [only_file(path, is_data_file)]}
    return SourceLocation(files=files, splits=tuple(files))


def _folder(folder: Path) -> SourceLocation:
    if (folder / "dataset_dict.json").is_file():
        try:
            saved = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
            splits = tuple(split_name(name) or name for name in saved)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SourceError(
                f"cannot read the saved dataset {folder}: {error}", hint="save it again: dataset.save_to_disk"
            ) from None
        return SourceLocation(folder=folder, splits=splits)
    if (folder / "state.json").is_file():
        return SourceLocation(folder=folder, splits=("train",))
    files = _files_in(folder)
    if files:
        return SourceLocation(files=files, splits=tuple(files))
    endings = " ".join(DATA_ENDINGS)
    raise SourceError(
        f"no train, validation or test file in folder {folder}, and no sub-folder for each class",
        hint=f"they are called train.*, validation.* (or dev.*) and test.*; endings: {endings}",
    )


def _files_in(folder: DataPath) -> dict[str, list[DataPath]]:
    """Files, or class folders, by split; empty where there are none.

    A clone of a hub dataset keeps its files in data/, and many a zip file has all in one folder.
    """
    inner = class_folders(folder)
    parents = (folder, *(one for one in inner if one.name == "data" or len(inner) == 1))
    for parent in parents:
        if files := _split_files(parent) or _split_folders(parent):
            return files
    return next(({"train": [parent]} for parent in parents if is_class_folder(parent)), {})


def _split_folders(folder: DataPath) -> dict[str, list[DataPath]]:
    """Class folders called train, test and so on; `20news-bydate-train` is one for train."""
    found: dict[str, list[DataPath]] = {}
    for path in class_folders(folder):
        split = split_name(path.name) or split_name(re.split(r"[-_.]", path.name)[-1])
        if split is not None and split not in found and is_class_folder(path):
            found[split] = [path]
    return {split: found[split] for split in SPLITS if split in found}


def _split_files(folder: DataPath) -> dict[str, list[DataPath]]:
    """Files of `folder` by split; several files of one split must be its numbered shards.

    Texts and Excel files count where there is no other file of the split.
    """
    files: dict[str, list[DataPath]] = {}
    for path in entries(folder):
        match = _SHARD.fullmatch(path.name.split(".")[0])
        split = None if match is None else split_name(match["split"])
        if split is not None and path.is_file() and is_data_file(path):
            files.setdefault(split, []).append(path)
    for split, paths in files.items():
        tables = [path for path in paths if kind_of(path) not in ("txt", "xlsx")]
        paths[:] = tables or paths
        if len(paths) > 1 and not all("-of-" in path.name for path in paths):
            names = ", ".join(path.name for path in paths)
            raise SourceError(
                f"several files for the {split} split in {folder}: {names}",
                hint="name one: --data-files train=A,test=B (parts are named as in train-00000-of-00002)",
            )
    return {split: files[split] for split in SPLITS if split in files}


def _readable(path: Path) -> Path:
    if not is_data_file(path) and kind_of(path) != "arrow":
        endings = " ".join(DATA_ENDINGS)
        raise SourceError(f"{path}: unknown file type", hint=f"files end in one of: {endings}")
    return path


def content_hash(path: DataPath) -> str:
    """SHA-256 of a file's bytes, of the whole zip file that it is in, or of all files of a folder.

    See `current_hash`.

    Raises:
        SourceError: it cannot be read.
    """
    with reading(str(path)):
        if isinstance(path, zipfile.Path):
            return current_hash(Path(str(path.root.filename)))
        if path.is_dir():
            return fingerprint(folder_hashes(path)) if is_saved_dataset(path) else folder_hash(path)
        return current_hash(path)


def require_unchanged(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse files that were written or replaced while rows were read from them.

    Args:
        before, now: SHA-256 by name, before the first row was read and afterwards.

    Raises:
        SourceError: names the files that differ.
    """
    if changed := changed_files(before, now):
        raise SourceError(
            f"{changed} changed while the rows were read",
            hint="run the same command again once no program writes to the data",
        )


def file_facts(path: DataPath) -> dict[str, object]:
    """Name, SHA-256 and size of a file, or of the zip file that it is in; a class folder has no size."""
    name = path.at if isinstance(path, zipfile.Path) else path.name
    facts: dict[str, object] = {"name": name, "sha256": content_hash(path)}
    if isinstance(path, zipfile.Path):
        return facts | {"bytes": Path(str(path.root.filename)).stat().st_size}
    return facts if path.is_dir() else facts | {"bytes": path.stat().st_size}


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under `folder`, except for cache files that `datasets` writes there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): content_hash(path)
        for path in files
        if not (path.name.startswith("cache-") and path.suffix == ".arrow")
    }
