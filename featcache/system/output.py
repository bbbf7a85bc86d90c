"""The destination of an output file: a path, or a URL for which this machine holds the unfinished file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.errors import SourceError
from featcache.system.downloads import key_of, mirror_root
from featcache.system.durable import TEMPORARY, disk, publish
from featcache.system.stores import Remote, is_remote, opened, shown


@dataclass(frozen=True)
class Target:
    """One output file.

    Attributes:
        path: the file; for a URL, a local path in whose folder unfinished work is kept.
        remote: the file in a store; None for a path.
    """

    path: Path
    remote: Remote | None = None

    @classmethod
    def of(cls, text: Path | str) -> Target:
        """The target for a path or a URL.

        Raises:
            UsageError: the kind of the URL is unknown, or its driver is not installed.
        """
        if isinstance(text, Path) or not is_remote(text):
            return cls(Path(text))
        remote = opened(text, SourceError)
        return cls(mirror_root() / "outputs" / key_of(text) / remote.name, remote)

    @property
    def place(self) -> Path | str:
        """The path or the URL."""
        return self.remote.url if self.remote else self.path

    def __str__(self) -> str:
        return shown(self.remote.url) if self.remote else str(self.path)

    def beside(self, ending: str) -> Target:
        """The target in the same folder whose name has `ending` appended."""
        path = self.path.with_name(self.path.name + ending)
        if self.remote is None:
            return Target(path)
        return Target(path, self.remote.renamed(self.remote.name + ending))

    def is_folder(self) -> bool:
        """Whether a folder has its name; stores have no folders."""
        return self.remote is None and self.path.is_dir()

    def exists(self) -> bool:
        """Whether the file exists.

        Raises:
            SourceError: the store cannot be reached.
        """
        return self.path.exists() if self.remote is None else self.remote.info() is not None

    def publish(self, finished: Path, *, replace: bool) -> bool:
        """Give the file `finished` its final name; returns False if that is taken.

        `finished` is then gone, except where it was copied to a store and has no temporary name: it may have
        to be copied again.

        Raises:
            CacheError: the file system refuses.
            SourceError: the store refuses or cannot be reached.
        """
        if self.remote is None:
            return publish(finished, self.path, replace=replace)
        try:
            return self.remote.put(finished, replace=replace)
        finally:
            if finished.name.startswith(TEMPORARY):
                disk.unlink(finished)

    def remove(self) -> None:
        """Remove the file if it exists."""
        if self.remote is None:
            self.path.unlink(missing_ok=True)
        else:
            self.remote.remove()
