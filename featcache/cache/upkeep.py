"""Looking after the cache folder: is every byte what was written, and what may go.

Removal is planned by pure functions over a survey of the folder, then done piece by piece, each under the
writer's lock of the file it belongs to. Only names that featcache gives are ever touched.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.cache import remove_folder
from featcache.cache.catalog import STATES, CacheFile, is_states
from featcache.cache.sealed_file import MAGIC, SealedFile
from featcache.cache.shards import shards_in_use
from featcache.errors import CacheError
from featcache.fingerprint import fingerprint
from featcache.system.durable import TEMPORARY, explained
from featcache.system.lock import discard_lock, is_locked, locked
from featcache.system.units import DAY

CHAIN_ROWS = 1 << 18
STALE = DAY  # seconds untouched after which unfinished work counts as given up
YOUNG = 3600.0  # seconds in which a temporary record may still be somebody's

Report = Callable[[int, int], None]  # bytes done, bytes in all


# -- verify ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a check of one cache file found.

    Attributes:
        bytes: checked; 0 where the file could not be opened.
        damage: one sentence for each thing that is wrong; empty for a good file.
    """

    path: Path
    bytes: int
    damage: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.damage


def verify(
    path: Path, report: Report | None = None, open_file: Callable[[Path], CacheFile] = CacheFile
) -> Verdict:
    """Check every byte of a file of features or token states, and that it holds what its fingerprint says.

    Args:
        report: called first and after each column with the bytes checked and the bytes of the file.
        open_file: opens a cache file, `Cache.file` where a store may have it.

    Returns:
        A verdict; of each damaged column the first damaged block is named, with its rows. Nothing is
        raised for a file that is damaged, unreadable or no cache file.
    """
    try:
        file = SealedFile(path) if is_states(path) else open_file(path)
    except CacheError as error:
        return Verdict(path, 0, (error.what,))
    sealed = file if isinstance(file, SealedFile) else file.sealed
    damage, done = [], 0
    if report:
        report(done, sealed.nbytes)
    for name, check in sealed.checks():
        try:
            done += check()
        except CacheError as error:
            damage.append(error.what)
        except OSError as error:  # the file system gives up on a map of it
            damage.append(f"{path}: {name} cannot be read: {error.strerror or error}")
        if report:
            report(done, sealed.nbytes)
    if not damage:
        damage = _contradictions_of_states(file) if isinstance(file, SealedFile) else _contradictions(file)
    return Verdict(path, sealed.nbytes, tuple(damage))


def _contradictions(file: CacheFile) -> list[str]:
    """What a file with good checksums says of itself that is not so."""
    document = file.document
    found = _misnamed(file.path, file.sealed.meta["document"], file.fingerprint)
    shapes = {name: file.sealed.column(name).shape for name in file.sealed.names if name != "meta"}
    if any(shape[:1] != (file.rows,) for shape in shapes.values()):
        found.append(f"{file.path}: not every column has {file.rows} rows")
    for part, column, chain in (
        ("rows", "row_hash", document.rows.chain),
        ("labels", "labels", document.labels.chain),
    ):
        if _chain(file.sealed.column(column)) != chain:
            found.append(f"{file.path}: its {part} are not those of its fingerprint")
    return found


def _contradictions_of_states(file: SealedFile) -> list[str]:
    """Likewise, of token states."""
    try:
        document, hashes = file.meta["document"], file.column("row_hash")
        found = _misnamed(file.path, document, str(file.meta["fingerprint"]))
        if _chain(hashes) != document["rows"]["chain"] or len(hashes) != document["rows"]["count"]:
            found.append(f"{file.path}: its rows are not those of its fingerprint")
        offsets = np.asarray(file.column("offsets"))
        if len(offsets) != len(hashes) + 1 or offsets[-1] != len(file.column("values")):
            found.append(f"{file.path}: its parts do not fit each other")
    except (KeyError, TypeError, CacheError):
        return [f"{file.path} holds no states"]
    return found


def _misnamed(path: Path, document: Mapping[str, Any], name: str) -> list[str]:
    if fingerprint(document) == name and path.stem.endswith(name[:12]):
        return []
    return [f"{path}: name and fingerprint are not those of its description"]


def _chain(rows: np.ndarray) -> str:
    """SHA-256 of a column's bytes, read some rows at a time."""
    digest = hashlib.sha256()
    for start in range(0, len(rows), CHAIN_ROWS):
        digest.update(np.ascontiguousarray(rows[start : start + CHAIN_ROWS]).data)
    return digest.hexdigest()


