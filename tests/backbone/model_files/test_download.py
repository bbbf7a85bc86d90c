"""Models of hubs: from a hub on loopback or from this disk, with the real clients in real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featcache.backbone.model_files.find import find_model
from featcache.backbone.model_files.wanted import wanted_files
from featcache.settings import BackboneSettings
from tests.support.loopback_hub import Answer, Broken, LoopbackHub, Silence, Slow, Status

pytestmark = [pytest.mark.allow_hosts(["127.0.0.1"]), pytest.mark.bad_input]

NAME = "somebody/bert"
HUBS = ["huggingface", "modelscope"]
FIND = """
import json, os, sys, time
exec(os.environ.get("FIRST", ""))
from featcache.backbone.model_files.find import find_model
from featcache.errors import FeatcacheError
from featcache.settings import BackboneSettings
from featcache.system.hub.listener import listening
answers = []
for name in sys.argv[3:]:
    notes, received, answer, began = [], [], {}, time.monotonic()
    def hear(event):
        (notes if event.stage == "note" else received).append(event.text or [event.done, event.total])
    with listening(hear):
        try:
            files = find_model(BackboneSettings(name, sys.argv[2] or None, hub=sys.argv[1]))
            answer = {"commit": files.commit, "hashes": files.hashes, "folder": str(files.folder)}
        except FeatcacheError as error:
            answer = {"error": str(error), "code": error.exit_code}
    seconds = time.monotonic() - began
    answers.append(answer | {"notes": notes, "received": received[-1:], "seconds": seconds})
