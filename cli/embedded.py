"""The encoder of the demo instead of the default model, where neither a hub nor this disk has it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from featcache.data.locate import locate
from featcache.errors import FeatcacheError, ModelUnreachable
from featcache.settings import BackboneSettings, FeatureSettings
from featcache_cli.console import note
from featcache_cli.progress import Meter

if TYPE_CHECKING:
    from featcache.settings import Settings


def with_embedded_model(settings: Settings, args: argparse.Namespace) -> Settings:
    """`settings` with the embedded encoder where nobody named a model and the default one is not to be had.

    Data on a hub are left to the error: without a hub they are not to be had either.

    Raises:
        ModelUnreachable: it is not to be had, and the package with the embedded encoder is not installed.
    """
    from featcache.backbone.model_files.find import find_model

    if args.model is not None or settings.backbone.model != BackboneSettings().model:
        return settings
    if locate(settings.data).hub_id:
        return settings
    try:
        find_model(settings.backbone)
    except ModelUnreachable as error:
        return _embedded(settings, error, quiet=args.quiet)
    return settings


def _embedded(settings: Settings, error: ModelUnreachable, *, quiet: bool) -> Settings:
    from featcache.cache.cache import Cache
    from featcache.demo.demo import MODEL_NAME, MODEL_SOURCE, PROMPT, build_model

    folder = Cache.open(settings.paths.cache_dir).folder / "models" / MODEL_NAME
    try:
        with Meter(quiet=quiet) as meter:
            build_model(folder, on_progress=lambda now: meter.note(now.text))
    except FeatcacheError as problem:
        hint = f"{error.hint or ''}\nor an encoder without any hub: {problem.hint or problem.what}".lstrip()
        raise ModelUnreachable(error.what, hint=hint) from problem
    note(
        f"{error.what}: the embedded encoder {MODEL_NAME} is used instead, from the package "
        f"{MODEL_SOURCE.package} (--model names another)",
        quiet=quiet,
    )
    features = settings.features
    if features.views == FeatureSettings().views:  # what this model was trained with
        features = replace(features, views=("last/mean",))
    if features.prompt == FeatureSettings().prompt:
        features = replace(features, prompt=PROMPT)
    return replace(settings, backbone=replace(settings.backbone, model=str(folder)), features=features)
