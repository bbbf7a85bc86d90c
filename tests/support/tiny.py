"""Tiny, randomly initialised backbones, one a family, as ordinary folders on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = [*"的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学",
         *"好坏房间服务酒店电池书很干净差喜欢失望快慢便宜贵，。！", "good", "bad", "room", "book", "very",
         "the", *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *dict.fromkeys(WORDS)]
SIZE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
IDS: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": 0}
MARKS = {"bos_token_id": 2, "eos_token_id": 3}

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**SIZE, **IDS, "max_position_embeddings": 64},
    "roberta": {**SIZE, **IDS, **MARKS, "max_position_embeddings": 66},
    "xlm-roberta": {**SIZE, **IDS, **MARKS, "max_position_embeddings": 66},
    "distilbert": {
        **IDS, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64,
    },
    "electra": {**SIZE, **IDS, "embedding_size": 16, "max_position_embeddings": 64},
    "albert": {**SIZE, **IDS, **MARKS, "embedding_size": 16, "max_position_embeddings": 64},
    "modernbert": {
        **SIZE, **IDS, **MARKS, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16,
        "global_attn_every_n_layers": 3, "max_position_embeddings": 256,
    },
    "gpt2": {
        **IDS, **MARKS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64,
    },
    "llama": {**SIZE, **IDS, **MARKS, "num_key_value_heads": 2, "max_position_embeddings": 256},
    "qwen3": {
        **SIZE, **IDS, **MARKS, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    },
    "mistral": {
        **SIZE, **IDS, **MARKS, "num_key_value_heads": 2, "sliding_window": 8, "max_position_embeddings": 256,
    },
    "deberta-v2": {**SIZE, **IDS, "max_position_embeddings": 64},
    "mpnet": {**SIZE, **IDS, **MARKS, "max_position_embeddings": 66},
}  # fmt: skip
PACKED = [family for family in CONFIGS if family not in ("deberta-v2", "mpnet")]
KINDS = ("bert", "modernbert", "llama", "deberta-v2")  # an encoder, one of local attention, a decoder, padded
DECODERS = ["gpt2", "llama", "qwen3", "mistral"]


def one_of_each_kind(families: Iterable[str]) -> list[Any]:
    """Parameters of a test: `KINDS` in `make test`, the other families in `make test-slow`."""
    return [one if one in KINDS else pytest.param(one, marks=pytest.mark.slow) for one in families]


def build(family: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write config, weights and tokenizer of a tiny backbone of `family` into `folder`."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(CONFIGS[family] | changes))
    model = AutoModel.from_config(config)
    with torch.no_grad():  # the default scale makes all texts nearly equal: tests would see too little
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    write_tokenizer(folder, decoder=family in DECODERS, limit=_limit(config))
    return folder


def write_tokenizer(folder: Path, *, decoder: bool = False, limit: int = 64, side: str = "right") -> None:
    """A WordPiece tokenizer over VOCABULARY; decoders get no special tokens around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if not decoder:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "padding_side": side,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _limit(config: Any) -> int:
    return 64 if config.max_position_embeddings <= 66 else 256