print(json.dumps(answers))
"""


@dataclass
class Found:
    """What one call of `find_model` gave; `requests` are those of its process."""

    commit: str | None = None
    hashes: dict[str, str] | None = None
    folder: str = ""
    error: str = ""
    code: int = 0
    notes: tuple[str, ...] = ()
    received: tuple[Any, ...] = ()
    seconds: float = 0.0
    requests: tuple[str, ...] = ()


def find_all(
    hub: LoopbackHub,
    home: Path,
    names: Sequence[str],
    source: str = "huggingface",
    revision: str = "",
    **more: str,
) -> list[Found]:
    """Find models in one process."""
    before = len(hub.requests)
    done = subprocess.run(
        [sys.executable, "-c", FIND, source, revision, *names],
        env=os.environ | hub.environment(home, **more),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("unexpected", "defect", "Traceback"):
        assert word not in done.stdout.lower()
    found = [Found(**one) for one in json.loads(done.stdout)]
    found[-1].requests = tuple(hub.requests[before:])
    return found


def find(hub: LoopbackHub, home: Path, source: str = "huggingface", revision: str = "", **more: str) -> Found:
    return find_all(hub, home, [NAME], source, revision, **more)[0]


@pytest.fixture(scope="module")
def files(tiny: Callable[[str], Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny("bert").iterdir()}


@pytest.fixture(scope="module")
def expected(tiny: Callable[[str], Path]) -> dict[str, str]:
    return find_model(BackboneSettings(str(tiny("bert")))).hashes


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[LoopbackHub]:
    """Has the model; `hub.commit` is its commit."""
    with LoopbackHub() as started:
        started.add("model", NAME, files)
        yield started


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Path:
    """What the clients of both hubs keep after a download; not to be changed."""
    home = tmp_path_factory.mktemp("on-disk")
    with LoopbackHub() as started:
        started.add("model", NAME, files)
        assert [find(started, home, source).error for source in HUBS] == ["", ""]
    return home


@pytest.fixture
def home(on_disk: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(on_disk, tmp_path / "home", symlinks=True))


def commit_in(hub: LoopbackHub) -> str:
    return hub.repositories["model", NAME].refs["main"]


@pytest.mark.parametrize("source", HUBS)
def test_a_model_has_the_same_fingerprint_from_every_hub(
    hub: LoopbackHub, tmp_path: Path, expected: dict[str, str], files: dict[str, bytes], source: str
) -> None:
    first = find(hub, tmp_path, source)
    assert (first.hashes, first.commit) == (expected, commit_in(hub))
    assert len(first.notes) == 1 and f"downloading {NAME} from {hub.url}" in first.notes[0]
    size = sum(map(len, files.values()))
    assert first.received == [[size, size]]
    again = find(hub, tmp_path, source)
    assert (again.hashes, again.commit, again.notes) == (expected, first.commit, [])
    assert len(again.requests) == 1  # which commit is it now?


@pytest.mark.parametrize("source", HUBS)
def test_a_commit_that_is_on_this_disk_needs_no_network(
    hub: LoopbackHub, home: Path, expected: dict[str, str], source: str
) -> None:
    hub.fail(".", Silence())
    found = find(hub, home, source, commit_in(hub))
    assert (found.hashes, found.requests, found.notes) == (expected, (), [])


@pytest.mark.parametrize("source", HUBS)
def test_a_silent_hub_gives_way_to_the_copy_on_this_disk(
    hub: LoopbackHub, home: Path, expected: dict[str, str], source: str
) -> None:
    hub.fail(".", Silence())
    found = find(hub, home, source)
    assert (found.hashes, found.commit, len(found.notes)) == (expected, commit_in(hub), 1)
    for words in (hub.url, "does not answer within 1 s", f"the copy of {NAME}", commit_in(hub)[:12]):
        assert words in found.notes[0]
    assert len(found.requests) == 1


@pytest.mark.hostile
def test_a_hub_that_sends_a_byte_now_and_then_gives_way(hub: LoopbackHub, home: Path) -> None:
    hub.fail(".", Slow(1, 0.4))
    found = find(hub, home)
    assert (found.commit, len(found.notes)) == (commit_in(hub), 1)
    assert found.seconds < 60  # its answer would take minutes


@pytest.mark.parametrize("source", HUBS)
def test_without_a_copy_the_error_names_the_ways_out(hub: LoopbackHub, tmp_path: Path, source: str) -> None:
    hub.fail(".", Silence())
    first, second = find_all(hub, tmp_path, [NAME, "somebody/other"], source)
    assert first.code == second.code == 4
    for way in (
        "HF_ENDPOINT=",
        "HF_HUB_OFFLINE=1",
        "--model FOLDER",
        "the embedded encoder",
        "does not answer",
    ):
        assert way in first.error
    assert len(second.requests) == 1  # a hub that was silent a moment ago is not asked again


@pytest.mark.hostile
def test_a_silent_list_of_files_gives_way_as_well(
    hub: LoopbackHub, home: Path, files: dict[str, bytes]
) -> None:
    """The hub says that there is a new commit, and then nothing more."""
    old = commit_in(hub)
    hub.add("model", NAME, files | {"config.json": files["config.json"] + b" "})
    hub.fail("/tree/|resolve", Silence())
    found = find(hub, home)
    assert found.commit == old and "does not answer" in found.notes[-1]
    assert found.seconds < 30  # the client itself would try for minutes


ANSWERS: dict[str, tuple[Answer, tuple[str, ...]]] = {
    "gated": (Status(403, {"X-Error-Code": "GatedRepo"}), ("only to those who asked for access", "log in")),
    "disabled": (Status(403, {"X-Error-Message": "Access to this resource is disabled."}), ("has disabled",)),
    "login": (Status(401), ("wants a login", "hf auth login")),
    "forbidden": (Status(403), ("refuses", "403", "hf auth whoami")),
    "nothing": (Status(404), ("404",)),
    "proxy": (Status(407), ("the proxy wants a login", "HTTPS_PROXY")),
    "busy": (Status(429, {"Retry-After": "300"}), ("too many requests (429)", "wait 300 s")),
    "fault": (Status(500), ("fault of its own (500",)),
    "unavailable": (Status(503), ("fault of its own (503",)),
    "odd": (Status(418), ("answers with 418",)),
    "page": (Status(200, {"Content-Type": "text/html"}, b"<html>log in</html>"), ("no hub's", "login page")),
    "list": (Status(200, {}, b"[1, 2]"), ("no hub's",)),
    "empty": (Status(200, {}, b"{}"), ("no hub's",)),
    "reset": (Broken(3), ("breaks the connection off",)),
    "short": (Broken(3, "end"), ("breaks the connection off",)),
    "circle": (Status(307, {"Location": "/api/models/some/circle"}), ("circle",)),
}


def test_every_answer_is_one_sentence(hub: LoopbackHub, tmp_path: Path) -> None:
    for name, (answer, _) in ANSWERS.items():
        hub.add("model", f"some/{name}", {"config.json": b"{}"})
        hub.fail(f"/api/models/some/{name}", answer)
    hub.add("model", "some/tf", {"config.json": b"{}", "tf_model.h5": b"x"})
    *found, tf, absent = find_all(
        hub, tmp_path, [*(f"some/{name}" for name in ANSWERS), "some/tf", "some/absent"]
    )
    for one, (name, (_, words)) in zip(found, ANSWERS.items(), strict=True):
        said = "\n".join(one.error.splitlines()[:2])
        assert one.code == 4
        for word in (f"cannot fetch the model some/{name}", *words):
            assert word in said
    assert "TensorFlow weights alone" in tf.error and "no model some/absent" in absent.error


MODELSCOPE_ANSWERS: dict[str, tuple[Answer, tuple[str, ...]]] = {
    "absent": (Status(404, {}, b'{"Code": 10010205001, "Message": "no such model"}'), ("no model",)),
    "login": (Status(401), ("401",)),
    "page": (Status(200, {"Content-Type": "text/html"}, b"<html>log in</html>"), ("no hub's",)),
    "list": (Status(200, {}, b'{"Data": 3}'), ("no weights",)),
    "reset": (Broken(3), ("breaks the connection off",)),
}


@pytest.mark.hostile
def test_every_answer_of_modelscope_is_one_sentence(hub: LoopbackHub, tmp_path: Path) -> None:
    for name, (answer, _) in MODELSCOPE_ANSWERS.items():
        hub.add("model", f"some/{name}", {"config.json": b"{}"})
        hub.fail(f"/api/v1/models/some/{name}/", answer)
    names = [f"some/{name}" for name in MODELSCOPE_ANSWERS]
    found = find_all(hub, tmp_path, names, "modelscope", MODELSCOPE_API_MAX_RETRIES="1")
    for one, (name, (_, words)) in zip(found, MODELSCOPE_ANSWERS.items(), strict=True):
        assert one.code == 4
        for word in words:
            assert word in one.error, (name, one.error)


# The client writes pieces of 10 MB, and goes on after the last of them.
SMALL_PIECES = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 10_000"


LONG = pytest.mark.hostile


@pytest.mark.parametrize("source", HUBS)
@pytest.mark.parametrize("how", ["reset", pytest.param("end", marks=LONG), pytest.param("stall", marks=LONG)])
def test_a_download_that_breaks_off_is_resumed(
    hub: LoopbackHub, tmp_path: Path, expected: dict[str, str], source: str, how: str
) -> None:
    hub.fail("^GET .*model.safetensors", Broken(30_000, how), times=1)
    found = find(hub, tmp_path, source, HF_HUB_DOWNLOAD_TIMEOUT="1", FIRST=SMALL_PIECES)
    assert (found.hashes, found.error) == (expected, "")
    assert "bytes=30000-" in hub.ranges
    if source == "huggingface":
        assert "goes on where it was" in found.notes[-1]


@pytest.mark.parametrize(
    "answer", [Status(503), pytest.param(Silence(), marks=pytest.mark.hostile)], ids=["503", "silent"]
)
def test_without_xet_a_model_is_downloaded_plainly(
    hub: LoopbackHub, tmp_path: Path, expected: dict[str, str], answer: Answer
) -> None:
    with LoopbackHub() as storage:
        storage.fail(".", answer)
        hub.xet = storage.url
        found = find(hub, tmp_path, HF_HUB_DISABLE_XET="0", FEATCACHE_HUB_TIMEOUT="3")
        assert storage.requests
    assert (found.hashes, found.error) == (expected, "")
    assert "Xet storage does not answer" in found.notes[-1]


@pytest.mark.hostile
def test_a_renamed_model_is_found(hub: LoopbackHub, tmp_path: Path, expected: dict[str, str]) -> None:
    hub.rename("model", NAME, "somebody-else/bert")
    found = find(hub, tmp_path)
    assert found.hashes == expected
    assert f"the model {NAME} was renamed: it is somebody-else/bert on the hub" in found.notes[0]


@pytest.mark.hostile
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(
    hub: LoopbackHub, tmp_path: Path, expected: dict[str, str]
) -> None:
    hub.fail("/tree/", Status(429, {"Retry-After": "1"}), times=1)
    hub.fail("/tree/", Status(503), times=1)
    hub.fail("^GET .*tokenizer.json", Status(429, {"Retry-After": "0"}), times=1)
    found = find(hub, tmp_path)
    assert (found.hashes, found.error) == (expected, "")


@pytest.mark.hostile
def test_a_mirror_without_lists_of_files(hub: LoopbackHub, tmp_path: Path, expected: dict[str, str]) -> None:
    hub.fail("/tree/", Status(404))
    first = find(hub, tmp_path)
    assert (first.hashes, first.error) == (expected, "")
    hub.fail(".", Silence())
    assert find(hub, tmp_path).hashes == expected


@pytest.mark.hostile
def test_revisions_are_told_apart(hub: LoopbackHub, tmp_path: Path, files: dict[str, bytes]) -> None:
    other = hub.add("model", NAME, files | {"config.json": files["config.json"] + b" "}, refs=("v2",))
    assert find(hub, tmp_path, revision="v2").commit == other
    missing = find(hub, tmp_path, revision="v9")
    assert missing.code == 4 and "no revision 'v9' of the model" in missing.error
    hub.fail(".", Silence())
    assert find(hub, tmp_path, revision="v2").commit == other
    assert "no complete copy" in find(hub, tmp_path).error  # the copy is one of another revision


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"HF_ENDPOINT": "hf-mirror.example"}, ("no address of a hub", "begin with https://")),
        ({"HF_ENDPOINT": "http://127.0.0.1:1"}, ("refuses connections",)),
        ({"HF_ENDPOINT": "https://HUB"}, ("fails in TLS",)),
        ({"HF_ENDPOINT": "http://nowhere.invalid"}, ("cannot be resolved",)),
        (
            {"HTTP_PROXY": "http://user:secret@127.0.0.1:1", "NO_PROXY": ""},
            ("through the proxy http://127.0.0.1:1",),
        ),
        ({"HF_HUB_OFFLINE": "1"}, ("HF_HUB_OFFLINE is set", "no complete copy")),
    ],
    ids=["no-scheme", "refused", "no-tls", "no-name", "proxy", "offline"],
)
def test_addresses_that_lead_nowhere(
    hub: LoopbackHub, tmp_path: Path, variables: dict[str, str], words: tuple[str, ...]
) -> None:
    here = {name: value.replace("HUB", hub.url.partition("//")[2]) for name, value in variables.items()}
    found = find(hub, tmp_path, **here)
    assert found.code == 4
    for word in words:
        assert word in found.error
    assert "secret" not in found.error


def test_a_model_comes_through_a_proxy(hub: LoopbackHub, tmp_path: Path, expected: dict[str, str]) -> None:
    """The loopback hub is the proxy: requests for any host get its answers."""
    somewhere = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.url, "NO_PROXY": ""}
    found = find(hub, tmp_path, **somewhere)
    assert (found.hashes, found.error) == (expected, "")
    assert found.requests[0] == f"GET http://hub.invalid/api/models/{NAME}?blobs=true"


NO_SYMLINKS = """
def refuse(*_, **__):
    raise OSError(22, "A required privilege is not held by the client")
