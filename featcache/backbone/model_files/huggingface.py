"""A model of the Hugging Face hub, or of a mirror of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from featcache.backbone.model_files.modules_json import CONFIG, is_static, transformer_folder
from featcache.backbone.model_files.wanted import require_weights, wanted_files
from featcache.settings import BackboneSettings
from featcache.system.hub.errors import HubError
from featcache.system.hub.huggingface import Repository, endpoint, is_offline, look_up
from featcache.system.hub.listener import tell, tell_progress
from featcache.system.hub.session import without_retries
from featcache.system.hub.timeouts import answer_timeout
from featcache.system.hub.xet import or_plain_download

WEIGHTS = (".safetensors", ".bin")

__all__ = ["copy_on_disk", "current_files", "endpoint"]


def copy_on_disk(settings: BackboneSettings) -> Path | None:
    """The snapshot folder of the revision as this disk knows it; None if it is not there or not whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                settings.model,
                revision=settings.revision,
                local_files_only=True,
                allow_patterns=_listed(settings, settings.revision or ""),
            )
        )
    except LocalEntryNotFoundError:
        return None
    if is_offline():
        return folder  # what it lacks is said when it is read
    # Other programs may have fetched the configuration alone.
    model = transformer_folder(folder)
    whole = ((model / CONFIG).is_file() or is_static(model)) and any(
        one.suffix in WEIGHTS for one in model.iterdir()
    )
    return folder if whole else None


def current_files(settings: BackboneSettings, copy: Path | None) -> Path:
    """The snapshot folder of what the revision is now; what is not in it is downloaded.

    Args:
        copy: see `copy_on_disk`.

    Raises:
        Exception: of the client, see `hub_error`.
    """
    if copy is not None and (is_offline() or (settings.revision == copy.name and _is_whole(settings, copy))):
        return copy
    if is_offline():
        raise HubError(f"the hub at {endpoint()} is not asked, because HF_HUB_OFFLINE is set")
    there = look_up("model", settings.model, settings.revision)
    if copy is not None and copy.name == there.commit and _is_whole(settings, copy):
        return copy
    require_weights(settings.model, there.files)
    wanted = wanted_files(there.files, remote_code=settings.trust_remote_code)
    tell(f"downloading {settings.model} from {endpoint()} (commit {there.commit[:12]})")
    with nullcontext() if copy is None else without_retries():
        return or_plain_download(lambda: _download(settings, there, wanted))


def _is_whole(settings: BackboneSettings, copy: Path) -> bool:
    """True if every wanted file is in the snapshot, by the list of files that the client keeps beside it."""
    listed = _listed(settings, copy.name)
    return listed is not None and all((copy / name).is_file() for name in listed)


def _listed(settings: BackboneSettings, revision: str) -> list[str] | None:
    """The wanted files of a revision by the client's own list on this disk; None without one."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:  # an older client keeps no list
        return None
    try:
        listed = get_cached_repo_tree(settings.model, revision=revision or None)
    except CachedRepoTreeNotFoundError:
        return None
    return wanted_files([file.path for file in listed], remote_code=settings.trust_remote_code)


def _download(settings: BackboneSettings, there: Repository, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            settings.model,
            revision=settings.revision,
            allow_patterns=list(wanted),
            etag_timeout=answer_timeout(),
            tqdm_class=_bar(settings.model),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        # A mirror may know the repository, but lack the list of its files that the client asks for.
        refusal = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        answer = getattr(refusal, "response", None)
        if answer is None or answer.status_code not in (404, 405, 501) or "/tree/" not in str(answer.url):
            raise
        return _one_by_one(settings, there, wanted)
    return Path(folder)


def _one_by_one(settings: BackboneSettings, there: Repository, wanted: Sequence[str]) -> Path:
    from huggingface_hub import hf_hub_download

    folders: list[Path] = []
    for name in wanted:
        # The first by the revision's own name, so that the client notes which commit it is.
        revision = there.commit if folders else settings.revision
        folders.append(
            Path(
                hf_hub_download(
                    settings.model,
                    name,
                    revision=revision,
                    etag_timeout=answer_timeout(),
                    tqdm_class=_bar(settings.model),
                )
            ).parent
        )
    if not folders:
        raise HubError(f"the hub at {endpoint()} lists no files of {settings.model}")
    return folders[0]


def _bar(model: str) -> type[Any]:
    """The class of the client's progress bars: bytes go to the listener, nothing is drawn."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            # Of bytes there is one bar for what is written and, since Xet, one for what is received.
            self.is_told = kwargs.get("unit") == "B" and kwargs.get("desc") != "Downloading bytes"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.is_told:
                tell_progress(model, int(self.n), int(self.total or 0))

    return Bar
