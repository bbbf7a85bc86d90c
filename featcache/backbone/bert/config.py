"""The sizes of a BERT in its config.json, where that describes nothing but a plain encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# Model types whose encoder is BERT's, and the prefix of their weights in models that were saved with a head.
PREFIXES = {"bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta."}
# What these settings must be, where they are given; with other values transformers builds another model.
PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "quantization_config": (None,),
    "auto_map": (None,),
    "tokenizer_class": (None,),
}


@dataclass
class BertConfig:
    """What config.json says, by its names.

    Attributes:
        pad_token_id: families whose positions begin after the row of padding (RoBERTa) have it there.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    pad_token_id: int
    initializer_range: float = 0.02
    _attn_implementation: str = field(default="sdpa", init=False)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> BertConfig | None:
        """From a config.json; None for another model, or where a size is not given."""
        if content.get("model_type") not in PREFIXES:
            return None
        if any(name in content and content[name] not in values for name, values in PLAIN.items()):
            return None
        names = [each.name for each in fields(cls) if each.init]
        given = {name: content[name] for name in names if name in content}
        sizes = [given.get(name) for name in names[1:8]]
        if not all(type(size) is int and size > 0 for size in sizes):
            return None
        if type(given.get("layer_norm_eps")) is not float or type(given.get("pad_token_id")) is not int:
            return None
        config = cls(**given)
        return None if config.hidden_size % config.num_attention_heads else config

    @property
    def skips_padding(self) -> bool:
        """Whether positions begin after the row of padding."""
        return self.model_type != "bert"

    def get_text_config(self) -> BertConfig:
        """Itself: it has no other parts."""
        return self
