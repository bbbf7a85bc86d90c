"""The files of a hub model that featcache reads, downloaded to this disk."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from featcache.backbone.model_files.weight_files import PICKLED, SAFETENSORS, no_weights
from featcache.errors import BackboneError
from featcache.settings import BackboneSettings

# Everything a tokenizer may be read from: tokenizer.json, vocabularies, merges, sentencepiece models.
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.codes",
    "*.bpe",
)
WAYS_OUT = (
    "ways out: a mirror (export HF_ENDPOINT=https://...), a local folder (--model FOLDER), "
    "or the embedded encoder (featcache demo)"
)


def download_model(settings: BackboneSettings) -> Path:
    """The local snapshot folder of a hub model; its name is the resolved commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    fetch = partial(
        snapshot_download,
        settings.model,
        ignore_patterns=["*/*"],  # other formats live in sub-folders (onnx/, openvino/)
    )
    patterns = ["*.json", "*.safetensors", "*.txt", *TOKENIZER_FILES]
    patterns += ["*.py"] if settings.trust_remote_code else []
    try:
        folder = Path(fetch(revision=settings.revision, allow_patterns=patterns))
        if not SAFETENSORS.names(folder):
            pickled = PICKLED.names(folder) or [PICKLED.single]
            fetch(revision=folder.name, allow_patterns=pickled)
        if not (SAFETENSORS.names(folder) or PICKLED.names(folder)):
            raise no_weights(settings.model, _published(settings.model, folder.name))
        return folder
    except HFValidationError as error:
        raise BackboneError(f"{settings.model!r} is neither a folder nor a hub id: {error}") from None
    except RevisionNotFoundError:
        raise BackboneError(f"the hub has no revision {settings.revision!r} of {settings.model}") from None
    except LocalEntryNotFoundError as error:
        raise BackboneError(
            f"cannot reach the model hub for {settings.model}, and it is not on this disk",
            hint=WAYS_OUT,
        ) from error
    except RepositoryNotFoundError:
        raise BackboneError(
            f"the hub has no model {settings.model!r}, or it needs a login (hf auth login)",
            hint=WAYS_OUT,
        ) from None
    except (OSError, RuntimeError) as error:
        raise BackboneError(f"cannot fetch {settings.model}: {error}", hint=WAYS_OUT) from error


def _published(model: str, commit: str) -> list[str]:
    """The names of all files of a hub model, for a message; empty where the hub does not say."""
    from huggingface_hub import list_repo_files

    with suppress(Exception):  # offline, or any error of the network
        return list_repo_files(model, revision=commit)
    return []
