"""A model of ModelScope.

Its client keeps a snapshot by the name that was asked for, and does not say at which commit a branch is. So
the commit is taken from the list of files (that of the file which changed last), files are kept under it,
and a small note in the client's folder says at which commit a branch was when the hub was last asked.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from featcache.backbone.model_files.wanted import require_weights, wanted_files
from featcache.errors import BackboneError
from featcache.settings import BackboneSettings
from featcache.system.durable import write_file
from featcache.system.hub.errors import HubError
from featcache.system.hub.huggingface import COMMIT, is_offline
from featcache.system.hub.listener import tell, tell_progress
from featcache.system.hub.timeouts import answer_timeout, answer_within

BRANCH = "master"


def endpoint() -> str:
    """The address of ModelScope: `MODELSCOPE_ENDPOINT`, or its own."""
    return str(_client().legacy.endpoint)


def copy_on_disk(settings: BackboneSettings) -> Path | None:
    """The snapshot folder of the revision as this disk knows it; None if it is not there or not whole."""
    asked = settings.revision or BRANCH
    try:
        known = json.loads(_note(settings, asked).read_text("utf-8"))
        folder = _repository(settings) / "snapshots" / known["commit"]
        sizes: Mapping[str, int] = known["files"]
        wanted = wanted_files(sizes, remote_code=settings.trust_remote_code)
        whole = all((folder / name).stat().st_size == sizes[name] for name in wanted)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return folder if wanted and whole else None


def current_files(settings: BackboneSettings, copy: Path | None) -> Path:
    """The snapshot folder of what the revision is now; what is not in it is downloaded.

    Args:
        copy: see `copy_on_disk`.

    Raises:
        Exception: of the client, see `hub_error`.
    """
    pinned = COMMIT.fullmatch(settings.revision or "") is not None
    if copy is not None and (is_offline() or pinned):
        return copy
    if is_offline():
        raise HubError("ModelScope is not asked, because HF_HUB_OFFLINE is set")
    client = _client()
    ask = partial(client.legacy.list_repo_files, settings.model, "model", settings.revision or BRANCH)
    entries = [one for one in answer_within(answer_timeout(), endpoint(), ask) if one.get("Type") != "tree"]
    commit = settings.revision if pinned else _commit(entries)
    sizes = {str(one["Path"]): int(one["Size"]) for one in entries}
    require_weights(settings.model, sizes)
    wanted = wanted_files(sizes, remote_code=settings.trust_remote_code)
    if commit is None:
        raise HubError(f"ModelScope does not say at which commit {settings.model} is")
    if copy is None or copy.name != commit:
        copy = _download(settings, client, commit, [one for one in entries if one["Path"] in wanted], sizes)
    with suppress(OSError):  # without it, the hub is asked the next time
        known = json.dumps({"commit": commit, "files": sizes}).encode()
        for name in {commit, settings.revision or BRANCH}:
            _note(settings, name).parent.mkdir(exist_ok=True)
            write_file(_note(settings, name), known)
    return copy


def _commit(entries: list[dict[str, Any]]) -> str | None:
    """The commit of the file that changed last."""
    dated = [one for one in entries if COMMIT.fullmatch(str(one.get("Revision") or ""))]
    newest = max(dated, key=lambda one: (int(one.get("CommittedDate") or 0), one["Revision"]), default=None)
    return None if newest is None else str(newest["Revision"])


def _download(
    settings: BackboneSettings,
    client: Any,
    commit: str,
    entries: list[dict[str, Any]],
    sizes: Mapping[str, int],
) -> Path:
    total, done = sum(sizes[one["Path"]] for one in entries), 0

    class Counted:
        """What the client makes for each file that it fetches."""

        def __init__(self, name: str, size: int) -> None:
            pass

        def update(self, size: int) -> None:
            nonlocal done
            done += size
            tell_progress(settings.model, done, total)

        def end(self) -> None:
            pass

    tell(f"downloading {settings.model} from {endpoint()} (commit {commit[:12]})")
    with _silent_client():
        client.download_repo(
            settings.model,
            "model",
            revision=commit,
            # The client would take up the folder of an earlier version of itself, which knows no commits.
            local_dir=_repository(settings) / "snapshots" / commit,
            file_list=entries,
            progress_callbacks=[Counted],
        )
    return _repository(settings) / "snapshots" / commit


def _package() -> Any:
    # Read when the client is imported: how long a download may stand still.
    os.environ.setdefault("MODELSCOPE_DOWNLOAD_TIMEOUT", str(max(1, round(answer_timeout()))))
    try:
        import modelscope_hub.config
    except ImportError:
        raise BackboneError(
            "--hub modelscope needs ModelScope's client", hint="pip install 'featcache[modelscope]'"
        ) from None
    return modelscope_hub


def _client() -> Any:
    return _package().HubApi()


def _repository(settings: BackboneSettings) -> Path:
    """The client's folder of the model."""
    kept = Path(_package().config.get_default_config().cache_dir)
    return kept / "models" / settings.model.replace("/", "--")


def _note(settings: BackboneSettings, revision: str) -> Path:
    return _repository(settings) / "commits" / f"{quote(revision, safe='')}.json"


@contextmanager
def _silent_client() -> Iterator[None]:
    """Neither bars nor log lines of the client."""
    import modelscope_hub._download

    client: Any = modelscope_hub._download  # private: without its `tqdm`, its bars are drawn
    log = logging.getLogger("modelscope_hub")
    level, bars = log.level, getattr(client, "tqdm", None)
    log.setLevel(logging.CRITICAL)
    if bars is not None:
        client.tqdm = partial(bars, disable=True)
    try:
        yield
    finally:
        log.setLevel(level)
        if bars is not None:
            client.tqdm = bars
