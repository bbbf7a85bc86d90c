"""The folder of a PEFT LoRA adapter, read and checked before a model is loaded, without importing torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.backbone.model_files.json_file import bad_field, read_object
from featcache.errors import BackboneError
from featcache.system.hashes import current_hash

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "adapter/"  # of the names of its files among those of a model
# Settings that change nothing of how trained weights are merged; any other that is set is refused.
WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform",
    "loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type",
)  # fmt: skip
READ = ("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "use_rslora")
# Ways to begin training that leave the weights of the model as they are.
PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
OTHERWISE = (
    "merge it once with PEFT, where you have it: PeftModel.from_pretrained(...).merge_and_unload()"
    ".save_pretrained(FOLDER), the tokenizer likewise; then --model FOLDER"
)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on disk.

    Attributes:
        hashes: SHA-256 of its two files, by their names after `adapter/`.
        base: the model that it was trained on, as its settings name it; empty where they do not.
        alpha: the scale is alpha over the rank, or over its root where `by_root`.
        alphas: other values of alpha, by the end of a module's name.
    """

    folder: Path
    hashes: dict[str, str]
    base: str
    alpha: float
    alphas: Mapping[str, float]
    by_root: bool

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return next(self.folder / name for name in ADAPTER_WEIGHTS if PREFIX + name in self.hashes)

    def scale(self, module: str, rank: int) -> float:
        """By how much the product of the two matrices of a module counts."""
        ends = (end for end in self.alphas if f".{module}".endswith(f".{end}"))
        alpha = self.alphas.get(next(ends, ""), self.alpha)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def find_adapter(folder: str | None) -> AdapterFiles | None:
    """The adapter in a folder; None where none is asked for.

    Raises:
        BackboneError: it is not there, cannot be read, or is of a kind that cannot be merged.
    """
    if folder is None:
        return None
    place = Path(folder).expanduser()
    config = place / ADAPTER_CONFIG
    weights = next((place / name for name in ADAPTER_WEIGHTS if (place / name).is_file()), None)
    if weights is None or not config.is_file():
        lacking = f"no folder {place}" if not place.is_dir() else (
            f"{place} is no adapter's folder: it has no {ADAPTER_CONFIG if weights else ADAPTER_WEIGHTS[0]}"
        )  # fmt: skip
        raise BackboneError(
            lacking,
            hint=f"--adapter takes a folder of PEFT, with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS[0]}",
        )
    try:
        hashes = {PREFIX + file.name: current_hash(file) for file in (config, weights)}
    except OSError as error:
        raise BackboneError(
            f"cannot read {error.filename or place}: {error.strerror or error}",
            hint="check the permissions of the adapter's files",
        ) from None
    settings = read_object(config)
    _check_kind(settings, config)
    return AdapterFiles(
        folder=place,
        hashes=hashes,
        base=str(settings.get("base_model_name_or_path") or ""),
        alpha=_number(settings.get("lora_alpha", 8), config, "lora_alpha"),
        alphas=_alphas(settings.get("alpha_pattern") or {}, config),
        by_root=settings.get("use_rslora") is True,
    )


def _check_kind(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse what is more than a product of two matrices that is added to a weight."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise BackboneError(
            f"{path}: an adapter of the kind {kind!r} cannot be merged; only LORA can", hint=OTHERWISE
        )
    odd = sorted(name for name in settings.keys() - {*WITHOUT_EFFECT, *READ} if settings[name])
    if settings.get("bias") not in (None, "none"):
        odd.append("bias")
    if settings.get("init_lora_weights") not in PLAIN_STARTS:
        odd.append("init_lora_weights")
    if odd:
        value = str(settings[odd[0]])[:60]
        raise BackboneError(f"{path}: an adapter with {odd[0]} = {value} cannot be merged", hint=OTHERWISE)


def _alphas(pattern: Any, path: Path) -> dict[str, float]:
    """Values of alpha by the end of a module's name, which the settings give as patterns."""
    if not isinstance(pattern, dict):
        raise bad_field(path, "alpha_pattern", pattern, "numbers by the names of modules")
    found = {}
    for name, value in pattern.items():
        end = name.removeprefix("^").removesuffix("$").replace(r"\.", ".")
        if set(end) & set("\\*+?[](){}|^$"):
            raise bad_field(path, "alpha_pattern", name, "names of modules, not patterns")
        found[end] = _number(value, path, "alpha_pattern")
    return found


def _number(value: Any, path: Path, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise bad_field(path, field, value, "a number")
    return float(value)
