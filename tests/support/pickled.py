"""Model folders with pickled weights, as older models are published, and pickles made to do harm."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def pickled(folder: Path, target: Path, *, shards: int = 1) -> Path:
    """A copy of a BERT whose weights are in `.bin` files, as the first BERTs were converted.

    The names have a `bert.` before them, gamma and beta for weight and bias, and a head beside them.
    """
    shutil.copytree(folder, target)
    (target / "model.safetensors").unlink()
    weights = old_names(load_file(folder / "model.safetensors"))
    if shards == 1:
        torch.save(weights, target / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        return target
    places = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {key: weights[key] for key in list(weights)[number::shards]}
        torch.save(part, target / name)
        places |= dict.fromkeys(part, name)
    write_index(target / "pytorch_model.bin.index.json", places)
    return target


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a BERT under the names of its first releases, with a tied head."""
    renamed = {}
    for name, value in weights.items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[f"bert.{old}"] = value
    return renamed | {"cls.predictions.decoder.weight": renamed["bert.embeddings.word_embeddings.weight"]}


def write_index(path: Path, weight_map: Any) -> None:
    """An index of shards."""
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


class RunsCommand:
    """An object whose pickle makes the file `trace` when it is read without care."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)
