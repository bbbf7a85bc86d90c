"""A backbone from its files: at an exact revision, frozen, on the device and in the dtype asked for."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from featcache.backbone.adapter.merge import merge_adapter
from featcache.backbone.attention.packed import IMPLEMENTATION, packed_attention, register
from featcache.backbone.bert.load import load_bert, stock_tokenizer
from featcache.backbone.model import Backbone, quiet_transformers, states_dtype
from featcache.backbone.model_files.config_checks import check_parameters, check_vocabulary
from featcache.backbone.model_files.find import ModelFiles, require_unchanged
from featcache.backbone.model_files.library_errors import library_errors
from featcache.backbone.model_files.pickled_weights import loadable_folder
from featcache.backbone.model_files.weight_files import weight_bytes
from featcache.backbone.private_torch import is_emulated, multiplies_bfloat16
from featcache.backbone.static.load import load_static
from featcache.errors import BackboneError, UsageError
from featcache.settings import BackboneSettings


class NoPooler(nn.Module):
    """In the place of a model's own pooler: featcache pools the token states itself."""

    def forward(self, states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The states as they are."""
        return states


def load_backbone(settings: BackboneSettings, files: ModelFiles, *, stock: bool = False) -> Backbone:
    """Load, freeze and probe a backbone from its local files; never touches the network.

    Args:
        stock: with the modelling code of transformers, which can be trained, where `load_bert` would do
            without it.

    Raises:
        BackboneError: unreadable or incomplete weights, no tokenizer, a model that cannot encode texts.
        UsageError: the device does not exist.
    """
    device = resolve_device(settings.device)
    dtype_name = dtype_for(files, settings)
    cannot = f"cannot load {files.name} from {files.folder}"
    hint = "is the download complete? a model with code of its own needs --trust-remote-code"
    with library_errors(cannot, hint):
        dtype = states_dtype(dtype_name, device)
        known = _load_own(files, dtype, settings, stock=stock)
        model, tokenizer = known or _load_stock(files, dtype, settings.trust_remote_code)
    notes = merge_adapter(model, files.adapter, files.name) if files.adapter else []
    if not files.is_static and is_emulated(dtype_name, device):
        notes.append(
            f"this processor only emulates {dtype_name}: float32 is several times faster (--dtype float32)"
        )
    model.requires_grad_(False).eval().to(device)
    if known is None:
        _own_memory(model)
    require_unchanged(files, settings)
    with nullcontext() if known else quiet_transformers():
        backbone = Backbone(model, tokenizer, files, device, dtype_name)
    backbone.notes += notes
    return backbone


def _load_own(
    files: ModelFiles, dtype: torch.dtype, settings: BackboneSettings, *, stock: bool
) -> tuple[Any, Any] | None:
    """The model and its tokenizer, loaded without transformers; None where it is needed."""
    if not files.is_static:
        return None if stock or settings.trust_remote_code else load_bert(files, dtype)
    if stock or files.adapter:
        what = "trained" if stock else "changed by an adapter"
        raise UsageError(
            f"{files.name} is a table of token vectors: it has no blocks that can be {what}",
            hint="train a head on its features: featcache train-head",
        )
    return load_static(files, dtype)


def _load_stock(files: ModelFiles, dtype: torch.dtype, trust_remote_code: bool) -> tuple[Any, Any]:
    """The model and its tokenizer, as transformers loads them."""
    from transformers import AutoConfig

    source = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    register(IMPLEMENTATION, packed_attention)
    with quiet_transformers():
        config = AutoConfig.from_pretrained(files.folder, **source)
        kind = text_model_class(config)
        tokenizer = stock_tokenizer(files, trust_remote_code=trust_remote_code)
        rows = getattr(getattr(config, "text_config", config), "vocab_size", None)
        check_vocabulary(tokenizer, files.folder, files.hashes, rows)
        if not hasattr(config, "auto_map"):
            check_parameters(kind, config, files.folder / "config.json", weight_bytes(files.folder))
        model, info = kind.from_pretrained(
            loadable_folder(files), config=config, dtype=dtype, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **source,
        )  # fmt: skip
    _require_weights(files, info)
    return text_part(model), tokenizer


def text_model_class(config: Any) -> Any:
    """The class of transformers that loads a model for texts: of T5 and its kind, the encoder alone."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    both = getattr(config, "is_encoder_decoder", False) and not config.sub_configs
    return AutoModelForTextEncoding if both and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel


def text_part(model: Any) -> Any:
    """The part of a model that encodes texts, without a pooler: BART's encoder, CLIP's tower for texts."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    parts = [getattr(model, name, None) for name in ("text_model", "language_model")]
    model = next((part for part in parts if part is not None), model)
    if hasattr(model, "lm_head"):  # Llama 4's language model has a head
        model = getattr(model, "model", model)
    if getattr(model, "pooler", None) is not None:
        model.pooler = NoPooler()
    return model


def resolve_device(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU.

    Raises:
        UsageError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device {name}: {str(error).splitlines()[0]}",
            hint="try --device auto or --device cpu",
        ) from None
    return device


def resolve_dtype(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 if `device` multiplies it natively, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def dtype_for(files: ModelFiles, settings: BackboneSettings) -> str:
    """The compute type of a model; `auto` is float32 of a static one, which multiplies nothing.

    Raises:
        UsageError: the device does not exist.
    """
    if files.is_static and settings.dtype == "auto":
        return "float32"
    return resolve_dtype(settings.dtype, resolve_device(settings.device))


def _own_memory(model: torch.nn.Module) -> None:
    """Copy weights that may be a memory map of their file: they would change when the file is written."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _require_weights(files: ModelFiles, info: dict[str, Any]) -> None:
    """Refuse a model that would run with made-up weights; a missing pooler is never used."""
    lost = [*info.get("missing_keys", []), *(name for name, *_ in info.get("mismatched_keys", []))]
    lost = [name for name in lost if not name.startswith("pooler.")]
    if lost:
        raise BackboneError(
            f"{files.name} lacks {len(lost)} of its weights, e.g. {sorted(lost)[0]}",
            hint="the weights do not belong to this config.json, or the file is incomplete",
        )
