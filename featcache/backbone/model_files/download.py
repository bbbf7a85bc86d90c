"""The files of a hub's model that featcache reads, on this disk at one commit."""

from __future__ import annotations

from pathlib import Path

from featcache.errors import BackboneError, FeatcacheError, ModelUnreachable
from featcache.settings import BackboneSettings
from featcache.system.hub.errors import HubError, Kind, hub_error
from featcache.system.hub.listener import tell
from featcache.translation.language import noted
from featcache.translation.sentences import FINISHED

WAYS_OUT = noted(
    "ways out: a mirror (export HF_ENDPOINT=https://<mirror>), another hub (--hub modelscope), "
    "what is on this disk (export HF_HUB_OFFLINE=1), a local folder (--model FOLDER), "
    "or the embedded encoder (featcache run FILE, or featcache extract, without --model)",
    FINISHED,
)


def download_model(settings: BackboneSettings) -> Path:
    """The local snapshot folder of a hub's model; its name is the resolved commit.

    The hub is asked what the revision is now, unless it is a commit and its files are on this disk. Where it
    gives no answer within ten seconds, the copy on this disk is used, and the listener is told so.

    Raises:
        BackboneError: no copy is on this disk, and the hub gives none; the disk refuses it; or the model has
            no weights that featcache reads.
    """
    if settings.hub == "modelscope":
        from featcache.backbone.model_files import modelscope as hub
    else:
        from featcache.backbone.model_files import huggingface as hub  # type: ignore[no-redef]
    copy: Path | None = None
    try:
        copy = hub.copy_on_disk(settings)
        return hub.current_files(settings, copy)
    except FeatcacheError:
        raise
    except Exception as error:  # of several libraries, of many types
        found = hub_error(error, hub.endpoint(), f"the model {settings.model}", settings.revision)
        return _copy_instead(settings, copy, found, error)


def _copy_instead(settings: BackboneSettings, copy: Path | None, found: HubError, error: Exception) -> Path:
    if found.kind in (Kind.UNKNOWN, Kind.DISK) or copy is None:
        hints = [found.hint, "" if found.kind is Kind.DISK else WAYS_OUT]
        what, hint = f"cannot fetch the model {settings.model}: {found.what}", "\n".join(filter(None, hints))
        if found.kind is Kind.UNREACHABLE:
            raise ModelUnreachable(f"{what}, and no complete copy is on this disk", hint=hint) from error
        raise BackboneError(what, hint=hint) from error
    tell(f"{found.what}; the copy of {settings.model} on this disk is used (commit {copy.name[:12]})")
    return copy
