"""Commit units of texts -> committed vectors of an endpoint, with requests of several units on their way."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from featcache.backbone.endpoint.encoder import UNIT_TOKENS, EndpointEncoder, SentTexts
from featcache.backbone.endpoint.model import EndpointModel
from featcache.cache.cache import Cache
from featcache.extraction.encode_units import UnitWork, commit_units, naming_rows, tokenize_rows
from featcache.extraction.encoder_spec import EncoderSpec
from featcache.extraction.endpoint.canary import Canary
from featcache.extraction.partition import UNIT_BATCHES
from featcache.settings import Settings


class EndpointUnits:
    """Encodes commit units by an endpoint.

    The server is asked for the first time when its width is not in the cache, or when there is a text to
    encode: then the canary is compared first.

    Args:
        cache: has the canary.
    """

    def __init__(self, encoder: EndpointEncoder, cache: Cache) -> None:
        self.encoder, self.canary = encoder, Canary(cache, encoder)
        self._stored = self.canary.stored()
        self._checked = False
        if self._stored and (part := self._stored.document.encoder.endpoint):
            encoder.client.width = part.width

    @classmethod
    def of(cls, model: EndpointModel, settings: Settings, cache: Cache) -> EndpointUnits:
        """Of settings in which nothing is `auto`.

        Raises:
            UsageError: see `EndpointEncoder`.
        """
        return cls(EndpointEncoder(model, settings.features, settings.endpoint), cache)

    @property
    def knows_width(self) -> bool:
        """Whether an earlier session has stored what the server sends."""
        return self._stored is not None

    @cached_property
    def spec(self) -> EncoderSpec:
        """The description of the encoder; asks the server where no earlier session has.

        Raises:
            BackboneError: no answer, or one that cannot be used.
        """
        if not self.knows_width:
            self._check()
        encoder = self.encoder
        return EncoderSpec(
            document=encoder.document,
            views={view.name: view.name for view in encoder.views},
            width=encoder.width,
            batch_tokens=UNIT_TOKENS,
            device="",
            dtype="",
            packing="",
            notes=tuple(encoder.notes),
        )

    def _check(self) -> None:
        if not self._checked:
            self.canary.check(self._stored)
            self._checked = True

    def encode(self, work: UnitWork) -> None:
        """See `UnitEncoder.encode`."""
        if not work.units:
            return
        self._check()
        encoder, split, partition = self.encoder, work.split, work.partition

        def send(number: int) -> SentTexts:
            return tokenize_rows(encoder, split, partition.rows(number), work.hashes)

        def receive(number: int, sent: SentTexts) -> dict[str, np.ndarray]:
            with naming_rows(split, partition.rows(number)):
                encoded = encoder.encode(sent, lambda texts, tokens: work.on_batch(texts, tokens, None))
            counts = {"n_tokens": encoded.n_tokens, "truncated": encoded.truncated.astype(np.uint8)}
            return {**encoded.views, **counts}

        settings = encoder.settings
        ahead = settings.connections * settings.request_tokens / (UNIT_BATCHES * UNIT_TOKENS)
        try:
            commit_units(work.claims, send, receive, work.staging, max(work.ahead, 1 + round(ahead)))
        except BaseException:
            encoder.client.stop()
            raise
