"""One vector a text from token states, as a view says: poolings side by side, then the steps that follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from featcache.backbone.attentive import Attention
from featcache.backbone.model_files.find import ModelFiles
from featcache.backbone.model_files.json_file import read_object
from featcache.backbone.model_files.modules_json import CONFIG, module_folders, root_of
from featcache.backbone.model_files.pickled_weights import loadable_folder
from featcache.backbone.model_files.weight_files import SAFETENSORS
from featcache.backbone.packing import PackedLayout, without_first
from featcache.backbone.pooling import POOLINGS, View
from featcache.errors import BackboneError
from featcache.system.hashes import changed_files, current_hash

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "SELU", "Softplus",
               "Hardtanh", "ReLU6", "Mish", "LogSigmoid", "Softsign", "Tanhshrink", "Hardswish")  # fmt: skip


class Pooler:
    """Makes the vectors of one view.

    Args:
        folder: of the model, whose modules the view's steps take their weights from.
        hashes: of the files of those modules, by name; what is loaded must have these.
        width: H, the numbers in a token's state.
        skipped: tokens at the beginning of each text that are not pooled: those of the prompt, and what the
            tokenizer puts before it. The last token is pooled in any case.
        attention: of a view whose pooling was learnt.

    Attributes:
        width: D, the numbers in a vector.

    Raises:
        BackboneError: the files of a step cannot be read or do not fit.
        UsageError: the model has no module for a step.
    """

    def __init__(
        self,
        view: View,
        folder: Path,
        hashes: Mapping[str, str],
        width: int,
        device: torch.device,
        *,
        skipped: int = 0,
        attention: Attention | None = None,
    ) -> None:
        if skipped and "weightedmean" in view.joined:
            raise BackboneError(
                f"{view.name} with a prompt that is not pooled is not supported",
                hint="use --pool-prompt, another pooling, or no prompt",
            )
        self.view, self.skipped, self.attention = view, skipped, attention
        self.width = width * len(view.joined)
        modules, root = iter(module_folders(folder, view.steps)), root_of(folder)
        self.steps: list[nn.Module] = []
        for name in view.steps:
            step = _Module(next(modules), root, hashes) if name in ("dense", "layernorm") else None
            self.steps.append(step.load(self.width) if step else _PlainStep(name))
            self.width = step.width if step else min(self.width, _first(name) or self.width)
        for loaded in self.steps:
            loaded.requires_grad_(False).eval()
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move the steps, and what was learnt, to `device`."""
        if self.attention is not None:
            self.attention = self.attention.to(device)
        for step in self.steps:
            step.to(device)

    def pool(
        self, states: torch.Tensor, layout: PackedLayout, picked: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Token states `[T, H]` to float32 `[B, H * poolings]`, before the steps.

        Args:
            picked: the vectors `[B, H]` of poolings that are known already.
        """
        if self.skipped:
            states, layout = without_first(states, layout, self.skipped)
        if self.attention is not None:
            return self.attention.pool(states, layout)
        known = picked or {}
        parts = [
            known[name] if name in known else POOLINGS[name](states, layout) for name in self.view.joined
        ]
        return parts[0].float() if len(parts) == 1 else torch.cat([part.float() for part in parts], dim=1)

    def finish(self, pooled: torch.Tensor) -> torch.Tensor:
        """The steps on what `pool` gives, or on the joined windows of long texts: float32 `[B, D]`."""
        for step in self.steps:
            pooled = step(pooled)
        return pooled


class DenseStep(nn.Module):
    """A linear layer with an activation, and perhaps the input added to the output."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 `[B, D]` -> `[B, D']`."""
        y: torch.Tensor = self.activation(self.linear(x))
        return y if self.residual is None else y + self.residual(x)


class _PlainStep(nn.Module):
    """`normalized`: to a length of 1, in float32; `firstN`: the first N numbers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first = _first(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x, dim=-1) if self.first is None else x[:, : self.first]


def _first(step: str) -> int | None:
    return int(step.removeprefix("first")) if step.startswith("first") else None


class _Module:
    """The files of one module with weights, read once and checked.

    Raises:
        BackboneError: they were changed since they were hashed, or hold no tensors.
    """

    def __init__(self, folder: Path, root: Path, hashes: Mapping[str, str]) -> None:
        self.folder, self.width = folder, 0
        place = folder.relative_to(root).as_posix()
        paths = {PurePosixPath(name): value for name, value in hashes.items()}
        own = {path.name: value for path, value in paths.items() if str(path.parent) == place}
        self.config: dict[str, Any] = read_object(folder / CONFIG)
        self.file = loadable_folder(ModelFiles(place, folder, None, own)) / SAFETENSORS.single
        try:
            self.weights = {name: value.float() for name, value in load_file(self.file).items()}
            now = {name: current_hash(folder / name) for name in own}
        except (SafetensorError, OSError, ValueError) as error:
            hint = "is the download complete?"
            raise BackboneError(f"cannot read {self.file}: {error}", hint=hint) from None
        if changed := changed_files(own, now):
            raise BackboneError(f"{folder}: {changed} changed while it was read", hint="run it again")

    def load(self, width: int) -> nn.Module:
        """The module for vectors of `width` numbers; `self.width` is that of what it makes of them."""
        kind = "linear" if "linear.weight" in self.weights else "norm"
        weight = self.weights.get(f"{kind}.weight")
        if weight is None or weight.shape[-1] != width:
            shape = "none" if weight is None else list(weight.shape)
            raise BackboneError(
                f"{self.file}: a weight for {width} numbers is needed, not {shape}",
                hint="the model folder is damaged or incomplete: download it again",
            )
        self.width = len(weight)
        return self._dense(weight) if kind == "linear" else self._norm()

    def _dense(self, weight: torch.Tensor) -> nn.Module:
        linear = self._layer(weight, self.weights.get("linear.bias"))
        residual: nn.Module | None = None
        if self.config.get("use_residual"):
            beside = self.weights.get("residual.weight")
            residual = nn.Identity() if beside is None else self._layer(beside, None)
        return DenseStep(linear, self._activation(), residual)

    def _layer(self, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight.data = weight
        if bias is not None:
            layer.bias.data = bias
        return layer

    def _norm(self) -> nn.Module:
        norm = nn.LayerNorm(self.width)
        norm.load_state_dict({name.removeprefix("norm."): value for name, value in self.weights.items()})
        return norm

    def _activation(self) -> nn.Module:
        name = self.config.get("activation_function", "torch.nn.Tanh")
        kind = name.rpartition(".")[2] if isinstance(name, str) and name.startswith("torch.nn.") else None
        if kind not in ACTIVATIONS:
            raise BackboneError(
                f"{self.folder / CONFIG}: the activation {name!r} is not supported",
                hint=f"supported are those of torch.nn named {', '.join(ACTIVATIONS)}",
            )
        activation: nn.Module = getattr(nn, kind)()
        return activation
