"""Files in object stores and on other machines, by URL, through fsspec.

A file that is written appears under its name completely or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import posixpath
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from featcache.errors import CacheError, FeatcacheError, SourceError, UsageError, closest
from featcache.system.durable import TEMPORARY
from featcache.system.hub.errors import hub_error
from featcache.system.hub.timeouts import answer_timeout

DRIVERS = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "abfss": "adlfs", "oss": "ossfs", "oci": "ocifs", "tos": "tosfs", "hdfs": "pyarrow",
    "webhdfs": "requests",
    "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "http": "aiohttp requests",
    "https": "aiohttp requests", "webdav": "webdav4",
}  # fmt: skip
# Here others can see an unfinished file, and a rename is atomic.
_RENAMING = {"file", "local", "hdfs", "arrow_hdfs", "webhdfs", "sftp", "ssh", "smb", "ftp"}
_READ_ONLY = {"http", "https"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")  # at least two letters: `C://` is a drive
_CONTENT = ("ETag", "etag", "md5Hash", "content_md5", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
_MD5 = re.compile(r"[0-9a-f]{32}")


def is_remote(text: str) -> bool:
    """Whether `text` is a URL (`s3://bucket/folder`) and not a path of this machine (`C:/data`).

    Raises:
        UsageError: fsspec does not know this kind of URL.
    """
    found = _URL.match(text)
    if found is None:
        return False
    from fsspec.registry import available_protocols, registry

    known = [*available_protocols(), *registry]
    if found[1].lower() not in known:
        close = closest(found[1].lower(), known)
        hint = f"did you mean {close}://?" if close else "known: s3, gs, az, hdfs, oss, sftp, file, ..."
        raise UsageError(f"{shown(text)}: {found[1]}:// is not a known kind of store", hint=hint)
    return True


def shown(url: str) -> str:
    """`url` without its password and its signed query, to be printed."""
    return re.sub(r"\?.*", "?...", re.sub(r"//[^/@]*@", "//***@", url))


@contextmanager
def explained(url: str, doing: str, kind: type[FeatcacheError] = CacheError) -> Iterator[None]:
    """Turn any error of a store's driver into a `kind` that names the operation and the URL.

    All exceptions are caught, because drivers raise those of libraries that may not be installed here.
    """
    try:
        yield
    except FeatcacheError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason, hint = "no such file", "check its name, and that you may list the folder"
        elif isinstance(error, PermissionError) or "redential" in f"{type(error).__name__} {reason}":
            hint = "set credentials as for the store's own tools, e.g. AWS_PROFILE for s3"
        else:
            hint = "finished work is kept: run the same command again"
            parts = urlsplit(url)
            if parts.scheme.lower() in _READ_ONLY:
                found = hub_error(error, f"{parts.scheme}://{parts.hostname}", "the file", server="server")
                reason, hint = found.what, found.hint or hint
        raise kind(f"cannot {doing} {shown(url)}: {reason}", hint=hint) from error


def opened(url: str, kind: type[FeatcacheError] = CacheError) -> Remote:
    """The file or folder at `url`, without a request to the store.

    Raises:
        UsageError: its driver is not installed; names the package.
        FeatcacheError: a `kind`, if the driver cannot be set up.
    """
    scheme = url.partition("://")[0].lower()
    if "::" in url:
        raise UsageError(f"{shown(url)}: chained URLs are not supported", hint="name the file itself")
    from fsspec.core import url_to_fs

    with explained(url, "open", kind):
        try:
            fs, path = url_to_fs(url, **_deadlines(scheme))
        except ImportError as error:
            package = DRIVERS.get(scheme)
            hint = f"pip install {package}" if package else str(error)
            raise UsageError(f"{scheme}:// needs a package that is not installed", hint=hint) from error
    if not str(path).strip("/"):
        raise UsageError(f"{shown(url)} names no file or folder", hint=f"e.g. {scheme}://bucket/folder")
    return Remote(url, scheme, fs, str(path).rstrip("/"), kind)


def _deadlines(scheme: str) -> dict[str, Any]:
    """Options of a web server's driver: without them it waits five minutes for an answer, in silence."""
    if scheme not in _READ_ONLY:
        return {}
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=answer_timeout(), sock_read=answer_timeout())
    return {"client_kwargs": {"timeout": timeout}}


