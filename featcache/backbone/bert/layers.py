"""The layers of BERT, with the names and the arithmetic that they have in transformers.

States are the same to the last bit: each step is the same call of torch. Modules have the names of the
weights in a checkpoint, by which `fused_layers.py` finds them, too. There is no dropout: the model is frozen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from featcache.backbone.attention.packed import packed_attention
from featcache.backbone.bert.config import BertConfig


class BertOutput(NamedTuple):
    """What the model returns: `last_hidden_state` is `[B, T, H]`."""

    last_hidden_state: torch.Tensor


class BertModel(nn.Module):
    """A BERT without a pooler, as `Backbone` uses a model of transformers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of words."""
        return self.embeddings.word_embeddings

    def set_attn_implementation(self, name: str) -> None:
        """Note the name: attention is packed wherever a batch is."""
        self.config._attn_implementation = name

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        packed: Any = None,
    ) -> BertOutput:
        """States of a padded batch int64 `[B, T]`, or of a packed one `[1, T]`.

        Args:
            attention_mask: int64 `[B, T]`, 0 for padding.
            packed: where the texts lie; see `packed_attention`.
        """
        states = self.embeddings(input_ids, token_type_ids, position_ids)
        padded = attention_mask is not None and not bool(attention_mask.all())
        mask = attention_mask[:, None, None, :].bool() if attention_mask is not None and padded else None
        for layer in self.encoder.layer:
            states = layer(states, mask=mask, packed=packed)
        return BertOutput(states)


class BertEncoder(nn.Module):
    """The blocks."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))


class BertEmbeddings(nn.Module):
    """Words, token types and positions, added and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.padding = config.pad_token_id if config.skips_padding else None

    def forward(
        self, ids: torch.Tensor, types: torch.Tensor | None, positions: torch.Tensor | None
    ) -> torch.Tensor:
        if positions is None:
            positions = self._positions(ids)
        if types is None:
            types = torch.zeros_like(ids)
        states = self.word_embeddings(ids) + self.token_type_embeddings(types)
        normed: torch.Tensor = self.LayerNorm(states + self.position_embeddings(positions))
        return normed

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        """The row of the position table that each token of a padded batch reads."""
        if self.padding is None:
            return torch.arange(ids.shape[1], device=ids.device)[None]
        counted = (ids != self.padding).long()
        return counted.cumsum(1) * counted + self.padding


class BertLayer(nn.Module):
    """One block: attention, then the feed-forward network."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = AddNorm(config.intermediate_size, config)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None, packed: Any) -> torch.Tensor:
        attended = self.attention(states, mask=mask, packed=packed)
        result: torch.Tensor = self.output(self.intermediate(attended), attended)
        return result


class BertAttention(nn.Module):
    """Self-attention with its output layer."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = AddNorm(config.hidden_size, config)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None, packed: Any) -> torch.Tensor:
        result: torch.Tensor = self.output(self.self(states, mask=mask, packed=packed), states)
        return result


class BertSelfAttention(nn.Module):
    """Every token attends to all tokens of its text."""

    is_causal = False

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = width // config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None, packed: Any) -> torch.Tensor:
        shape = (*states.shape[:-1], -1, self.head_width)
        query, key, value = (
            linear(states).view(shape).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        scale = self.head_width**-0.5
        if packed is None:
            attended = functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)
            attended = attended.transpose(1, 2)
        else:
            attended, _ = packed_attention(self, query, key, value, None, packed=packed, scaling=scale)
        return attended.reshape(states.shape[0], attended.shape[1], -1).contiguous()


class BertIntermediate(nn.Module):
    """The widening layer of the feed-forward network, with its GELU."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self.intermediate_act_fn(self.dense(states))
        return activated


class AddNorm(nn.Module):
    """A linear layer whose output is added to what came in before, and normalised."""

    def __init__(self, inner: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.LayerNorm(self.dense(states) + before)
        return normed
