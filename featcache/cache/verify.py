"""Check cache files: every byte is what was written, and the content is what the fingerprint says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache.cache.catalog import CacheFile, is_states
from featcache.cache.sealed_file import SealedFile
from featcache.errors import CacheError
from featcache.fingerprint import CacheDocument, StatesDocument
from featcache.system.progress import OnProgress, Progress, ignore

CHAIN_ROWS = 1 << 18  # rows that are hashed at a time


@dataclass(frozen=True)
class Verdict:
    """The result of a check of one cache file.

    Attributes:
        bytes: of the file; 0 where it could not be opened.
        damage: a sentence for each thing that is wrong; empty for a good file.
    """

    path: Path
    bytes: int
    damage: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.damage


def verify(
    path: Path, on_progress: OnProgress = ignore, open_file: Callable[[Path], CacheFile] = CacheFile
) -> Verdict:
    """Check every byte of a file of features or token states, and that it holds what its fingerprint says.

    Args:
        on_progress: called first and after each column, with bytes and, for `split`, the name of the file.
        open_file: opens a cache file; `Cache.file` for a file that only a store may have.

    Returns:
        A verdict, which names the first damaged chunk of each damaged column with its rows. Nothing is
        raised for a file that is damaged, unreadable or no cache file.
    """
    try:
        file = SealedFile(path) if is_states(path) else open_file(path)
    except CacheError as error:
        return Verdict(path, 0, (error.what,))
    sealed = file if isinstance(file, SealedFile) else file.sealed
    damage, done = [], 0
    on_progress(Progress("verify", path.stem, done, sealed.nbytes))
    for name, check in sealed.checks():
        try:
            done += check()
        except CacheError as error:
            damage.append(error.what)
        except OSError as error:  # the file system gives up on a map of it
            damage.append(f"{path}: {name} cannot be read: {error.strerror or error}")
        on_progress(Progress("verify", path.stem, done, sealed.nbytes))
    if not damage:
        damage = _contradictions_of_states(file) if isinstance(file, SealedFile) else _contradictions(file)
    return Verdict(path, sealed.nbytes, tuple(damage))


def _contradictions(file: CacheFile) -> list[str]:
    """Contradictions in the description of a file with good checksums."""
    document, sealed = file.document, file.sealed
    found = _misnamed(file.path, document, file.fingerprint)
    if _chain(sealed.column("row_hash")) != document.rows.chain:
        found.append(f"{file.path}: its rows are not those of its fingerprint")
    if _chain(sealed.column("labels")) != document.labels.chain:
        found.append(f"{file.path}: its labels are not those of its fingerprint")
    return found


def _contradictions_of_states(file: SealedFile) -> list[str]:
    """As `_contradictions`, for token states."""
    try:
        hashes = file.column("row_hash")
        document = StatesDocument.from_json(file.description.document)
        found = _misnamed(file.path, document, file.description.fingerprint)
        if _chain(hashes) != document.rows.chain or len(hashes) != document.rows.count:
            found.append(f"{file.path}: its rows are not those of its fingerprint")
        offsets = np.asarray(file.column("offsets"))
        if len(offsets) != len(hashes) + 1 or offsets[-1] != len(file.column("values")):
            found.append(f"{file.path}: its parts do not fit each other")
    except (KeyError, ValueError, CacheError) as error:
        return [f"{file.path} holds no states: {error}"]
    return found


def _misnamed(path: Path, document: CacheDocument | StatesDocument, name: str) -> list[str]:
    if document.fingerprint == name and path.stem.endswith(name[:12]):
        return []
    return [f"{path}: name and fingerprint are not those of its description"]


def _chain(rows: np.ndarray) -> str:
    """SHA-256 of a column's bytes, read some rows at a time."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), CHAIN_ROWS):
        digest.update(np.ascontiguousarray(rows[start : start + CHAIN_ROWS]).data)
    return digest.hexdigest()
