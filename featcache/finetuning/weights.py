"""Trained weights on disk, and the backbone with them in place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from featcache.backbone.load import load_backbone, resolve_device, resolve_dtype
from featcache.backbone.model import Backbone, quiet_transformers, states_dtype
from featcache.backbone.model_files.find import ModelFiles
from featcache.errors import HeadError
from featcache.fingerprint import EncoderDocument
from featcache.settings import BackboneSettings

TRAINED = "trained"  # name of the trained part's file, beside that of the head


def load_plain(settings: BackboneSettings, files: ModelFiles) -> Backbone:
    """The backbone in float32 on the CPU, where no module is replaced by one that cannot be trained."""
    return load_backbone(replace(settings, device="cpu", dtype="float32"), files, stock=True)


def with_weights(
    plain: Backbone, settings: BackboneSettings, weights: Mapping[str, torch.Tensor]
) -> Backbone:
    """The backbone with some of its parameters replaced, as fast as any frozen one.

    Args:
        plain: from `load_plain`; it is used up.
        settings: the device and dtype of the result.
        weights: by parameter name.

    Raises:
        HeadError: parameters that the backbone does not have, or of another shape.
    """
    device = resolve_device(settings.device)
    dtype_name = resolve_dtype(settings.dtype, device)
    known = dict(plain.model.named_parameters())
    for name, value in weights.items():
        if name not in known or known[name].shape != value.shape:
            raise HeadError(
                f"the trained part does not fit {plain.files.name}: {name} {list(value.shape)}",
                hint="use the model that it was trained with: --model",
            )
        known[name].data.copy_(value)
    if plain.packing == "packed":
        plain.model.set_attn_implementation(plain.stock_attention)
    plain.model.to(device)
    for parameter in known.values():
        parameter.data = parameter.data.to(states_dtype(dtype_name, device))
    with quiet_transformers():
        tuned = Backbone(plain.model, plain.tokenizer, plain.files, device, dtype_name)
    tuned.extension, tuned.extension_note = plain.extension, plain.extension_note
    return tuned


def trained_weights(folder: Path, document: EncoderDocument) -> dict[str, torch.Tensor]:
    """What was trained of the backbone in a run, by parameter name, in the dtype it was computed with.

    Args:
        folder: of the run.
        document: the encoder document of the run's head.

    Raises:
        HeadError: the trained part is missing or was changed.
    """
    from safetensors.torch import load

    for path in (folder / f"{TRAINED}.safetensors", folder / f"{TRAINED}-last.safetensors"):
        content = path.read_bytes() if path.is_file() else b""
        if document.tuned and hashlib.sha256(content).hexdigest() == document.tuned.weights:
            return load(content)
    raise HeadError(
        f"the trained part in {folder} is missing or was changed: no file has the head's checksum",
        hint="train it again: featcache finetune",
    )
