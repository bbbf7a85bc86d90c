"""Folders of LoRA adapters as PEFT writes them, and models with an adapter worked into them by hand."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.sentence_models import write_json

RANK, ALPHA = 3, 12
Tensors = dict[str, torch.Tensor]
Matrices = dict[str, tuple[torch.Tensor, ...]]


def random_matrices(
    model: Path, modules: Sequence[str], seed: int = 0
) -> dict[str, tuple[torch.Tensor, ...]]:
    """A `[r, in]` and B `[out, r]` for modules of a model, whose weights are `[out, in]`."""
    draw, weights = torch.Generator().manual_seed(seed), load_file(model / "model.safetensors")
    found = {}
    for name in modules:
        rows, columns = weights[f"{name}.weight"].shape
        found[name] = tuple(
            0.3 * torch.randn(shape, generator=draw) for shape in ((RANK, columns), (rows, RANK))
        )
    return found


def tensors_of(matrices: Mapping[str, Sequence[torch.Tensor]], prefix: str = "") -> Tensors:
    """The matrices by their names in an adapter's file."""
    return {
        f"base_model.model.{prefix}{name}.lora_{which}.weight": value.contiguous()
        for name, pair in matrices.items()
        for which, value in zip("AB", pair, strict=True)
    }


def write_adapter(folder: Path, tensors: Tensors, **settings: Any) -> Path:
    """The folder of an adapter with these weights and settings."""
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "lora_dropout": 0.1,
             "target_modules": ["query"], "task_type": "SEQ_CLS", "fan_in_fan_out": False}  # fmt: skip
    write_json(folder / "adapter_config.json", about | settings)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def merged_model(model: Path, folder: Path, added: Tensors) -> Path:
    """A copy of `model` in which `added` is added to its weights, by their names."""
    shutil.copytree(model, folder)
    weights = load_file(model / "model.safetensors")
    for name, value in added.items():
        weights[name] = weights[name] + value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
