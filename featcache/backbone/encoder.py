"""Texts to vectors, for extraction and prediction alike.

Texts are tokenised together, sorted by length, packed under a token budget, run through the backbone,
pooled, and written into one preallocated matrix for each view, by row number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from featcache.backbone import load as loading
from featcache.backbone.device_copies import IN_FLIGHT, HostCopy, copier_of
from featcache.backbone.memory_limit import BatchQueue
from featcache.backbone.model import Backbone
from featcache.backbone.model_files.find import ModelFiles, find_model
from featcache.backbone.packing import TokenBatch
from featcache.backbone.pooling import POOLED_TOKEN, POOLINGS, View, parse_view
from featcache.backbone.position_table import Extension
from featcache.backbone.tokenization import Tokenization, Tokens
from featcache.errors import BackboneError, BadRow, UsageError
from featcache.fingerprint import Dtypes, EncoderDocument
from featcache.settings import BackboneSettings, FeatureSettings

BATCHES = {  # what the user is told of batches that are not packed
    "padded": "padded batches instead of packed ones",
    "equal lengths": "batches of equally long texts, without padding",
    "one by one": "one text at a time",
}
DEFAULT_BUDGET = {"cpu": 4096, "cuda": 65536}
TOO_LONG = "use a smaller --max-length (with --long-text chunks no text is truncated), or another --device"


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of N texts.

    Attributes:
        views: features `[N, D]` in the storage dtype, by view name.
        n_tokens: int32 `[N]`, tokens that were encoded; those in two windows count once.
        truncated: bool `[N]`.
    """

    views: dict[str, np.ndarray]
    n_tokens: np.ndarray
    truncated: np.ndarray


