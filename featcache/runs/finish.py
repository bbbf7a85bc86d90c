"""From trained scorers to a saved run: calibrated on validation, scored on every split, recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from featcache.cache.catalog import Features
from featcache.evaluation.bootstrap import bootstrap_intervals
from featcache.evaluation.calibration import fit_temperature, tune_thresholds
from featcache.evaluation.leaks import Leaks
from featcache.evaluation.metrics import Scores, row_parts, score, score_parts
from featcache.fingerprint import EncoderDocument
from featcache.heads.head import Head
from featcache.heads.lexical.rows import WordRows
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Scorer
from featcache.runs.abstain import abstention_record
from featcache.runs.predictions import Predictions
from featcache.runs.record import (
    BackboneRecord,
    CalibrationRecord,
    CleanScores,
    RunRecord,
    SplitScores,
    TrainingRecord,
)
from featcache.runs.run import Run, save_run
from featcache.settings import FeatureSettings, Settings


def calibrate(
    scorer: Scorer, validation: Features, kind: str, costs: np.ndarray | None = None
) -> tuple[Head, CalibrationRecord]:
    """The head with temperature (and multi-label thresholds) fitted on validation, on the rows to choose by.

    Temperature scaling: Guo et al. 2017, arXiv:1706.04599.

    Args:
        costs: see `Head.costs`.
    """
    logits, y, names = scorer.logits(validation.x), validation.y, validation.label_names
    several = y.ndim == 2
    before = score(probabilities_of(logits, 1.0, multi_label=several), y, names)
    # If all rows are right, the loss falls without end towards temperature 0: nothing can be fitted.
    temperature = fit_temperature(logits, y) if before.accuracy < 1 else 1.0
    scaled = probabilities_of(logits, temperature, multi_label=several)
    after = score(scaled, y, names)
    head = Head(
        scorer,
        label_names=names,
        view=validation.view,
        encoder=validation.encoder,
        kind=kind,
        temperature=temperature,
        thresholds=tune_thresholds(scaled, y) if several else None,
        costs=costs,
        ngrams=validation.x.ngrams if isinstance(validation.x, WordRows) else None,
    )
    return head, CalibrationRecord(
        temperature=temperature,
        ece_before=before.ece,
        ece_after=after.ece,
        log_loss_before=before.log_loss,
        log_loss_after=after.log_loss,
    )


def save_trained(
    settings: Settings,
    training: TrainingRecord,
    heads: Mapping[str, tuple[Head, CalibrationRecord]],
    features: Mapping[str, Features],
    leaks: Leaks,
    *,
    commit: str | None,
    files: Mapping[str, bytes] | None = None,
) -> Run:
    """Score the best head on every split and save it as a run.

    Args:
        heads: from `calibrate`, by file name: `head` (the best by validation) and perhaps `last`.
        features: by split. Predictions and intervals are made of all splits but train.
        leaks: which rows leak; the scores without them are recorded, too.
        commit: of the backbone on the hub; None for a local folder.
        files: what else belongs to the run, by file name.
    """
    head, calibration = heads["head"]
    found = _score_splits(head, features, leaks)
    record = RunRecord(
        **vars(training),
        view=head.view,
        task="multi-label" if head.multi_label else "single-label",
        fingerprint=head.fingerprint,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seed=settings.seed,
        epochs=len(training.history) or None,
        label_names=head.label_names,
        metrics={split: each.summary for split, each in found.scores.items()},
        scores={split: SplitScores.of(each) for split, each in found.scores.items()},
        intervals=found.intervals,
        clean=found.clean,
        calibration=calibration,
        abstention=abstention_record(head, features),
        backbone=BackboneRecord(**asdict(settings.backbone), commit=commit),
        features=_used(settings.features, head.encoder),
        data=settings.data,
    )
    saved = {name: each for name, (each, _) in heads.items()}
    return save_run(Path(settings.paths.reports_dir), record, saved, found.predictions, files)


@dataclass(frozen=True)
class _ScoredSplits:
    """By split; intervals and predictions of all but train."""

    clean: CleanScores
    scores: dict[str, Scores] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    predictions: dict[str, Predictions] = field(default_factory=dict)


def _score_splits(head: Head, features: Mapping[str, Features], leaks: Leaks) -> _ScoredSplits:
    counts = {split: int(rows.sum()) for split, rows in leaks.rows.items()}
    made, limits = _ScoredSplits(CleanScores(leaks.rule, counts)), (head.thresholds, head.costs)
    for split, part in features.items():
        names = part.label_names
        if split == "train":  # may be large: only some of its rows are in memory at a time
            some = ((head.predict_proba(part.x[rows]), part.y[rows]) for rows in row_parts(len(part.y)))
            made.scores[split] = score_parts(some, names, *limits)
            continue
        found = head.predict_proba(part.x)
        made.scores[split] = score(found, part.y, names, *limits)
        made.intervals[split] = bootstrap_intervals(found, part.y, *limits)
        made.predictions[split] = Predictions.of(
            part.row_hash, part.y, found, names, *limits, leaked=leaks.rows.get(split)
        )
        if (rows := leaks.clean(split)) is not None:
            made.clean.metrics[split] = score(found[rows], part.y[rows], names, *limits).summary
            made.clean.intervals[split] = bootstrap_intervals(found[rows], part.y[rows], *limits)
    return made


def _used(features: FeatureSettings, encoder: EncoderDocument) -> FeatureSettings:
    """The settings with the prompt and the length that were used, where the model chose them."""
    length = encoder.max_length if features.max_length is None else features.max_length
    return replace(features, prompt=encoder.prompt, prompt_name=None, max_length=length)
