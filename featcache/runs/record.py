"""`run.json`: how a head was trained, on what, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache.view_names import cached_views, join_views, short_view
from featcache.errors import HeadError
from featcache.evaluation.leaks import EXACT
from featcache.evaluation.metrics import ClassScore, Scores
from featcache.fingerprint import REGRESSION
from featcache.heads.fit import Epoch
from featcache.heads.numbers.scale import PredictionInterval
from featcache.plain_file import read_plain
from featcache.settings import AbstentionSettings, BackboneSettings, DataSettings, FeatureSettings
from featcache.system.documents import parse_document, read_json
from featcache.translation.language import gettext as _
from featcache.translation.language import paragraph

RUN_FORMAT = 1
RUN_FILE = "run.json"
OPTIONAL = (
    "frozen", "finetune", "sweep", "asked_view", "view_shares", "clean", "abstention", "interval",
    "interval_covered",
)  # fmt: skip
MOST_ROWS = 1 << 53  # so that a count is exact as a float


@dataclass(frozen=True)
class BackboneRecord(BackboneSettings):
    """The settings of the backbone, the commit of the hub that they led to, and further backbones by name."""

    model: str = ""
    commit: str | None = None
    named: dict[str, BackboneRecord] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheReference:
    """A cache file that the head was trained or scored on; `named`: of several backbones, that of each."""

    path: str
    fingerprint: str
    named: dict[str, CacheReference] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitScores:
    """Per-class table and confusion matrix of one split; `confusion` is None for multi-label."""

    per_class: tuple[ClassScore, ...] = ()
    confusion: list[list[int]] | None = None

    @classmethod
    def of(cls, scores: Scores) -> SplitScores:
        return cls(scores.per_class, None if scores.confusion is None else scores.confusion.tolist())


@dataclass(frozen=True)
class CleanScores:
    """Scores on the clean rows: those whose text no earlier split has.

    Attributes:
        rule: how texts were compared, see `featcache.evaluation.leaks`.
        leaked: how many rows leak, by split.
        metrics, intervals: as in `RunRecord`; only of splits where some rows leak, and not all.
    """

    rule: str
    leaked: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)

    def about(self, rows: Mapping[str, int]) -> str:
        """Sentences: what leaks, what that means, and what to do; empty where no row leaks.

        Args:
            rows: by split.
        """
        counts = {split: count for split, count in self.leaked.items() if count}
        if not counts:
            return ""
        of = "{count:,} of {rows:,} {split} rows"
        shown = [_(of, count=n, rows=rows.get(split, n), split=_(split)) for split, n in counts.items()]
        which = shown[0]
        for more in shown[1:]:
            which = _("{first} and {last}", first=which, last=more)
        said = [_("{rows} leak: an earlier split has their text.", rows=which)]
        if self.metrics:
            said.append(_("Clean scores leave them out: trust these for new texts."))
        said.append(_("To see the rows: featcache inspect."))
        if "validation" in self.metrics:
            said.append(_("The head was chosen on clean rows."))
        elif "validation" in counts:
            said.append(_("Every validation row leaks, so the head was chosen on all of them."))
        if self.rule == EXACT:
            said.append(_("Texts were compared exactly, as their source is not on this disk."))
        return paragraph(said)


@dataclass(frozen=True)
class CalibrationRecord:
    """The temperature, and the validation scores without and with it (ECE: `Scores.ece`; nats a row)."""

    temperature: float
    ece_before: float
    ece_after: float
    log_loss_before: float
    log_loss_after: float


@dataclass(frozen=True, kw_only=True)
class SelectiveScores:
    """What a head that may give no answer does on the rows of one split.

    Attributes:
        answered, out_of_scope: of `rows`; out of scope are rows that are unlike the train rows.
        wrong: of the answered rows; `wrong_in_all` if every row were answered.
        area, curve: see `RiskCoverage`.
    """

    rows: int
    answered: int
    wrong: int
    wrong_in_all: int
    out_of_scope: int
    area: float
    curve: tuple[tuple[float, float], ...]

    @property
    def coverage(self) -> float:
        return self.answered / self.rows if self.rows else 0.0

    @property
    def risk(self) -> float | None:
        """The share of wrong answers; None without answers."""
        return self.wrong / self.answered if self.answered else None


@dataclass(frozen=True, kw_only=True)
class AbstentionRecord(AbstentionSettings):
    """When the head gives no answer, and what that does; see `Abstention`.

    Attributes:
        highest_risk: upper bound of the share of wrong answers, from the guarantee rows of validation.
        choice_rows: validation rows that chose, beside those that guarantee.
        splits: all splits but train; of validation the rows that guarantee.
    """

    threshold: float
    highest_risk: float
    distance: str
    areas: dict[str, float]
    choice_rows: int
    splits: dict[str, SelectiveScores]

    @property
    def guarantee(self) -> str:
        """What is promised, and on which assumption."""
        rows, sure = self.splits["validation"].rows, f"{100 * self.confidence:g} %"
        bound = f"at most {100 * (self.max_error or self.highest_risk):.4g} % of the answers are wrong"
        if self.coverage is not None:
            bound = f"{self.promise}, and {bound}"
        return (
            f"with {sure} confidence over the draw of {rows:,} validation rows that chose nothing else: "
            f"{bound}, if new texts come from where the validation rows came from"
        )

    def __post_init__(self) -> None:
        if "validation" not in self.splits:
            raise ValueError("abstention: validation is not among its splits")


@dataclass(frozen=True)
class FrozenRows:
    """How to find the features that the frozen backbone makes of a fine-tuned run's rows.

    Attributes:
        encoder: fingerprint of the frozen backbone's encoder document.
        rows: `row_chain` of the row hashes, by split.
    """

    cache_dir: str
    encoder: str
    rows: dict[str, str]


@dataclass(frozen=True)
class TuningRecord:
    """What only fine-tuned runs have.

    Attributes:
        cut: the block below which nothing was trained; None where training started from the tokens.
        curve: up to 200 pairs of step and training loss.
        stopped: why training ended early, or empty.
        device, dtype, packing, versions: circumstances, which do not change the result.
    """

    cut: int | None
    curve: list[tuple[int, float]]
    steps: int
    tokens: int
    batch_tokens: int
    stopped: str = ""
    device: str = ""
    dtype: str = ""
    packing: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One head of a sweep by its validation scores at its best epoch; trials are never scored on test."""

    view: str
    lr: float
    weight_decay: float
    label_smoothing: float
    class_weight: str
    seed: int | None
    best_epoch: int
    validation_accuracy: float
    validation_loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Higher is better."""
        return (self.validation_accuracy, -self.validation_loss)


@dataclass(frozen=True)
class SweepRecord:
    """The sweep that a run is the best of: how many heads, and the first 100 trials, best first."""

    heads: int
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a head was trained, and on what; fields with a default are missing in some earlier versions.

    Attributes:
        head: kind of the head, or the part that was fine-tuned, e.g. `top-blocks:2`.
        asked_view: the name that joined views were asked for by, e.g. `depth`; None of a single view.
        view_shares: of each joined view in the variance of the logits, see `heads.view_shares`; None of a
            single view, and of heads that are not linear.
        seconds: of the training alone.
        settings: of the training, those that its kind uses.
        solver: what the solver reports besides: a chosen penalty, a gradient's norm.
        best_epoch: None for solvers without epochs.
        parameters: how many were trained.
        rows: by split.
        pairs: whether the head was trained on pairs of texts; None where that is not known.
        truncated: texts longer than the longest length, by split.
        unknown_tokens: share of the tokens that the vocabulary does not have, by split; None where not known.
        extraction_seconds, bytes_cached: of the features or states, all splits.
        caches: by split; of fine-tuned runs the states files.
    """

    head: str
    seconds: float
    history: tuple[Epoch, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    solver: dict[str, Any] = field(default_factory=dict)
    best_epoch: int | None = None
    parameters: int | None = None
    rows: dict[str, int] = field(default_factory=dict)
    pairs: bool | None = None
    truncated: dict[str, int] = field(default_factory=dict)
    unknown_tokens: dict[str, float | None] = field(default_factory=dict)
    extraction_seconds: float = 0.0
    bytes_cached: int | None = None
    caches: dict[str, CacheReference] = field(default_factory=dict)
    frozen: FrozenRows | None = None
    finetune: TuningRecord | None = None
    sweep: SweepRecord | None = None
    asked_view: str | None = None
    view_shares: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord(TrainingRecord):
    """The content of run.json.

    Attributes:
        run: the run's name, that of its folder.
        fingerprint: of the features the head fits, see `Head.fingerprint`.
        created: local time with its offset, `%Y-%m-%dT%H:%M:%S%z`.
        epochs: None for solvers without epochs.
        task: `single-label`, `multi-label` or `regression`.
        metrics: by split, then by name: `METRICS` of `featcache.evaluation.metrics`, or `NUMBER_METRICS`.
        intervals: 95 % bootstrap intervals, by split and metric.
        clean: the same without leaked rows; None in runs of earlier versions.
        interval: of a head that predicts numbers; None where validation had too few rows.
        interval_covered: share of rows whose label is within it, by split, without rows that leak, and
            without train and validation.
    """

    format: int = RUN_FORMAT
    run: str = ""
    view: str
    task: str = "single-label"
    fingerprint: str
    created: str
    seed: int = 0
    epochs: int | None = None
    label_names: tuple[str, ...] = ()
    metrics: dict[str, dict[str, float]]
    scores: dict[str, SplitScores] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    clean: CleanScores | None = None
    calibration: CalibrationRecord | None = None
    abstention: AbstentionRecord | None = None
    interval: PredictionInterval | None = None
    interval_covered: dict[str, float] = field(default_factory=dict)
    backbone: BackboneRecord = BackboneRecord()
    features: FeatureSettings | None = None
    data: DataSettings | None = None

    def __post_init__(self) -> None:
        labels = len(self.label_names)
        for split, scores in self.scores.items():
            counts = [len(row) for row in scores.confusion or ()]
            square = scores.confusion is None or counts == [labels] * labels
            if not square or not all(0 <= n < MOST_ROWS for row in scores.confusion or () for n in row):
                raise ValueError(f"the confusion matrix of {split} is not one of {labels} labels")
        paths = [self.backbone.model, *(cache.path for cache in self.caches.values())]
        paths += [self.frozen.cache_dir] if self.frozen else []
        paths += [self.data.dataset, *(self.data.data_files or {}).values()] if self.data else []
        if odd := [path for path in paths if "\0" in path]:
            raise ValueError(f"{odd[0]!r} is no path")

    @property
    def numbers(self) -> bool:
        """Whether the head predicts numbers."""
        return self.task == REGRESSION

    @property
    def short_view(self) -> str:
        """The view for a table: joined ones by the name that they were asked for, or by their number."""
        return short_view(self.asked_view or self.view)

    @property
    def cached_view(self) -> str:
        """The view without the words of the texts, which are in no cache; empty for words alone."""
        return join_views(cached_views(self.view))

    @property
    def about_leaks(self) -> str:
        """`CleanScores.about`; empty where no row leaks, or that is not known."""
        return self.clean.about(self.rows) if self.clean else ""

    def to_json(self) -> dict[str, Any]:
        """What `json.loads` makes of run.json."""
        document: dict[str, Any] = json.loads(self.to_bytes())
        return document

    def to_bytes(self) -> bytes:
        """The bytes of run.json; those of `OPTIONAL` are left out where they are None."""
        document = {name: value for name, value in asdict(self).items() if name not in OPTIONAL or value}
        return json.dumps(document, indent=1, ensure_ascii=False, default=_builtin).encode("utf-8")


_DAMAGED = "choose another run, or remove its folder and train it again"


def read_run_record(folder: Path) -> RunRecord:
    """run.json of the run in `folder`, of this version or an earlier one.

    Raises:
        HeadError: missing, damaged, or of another format.
    """
    path = folder / RUN_FILE
    try:
        content = read_json(read_plain(path))
    except (OSError, ValueError) as error:
        raise HeadError(f"cannot read {path}: {error}", hint=_DAMAGED) from error
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != RUN_FORMAT:
        what = "not a run record" if found is None else f"format {found}, and this version reads {RUN_FORMAT}"
        raise HeadError(f"cannot read {path}: {what}", hint=_DAMAGED)
    return parse_document(
        RunRecord, content, f"cannot read {path}", lambda what: HeadError(what, hint=_DAMAGED)
    )


def _builtin(value: Any) -> Any:
    """What solvers report and callers set, NumPy values and paths, as builtin types."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} in run.json")
