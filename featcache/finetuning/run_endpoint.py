"""The endpoint whose vectors the head of a run reads, and the run's encoder by it."""

from __future__ import annotations

from pathlib import Path

from featcache.backbone.endpoint.encoder import EndpointEncoder
from featcache.backbone.endpoint.model import EndpointModel
from featcache.cache.cache import Cache
from featcache.endpoint_settings import EndpointSettings
from featcache.errors import UsageError
from featcache.extraction.endpoint.canary import Canary
from featcache.fingerprint import EndpointPart
from featcache.heads.head import Head
from featcache.runs.run import Run
from featcache.settings import FeatureSettings


def run_endpoint(
    run: Run,
    head: Head,
    part: EndpointPart,
    named: str | None,
    settings: EndpointSettings,
    *,
    name: str | None = None,
) -> EndpointEncoder:
    """The encoder of a head's features by its endpoint; the canary is compared before a text is sent.

    Args:
        named: what the user says is the model. Texts and key go to another machine only if the user names
            it: `run.json` is the word of whoever trained the head.
        name: of the endpoint, where the head reads several backbones.

    Raises:
        UsageError: the endpoint is on another machine, and the user does not name it.
        BackboneError: it gives other vectors than those that the head was trained on, or does not answer.
    """
    model = EndpointModel(part.address, part.model, part.revision)
    if named is not None and (asked := EndpointModel.parse(named, part.revision)) != model:
        raise UsageError(
            f"{run.name} reads vectors of {model.name} at {model.address}, not of {asked.name} at "
            f"{asked.address}",
            hint="name the endpoint that it was trained with, or train a head on vectors of the other one",
        )
    if named is None and not model.is_local:
        own = "" if name is None else f"{name}="
        raise UsageError(
            f"{run.name} reads vectors of {model.name}; predicting sends texts and your key to {model.host}, "
            "which only you can allow, whatever the run says",
            hint=f"--model {own}openai+{model.address}#{model.name}, or the same model in featcache.toml",
        )
    document = head.encoder
    features = FeatureSettings(
        views=tuple(head.views), prompt=document.prompt, storage=document.dtype.storage
    )
    encoder = EndpointEncoder(model, model.follow(features).features, settings, width=part.width)
    for folder in _caches_of(run):
        canary = Canary(Cache(folder), encoder)
        if (stored := canary.stored()) is not None:
            canary.check(stored)
            break
    return encoder


def _caches_of(run: Run) -> list[Path]:
    """Folders of the caches that the head was trained on, as far as they are here."""
    folders = (Path(reference.path).resolve().parents[2] for reference in run.record.caches.values())
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
