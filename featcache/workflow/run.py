"""Everything from one source of texts: features, heads and their baselines, checks of the data, a verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.backbone.model_files.depth_views import DEPTH
from featcache.cache.cache import Cache
from featcache.cache.view_names import LEXICAL
from featcache.data.locate import locate
from featcache.data.split import load_splits
from featcache.data.test_split import with_test_split
from featcache.errors import NoInnerLayers
from featcache.extraction.api import extract_splits, find_features
from featcache.extraction.extracted import Extracted
from featcache.fingerprint import REGRESSION
from featcache.inspection.data_checks import DataCheck, data_checks, rows_to_check
from featcache.reporting.verdict import RunVerdict, verdict
from featcache.runs.compare import Comparisons, compare_runs
from featcache.runs.learning_curve import saved_curves
from featcache.runs.numbers.compare import NumberComparisons, compare_number_runs
from featcache.runs.run import Run, ranked
from featcache.runs.train import train_head
from featcache.runs.words import CountedWords
from featcache.settings import Settings, load_settings
from featcache.system.progress import OnProgress, Progress
from featcache.system.text import html_table
from featcache.workflow.embedded import with_embedded_model
from featcache.workflow.progress_bars import ProgressBars
from featcache.workflow.tables import is_table, write_tables

if TYPE_CHECKING:
    from featcache.prediction.predictor import Predictor

SPLITS = ("train", "validation", "test")
Extract = Callable[[Settings], list[Extracted]]


@dataclass(frozen=True, kw_only=True)
class AllRuns:
    """What `run` has done; in a notebook it shows itself.

    Attributes:
        settings: those of everything in it, for `train_head`, `extract_splits` and so on.
        extracted: one a split.
        runs: in the order in which they were trained.
        compared: the other runs with the best one on test; None where nothing was tested.
        checks: of the data, the good ones too.
        verdict: None where labels are numbers, or nothing was tested.
    """

    settings: Settings
    extracted: list[Extracted]
    runs: list[Run]
    compared: Comparisons | NumberComparisons | None
    checks: tuple[DataCheck, ...]
    verdict: RunVerdict | None

    @property
    def best(self) -> Run:
        """The best run on validation, see `ranked`."""
        return ranked(self.runs)[0]

    @cached_property
    def predictor(self) -> Predictor:
        """Backbone and head of the best run; loaded once."""
        from featcache.prediction.predictor import Predictor

        backbone = self.settings.backbone
        return Predictor.from_run(
            self.best, device=backbone.device, trust_remote_code=backbone.trust_remote_code
        )

    def predict(self, texts: Any) -> Any:
        """Labels, or numbers, of new texts by the best run.

        Args:
            texts: a list of N texts; or a table in memory, whose text column is the one that was trained on.

        Returns:
            A list of N `Prediction` or `NumberPrediction`. Of a DataFrame or a `datasets.Dataset` the same,
            of other tables an Arrow table, with more columns: `prediction`, `probability` (of numbers
            `prediction_low` and `prediction_high`), `truncated`, and of a head that may give no answer
            `abstained` and `reason`.

        Raises:
            SourceError: an empty text, or one that is none; names its place. A table without such a column.
        """
        from featcache.workflow.labelled import labelled

        if is_table(texts):
            return labelled(self.predictor, texts, self.settings.data)
        return self.predictor.predict_any([texts] if isinstance(texts, str) else list(texts))

    def __repr__(self) -> str:
        return f"AllRuns({len(self.runs)} runs, best: {self.best!r})"

    def _repr_html_(self) -> str:
        """Verdict, runs and checks, for a notebook."""
        said = self.verdict.sentences if self.verdict else (f"use {self.best.name}: best on validation",)
        marks = [(check.name, check.state, check.sentence) for check in self.checks]
        parts = [html_table(("verdict",), [(sentence,) for sentence in said])]
        parts.append(self.compared._repr_html_() if self.compared else self.best._repr_html_())
        return "".join([*parts, html_table(("data check", "", "found"), marks)])


def run(
    data: Any,
    *,
    text: str | None = None,
    label: str | None = None,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> AllRuns:
    """As `featcache run`: extract all splits, train heads and their baselines, check the data, compare.

    Where there is no test split, one is held out. Tables in memory are kept as parquet files in the cache
    folder, so that the same rows are found again. Without a hub, the embedded encoder takes the place of the
    default model.

    Args:
        data: a file, folder, URL or hub id; or a pandas DataFrame, a `datasets.Dataset`, an Arrow table, or a
            mapping of these by split.
        text: the column with the text; by default found by its usual names.
        label: the column with the label, likewise.
        on_progress: called with progress; by default bars are drawn in a notebook and on a terminal.
        **settings: any other setting by its name, e.g. `model="bert-base-chinese"`, `max_length=256`; the
            rest comes from `featcache.toml`, then from the defaults.

    Raises:
        FeatcacheError: each says what is wrong and what to do.

    Example:
        >>> found = featcache.run(reviews, text="评论", label="类别")
        >>> found.best.metric("test", "accuracy")
    """
    report = ProgressBars() if on_progress is None else on_progress
    columns = (("text_column", text), ("label_column", label))
    chosen = load_settings(settings | {name: value for name, value in columns if value is not None})
    source = os.fspath(data) if isinstance(data, str | os.PathLike) else None
    if source is None:
        source = str(write_tables(data, Cache.open(chosen.paths.cache_dir).folder / "data"))
    chosen = replace(chosen, data=replace(chosen.data, dataset=source, data_files=None))
    own, decided = with_test_split(chosen.data)
    if decided is not None:
        report(Progress("note", text=decided))
    named = settings.get("model") is not None
    chosen = replace(chosen, data=own)
    read_files(chosen)

    def extract(wanted: Settings) -> list[Extracted]:
        return extract_splits(wanted, SPLITS, report)

    _, (chosen, extracted) = with_embedded_model(
        chosen, lambda wanted: extract_with_depth(wanted, extract, report), named=named, on_progress=report
    )
    heads, words, runs = heads_to_train(chosen), CountedWords(report), []
    for number, (kind, view) in enumerate(heads):
        report(Progress("train", done=number, total=len(heads)))
        runs.append(train_head(chosen, kind, view, words=words, report=report))
    report(Progress("train", done=len(heads), total=len(heads)))
    return conclude(chosen, extracted, runs)


def read_files(settings: Settings) -> None:
    """Read and check the rows of files, before a model is looked for; those of a hub are read later.

    Raises:
        SourceError: they cannot be read or used.
    """
    if not locate(settings.data).hub_id:
        load_splits(settings.data, SPLITS, seed=settings.seed)


def extract_with_depth(
    settings: Settings, extract: Extract, report: OnProgress
) -> tuple[Settings, list[Extracted]]:
    """Extract the views that are asked for and those of depth; without these where the model has none.

    Args:
        extract: makes the features of all splits for such settings.

    Returns:
        The settings that were taken, and a result for each split.
    """
    views = tuple(dict.fromkeys((*settings.features.views, DEPTH)))
    deep = replace(settings, features=replace(settings.features, views=views))
    try:
        return deep, extract(deep)
    except NoInnerLayers as error:
        if DEPTH in settings.features.views:
            raise
        report(Progress("note", text=f"no head over depth: {error.what}"))
        return settings, extract(settings)


def heads_to_train(settings: Settings) -> list[tuple[str, str]]:
    """Kind and view of each head, the baselines first.

    The words alone, a linear head and scikit-learn's logistic regression on each view, and logistic
    regression over depth, without and with the words. Where labels are numbers, a linear head and ridge
    regression on each view, and ridge regression over depth.
    """
    views = [view for view in settings.features.views if view != DEPTH] or ["last/cls"]
    numbers, deep = settings.data.task == REGRESSION, DEPTH in settings.features.views
    kinds = ("linear", "ridge") if numbers else ("linear", "logistic")
    wanted = [(kind, view) for view in views for kind in kinds]
    if numbers:
        return wanted + ([("ridge", DEPTH)] if deep else [])
    wanted.insert(0, (LEXICAL, LEXICAL))
    return wanted + ([("exact", DEPTH), ("exact", f"{DEPTH},{LEXICAL}")] if deep else [])


def conclude(settings: Settings, extracted: Sequence[Extracted], runs: Sequence[Run]) -> AllRuns:
    """Runs of one cache compared with the best of them, and what the rows themselves show."""
    best = ranked(runs)[0]
    tested, numbers = "test" in best.record.metrics, settings.data.task == REGRESSION
    labels = compare_runs(runs, best, skip=True) if tested and not numbers else None
    curves = saved_curves(Path(settings.paths.reports_dir), [best, *runs])
    return AllRuns(
        settings=settings,
        extracted=list(extracted),
        runs=list(runs),
        compared=compare_number_runs(runs, best, skip=True) if tested and numbers else labels,
        checks=_checks(settings, best),
        verdict=verdict(best, labels, curves=curves) if labels else None,
    )


def _checks(settings: Settings, best: Run) -> tuple[DataCheck, ...]:
    files = {split: find_features(settings, split) for split in SPLITS}
    rows, names, rule = rows_to_check(settings, files)
    return data_checks(rows, names, rule=rule, record=best.record)
