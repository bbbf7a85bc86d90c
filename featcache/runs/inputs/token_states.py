"""The splits as token states, for heads that pool them; states that are not cached are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from featcache.backbone.model_files.depth_views import DEPTH, depth_views
from featcache.backbone.token_rows import ATTENTIVE, TokenRows
from featcache.backbone.tokens.unknown_tokens import MANY, unknown_text
from featcache.cache.cache import slug
from featcache.cache.catalog import Features
from featcache.cache.view_names import LEXICAL, join_views, split_view
from featcache.data.locate import source_name
from featcache.data.split import Split
from featcache.errors import UsageError
from featcache.extraction.job import Job
from featcache.runs.inputs.sources import SplitSource
from featcache.runs.words import SplitTexts, beside, read_splits
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.model_files.find import ModelFiles


@dataclass(frozen=True)
class StateSplits:
    """The splits of a source as token states, each by its name.

    Attributes:
        features: with `TokenRows` in the place of a matrix, and the words beside them where they are wanted.
        sources: how their states were made.
    """

    splits: dict[str, Split]
    features: dict[str, Features]
    sources: dict[str, SplitSource]

    @property
    def hashes(self) -> dict[str, np.ndarray]:
        return {name: part.row_hash for name, part in self.features.items()}


def read_states(
    settings: Settings, view: str, on_progress: OnProgress | None = None, wait: float = 0.0
) -> StateSplits:
    """The states of all splits at some layers, from the cache or made now, all layers in one pass.

    Args:
        view: `depth`, or layers joined by commas: `last,-3`; `lexical` beside them adds the words.
        on_progress: called while states are made, with their size first.
        wait: seconds to wait for another process that makes the same states.

    Raises:
        SourceError, BackboneError, CacheError: each says what to do.
        UsageError: no layers, or layers that the backbone does not have; windows of long texts.
    """
    asked = split_view(view)
    wanted = tuple(name for name in asked if name != LEXICAL)
    job = _job(settings, wanted, on_progress, wait)
    splits = read_splits(job.settings)
    encoder = job.encoder("train")
    if encoder.long_text == "chunks":
        raise UsageError(
            "the attentive head reads whole texts, not windows of long ones",
            hint="use --long-text truncate or head-tail",
        )
    features, sources = {}, {}
    for name, split in splits.items():
        features[name], sources[name] = _states_of(split, job, encoder)
    if LEXICAL in asked:
        words = SplitTexts.of_splits(splits).rows()
        features = {name: beside(part, words[name]) for name, part in features.items()}
    return StateSplits(splits, features, sources)


def _job(settings: Settings, wanted: tuple[str, ...], on_progress: OnProgress | None, wait: float) -> Job:
    """What makes the states; its encoder has a view of each wanted layer."""
    from featcache.backbone.model_files.find import find_model

    model = find_model(settings.backbone)
    layers = _layers(wanted, model)
    views = tuple(f"{layer}/mean" for layer in layers)  # of a layer the encoder wants some pooling
    features = replace(settings.features, views=views)
    return Job(replace(settings, features=features), on_progress, wait=wait, model=model)


def _layers(wanted: tuple[str, ...], model: ModelFiles) -> tuple[str, ...]:
    """`depth`, `last` or `-3` as names of layers."""
    found: list[str] = []
    for name in wanted:
        layer, _, pooling = name.partition("/")
        if pooling not in ("", ATTENTIVE) or not layer:
            raise UsageError(
                f"--view {name}: the attentive head pools tokens itself, and reads layers",
                hint="e.g. --view last,-3,-5, or --view depth",
            )
        found += [view.partition("/")[0] for view in depth_views(model)] if layer == DEPTH else [layer]
    if not found:
        raise UsageError("the attentive head reads token states of layers", hint="e.g. --view depth,lexical")
    return tuple(dict.fromkeys(found))


def _states_of(split: Split, job: Job, encoder: Encoder) -> tuple[Features, SplitSource]:
    from featcache.extraction.states_cache import cache_states

    def note(text: str) -> None:
        job.on_progress(Progress("note", split.name, text=text))

    for text in split.notes:
        note(text)
    hashes, _ = job.hash_rows(split)
    folder = job.cache.folder / slug(source_name(job.settings.data)) / slug(job.settings.backbone.model)
    layers = [view.layer for view in encoder.views]
    files = cache_states(split, hashes, encoder, layers, folder, job.on_progress, wait=job.wait)
    if (share := files[0].record.unknown_tokens or 0.0) > MANY:
        note(unknown_text(split.name, share))
    names = [view.name.replace("/mean", f"/{ATTENTIVE}") for view in encoder.views]
    rows = TokenRows(
        layers=tuple(files),
        numbers=np.arange(len(split)),
        width=encoder.backbone.width,
        storage=encoder.storage.name,
        skipped=encoder.poolers[encoder.views[0].name].skipped,
        device=str(encoder.backbone.device),
        budget=encoder.batch_tokens,
    )
    features = Features(
        split=split.name,
        view=join_views(names),
        x=rows.as_array(),
        y=split.labels,
        label_names=split.label_names,
        row_hash=hashes,
        encoder=encoder.document,
        fingerprint="",
        path=files[0].path,
    )
    source = SplitSource(
        truncated=files[0].truncated,
        unknown_tokens=files[0].record.unknown_tokens,
        seconds=sum(file.record.seconds for file in files),
        commit=job.model.commit,
    )
    return features, source
