"""Datasets of the hub: the commit of a revision, and their rows, also from an offline copy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

from featcache.data.formats.lines import first_line
from featcache.errors import SourceError

if TYPE_CHECKING:
    import datasets

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_HUB = (
    "three ways out:\n"
    "  a mirror: export HF_ENDPOINT=https://<mirror>\n"
    "  a local copy: --dataset FOLDER or --data-files train=F,test=F\n"
    "  no hub at all: featcache demo"
)


def load_from_hub(hub_id: str, config: str | None, revision: str | None) -> Mapping[str, datasets.Dataset]:
    """The splits of a hub dataset by their names on the hub.

    Raises:
        SourceError: the dataset, configuration or revision does not exist or cannot be reached.
    """
    import datasets

    reachable = _hub_answers(hub_id, revision)
    try:
        # Without the hub, `datasets` takes the copy in its cache, but tries the hub for most of a
        # minute first unless it is offline.
        with contextlib.nullcontext() if reachable else _offline():
            return cast(
                "Mapping[str, datasets.Dataset]",
                datasets.load_dataset(hub_id, config, revision=revision),
            )
    except Exception as error:  # errors of other libraries, of many types
        if not reachable or _is_connection_error(error):
            raise SourceError(
                f"cannot reach the hub for the dataset {hub_id}, and no copy is cached",
                hint=_NO_HUB,
            ) from error
        name = hub_id if config is None else f"{hub_id}:{config}"
        hint = f"one of its configurations: --dataset {hub_id}:CONFIG" if "onfig" in str(error) else None
        raise SourceError(f"cannot load {name} from the hub: {first_line(error)}", hint=hint) from error


def hub_commit(hub_id: str, revision: str | None) -> str | None:
    """The commit that `revision` is now, or None if the hub cannot be asked."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        return _ask_hub(hub_id, revision)
    except Exception:  # offline, refused or unknown: loading the rows raises the error that says why
        return None


def _hub_answers(hub_id: str, revision: str | None) -> bool:
    """True if the hub answers for this dataset; one short attempt.

    Raises:
        SourceError: by its answer the dataset or revision does not exist.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        _ask_hub(hub_id, revision)
    except RevisionNotFoundError as error:
        raise SourceError(f"the dataset {hub_id} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"no dataset {hub_id} on the hub, or one that needs a login",
            hint=f"check the spelling, or log in with: hf auth login; else {_NO_HUB}",
        ) from error
    except Exception as error:
        # `datasets` handles any other answer, e.g. of a mirror without this part of the API.
        return type(error).__name__ == "HfHubHTTPError"
    return True


def _ask_hub(hub_id: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(hub_id, revision=revision, timeout=5).sha


def _is_connection_error(error: BaseException) -> bool:
    """True if `error` or one of its causes is an error of the network."""
    seen: BaseException | None = error
    while seen is not None:
        names = {cls.__name__ for cls in type(seen).__mro__}
        if names & {"ConnectionError", "TransportError", "TimeoutError", "LocalEntryNotFoundError"}:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Put `datasets` and the hub client into offline mode."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
