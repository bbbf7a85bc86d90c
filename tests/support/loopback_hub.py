"""A hub on loopback: the routes of Hugging Face's and ModelScope's that their clients call, and faults.

`with LoopbackHub() as hub: hub.add("model", "somebody/bert", files)`, then run a real process with
`hub.environment(home)`. A fault takes the place of the answers to requests in whose `METHOD path?query` a
pattern is found.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

Files = Mapping[str, bytes]
LARGE = 64 << 10  # a file of more bytes is in large file storage: its address redirects


def commit_of(files: Files) -> str:
    """A commit that depends on the files alone."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


@dataclass
class Repository:
    """Files by commit, and the commit of each branch and tag; `renamed` is the name that it has now."""

    kind: str
    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    renamed: str = ""

    def at(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class Answer:
    """What a request gets instead of the hub's answer; `send` may break the connection."""

    @property
    def keeps_back(self) -> bool:
        """Whether a client has to give up waiting."""
        return isinstance(self, Silence | Slow) or (isinstance(self, Broken) and self.how == "stall")

    def send(self, request: _Request) -> None:
        raise NotImplementedError


@dataclass
class Status(Answer):
    """An HTTP status with headers and a body."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def send(self, request: _Request) -> None:
        request.answer(self.code, self.body, self.headers)


class Silence(Answer):
    """The connection is accepted, and nothing is ever sent."""

    def send(self, request: _Request) -> None:
        request.hub.closing.wait()
        request.close_connection = True


@dataclass
class Broken(Answer):
    """The hub's own answer up to `after` bytes of its body; then a reset, the end, or nothing for ever.

    Args:
        how: `reset`, `end` (fewer bytes than announced) or `stall`.
    """

    after: int
    how: str = "reset"

    def send(self, request: _Request) -> None:
        request.cut = self
        request.route()


@dataclass
class Slow(Answer):
    """The hub's own answer in pieces of `piece` bytes, `pause` seconds apart."""

    piece: int
    pause: float

    def send(self, request: _Request) -> None:
        request.slow = self
        request.route()


@dataclass
class Fault:
    """An answer for the first `times` requests that the pattern is found in."""

    pattern: re.Pattern[str]
    answer: Answer
    times: int


class LoopbackHub:
    """A hub on a free port of 127.0.0.1; a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # `METHOD path?query` of every request, in order
        self.ranges: list[str] = []  # the Range headers among them
        self.xet = ""  # the address of a Xet storage, which large files are said to be in
        self.closing = threading.Event()
        self._lock = threading.Lock()
        hub = self

        class Handler(_Request):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The variables with which a process asks this hub and keeps everything under `home`.

        It waits one second for an answer where one is kept back, else as long as a busy machine needs.
        """
        kept_back = any(fault.answer.keeps_back for fault in self.faults)
        return {
            "HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "",
            "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"), "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
            "FEATCACHE_HUB_TIMEOUT": "1" if kept_back else "30",
            "MODELSCOPE_ENDPOINT": self.url, "MODELSCOPE_CACHE": str(home / "modelscope"),
            "MODELSCOPE_HOME": str(home / "modelscope-home"), "NO_PROXY": "127.0.0.1", **more,
        }  # fmt: skip

    def add(self, kind: str, name: str, files: Files, *, refs: tuple[str, ...] = ("main", "master")) -> str:
        """Add a commit of a repository, and let `refs` name it; its hash is returned."""
        repository = self.repositories.setdefault((kind, name), Repository(kind, name))
        commit = commit_of(files)
        repository.commits[commit] = dict(files)
        repository.refs |= dict.fromkeys(refs, commit)
        return commit

    def rename(self, kind: str, old: str, new: str) -> None:
        """Let the addresses of `old` redirect to those of `new`."""
        self.repositories[kind, new] = self.repositories[kind, old]
        self.repositories[kind, old] = Repository(kind, old, renamed=new)

    def fail(self, pattern: str, answer: Answer, times: int = 1 << 30) -> None:
        """Give `answer` to the first `times` requests that `pattern` is found in."""
        self.faults.append(Fault(re.compile(pattern), answer, times))

    def fault_of(self, line: str) -> Answer | None:
        with self._lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times > 0 and fault.pattern.search(line):
                    fault.times -= 1
                    return fault.answer
        return None


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub
    cut: Broken | None = None
    slow: Slow | None = None

    def do_GET(self) -> None:
        self.cut = self.slow = None
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode()) if length else {}
        if "Range" in self.headers:
            self.hub.ranges.append(self.headers["Range"])
        answer = self.hub.fault_of(f"{self.command} {self.path}")
        with suppress(BrokenPipeError, ConnectionResetError):
            if answer is None:
                self.route()
            else:
                answer.send(self)

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    # ---------------------------------------------------------------- the routes

    def route(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        for pattern, view in _ROUTES:
            match = pattern.fullmatch(path)
            if match is not None:
                view(self, **{key: value for key, value in match.groupdict().items() if value is not None})
                return
        self.answer(404, b"Not Found")

    def info(self, kind: str, name: str, revision: str = "main") -> None:
        found = self.found(kind, name, revision)
        if found is None:
            return
        commit, files = found
        siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
        self.json({"_id": commit[:24], "id": name, "modelId": name, "sha": commit, "private": False,
                   "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                   "siblings": siblings})  # fmt: skip

    def tree(self, kind: str, name: str, revision: str, under: str = "") -> None:
        found = self.found(kind, name, revision)
        if found is None:
            return
        entries, folders = [], set()
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        for path, content in sorted(found[1].items()):
            if under and not path.startswith(f"{under}/"):
                continue
            rest = path[len(under) + 1 :] if under else path
            for end in [place for place, sign in enumerate(rest) if sign == "/"]:
                folders.add((f"{under}/" if under else "") + rest[:end])
            if recursive or "/" not in rest:
                entries.append(_entry(path, content))
        shown = [one for one in sorted(folders) if recursive or "/" not in one[len(under) :].strip("/")]
        if under and not entries and not shown:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        self.json([{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in shown] + entries)

    def paths(self, kind: str, name: str, revision: str) -> None:
        found = self.found(kind, name, revision)
        if found is not None:
            asked = self.form.get("paths", [])
            self.json([_entry(path, found[1][path]) for path in asked if path in found[1]])

    def file(self, name: str, revision: str, path: str, kind: str = "models") -> None:
        found = self.found(kind, name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            self.answer(404, b"Entry not found", headers)
            return
        content = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if len(content) > LARGE and self.hub.xet:
            headers["X-Xet-Hash"] = hashlib.sha256(content).hexdigest()
            headers["X-Xet-Refresh-Route"] = f"{self.hub.url}/api/{kind}/{name}/xet-read-token/{commit}"
        if len(content) > LARGE and "cdn" not in self.query:
            linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
            self.answer(
                302, b"", headers | linked | {"Location": f"{self.hub.url}{urlsplit(self.path).path}?cdn=1"}
            )
            return
        self.content(content, headers)

    def xet_token(self, kind: str, name: str, revision: str) -> None:
        expires = str(int(time.time()) + 3600)
        token = {"X-Xet-Cas-Url": self.hub.xet, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": expires}
        self.answer(200, b"{}", token)

    def modelscope_files(self, name: str) -> None:
        found = self.modelscope_found(name)
        if found is None:
            return
        commit, files = found
        entries = [
            {
                "Path": path, "Name": path.rpartition("/")[2], "Type": "blob", "Size": len(content),
                "Sha256": hashlib.sha256(content).hexdigest(), "IsLFS": len(content) > LARGE,
                # All but the first file are from an earlier commit.
                "Revision": "1" * 40 if number else commit, "CommittedDate": 1700000000 - (number > 0),
            }
            for number, (path, content) in enumerate(files.items())
        ]  # fmt: skip
        latest = {"Id": "", "ShortId": commit[:8]}  # as ModelScope has it
        data = {"Files": entries, "IsVisual": 0, "LatestCommitter": latest}
        self.json({"Code": 200, "Success": True, "Message": "success", "Data": data})

    def modelscope_file(self, name: str) -> None:
        found = self.modelscope_found(name)
        path = self.query.get("FilePath", [""])[0]
        if found is not None and path in found[1]:
            self.content(found[1][path], {})
        elif found is not None:
            self.json({"Code": 10010205001, "Success": False, "Message": "file not found"}, 404)

    # ---------------------------------------------------------------- answers

    def found(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files; None after the answer that they are not there, or elsewhere now."""
        repository = self.hub.repositories.get((kind.removesuffix("s"), name))
        if repository is None:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self.answer(401, b'{"error":"Invalid username or password."}', headers)
        elif repository.renamed:
            new = self.path.replace(name, repository.renamed, 1)
            self.answer(307, b"", {"Location": new})
        else:
            commit = repository.at(revision)
            if commit is not None:
                return commit, repository.commits[commit]
            headers = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}
            self.answer(404, b'{"error":"Invalid rev id"}', headers)
        return None

    def modelscope_found(self, name: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(("model", name))
        commit = repository and repository.at(self.query.get("Revision", ["master"])[0])
        if repository is None or commit is None:
            self.json({"Code": 10010205001, "Success": False, "Message": f"{name} not found"}, 404)
            return None
        return commit, repository.commits[commit]

    def json(self, document: Any, code: int = 200) -> None:
        self.answer(code, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def content(self, content: bytes, headers: Mapping[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        more = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if match is None:
            self.answer(200, content, more)
            return
        first, last = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        more["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(206, content[first : last + 1], more)

    def answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for piece in self.pieces(body):
            self.wfile.write(piece)
        if self.cut is not None and self.cut.after < len(body):
            self.break_off()

    def pieces(self, body: bytes) -> Iterator[bytes]:
        if self.cut is not None:
            yield body[: self.cut.after]
        elif self.slow is not None:
            for first in range(0, len(body), self.slow.piece):
                yield body[first : first + self.slow.piece]
                time.sleep(self.slow.pause)
        else:
            yield body

    def break_off(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        assert self.cut is not None
        if self.cut.how == "stall":
            self.hub.closing.wait()
        elif self.cut.how == "reset":
            time.sleep(0.05)  # the bytes before the reset arrive
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content),
                             "oid": hashlib.sha1(content).hexdigest()}  # fmt: skip
    if len(content) > LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


_NAME = r"(?P<name>[^/]+(/(?!resolve/|tree/|revision/|paths-info/|xet-read-token/|repo/?)[^/]+)?)"
_KIND = r"(?P<kind>models|datasets)"
_ROUTES: list[tuple[re.Pattern[str], Callable[..., None]]] = [
    (re.compile(rf"/api/v1/models/{_NAME}/repo/files"), _Request.modelscope_files),
    (re.compile(rf"/api/v1/models/{_NAME}/repo"), _Request.modelscope_file),
    (re.compile(rf"/api/{_KIND}/{_NAME}/tree/(?P<revision>[^/]+)(/(?P<under>.+))?"), _Request.tree),
    (re.compile(rf"/api/{_KIND}/{_NAME}/paths-info/(?P<revision>[^/]+)"), _Request.paths),
    (re.compile(rf"/api/{_KIND}/{_NAME}/xet-read-token/(?P<revision>[^/]+)"), _Request.xet_token),
    (re.compile(rf"/api/{_KIND}/{_NAME}(/revision/(?P<revision>.+))?"), _Request.info),
    (re.compile(rf"/((?P<kind>datasets)/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"), _Request.file),
]
