"""What the texts of an extraction will cost at an endpoint, said before the first of them is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from featcache.backbone.endpoint.encoder import EndpointEncoder
from featcache.backbone.endpoint.spending import MILLION
from featcache.backbone.tokens.encoded import BYTES_A_TOKEN
from featcache.errors import UsageError
from featcache.extraction.partition import first_occurrence, token_costs
from featcache.system.progress import OnProgress, Progress
from featcache.system.units import cost_text
from featcache.translation.language import gettext as _

Left = Sequence[tuple[np.ndarray, np.ndarray]]  # row hashes uint8 `[n, 32]` and bytes `[n]`, by split


def with_cost(encoder: EndpointEncoder, left: Left, split: str, on_progress: OnProgress) -> OnProgress:
    """Say what the texts will cost; the callback returned shows the cost so far.

    Args:
        left: the rows that are to be encoded.
        split: the one that begins.

    Raises:
        UsageError: they cost more than they may.
    """
    texts, tokens = texts_and_tokens(left)
    tokens += texts * len(encoder.features.prompt.encode()) / BYTES_A_TOKEN
    if said := cost_sentence(encoder, texts, tokens):
        on_progress(Progress("note", split, text=said))
    return lambda event: on_progress(replace(event, cost=encoder.spending.cost))


def texts_and_tokens(left: Left) -> tuple[int, float]:
    """How many texts there are, equal ones counted once, and about how many tokens they have."""
    hashes, sizes = (np.concatenate(each) for each in zip(*left, strict=True))
    if not len(hashes):
        return 0, 0.0
    first = np.unique(first_occurrence(hashes))
    return len(first), float(token_costs(sizes[first], None).sum())


def cost_sentence(encoder: EndpointEncoder, texts: int, tokens: float) -> str:
    """The texts to send, their tokens (estimated), and their price; empty where there is none to send.

    Raises:
        UsageError: the estimate is above the limit.
    """
    if not texts:
        return ""
    spending, name = encoder.spending, encoder.name
    said = _(
        "{model}: {texts:,} texts to encode, about {tokens:,} tokens (estimated)",
        model=name, texts=texts, tokens=round(tokens),
    )  # fmt: skip
    if spending.price is None:
        return _("{texts}; their price is not known ([endpoint.prices] in featcache.toml)", texts=said)
    cost = tokens * spending.price / MILLION
    if spending.limit is not None and cost > spending.limit:
        raise UsageError(
            f"--max-cost {spending.limit:g}: {texts:,} texts of about {round(tokens):,} tokens would cost "
            f"about {cost_text(cost)}",
            hint="raise --max-cost, or encode fewer splits; nothing was sent",
        )
    priced = "{texts}, which cost about {cost} ({price:g} a million)"
    return _(priced, texts=said, cost=cost_text(cost), price=spending.price)
