"""What a stock classification model makes of texts, one at a time and in padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featcache.errors import BackboneError, HeadError

TOLERANCE = 1e-3  # of a logit, absolute, or relative to the largest one


def logits_of(
    model: Any, tokenizer: Any, texts: Sequence[str], seconds: Sequence[str] | None, *, batch: bool = False
) -> np.ndarray:
    """float32 `[N, C]` of the stock model, one text at a time; `batch`: all in one padded batch."""
    import torch

    groups = [slice(0, len(texts))] if batch else [slice(i, i + 1) for i in range(len(texts))]
    found = []
    for group in groups:
        pairs = None if seconds is None else list(seconds[group])
        inputs = tokenizer(list(texts[group]), pairs, truncation=True, padding=batch, return_tensors="pt")
        with torch.inference_mode():
            found.append(model(**inputs).logits.numpy())
    return np.concatenate(found)


def set_padding(model: Any, tokenizer: Any, texts: Sequence[str], seconds: Sequence[str] | None) -> str:
    """Let a stock decoder and its tokenizer pad batches: the token, and the side that changes no logit.

    The stock model classifies the last token of a text that is not the padding token. So this must be a token
    that no text ends with.

    Returns:
        A sentence about it for the model card.

    Raises:
        HeadError: the tokenizer has no such token.
        BackboneError: a batch gives other logits than its texts one at a time, padded on either side.
    """
    pairs: Sequence[str | None] = [None] * len(texts) if seconds is None else seconds
    coded = [tokenizer(text, pair, truncation=True) for text, pair in zip(texts, pairs, strict=True)]
    ends = {ids["input_ids"][-1] for ids in coded}
    known = [tokenizer.pad_token_id, tokenizer.eos_token_id, *tokenizer.all_special_ids]
    most = model.get_input_embeddings().num_embeddings
    usable = [token for token in known if token is not None and token < most and token not in ends]
    name = type(model).__name__
    if not usable:
        raise HeadError(
            f"the stock {name} needs a padding token that no text ends with; the tokenizer has none",
            hint="export it with --format onnx",
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(usable[0])
    model.config.get_text_config().pad_token_id = usable[0]
    alone, sides = logits_of(model, tokenizer, texts, seconds), []
    for side in ("right", "left"):
        tokenizer.padding_side = side
        found = logits_of(model, tokenizer, texts, seconds, batch=True)
        if np.abs(found - alone).max() <= TOLERANCE * max(1.0, np.abs(alone).max()):
            sides.append(side)
    if not sides:
        raise BackboneError(
            f"the stock {name} gives padded texts other logits, on either side; nothing was written",
            hint="export it with --format onnx",
        )
    tokenizer.padding_side = sides[0]
    if len(sides) == 2:
        return f"Batches may be padded on either side, with `{tokenizer.pad_token}`."
    return f"Pad batches on the {sides[0]}, as the tokenizer does: the other side gives other logits."