# -- gc: what there is ----------------------------------------------------------------------------

_NAME = r".+-[0-9a-f]{12}"
_KINDS = {
    ".h5": "features",
    ".json": "record",
    ".partial": "unfinished",
    ".lock": "lock",
    ".holder": "holder",
}
_OURS = re.compile(
    rf"(?P<tmp>{re.escape(TEMPORARY)}[0-9a-f]{{12}}-)?(?P<stem>{_NAME})"
    r"(?P<shard>\.shard-[0-9]{5,}b?(?=\.h5$))?(?P<end>\.[a-z0-9]+)"
)


@dataclass(frozen=True)
class Part:
    """One file or folder that belongs to a cache file.

    Attributes:
        kind: `features`, `shard` (one that the features consist of), `record`, `unfinished`, `temporary`,
            `lock` or `holder`.
        modified: seconds since the epoch; of a folder, of the newest file in it.
    """

    path: Path
    kind: str
    bytes: int
    modified: float


@dataclass(frozen=True)
class Group:
    """A cache file, there or not, with all that lies around it under its name."""

    target: Path
    parts: tuple[Part, ...]

    def of(self, kind: str) -> list[Part]:
        return [part for part in self.parts if part.kind == kind]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def made(self) -> float:
        """When features were sealed, else when something was last written."""
        parts = self.of("features") or self.parts
        return max(part.modified for part in parts)


@dataclass(frozen=True)
class Removal:
    """Parts to be removed together, and why."""

    target: Path
    parts: tuple[Part, ...]
    why: str

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def survey(cache_dir: Path) -> list[Group]:
    """All that featcache made under `cache_dir`, by the cache file it belongs to, sorted by path.

    Left out is whatever bears another name, and a `.h5` that featcache did not write.
    """
    groups: dict[Path, list[Part]] = {}
    used: dict[Path, set[Path] | None] = {}
    foreign = set()
    for path in itertools.chain(cache_dir.glob("*/*/*"), cache_dir.glob(f"*/*/{STATES}/*")):
        named = _OURS.fullmatch(path.name)
        if named is None or not (named["tmp"] or named["end"] in _KINDS):
            continue
        target = path.with_name(named["stem"] + ".h5")
        if named["shard"] and not named["tmp"]:
            if target not in used:
                used[target] = shards_in_use(target) if target.exists() else set()
            part = _shard(path, used[target])
        else:
            part = _part(path, "temporary" if named["tmp"] else _KINDS[named["end"]])
        if named["shard"] and part is None:
            continue
        if part is None or (part.kind == "features" and not _is_ours(path)):
            foreign.add(target)
        else:
            groups.setdefault(target, []).append(part)
    return [
        Group(target, tuple(sorted(parts, key=lambda part: (part.kind != "features", part.path))))
        for target, parts in sorted(groups.items())
        if target not in foreign
    ]


def _shard(path: Path, used: set[Path] | None) -> Part | None:
    """A shard; one that its cache file does not consist of is unfinished work. A damaged one may need all."""
    return _part(path, "shard" if used is None or path in used else "unfinished") if _is_ours(path) else None


def _part(path: Path, kind: str) -> Part | None:
    """None where a folder stands in a file's place, or where it is just being removed."""
    try:
        about = path.lstat()
        if path.is_dir() and not path.is_symlink():
            inside = [each.lstat() for each in path.rglob("*")]
            newest = max([about.st_mtime, *(each.st_mtime for each in inside)])
            return (
                Part(path, kind, sum(each.st_size for each in inside), newest)
                if kind == "unfinished"
                else None
            )
        return Part(path, kind, about.st_size, about.st_mtime)
    except OSError:
        return None


def _is_ours(path: Path) -> bool:
    if not path.is_file():  # to open a named pipe is to wait for ever
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


# -- gc: what may go ------------------------------------------------------------------------------


