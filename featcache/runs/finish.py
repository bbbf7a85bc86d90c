"""From trained scorers to a saved run: calibrated on validation, scored on every split, recorded."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from featcache.cache.catalog import Features
from featcache.evaluation.bootstrap import bootstrap_intervals
from featcache.evaluation.calibration import fit_temperature, tune_thresholds
from featcache.evaluation.leaks import Leaks
from featcache.evaluation.metrics import Scores, row_parts, score, score_parts
from featcache.evaluation.numbers import NumberScores
from featcache.fingerprint import EncoderDocument
from featcache.heads.head import Head
from featcache.heads.lexical.rows import WordRows
from featcache.heads.numbers.scale import NumberScale
from featcache.heads.probabilities import probabilities_of
from featcache.heads.scorers import Scorer
from featcache.runs.abstain import abstention_record
from featcache.runs.numbers.interval import covered_shares
from featcache.runs.numbers.predictions import NumberPredictions
from featcache.runs.numbers.score import NumberScoring
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
    temperature, before, after = choose_temperature(logits, y, names)
    scaled = probabilities_of(logits, temperature, multi_label=several)
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


def choose_temperature(
    logits: np.ndarray, y: np.ndarray, names: tuple[str, ...]
) -> tuple[float, Scores, Scores]:
    """The temperature that a head gets on validation, and the scores of these rows without and with it.

    It is 1 where the fitted one, which has the lowest log loss, makes the calibration error larger, and where
    all rows are right: then the loss falls without end towards temperature 0.

    Args:
        logits, y: see `fit_temperature`.
    """
    several = y.ndim == 2
    before = score(probabilities_of(logits, 1.0, multi_label=several), y, names)
    if before.accuracy == 1:
        return 1.0, before, before
    temperature = fit_temperature(logits, y)
    after = score(probabilities_of(logits, temperature, multi_label=several), y, names)
    return (1.0, before, before) if after.ece > before.ece else (temperature, before, after)


def number_head(scorer: Scorer, scale: NumberScale, validation: Features, kind: str) -> Head:
    """The head that predicts numbers, for features like those of validation."""
    return Head(
        scorer, label_names=(), view=validation.view, encoder=validation.encoder, kind=kind, numbers=scale
    )


def save_trained(
    settings: Settings,
    training: TrainingRecord,
    heads: Mapping[str, tuple[Head, CalibrationRecord | None]],
    features: Mapping[str, Features],
    leaks: Leaks,
    *,
    commit: str | None,
    named: Mapping[str, BackboneRecord] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Run:
    """Score the best head on every split and save it as a run.

    Args:
        heads: from `calibrate`, by file name: `head` (the best by validation) and perhaps `last`. Heads that
            predict numbers are not calibrated.
        features: by split. Predictions and intervals are made of all splits but train.
        leaks: which rows leak; the scores without them are recorded, too.
        commit: of the backbone on the hub; None for a local folder.
        named: the backbones, where there are several.
        files: what else belongs to the run, by file name.
    """
    head, calibration = heads["head"]
    found = _score_splits(head, features, leaks)
    record = RunRecord(
        **vars(training),
        view=head.view,
        task=head.task,
        fingerprint=head.fingerprint,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seed=settings.seed,
        epochs=len(training.history) or None,
        label_names=head.label_names,
        metrics={split: each.summary for split, each in found.scores.items()},
        scores={
            split: SplitScores.of(each) for split, each in found.scores.items() if isinstance(each, Scores)
        },
        intervals=found.intervals,
        clean=found.clean,
        calibration=calibration,
        abstention=abstention_record(head, features),
        interval=head.numbers.interval if head.numbers else None,
        interval_covered=covered_shares(head, found.number_predictions),
        backbone=BackboneRecord(**asdict(settings.backbone), commit=commit, named=dict(named or {})),
        features=_used(settings.features, head.encoder),
        data=settings.data,
    )
    saved = {name: each for name, (each, _) in heads.items()}
    return save_run(Path(settings.paths.reports_dir), record, saved, found.predictions, files)


class ClassScoring:
    """Scores of class probabilities, float64 `[N, C]`, against labels."""

    def __init__(self, head: Head) -> None:
        self.head, self.limits = head, (head.thresholds, head.costs)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        return self.head.predict_proba(x)

    def score(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Scores:
        """Of outputs and labels of some rows each."""
        return score_parts(parts, self.head.label_names, *self.limits)

    def intervals(self, outputs: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
        return bootstrap_intervals(outputs, y, *self.limits)

    def predictions(self, features: Features, outputs: np.ndarray, leaked: np.ndarray | None) -> Predictions:
        names = features.label_names
        return Predictions.of(features.row_hash, features.y, outputs, names, *self.limits, leaked=leaked)


@dataclass(frozen=True)
class _ScoredSplits:
    """By split; intervals and predictions of all but train."""

    clean: CleanScores
    scores: dict[str, Scores | NumberScores] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    predictions: dict[str, Predictions | NumberPredictions] = field(default_factory=dict)

    @property
    def number_predictions(self) -> dict[str, NumberPredictions]:
        return {split: one for split, one in self.predictions.items() if isinstance(one, NumberPredictions)}


def _score_splits(head: Head, features: Mapping[str, Features], leaks: Leaks) -> _ScoredSplits:
    counts = {split: int(rows.sum()) for split, rows in leaks.rows.items()}
    made = _ScoredSplits(CleanScores(leaks.rule, counts))
    scoring = ClassScoring(head) if head.numbers is None else NumberScoring(head)
    for split, part in features.items():
        if split == "train":  # may be large: only some of its rows are in memory at a time
            some = ((scoring.outputs(part.x[rows]), part.y[rows]) for rows in row_parts(len(part.y)))
            made.scores[split] = scoring.score(some)
            continue
        found = scoring.outputs(part.x)
        made.scores[split] = scoring.score(_in_parts(found, part.y))
        made.intervals[split] = scoring.intervals(found, part.y)
        made.predictions[split] = scoring.predictions(part, found, leaks.rows.get(split))
        if (rows := leaks.clean(split)) is not None:
            made.clean.metrics[split] = scoring.score(_in_parts(found[rows], part.y[rows])).summary
            made.clean.intervals[split] = scoring.intervals(found[rows], part.y[rows])
    return made


def _in_parts(outputs: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Outputs and labels of some rows at a time."""
    return ((outputs[rows], y[rows]) for rows in row_parts(len(y)))


def _used(features: FeatureSettings, encoder: EncoderDocument) -> FeatureSettings:
    """The settings with the prompt and the length that were used, where the model chose them."""
    if encoder.named:  # each has its own
        return features
    length = features.max_length or encoder.max_length or None  # an endpoint does not tell its own
    return replace(features, prompt=encoder.prompt, prompt_name=None, max_length=length)
