"""A table of token vectors as a model without blocks: the state of a token is its row of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn


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

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        packed: Any = None,
    ) -> TokenVectors:
        """Vectors of the token ids int64 `[B, T]`, wherever they are."""
        return TokenVectors(self.vectors(input_ids))
