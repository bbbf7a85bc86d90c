"""A LoRA adapter merged into a model: W + scale * B A (Hu et al. 2021, arXiv:2106.09685).

PEFT names a module as the model did that was trained, with a task's head perhaps: `bert.encoder.layer.0...`.
What stands before the names of the backbone's own modules is found from the names themselves; what lies
outside of the backbone (a classifier, a pooler, a decoder) changes no feature.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import nn

from featcache.backbone.fused_layers import is_conv1d
from featcache.backbone.model_files.adapter.files import PREFIX, AdapterFiles
from featcache.backbone.model_files.library_errors import library_errors
from featcache.backbone.model_files.pickled_weights import convert_file
from featcache.errors import BackboneError

OF_PEFT = "base_model.model."
MATRICES = {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_embedding_A": "A", ".lora_embedding_B": "B"}
OTHER_PARTS = ("pooler", "decoder", "vision_model", "vision_tower", "visual")  # beside the encoder of texts
FITS = "use the model that the adapter was trained on: --model"

WeightsByName = dict[str, torch.Tensor]


def merge_adapter(model: nn.Module, adapter: AdapterFiles, name: str) -> list[str]:
    """Change the weights of `model`, whatever their dtype, by float32 arithmetic.

    Args:
        name: of the model, for messages.

    Returns:
        What the user should know, as sentences.

    Raises:
        BackboneError: weights that were changed since they were hashed, cannot be read, or do not fit.
    """
    matrices, whole = _by_module(_read(adapter), adapter)
    parameters = dict(model.named_parameters())
    modules = {name: each for name, each in model.named_modules() if f"{name}.weight" in parameters}
    before = _prefix(matrices, modules) if matrices else _prefix(whole, parameters)
    if before is None:
        known = next(iter({**matrices, **whole}), "none")
        raise BackboneError(f"{adapter.folder}: no weight of it fits {name}, e.g. {known}", hint=FITS)
    unused: set[str] = set()

    def own_name(path: str, known: Collection[str]) -> str | None:
        """The name in the backbone; None of what lies outside of it."""
        inside = path.removeprefix(before)
        part = inside.partition(".")[0]
        absent = part in OTHER_PARTS and not any(name.startswith(f"{part}.") for name in known)
        if not path.startswith(before) or absent:
            unused.add(part)
            return None
        if inside not in known:
            raise BackboneError(f"{adapter.folder}: {path} fits no weight of {name}", hint=FITS)
        return inside

    for path, value in whole.items():
        if own := own_name(path, parameters):
            _put(parameters[own], value.float(), path, adapter)
    for path, pair in matrices.items():
        if own := own_name(path, modules):
            weight = modules[own].get_parameter("weight")
            _put(weight, _product(modules[own], pair, path, adapter), path, adapter, add=True)
    return _notes(adapter, name, unused)


def _read(adapter: AdapterFiles) -> WeightsByName:
    """The weights, read once; a pickled file by another process, which builds tensors only."""
    path = adapter.weights
    sha256 = adapter.hashes[PREFIX + path.name]
    with library_errors(f"cannot read {path}", "is the download complete?"):
        if path.suffix == ".bin":
            with tempfile.TemporaryDirectory() as folder:
                converted = Path(folder) / "adapter.safetensors"
                convert_file(path, sha256, converted)
                return load(converted.read_bytes())
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BackboneError(f"{path} was changed while it was read", hint="run the same command again")
        return load(content)


def _by_module(
    tensors: Mapping[str, torch.Tensor], adapter: AdapterFiles
) -> tuple[dict[str, WeightsByName], WeightsByName]:
    """The two matrices A and B by the name of a module, and whole weights by their own names."""
    matrices: dict[str, WeightsByName] = {}
    whole: WeightsByName = {}
    for key, value in tensors.items():
        path = key.removeprefix(OF_PEFT)
        ending = next((end for end in MATRICES if path.endswith(end)), None)
        if ending:
            matrices.setdefault(path.removesuffix(ending), {})[MATRICES[ending]] = value
        elif "lora_" in path or path == key:
            raise BackboneError(
                f"{adapter.folder}: {key} is no part of a LoRA adapter that can be merged",
                hint="is it a folder that PEFT saved?",
            )
        else:
            whole[path.replace(".base_layer.", ".")] = value
    if lone := next((path for path, pair in matrices.items() if len(pair) != 2), None):
        raise BackboneError(
            f"{adapter.folder}: of {lone} it has one matrix, and two are needed",
            hint="is the download complete?",
        )
    return matrices, whole


def _prefix(paths: Iterable[str], known: Collection[str]) -> str | None:
    """What stands before the backbone's own names, e.g. `bert.`; None where nothing fits."""
    found: Counter[str] = Counter()
    for path in paths:
        parts = path.split(".")
        starts = (at for at in range(len(parts)) if ".".join(parts[at:]) in known)
        if (at := next(starts, None)) is not None:
            found["".join(f"{part}." for part in parts[:at])] += 1
    own = [each for each, _ in found.most_common() if not {*each.split(".")} & {*OTHER_PARTS}]
    return next(iter([*own, *found]), None)


def _product(module: nn.Module, pair: WeightsByName, path: str, adapter: AdapterFiles) -> torch.Tensor:
    """scale * B A, as the module has its weight."""
    first, second = pair["A"].float(), pair["B"].float()
    if first.dim() != 2 or second.dim() != 2 or len(first) != second.shape[1] or not len(first):
        raise BackboneError(
            f"{adapter.folder}: the matrices of {path}, {list(first.shape)} and {list(second.shape)}, "
            "cannot be multiplied",
            hint="is it the adapter as its author published it?",
        )
    product = adapter.scale(path, len(first)) * (second @ first)
    return product.T if isinstance(module, nn.Embedding) or is_conv1d(module) else product


def _put(weight: Any, value: torch.Tensor, path: str, adapter: AdapterFiles, *, add: bool = False) -> None:
    """Add `value` to a weight, or put it in its place."""
    if value.shape != weight.shape:
        raise BackboneError(
            f"{adapter.folder}: {path} is for a weight {list(value.shape)}, and the model's is "
            f"{list(weight.shape)}",
            hint=FITS,
        )
    weight.data = (weight.float() + value if add else value).to(weight.dtype)


def _notes(adapter: AdapterFiles, name: str, unused: Collection[str]) -> list[str]:
    notes, base = list[str](), adapter.base.rstrip("/")
    if base and base.rpartition("/")[2] != name.rpartition("/")[2]:
        notes.append(f"the adapter was trained on {base}, and is merged into {name}")
    if unused:
        parts = ", ".join(sorted(unused))
        notes.append(f"of the adapter, {parts} is not used: it changes no feature")
    return notes
