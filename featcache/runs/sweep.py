"""A grid of linear heads trained as one stack; the best by validation is kept and scored on test."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.cache.view_names import LEXICAL, require_cached, split_view
from featcache.errors import UsageError
from featcache.heads.distributed import ProcessGroup
from featcache.heads.features import LabelledFeatures
from featcache.heads.fit import Epoch, Fit, Member
from featcache.heads.lexical.fit import fit_beside
from featcache.heads.numbers.registry import refuse_numbers
from featcache.heads.scorers import Scorer
from featcache.runs.blend import Part, blend_parts
from featcache.runs.finish import choose_temperature
from featcache.runs.inputs.splits import CachedSplits, load_data
from featcache.runs.record import SweepRecord, Trial
from featcache.runs.run import Run
from featcache.runs.train import read_costs_for, save_fit
from featcache.runs.weighted_rows import weighted_rows
from featcache.settings import Settings

RANGE_POINTS = 7  # values of a range by default
MOST_HEADS = 4096
BLENDED = 64  # heads among which those of a blend are chosen
RECORDED = 100  # trials in run.json
SUBSETS = ("each", "greedy", "all")

Ranked = list[tuple[Trial, Fit]]
OnSweep = Callable[[int, Sequence[Member], list[Epoch]], None]


@dataclass(frozen=True)
class Grid:
    """What a sweep tries: every combination of these.

    Attributes:
        views: as they are asked for. `lexical` among them adds the words of the texts to the best head,
            where validation is better for it.
        seeds: 1: the weights of every head start at zero, as in `train_head`. More: so many random starts
            of each setting, counted from the settings' own seed, to show how much they matter.
        blend: how many of the heads are averaged at most, also of different views; 1: the best one is kept
            alone.
        subsets: which views are joined. `each`: none, heads read one of `views`. `greedy`: every view alone,
            all of them, and from the best one on one view more while validation gets better. `all`:
            every subset.
    """

    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    label_smoothing: tuple[float, ...]
    class_weight: tuple[str, ...]
    views: tuple[str, ...]
    seeds: int
    blend: int = 1
    subsets: str = "each"

    @property
    def dense_views(self) -> tuple[str, ...]:
        return tuple(view for view in self.views if view != LEXICAL)

    @property
    def settings(self) -> int:
        """How many heads of one view there are."""
        parts = (self.lr, self.weight_decay, self.label_smoothing, self.class_weight)
        return math.prod(map(len, parts)) * self.seeds

    def check(self, views: int) -> None:
        """Refuse an empty grid, and one of too many heads at once.

        Args:
            views: how many there are, after names such as `depth`.

        Raises:
            UsageError
        """
        known = {"each": views, "greedy": views + 1, "all": 2**views - 1}
        if self.subsets not in known:
            raise UsageError(f"--subsets {self.subsets}: it is none of {', '.join(SUBSETS)}")
        size = known[self.subsets] * self.settings
        if not 1 <= size <= MOST_HEADS:
            ask = "; or --subsets greedy" if self.subsets == "all" else ""
            raise UsageError(f"a sweep of {size:,} heads", hint=f"ask for 1 to {MOST_HEADS:,}{ask}")


@dataclass(frozen=True)
class Sweep:
    """What `sweep` returns.

    Attributes:
        trials: best first.
        best: the saved run of the first trial; the only one that was scored on test.
        seconds: the training of all heads.
        words: whether the words of the texts were tried beside the best head.
    """

    trials: tuple[Trial, ...]
    best: Run
    seconds: float
    words: bool = False

    def best_by(self, field: str) -> dict[Any, Trial]:
        """The best trial of each value of a field, best first, e.g. of each `view`."""
        found: dict[Any, Trial] = {}
        for trial in self.trials:
            found.setdefault(getattr(trial, field), trial)
        return found


def sweep(
    settings: Settings,
    grid: Grid,
    *,
    progress: OnSweep | None = None,
) -> Sweep:
    """Train all heads of `grid` on the same batches, keep the best by validation as a run.

    Args:
        progress: called after each epoch with its number, the heads, and a line for each head.

    Raises:
        CacheMiss: a view that is not cached.
        HeadError: data no head can be trained on.
        UsageError: an empty grid, or one of more than 4,096 heads.
    """
    dense = grid.dense_views
    for view in dense or grid.views:
        require_cached(view, "a sweep")
    grid.check(len(dense))
    refuse_numbers(settings.data.task, "sweep")
    data = load_data(settings, dense)
    costs = read_costs_for(settings, data.features[dense[0]]["train"])
    names = {view: data.features[view]["train"].view for view in dense}
    began = time.perf_counter()
    ranked = _Search(settings, grid, data, names, progress).run()
    trials = tuple(trial for trial, _ in ranked)
    best, fit = ranked[0]
    data = data.with_view(settings, best.view)
    view, made = best.view, fit
    if grid.blend > 1:
        view, made, data = _blended(settings, ranked[:BLENDED], data, grid.blend)
    own = _settings_of(settings, best)
    if LEXICAL in grid.views:
        view, made, data = _with_words(own, view, made, data)
    seconds = time.perf_counter() - began
    record = SweepRecord(len(trials), trials[:RECORDED])
    saved = save_fit(own, "linear", data, view, made, seconds, record, costs)
    return Sweep(trials, saved, seconds, words=LEXICAL in grid.views)


class _Search:
    """Trains the heads of a grid, those of one round of subsets at once.

    Args:
        data: with the views of the grid.
        names: the cached views, joined, that each of the grid's views stands for.
    """

    def __init__(
        self,
        settings: Settings,
        grid: Grid,
        data: CachedSplits,
        names: dict[str, str],
        progress: OnSweep | None,
    ) -> None:
        self.settings, self.grid, self.names, self.progress = settings, grid, names, progress
        self.head = dataclasses.replace(settings.head, class_weight="none")  # the grid has its own
        plain = dataclasses.replace(settings, head=self.head)
        stored = data.files["train"].views
        self.cached = sorted({name for view in names.values() for name in split_view(view)}, key=stored.index)
        for name in self.cached:
            data = data.with_view(settings, name)
        self.train = {
            name: weighted_rows(plain, "linear", data.features[name]["train"])[0] for name in self.cached
        }
        self.held_out = {name: data.rows(name, "validation") for name in self.cached}
        self.classes = len(data.features[self.cached[0]]["train"].label_names)

    def run(self) -> Ranked:
        """All heads, best first."""
        subsets, cached = self.grid.subsets, self.cached
        if subsets == "each":
            return self.round(list(self.names))
        self.grid.check(len(cached))
        if subsets == "all":
            sizes = range(1, len(cached) + 1)
            return self.round(
                [",".join(some) for size in sizes for some in itertools.combinations(cached, size)]
            )
        whole = ",".join(cached)
        ranked = self.round(list(dict.fromkeys([*cached, whole])))
        path = next(trial for trial, _ in ranked if trial.view in cached)
        while True:
            inside = split_view(path.view)
            wider = [{*inside, name} for name in cached if name not in inside]
            views = [",".join(name for name in cached if name in some) for some in wider]
            made = self.round([view for view in views if view != whole]) if len(views) > 1 else []
            ranked = sorted([*ranked, *made], key=lambda pair: pair[0].rank, reverse=True)
            if not made or made[0][0].rank <= path.rank:
                return ranked
            path = made[0][0]

    def round(self, views: Sequence[str]) -> Ranked:
        """The heads of these views, best first."""
        from featcache.heads.linear_stack import fit_stack

        members, report = _members(self.grid, views, self.settings.seed), None
        if progress := self.progress:
            report = lambda lines: progress(lines[0].epoch, members, lines)  # noqa: E731
        stack = [dataclasses.replace(one, view=self.names.get(one.view, one.view)) for one in members]
        fits = fit_stack(
            self.train,
            self.held_out,
            self.classes,
            stack,
            self.head,
            seed=self.settings.seed,
            on_epoch=report,
            group=ProcessGroup(trains_on=self.settings.backbone.device),
        )
        trials = [_trial(member, fit) for member, fit in zip(members, fits, strict=True)]
        return sorted(zip(trials, fits, strict=True), key=lambda pair: pair[0].rank, reverse=True)


def _blended(
    settings: Settings, ranked: Ranked, data: CachedSplits, most: int
) -> tuple[str, Fit, CachedSplits]:
    """The view, the fit and the data of the mean of some heads, where validation finds that better than the
    best of them; else of the best."""
    best, fit = ranked[0]
    names = {
        trial.view: data.with_view(settings, trial.view).features[trial.view]["train"].view
        for trial, _ in ranked
    }
    parts = [Part(one.best, names[trial.view]) for trial, one in ranked]
    made = blend_parts(settings, data, parts, most)
    heads = np.count_nonzero(made.shares)
    alone = _rank(fit.best, data.rows(best.view, "validation"))
    if heads == 1 or _rank(made.scorer, made.data.rows(made.view, "validation")) <= alone:
        return best.view, fit, data
    view = best.view if made.view == names[best.view] else made.view
    return view, Fit(best=made.scorer, last=made.scorer, about={"blended_heads": heads}), made.data


def _with_words(settings: Settings, view: str, fit: Fit, data: CachedSplits) -> tuple[str, Fit, CachedSplits]:
    """The same with the words beside the head, where validation finds that better; else as it is."""
    wide = f"{view},{LEXICAL}"
    more = data.with_view(settings, wide)
    train, head = weighted_rows(settings, "lexical", more.features[wide]["train"])
    classes, rows = len(more.features[wide]["train"].label_names), more.rows(wide, "validation")
    made = fit_beside(lambda *_, **__: fit, train, rows, classes, head)
    more = more.reading(wide, made.ngrams)
    if _rank(made.best, more.rows(wide, "validation")) <= _rank(fit.best, data.rows(view, "validation")):
        return view, fit, data
    return wide, made, more


def _rank(scorer: Scorer, rows: LabelledFeatures) -> tuple[float, float]:
    """Accuracy and log loss, as the head would be used: with its temperature. Higher is better."""
    logits, y = scorer.logits(rows.x), rows.y
    names = tuple(map(str, range(scorer.classes)))
    _, _, found = choose_temperature(logits, y, names)
    return found.accuracy, -found.log_loss


def parse_values(text: str, *, least: float = 0.0) -> tuple[float, ...]:
    """`0,0.01` or `1e-4..1e-1` (7 values, log-spaced) or `1e-4..1e-1:10` (10 of them).

    Raises:
        UsageError: not numbers, below `least`, or a range that cannot be spaced.
    """
    values: list[float] = []
    for part in text.split(","):
        low, dots, rest = part.partition("..")
        high, colon, points = rest.partition(":")
        try:
            if not dots:
                values.append(float(low))
                continue
            values += _spaced(float(low), float(high), int(points) if colon else RANGE_POINTS)
        except ValueError:
            raise UsageError(
                f"{part.strip()!r} is no number and no range", hint="e.g. 1e-4,1e-3 or 1e-4..1e-1:7"
            ) from None
    if not all(math.isfinite(value) and value >= least for value in values):
        raise UsageError(f"{text}: numbers from {least:g} are needed")
    return tuple(dict.fromkeys(values))


def _spaced(low: float, high: float, points: int) -> list[float]:
    """Log-spaced, both ends included, rounded to 6 digits."""
    if not (0 < low < high and math.isfinite(high) and 2 <= points <= MOST_HEADS):
        raise ValueError
    step = math.log(high / low) / (points - 1)
    return [float(f"{low * math.exp(step * number):.6g}") for number in range(points)]


def _members(grid: Grid, views: Sequence[str], seed: int) -> list[Member]:
    seeds = [None] if grid.seeds == 1 else range(seed, seed + grid.seeds)
    return [
        Member(
            view, lr, decay, seed=number, label_smoothing=smoothing, class_weight=weight
        )
        for view, lr, decay, smoothing, weight, number in itertools.product(
            views, grid.lr, grid.weight_decay, grid.label_smoothing, grid.class_weight, seeds,
        )
    ]  # fmt: skip


def _trial(member: Member, fit: Fit) -> Trial:
    line = fit.history[fit.best_epoch - 1]
    return Trial(
        **dataclasses.asdict(member),
        best_epoch=fit.best_epoch,
        validation_accuracy=line.validation_accuracy,
        validation_loss=line.validation_loss,
    )


def _settings_of(settings: Settings, trial: Trial) -> Settings:
    """The settings under which `train_head` would train this head."""
    head = dataclasses.replace(
        settings.head, lr=trial.lr, weight_decay=trial.weight_decay,
        label_smoothing=trial.label_smoothing, class_weight=trial.class_weight,
    )  # fmt: skip
    return dataclasses.replace(settings, head=head)
