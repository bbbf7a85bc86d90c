"""Cache files of several backbones side by side, with the same rows and labels: read like one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from featcache.cache.catalog import CacheFile, Features
from featcache.cache.record import CacheRecord
from featcache.cache.view_names import join_views, named_view, split_name, split_view
from featcache.errors import CacheMiss, HeadError
from featcache.extraction.api import find_features
from featcache.extraction.named_backbones import settings_by_name
from featcache.fingerprint import fingerprint, joined_document
from featcache.runs.record import BackboneRecord, CacheReference
from featcache.settings import Settings
from featcache.system.sharded_array import join_columns

OTHER_ROWS = "extract all of them from the same data: featcache extract --all-splits, with the same --views"


def find_joined(settings: Settings, split: str) -> CacheFile:
    """The file of a split with the views of `settings`, of one backbone or of several.

    Raises:
        CacheMiss: features of a backbone are not there.
        HeadError: the files of two backbones have other rows or labels.
        UsageError: a backbone that has no name.
    """
    named = settings_by_name(settings)
    if [*named] == [""]:
        return find_features(settings, split)
    found = {}
    for name, own in named.items():
        try:
            found[name] = find_features(own, split)
        except CacheMiss as miss:
            views = ",".join(settings.features.views)
            raise CacheMiss(
                f"backbone {name or own.backbone.model}: {miss.what}",
                hint=f"make them with the same flags: featcache extract --all-splits --views={views}",
            ) from None
    return JoinedFile(found)


def reference_of(file: CacheFile) -> CacheReference:
    """What `open_reference` finds the file by, or the files of several backbones."""
    files = file.files if isinstance(file, JoinedFile) else {}
    named = {name: reference_of(one) for name, one in files.items()}
    return CacheReference(str(file.path), file.fingerprint, named)


def backbone_records(settings: Settings, file: CacheFile) -> dict[str, BackboneRecord]:
    """Of several backbones, by their names, what a run keeps of each; empty of one."""
    if not isinstance(file, JoinedFile):
        return {}
    named = settings_by_name(settings, file.views)
    return {
        name: BackboneRecord(**asdict(named[name].backbone), commit=one.record.made.commit)
        for name, one in file.files.items()
    }


def open_reference(cache: CacheReference) -> CacheFile:
    """The file, or files side by side, that a run was trained on.

    Raises:
        HeadError: another file is there now.
        CacheError: it is gone, or damaged.
    """
    if cache.named:
        return JoinedFile({name: open_reference(one) for name, one in cache.named.items()})
    file = CacheFile(Path(cache.path))
    if file.fingerprint != cache.fingerprint:
        raise HeadError(
            f"{file.path} is another file than the one the run was trained on",
            hint="train that head again: featcache train-head",
        )
    return file


class JoinedFile(CacheFile):
    """The files of one split, by the names of their backbones.

    Rows, labels and their columns are those of the first.

    Raises:
        HeadError: files with other rows or labels.
    """

    def __init__(self, files: Mapping[str, CacheFile]) -> None:
        self.files = files
        first, *others = files.values()
        for other in others:
            both = [(file.document.rows, file.document.labels) for file in (first, other)]
            if both[0] != both[1]:
                raise HeadError(
                    f"{first.path.name} and {other.path.name} have other rows or labels of {first.split}",
                    hint=OTHER_ROWS,
                )
        self.path, self.sealed, self.asked = first.path, first.sealed, {}
        encoder = joined_document({name: file.document.encoder for name, file in files.items()})
        views = tuple(named_view(name, view) for name, file in files.items() for view in file.views)
        self.document = replace(first.document, encoder=encoder, views=views)

    @property
    def fingerprint(self) -> str:
        return fingerprint([file.fingerprint for file in self.files.values()])

    @property
    def tokens(self) -> int:
        return sum(file.tokens for file in self.files.values())

    @property
    def truncated(self) -> int:
        """How many texts were truncated for one of the backbones."""
        columns = [np.asarray(file.sealed.column("truncated"), bool) for file in self.files.values()]
        return int(np.logical_or.reduce(columns).sum())

    @cached_property
    def record(self) -> CacheRecord:
        """That of the first file, with the seconds of all."""
        records = [file.record for file in self.files.values()]
        seconds = sum(one.made.seconds or 0.0 for one in records)
        return replace(records[0], made=replace(records[0].made, seconds=seconds))

    def stored_view(self, asked: str) -> str:
        """See `CacheFile.stored_view`, of each view in its own file."""
        found = []
        for part in split_view(asked):
            name, own = split_name(part)
            stored = self.files[name].stored_view(own) if name in self.files else own
            found += [named_view(name, view) for view in split_view(stored)]
        return join_views(found)

    def features(self, view: str) -> Features:
        """See `CacheFile.features`; the encoder is that of the backbones that the view reads."""
        wanted = split_view(view)
        if missing := [name for name in wanted if name not in self.views]:
            raise CacheMiss(
                f"the features of {self.split} have views {', '.join(self.views)}, not {', '.join(missing)}",
                hint=f"make them: featcache extract --all-splits --views={','.join(wanted)}",
            )
        parts = [self.files[name].features(own) for name, own in map(split_name, wanted)]
        encoders = {name: self.files[name].document.encoder for name, _ in map(split_name, wanted)}
        encoder = parts[0].encoder if [*encoders] == [""] else joined_document(encoders)
        return replace(
            parts[0],
            view=view,
            x=join_columns([part.x for part in parts]),
            encoder=encoder,
            fingerprint=self.fingerprint,
        )
