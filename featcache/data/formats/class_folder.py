"""A folder with one sub-folder a class and one text a file, such as THUCNews or 20 newsgroups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import cast

from featcache.data.formats.encodings import BROKEN_ERRORS, UTF8, encoding_name, find_encoding, named_codec
from featcache.data.formats.lines import DataPath, ReadLimits, Row, reading
from featcache.errors import SourceError

_LEAST_CLASSES = 2
_MOST_BYTES = 256 << 20  # of a file, which is held in memory; 64 Mi characters have no more


def is_class_folder(folder: DataPath) -> bool:
    """Whether there are two sub-folders or more, and each of them holds files of texts alone."""
    found = class_folders(folder) if folder.is_dir() else []
    return len(found) >= _LEAST_CLASSES and all(_first_file(one) is not None for one in found)


def class_folders(folder: DataPath) -> list[DataPath]:
    """The sub-folders by name."""
    return [one for one in entries(folder) if one.is_dir()]


def entries(folder: DataPath) -> list[DataPath]:
    """What a folder has, by name; without hidden files and what macOS puts into zip files."""
    with reading(str(folder)):
        found: list[DataPath] = list(cast("Iterator[DataPath]", folder.iterdir()))
    shown = (path for path in found if not path.name.startswith((".", "__MACOSX")))
    return sorted(shown, key=lambda path: path.name)


def folder_rows(folder: DataPath, encoding: str | None, limits: ReadLimits) -> tuple[Iterator[Row], str]:
    """The rows, class by class and file by file, in the order of the names; and the codec.

    Files that are UTF-8 are read as that. The others have one encoding, found by a look at them all.

    Raises:
        SourceError: a file cannot be read, or the encoding is not certain.
    """

    def others() -> Iterator[bytes]:
        for _, path in _files(folder):
            content = _content(path)
            if not _is_utf8(content):
                yield content + b"\n" * (1 + len(content) % 2)

    codec = named_codec(encoding) if encoding else find_encoding(others, f"{folder}: some of its files")
    return _rows(folder, codec, limits, anyway=encoding is not None), codec


def folder_hash(folder: DataPath) -> str:
    """SHA-256 of the names and bytes of all files."""
    digest = hashlib.sha256()
    for label, path in _files(folder):
        digest.update(f"{label}/{path.name}\n".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(_content(path)).digest())
    return digest.hexdigest()


def _rows(folder: DataPath, codec: str, limits: ReadLimits, *, anyway: bool) -> Iterator[Row]:
    for number, (label, path) in enumerate(_files(folder), 1):
        content = _content(path)
        named = codec if anyway or not _is_utf8(content) else UTF8
        text, problem = content.decode(named, BROKEN_ERRORS), None
        values: dict[str, object] = {"text": text, "label": label, "file": f"{label}/{path.name}"}
        if len(text) > limits.row_chars:
            problem = f"{path} is longer than {limits.row_chars >> 20} MiB"
        elif "\udcff" in text:
            problem = f"not {encoding_name(named)} at character {text.index(chr(0xDCFF)) + 1} of {path.name}"
        yield Row(number, number, None if problem else values, problem=problem)


def _files(folder: DataPath) -> Iterator[tuple[str, DataPath]]:
    """Label and path of every text."""
    for one in class_folders(folder):
        for path in entries(one):
            if path.is_file():
                yield one.name, path


def _first_file(folder: DataPath) -> DataPath | None:
    return next((path for path in entries(folder) if path.is_file()), None)


def _content(path: DataPath) -> bytes:
    with reading(str(path)), path.open("rb") as file:
        content: bytes = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise SourceError(f"{path} is longer than {_MOST_BYTES >> 20} MiB", hint="is it one text?")
    return content


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
