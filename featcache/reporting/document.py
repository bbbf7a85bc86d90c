"""A report as dataclasses: what `build_report` returns, the pages show, and report.json holds.

Intervals are 95 % intervals (low, high); a number that is not known is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featcache.evaluation.metrics import ClassScore
from featcache.fingerprint import MULTI_LABEL
from featcache.inspection.data_checks import DataCheck
from featcache.inspection.document import Findings, row_text
from featcache.inspection.inspection import LeakageScore
from featcache.runs.few_labels.side_by_side import SavedComparison
from featcache.runs.record import CalibrationRecord, SelectiveScores
from featcache.translation.language import noted

REPORT_FORMAT = 1

Interval = tuple[float | None, float | None]
Label = str | list[str]  # of a multi-label row a list


@dataclass(frozen=True, kw_only=True)
class ReportSubject:
    """The run that a report is about, with its settings as far as run.json has them.

    Attributes:
        seconds, extraction_seconds: of the training, and of the features that it used.
        short_view: see `RunRecord.short_view`.
        leaks: see `CleanScores.about`.
    """

    run: str
    head: str
    view: str
    task: str
    model: str | None
    revision: str | None
    data: str | None
    rows: Mapping[str, int]
    truncated: Mapping[str, int]
    prompt: str | None
    max_length: int | None
    settings: Mapping[str, Any]
    seed: int | None
    label_names: Sequence[str]
    best_epoch: int | None
    parameters: int | None
    created: str
    calibration: CalibrationRecord | None
    split: str
    leaks: str = ""
    short_view: str = ""
    seconds: float | None = None
    extraction_seconds: float | None = None

    @property
    def multi_label(self) -> bool:
        return self.task == MULTI_LABEL

    @property
    def score_name(self) -> str:
        """What the share of rows whose labels are all right is called."""
        return noted("exact match") if self.multi_label else noted("accuracy")


@dataclass(frozen=True)
class HeadlineMetric:
    """One metric on the reported split, and on its clean rows where rows leak."""

    value: float | None
    interval: Interval | None
    clean: float | None = None
    clean_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """One line of the table of runs."""

    run: str
    head: str
    view: str
    validation_accuracy: float | None
    accuracy: float | None
    interval: Interval | None
    macro_f1: float | None
    log_loss: float | None
    ece: float | None
    seconds: float
    epochs: int | None
    parameters: int | None
    clean_accuracy: float | None = None
    micro_f1: float | None = None


@dataclass(frozen=True)
class MajorityBaseline:
    """The most frequent label (or label set) of the reported rows, and its share of them."""

    label: Label
    accuracy: float


@dataclass(frozen=True)
class ReportOrigin:
    """When and how a report was made.

    Attributes:
        made: date, `YYYY-MM-DD`.
        version: of featcache.
        command: makes the report again; empty where it was not made on a command line.
        files: names of the files that the report is in.
    """

    made: str = ""
    version: str = ""
    command: str = ""
    files: Sequence[str] = ()


@dataclass(frozen=True)
class MetricChange:
    """A metric minus that of the first run on the same rows, with the corrected p-value."""

    difference: float
    interval: Interval
    p: float
    tie: bool


@dataclass(frozen=True)
class RunComparison:
    """A run against the first one; `only_right` counts rows that only the first, only this run has right.

    `clean_accuracy` is the change on the rows that leak for neither; None where no row leaks, or every one.
    """

    run: str
    rows: int
    only_right: Sequence[int]
    accuracy: MetricChange
    macro_f1: MetricChange
    clean_accuracy: MetricChange | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingCurve:
    """Loss and accuracy by epoch."""

    run: str
    best_epoch: int | None
    epoch: Sequence[int]
    train_loss: Sequence[float]
    train_accuracy: Sequence[float]
    validation_loss: Sequence[float]
    validation_accuracy: Sequence[float]


@dataclass(frozen=True)
class ScoreByRows:
    """A learning curve; points are (train rows, score, low, high)."""

    head: str
    metric: str
    split: str
    points: Sequence[Sequence[float]]


@dataclass(frozen=True)
class ShareRight:
    """Accuracy on some rows, with its Wilson interval; None for no rows."""

    rows: int
    accuracy: float | None
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class ConfidenceBin:
    """Rows with a confidence from `from_` to `to`.

    Multi-label: labels of rows, by their probability; `accuracy` is the share that the rows have.
    """

    from_: float
    to: float
    rows: int
    confidence: float
    accuracy: float
    interval: Interval


@dataclass(frozen=True)
class ConfidenceHistogram:
    """Right and wrong rows by confidence; multi-label: labels of rows, given or not."""

    edges: Sequence[float]
    right: Sequence[int]
    wrong: Sequence[int]


@dataclass(frozen=True)
class LengthBin:
    """Rows with a text of `from_` to `to` tokens."""

    from_: int
    to: int
    rows: int
    accuracy: float | None
    interval: Interval


@dataclass(frozen=True)
class TruncationEffect:
    """Accuracy on truncated texts (`cut`) and on the others."""

    cut: ShareRight
    whole: ShareRight


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A row that was predicted wrong; see `featcache.inspection.document.ListedRow`.

    Attributes:
        reason: what may explain it, as sentences; empty if nothing is known.
    """

    row: int | None
    row_hash: str
    label: Label
    predicted: Label
    confidence: float
    tokens: int | None
    cut: bool | None
    label_doubted: bool | None
    text: str | None
    reason: str = ""

    @property
    def where(self) -> str:
        """The row of the source, or the beginning of the row hash."""
        return row_text(self.row, self.row_hash)


