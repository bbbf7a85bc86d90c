"""The texts of a probe: real words in the tokenizer's own frame, and made-up token ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.packing import PackedLayout, TokenBatch

WORDS = (
    "the room is very good 房间很干净，服务也好，我喜欢 but the book was a bad one 这家酒店的电池太差了",
    "一本好书 fast and cheap, 不贵 at all: 我们都很失望 when it came late 去过的人说还不错",
    "差评 never again 时间太久 and they did not say why 要是快一点就好了 more than enough",
)
MOST_IDS = 2000  # made-up ids are among the first; vocabularies begin with what every text may have


class ProbedBackbone(Protocol):
    """What a probe needs of a `Backbone`, and what it sets there."""

    model: Any
    tokenizer: Any
    files: ModelFiles
    dtype: torch.dtype
    num_blocks: int
    blocks: nn.ModuleList | None
    inner_layers: bool
    position_limit: int | None
    packing: str
    arguments: set[str]

    def states(
        self, batch: TokenBatch, layers: Sequence[int], pooled: Sequence[str] = ()
    ) -> tuple[dict[int, torch.Tensor], PackedLayout]:
        """See `Backbone`."""

    def padded_inputs(self, batch: TokenBatch) -> dict[str, Any]:
        """See `Backbone`."""

    def whole_states(self, inputs: dict[str, Any], layers: Sequence[int]) -> dict[int, torch.Tensor]:
        """See `Backbone`."""

    def use_attention(self, name: str | None) -> bool:
        """See `Backbone`."""

    def other_padding(self) -> AbstractContextManager[None]:
        """See `Backbone`."""


def made_up_batch(backbone: ProbedBackbone, lengths: Sequence[int], only: int | None = None) -> TokenBatch:
    """Texts of made-up token ids, which depend on the place in `lengths`; `only`: just this text."""
    special = set(getattr(backbone.tokenizer, "all_special_ids", []))
    usable = [i for i in range(min(_vocabulary(backbone), MOST_IDS)) if i not in special] or [0]
    chosen = range(len(lengths)) if only is None else [only]
    texts = [[usable[(37 * i + 11 * t + 5) % len(usable)] for t in range(lengths[i])] for i in chosen]
    return batch_of([np.array(text, dtype=np.int64) for text in texts])


def worded_texts(backbone: ProbedBackbone, lengths: Sequence[int]) -> list[np.ndarray]:
    """Texts of real words, int64 `[length]` each; made-up ids where the tokenizer does not know the words.

    The last one has special tokens in its middle, as a text has in which somebody wrote `[MASK]`.
    """
    made_up = made_up_batch(backbone, lengths)
    texts = np.split(made_up.input_ids, np.cumsum(lengths)[:-1])
    for number, length in enumerate(lengths):
        worded = _worded(backbone, WORDS[number % len(WORDS)], length)
        texts[number] = texts[number] if worded is None else worded
    special = _special_ids(backbone)[: max(len(texts[-1]) - 2, 0)]
    texts[-1][1 : 1 + len(special)] = special
    return texts


def batch_of(texts: Sequence[np.ndarray]) -> TokenBatch:
    """The texts end to end."""
    return TokenBatch(np.concatenate(texts), np.array([len(text) for text in texts], dtype=np.int64))


def _worded(backbone: ProbedBackbone, words: str, length: int) -> np.ndarray | None:
    """`length` tokens of `words`; None if they are too few or mostly unknown."""
    tokenizer = backbone.tokenizer
    try:
        repeated = " ".join([words] * (1 + length // 8))
        ids = tokenizer(repeated, truncation=True, max_length=length)["input_ids"]
    except Exception:  # tokenizers that are code of the model's own raise every kind of error
        return None
    found = np.array(ids, dtype=np.int64)
    unknown = (found == (-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)).mean()
    fits = len(found) == length and found.max(initial=0) < _vocabulary(backbone)
    return found if fits and unknown < 0.5 else None


def _special_ids(backbone: ProbedBackbone) -> list[int]:
    """The ids of special tokens that a text may contain, the mask first."""
    tokenizer = backbone.tokenizer
    names = ("mask_token_id", "pad_token_id", "unk_token_id", "eos_token_id")
    found = [getattr(tokenizer, name, None) for name in names]
    return [int(i) for i in dict.fromkeys(found) if i is not None and i < _vocabulary(backbone)]


def _vocabulary(backbone: ProbedBackbone) -> int:
    """How many token ids the model takes; some families have no table of them, or one of their own kind."""
    try:
        table = backbone.model.get_input_embeddings()
        return int(getattr(table, "num_embeddings", None) or len(table.weight))
    except (NotImplementedError, AttributeError, TypeError):
        return len(backbone.tokenizer)