os.symlink = refuse
"""
DISK_FULL = """
import builtins, pathlib
class Full:
    def __init__(self, file): self.file = file
    def __getattr__(self, name): return getattr(self.file, name)
    def __enter__(self): return self
    def __exit__(self, *error): self.file.close()
    def write(self, piece): raise OSError(28, "No space left on device")
plain = pathlib.Path.open
pathlib.Path.open = lambda path, *rest, **more: (
    Full(plain(path, *rest, **more)) if path.name.endswith(".incomplete") else plain(path, *rest, **more)
)
"""


def test_a_platform_that_refuses_symlinks(hub: LoopbackHub, tmp_path: Path, expected: dict[str, str]) -> None:
    found = find(hub, tmp_path, FIRST=NO_SYMLINKS, HF_HUB_DISABLE_SYMLINKS_WARNING="1")
    assert (found.hashes, found.error) == (expected, "")
    assert not Path(found.folder, "model.safetensors").is_symlink()


def test_a_full_disk_in_the_middle_of_a_download(
    hub: LoopbackHub, tmp_path: Path, expected: dict[str, str]
) -> None:
    found = find(hub, tmp_path, FIRST=DISK_FULL)
    assert found.code == 4
    for word in ("cannot fetch the model", "the disk is full", "HF_HOME"):
        assert word in found.error
    assert find(hub, tmp_path).hashes == expected


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write everywhere")
def test_a_read_only_cache_of_the_client_serves(
    hub: LoopbackHub, home: Path, expected: dict[str, str]
) -> None:
    denied = "import pathlib, errno\n" + "".join(
        f"""
