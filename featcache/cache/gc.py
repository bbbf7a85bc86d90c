"""Remove from a cache folder what no process will use, what is too old, and the oldest until the rest fits.

Removals are planned by pure functions from a survey of the folder. Each is then carried out under the
writer's lock of its file. Only names that featcache gives are ever touched.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from featcache.cache.catalog import STATES
from featcache.cache.seal import MAGIC
from featcache.cache.shards import shards_in_use
from featcache.cache.staging import discard_work
from featcache.cache.text_keys import TEXTS
from featcache.errors import CacheError
from featcache.system.durable import TEMPORARY, explained
from featcache.system.lock import discard_lock, is_locked, locked
from featcache.system.units import DAY
from featcache.translation.language import noted
from featcache.translation.sentences import FINISHED

STALE = DAY  # seconds untouched after which unfinished work counts as abandoned
YOUNG = 3600.0  # seconds in which a temporary record may still be in use

_KINDS = {
    ".h5": "features",
    ".json": "record",
    ".partial": "unfinished",
    ".lock": "lock",
    ".lease": "lock",
    ".publishing": "lock",
    ".holder": "holder",
}
_OURS = re.compile(
    rf"(?P<tmp>{re.escape(TEMPORARY)}[0-9a-f]{{12}}-)?(?P<stem>.+-[0-9a-f]{{12}})"
    r"(?P<shard>\.shard-[0-9]{5,}b?(?=\.h5$))?(?P<end>\.[a-z0-9]+)"
)
_KEYS = re.compile(rf"(?P<tmp>{re.escape(TEMPORARY)}[0-9a-f]{{12}}-)?(?P<name>[0-9a-f]{{16}}\.keys)")


# -- what there is --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachePart:
    """One file or folder that belongs to a cache file.

    Attributes:
        kind: `features`, `shard` (one that the features consist of), `keys` (of texts), `record`,
            `unfinished`, `temporary`, `lock` or `holder`.
        modified: seconds since the epoch; of a folder, of the newest file in it.
    """

    path: Path
    kind: str
    bytes: int
    modified: float


@dataclass(frozen=True)
class CacheGroup:
    """A cache file, which may be missing, with everything around it under its name."""

    target: Path
    parts: tuple[CachePart, ...]

    def of(self, kind: str) -> list[CachePart]:
        return [part for part in self.parts if part.kind == kind]

    @property
    def whole(self) -> list[CachePart]:
        """What can be read: features, or keys of texts."""
        return self.of("features") or self.of("keys")

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def made(self) -> float:
        """When features were sealed, else when something was last written."""
        parts = self.whole or self.parts
        return max(part.modified for part in parts)


@dataclass(frozen=True)
class Removal:
    """Parts of one cache file that are removed at once, and the reason."""

    target: Path
    parts: tuple[CachePart, ...]
    why: str

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


def survey(cache_dir: Path) -> list[CacheGroup]:
    """All that featcache made under `cache_dir`, by the cache file it belongs to, sorted by path.

    Files with other names, and `.h5` files that featcache did not write, are left out.
    """
    groups: dict[Path, list[CachePart]] = {}
    used: dict[Path, set[Path] | None] = {}
    foreign = set()
    for path in itertools.chain(cache_dir.glob("*/*/*"), cache_dir.glob(f"*/*/{STATES}/*")):
        named = _OURS.fullmatch(path.name)
        if named is None or not (named["tmp"] or named["end"] in _KINDS):
            continue
        target = path.with_name(named["stem"] + ".h5")
        kind = "temporary" if named["tmp"] else _KINDS[named["end"]]
        if named["shard"] and not named["tmp"]:
            if target not in used:
                used[target] = shards_in_use(target) if target.exists() else set()
            in_use = used[target]  # None: a damaged cache file may need all of them
            kind = "shard" if in_use is None or path in in_use else "unfinished"
        part = _part(path, kind)
        if part is None or (not named["tmp"] and path.suffix == ".h5" and not _is_ours(path)):
            if not named["shard"]:
                foreign.add(target)
        else:
            groups.setdefault(target, []).append(part)
    for path in cache_dir.glob(f"{TEXTS}/*"):
        named = _KEYS.fullmatch(path.name)
        if named and (part := _part(path, "temporary" if named["tmp"] else "keys")):
            groups.setdefault(path.with_name(named["name"]), []).append(part)
    return [
        CacheGroup(target, tuple(sorted(parts, key=lambda part: (part.kind != "features", part.path))))
        for target, parts in sorted(groups.items())
        if target not in foreign
    ]


def _part(path: Path, kind: str) -> CachePart | None:
    """None where a folder is in the place of a file, or where the file is just being removed."""
    try:
        about = path.lstat()
        if not path.is_dir() or path.is_symlink():
            return CachePart(path, kind, about.st_size, about.st_mtime)
        inside = [each.lstat() for each in path.rglob("*")]
        newest = max([about.st_mtime, *(each.st_mtime for each in inside)])
        size = sum(each.st_size for each in inside)
        return CachePart(path, kind, size, newest) if kind == "unfinished" else None
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


# -- what may go ----------------------------------------------------------------------------------


def plan_removals(
    groups: Iterable[CacheGroup],
    now: float,
    *,
    max_size: int | None = None,
    older_than: float | None = None,
    busy: Collection[Path] = (),
) -> list[Removal]:
    """What to remove: litter, then what is too old, then the oldest until the rest fits.

    Litter is what no process will use: temporary files and locks of dead processes, records without
    features, and unfinished work whose file is finished or that was not touched for a day (for
    `older_than`, where that is given). The age of a file counts from when it was made.

    Args:
        now: seconds since the epoch.
        max_size: bytes that may stay, unfinished work included.
        older_than: seconds.
        busy: targets that a writer is at work on: they stay, but their size counts.
    """
    removals, kept, total = [], [], 0
    for group in groups:
        free = group.target not in busy
        litter = _litter(group, now, STALE if older_than is None else older_than) if free else {}
        removals += [Removal(group.target, tuple(parts), why) for why, parts in litter.items()]
        rest = CacheGroup(group.target, tuple(_without(group.parts, litter)))
        if not rest.whole and not rest.of("unfinished"):
            continue
        if free and older_than is not None and now - rest.made > older_than:
            removals.append(Removal(rest.target, rest.parts, noted("older than asked", FINISHED)))
            continue
        total += rest.bytes
        if free:
            kept.append(rest)
    for group in sorted(kept, key=lambda group: group.made):
        if max_size is None or total <= max_size:
            break
        removals.append(Removal(group.target, group.parts, noted("oldest, over the size asked", FINISHED)))
        total -= group.bytes
    return removals


def _litter(group: CacheGroup, now: float, stale: float) -> dict[str, list[CachePart]]:
    """The parts of a group that no process will use, by the reason, if no writer is at work on it."""
    sealed = bool(group.of("features"))
    found: dict[str, list[CachePart]] = {}
    for part in group.parts:
        why, age = "", now - part.modified
        if part.kind == "temporary" and (part.path.suffix == ".h5" or age > YOUNG):
            why = noted("left by a process that was killed", FINISHED)
        elif part.kind == "unfinished" and sealed:
            why = noted("unfinished, but its file is there", FINISHED)
        elif part.kind == "unfinished" and age > stale:
            why = noted("unfinished and left alone", FINISHED)
        elif part.kind == "record" and not sealed:
            why = noted("record of a file that is gone", FINISHED)
        elif part.kind == "holder":
            why = noted("lock of a dead process", FINISHED)
        if why:
            found.setdefault(why, []).append(part)
    left = _without(group.parts, found)
    if left and all(part.kind == "lock" for part in left):
        found[noted("lock of a file that is gone", FINISHED)] = left
    return found


def _without(parts: Iterable[CachePart], found: dict[str, list[CachePart]]) -> list[CachePart]:
    gone = set(itertools.chain.from_iterable(found.values()))
    return [part for part in parts if part not in gone]


# -- doing it -------------------------------------------------------------------------------------


@dataclass
class Collected:
    """What a collection did, or would do.

    Attributes:
        removed: the removals that succeeded.
        kept: targets that could not be removed, with the reason.
        busy: targets that a writer is at work on.
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
    """Remove what no process will use, what is too old, and the oldest until the rest fits.

    Readers that have a file open keep reading. A file that a writer is at work on stays.

    Args:
        max_size: bytes that may stay; all by default.
        older_than: seconds since a file was made; any age by default.
        dry_run: remove nothing, only return what would be removed.
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
    for removal in plan_removals(
        groups, time.time(), max_size=max_size, older_than=older_than, busy=untouched
    ):
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
                discard_work(part.path)
            elif part.kind not in ("lock", "holder"):
                part.path.unlink(missing_ok=True)
        if not removal.target.exists():
            discard_lock(removal.target)
