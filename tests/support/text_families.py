"""Every family of text models that transformers can build, tiny and random, and how featcache runs it.

`python -m tests.support.text_families` prints the table of `docs/models.md`; with names, only these families.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
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
WAYS = ("packed", "padded", "equal lengths", "one by one", "refused", "not built")
CLASS_NAME = re.compile(r"^\w+ (?=does not use|takes no|mixes|lets|cannot run)")
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
LEAVE = object()  # as the family's own config has it
LATENT = {  # attention over a latent vector: as many keys as queries, heads in two parts
    "num_key_value_heads": 4, "head_dim": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
}  # fmt: skip
HEADS = {"head_dim": 8}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
         "longcat_flash", "youtu"), LATENT,
    ),
    **dict.fromkeys(("bamba", "granitemoehybrid"), MAMBA),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), HEADS),
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "esm": {"vocab_size": 200, "token_dropout": True, "mask_token_id": 4},
    "esmc": {"num_key_value_heads": 4, "mask_token_id": 4},
    "falcon": {"head_dim": LEAVE},
    "funnel": {
        "num_hidden_layers": LEAVE, "block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1,
        "d_head": 8, "architectures": ["FunnelModel"],
    },
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "input_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "nemotron": {"num_key_value_heads": 4, "head_dim": 8},
    "neomme": {"head_dim": 16},
    "prophetnet": {"num_hidden_layers": LEAVE, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "reformer": {
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "attn_layers": ["local", "lsh"],
        "attention_head_size": 8, "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8,
        "feed_forward_size": 48, "num_hidden_layers": LEAVE,
    },
    "roc_bert": {"pronunciation_vocab_size": 10, "shape_vocab_size": 10},
    "xlstm": {"v_head_dim": LEAVE},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 4, "mamba_headdim": 16},
}  # fmt: skip


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
    changes |= OVERRIDES.get(kind.model_type, {}) | more
    return kind(**{name: value for name, value in changes.items() if value is not LEAVE})


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
        apart: by how much a vector differs beside other texts, as a share of its length; the worst.
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
        return Outcome(family, "refused", re.sub(r"^.*?\) (cannot encode texts: )?", "", error.what))
    return Outcome(family, backbone.packing, backbone.packing_note, worst_difference(backbone))


def worst_difference(backbone: Backbone) -> float:
    """The largest difference of a text's vector beside others, as a share of the vector's length."""
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


def outcomes(names: list[str]) -> Iterator[Outcome]:
    """Each family's outcome, one after the other."""
    for family in names:
        with tempfile.TemporaryDirectory() as folder, one_thread():
            found = outcome(family, Path(folder) / family)
            print(found, file=sys.stderr, flush=True)
            yield found


def table(found: Sequence[Outcome]) -> str:
    """Rows of Markdown: way, reason, families."""
    groups: dict[tuple[int, str], list[str]] = {}
    for one in found:
        reason = CLASS_NAME.sub("", one.reason).partition(" (got")[0].replace("|", "/").rstrip(".")
        reason = "no tiny one could be made to try" if one.way == "not built" else reason
        groups.setdefault((WAYS.index(one.way), reason), []).append(one.family)
    rows = [
        f"| {WAYS[way]} | {reason} | {', '.join(names)} |" for (way, reason), names in sorted(groups.items())
    ]
    return "\n".join(["| way | reason | families |", "|---|---|---|", *rows])


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(table(list(outcomes(sys.argv[1:] or families()))))
