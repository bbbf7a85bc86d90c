"""Texts to vectors: the one function that serves both extraction and prediction.

Rows are tokenised together, put in order of length, packed under a token budget, run through the
backbone, pooled, and written into one preallocated matrix a view, by row number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from featcache.backbone import Backbone, TokenBatch
from featcache.config import FeatureSettings
from featcache.errors import BackboneError, BadRow, UsageError
from featcache.fingerprint import encoder_document
from featcache.packing import plan_batches
from featcache.pooling import PLACES, POOLINGS, View, parse_view

DEFAULT_BUDGET = {"cpu": 4096, "cuda": 65536}


@dataclass(frozen=True)
class Tokens:
    """The token ids of many texts, end to end.

    Attributes:
        ids: int32 `[sum of lengths]`.
        lengths: int64 `[N]`, tokens kept of each text.
        type_ids: uint8, like `ids`; None for models without token types.
        truncated: bool `[N]`, whether tokens were cut off.
    """

    ids: np.ndarray
    lengths: np.ndarray
    type_ids: np.ndarray | None
    truncated: np.ndarray

    def batch(self, rows: np.ndarray) -> TokenBatch:
        ends = np.cumsum(self.lengths)
        pieces = [slice(int(ends[row] - self.lengths[row]), int(ends[row])) for row in rows]
        types = self.type_ids
        return TokenBatch(
            np.concatenate([self.ids[piece] for piece in pieces]),
            self.lengths[rows],
            None if types is None else np.concatenate([types[piece] for piece in pieces]),
        )


@dataclass(frozen=True)
class Encoded:
    """What the encoder makes of N texts.

    Attributes:
        views: features `[N, D]` in the storage dtype, by view name.
        n_tokens: int32 `[N]`.
        truncated: bool `[N]`.
    """

    views: dict[str, np.ndarray]
    n_tokens: np.ndarray
    truncated: np.ndarray


class Encoder:
    """A backbone with everything else that changes a feature: views, prompt, length, storage.

    Args:
        backbone: loaded and frozen.
        features: views, prompt, longest text, storage dtype.
        batch_tokens: token budget of a batch; by default chosen by device.

    Raises:
        UsageError: a view or a length that the backbone does not have.
    """

    def __init__(
        self, backbone: Backbone, features: FeatureSettings, batch_tokens: int | None = None
    ) -> None:
        self.backbone = backbone
        self.views: list[View] = sorted({parse_view(text, backbone.num_blocks) for text in features.views})
        self.prompt = features.prompt
        self.max_length = _usable_length(backbone, features.max_length)
        self.notes = self._notes(features.max_length)
        self.storage = np.dtype(features.storage)
        self.batch_tokens = batch_tokens or DEFAULT_BUDGET.get(backbone.device.type, 4096)

    @cached_property
    def _places(self) -> list[str]:
        """Which tokens are pooled at the highest layer; empty where all are, or where it cannot be used."""
        highest = self.views[-1].layer
        poolings = {view.pooling for view in self.views if view.layer == highest}
        usable = self.backbone.tail and highest > 0 and poolings <= set(PLACES)
        return sorted(PLACES[pooling] for pooling in poolings) if usable else []

    @property
    def document(self) -> dict[str, Any]:
        """The encoder document, see `fingerprint.encoder_document`."""
        return encoder_document(
            files=self.backbone.files.hashes,
            prompt=self.prompt,
            max_length=self.max_length,
            truncation_side=self.backbone.tokenizer.truncation_side,
            compute=self.backbone.dtype_name,
            storage=self.storage.name,
        )

    def _notes(self, asked: int) -> list[str]:
        """What differs from what was asked for, to be said aloud."""
        notes = []
        if self.max_length < asked:
            notes.append(f"longest text: {self.max_length} tokens, the model's own limit (not {asked})")
        if self.backbone.packing == "padded":
            notes.append(f"padded batches instead of packed ones: {self.backbone.packing_note}")
        return notes

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Token ids of texts (and pairs), prompt included, cut at `max_length`."""
        tokenizer = self.backbone.tokenizer
        prompted = [self.prompt + text for text in texts] if self.prompt else list(texts)
        if not prompted:
            none = np.zeros(0, dtype=np.int64)
            return Tokens(none.astype(np.int32), none, None, none.astype(bool))
        coded = tokenizer(
            prompted,
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
        )
        lengths = np.array([len(ids) for ids in coded["input_ids"]], dtype=np.int64)
        if not lengths.all():
            row = int(np.argmin(lengths))
            raise BadRow(f"the tokenizer makes no token of {texts[row][:40]!r}", row)
        return Tokens(
            _flat(coded["input_ids"], np.int32),
            lengths,
            _flat(coded["token_type_ids"], np.uint8) if "token_type_ids" in coded else None,
            self._truncated(coded, prompted, pairs, lengths),
        )

    def encode(self, tokens: Tokens, progress: Callable[[int, int], None] | None = None) -> Encoded:
        """Features of tokenised texts, in their order.

        Args:
            progress: called after each batch with the texts and the tokens done in it.

        Raises:
            BackboneError: NaN, infinite, or too large for the storage dtype; a text that does not
                fit in memory even alone.
        """
        count = len(tokens.lengths)
        filled: dict[str, np.ndarray] = {}
        pending = plan_batches(tokens.lengths, self.batch_tokens)[::-1]
        while pending:
            rows = pending.pop()
            try:
                pooled = self._pool(tokens.batch(rows))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                left = np.concatenate([rows, *pending[::-1]])
                pending = self._smaller(rows, left, tokens.lengths, error)
                continue
            for name, values in pooled.items():
                self._check_range(name, values, rows)
                if name not in filled:
                    filled[name] = np.empty((count, values.shape[1]), dtype=self.storage)
                filled[name][rows] = values
            if progress:
                progress(len(rows), int(tokens.lengths[rows].sum()))
        for view in self.views:
            filled.setdefault(view.name, np.empty((0, 0), dtype=self.storage))
        return Encoded(filled, tokens.lengths.astype(np.int32), tokens.truncated)

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Encoded:
        """`encode(tokenize(texts, pairs))`."""
        return self.encode(self.tokenize(texts, pairs))

    def _pool(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        """Features float32 `[B, D]` by view name."""
        places = self._places
        states, layout = self.backbone.states(batch, sorted({view.layer for view in self.views}), places)
        highest = self.views[-1].layer
        with torch.inference_mode():
            pooled = {
                view.name: states[highest][places.index(PLACES[view.pooling])]
                if places and view.layer == highest
                else POOLINGS[view.pooling](states[view.layer], layout)
                for view in self.views
            }
            return {name: values.float().cpu().numpy() for name, values in pooled.items()}

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

    def _smaller(
        self, rows: np.ndarray, left: np.ndarray, lengths: np.ndarray, error: BaseException
    ) -> list[np.ndarray]:
        """All rows `left`, in batches of half the tokens of `rows`, which ran out of memory."""
        if not _is_out_of_memory(error):
            raise error
        if len(rows) == 1:
            raise BackboneError(
                f"out of memory on one text of {lengths[rows[0]]} tokens",
                hint="use a smaller --max-length, or another --device",
            ) from error
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_tokens = max(int(lengths[rows].sum()) // 2, 1)
        return [left[part] for part in plan_batches(lengths[left], self.batch_tokens)][::-1]

    def _truncated(
        self, coded: Any, texts: list[str], pairs: Sequence[str] | None, lengths: np.ndarray
    ) -> np.ndarray:
        """Which texts lost tokens; only those at the limit can have."""
        full = lengths >= self.max_length
        if coded.is_fast:
            cut: np.ndarray = np.array([bool(encoding.overflowing) for encoding in coded.encodings])
            return cut
        for row in np.flatnonzero(full).tolist():
            whole = self.backbone.tokenizer(texts[row], None if pairs is None else pairs[row])
            full[row] = len(whole["input_ids"]) > self.max_length
        return full


def _usable_length(backbone: Backbone, asked: int) -> int:
    """`asked`, or what backbone and tokenizer allow, whichever is lower."""
    least = backbone.tokenizer.num_special_tokens_to_add(pair=True) + 2
    if asked < least:
        raise UsageError(f"--max-length {asked} leaves no room for text; at least {least}")
    limits = [backbone.position_limit, backbone.tokenizer.model_max_length]
    limit = int(min(limit for limit in limits if limit))
    if asked > max(limit, FeatureSettings.max_length):
        raise UsageError(
            f"--max-length {asked}: {backbone.files.name} has positions for {limit} tokens",
            hint=f"use --max-length {limit}; longer texts are cut there, and counted",
        )
    return min(asked, limit)


def _flat(lists: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(ids, dtype=dtype) for ids in lists])


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(
        words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")
    )