@dataclass(frozen=True)
class MatrixExample:
    """A row of one cell of the confusion matrix."""

    row: int | None
    row_hash: str
    confidence: float
    text: str | None

    @property
    def where(self) -> str:
        """The row of the source, or the beginning of the row hash."""
        return row_text(self.row, self.row_hash)


@dataclass(frozen=True)
class MatrixCell:
    """Rows of label number `true` that were predicted as label number `predicted`.

    Attributes:
        examples: wrong ones with the most confident first, right ones with the least confident first.
    """

    true: int
    predicted: int
    rows: int
    examples: Sequence[MatrixExample]


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """Some of `rows` rows in two dimensions; `explained` is the share of the variance, for PCA."""

    method: str
    explained: float | None
    rows: int
    x: Sequence[float]
    y: Sequence[float]
    label: Sequence[Label]
    right: Sequence[bool]


@dataclass(frozen=True, kw_only=True)
class ExtractionCost:
    """What was computed once, against a training loop that runs the backbone in every epoch."""

    epochs: int
    assumed_epochs: bool
    batch: int
    texts_once: int
    tokens_once: int
    tokens_encoded: int | None
    extraction_seconds: float | None
    heads: int
    head_seconds: float
    texts_tutorial: int
    tokens_tutorial: int
    tokens_a_second: float | None
    tutorial_seconds: float | None
    factor: float | None


@dataclass(frozen=True, kw_only=True)
class RiskCurve:
    """The share of wrong answers by the share of rows that are answered, the surest first.

    Attributes:
        points: (coverage, risk) pairs.
        area: the mean risk over all coverages (AURC).
        scores: what a head that may give no answer does on these rows; None for a head that always answers.
        promise: of that head, as a sentence.
    """

    points: Sequence[tuple[float, float]]
    area: float
    threshold: float | None = None
    scores: SelectiveScores | None = None
    promise: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Everything that a report shows of the first of its runs, beside the others.

    Attributes:
        without_leaks: accuracy without rows that an inspection found in an earlier split: equal texts, and
            nearly equal ones.
        notes: what could not be shown, and why.
        verdict: the report in a few sentences.
        mistakes: the most confident ones, and the most confident ones whose label is not in doubt.
        wrong, wrong_and_doubted: mistakes in all, and those whose label is in doubt (None if not looked for).
        matrix: cells of the confusion matrix with some of their texts, of the labels that are confused most.
        few_labels: recipes for few labels, compared on the cache files of the run.
        matrix_labels: numbers of these labels, the most confused first.
    """

    format: int = REPORT_FORMAT
    split: str
    about: ReportSubject
    headline: Mapping[str, HeadlineMetric]
    runs: Sequence[ReportedRun]
    base: str | None
    comparisons: Sequence[RunComparison]
    curves: Sequence[TrainingCurve]
    learning_curves: Sequence[ScoreByRows]
    confusion: Sequence[Sequence[int]] | None
    classes: Sequence[ClassScore]
    reliability: Sequence[ConfidenceBin]
    confidence: ConfidenceHistogram
    mistakes: Sequence[Mistake]
    lengths: Sequence[LengthBin] | None
    truncated: TruncationEffect | None
    map: FeatureMap | None
    cost: ExtractionCost | None
    data: Findings | None
    without_leaks: LeakageScore | None
    notes: Sequence[str]
    few_labels: SavedComparison | None = None
    risk_curve: RiskCurve | None = None
    verdict: Sequence[str] = ()
    majority: MajorityBaseline | None = None
    checks: Sequence[DataCheck] = ()
    matrix: Sequence[MatrixCell] = ()
    matrix_labels: Sequence[int] = ()
    wrong: int | None = None
    wrong_and_doubted: int | None = None
    origin: ReportOrigin = ReportOrigin()

    @property
    def certain_mistakes(self) -> Sequence[Mistake]:
        """Those whose label is not in doubt."""
        return [row for row in self.mistakes if not row.label_doubted]

    @property
    def near_leaks(self) -> LeakageScore | None:
        """`without_leaks` where the inspection found more, or where the run does not know what leaks."""
        found = self.without_leaks
        known = self.about.leaks and self.headline["accuracy"].clean == (found.without if found else None)
        return None if known or not found or not found.removed else found
