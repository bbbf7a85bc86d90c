"""Texts to vectors, for extraction and prediction alike.

Texts are tokenised together, sorted by length, packed under a token budget, run through the backbone,
pooled, and written into one preallocated matrix for each view, by row number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from featcache.backbone import load as loading
from featcache.backbone.attentive import Attention
from featcache.backbone.device_copies import IN_FLIGHT, HostCopy, copier_of
from featcache.backbone.memory_limit import BatchQueue
from featcache.backbone.model import Backbone
from featcache.backbone.model_files.find import ModelFiles, find_model
from featcache.backbone.model_files.sentence_transformers import follow
from featcache.backbone.packing import PackedLayout, TokenBatch
from featcache.backbone.pooler import Pooler
from featcache.backbone.pooling import POOLED_TOKEN, View, parse_view
from featcache.backbone.position_table import Extension
from featcache.backbone.static.model import StaticModel
from featcache.backbone.token_rows import ATTENTIVE
from featcache.backbone.tokens.encoded import Encoded
from featcache.backbone.tokens.tokenization import (
    Place,
    TextTokens,
    Tokenization,
    Tokens,
    lower_case_texts,
    prompt_tokens,
)
from featcache.errors import BackboneError, BadRow, HeadError, NoInnerLayers, UsageError
from featcache.fingerprint import Dtypes, EncoderDocument
from featcache.settings import DEFAULT_MAX_LENGTH, BackboneSettings, FeatureSettings

BATCHES = {  # what the user is told of batches that are not packed
    "padded": "padded batches instead of packed ones",
    "equal lengths": "batches of equally long texts, without padding",
    "one by one": "one text at a time",
}
DEFAULT_BUDGET = {"cpu": 4096, "cuda": 65536}
TOO_LONG = "use a smaller --max-length (with --long-text chunks no text is truncated), or another --device"


class Encoder:
    """A backbone with everything else that changes a feature: views, prompt, length, storage.

    Args:
        backbone: loaded and frozen.
        features: views, prompt, longest text and what is done with longer ones, storage dtype; `auto` is what
            the model's sentence-transformers settings say. The backbone's positions are extended where they
            ask for it.
        batch_tokens: token budget of a batch; by default chosen by device.
        attention: by view, what was learnt of those that pool by it.

    Raises:
        UsageError: a view, a length or a prompt that the backbone does not have.
        BackboneError: positions that cannot be extended, or sentence-transformers settings that cannot be
            followed.
    """

    def __init__(
        self,
        backbone: Backbone,
        features: FeatureSettings,
        batch_tokens: int | None = None,
        attention: Mapping[str, Attention] | None = None,
    ) -> None:
        followed = follow(features, backbone.files)
        self.backbone, features = backbone, followed.features
        self.views: list[View] = sorted({parse_view(text, backbone.num_blocks) for text in features.views})
        if not backbone.inner_layers and self.views[0].layer < backbone.num_blocks:
            raise NoInnerLayers(
                f"{backbone.files.name} ({type(backbone.model).__name__}) has one vector a token at its last "
                f"layer alone: no view {self.views[0].name}",
                hint="use views of the last layer, for example --views last/mean",
            )
        if backbone.files.is_static:
            _refuse_single_tokens(self.views, backbone.files.name)
        self.prompt, self.pool_prompt = features.prompt, features.pool_prompt is not False
        if features.lower_case:
            lower_case_texts(backbone)
        if extension := Extension.of(features):
            backbone.extend(extension)
        self.max_length = _usable_length(backbone, features.longest)
        self.long_text, self.overlap = features.long_text, features.overlap
        self._tokenization = Tokenization(
            backbone, prompt=self.prompt, max_length=self.max_length,
            long_text=self.long_text, overlap=self.overlap,
        )  # fmt: skip
        self.notes = [*filter(None, [followed.note]), *self._notes(features)]
        self.files = backbone.files.hashes_of([view.name for view in self.views])
        self.poolers = self._make_poolers(attention or {})
        self.storage = np.dtype(features.storage)
        self.batch_tokens = batch_tokens or DEFAULT_BUDGET.get(backbone.device.type, 4096)
        self._pooled = self._pooled_alone()

    @classmethod
    def load(
        cls,
        backbone: BackboneSettings,
        features: FeatureSettings,
        files: ModelFiles | None = None,
        attention: Mapping[str, Attention] | None = None,
    ) -> Encoder:
        """The encoder that the settings ask for.

        Args:
            files: of the backbone; by default found (and downloaded if need be) by its settings.
            attention: see `Encoder`.

        Raises:
            BackboneError: the model cannot be found or loaded, or its positions cannot be extended.
            UsageError: a device, a view or a length that there is not.
        """
        loaded = loading.load_backbone(backbone, files or find_model(backbone))
        return cls(loaded, features, backbone.batch_tokens, attention)

    def _make_poolers(self, attention: Mapping[str, Attention]) -> dict[str, Pooler]:
        """One for each view, by its name."""
        backbone = self.backbone
        skipped = 0 if self.pool_prompt else prompt_tokens(backbone.tokenizer, self.prompt)
        if skipped >= self.max_length:
            raise UsageError(
                f"--max-length {self.max_length} leaves no room for text beside the prompt",
                hint="use a larger --max-length or a shorter --prompt",
            )
        for view in self.views:
            if view.pooling == ATTENTIVE:
                self._check_attention(view.name, attention.get(view.name))
        return {
            view.name: Pooler(
                view, backbone.files.folder, self.files, backbone.width, backbone.device,
                skipped=skipped, attention=attention.get(view.name),
            )
            for view in self.views
        }  # fmt: skip

    def _check_attention(self, view: str, learned: Attention | None) -> None:
        """Refuse a view whose pooling was not learnt, or of other states than those of this backbone."""
        if learned is None:
            raise UsageError(
                f"{view} is pooled by what a head has learnt, so it is in no cache",
                hint="train that head: featcache train-head --head attentive",
            )
        if learned.queries.shape[1] != self.backbone.width:
            raise HeadError(
                f"the head's queries are for states of {learned.queries.shape[1]} numbers, and those of "
                f"{self.backbone.files.name} have {self.backbone.width}",
                hint="use the model that the head was trained with: --model",
            )
        if self.long_text == "chunks":
            raise UsageError(
                f"{view} is pooled over whole texts, not over windows of long ones",
                hint="use --long-text truncate or head-tail",
            )

    @property
    def depth(self) -> float:
        """The share of the backbone that is run; 1 where it has no blocks."""
        return self.views[-1].layer / self.backbone.num_blocks if self.backbone.num_blocks else 1.0

    @property
    def model_name(self) -> str:
        """Of the backbone, as it was asked for."""
        return self.backbone.files.name

    def prepare(self, texts: int) -> None:
        """Get ready for about so many texts; see `Backbone.prepare`."""
        self.backbone.prepare(texts)

    @property
    def width(self) -> int:
        """Numbers in the vectors of one text, of all views."""
        return sum(pooler.width for pooler in self.poolers.values())

    def _pooled_alone(self) -> list[str]:
        """The tokens pooled at the highest layer, if its block can run for them alone; else empty."""
        highest = self.views[-1].layer
        poolings = {name for view in self.views if view.layer == highest for name in view.joined}
        usable = highest > 0 and poolings <= set(POOLED_TOKEN) and self.backbone.runs_pooled_alone
        usable = usable and self.pool_prompt
        return sorted(POOLED_TOKEN[pooling] for pooling in poolings) if usable else []

    @cached_property
    def _takes_means(self) -> bool:
        """Whether all views are means over the rows of a table: its token vectors are then not laid out."""
        means = all(view.joined == ("mean",) for view in self.views) and self.pool_prompt
        return self.backbone.files.is_static and means and self.backbone.dtype == torch.float32

    @property
    def document(self) -> EncoderDocument:
        """Everything that turns a text into a vector, layer and pooling apart."""
        return EncoderDocument(
            files=self.files,
            prompt=self.prompt,
            lower_case=self.backbone.lower_case,
            pool_prompt=self.pool_prompt,
            max_length=self.max_length,
            truncation_side=self.backbone.tokenizer.truncation_side,
            dtype=Dtypes(self.backbone.dtype_name, self.storage.name),
            long_text=self.long_text,
            overlap=self.overlap if self.long_text == "chunks" else None,
            positions=self.backbone.extension.document if self.backbone.extension else None,
        )

    def _notes(self, features: FeatureSettings) -> list[str]:
        """What differs from what was asked for, as messages for the user."""
        notes, asked = [*self.backbone.notes], features.longest
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

    def token_places(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[list[Place]]:
        """See `Tokenization.places`."""
        return self._tokenization.places(texts, pairs)

    def measure(self, text: str, pair: str | None = None) -> TextTokens:
        """See `Tokenization.measure`."""
        return self._tokenization.measure(text, pair)

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
        views = {}
        for name, pooler in self.poolers.items():
            joined = torch.from_numpy(windows.join(parts[name], pooler.view.joined)).to(self.backbone.device)
            views[name] = pooler.finish(joined).cpu().numpy().astype(self.storage)
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
            flight.append((rows, self.pool(tokens.batch(rows), windows=tokens.windows is not None)))

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

    def pool(self, batch: TokenBatch, *, windows: bool = False) -> HostCopy:
        """Features float32 `[B, D]` by view name, on their way to the host; `windows`: without the steps."""
        states, layout, picked = self._states(batch)
        highest, pooled = self.views[-1].layer, {}
        with torch.inference_mode():
            for view in self.views:
                pooler, known = self.poolers[view.name], picked if view.layer == highest else {}
                values = pooler.pool(states[view.layer], layout, known)
                pooled[view.name] = values if windows else pooler.finish(values)
            return copier_of(self.backbone.device).to_host(pooled)

    def _states(
        self, batch: TokenBatch
    ) -> tuple[dict[int, torch.Tensor], PackedLayout, dict[str, torch.Tensor]]:
        """Token states by layer, where the texts lie in them, and the poolings of the highest layer known."""
        layers, places = sorted({view.layer for view in self.views}), self._pooled
        if self._takes_means:
            assert isinstance(self.backbone.model, StaticModel)
            layout = PackedLayout.of(batch.lengths, self.backbone.device)
            means = self.backbone.model.means(batch.input_ids, batch.lengths)
            return {layers[-1]: means.new_empty(0)}, layout, {"mean": means}
        states, layout = self.backbone.states(batch, layers, places)
        picked = {
            name: states[layers[-1]][places.index(token)]
            for name, token in POOLED_TOKEN.items()
            if token in places
        }
        return states, layout, picked

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


def _refuse_single_tokens(views: Sequence[View], name: str) -> None:
    """Refuse poolings that take one token, of a static model: it knows nothing of the others."""
    if single := next((view for view in views if not POOLED_TOKEN.keys().isdisjoint(view.joined)), None):
        raise UsageError(
            f"view {single.name}: {name} is a table of token vectors, where a single token knows nothing of "
            "its text",
            hint="use views of all tokens: --views last/auto, or last/mean",
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
    # RoBERTa's configs name two positions more than a text can have.
    places = getattr(backbone.model.config, "max_position_embeddings", None) or 0
    if asked > max(limit, DEFAULT_MAX_LENGTH, places):
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
        lower_case=document.lower_case,
        pool_prompt=document.pool_prompt,
        max_length=document.max_length,
        storage=document.dtype.storage,
        extend_positions=(document.positions or {}).get("how", "none"),
        long_text=document.long_text,
        overlap=FeatureSettings.overlap if document.overlap is None else document.overlap,
    )
