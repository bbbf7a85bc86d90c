"""Few labels: the contrastive step beside the head recipe, judged by the same cross-validation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from featcache.backbone.model_files.find import ModelFiles
from featcache.cache.view_names import split_view
from featcache.errors import BackboneError, SourceError, UsageError
from featcache.evaluation.leaks import NO_LEAKS
from featcache.finetuning.finetune import prepare, train_and_save
from featcache.finetuning.job import SplitInputs, TuningJob
from featcache.finetuning.recipe import CONTRASTIVE, build_recipe
from featcache.finetuning.tuning import SomeTexts, TrainingStep
from featcache.fingerprint import SINGLE_LABEL, task_of
from featcache.runs.few_labels.recipes import count_right, divisions
from featcache.runs.few_labels.train import FEW, DrawnRows
from featcache.runs.run import Run
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress, ignore

STAGE = "contrastive"


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


def train_few_labels(
    settings: Settings,
    view: str | None = None,
    *,
    rows_per_class: int | None = None,
    on_fit: Callable[[int, int], None] = lambda done, total: None,
    report: OnProgress = ignore,
    progress: Callable[[TrainingStep], None] = lambda _: None,
) -> Run:
    """Choose among the head recipes and the contrastive step by cross-validation, and save the best as a run.

    The step is tried where there are at most 64 train rows a class with one label each, and the view that it
    trains is pooled from the highest layer. A model that cannot be had or trained is said; the head recipe is
    then trained.

    Args:
        view: the one to read; by default the recipe chooses among the cached views of `settings`.
        rows_per_class: so many train rows of each class, drawn by `settings.seed`; all rows by default.
        on_fit: receives how many of the fits of head recipes are done, and of how many.
        report: receives the making of token states, the folds of the step, and notes.
        progress: called after each step of the last training.

    Raises:
        CacheMiss: train or validation is not extracted for these settings.
        HeadError: rows no head can be trained on, or too few for cross-validation.
        UsageError: the view `lexical`, or rows_per_class below 1.
    """
    drawn = DrawnRows.choose(settings, view, rows_per_class, on_fit)
    pooled = drawn.choice.recipes[0].view
    if not _is_for(settings, drawn, pooled):
        return drawn.train(settings, {})
    recipe = build_recipe({"objective": CONTRASTIVE, "rows_per_class": rows_per_class})
    try:
        tuning, model = prepare(settings, None, recipe, pooled, report=report)
    except (BackboneError, SourceError, UsageError) as error:
        report(Progress("note", text=f"the contrastive step cannot be tried: {error.what}"))
        return drawn.train(settings, {})
    trial = try_step(drawn, tuning, model, report)
    about = {"contrastive": asdict(trial)}
    if not trial.wins:
        return drawn.train(settings, about)
    return train_and_save(replace(tuning, about=about), model, progress=progress)


def _is_for(settings: Settings, drawn: DrawnRows, view: str) -> bool:
    """Whether the contrastive step can be the better recipe for these rows and settings."""
    head, few = settings.head, drawn.few
    asked = settings.abstention.asked or head.costs or head.weight_column or head.class_weight != "none"
    return (
        view.startswith("last/")
        and len(split_view(view)) == 1
        and task_of(few.labels) == SINGLE_LABEL
        and len(drawn.rows) <= FEW * few.classes
        and not asked
    )


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
            name: _some(tuning.inputs["train"], some)
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


def _some(inputs: SplitInputs, rows: np.ndarray) -> SplitInputs:
    """Some rows of a split."""
    return replace(
        inputs,
        split=inputs.split.some(rows),
        hashes=inputs.hashes[rows],
        texts=SomeTexts(inputs.texts, rows),
    )
