"""Several backbones by names: the settings of each, and its views, written `A:last/mean`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from featcache.cache.view_names import split_name
from featcache.errors import UsageError
from featcache.settings import FeatureSettings, Settings, load_settings


def settings_by_name(settings: Settings, views: Sequence[str] | None = None) -> dict[str, Settings]:
    """For each backbone that views name, the settings of its own views; the main one has the name "".

    Args:
        views: by default those of `settings`.

    Raises:
        UsageError: a name that `backbones` does not have, or a settings file that cannot be read.
    """
    found: dict[str, list[str]] = {}
    for view in settings.features.views if views is None else views:
        name, own = split_name(view)
        found.setdefault(name, []).append(own)
    return {name: _named(settings, name, tuple(own)) for name, own in found.items()}


def _named(settings: Settings, name: str, views: tuple[str, ...]) -> Settings:
    """Data, folders and head of `settings`; backbone and features of the one that is named."""
    places = settings.backbone.backbones or {}
    if not name:
        backbone, features = settings.backbone, settings.features
    elif name not in places:
        known = f"named are {', '.join(places)}" if places else "none is named"
        raise UsageError(
            f"--view {name}:{views[0]}: no backbone has the name {name}; {known}",
            hint="name each: --backbones A=MODEL,B=FILE.toml, or in featcache.toml below [backbone]",
        )
    elif places[name].endswith(".toml"):
        own = load_settings(path=places[name])
        backbone, features = own.backbone, own.features
    else:
        backbone = replace(settings.backbone, model=places[name], revision=None, adapter=None)
        features = replace(FeatureSettings(), storage=settings.features.storage)
    backbone, features = replace(backbone, backbones=None), replace(features, views=views)
    return replace(settings, backbone=backbone, features=features)
