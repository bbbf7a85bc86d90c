"""How blocks are trained: every setting once, with its help; the command line is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.option import setting, setting_like
from featcache.settings import HeadSettings, build_dataclass, load_table

DEFAULT_PART = "top-blocks:2"


@dataclass(frozen=True)
class Recipe:
    """How the part above the cut is trained, by AdamW.

    A rate falls from block to block downwards by `layer_decay` (discriminative fine-tuning, Howard and Ruder
    2018, arXiv:1801.06146). Biases and norms do not decay.
    """

    epochs: int = setting(3, "passes over the train split", least=1)
    lr: float = setting(2e-4, "learning rate of the highest trained block", above=0)
    head_lr: float = setting(1e-3, "learning rate of the head", above=0)
    layer_decay: float = setting(1.0, "rate of a block over that of the block above it", above=0)
    weight_decay: float = setting(0.01, "AdamW weight decay", least=0)
    batch_size: int = setting(32, "texts in one training step", least=1)
    warmup: float = setting(0.05, "share of the steps over which the rates rise", least=0, below=1)
    schedule: str = setting(
        "linear", "learning rates after the warm-up", choices=("constant", "linear", "cosine")
    )
    clip: float = setting(1.0, "longest gradient, all parameters together; 0: any", least=0)
    dropout: float = setting(
        0.0, "share left out by the model's own dropout layers above the cut", least=0, below=1
    )
    patience: int | None = setting_like(HeadSettings, "patience")
    label_smoothing: float = setting_like(HeadSettings, "label_smoothing")
    class_weight: str = setting(
        "none", "balanced: rare classes weigh as much as frequent ones", choices=("none", "balanced")
    )


def load_recipe(
    given: Mapping[str, Any], part: str | None = None, *, path: str | Path | None = None
) -> tuple[str, Recipe]:
    """What is trained and how: as given, else as the `[finetune]` table of the settings file has it.

    Args:
        given: values by name; None counts as not given.
        part: what is trained; the table calls it `train`; `top-blocks:2` by default.
        path: the settings file, as for `load_settings`.
    """
    table = load_table("finetune", path)
    asked = str(table.pop("train", DEFAULT_PART))
    table |= {name: value for name, value in given.items() if value is not None}
    return part or asked, build_recipe(table)


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from values by name, as typed or already typed; what is None or not named keeps its default.

    Raises:
        UsageError: an unknown name, or a value that cannot be meant.
    """
    return build_dataclass(Recipe, {name: value for name, value in values.items() if value is not None})
