"""Which tokens of a text a head with learned queries looked at, and what each adds to a logit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from featcache.backbone.packing import TokenBatch, without_first
from featcache.heads.lexical.scorer import WordScorer
from featcache.heads.scorers import Attentive

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.heads.head import Head

SHOWN = 12  # tokens of a text


@dataclass(frozen=True)
class TokenWeight:
    """A token of a text.

    Attributes:
        token: the characters `[begin, end)` of the text.
        share: how much it counts in the averages of all queries at all layers; those of all tokens of a
            text, special ones and the prompt's included, add up to 1.
        weight: what it adds to the logit of the predicted label over the mean of all labels, divided by the
            temperature: above 0 it speaks for the label.
    """

    token: str
    begin: int
    end: int
    share: float
    weight: float


def attended(
    head: Head,
    encoder: Encoder,
    texts: Sequence[str],
    labels: Sequence[int],
    pairs: Sequence[str] | None = None,
) -> Iterator[tuple[TokenWeight, ...]]:
    """The tokens of each text that count most, the first one first; of a pair those of its first text.

    The vector of a text is a weighted mean of its token states, and its logits are linear in it: they are a
    sum over the tokens.

    Args:
        head: with an `Attentive` scorer, alone or beside words.
        labels: number of the predicted label of each text.

    Raises:
        UsageError: a tokenizer that does not say where its tokens are.
    """
    scorer, factor = head.scorer, 1 / head.temperature
    if isinstance(scorer, WordScorer):
        assert scorer.dense is not None
        factor, scorer = factor * scorer.share, scorer.dense
    assert isinstance(scorer, Attentive)
    weights = torch.from_numpy((scorer.weight - scorer.weight.mean(axis=0)) * np.float32(factor))
    places = encoder.token_places(texts, pairs)
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        tokens = encoder.tokenize([text], None if pairs is None else [pairs[row]])
        share, weight = _contributions(encoder, head.views, weights[label], tokens.batch(np.array([0])))
        skipped = len(places[row]) - len(share)  # tokens that are not pooled
        found = [
            TokenWeight(text[begin:end], begin, end, float(share[number]), float(weight[number]))
            for number, (begin, end) in enumerate(places[row][skipped:])
            if end > begin
        ]
        found.sort(key=lambda one: -one.share)
        yield tuple(sorted(found[:SHOWN], key=lambda one: one.begin))


def _contributions(
    encoder: Encoder, views: Sequence[str], weights: torch.Tensor, batch: TokenBatch
) -> tuple[np.ndarray, np.ndarray]:
    """Share and weight of each pooled token of one text, float32 `[t]` each; `weights` `[D]`."""
    poolers = [encoder.poolers[view] for view in views]
    states, layout = encoder.backbone.states(batch, sorted({one.view.layer for one in poolers}))
    shares, sums = [], []
    for pooler, part in zip(poolers, weights.chunk(len(poolers)), strict=True):
        learned = pooler.attention
        assert learned is not None
        own = states[pooler.view.layer]
        if pooler.skipped:
            own, _ = without_first(own, layout, pooler.skipped)
        own = own.float()
        counted = learned.weights(own)[:, learned.query_of]  # [t, H]
        shares.append(counted.mean(1))
        sums.append((counted * (own - learned.center)) @ part.to(own.device))
    share, weight = torch.stack(shares).mean(0), torch.stack(sums).sum(0)
    return share.cpu().numpy(), weight.cpu().numpy()
