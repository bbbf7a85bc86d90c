"""Blends of heads of the same rows: which of them count on validation, and the head that they become."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from featcache.cache.catalog import Features
from featcache.cache.view_names import LEXICAL, cached_views, join_views, split_view
from featcache.errors import HeadError, UsageError
from featcache.fingerprint import differences
from featcache.heads.blend import check_foldable, choose_blend, part_read_by, weighted_sum, widened
from featcache.heads.fit import Fit
from featcache.heads.head import Head
from featcache.heads.lexical.ngrams import Ngrams
from featcache.heads.lexical.rows import WordRows
from featcache.heads.numbers.registry import refuse_numbers
from featcache.heads.scorers import Scorer
from featcache.runs.inputs.splits import CachedSplits, load_data
from featcache.runs.run import Run
from featcache.runs.train import read_costs_for, save_fit
from featcache.settings import Settings
from featcache.system.sharded_array import JoinedColumns

MOST = 20  # heads that are taken, repeated ones included
KIND = "blend"


class Part(NamedTuple):
    """A head that may be part of a blend.

    Attributes:
        view: what it reads, names as in the cache file, joined.
    """

    scorer: Scorer
    view: str


@dataclass(frozen=True)
class Blend:
    """Several heads as one.

    Attributes:
        view: what it reads, a key of `data.features`.
        shares: of each part in the mean of the logits, float64 `[K]`; 0 of parts that were not taken.
    """

    scorer: Scorer
    view: str
    shares: np.ndarray
    data: CachedSplits


def blend_parts(
    settings: Settings,
    data: CachedSplits,
    parts: Sequence[Part],
    most: int = MOST,
    ngrams: Ngrams | None = None,
) -> Blend:
    """The mean of some heads, chosen on the validation rows that choose; see `choose_blend`.

    Args:
        parts: the best first.
        ngrams: that those which read words read.
    """

    def wide(scorer: Scorer, view: str, joined: str) -> Scorer:
        places = _places(data.features[joined]["train"])
        own = [places[name] for name in cached_views(view)]
        width = sum(map(len, places.values()))
        return widened(scorer, np.concatenate(own), width) if own else scorer

    joined = _joined(parts, data)
    data = data.with_view(settings, joined).reading(joined, ngrams)
    rows = data.rows(joined, "validation")
    scorers = [wide(*part, joined) for part in parts]
    logits = [scorer.logits(part_read_by(scorer, rows.x)) for scorer in scorers]
    shares, factors = choose_blend(logits, rows.y, most)
    taken: list[int] = np.flatnonzero(shares).tolist()
    chosen = [parts[number] for number in taken]
    joined = _joined(chosen, data)
    if joined not in data.features:
        words = ngrams if LEXICAL in split_view(joined) else None
        data = data.with_view(settings, joined).reading(joined, words)
    scorer = weighted_sum([wide(*part, joined) for part in chosen], factors[taken])
    return Blend(scorer, joined, shares, data)


def blend_runs(settings: Settings, runs: Sequence[Run], most: int = MOST) -> Run:
    """The heads of several runs as one, saved as a run.

    Heads of layers and of words, of any views of one backbone, become one head of the joined views. Which of
    them count, and how much, is chosen on the validation rows that leak nothing.

    Args:
        settings: of the data and the features that the runs were trained on.
        runs: two at least.

    Raises:
        CacheMiss, SourceError: their features or texts are not there.
        HeadError: a head that cannot be part of a blend, heads of different rows, labels or backbones, or no
            blend that is better on validation than the best of them.
        UsageError: fewer than two runs.
    """
    if len(runs) < 2:
        raise UsageError("a blend is of two runs at least", hint="featcache compare lists the runs there are")
    for run in runs:
        refuse_numbers(run.record.task, "blend")
    heads = {run.name: run.head() for run in runs}
    for run in runs:
        _check_alone(run, heads[run.name], settings)
    views = [name for head in heads.values() for name in split_view(head.view)]
    dense = [name for name in views if name != LEXICAL]
    wanted = join_views([*dense, *([LEXICAL] if LEXICAL in views else [])])
    data = load_data(settings, [wanted])
    for run in runs:
        _check_together(run, heads[run.name], data.features[wanted])
    costs = read_costs_for(settings, data.features[wanted]["train"])
    began = time.perf_counter()
    ranked = sorted(runs, key=lambda run: run.metric("validation", "log_loss", clean=True))
    parts = [Part(heads[run.name].scorer, heads[run.name].view) for run in ranked]
    made = blend_parts(settings, data, parts, most, _ngrams_of(runs, heads, data.features[wanted]["train"]))
    shares = {run.name: float(share) for run, share in zip(ranked, made.shares, strict=True) if share}
    if len(shares) == 1:
        raise HeadError(
            f"no blend of these runs has a lower log loss on validation than {next(iter(shares))} alone",
            hint="use that run, or blend runs whose heads read different views or words",
        )
    about = {"blended_heads": len(shares), "shares": shares}
    fit = Fit(best=made.scorer, last=made.scorer, about=about)
    return save_fit(settings, KIND, made.data, made.view, fit, time.perf_counter() - began, costs=costs)


def blendable(settings: Settings, runs: Sequence[Run]) -> list[Run]:
    """Those of some runs of the same rows that one blend can have, the best by validation first.

    Left out are heads that are not made of layers, those of a fine-tuned backbone, and those that read
    n-grams of another kind than the best head of words.
    """
    found: list[Run] = []
    ngrams: Ngrams | None = None
    for run in sorted(runs, key=lambda run: run.metric("validation", "log_loss", clean=True)):
        head = run.head()
        try:
            _check_alone(run, head, settings)
        except HeadError:
            continue
        if head.ngrams is None or ngrams is None or head.ngrams.equals(ngrams):
            ngrams = ngrams or head.ngrams
            found.append(run)
    return found


def _check_alone(run: Run, head: Head, settings: Settings) -> None:
    check_foldable(head.scorer, run.name)
    if head.encoder.tuned:
        raise HeadError(
            f"{run.name} cannot be part of a blend: its backbone was fine-tuned, a blend has one",
            hint="blend runs of the frozen backbone",
        )
    if settings.abstention.asked and head.abstention is None:
        raise HeadError(
            f"{settings.abstention.flag}: {run.name} was chosen on all of validation, and a guarantee "
            "needs rows that chose nothing",
            hint=f"train the runs of the blend with {settings.abstention.flag}, too",
        )


def _check_together(run: Run, head: Head, features: dict[str, Features]) -> None:
    """Refuse a head of other labels, features or rows than those that are there."""
    train, validation = features["train"], features["validation"]
    if head.label_names != train.label_names:
        raise HeadError(
            f"{run.name} has the labels {', '.join(head.label_names[:5])}, the data has "
            f"{', '.join(train.label_names[:5])}",
            hint="blend runs of one data set, with the flags that they were trained with",
        )
    other = differences(head.encoder.to_json(), train.encoder.to_json()) if head.views else []
    if other:
        raise HeadError(
            f"{run.name} was trained on other features: " + "; ".join(map(str, other)),
            hint="blend runs of one backbone, with the flags that they were trained with",
        )
    scored = run.predictions("validation", probabilities=False).row_hash
    if run.record.rows.get("train") != len(train.y) or not np.array_equal(scored, validation.row_hash):
        raise HeadError(
            f"{run.name} was trained or chosen on other rows than those that are there now",
            hint="train it again, and blend runs of the same rows",
        )


def _ngrams_of(runs: Sequence[Run], heads: Mapping[str, Head], train: Features) -> Ngrams | None:
    """The n-grams that the heads of words read; None where no head does."""
    found: tuple[Run, Ngrams] | None = None
    for run in runs:
        ngrams = heads[run.name].ngrams
        if ngrams is None:
            continue
        if train.x.read_by(ngrams) is None:  # type: ignore[attr-defined]
            raise HeadError(
                f"{run.name} reads other n-grams than the train texts have now",
                hint="train it again, and blend runs of the same rows",
            )
        if found and not ngrams.equals(found[1]):
            raise HeadError(
                f"{run.name} and {found[0].name} read n-grams of other kinds, and a head reads one",
                hint="leave one of the two out",
            )
        found = run, ngrams
    return found and found[1]


def _joined(parts: Sequence[Part], data: CachedSplits) -> str:
    """The views of all parts, in the order of the cache file, the words last."""
    names = {name for part in parts for name in split_view(part.view)}
    stored = data.files["train"].views if data.files else ()
    return ",".join(name for name in (*stored, LEXICAL) if name in names)


def _places(features: Features) -> dict[str, np.ndarray]:
    """The columns of each view."""
    x = features.x.dense if isinstance(features.x, WordRows) else features.x
    if x is None:
        return {}
    matrices = x.parts if isinstance(x, JoinedColumns) else (x,)
    ends = np.cumsum([0, *(part.shape[1] for part in matrices)])
    return {
        name: np.arange(*ends[number : number + 2]) for number, name in enumerate(cached_views(features.view))
    }