def plan_removals(
    groups: Iterable[Group],
    now: float,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    busy: Collection[Path] = (),
) -> list[Removal]:
    """What to remove: litter, then what is too old, then the oldest until the rest fits.

    Litter is what no one will use: temporary files and locks of dead processes, records without
    features, and unfinished work whose file is finished or that was not touched for a day (for
    `older_than`, where that is given). Age counts from when a file was made.

    Args:
        now: seconds since the epoch.
        max_size: bytes that may stay, unfinished work included.
        older_than: seconds.
        busy: targets a writer is at work on; nothing of theirs goes, but their size counts.
    """
    removals, kept, total = [], [], 0
    for group in groups:
        free = group.target not in busy
        litter = _litter(group, now, STALE if older_than is None else older_than) if free else {}
        for why, parts in litter.items():
            removals.append(Removal(group.target, tuple(parts), why))
        rest = Group(group.target, tuple(part for part in group.parts if not _within(part, litter)))
        if not rest.of("features") and not rest.of("unfinished"):
            continue
        if free and older_than is not None and now - rest.made > older_than:
            removals.append(Removal(rest.target, rest.parts, "older than asked"))
            continue
        total += rest.bytes
        if free:
            kept.append(rest)
    for group in sorted(kept, key=lambda group: group.made):
        if max_size is None or total <= max_size:
            break
        removals.append(Removal(group.target, group.parts, "oldest, over the size asked"))
        total -= group.bytes
    return removals


def _litter(group: Group, now: float, stale: float) -> dict[str, list[Part]]:
    """What of a group nobody will use, by the reason; assumes that no writer is at work on it."""
    sealed = bool(group.of("features"))
    found: dict[str, list[Part]] = {}
    for part in group.parts:
        why = ""
        if part.kind == "temporary" and (part.path.suffix == ".h5" or now - part.modified > YOUNG):
            why = "left by a process that was killed"
        elif part.kind == "unfinished" and sealed:
            why = "unfinished, but its file is there"
        elif part.kind == "unfinished" and now - part.modified > stale:
            why = "unfinished and left alone"
        elif part.kind == "record" and not sealed:
            why = "record of a file that is gone"
        elif part.kind == "holder":
            why = "lock of a dead process"
        if why:
            found.setdefault(why, []).append(part)
    left = [part for part in group.parts if not _within(part, found)]
    if left and all(part.kind == "lock" for part in left):
        found.setdefault("lock of a file that is gone", []).extend(left)
    return found


def _within(part: Part, found: Mapping[str, list[Part]]) -> bool:
    return any(part in parts for parts in found.values())


# -- gc: doing it ---------------------------------------------------------------------------------


@dataclass
class Collected:
    """What a collection did, or would do.

    Attributes:
        removed: as planned, where nothing stood in the way.
        kept: targets that were to go but could not, and why.
        busy: targets a writer is at work on.
        bytes_before: of all that featcache made in the folder.
    """

    bytes_before: int
    removed: list[Removal] = field(default_factory=list)
    kept: list[tuple[Path, str]] = field(default_factory=list)
    busy: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(removal.bytes for removal in self.removed)


def collect(
    cache_dir: Path,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    dry_run: bool = False,
) -> Collected:
    """Remove what nobody will use, what is too old, and the oldest until the rest fits.

    Readers that have a file open keep reading. What a writer is at work on stays.

    Args:
        max_size: bytes that may stay; all by default.
        older_than: seconds since a file was made; any age by default.
        dry_run: remove nothing, only say what would be.
    """
    groups = survey(cache_dir)
    made = Collected(sum(group.bytes for group in groups))
    for group in groups:
        try:
            if is_locked(group.target):
                made.busy.append(group.target)
        except CacheError as error:  # a folder that is not ours to write
            made.kept.append((group.target, error.what))
    untouched = {*made.busy, *(target for target, _ in made.kept)}
    plan = plan_removals(groups, time.time(), max_size=max_size, older_than=older_than, busy=untouched)
    for removal in plan:
        try:
            if not dry_run:
                _remove(removal)
            made.removed.append(removal)
        except CacheError as error:
            if (removal.target, error.what) not in made.kept:
                made.kept.append((removal.target, error.what))
    return made


def _remove(removal: Removal) -> None:
    """Remove these parts under the lock of their target, features first: a record alone is litter.

    Raises:
        CacheError: a writer came in between, or the file system refuses.
    """
    with locked(removal.target), explained(removal.target):
        for part in removal.parts:
            if part.kind == "unfinished" and part.path.is_dir():
                remove_folder(part.path)
            elif part.kind not in ("lock", "holder"):
                part.path.unlink(missing_ok=True)
        if not removal.target.exists():
            discard_lock(removal.target)