@dataclass(frozen=True)
class Remote:
    """A file or folder in a store.

    Attributes:
        fs: an `fsspec.AbstractFileSystem`.
        path: in `fs`, without a slash at its end.
        kind: class of the errors that are raised.
    """

    url: str
    scheme: str
    fs: Any
    path: str
    kind: type[FeatcacheError] = CacheError

    @property
    def name(self) -> str:
        return posixpath.basename(self.path.partition("?")[0] if self.scheme in _READ_ONLY else self.path)

    def child(self, name: str) -> Remote:
        """The file or folder `name`, a relative path, in this folder."""
        url = f"{self.url.rstrip('/')}/{name}"
        return Remote(url, self.scheme, self.fs, f"{self.path}/{name}", self.kind)

    def renamed(self, name: str) -> Remote:
        """The file `name` in the folder of this one."""
        url, path = (f"{text.rpartition('/')[0]}/{name}" for text in (self.url.rstrip("/"), self.path))
        return Remote(url, self.scheme, self.fs, path, self.kind)

    def info(self) -> dict[str, Any] | None:
        """What the store knows of the file now; None if it does not exist."""
        with explained(self.url, "look at", self.kind):
            self.fs.invalidate_cache(posixpath.dirname(self.path))
            try:
                found = dict(self.fs.info(self.path))
            except FileNotFoundError:
                return None
        return found if found.get("type") != "directory" else None

    def listing(self) -> dict[str, dict[str, Any]]:
        """Every file below this folder: relative path -> what the store knows of it."""
        with explained(self.url, "list", self.kind):
            self.fs.invalidate_cache()
            found = self.fs.find(self.path, detail=True)
        prefix = self.path + "/"
        return {path[len(prefix) :]: info for path, info in found.items() if path.startswith(prefix)}

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes from `start` to `end`; all by default."""
        with explained(self.url, "read", self.kind):
            return bytes(self.fs.cat_file(self.path, start=start, end=end))

    def get(self, target: Path) -> None:
        """Copy the file to `target`, a name that no other process uses; only its length is checked."""
        size = (self.info() or {}).get("size")
        with explained(self.url, "fetch", self.kind):
            self.fs.get_file(self.path, str(target))
        if size is not None and target.stat().st_size != size:
            raise self.kind(
                f"cannot fetch {shown(self.url)}: {target.stat().st_size} of {size} bytes arrived",
                hint="the connection broke, or the file was replaced meanwhile: run the same command again",
            )

    def remove(self) -> None:
        """Remove the file if it exists."""
        with explained(self.url, "remove", self.kind), suppress(FileNotFoundError):
            self.fs.rm_file(self.path)

    def put(self, source: Path, *, replace: bool = False) -> bool:
        """Copy `source` to the file, completely or not at all, and check what arrived.

        Returns:
            False if the file exists already and `replace` is not set; it is not changed.

        Raises:
            FeatcacheError: a `kind`: the store refuses, cannot be reached, or has received other bytes.
        """
        if self.scheme in _READ_ONLY:
            raise UsageError(f"{shown(self.url)}: {self.scheme} URLs cannot be written")
        if not replace and self.info() is not None:
            return False
        with explained(self.url, "write", self.kind):
            try:
                if self.scheme in _RENAMING:
                    self._put_and_rename(source)
                else:
                    self._put(source, replace)
            except FileExistsError:
                return False
        self._check_arrived(source)
        return True

    def write(self, content: bytes) -> None:
        """Replace the file by `content`, which is small."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "content"
            source.write_bytes(content)
            self.put(source, replace=True)

    def _put(self, source: Path, replace: bool) -> None:
        try:
            self.fs.put_file(str(source), self.path, mode="overwrite" if replace else "create")
        except (OSError, NotImplementedError) as error:
            # Not every S3 store can refuse to overwrite; `put` has just checked that there is no file.
            if replace or not re.search("not ?implemented", f"{type(error).__name__} {error}", re.I):
                raise
            self.fs.put_file(str(source), self.path, mode="overwrite")

    def _put_and_rename(self, source: Path) -> None:
        folder, name = posixpath.split(self.path)
        temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex[:12]}-{name}"
        self.fs.makedirs(folder, exist_ok=True)
        try:
            self.fs.put_file(str(source), temporary)
            self.fs.mv(temporary, self.path)
        except BaseException:
            with suppress(Exception):
                self.fs.rm_file(temporary)
            raise

    def _check_arrived(self, source: Path) -> None:
        """Compare sizes, MD5 if the store has one, and the bytes themselves if the MD5 differs."""
        there, size = self.info(), source.stat().st_size
        whole = there is not None and there.get("size") == size
        if whole and there:
            md5 = _md5_of(there)
            if md5 is not None and md5 != _digest(source, "md5"):  # an encrypting store has another MD5
                with explained(self.url, "read", self.kind), self.fs.open(self.path, "rb") as file:
                    whole = hashlib.file_digest(file, "sha256").hexdigest() == _digest(source, "sha256")
        if not whole:
            with suppress(FeatcacheError):
                self.remove()
            raise self.kind(
                f"the store has other bytes than the {size} that were sent to {shown(self.url)}",
                hint="finished work is kept on this machine: run the same command again",
            )


def _md5_of(info: Mapping[str, Any]) -> str | None:
    """The MD5 of a file's content in hex, if the store seems to know it."""
    tag = str(info.get("ETag") or "").strip('"')
    if _MD5.fullmatch(tag):
        return tag
    coded = info.get("md5Hash")
    return base64.b64decode(coded).hex() if isinstance(coded, str) else None


def _digest(path: Path, name: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, name).hexdigest()


def stamp(info: Mapping[str, Any]) -> str:
    """A text that changes when the file does: its size with its tag, or with its time if it has no tag."""
    tag = next((str(info[key]) for key in _CONTENT if info.get(key)), None)
    # Some stores give a time as a date for a single file, and as a number in a listing.
    return f"{info.get('size')} {tag or modified(info) or ''}"


def modified(info: Mapping[str, Any]) -> float:
    """When a file was written, seconds since the epoch; 0 if the store does not know."""
    values: list[Any] = [info.get(key) for key in _TIMES]
    for value in values:
        if isinstance(value, (int, float)):
            return float(value)
        if hasattr(value, "timestamp"):
            return float(value.timestamp())
    return 0.0


def expanded(url: str) -> list[str]:
    """The sorted URLs of the files that match `url` with its `*`, `?` and `[...]`; `url` if it has none.

    Raises:
        SourceError: nothing matches, or the store cannot be reached.
    """
    remote = opened(url, SourceError)
    if remote.scheme in _READ_ONLY or not set("*?[") & set(url) or remote.info() is not None:
        return [url]
    with explained(url, "list", SourceError):
        remote.fs.invalidate_cache()
        found = remote.fs.glob(remote.path, detail=True)
    files = sorted(path for path, info in found.items() if info.get("type") != "directory")
    if not files:
        raise SourceError(
            f"no file matches {shown(url)}", hint="look at the address and at the pattern in it"
        )
    return [str(remote.fs.unstrip_protocol(path)) for path in files]
