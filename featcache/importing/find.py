"""Find imported vectors in the cache by their name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from featcache.backbone.model_files.kinds import vectors_name
from featcache.cache.cache import Cache
from featcache.cache.catalog import CacheFile
from featcache.data.locate import SPLITS
from featcache.errors import CacheMiss, UsageError
from featcache.importing.seal import VIEW
from featcache.settings import DataSettings, FeatureSettings, Settings, build_dataclass


def find_imported(settings: Settings, split: str) -> CacheFile:
    """The file of `vectors:NAME` for a split.

    Raises:
        CacheMiss: the name has no vectors of this split.
        UsageError: a view is asked for that imported vectors do not have.
    """
    model, default = settings.backbone.model, FeatureSettings().views
    found = Cache.open(settings.paths.cache_dir).imported(model)
    if odd := [view for view in settings.features.views if view not in (VIEW, *default)]:
        raise UsageError(
            f"--view {odd[0]}: {model} has one view, {VIEW}", hint=f"leave it out, or write {VIEW}"
        )
    if split not in found:
        known = (
            f"it has {', '.join(name for name in SPLITS if name in found)}"
            if found
            else "nothing was imported under that name"
        )
        what = f"{model} has no {split} vectors in {settings.paths.cache_dir}: {known}"
        name = vectors_name(model)
        hint = f"import them: featcache import VECTORS --texts FILE --split {split} --as {name}"
        if split == "validation" and "train" in found:
            hint += "; or import all rows under another name without --split, which holds validation out"
        raise CacheMiss(what, hint=hint)
    file = found[split]
    file.asked = dict.fromkeys((*default, VIEW), VIEW)
    return file


def with_imported_texts(settings: Settings) -> Settings:
    """Settings of `vectors:NAME` with their view and their texts, unless they name others themselves."""
    if settings.features.views == FeatureSettings().views:
        settings = replace(settings, features=replace(settings.features, views=(VIEW,)))
    if settings.data != DataSettings():
        return settings
    values: dict[str, Any] = {}
    files: dict[str, str] = {}
    for file in Cache.open(settings.paths.cache_dir).imported(settings.backbone.model).values():
        made = file.record.made.texts or {}
        values = made | values if file.split != "train" else values | made
        files = files | made.get("data_files", {})
    return (
        replace(settings, data=build_dataclass(DataSettings, values | {"data_files": files}))
        if files
        else settings
    )
