"""A table of token vectors as a model without blocks: the state of a token is its row of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

PIECE = 64  # tokens that are added one by one


class TokenVectors(NamedTuple):
    """What the model returns: `last_hidden_state` is `[B, T, H]`."""

    last_hidden_state: torch.Tensor


@dataclass
class StaticConfig:
    """What `Backbone` reads of a model's config."""

    vocab_size: int
    hidden_size: int
    model_type: str = "static"
    num_hidden_layers: int = 0
    pad_token_id: int = 0
    _attn_implementation: str = field(default="none", init=False)

    def get_text_config(self) -> StaticConfig:
        """Itself: it has no other parts."""
        return self


class StaticModel(nn.Module):
    """As `Backbone` uses a model of transformers.

    Args:
        table: `[V, H]`, the vector of each token id.
    """

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.config = StaticConfig(*table.shape)
        self.vectors: nn.Embedding = nn.Embedding.from_pretrained(table)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table."""
        return self.vectors

    def set_attn_implementation(self, name: str) -> None:
        """Note the name: no token attends to another."""
        self.config._attn_implementation = name

    def means(self, input_ids: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        """The mean vector of each text, float32 `[B, H]`, without laying out its token vectors.

        Sums of `PIECE` tokens are added up: the sum of thousands, one by one, would lose digits.

        Args:
            input_ids: token ids of all texts end to end, int `[T]`.
            lengths: tokens of each text, int64 `[B]`, none of them 0.
        """
        counts = -(-lengths // PIECE)  # pieces of each text
        ends = np.cumsum(counts)
        within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        begins = np.repeat(np.cumsum(lengths) - lengths, counts) + PIECE * within
        sums = functional.embedding_bag(
            self._places(input_ids), self.vectors.weight, self._places(begins), mode="sum"
        )
        texts = self._places(np.arange(len(sums)))
        whole = functional.embedding_bag(texts, sums, self._places(ends - counts), mode="sum")
        return whole / self._places(lengths)[:, None]

    def _places(self, values: np.ndarray) -> torch.Tensor:
        """On the device of the table."""
        return torch.from_numpy(values.astype(np.int64)).to(self.vectors.weight.device)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        packed: Any = None,
    ) -> TokenVectors:
        """Vectors of the token ids int64 `[B, T]`, wherever they are."""
        return TokenVectors(self.vectors(input_ids))
