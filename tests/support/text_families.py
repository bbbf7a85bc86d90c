"""Every family of text models that transformers can build, tiny and random, and how featcache runs it.

`python -m tests.support.text_families` prints the table of `docs/models.md`; with names, only these families.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache.backbone.model import Backbone
from featcache.errors import BackboneError
from tests.support.stock import encoder, load, mixed, one_thread
from tests.support.tiny import write_tokenizer

LISTS = ("TEXT_ENCODING", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "CAUSAL_LM")
TOWERS = ("clip", "siglip", "chinese_clip", "altclip", "clap")  # texts beside images or sounds
LENGTHS = (30, 1, 7, 44, 7, 3, 9, 30)

# What families call their sizes, small. Others are in OVERRIDES.
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "vocab_size": 200,
    "type_vocab_size": 2, "d_model": 32, "dim": 32, "n_embd": 32, "n_layer": 2, "n_layers": 2, "n_head": 4,
    "n_heads": 4, "n_inner": 48, "n_positions": 128, "ffn_dim": 48, "d_ff": 48, "d_kv": 8, "num_layers": 2,
    "num_heads": 4, "embedding_size": 32, "emb_dim": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "d_inner": 48, "hidden_dim": 48, "attention_window": 8,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "rotary_dim": 4, "image_size": 16, "patch_size": 8, "projection_dim": 16, "decoder_hidden_size": 32,
}  # fmt: skip
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
OVERRIDES: dict[str, dict[str, Any]] = {
    "esm": {"vocab_size": 200, "token_dropout": True, "mask_token_id": 4},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
}


def families() -> list[str]:
    """Every model type in transformers' lists of text models, and of models with a tower for texts."""
    from transformers.models.auto import modeling_auto

    names = {name for kind in LISTS for name in getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES")}
    return sorted({*names, *TOWERS})


def tiny_config(config: Any, **more: Any) -> Any:
    """The same kind of config with small sizes, in its parts too; `more`: other settings."""
    kind = type(config)
    changes = {name: value for name, value in (SIZES | IDS).items() if _is_number(config, name)}
    for name in kind.sub_configs:
        part = getattr(config, name, None)
        if part is not None and not isinstance(part, dict):
            changes[name] = tiny_config(part).to_dict()
    return kind(**changes | OVERRIDES.get(kind.model_type, {}) | more)


def _is_number(config: Any, name: str) -> bool:
    try:
        value = getattr(config, name, "")
    except Exception:  # some configs raise where a size differs by layer
        return False
    return name in IDS or (isinstance(value, int) and value > 0 and value is not True)


def build_family(family: str, folder: Path, **settings: Any) -> Path:
    """A tiny random backbone of `family`, with biases and norms that are not all 0 and 1."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config(CONFIG_MAPPING[family](), **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
            elif parameter.is_floating_point():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    write_tokenizer(folder, limit=128)
    return folder


@dataclass(frozen=True)
class Outcome:
    """How featcache runs a family.

    Attributes:
        way: `packed`, `padded`, `equal lengths`, `one by one`, `refused`; `not built` where transformers
            cannot make the tiny model here.
        reason: why no faster way, or why not at all.
        apart: by how much a vector differs in company, as a share of its length; the worst.
    """

    family: str
    way: str
    reason: str
    apart: float = 0.0


def outcome(family: str, folder: Path) -> Outcome:
    """Build a family, load it, and compare vectors of texts together with those of each alone."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        build_family(family, folder)
    except Exception as error:  # configs and models raise errors of all kinds
        return Outcome(family, "not built", _line(error))
    try:
        backbone = load(folder)
    except BackboneError as error:
        return Outcome(family, "refused", error.what.partition("cannot encode texts: ")[2] or error.what)
    return Outcome(family, backbone.packing, backbone.packing_note, worst_difference(backbone))


def worst_difference(backbone: Backbone) -> float:
    """The largest difference of a text's vector in company, as a share of the vector's length."""
    inner = ("-2/mean", "0/mean") if backbone.inner_layers else ()
    encode = encoder(backbone, "last/mean", "last/cls", "last/last", *inner, batch_tokens=96)
    texts = [*mixed(LENGTHS), "[MASK] good [UNK] [PAD] book"]
    together, alone = encode(texts).views, [encode([text]).views for text in texts]
    return max(
        float(np.linalg.norm(values[i] - alone[i][view][0]) / np.linalg.norm(alone[i][view][0]))
        for view, values in together.items()
        for i in range(len(texts))
    )


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


def main(names: list[str]) -> None:
    """Print the table."""
    for family in names or families():
        with tempfile.TemporaryDirectory() as folder, one_thread():
            print(outcome(family, Path(folder)), flush=True)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1:])
