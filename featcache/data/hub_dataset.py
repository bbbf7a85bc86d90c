"""Datasets of the hub: which commit a revision is, and their rows, also from an offline copy."""

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
    """The splits of a hub dataset, by the names they have there.

    Raises:
        SourceError: no such dataset, configuration or revision, or no way to reach it.
    """
    import datasets

    reachable = _hub_answers(hub_id, revision)
    try:
        # Without a hub, a copy in the cache of `datasets` still serves; asking the hub again and
        # again before it is taken would cost most of a minute.
        with contextlib.nullcontext() if reachable else _offline():
            return cast(
                "Mapping[str, datasets.Dataset]",
                datasets.load_dataset(hub_id, config, revision=revision),
            )
    except Exception as error:  # a boundary: everything in there comes from the outside
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
    except Exception:  # offline, refused, unknown: loading the rows will say what is wrong
        return None


def _hub_answers(hub_id: str, revision: str | None) -> bool:
    """True if the hub can be asked about this dataset; one short try.

    Raises:
        SourceError: the hub answers that there is no such dataset or revision.
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
        # Any other answer (a mirror without this part of the API) is left to `datasets`.
        return type(error).__name__ == "HfHubHTTPError"
    return True


def _ask_hub(hub_id: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(hub_id, revision=revision, timeout=5).sha


def _is_connection_error(error: BaseException) -> bool:
    """True if `error` or what caused it is about the network."""
    seen: BaseException | None = error
    while seen is not None:
        names = {cls.__name__ for cls in type(seen).__mro__}
        if names & {"ConnectionError", "TransportError", "TimeoutError", "LocalEntryNotFoundError"}:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """`datasets` and the hub client in offline mode, which they else take from the environment."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
