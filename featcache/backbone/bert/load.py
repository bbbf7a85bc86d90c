"""Which models are loaded without transformers, and how: a BERT whose config and weights are all understood.

Whatever is not understood is left to transformers, and so is whatever is wrong: its errors name it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.overrides import TorchFunctionMode

from featcache.backbone.bert.config import PREFIXES, BertConfig
from featcache.backbone.bert.layers import BertModel
from featcache.backbone.model import quiet_transformers
from featcache.backbone.model_files.config_checks import check_vocabulary
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.json_file import read_object
from featcache.backbone.model_files.pickled_weights import loadable_folder
from featcache.backbone.model_files.weight_files import SAFETENSORS
from featcache.backbone.tokens.file_tokenizer import FileTokenizer


def load_bert(files: ModelFiles, dtype: torch.dtype) -> tuple[BertModel, Any] | None:
    """The model with its weights in `dtype` on the CPU, and its tokenizer; None where it needs transformers.

    A tokenizer that is not understood is one of transformers, whose import is the smaller part.

    Raises:
        BackboneError, CacheError: pickled weights that cannot be converted.
        SafetensorError: damaged weights.
    """
    config = BertConfig.of(read_object(files.folder / "config.json"))
    if config is None:
        return None
    weights = loadable_folder(files) / SAFETENSORS.single
    if not weights.is_file():  # several shards
        return None
    if not _has_sizes(weights, config, PREFIXES[config.model_type]):
        return None
    with _NoInit():
        model = BertModel(config)
    tensors = _tensors(weights, model, PREFIXES[config.model_type], dtype)
    if tensors is None:
        return None
    model.load_state_dict(tensors, assign=True)
    tokenizer = FileTokenizer.read(files.folder, config.model_type) or stock_tokenizer(files)
    check_vocabulary(tokenizer, files.folder, files.hashes, config.vocab_size)
    return model, tokenizer


class _NoInit(TorchFunctionMode):
    """Within it, new modules leave their weights as they are allocated.

    The meta device would do, but to draw random numbers for it torch imports its compiler.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == nn.init.__name__:
            return (kwargs or {}).get("tensor")
        return func(*args, **(kwargs or {}))


def stock_tokenizer(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer as transformers loads it, which says nothing meanwhile."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=trust_remote_code
        )


def _has_sizes(path: Path, config: BertConfig, prefix: str) -> bool:
    """Whether the weights are as large as the config says: memory is allocated by it."""
    layer = f"encoder.layer.{config.num_hidden_layers - 1}.intermediate.dense.weight"
    wanted = {
        "embeddings.word_embeddings.weight": [config.vocab_size, config.hidden_size],
        "embeddings.position_embeddings.weight": [config.max_position_embeddings, config.hidden_size],
        "embeddings.token_type_embeddings.weight": [config.type_vocab_size, config.hidden_size],
        layer: [config.intermediate_size, config.hidden_size],
    }
    with safe_open(path, framework="pt") as file:
        places = {name.removeprefix(prefix): name for name in file.keys()}  # noqa: SIM118
        return all(
            name in places and file.get_slice(places[name]).get_shape() == shape
            for name, shape in wanted.items()
        )


def _tensors(path: Path, model: BertModel, prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor] | None:
    """The weights by their names in `model`, copied; None where one is missing, or has another shape."""
    with safe_open(path, framework="pt") as file:
        stored = list(file.keys())
        places = {name.removeprefix(prefix): name for name in stored}
        if len(places) < len(stored):
            return None
        for name, wanted in model.state_dict().items():
            if name not in places or file.get_slice(places[name]).get_shape() != list(wanted.shape):
                return None
            if not file.get_slice(places[name]).get_dtype().lstrip("B").startswith("F"):
                return None
        # Copied: what is read may be a memory map, which would change when the file is written.
        return {name: file.get_tensor(places[name]).to(dtype, copy=True) for name in model.state_dict()}
