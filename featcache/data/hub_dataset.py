"""Datasets of the Hugging Face hub: the commit of a revision, and the rows at it, also from this disk."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featcache.data.formats.lines import first_line
from featcache.errors import FeatcacheError, SourceError
from featcache.system.durable import write_file
from featcache.system.hub.errors import HubError, Kind, hub_error
from featcache.system.hub.huggingface import COMMIT, endpoint, is_offline, look_up
from featcache.system.hub.listener import tell
from featcache.system.hub.session import counting_bytes
from featcache.system.hub.xet import or_plain_download

if TYPE_CHECKING:
    import datasets

_WAYS_OUT = (
    "ways out:\n"
    "  a mirror: export HF_ENDPOINT=https://<mirror>\n"
    "  what is on this disk: export HF_HUB_OFFLINE=1\n"
    "  a local copy: --dataset FOLDER or --data-files train=F,test=F\n"
    "  no hub at all: featcache demo"
)


def hub_commit(hub_id: str, config: str | None, revision: str | None) -> str | None:
    """The commit that `revision` is now; that of the copy on this disk if the hub gives no answer.

    Returns:
        The commit, or None if neither is known: loading the rows raises the error that says why.
    """
    try:
        return _resolved(hub_id, config, revision)
    except HubError:
        return None


def load_from_hub(hub_id: str, config: str | None, revision: str | None) -> Mapping[str, datasets.Dataset]:
    """The splits of a hub dataset by their names on the hub.

    The rows of a commit that `datasets` has prepared on this disk are read there, without the network.

    Raises:
        SourceError: the dataset, configuration or revision does not exist or is not to be had.
    """
    commit = copy = None
    try:
        commit = _resolved(hub_id, config, revision)
        copy = _prepared(hub_id, config or _default_config(hub_id, commit), commit)
        if copy is None and is_offline():
            raise HubError(f"the hub at {endpoint()} is not asked, because HF_HUB_OFFLINE is set")
        return _read(copy) if copy is not None else _download(hub_id, config, revision, commit)
    except FeatcacheError:
        raise
    except Exception as error:  # of several libraries, of many types
        found = hub_error(error, endpoint(), f"the dataset {hub_id}", revision)
        if commit is not None and found.kind is Kind.UNREACHABLE:
            copy = _prepared(hub_id, config, commit)
        if copy is None:
            raise _explained(error, found, hub_id, config) from error
    return _read(copy)


def _explained(error: Exception, found: HubError, hub_id: str, config: str | None) -> SourceError:
    if "onfig" in first_line(error):  # `datasets` says which configurations there are
        name = hub_id if config is None else f"{hub_id}:{config}"
        return SourceError(
            f"cannot load {name} from the hub: {first_line(error)}",
            hint=f"one of its configurations: --dataset {hub_id}:CONFIG",
        )
    missing = ", and no copy is on this disk" if found.kind is Kind.UNREACHABLE else ""
    hints = [found.hint, "" if found.kind is Kind.DISK else _WAYS_OUT]
    return SourceError(
        f"cannot fetch the dataset {hub_id}: {found.what}{missing}", hint="\n".join(filter(None, hints))
    )


def _resolved(hub_id: str, config: str | None, revision: str | None) -> str:
    """See `hub_commit`.

    Raises:
        HubError: the hub gives no answer, and no copy is on this disk.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    known = commit_on_disk(hub_id, config, revision)
    if is_offline():
        if known is None:
            raise HubError(f"the hub at {endpoint()} is not asked, because HF_HUB_OFFLINE is set")
        return known
    try:
        return look_up("dataset", hub_id, revision).commit
    except HubError as found:
        if known is None or found.kind is Kind.UNKNOWN:
            raise
        tell(f"{found.what}; the copy of {hub_id} on this disk is used (commit {known[:12]})")
        return known


def _download(
    hub_id: str, config: str | None, revision: str | None, commit: str
) -> Mapping[str, datasets.Dataset]:
    import datasets
    import huggingface_hub.utils

    bars: Any = huggingface_hub.utils
    tell(f"downloading {hub_id} from {endpoint()} (commit {commit[:12]})")
    drawn = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()  # the bytes go to the listener
    try:
        with counting_bytes(hub_id):
            found = or_plain_download(lambda: datasets.load_dataset(hub_id, config, revision=commit))
    finally:
        if drawn:
            bars.enable_progress_bars()
    _require_commit(found, hub_id, commit)
    with suppress(OSError):  # without it, the hub is asked the next time
        _write_ref(hub_id, revision, commit)
    return cast("Mapping[str, datasets.Dataset]", found)


