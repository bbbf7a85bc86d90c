"""Zip files, which are read without being unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from featcache.data.formats.encodings import find_encoding
from featcache.data.formats.lines import reading, require_ratio
from featcache.errors import SourceError

_UTF8_NAME, _ENCRYPTED = 0x800, 0x1  # flags of an entry


def open_zip(path: Path) -> zipfile.Path:
    """The top folder of a zip file.

    Raises:
        SourceError: it cannot be read, is encrypted, names files outside, or unpacks to far more than it is.
    """
    name = str(path)
    with reading(name):
        found = zipfile.ZipFile(path)
        raw = [one.filename.encode("cp437") for one in found.infolist() if not one.flag_bits & _UTF8_NAME]
        if not all(map(bytes.isascii, raw)):  # names as Windows writes them in its own language
            found.close()
            codec = _codec_of_names(raw, name)
            found = zipfile.ZipFile(path, metadata_encoding=codec.removesuffix("-sig"))
    for one in found.infolist():
        parts = PurePosixPath(one.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
            raise SourceError(
                f"{name}: it names a file outside of it: {one.filename!r:.80}",
                hint="pack it again without such names; this one may be an attack",
            )
        if one.flag_bits & _ENCRYPTED:
            raise SourceError(f"{name} is encrypted", hint="unpack it, and give the folder")
    check_unpacked_size(found, name)
    return zipfile.Path(found)


def _codec_of_names(raw: list[bytes], name: str) -> str:
    try:
        return find_encoding(lambda: iter([b"\n".join(raw)]), f"a list of the names in {name}")
    except SourceError as error:
        raise SourceError(error.what, hint="unpack it, and give the folder") from None


def check_unpacked_size(found: zipfile.ZipFile, name: str) -> None:
    """Refuse a file that unpacks to far more than texts do; an entry is never longer than it says."""
    unpacked = sum(one.file_size for one in found.infolist())
    require_ratio(unpacked, sum(one.compress_size for one in found.infolist()), name)


def only_file(path: Path, is_data: Callable[[Path], bool]) -> zipfile.Path:
    """The one data file in a zip file.

    Raises:
        SourceError: there is none, or several; and see `open_zip`.
    """
    top = open_zip(path)
    names = [one for one in top.root.namelist() if is_data(Path(one)) and not hidden(one)]
    if len(names) != 1:
        found = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"
        raise SourceError(
            f"{path}: one file of rows is needed in it; it has {found}",
            hint="unpack it and name the file, or leave one file in it",
        )
    return zipfile.Path(top.root, names[0])


def hidden(name: str) -> bool:
    """Whether an entry is what macOS adds to a zip file, or a hidden file."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
