"""Few labels: the contrastive step beside the head recipe, judged by the same cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from featcache.finetuning.few_labels.trial import CANNOT_BE_TRAINED, can_step, try_step
from featcache.finetuning.finetune import prepare, train_and_save
from featcache.finetuning.recipe import CONTRASTIVE, build_recipe
from featcache.finetuning.tuning import TrainingStep
from featcache.runs.few_labels.train import FEW, DrawnRows
from featcache.runs.run import Run
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress, ignore


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
    trains is pooled from the highest layer. Where the model is missing or cannot be trained, a note says
    so, and the head recipe is trained.

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
    few = drawn.few
    if len(drawn.rows) > FEW * few.classes or not can_step(settings, few):
        return drawn.train(settings, {})
    recipe = build_recipe({"objective": CONTRASTIVE, "rows_per_class": rows_per_class})
    try:
        tuning, model = prepare(settings, None, recipe, few.recipes[0].view, report=report)
        trial = try_step(drawn, tuning, model, report)
    except CANNOT_BE_TRAINED as error:
        report(Progress("note", text=f"the contrastive step cannot be tried: {error.what}"))
        return drawn.train(settings, {})
    about = {"contrastive": asdict(trial)}
    if not trial.wins:
        return drawn.train(settings, about)
    return train_and_save(replace(tuning, about=about), model, progress=progress)