plain_{name} = {owner}.{name}
def refuse_{name}(path, *rest, **more):
    if {condition} and os.environ["HF_HOME"] in str(path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))
    return plain_{name}(path, *rest, **more)
{owner}.{name} = refuse_{name}
"""
        for owner, name, condition in (
            ("os", "mkdir", "True"),
            ("os", "makedirs", "not os.path.isdir(path)"),
            ("os", "open", "rest and rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)"),
            ("pathlib.Path", "write_text", "True"),
        )
    )
    found = find(hub, home, FIRST=denied)
    assert (found.hashes, found.error) == (expected, "")
    new = hub.add("model", NAME, {"config.json": b"{}", "model.safetensors": b"x", "tokenizer.json": b"{}"})
    refused = find(hub, home, revision=new, FIRST=denied)
    assert refused.code == 4
    assert "cannot be written" in refused.error and "HF_HOME" in refused.error


def test_wanted_files_are_the_safetensors_where_there_are_some() -> None:
    both = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "README.md", "m.py"]
    assert wanted_files(both, remote_code=False) == ["config.json", "model.safetensors"]
    assert wanted_files(both, remote_code=True) == ["config.json", "model.safetensors", "m.py"]
    assert wanted_files(["config.json", "pytorch_model.bin", "optimizer.bin"], remote_code=False) == [
        "config.json",
        "pytorch_model.bin",
    ]
