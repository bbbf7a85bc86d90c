"""What the Hugging Face hub says of a repository: the commit of a revision, and its files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from featcache.system.hub.errors import HubError, hub_error
from featcache.system.hub.listener import tell
from featcache.system.hub.session import set_deadlines
from featcache.system.hub.timeouts import answer_timeout, answer_within, was_silent

COMMIT = re.compile(r"[0-9a-f]{40}")
RepositoryKind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    Attributes:
        files: size in bytes by path, None where the hub does not say; empty if it does not list them here.
    """

    commit: str
    files: dict[str, int | None]


def endpoint() -> str:
    """The address of the hub: `HF_ENDPOINT`, or that of Hugging Face."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids to ask the hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def look_up(kind: RepositoryKind, name: str, revision: str | None) -> Repository:
    """The commit that `revision` is now, and the files at it.

    Raises:
        HubError: the hub gives no answer within `answer_timeout`, or there is no such repository or revision.
    """
    set_deadlines()
    hub = endpoint()
    try:
        return answer_within(answer_timeout(), hub, lambda: _ask(kind, name, revision))
    except Exception as error:
        found = hub_error(error, hub, f"the {kind} {name}", revision)
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            was_silent(hub)
        raise found from error


def _ask(kind: RepositoryKind, name: str, revision: str | None) -> Repository:
    from huggingface_hub import HfApi

    ask: Any = HfApi().repo_info
    info = ask(name, repo_type=kind, revision=revision, files_metadata=True, timeout=answer_timeout())
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise HubError(f"the hub at {endpoint()} does not say which commit of {name} it has")
    now = getattr(info, "id", None) or name
    if now.lower() != name.lower():
        tell(f"the {kind} {name} was renamed: it is {now} on the hub at {endpoint()}")
    return Repository(info.sha, {file.rfilename: file.size for file in info.siblings or ()})
