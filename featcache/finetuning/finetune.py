"""Fine-tune above the cut: states once, blocks and head trained, the best by validation saved as a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.cache.view_names import LEXICAL, cached_views, join_views, split_view
from featcache.data.split import Split, load_splits
from featcache.data.test_split import splits_for_training
from featcache.errors import UsageError
from featcache.extraction.job import Job
from featcache.finetuning.parts import parse_part
from featcache.finetuning.recipe import Recipe
from featcache.heads.lexical.rows import WordRows
from featcache.heads.numbers.registry import refuse_numbers
from featcache.runs.leaks import find_leaks
from featcache.runs.run import Run
from featcache.runs.weighted_rows import draw_per_class
from featcache.runs.words import SplitTexts
from featcache.settings import Settings
from featcache.system.progress import OnProgress, Progress

if TYPE_CHECKING:
    from featcache.backbone.encoder import Encoder
    from featcache.backbone.model_files.find import ModelFiles
    from featcache.finetuning.job import TuningJob
    from featcache.finetuning.tuning import TrainingStep

COMPUTE = ("float32", "bfloat16")


def finetune(
    settings: Settings,
    train: str = "top-blocks:2",
    recipe: Recipe | None = None,
    view: str | None = None,
    *,
    resume: bool = True,
    wait: float = 0.0,
    report: Callable[[Progress], None] | None = None,
    progress: Callable[[TrainingStep], None] = lambda _: None,
) -> Run:
    """Train blocks of the backbone with a linear head, and save them as a run.

    What lies below the trained blocks runs once over each split; its states are cached. To predict, the
    trained weights are put into the backbone, see `Predictor.from_run`.

    Args:
        settings: which model, data and features (prompt, longest text, seed, folders).
        train: `top-blocks:N`, `positions` or `all`; for the head alone there is `train_head`.
        recipe: rates, epochs and so on; `Recipe()` by default.
        view: `last/POOLING`, with `,lexical` the words of the texts beside it; the first of
            `settings.features.views` by default.
        resume: go on from the checkpoint of exactly this training, where one was left.
        wait: seconds to wait for another process that makes the same states.
        report: called while states are made.
        progress: called after each step.

    Returns:
        The saved run, with its folder's `trained.safetensors` and `trained-last.safetensors`.

    Raises:
        SourceError, BackboneError, CacheError, UsageError: each says what to do.
        HeadError: training diverged before an epoch was done.
    """
    tuning, model = prepare(settings, train, recipe or Recipe(), view, wait=wait, report=report)
    return train_and_save(tuning, model, resume=resume, progress=progress)


def train_and_save(
    tuning: TuningJob,
    model: ModelFiles,
    *,
    resume: bool = True,
    progress: Callable[[TrainingStep], None] = lambda _: None,
) -> Run:
    """The training that was prepared, from its checkpoint where one was left and `resume` is set."""
    from featcache.finetuning.checkpoint import CheckpointFolder

    checkpoints = CheckpointFolder(Path(tuning.settings.paths.reports_dir) / f".finetune-{tuning.key[:12]}")
    tuner = tuning.tuner(model, checkpoints, progress)
    run = tuning.save(tuner, tuner.run(resume=resume), model.commit)
    checkpoints.discard()
    return run


def prepare(
    settings: Settings,
    train: str | None,
    recipe: Recipe,
    view: str | None = None,
    *,
    splits: dict[str, Split] | None = None,
    wait: float = 0.0,
    report: Callable[[Progress], None] | None = None,
) -> tuple[TuningJob, ModelFiles]:
    """What `finetune` trains on, its states cached, and the files of the backbone.

    Args:
        train: as of `finetune`; None: the default of the recipe's objective, or all blocks where the backbone
            has fewer.
        splits: of the source, the rows that states are needed of; by default those that the recipe asks for.
    """
    from featcache.finetuning.job import FrozenBackbone, SplitInputs, TuningJob

    _check_settings(settings)
    asked = view or settings.features.views[0]
    view = _backbone_view(asked)
    settings = replace(settings, features=replace(settings.features, views=(view,)))
    job = Job(settings, report, wait=wait)
    settings = job.settings
    splits = splits or _load(settings, recipe.rows_per_class)
    encoder = job.encoder("train")
    blocks = encoder.backbone.num_blocks
    part = parse_part(train or recipe.default_part(blocks), blocks)
    _check_encoder(encoder, view)
    inputs = {name: SplitInputs.of(split, job, encoder, part.cut) for name, split in splits.items()}
    leaks = find_leaks(settings, {name: each.hashes for name, each in inputs.items()}, splits)
    words = _count_words(asked, splits, job.on_progress)
    tuning = TuningJob(settings, recipe, part, FrozenBackbone.of(encoder), inputs, leaks=leaks, words=words)
    del encoder
    job.release()  # its memory is for the trained part
    return tuning, job.model


def _load(settings: Settings, rows_per_class: int | None) -> dict[str, Split]:
    """The splits of the source; of train as many rows of each class as are asked for."""
    splits = load_splits(settings.data, splits_for_training(settings.data), seed=settings.seed)
    if rows_per_class is not None:
        drawn = draw_per_class(splits["train"].labels, rows_per_class, settings.seed)
        splits["train"] = splits["train"].some(drawn)
    return splits


def _backbone_view(asked: str) -> str:
    """The view of the backbone in what was asked for, without the words.

    Raises:
        UsageError: there is none.
    """
    if views := cached_views(asked):
        return join_views(views)
    raise UsageError("the view lexical alone has no blocks", hint="e.g. --view last/mean,lexical")


def _count_words(view: str, splits: dict[str, Split], on_progress: OnProgress) -> dict[str, WordRows] | None:
    """The n-grams of the splits, where `view` asks for them."""
    if LEXICAL not in split_view(view):
        return None
    return SplitTexts.of_splits(splits).rows(on_progress)


def _check_settings(settings: Settings) -> None:
    """Refuse what only heads of frozen backbones can do."""
    refuse_numbers(settings.data.task, "finetune")
    if settings.abstention.asked:
        raise UsageError(
            f"{settings.abstention.flag}: a fine-tuned head always answers",
            hint="leave it out, in featcache.toml below [abstention], too; frozen heads can: train-head",
        )


def _check_encoder(encoder: Encoder, view: str) -> None:
    """Refuse a model, a view, a dtype or windows that blocks cannot be trained with."""
    from featcache.finetuning.suffix import require_blocks

    require_blocks(encoder.backbone)
    if encoder.views[0].layer != encoder.backbone.num_blocks:
        raise UsageError(f"fine-tuning pools the last layer, not {view}", hint="e.g. --view last/mean")
    if encoder.backbone.dtype_name not in COMPUTE:
        raise UsageError(
            f"fine-tuning computes in float32 or bfloat16, not {encoder.backbone.dtype_name}",
            hint="use --dtype auto",
        )
    if encoder.long_text == "chunks":
        raise UsageError(
            "blocks cannot be trained on windows of long texts",
            hint="use --long-text truncate or head-tail, or --train head",
        )