def _require_commit(found: Any, hub_id: str, commit: str) -> None:
    """Refuse rows of another commit: when its requests fail, `datasets` takes what it prepared last."""
    for split in found.values():
        for file in split.cache_files:
            made_of = Path(file["filename"]).parent.name
            if COMMIT.fullmatch(made_of) and made_of != commit:
                raise HubError(
                    f"the hub at {endpoint()} stopped answering, and the copy on this disk is another "
                    f"commit ({made_of[:12]}, wanted {commit[:12]})",
                    f"use that copy: --dataset-revision {made_of}",
                    Kind.UNKNOWN,
                )


# ---------------------------------------------------------------- on this disk


def _repository(hub_id: str) -> Path:
    """The folder of the hub's client for a dataset."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{hub_id.replace('/', '--')}"


def _write_ref(hub_id: str, revision: str | None, commit: str) -> None:
    """Note which commit a revision is, where the hub's client notes it."""
    if revision is None or not COMMIT.fullmatch(revision):
        path = _repository(hub_id) / "refs" / (revision or "main")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, commit.encode())


def commit_on_disk(hub_id: str, config: str | None, revision: str | None) -> str | None:
    """The commit of the copy on this disk: of the revision when the hub was last asked, else the newest."""
    with suppress(OSError, ValueError):
        noted = (_repository(hub_id) / "refs" / (revision or "main")).read_text("ascii").strip()
        if _prepared(hub_id, config, noted) or _prepared(hub_id, _default_config(hub_id, noted), noted):
            return noted
    if revision is not None:
        return None
    newest = _prepared(hub_id, config, None)
    return None if newest is None else newest.name


def _prepared(hub_id: str, config: str | None, commit: str | None) -> Path | None:
    """The folder in which `datasets` keeps the Arrow files of a configuration at a commit; None without one.

    `datasets` is not imported.

    Args:
        config: None for the one called "default", else for the only one that is there.
        commit: None for any: the folder that was made last.
    """
    owner, _, name = hub_id.rpartition("/")
    root = _arrow_files() / (f"{owner}___" * bool(owner) + _snake_case(name))
    made = [one for one in root.glob(f"*/*/{commit or '*'}") if (one / "dataset_info.json").is_file()]
    found = [one for one in made if one.parts[-3] == (config or "default")]
    if not found and config is None and len({one.parts[-3] for one in made}) == 1:
        found = made
    return max(found, key=lambda one: one.stat().st_mtime, default=None)


def _arrow_files() -> Path:
    """The folder of the Arrow files of `datasets`."""
    if "datasets" in sys.modules:
        return Path(sys.modules["datasets"].config.HF_DATASETS_CACHE)
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()


def _snake_case(name: str) -> str:
    """`ChnSentiCorp` -> `chn_senti_corp`, as `datasets` names its folders."""
    return re.sub("([a-z0-9])([A-Z])", r"\1_\2", re.sub("([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower()


def _default_config(hub_id: str, commit: str | None) -> str:
    """The name of the configuration that is loaded where none is asked for, by the card on this disk."""
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    default = None
    with suppress(Exception):  # no card, or one that is no card
        card = DatasetCard.load(_repository(hub_id) / "snapshots" / (commit or "") / "README.md").data
        infos = card.get("dataset_info")
        named = infos.get("config_name") if isinstance(infos, dict) else None
        default = MetadataConfigs.from_dataset_card_data(card).get_default_config_name() or named
    return default or "default"


def _read(folder: Path) -> Mapping[str, datasets.Dataset]:
    """The splits in a folder that `datasets` prepared."""
    import datasets

    try:
        info = datasets.DatasetInfo.from_directory(str(folder))
        found = {}
        for name in info.splits or ():
            stem = f"{info.dataset_name}-{name}"
            files = [folder / f"{stem}.arrow"] if (folder / f"{stem}.arrow").is_file() else []
            files = files or sorted(folder.glob(f"{stem}-*-of-*.arrow"))
            parts = [datasets.Dataset.from_file(str(file), info=info, split=name) for file in files]
            found[str(name)] = datasets.concatenate_datasets(parts)
    except Exception as error:  # of several libraries, of many types
        raise SourceError(
            f"cannot read the copy of the dataset in {folder}: {first_line(error)}",
            hint="remove this folder, so that it is made again",
        ) from error
    return found