class Encoder:
    """A backbone with everything else that changes a feature: views, prompt, length, storage.

    Args:
        backbone: loaded and frozen.
        features: views, prompt, longest text and what is done with longer ones, storage dtype. The
            backbone's positions are extended where they ask for it.
        batch_tokens: token budget of a batch; by default chosen by device.

    Raises:
        UsageError: a view or a length that the backbone does not have.
        BackboneError: positions that cannot be extended.
    """

    def __init__(
        self, backbone: Backbone, features: FeatureSettings, batch_tokens: int | None = None
    ) -> None:
        self.backbone = backbone
        self.views: list[View] = sorted({parse_view(text, backbone.num_blocks) for text in features.views})
        if not backbone.inner_layers and self.views[0].layer < backbone.num_blocks:
            raise UsageError(
                f"{backbone.files.name} ({type(backbone.model).__name__}) has one vector a token at its last "
                f"layer alone: no view {self.views[0].name}",
                hint="use views of the last layer, for example --views last/mean",
            )
        self.prompt = features.prompt
        if extension := Extension.of(features):
            backbone.extend(extension)
        self.max_length = _usable_length(backbone, features.max_length)
        self.long_text, self.overlap = features.long_text, features.overlap
        self._tokenization = Tokenization(
            backbone, prompt=self.prompt, max_length=self.max_length,
            long_text=self.long_text, overlap=self.overlap,
        )  # fmt: skip
        self.notes = self._notes(features)
        self.storage = np.dtype(features.storage)
        self.batch_tokens = batch_tokens or DEFAULT_BUDGET.get(backbone.device.type, 4096)

    @classmethod
    def load(
        cls, backbone: BackboneSettings, features: FeatureSettings, files: ModelFiles | None = None
    ) -> Encoder:
        """The encoder that the settings ask for.

        Args:
            files: of the backbone; by default found (and downloaded if need be) by its settings.

        Raises:
            BackboneError: the model cannot be found or loaded, or its positions cannot be extended.
            UsageError: a device, a view or a length that there is not.
        """
        loaded = loading.load_backbone(backbone, files or find_model(backbone))
        return cls(loaded, features, backbone.batch_tokens)

    @cached_property
    def _pooled(self) -> list[str]:
        """The tokens pooled at the highest layer, if its block can run for them alone; else empty."""
        highest = self.views[-1].layer
        poolings = {view.pooling for view in self.views if view.layer == highest}
        usable = self.backbone.runs_pooled_alone and highest > 0 and poolings <= set(POOLED_TOKEN)
        return sorted(POOLED_TOKEN[pooling] for pooling in poolings) if usable else []

    @property
    def document(self) -> EncoderDocument:
        """Everything that turns a text into a vector, layer and pooling apart."""
        return EncoderDocument(
            files=self.backbone.files.hashes,
            prompt=self.prompt,
            max_length=self.max_length,
            truncation_side=self.backbone.tokenizer.truncation_side,
            dtype=Dtypes(self.backbone.dtype_name, self.storage.name),
            long_text=self.long_text,
            overlap=self.overlap if self.long_text == "chunks" else None,
            positions=self.backbone.extension.document if self.backbone.extension else None,
        )

    def _notes(self, features: FeatureSettings) -> list[str]:
        """What differs from what was asked for, as messages for the user."""
        notes, asked = [], features.max_length
        what = "window" if self.long_text == "chunks" else "text"
        if self.max_length < asked:
            notes.append(f"longest {what}: {self.max_length} tokens, the model's own limit (not {asked})")
            if self.long_text == "truncate":
                more = " or --extend-positions copy" if self.backbone.can_extend(self.max_length) else ""
                notes.append(f"longer texts are truncated; to use all of them: --long-text chunks{more}")
        if features.extend_positions != "none" and self.backbone.extension is None:
            notes.append(f"positions are not extended: {self.backbone.extension_note}")
        if self.backbone.packing in BATCHES:
            notes.append(f"{BATCHES[self.backbone.packing]}: {self.backbone.packing_note}")
        return notes

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """See `Tokenization.__call__`."""
        return self._tokenization(texts, pairs)

    def encode(self, tokens: Tokens, on_batch: Callable[[int, int], None] | None = None) -> Encoded:
        """Features of tokenised texts, in their order.

        Args:
            on_batch: called after each batch with the number of texts and of tokens done in it.

        Raises:
            BackboneError: NaN, infinite, or too large for the storage dtype; a text that does not
                fit in memory even alone.
        """
        tell, windows = on_batch or (lambda *_: None), tokens.windows
        if windows is None:
            views = self._encode_rows(tokens, self.storage, lambda rows, count: tell(len(rows), count))
            return Encoded(views, tokens.lengths.astype(np.int32), tokens.truncated)
        done = windows.count_texts(tell)
        parts = self._encode_rows(tokens, np.dtype(np.float32), done)
        views = {
            view.name: windows.join(parts[view.name], view.pooling).astype(self.storage)
            for view in self.views
        }
        return Encoded(views, windows.n_tokens.astype(np.int32), tokens.truncated)

    def _encode_rows(
        self, tokens: Tokens, dtype: np.dtype[Any], done: Callable[[np.ndarray, int], None]
    ) -> dict[str, np.ndarray]:
        """Features `[rows, D]` by view name; `done` is called with the rows and tokens of each batch."""
        count = len(tokens.lengths)
        filled: dict[str, np.ndarray] = {}
        batches = BatchQueue(tokens.lengths, self.batch_tokens)
        flight: deque[tuple[np.ndarray, HostCopy]] = deque()  # batches on the device, oldest first

        def begin(rows: np.ndarray) -> None:
            flight.append((rows, self._pool(tokens.batch(rows))))

        while batches or flight:
            if batches and len(flight) < IN_FLIGHT.get(self.backbone.device.type, 1):
                batches.run_next(begin, TOO_LONG)
                self.batch_tokens = batches.budget
                continue
            rows, copy = flight.popleft()
            for name, values in copy.wait().items():
                self._check_range(name, values, tokens.texts_of(rows))
                if name not in filled:
                    filled[name] = np.empty((count, values.shape[1]), dtype=dtype)
                filled[name][rows] = values
            done(rows, int(tokens.lengths[rows].sum()))
        for view in self.views:
            filled.setdefault(view.name, np.empty((0, 0), dtype=dtype))
        return filled

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """`encode(tokenize(texts, pairs))`."""
        return self.encode(self.tokenize(texts, pairs))

    def _pool(self, batch: TokenBatch) -> HostCopy:
        """Features float32 `[B, D]` by view name, on their way to the host."""
        places = self._pooled
        states, layout = self.backbone.states(batch, sorted({view.layer for view in self.views}), places)
        highest = self.views[-1].layer
        with torch.inference_mode():
            pooled = {
                view.name: states[highest][places.index(POOLED_TOKEN[view.pooling])]
                if places and view.layer == highest
                else POOLINGS[view.pooling](states[view.layer], layout)
                for view in self.views
            }
            return copier_of(self.backbone.device).to_host({name: v.float() for name, v in pooled.items()})

    def _check_range(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        """Refuse features that storage would round to infinity, and NaN."""
        fine = np.abs(values) <= np.finfo(self.storage).max  # NaN compares false
        if fine.all():
            return
        first = int(np.flatnonzero(~fine.all(axis=1))[0])
        overflow = bool(np.isfinite(values[first]).all())
        raise BadRow(
            f"its {name} features are {'too large for float16' if overflow else 'NaN or infinite'} "
            f"(compute {self.backbone.dtype_name}, storage {self.storage.name})",
            int(rows[first]),
            "try --storage float32"
            if overflow
            else "try --dtype float32; if it stays so, the weights themselves are damaged",
        )


def _usable_length(backbone: Backbone, asked: int) -> int:
    """The lowest of `asked` and what backbone and tokenizer allow."""
    least = backbone.tokenizer.num_special_tokens_to_add(pair=True) + 2
    if asked < least:
        raise UsageError(f"--max-length {asked} leaves no room for text; at least {least}")
    limits = [backbone.position_limit, backbone.tokenizer.model_max_length]
    limit = int(min(limit for limit in limits if limit))
    if limit < least:
        raise BackboneError(
            f"{backbone.files.name} takes {limit} tokens, which leaves no room for text; at least {least}",
            hint="model_max_length in its tokenizer_config.json or its positions in config.json are wrong",
        )
    if asked > max(limit, FeatureSettings.max_length):
        raise UsageError(
            f"--max-length {asked}: {backbone.files.name} has positions for {limit} tokens",
            hint=f"use --max-length {limit}; longer texts are truncated there, and counted\n"
            "or split them: --long-text chunks"
            + ("; or make room: --extend-positions copy" if backbone.can_extend(limit) else ""),
        )
    return min(asked, limit)


def document_settings(document: EncoderDocument, views: Sequence[str]) -> FeatureSettings:
    """The settings of an encoder that makes `views` as `document` describes.

    If no settings make this document, the encoder's own document differs from it.
    """
    return FeatureSettings(
        views=tuple(views),
        prompt=document.prompt,
        max_length=document.max_length,
        storage=document.dtype.storage,
        extend_positions=(document.positions or {}).get("how", "none"),
        long_text=document.long_text,
        overlap=FeatureSettings.overlap if document.overlap is None else document.overlap,
    )
