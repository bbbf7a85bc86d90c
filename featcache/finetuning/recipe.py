"""How blocks are trained: every setting once, with its help; the command line is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featcache.errors import UsageError
from featcache.option import setting, setting_like
from featcache.settings import HeadSettings, build_dataclass, load_table

LABELS, CONTRASTIVE = "labels", "contrastive"
BLOCKS = {LABELS: 2, CONTRASTIVE: 4}  # the highest ones, which are trained by default
DEFAULTS = {CONTRASTIVE: {"lr": 1e-4, "batch_size": 64}}  # and other defaults
NOT_CONTRASTIVE = ("epochs", "head_lr", "dropout", "patience", "label_smoothing", "class_weight")


@dataclass(frozen=True)
class Recipe:
    """How the part above the cut is trained, by AdamW.

    A rate falls from block to block downwards by `layer_decay` (discriminative fine-tuning, Howard and Ruder
    2018, arXiv:1801.06146). Biases and norms do not decay.
    """

    objective: str = setting(
        LABELS, "labels: a head and blocks by the labels; contrastive: for few labels, vectors of one class "
        "together, then a closed-form head (top-blocks:4, --lr 1e-4 and --batch-size 64 by default)",
        choices=(LABELS, CONTRASTIVE),
    )  # fmt: skip
    rows_per_class: int | None = setting(
        None, "train on so many rows of each class, drawn by --seed (default: all)", least=1
    )
    steps: int = setting(20, "training steps of --objective contrastive", least=1)
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

    def __post_init__(self) -> None:
        other = Recipe.__dataclass_fields__
        unused = NOT_CONTRASTIVE if self.objective == CONTRASTIVE else ("steps",)
        for name in unused:
            if getattr(self, name) != other[name].default:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} is not for --objective {self.objective}", hint=f"leave {flag} out")

    def default_part(self, blocks: int | None = None) -> str:
        """What is trained if nothing else is asked for, of a backbone with that many blocks."""
        count = BLOCKS[self.objective]
        return f"top-blocks:{count if blocks is None else min(count, blocks)}"

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that count for the objective; for `labels` as before there were objectives."""
        unused = NOT_CONTRASTIVE if self.objective == CONTRASTIVE else ("objective", "steps")
        unused = unused if self.rows_per_class else (*unused, "rows_per_class")
        return {name: value for name, value in asdict(self).items() if name not in unused}


def load_recipe(
    given: Mapping[str, Any], part: str | None = None, *, path: str | Path | None = None
) -> tuple[str, Recipe]:
    """What is trained and how: as given, else as the `[finetune]` table of the settings file has it.

    Args:
        given: values by name; None counts as not given.
        part: what is trained; the table calls it `train`; `top-blocks:2` by default (contrastive: 4).
        path: the settings file, as for `load_settings`.
    """
    table = load_table("finetune", path)
    asked = table.pop("train", None)
    table |= {name: value for name, value in given.items() if value is not None}
    recipe = build_recipe(table)
    return part or str(asked or recipe.default_part()), recipe


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from values by name, as typed or already typed; what is None or not named keeps its default.

    Raises:
        UsageError: an unknown name, or a value that cannot be meant.
    """
    given = {name: value for name, value in values.items() if value is not None}
    return build_dataclass(Recipe, DEFAULTS.get(str(given.get("objective")), {}) | given)
