"""The contrastive step and the chosen head recipe in the same folds of the train rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from featcache.backbone.model_files.find import ModelFiles
from featcache.cache.view_names import split_view
from featcache.errors import BackboneError, HeadError, SourceError, UsageError
from featcache.evaluation.leaks import NO_LEAKS
from featcache.finetuning.job import SplitInputs, TuningJob
from featcache.finetuning.tuning import SomeTexts
from featcache.fingerprint import SINGLE_LABEL, task_of
from featcache.runs.few_labels.recipes import count_right, divisions
from featcache.runs.few_labels.train import DrawnRows, FewLabels
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress

STAGE = "contrastive"
# A model that is missing or has no such blocks, texts that are gone, a training that diverges.
CANNOT_BE_TRAINED = (BackboneError, HeadError, SourceError, UsageError)


@dataclass(frozen=True)
class StepTrial:
    """The contrastive step and the chosen head recipe in the same folds.

    Attributes:
        right, head_right: held-out rows that each had right, of `rows`.
        blocks: the trained part.
        seconds: of the trial, its trainings included.
    """

    right: int
    head_right: int
    rows: int
    folds: int
    blocks: str
    seconds: float

    @property
    def wins(self) -> bool:
        """At least as many right answers as the head alone."""
        return self.right >= self.head_right


def can_step(settings: Settings, few: FewLabels) -> bool:
    """Whether the contrastive step can be the better recipe for these labels, views and settings."""
    head, view = settings.head, few.recipes[0].view
    asked = settings.abstention.asked or head.costs or head.weight_column or head.class_weight != "none"
    single = task_of(few.labels) == SINGLE_LABEL and len(split_view(view)) == 1
    return single and view.startswith("last/") and not asked


def try_step(drawn: DrawnRows, tuning: TuningJob, model: ModelFiles, report: OnProgress) -> StepTrial:
    """Train in each fold without its held-out rows, and count what is right among these.

    Args:
        tuning: of the same train rows as `drawn`, in the same order.
    """
    y, folds, began = drawn.labels, drawn.choice.folds, time.perf_counter()
    recipe, seed = drawn.choice.best, tuning.settings.seed
    rows = drawn.few.train[recipe.view].some(drawn.rows)
    right = head_right = 0
    for fold, (kept, held_out) in enumerate(divisions(y, folds, seed)):
        report(Progress(STAGE, done=fold, total=folds))
        parts = {
            name: some_inputs(tuning.inputs["train"], some)
            for name, some in (("train", kept), ("validation", held_out))
        }
        tuned = replace(tuning, inputs=parts, leaks=NO_LEAKS).tuner(model).run()
        right += round(tuned.state.history[-1].validation_accuracy * len(held_out))
        scorer = recipe.fit(rows.some(kept), drawn.few.classes, drawn.few.head, seed)
        head_right += count_right(scorer, rows.some(held_out))
    report(Progress(STAGE, done=folds, total=folds))
    return StepTrial(
        right=right,
        head_right=head_right,
        rows=len(y),
        folds=folds,
        blocks=tuning.part.name,
        seconds=time.perf_counter() - began,
    )


def some_inputs(inputs: SplitInputs, rows: np.ndarray) -> SplitInputs:
    """Some rows of a split, int64 `[M]`, in this order."""
    return replace(
        inputs,
        split=inputs.split.some(rows),
        hashes=inputs.hashes[rows],
        texts=SomeTexts(inputs.texts, rows),
    )
