"""Where a finished file goes: a path, or a URL whose unfinished work is kept on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from featcache.errors import SourceError
from featcache.system.downloads import key_of, mirror_root
from featcache.system.durable import TEMPORARY, disk, publish
from featcache.system.stores import Remote, is_remote, opened, shown


@dataclass(frozen=True)
class Target:
    """One file to be written.

    Attributes:
        path: the file itself; of a URL, a name on this machine to work beside.
        remote: None for a path.
    """

    path: Path
    remote: Remote | None = None

    @classmethod
    def of(cls, text: Path | str) -> Target:
        """The target meant by a path or a URL.

        Raises:
            UsageError: a URL of an unknown kind, or whose driver is not installed.
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
        """The target of the same name with `ending` after it."""
        path = self.path.with_name(self.path.name + ending)
        if self.remote is None:
            return Target(path)
        return Target(path, self.remote.renamed(self.remote.name + ending))

    def is_folder(self) -> bool:
        """Whether a folder is in its place; of a store, which has no folders, never."""
        return self.remote is None and self.path.is_dir()

    def exists(self) -> bool:
        """Whether a file of that name is there.

        Raises:
            SourceError: the store cannot be asked.
        """
        return self.path.exists() if self.remote is None else self.remote.info() is not None

    def publish(self, finished: Path, *, replace: bool) -> bool:
        """Give the file `finished` its final name; False where that is taken.

        Afterwards `finished` is gone. Where it goes to a store, only one with a temporary name is: other work
        may have to be brought there once more.

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
        """Remove the file if it is there."""
        if self.remote is None:
            self.path.unlink(missing_ok=True)
        else:
            self.remote.remove()
