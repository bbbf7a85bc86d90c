"""The encoder of the demo instead of the default model, where neither a hub nor this disk has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from featcache.cache.cache import Cache
from featcache.data.locate import locate
from featcache.demo import demo
from featcache.errors import FeatcacheError, ModelUnreachable
from featcache.settings import BackboneSettings, FeatureSettings, Settings
from featcache.system.progress import OnProgress, Progress, ignore

T = TypeVar("T")


def with_embedded_model(
    settings: Settings, work: Callable[[Settings], T], *, named: bool, on_progress: OnProgress = ignore
) -> tuple[Settings, T]:
    """Do `work`; with the embedded encoder where nobody named a model and the default one is not to be had.

    Data on a hub are left to the error: without a hub they are not to be had either.

    Args:
        work: extracts with such settings.
        named: somebody named the model, even if it is the default one.

    Returns:
        The settings it was done with, and its result.

    Raises:
        ModelUnreachable: it is not to be had, and the package with the embedded encoder is not installed.
    """
    try:
        return settings, work(settings)
    except ModelUnreachable as error:
        if named or settings.backbone.model != BackboneSettings().model or locate(settings.data).hub_id:
            raise
        settings = _embedded(settings, error, on_progress)
    return settings, work(settings)


def _embedded(settings: Settings, error: ModelUnreachable, on_progress: OnProgress) -> Settings:
    folder = Cache.open(settings.paths.cache_dir).folder / "models" / demo.MODEL_NAME
    try:
        demo.build_model(folder)
    except FeatcacheError as problem:
        hint = f"{error.hint or ''}\nor an encoder without any hub: {problem.hint or problem.what}".lstrip()
        raise ModelUnreachable(error.what, hint=hint) from problem
    said = (
        f"{error.what}: the embedded encoder {demo.MODEL_NAME} is used instead, from the package "
        f"{demo.MODEL_SOURCE.package} (--model names another)"
    )
    on_progress(Progress("note", text=said))
    features = settings.features
    if features.views == FeatureSettings().views:  # what this model was trained with
        features = replace(features, views=("last/mean",))
    if features.prompt == FeatureSettings().prompt:
        features = replace(features, prompt=demo.PROMPT)
    return replace(settings, backbone=replace(settings.backbone, model=str(folder)), features=features)
