"""Small trainings above the cut: texts as tokens or states, a suffix of a tiny backbone, a tuner of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache.backbone.model_files.find import find_model
from featcache.backbone.packing import StateBatch, TokenBatch
from featcache.backbone.pooler import Pooler
from featcache.backbone.pooling import parse_view
from featcache.finetuning.loop import Tuner
from featcache.finetuning.parts import parse_part
from featcache.finetuning.recipe import Recipe
from featcache.finetuning.suffix import Suffix
from featcache.finetuning.tuning import LabelledTexts, TuningData
from featcache.finetuning.weights import load_plain
from tests.support.stock import load, settings_of

LENGTHS = (30, 7, 7, 16, 1, 40)
CPU = torch.device("cpu")


def batch_of(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> TokenBatch:
    """Random tokens in texts of these lengths."""
    ids = np.random.default_rng(seed).integers(5, 60, sum(lengths))
    return TokenBatch(ids, np.array(lengths, np.int64))


class TextInputs:
    """Texts as a training reads them: as tokens, or as the states of the frozen backbone at a cut."""

    def __init__(self, tokens: TokenBatch, folder: Path | None = None, cut: int | None = None) -> None:
        self.tokens, self.lengths = tokens, tokens.lengths
        self.ends = np.cumsum(tokens.lengths)
        self.states: torch.Tensor | None = None
        if cut is not None and folder is not None:
            self.states = load(folder).states(tokens, [cut])[0][cut].clone()

    def batch(self, rows: np.ndarray) -> StateBatch | TokenBatch:
        """Some texts, end to end."""
        places = np.concatenate([np.arange(self.ends[r] - self.lengths[r], self.ends[r]) for r in rows])
        if self.states is not None:
            return StateBatch(self.states[torch.from_numpy(places)], self.lengths[rows])
        return TokenBatch(self.tokens.input_ids[places], self.lengths[rows])


def suffix_of(folder: Path, part: str, **options: Any) -> Suffix:
    """The trained part of the tiny backbone in `folder`, on the CPU, in float32 by default."""
    plain = load_plain(settings_of(folder), find_model(settings_of(folder)))
    options = {"compute": "float32", "device": CPU} | options
    return Suffix(plain, parse_part(part, plain.num_blocks), **options)


def pooler_of(suffix: Suffix, pooling: str) -> Pooler:
    """Pools the last layer of the suffix's backbone."""
    backbone = suffix.backbone
    view = parse_view(f"last/{pooling}", backbone.num_blocks)
    return Pooler(view, backbone.files.folder, {}, suffix.width, suffix.device)


def tuner_of(
    suffix: Suffix,
    texts: TextInputs,
    labels: np.ndarray,
    recipe: Recipe,
    pooling: str = "mean",
    **options: Any,
) -> Tuner:
    """A training that is validated on its own texts; 100 tokens in a batch and seed 0 by default."""
    labelled = LabelledTexts(texts, labels)
    classes = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    return Tuner(
        suffix,
        pooler_of(suffix, pooling),
        TuningData(labelled, labelled, classes),
        recipe,
        **{"seed": 0, "budget": 100} | options,
    )
